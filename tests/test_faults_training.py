"""Faults that outsiders met in training: losses that want the wrong thing, hours spent without a word, runs that were trained by hand."""
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize, minimize_scalar
from torch import nn

from snakecls.core import IdleWarning, UserError
from snakecls.experiment.file import make_experiment
from snakecls.train.losses import make_loss
from snakecls.workflow.run import run_experiment

COUNTS = {"red": 240, "green": 240, "blue": 3}
PHOTOS = torch.tensor(np.repeat([0, 1, 2], list(COUNTS.values())))
SHARES = np.array(list(COUNTS.values())) / sum(COUNTS.values())


def best_constant(loss, targets: torch.Tensor, n_outputs: int, activation: str = "softmax") -> np.ndarray:
    "What the loss wants of a model that can tell nothing apart: the constant answer with the smallest mean loss over the photos."
    def value(logits: np.ndarray) -> tuple[float, np.ndarray]:
        constant = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
        total = loss(constant.expand(len(targets), n_outputs), targets)
        total.backward()
        return float(total.detach()), constant.grad.double().numpy()

    logits = torch.tensor(minimize(value, np.zeros(n_outputs), jac=True, method="BFGS", options={"gtol": 1e-7}).x)
    return (logits.softmax(-1) if activation == "softmax" else logits.sigmoid()).numpy()


# What is wanted is written from the definition, in numpy: each photo's smoothed loss times the weight of its own class.

def wanted_cross_entropy(weights: np.ndarray, amount: float) -> np.ndarray:
    "p of class c goes with its own weighted share, and with what smoothing takes of all photos' weights alike."
    weighed = SHARES * weights
    wanted = (1 - amount) * weighed + amount * weighed.sum() / len(weighed)
    return wanted / wanted.sum()


def wanted_focal(weights: np.ndarray, gamma: float) -> np.ndarray:
    def value(logits: np.ndarray) -> float:
        p = np.exp(logits - np.logaddexp.reduce(logits))
        return float((SHARES * weights * -((1 - p) ** gamma) * np.log(p)).sum())

    logits = minimize(value, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    return np.exp(logits - np.logaddexp.reduce(logits))


def own_weights(name: str) -> np.ndarray:
    counts = np.array(list(COUNTS.values()), float)
    weights = {"none": np.ones(3), "balanced": 1 / counts, "effective": (1 - 0.999) / (1 - 0.999**counts)}[name]
    return weights / (SHARES * weights).sum()


@pytest.mark.parametrize("class_weights", ["none", "balanced", "effective"])
def test_weights_average_one_over_the_training_photos(class_weights):
    loss = make_loss("cross_entropy", counts=list(COUNTS.values()), class_weights=class_weights)
    weights = np.ones(3) if loss.weights is None else loss.weights.numpy()
    assert weights[PHOTOS].mean() == pytest.approx(1, abs=1e-5)
    assert weights == pytest.approx(own_weights(class_weights), rel=1e-4)


@pytest.mark.parametrize("class_weights", ["none", "balanced", "effective"])
@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5])
def test_class_weights_with_label_smoothing(class_weights, amount):
    loss = make_loss("cross_entropy", counts=list(COUNTS.values()), class_weights=class_weights, label_smoothing=amount)
    assert best_constant(loss, PHOTOS, 3) == pytest.approx(wanted_cross_entropy(own_weights(class_weights), amount), abs=2e-3)


