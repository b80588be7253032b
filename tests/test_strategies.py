"""What an experiment file asks for reaches the Learner and the run, and what makes no sense is one sentence before a photo is read."""
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from PIL import Image
from safetensors.torch import load_file

from snakecls.core import UserError
from snakecls.data.photos import open_photo, resize_photo
from snakecls.deploy.predict import Predictor
from snakecls.models.bundle import load_model, read_bundle
from snakecls.experiment.file import make_experiment
from snakecls.experiment.plan import _fill_stages, _make_callbacks, make_plan
from snakecls.experiment.table import build_table
from snakecls.train.precision_choice import PrecisionChoice
from snakecls.workflow.run import run_experiment


PROBE = ["model.arch=test_resnet", "schedule.0.epochs=0", "schedule.0.head=probe"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Photos of three classes in unequal numbers: 30, 18, 9."
    folder, rng = tmp_path_factory.mktemp("strategies"), np.random.default_rng(0)
    for place, (label, n) in enumerate({"red": 30, "green": 18, "blue": 9}.items()):
        (folder / label).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 130, (40, 44, 3), dtype=np.uint8)
            pixels[..., place] += 60
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def experiment(photos: Path, *overrides: str, **values):
    base = {"data": {"source": photos, "valid": 0.34}, "model": {"arch": "resnet10t", "weights": "none"}, "schedule": [{"size": 32, "epochs": 1, "bs": 8}], "train": {"num_workers": 0}, "track": []}
    return make_experiment(base | values, overrides=overrides)


def learner(photos: Path, *overrides: str):
    made = experiment(photos, *overrides)
    return make_plan(made).open_photos().learn, made


def run(photos: Path, tmp_path: Path, *overrides: str, say=lambda text: None, **values):
    return run_experiment(experiment(photos, *overrides, **values), root=tmp_path / "runs", logbook=None, say=say)


def test_losses_optimisers_metrics_and_sampling_are_the_experiments(photos):
    learn, _ = learner(photos, "train.loss=focal", "train.class_weights=balanced", "train.focal_gamma=3", "train.optimiser=sgd", "train.momentum=0.5", "top_k=[2]", "monitor=top2_accuracy")
    assert type(learn.loss_func).__name__ == "Focal" and learn.loss_func.gamma == 3
    weights = dict(zip(learn.dls.labels, learn.loss_func.weights.tolist()))
    assert weights["blue"] > weights["green"] > weights["red"]
    assert [metric.name for metric in learn.metrics] == ["accuracy", "top2_accuracy", "f1_macro"]
    learn.create_opt()
    assert learn.opt.hypers[0]["mom"] == 0.5
    learn, _ = learner(photos, "train.oversample=1")
    drawn = pd.Series([int(y) for _ in range(8) for _, ys in learn.dls.train for y in ys]).value_counts(normalize=True)
    assert drawn.max() - drawn.min() < 0.1  # classes equally often
    assert isinstance(learner(photos, "train.optimiser=adadelta")[0].opt_func(learn.model.parameters(), lr=1.0), OptimWrapper)


def test_callbacks_are_the_experiments(photos):
    made = experiment(photos, "train.ema=0.99", "train.patience=2", "train.min_delta=0.01", "train.validate_every=2", "train.accumulate=3", "train.clip=0.5")
    found = {type(cb).__name__: cb for cb in _make_callbacks(made, torch.nn.Linear(2, 2), "f1_macro")}
    assert set(found) == {"ExponentialMovingAverage", "EarlyStopping", "ValidateEvery", "AccumulateGradients", "ClipGradients", "FitInMemory"}
    assert (found["EarlyStopping"].patience, found["ExponentialMovingAverage"].decay) == (2, 0.99)
    assert make_plan(experiment(photos, "monitor=composite")).saver.rule == "composite"


