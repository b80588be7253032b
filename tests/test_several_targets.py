"""Several targets at once: one head, loss and set of metrics each, from the experiment file to the bundle."""
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from snakecls.core import UserError
from snakecls.data.demo.draw import make_demo
from snakecls.deploy.app import show_answer
from snakecls.deploy.export import LearnerPredictor
from snakecls.deploy.predict import Predictor
from snakecls.models.bundle import load_model, read_bundle
from snakecls.experiment.file import make_experiment
from snakecls.workflow.run import run_experiment

SPECIES = ["Crotalus adamanteus", "Crotalus horridus", "Natrix natrix"]
TARGETS = ["binomial", "genus", "side"]


def settings(table, **changes) -> dict:
    "The smallest experiment with several targets: a probe for each, then an epoch."
    values = {"name": "targets", "seed": 1, "data": {"source": str(table), "target": TARGETS, "valid": 0.3, "test": 0.2}, "model": {"arch": "resnet10t", "weights": "none"},
              "train": {"num_workers": 0, "device": "cpu"}, "monitor": "genus_f1_macro", "predict": {"flip": True},
              "schedule": [{"size": 64, "epochs": 2, "head": "probe", "bs": 8, "lr": 1e-3, "mixup": 0.2, "label_smoothing": 0.1}]}
    return values | {key: values[key] | value if isinstance(value, dict) else value for key, value in changes.items()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "Drawn snakes of two genera, with a column that has nothing to do with them and one that never changes."
    folder = make_demo(tmp_path_factory.mktemp("targets") / "data", n_per_species=8, size_px=64, species=SPECIES, n_workers=1)
    table = pd.read_csv(folder / "photos.csv").drop(columns=["split"], errors="ignore")
    table["side"], table["kingdom"] = ["left", "right"] * (len(table) // 2), "animals"
    table["place"] = ["here", None, "there", "here"] * (len(table) // 4)
    table.to_csv(folder / "targets.csv", index=False)
    return folder / "targets.csv"


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run_experiment(make_experiment(settings(drawn)), root=folder / "runs", logbook=folder / "logbook.md", say=lambda text: None)


def test_every_target_is_measured_and_the_monitor_chooses(trained):
    history = pd.read_csv(trained.run / "history.csv")
    for target in TARGETS:
        assert {f"{target}_{name}" for name in ("f1_macro", "accuracy")} <= set(history)
    assert not [name for name in history if "top3" in name]  # no target has more than three classes
    np.testing.assert_allclose(history["f1_macro"], history[[f"{target}_f1_macro" for target in TARGETS]].mean(axis=1), atol=1e-5)
    metrics = trained.metrics
    assert len(history) == 3 and metrics["probe"]["genus_f1_macro"] == pytest.approx(history["genus_f1_macro"][0], abs=1e-5)
    assert metrics["best"]["monitor"] == "genus_f1_macro" and metrics["best"]["value"] == pytest.approx(history["genus_f1_macro"].max(), abs=1e-5)
    assert metrics["best"]["value"] == pytest.approx(metrics["targets"]["genus"]["valid"]["f1_macro"], abs=1e-6)  # the weights that were kept are those
    assert metrics["problem"] == "several_targets" and list(metrics["targets"]) == TARGETS
    assert metrics["targets"]["binomial"] == {split: metrics[split] for split in ("valid", "test", "trained")} and metrics["labels"] == sorted(SPECIES)
    assert json.loads((trained.run / "metrics.json").read_text())["targets"]["side"]["test"]["n"] == metrics["test"]["n"]
    report = (trained.run / "report.html").read_text()
    assert "Target &#39;side&#39;" in report or "Target 'side'" in report
    assert "means over the targets" in report and "valid, genus: macro F1" in (trained.run.path.parent.parent / "logbook.md").read_text()
    from snakecls.cli import _scores_text
    lines = [line.split(":")[0].split() for line in _scores_text(metrics).splitlines() if "macro F1" in line and "against" not in line]
    assert lines == [[*split, target] for split in (["valid"], ["trained,", "valid"], ["test"]) for target in TARGETS]  # the best epoch is not the last
    assert (trained.run / "export.pkl").exists() and not (trained.run / "predictions-valid-binomial.parquet").exists()


def test_the_bundle_says_what_the_run_says(trained):
    bundle, predictor = read_bundle(trained.run / "best"), Predictor(trained.run / "best")
    assert bundle.info.model["heads"] == {"binomial": 3, "genus": 2, "side": 2} and list(bundle.info.targets) == TARGETS
    assert (bundle.info.labels, bundle.info.target) == (sorted(SPECIES), "binomial")
    assert len(load_model(bundle).get_classifier()) == 3
    photos = pd.read_parquet(trained.run / "manifest.parquet").query("split == 'valid'")
    answers = predictor.probs_all(photos["path"])
    for target, name in zip(TARGETS, ("predictions-valid", "predictions-valid-genus", "predictions-valid-side")):
        kept = pd.read_parquet(trained.run / f"{name}.parquet").set_index("path").loc[photos["path"]]
        labels = bundle.info.targets[target]
        np.testing.assert_allclose(kept[[f"p_{i}" for i in range(len(labels))]].to_numpy(), answers[target], atol=1e-6)
        predicted = [labels[i] for i in answers[target].argmax(1)]
        assert f1_score(kept["label"], predicted, average="macro") == pytest.approx(trained.metrics["targets"][target]["valid"]["f1_macro"], abs=1e-6)
    genus = pd.read_parquet(trained.run / "predictions-valid-genus.parquet")["label"]
    assert set(genus) == {"Crotalus", "Natrix"}


def test_the_export_answers_as_the_bundle_does(trained):
    paths = pd.read_parquet(trained.run / "manifest.parquet")["path"].tolist()[:3]
    exported, bundle = LearnerPredictor(trained.run / "export.pkl", trust=True), Predictor(trained.run / "best")
    assert exported.info.targets == bundle.info.targets and exported.labels == bundle.labels
    for target, probs in exported.probs_all(paths).items():
        np.testing.assert_allclose(probs, bundle.probs_all(paths)[target], atol=1e-5)


def test_the_predictor_and_the_app_answer_every_target(trained):
    predictor = Predictor(trained.run / "best")
    path = pd.read_parquet(trained.run / "manifest.parquet")["path"].iloc[0]
    answer = predictor.predict_all(path, top=2)
    assert list(answer) == TARGETS and answer["binomial"] == predictor.predict(path, top=2)
    assert {one.label for one in answer["genus"]} == {"Crotalus", "Natrix"} and sum(one.prob for one in answer["genus"]) == pytest.approx(1, abs=1e-5)
    page = show_answer(predictor, path)
    for target in TARGETS[1:]:
        assert f'data-target="{target}"' in page and answer[target][0].label in page


def test_photos_without_a_target_are_left_out_with_a_note(drawn, tmp_path):
    said = []
    run = run_experiment(make_experiment(settings(drawn, data={"target": ["genus", "place"], "test": 0.0}, monitor="f1_macro", schedule=[{"size": 64, "epochs": 0, "head": "probe"}])),
                         root=tmp_path, logbook=None, say=said.append)
    table, issues = pd.read_parquet(run.run / "manifest.parquet"), pd.read_parquet(run.run / "issues.parquet")
    assert (len(table), len(issues)) == (18, 6) and any("place" in line for line in said)
    assert list(run.metrics["targets"]) == ["genus", "place"] and run.metrics["best"]["epoch"] == 0


@pytest.mark.parametrize("changes, told", [
    ({"data": {"target": ["binomial", "kingdom"]}, "monitor": "f1_macro"}, "only one 'kingdom'"),
    ({"data": {"multi_label": True}}, "leave one of them out"),
    ({"data": {"target": ["binomial", "gennus"]}, "monitor": "f1_macro"}, "did you mean 'genus'"),
    ({"data": {"target": ["binomial"]}, "monitor": "f1_macro"}, "without a list"),
    ({"train": {"oversample": 0.5}}, "rare in different photos"),
    ({"train": {"loss": "bce"}}, "use cross_entropy"),
    ({"model": {"arch": "googlenet_scratch"}}, "aux: false"),
    ({"monitor": "family_f1_macro"}, "genus_f1_macro"),
])
def test_what_cannot_be_is_refused_before_a_run_folder_is_made(drawn, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        run_experiment(make_experiment(settings(drawn, **changes)), root=tmp_path / "runs", logbook=None, say=lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_another_experiment_starts_from_the_heads_of_the_same_name(trained, drawn):
    from snakecls.experiment.plan import make_plan

    experiment = make_experiment(settings(drawn, data={"target": ["genus", "place", "side"]}, model={"weights": str(trained.run / "best")}))
    ours, theirs = make_plan(experiment).model, load_model(trained.run / "best")
    assert ours.get_classifier().targets == ["genus", "place", "side"]
    for new, old in ((ours.fc["0"], theirs.fc["1"]), (ours.fc["2"], theirs.fc["2"]), (ours.conv1[0], theirs.conv1[0])):
        np.testing.assert_array_equal(new.weight.detach(), old.weight.detach())
    single = make_experiment(settings(drawn, data={"target": "binomial"}, model={"weights": str(trained.run / "best")}, monitor="f1_macro"))
    np.testing.assert_array_equal(make_plan(single).model.fc.weight.detach(), theirs.fc["0"].weight.detach())


def test_folds_and_ensembles_score_every_target(drawn, tmp_path):
    from snakecls.workflow.ensemble import ensemble_runs
    from snakecls.workflow.folds import folds_text, run_folds

    probe = make_experiment(settings(drawn, schedule=[{"size": 64, "epochs": 0, "head": "probe"}], predict={"flip": False}))
    folds = run_folds(probe, 2, root=tmp_path / "runs", logbook=None, say=lambda text: None)
    assert list(folds.targets) == TARGETS and folds.targets["binomial"]["out_of_fold"] == folds.scores
    for target, file in zip(TARGETS, ("predictions", "predictions-genus", "predictions-side")):
        joined, scores = pd.read_parquet(folds.folder / f"{file}.parquet"), folds.targets[target]
        assert joined["path"].is_unique and sorted(joined["fold"].unique()) == [0, 1]
        assert scores["out_of_fold"]["f1_macro"] == pytest.approx(f1_score(joined["label"], joined["predicted"], average="macro"), abs=1e-6)
        assert scores["summary"]["f1_macro"]["mean"] == pytest.approx(np.mean([run.metrics()["targets"][target]["valid"]["f1_macro"] for run in folds.runs]))
    assert set(joined["label"]) == {"left", "right"} and len(folds.scores["f1_macro_interval"]) == 2
    assert all(f"Target {target}" in folds_text(folds) for target in TARGETS)
    assert json.loads((folds.folder / "folds.json").read_text())["targets"]["side"]["test"]["n"] == folds.test["n"]

    together = ensemble_runs([run / "best" for run in folds.runs])
    kept = [pd.read_parquet(run / "predictions-test-genus.parquet").set_index("path").sort_index() for run in folds.runs]
    mean = (kept[0][["p_0", "p_1"]] + kept[1][["p_0", "p_1"]]) / 2
    predicted = np.array(["Crotalus", "Natrix"])[mean.to_numpy().argmax(1)]
    assert together["targets"]["genus"]["scores"]["f1_macro"] == pytest.approx(f1_score(kept[0]["label"], predicted, average="macro"), abs=1e-6)
    assert together["targets"]["binomial"]["scores"] == together["scores"]


def test_a_target_weighs_what_the_file_says(drawn):
    import torch

    from snakecls.experiment.plan import make_plan

    plans = [make_plan(make_experiment(settings(drawn, train=train))) for train in ({}, {"target_weights": {"side": 0.25, "genus": 2}})]
    (plain, weighed), names = (plan.parts["loss_func"] for plan in plans), plans[0].problem.by_target.values()
    logits, y = [torch.randn(5, len(each)) for each in names], [torch.randint(len(each), (5,)) for each in names]
    each = [part(one, true) for part, one, true in zip(plain.parts, logits, y)]
    assert float(weighed(logits, *y)) == pytest.approx(float(each[0] + 2 * each[1] + 0.25 * each[2]), rel=1e-6)
    assert float(plain(logits, *y)) == pytest.approx(float(sum(each)), rel=1e-6)


@pytest.mark.parametrize("changes, told", [
    ({"train": {"target_weights": {"gennus": 2}}}, "did you mean 'genus'"),
    ({"train": {"target_weights": {"genus": 0}}}, "a number above 0"),
])
def test_weights_that_weigh_nothing_are_refused(drawn, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        run_experiment(make_experiment(settings(drawn, **changes)), root=tmp_path / "runs", logbook=None, say=lambda text: None)