@pytest.mark.parametrize("class_weights", ["none", "balanced", "effective"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_class_weights_with_focal(class_weights, gamma):
    loss = make_loss("focal", counts=list(COUNTS.values()), class_weights=class_weights, focal_gamma=gamma)
    wanted = wanted_focal(own_weights(class_weights), gamma)
    assert best_constant(loss, PHOTOS, 3) == pytest.approx(wanted, abs=3e-3)
    if class_weights == "balanced":
        assert wanted == pytest.approx(np.ones(3) / 3, abs=1e-3)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("amount", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_pos_weight_with_smoothing_and_focal(weighed, amount, gamma):
    "Two labels on 1 and on 30 of a hundred photos; each is judged by itself."
    if amount and gamma:
        with pytest.warns(IdleWarning, match="focal has none"):
            make_loss("focal", problem="multi_label", label_smoothing=amount)
        return
    photos = torch.zeros(1000, 2)
    photos[:10, 0], photos[:300, 1] = 1, 1
    loss = make_loss("focal" if gamma else "bce", problem="multi_label", counts=[10, 300], n_photos=1000, pos_weight="balanced" if weighed else "none", label_smoothing=amount, focal_gamma=gamma or 2.0)

    def wanted(share: float) -> float:
        positive, negative = share * ((1 - share) / share if weighed else 1), 1 - share

        def value(logit: float) -> float:
            yes, no = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
            of_yes = -(1 - amount / 2) * np.exp(no) ** gamma * yes - amount / 2 * np.exp(yes) ** gamma * no
            of_no = -(1 - amount / 2) * np.exp(yes) ** gamma * no - amount / 2 * np.exp(no) ** gamma * yes
            return positive * of_yes + negative * of_no

        return 1 / (1 + np.exp(-minimize_scalar(value, bounds=(-15, 15), method="bounded", options={"xatol": 1e-9}).x))

    assert best_constant(loss, photos, 2, "sigmoid") == pytest.approx([wanted(0.01), wanted(0.3)], abs=3e-3)
    if weighed:
        assert wanted(0.01) == pytest.approx(0.5, abs=1e-3)


def test_seesaw_against_its_equations():
    "Its own correction of the long tail, by the paper's formula: the gradient vanishes where the equations say so."
    loss = make_loss("seesaw", counts=list(COUNTS.values()))
    loss.seen = torch.tensor(list(COUNTS.values()))
    seen, p_power, q_power = np.array(list(COUNTS.values()), float), 0.8, 2.0
    mitigation = np.minimum(1, (seen[None] / seen[:, None]) ** p_power)  # of class j for a photo of class i

    def gradient(logits: np.ndarray) -> np.ndarray:
        p = np.exp(logits - np.logaddexp.reduce(logits))
        factors = mitigation * np.maximum(1, (p[None] / np.maximum(p[:, None], 0.01)) ** q_power)
        np.fill_diagonal(factors, 1)
        answers = factors * np.exp(logits)[None]
        answers /= answers.sum(1, keepdims=True)  # (class of the photo, class)
        return (SHARES[:, None] * (answers - np.eye(3))).sum(0)

    for logits in (np.zeros(3), np.array([1.0, 0.5, -2.0])):
        constant = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
        with torch.enable_grad():
            loss.losses(constant.expand(len(PHOTOS), 3), PHOTOS).mean().backward()
        assert constant.grad.numpy() == pytest.approx(gradient(logits), abs=1e-4)


class Constant(nn.Module):
    "A model that can tell nothing apart."

    def __init__(self, n: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("with_", ["mixup", "cutmix", "accumulate", "mixup and accumulate", "oversample"])
def test_class_weights_in_a_fit(with_):
    "Blends weigh each photo by its own class, and a step of several batches weighs all its photos alike: a constant model learns the hand-made optimum either way."
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    from snakecls.data.balance import draw_photos, draw_weights
    from snakecls.train.gradients import AccumulateGradients
    from snakecls.train.mixing import CutMix, MixUp

    counts = {"a": 12, "b": 9, "c": 3}
    answers = np.repeat(list(counts), list(counts.values()))
    weights, amount = {"class_weights": "balanced"}, 0.1
    if with_ == "oversample":  # in place of class weights: together they overdo it, as an experiment says
        answers, weights = answers[draw_photos(draw_weights(answers, oversample=1.0), seed=0)], {}
    numbers = torch.tensor(["abc".index(answer) for answer in answers])
    photos = list(zip(torch.rand(24, 3, 16, 16), numbers[torch.randperm(24, generator=torch.Generator().manual_seed(0))]))
    bs = 7 if "accumulate" in with_ else 24  # unequal batches: 7, 7, 7, 3
    dls = DataLoaders(DataLoader(photos, bs=bs), DataLoader(photos, bs=24))
    cbs = [{"mixup": MixUp(0.4), "cutmix": CutMix(1.0)}[with_.split()[0]]] if with_.split()[0] in ("mixup", "cutmix") else []
    cbs += [AccumulateGradients(4)] if "accumulate" in with_ else []
    learn = Learner(dls, Constant(3), loss_func=make_loss("cross_entropy", counts=list(counts.values()), label_smoothing=amount, **weights), opt_func=SGD, cbs=cbs, wd=0)
    with learn.no_bar(), learn.no_logging():
        learn.fit(60, 3.0)
    assert learn.model.logits.softmax(-1).detach().numpy() == pytest.approx(np.ones(3) / 3, abs=0.05 if with_ == "oversample" else 0.02)  # one photo more or less


def test_target_weights_and_each_targets_own_class_weights():
    from snakecls.train.multi_target import TargetsLoss

    first = make_loss("cross_entropy", counts=list(COUNTS.values()), class_weights="balanced", label_smoothing=0.1)
    second = make_loss("focal", counts=[470, 13])
    others = torch.tensor([0] * 470 + [1] * 13)
    loss = TargetsLoss({"genus": first, "country": second}, weights={"country": 3.0})
    zeros = (torch.zeros(483, 3), torch.zeros(483, 2))
    by_hand = np.log(3) + 3 * 0.25 * np.log(2)  # weights that average 1, smoothing of a flat answer costs nothing, and (1 - 1/2) ** 2 of the focal loss
    assert float(loss(zeros, PHOTOS, others)) == pytest.approx(by_hand, abs=1e-4)
    assert best_constant(lambda logits, y: loss((logits, zeros[1]), y, others), PHOTOS, 3) == pytest.approx(np.ones(3) / 3, abs=2e-3)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    "240 red, 240 green and 3 blue photos of plain colours: the example of the issue."
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    rows = []
    for place, (label, n) in enumerate(COUNTS.items()):
        (folder / label).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[..., place] += 180
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
            rows.append((f"{label}/{i}.png", label, "valid" if i % 3 == 0 else "train"))
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "photos.csv", index=False)
    return folder


def test_plain_colours_are_learned_with_class_weights_and_label_smoothing(colours, tmp_path):
    values = {
        "name": "colours", "data": {"source": str(colours / "photos.csv")}, "model": {"arch": "lenet5", "weights": "none"}, "augment": {"backend": "none", "min_scale": 1.0, "flip": False},
        "train": {"num_workers": 0, "precision": "fp32", "class_weights": "balanced", "label_smoothing": 0.1}, "schedule": [{"size": 32, "epochs": 6, "bs": 32, "lr": 3e-3}], "track": [], "predict": {"examples": 0},
    }
    metrics = run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=None, say=lambda text: None).metrics
    assert metrics["valid"]["f1_macro"] > 0.95


# --- what is told before time is spent -------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def few(tmp_path_factory):
    "Thirty photos of three colours in class folders."
    folder, rng = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    for place, label in enumerate(COUNTS):
        (folder / label).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 60, (40, 48, 3), dtype=np.uint8)
            pixels[..., place] += 180
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def experiment(source, **keys):
    "A small experiment."
    values = {"name": "small", "data": {"source": str(source)}, "model": {"arch": "lenet5", "weights": "none"}, "train": {"num_workers": 0, "precision": "fp32"}, "schedule": [{"size": 32, "epochs": 1, "bs": 8}], "track": [], "predict": {"examples": 0}}
    for key, value in keys.items():
        values[key] = values[key] | value if isinstance(value, dict) and key in values else value
    return make_experiment(values)


def test_what_is_almost_surely_a_mistake_is_told_before_training(few, tmp_path):
    said = []
    strange = experiment(few, data={"source": str(few), "valid": 0.9}, schedule=[{"size": 64, "epochs": 1, "bs": 32, "lr": 5.0}], train={"num_workers": 0, "precision": "fp32", "wd": 3.0})
    result = run_experiment(strange, root=tmp_path / "runs", logbook=None, say=said.append)
    before = "\n".join(said[: next(i for i, text in enumerate(said) if "epoch" in text and "stage 1" in text)])
    for told in ("photos are left to train on, and 27 are for validation (data.valid is 0.9)", "fewer than 5 training photos", "(64 px) is more than any of the", "schedule.0.lr is 5", "batches of 32, but there are 3 training photos", "train.wd is 3"):
        assert told in before, told
    assert result.metrics["valid"]["n"] == 27  # told, and not refused


def test_an_ordinary_run_has_no_such_notes_and_says_how_long_it_takes(few, tmp_path):
    said = []
    run_experiment(experiment(few), root=tmp_path / "runs", logbook=None, say=said.append)
    assert not [text for text in said if text.startswith("Note:")]
    place = next(i for i, text in enumerate(said) if "This will take about" in text)
    assert "Run " in said[place - 1] and "stage 1" in said[place + 1]


def test_the_estimate_changes_nothing(few, tmp_path, monkeypatch):
    "A run whose duration is estimated ends with the same numbers as one whose is not."
    import snakecls.workflow.run as module

    losses = []
    for estimate in (module.estimate_seconds, lambda *args, **kwargs: 1.0):
        monkeypatch.setattr(module, "estimate_seconds", estimate)
        result = run_experiment(experiment(few), root=tmp_path / "runs", logbook=None, say=lambda text: None)
        losses.append(result.run.history()["valid_loss"].tolist())
    assert losses[0] == losses[1]


def test_little_shared_memory_is_noticed_before_the_loading_processes_die(few, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    from snakecls.data.datablocks import photo_dls
    from snakecls.data.splits import split_table
    from snakecls.data.tables import load_table

    usage, real = namedtuple("usage", "total used free"), shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64_000_000, 63_990_000, 10_000) if str(path) == "/dev/shm" else real(path))
    said = []
    run_experiment(experiment(few, train={"num_workers": 2, "precision": "fp32"}), root=tmp_path / "runs", logbook=None, say=said.append)
    assert any("shared memory" in text and "no process beside this one reads photos" in text for text in said)
    assert photo_dls(split_table(load_table(few)), 32, num_workers=2).train.fake_l.num_workers == 0