def test_colours_are_measured_where_no_weights_prescribe_them(photos, tmp_path):
    learn, _ = learner(photos)
    seen = np.stack([resize_photo(open_photo(path), learn.dls.spec) for path in learn.dls.train_ds.items["path"]]) / 255
    assert np.allclose(learn.dls.spec.mean, seen.mean((0, 1, 2)), atol=1e-3) and np.allclose(learn.dls.spec.std, seen.std((0, 1, 2)), atol=1e-3)
    result = run(photos, tmp_path)
    assert Predictor(result.run / "best").info.photo.mean == pytest.approx(learn.dls.spec.mean)


def test_early_stopping_validation_every_second_epoch_and_lr_auto(photos, tmp_path):
    result = run(photos, tmp_path, "schedule=[{size: 32, epochs: 8, bs: 2, lr: auto}]", "train.patience=1", "train.min_delta=0.9", "train.validate_every=2")
    history = pd.read_csv(result.run / "history.csv")
    assert len(history) == 4 and history["f1_macro"].isna().tolist() == [True, False, True, False]
    assert history["lr"].notna().all() and (result.run / "plots" / "lr-stage1.png").exists()
    stage = result.metrics["stages"][0]
    assert stage["epochs"] == 4 and stage["stopped"].startswith("Stopped after epoch 4 of 8") and "Stage 1 ended after epoch 4 of 8" in result.metrics["message"]
    page = (result.run / "report.html").read_text()
    assert "Stage 1 ended after epoch 4 of 8" in page and "Learning rate of stage 1" in page and "data:image/png;base64" in page


def test_the_top_k_that_was_asked_for_is_measured_and_shown(photos, tmp_path):
    from snakecls.cli import _scores_text
    from snakecls.evaluate.predictions import evaluate_bundle
    from snakecls.workflow.leaderboard import leaderboard_text
    from snakecls.workflow.run_folder import list_runs

    said = []
    result = run_experiment(experiment(photos, "top_k=2", "data.test=0.2"), root=tmp_path / "runs", logbook=None, say=said.append)
    for split in ("valid", "test"):
        assert "top2_accuracy" in result.metrics[split] and "top3_accuracy" not in result.metrics[split]
    page, board = (result.run / "report.html").read_text(), leaderboard_text(list_runs(tmp_path / "runs"), None)
    for text in (_scores_text(result.metrics), board, "\n".join(said)):
        assert "top-2 " in text and "top-3" not in text
    assert "Top-2 accuracy" in page and "Top-2, own" in page and "Top-3" not in page
    table = build_table(experiment(photos))
    assert "top2_accuracy" in evaluate_bundle(result.run / "best", table[table["split"] == "valid"])[1]


def test_the_precision_that_was_chosen_stands_in_the_run(photos, tmp_path):
    result = run(photos, tmp_path, "train.precision=auto")
    assert result.metrics["mode"] in {row["mode"] for row in result.metrics["precision"]}
    assert result.run.experiment()["train"]["precision"] == result.metrics["mode"]  # so that the run can be repeated
    bf16 = run(photos, tmp_path, "train.precision=bf16", "name=bf16")
    assert math.isclose(bf16.metrics["valid"]["f1_macro"], bf16.metrics["best"]["value"], abs_tol=1e-6)  # validated as it is served


def test_a_run_starts_from_an_earlier_run_with_other_classes(photos, tmp_path):
    first = run(photos, tmp_path, "name=first", "schedule.0.epochs=2")
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for label in ("red", "blue"):
        (fewer / label).symlink_to(photos / label, target_is_directory=True)
    (fewer / "violet").mkdir()
    for i in range(6):
        Image.new("RGB", (40, 40), (140 + i, 40, 160)).save(fewer / "violet" / f"{i}.png")
    learn, _ = learner(fewer, f"model.weights={first.run / 'best'}")
    before = read_bundle(first.run / "best")
    old, head = load_model(before).get_classifier().weight.detach(), learn.model.get_classifier().weight.detach().cpu()
    assert torch.equal(head[learn.dls.labels.index("red")], old[before.info.labels.index("red")])
    second = run(fewer, tmp_path, "name=second", "model.weights=first")
    assert "run" in json.loads((second.run / "best/bundle.json").read_text())["weights_source"]
    with pytest.raises(UserError, match="did you mean 'first'"):
        run(fewer, tmp_path, "model.weights=frist")