@pytest.mark.parametrize("kwargs", [{"features_only": True}, {"global_pool": ""}])
def test_a_network_that_gives_no_classes_is_one_sentence(few, tmp_path, kwargs):
    with pytest.raises(UserError, match="features_only|global_pool"):
        run_experiment(experiment(few, model={"arch": "test_resnet", "weights": "none", "kwargs": kwargs}), root=tmp_path / "runs", logbook=None, say=lambda text: None)


# --- by hand ---------------------------------------------------------------------------------------------------------------------

def hand_made(few, tmp_path, **kwargs):
    from fastai.learner import Learner

    from snakecls.data.datablocks import photo_dls
    from snakecls.data.splits import split_table
    from snakecls.data.tables import load_table
    from snakecls.models.backbones import create_backbone
    from snakecls.models.freezing import stage_groups
    from snakecls.train.metrics import epoch_metrics

    network = create_backbone("lenet5", 3, weights="none")
    dls = photo_dls(split_table(load_table(few)), 32, bs=8, num_workers=0, network=network)
    return Learner(dls, network, metrics=epoch_metrics(), splitter=stage_groups, path=tmp_path, **kwargs)


def test_photos_are_normalised_as_the_network_wants_them(few):
    import timm

    from snakecls.data.datablocks import photo_dls
    from snakecls.data.splits import split_table
    from snakecls.data.tables import load_table

    table = split_table(load_table(few))
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3)  # trained with mean and standard deviation 0.5
    assert photo_dls(table, 32, num_workers=0, network=network).spec.mean == (0.5, 0.5, 0.5)
    assert photo_dls(table, 32, num_workers=0).spec.mean == pytest.approx((0.485, 0.456, 0.406))