@pytest.mark.parametrize("arch, kwargs", [("lenet5", {}), ("alexnet_scratch", {"dense_neurons": 64}), ("googlenet_scratch", {"batch_norm": True}), ("cnn", {"filters": 8}), ("googlenet", {}), ("shufflenet_v2_x0_5", {})])
def test_networks_of_every_library_run_and_are_served(photos, tmp_path, arch, kwargs):
    result = run(photos, tmp_path, "schedule.0.size=64", model={"arch": arch, "weights": "none", "kwargs": kwargs})
    predictor, said = Predictor(result.run / "best"), pd.read_parquet(result.run / "predictions-valid.parquet")
    assert np.allclose(predictor.probs(said["path"].tolist()), said.filter(like="p_").to_numpy(), atol=1e-5)


@pytest.mark.parametrize("overrides, sentence", [
    (["schedule.0.cutmix=1", "schedule.0.size=8"], "at least 16 px"),
    (["schedule.0.freeze=9"], "to 4"),
    (["train.loss=bce"], "several labels"),
    (["train.optimiser=adma"], "did you mean 'adam'"),
    (["schedule.0.lr=fast"], "auto"),
    (["schedule.0.layer_decay=0.5", "schedule.0.lr=[1.0e-5, 1.0e-3]"], "layer_decay"),
    (["schedule.0.epochs=2", "schedule.0.gradual=true", "schedule.0.freeze=4"], "keeps them all"),
    (["train.wd=.inf"], "train.wd is inf: .*finite number"),
    (["schedule.0.lr=.inf"], "schedule.0.lr is inf: .*finite number"),
    (["schedule.0.lr_schedule=cosine_restarts", "schedule.0.epochs=3", "schedule.0.lr_options={cycel: 1}"], "did you mean 'cycle'"),
    (["schedule.0.lr_schedule=plateau", "schedule.0.epochs=9", "schedule.0.lr_options={of: 1}"], "choose one of: factor"),
    (["top_k=[3, 0]"], "top_k.1 is 0"),
    (["monitor=top5_accuracy"], "choose one of"),
    (["monitor=top3_accuracy"], "always 1 with 3 classes"),
    (["train.precision=fp61"], "fp16"),
    (["train.precision=fp16"], "needs a GPU"),
    (["train.oversample=2"], "oversample"),
    (["model.arch=lenet"], "did you mean 'lenet5'"),
    (["model.arch=cnn", "model.kwargs={kernel_size: 99}"], "from 800 px"),
])
def test_what_makes_no_sense_is_refused_before_a_photo_is_read(photos, tmp_path, monkeypatch, overrides, sentence):
    def refuse(*args, **kwargs):
        raise AssertionError("a photo was read")
    for module in ("snakecls.experiment.plan.keep_readable", "snakecls.models.info._photo_sums"):
        monkeypatch.setattr(module, refuse)
    with pytest.raises(UserError, match=sentence):
        run(photos, tmp_path, *overrides)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("overrides, sentence", [
    (["schedule.0.mix_p=0.5"], "schedule.0.mix_p is 0.5, but nothing is mixed"),
    (["augment.mix_p=0.5"], "augment.mix_p is 0.5, but nothing is mixed"),
    (["train.min_delta=0.1"], "without train.patience"),
    (["train.patience=4", "schedule.0.epochs=5"], "give at most 3"),
    (["train.patience=1", "train.validate_every=3", "schedule.0.epochs=6"], "2 validation"),
    (["train.validate_every=3", "schedule.0.epochs=2"], "give at most 2"),
    (["train.validate_every=2", "schedule.0.epochs=4", "schedule.0.lr_schedule=plateau"], "validate more often"),
    (["train.refit=true"], "no stage has a probe"),
    (["train.loss=seesaw", "train.label_smoothing=0.1"], "the loss seesaw has none"),
    (["train.loss=seesaw", "train.class_weights=balanced"], "do nothing with seesaw"),
    (["train.focal_gamma=1"], "the loss is cross_entropy"),
    (["train.loss=focal", "train.focal_gamma=0"], "with which focal is cross_entropy"),
    (["train.pos_weight=balanced"], "these photos have one"),
    (["train.optimiser=adadelta", "train.momentum=0.5"], "adadelta has none"),
    (["schedule.0.layer_decay=0.5", "schedule.0.freeze=body"], "keeps them all"),
    (["train.class_weights=effective", "train.oversample=0.5"], "both make up for rare classes"),
    (["train.batch_norm=all"], "mean 0 and variance 1"),
    (["train.batch_norm=frozen", "model.arch=lenet5"], "has no batch norm"),
    (["train.loss=focal", "schedule.0.label_smoothing=0.1"], "cannot be smoothed"),
    (["predict.thresholds=per_class"], "does nothing here"),
    (["schedule.0.gradual=true"], "schedule.0.gradual frees one block more"),
    (["schedule.0.lr_schedule=plateau"], "schedule.0.lr_schedule is plateau, which cannot act"),
    (["schedule.0.lr_schedule=cosine_restarts"], "never restarts within 1 epoch"),
    (["schedule.0.lr_schedule=cosine_restarts", "schedule.0.epochs=5"], "cut from 4 to 2 epoch"),
    (["augment.backend=albumentations", "augment.max_rotate=30"], "augment.max_rotate is 30.0, and the backend albumentations does not use it"),
    (["augment.backend=none", "augment.min_scale=0.8"], "leave it out, or choose backend: fastai"),
    (["schedule.0.warmup=0.2"], "schedule.0.warmup is 0.2, and does nothing with one_cycle"),
    (["train.target_weights={label: 2}"], "one target alone"),
    (["schedule.0.lr_options={cycle: 2}"], "schedule.0.lr_options cycle is of cosine_restarts and does nothing with one_cycle"),
    (["data.unlabelled=drop"], "unlabelled is 'drop', which is for photos with several labels"),
    (["data.separator=;"], "separator is ';', which is for photos with several labels"),
    (["augment.mixup=0.3", "schedule.0.mixup=0"], "augment.mixup is 0.3, but every stage gives its own mixup"),
    (["data.valid=0.3", "data.folds=2", "data.fold=0"], "one fold in 2 validates"),
    (["predict.danger_column=bites"], "there is no table of facts"),
    (["data.top_classes=9"], "top_classes 9 leaves out none of the"),
    (["data.min_per_class=1"], "min_per_class 1 leaves out none of the"),
    ([*PROBE, "train.wd=0.1", "train.ema=0.9", "augment.mixup=0.2"], "so train.wd, train.ema, augment.mixup do nothing"),
    ([*PROBE, "train.loss=focal"], "train.loss only changes the loss that is reported"),
    ([*PROBE, "train.validate_every=2"], "train.validate_every is 2, but no stage has epochs; leave it out."),
])
def test_what_does_nothing_is_told_and_runs(photos, overrides, sentence):
    assert any(sentence in note for note in make_plan(experiment(photos, *overrides)).notes)


def test_notes_do_not_contradict_each_other(photos):
    notes = make_plan(experiment(photos, "train.batch_norm=all", "model.arch=lenet5")).notes
    assert [note for note in notes if "batch norm" in note] == ["train.batch_norm is all, but lenet5 has no batch norm; leave it out."]


def test_a_share_beside_a_split_of_the_photos_is_told(photos, tmp_path):
    table = pd.DataFrame({"path": sorted(photos.glob("*/*.png"))})
    table["label"], table["split"] = [path.parent.name for path in table["path"]], ["train", "valid", "train"] * (len(table) // 3)
    table.to_csv(tmp_path / "t.csv", index=False)
    notes = make_plan(experiment(photos, data={"source": tmp_path / "t.csv", "valid": 0.3, "label_level": 2})).notes
    assert any("data.valid is 0.3, but the photos have a validation split" in note for note in notes)
    assert any("data.label_level is 2 and belongs to a folder" in note for note in notes)


def test_idle_options_change_nothing(photos, tmp_path):
    said, idle = [], ["train.patience=9", "train.min_delta=0.1", "train.validate_every=3", "train.refit=true", "schedule.0.mix_p=0.5", "name=idle",
                      "train.focal_gamma=3", "train.pos_weight=balanced", "predict.thresholds=global", "train.target_weights={label: 2}"]
    plain, told = run(photos, tmp_path, "name=plain"), run(photos, tmp_path, *idle, say=said.append)
    assert sum(text.startswith("Note: ") for text in said) >= 8
    assert told.metrics["valid"] == plain.metrics["valid"] and told.metrics["best"] == plain.metrics["best"]


def test_a_stage_without_epochs_is_left_out(photos, tmp_path):
    said, first = [], {"size": 32, "epochs": 1, "bs": 8, "lr": 0.01}
    alone = run_experiment(experiment(photos, "name=alone", schedule=[first]), root=tmp_path / "runs", logbook=None, say=said.append)
    beside = run_experiment(experiment(photos, "name=beside", schedule=[first, {"size": 64, "epochs": 0}]), root=tmp_path / "runs", logbook=None, say=said.append)
    assert any("schedule.1.epochs is 0, so the stage is left out" in text for text in said)
    assert beside.metrics["valid"] == alone.metrics["valid"] and [stage["stage"] for stage in beside.metrics["stages"]] == [1]
    with pytest.raises(UserError, match="no stage of the schedule trains anything"):
        make_plan(experiment(photos, schedule=[{"size": 32, "epochs": 0}]))


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1, 1)])
def test_a_stage_without_epochs_changes_nothing_wherever_it_stands(photos, tmp_path, places):
    "Neither seeds nor anything else of the stages behind it; what it would freeze or take is not asked."
    acting = [{"size": 32, "epochs": 1, "bs": 8, "lr": 0.01, "mixup": 0.2}, {"size": 48, "epochs": 1, "bs": 8, "lr": 0.01}]
    beside = list(acting)
    for place in places:
        beside.insert(place, {"size": 64, "epochs": 0, "freeze": 99})
    runs = [run_experiment(experiment(photos, f"name=n{len(schedule)}", schedule=schedule), root=tmp_path / "runs", logbook=None, say=lambda text: None)
            for schedule in (acting, beside)]
    alone, mixed = (one.run.history().drop(columns=["stage", "seconds"]) for one in runs)
    assert len(alone) == 2 and alone.equals(mixed)
    weights, others = (load_file(one.run / "best" / "weights.safetensors") for one in runs)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_rate_at_which_adadelta_stands_still_is_told(photos):
    notes = make_plan(experiment(photos, "train.optimiser=adadelta", "schedule.0.lr=1.0e-3")).open_photos().notes
    assert any("leave lr out" in note for note in notes)