def test_test_dl_finds_the_labels_of_paths(few):
    from snakecls.data.datablocks import photo_dls
    from snakecls.data.splits import split_table
    from snakecls.data.tables import load_table

    dls = photo_dls(split_table(load_table(few)), 32, num_workers=0)
    paths = [few / "red" / "0.png", str(few / "blue" / "3.png")]
    _, answers = dls.test_dl(paths, with_labels=True).one_batch()
    assert [dls.vocab[i] for i in answers] == ["red", "blue"]


def test_a_learner_trained_by_hand_becomes_a_run(few, tmp_path):
    from snakecls.deploy.predict import Predictor
    from snakecls.workflow.record import record_run
    from snakecls.workflow.run_folder import list_runs

    learn, said = hand_made(few, tmp_path), []
    with learn.no_bar(), learn.no_logging(), record_run("by hand", learn, root=tmp_path / "runs", logbook=tmp_path / "logbook.md", question="Does it work by hand?", say=said.append) as run:
        learn.fit_one_cycle(2, 1e-3)
        learn.fit_one_cycle(1, 1e-4)
    assert list_runs(tmp_path / "runs")[["name", "status", "epochs", "arch"]].values.tolist() == [["by hand", "finished", 3, "lenet5"]]
    for name in ("experiment.yaml", "environment.json", "manifest.parquet", "history.csv", "metrics.json", "predictions-valid.parquet", "best/bundle.json", "export.pkl", "report.html"):
        assert (run / name).exists(), name
    assert "Does it work by hand?" in (tmp_path / "logbook.md").read_text() and run.id in (tmp_path / "logbook.md").read_text()
    table = pd.read_parquet(run / "predictions-valid.parquet")
    top = Predictor(run / "best").predict(table["path"][0])[0]
    assert top.label == table["predicted"][0]
    assert run.metrics()["valid"]["accuracy"] == pytest.approx((table["label"] == table["predicted"]).mean())
    assert "by hand" in (run / "report.html").read_text()


def test_the_callback_records_what_a_saver_brought_back_and_what_broke_off(few, tmp_path):
    from fastai.callback.core import Callback
    from fastai.callback.tracker import SaveModelCallback

    from snakecls.workflow.record import RecordRun
    from snakecls.workflow.run_folder import list_runs

    class Break(Callback):
        def after_epoch(self):
            raise RuntimeError("broken")

    learn, root = hand_made(few, tmp_path), tmp_path / "runs"
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 3e-3, cbs=[SaveModelCallback(monitor="valid_loss"), RecordRun("saved", root=root, logbook=None, say=lambda text: None)])
        with pytest.raises(RuntimeError, match="broken"):
            learn.fit_one_cycle(1, 1e-3, cbs=[RecordRun("broken", root=root, logbook=None, say=lambda text: None), Break()])
    runs = list_runs(root).set_index("name")
    assert runs["status"].to_dict() == {"saved": "finished", "broken": "failed"}
    from snakecls.workflow.run_folder import RunFolder

    saved = RunFolder(root / runs.loc["saved", "run"])
    rows, scores = saved.history(), saved.metrics()
    assert scores["best"]["epoch"] == rows["epoch"][rows["valid_loss"].idxmin()]
    assert scores["valid"]["loss"] == pytest.approx(rows["valid_loss"].min(), abs=1e-3)  # the weights are the saver's


def test_a_plain_fastai_learner_becomes_a_run_without_a_bundle(few, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, resnet18, vision_learner

    from snakecls.workflow.record import record_run

    learn, said = vision_learner(ImageDataLoaders.from_folder(few, valid_pct=0.3, seed=0, item_tfms=Resize(32), bs=8, num_workers=0), resnet18, pretrained=False, metrics=accuracy, path=tmp_path), []
    with learn.no_bar(), learn.no_logging(), record_run("plain", learn, root=tmp_path / "runs", logbook=tmp_path / "logbook.md", say=said.append) as run:
        learn.fit_one_cycle(1)
    assert run.metrics()["valid"]["n"] == 9 and (run / "report.html").exists() and not (run / "best").exists()
    assert any("there is no bundle" in text for text in said)
    assert run.history()["accuracy"].iloc[-1] == pytest.approx(run.metrics()["valid"]["accuracy"])
    assert "seed" not in run.experiment()  # what is not known is not invented


def test_wandb_takes_project_and_tags_from_the_experiment_and_records_offline(few, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = []
    result = run_experiment(experiment(few, track="wandb", wandb={"project": "mosses", "tags": ["first", "small"]}), root=tmp_path / "runs", logbook=None, say=said.append)
    written = b"".join(file.read_bytes() for file in result.run.path.glob("wandb/offline-run-*/*.wandb"))
    assert b"mosses" in written and b"first" in written and b"small" in written
    assert not [text for text in said if text.startswith("Note:")]


def test_warnings_about_wandb_name_no_internal_call(few, tmp_path, monkeypatch, recwarn):
    import snakecls.workflow.recorder as module
    from snakecls.workflow.trackers import WandbTracker

    monkeypatch.setattr(module, "WandbTracker", lambda *args, **kwargs: WandbTracker(*args, command=["/nonexistent"], **kwargs))
    said = []
    run_experiment(experiment(few, track="wandb"), root=tmp_path / "runs", logbook=None, say=said.append)
    notes = [text for text in said if text.startswith("Note:")]
    assert len(notes) == 1 and notes[0].startswith("Note: W&B failed as the run began") and "Tracker" not in notes[0]
    assert not [warning for warning in recwarn if "W&B" in str(warning.message)]


def test_wandb_keys_without_wandb_are_told(few, tmp_path):
    said = []
    run_experiment(experiment(few, wandb={"project": "mosses"}), root=tmp_path / "runs", logbook=None, say=said.append)
    assert any("wandb.project is given, but W&B is not asked for" in text for text in said)