def test_weights_that_no_photo_allows_are_refused_before_a_photo_is_read(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("snakecls.experiment.plan.keep_readable", lambda *args: pytest.fail("a photo was read"))
    paths = sorted(photos.glob("*/*.png"))
    pd.DataFrame({"path": paths, "labels": [f"photo {path.parent.name}" for path in paths]}).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(UserError, match="some label is on"):
        run(photos, tmp_path, "train.pos_weight=balanced", data={"source": tmp_path / "labels.csv", "multi_label": True, "separator": " ", "valid": 0.34})


def test_batch_norms_of_random_weights_are_trained_and_pretrained_ones_held(photos, tmp_path):
    first = run(photos, tmp_path, "name=first")
    assert first.run.experiment()["train"]["batch_norm"] == "train"
    weights = load_file(first.run / "best" / "weights.safetensors")
    assert all((value != 0).any() for name, value in weights.items() if name.endswith("running_mean"))
    second = run(photos, tmp_path, "name=second", f"model.weights={first.run / 'best'}")
    assert second.run.experiment()["train"]["batch_norm"] == "all"
    again = load_file(second.run / "best" / "weights.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights if name.endswith("running_mean"))
    assert any((weights[name] != again[name]).any() for name in weights if name.endswith("weight"))


def test_options_of_a_rate_reach_the_optimiser_and_adadelta_has_its_own(photos, tmp_path):
    stages = _fill_stages(experiment(photos, "schedule.0.lr_schedule=plateau", "schedule.0.epochs=9", "schedule.0.lr_options={factor: 0.5, patience: 2}"))
    assert stages[0].lr_options == {"factor": 0.5, "patience": 2} and stages[0].lr == 1e-3
    result = run(photos, tmp_path, "train.optimiser=adadelta", "schedule.0.epochs=6")
    assert pd.read_csv(result.run / "history.csv")["lr"].tolist() == [1.0] * 6
    losses = pd.read_csv(result.run / "history.csv")["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0] - 0.1


def choice(compiled: bool) -> PrecisionChoice:
    rows = [{"mode": "bf16", "sound": True, "note": ""}, {"mode": "bf16 compiled", "sound": True, "note": "does not pay off within 8 steps"}]
    return PrecisionChoice("bf16", rows, compiled, "measured")


@pytest.mark.parametrize("pays", [True, False])
def test_compiling_is_weighed_where_the_precision_is_measured(photos, tmp_path, monkeypatch, pays):
    asked, compiled = [], []
    monkeypatch.setattr("snakecls.experiment.plan.measure_precision", lambda model, size, **kwargs: asked.append(kwargs) or choice(pays))
    monkeypatch.setattr("snakecls.experiment.plan.compile_model", lambda learn: compiled.append(learn))
    result = run(photos, tmp_path, "train.precision=auto", "train.compile=true", schedule=[{"size": 32, "epochs": 2, "bs": 8}, {"size": 48, "epochs": 1, "bs": 4}])
    n = (pd.read_parquet(result.run / "manifest.parquet")["split"] == "train").sum()
    assert asked == [{"bs": 4, "compile": True, "planned_steps": 2 * (n // 8) + n // 4}]
    assert len(compiled) == pays and result.run.experiment()["train"]["compile"] == pays


def test_compiling_that_was_asked_for_is_timed(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("snakecls.experiment.plan.compile_model", lambda learn: learn.model.compile(backend="eager"))
    assert run(photos, tmp_path, "train.compile=true").metrics["compile_seconds"] > 0
    assert run(photos, tmp_path).metrics["compile_seconds"] is None


def test_without_epochs_nothing_is_measured_or_compiled(photos, tmp_path, monkeypatch):
    for name in ("measure_precision", "compile_model"):
        monkeypatch.setattr(f"snakecls.experiment.plan.{name}", lambda *args, **kwargs: pytest.fail("measured"))
    result = run(photos, tmp_path, "train.precision=auto", "train.compile=true", schedule=[{"size": 32, "epochs": 0, "head": "probe"}])
    assert (result.metrics["mode"], result.metrics["precision"]) == ("fp32+channels_last", None)


def test_a_step_longer_than_an_epoch_is_told(photos, tmp_path):
    told = []
    run_experiment(experiment(photos, "train.accumulate=50"), root=tmp_path / "runs", logbook=None, say=told.append)
    assert any("train.accumulate is 50" in text for text in told)


def test_a_search_goes_through_a_small_set_several_times(photos):
    from snakecls.train.lr_finder import LEAST_STEPS, find_lr

    class Steps(Callback):
        lrs: list[float] = []

        def before_step(self):
            self.lrs.append(self.opt.hypers[-1]["lr"])

    learn, _ = learner(photos)
    assert len(learn.dls.train) * 2 < LEAST_STEPS
    with learn.no_bar(), learn.no_logging():
        find_lr(learn, cbs=[steps := Steps()])
    assert 12 < len(steps.lrs) <= LEAST_STEPS and all(0 < after / before < 2 for before, after in zip(steps.lrs, steps.lrs[1:]))
