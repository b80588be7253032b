"""Temperatures, reliability and prediction sets: against MAPIE, against their promise, and from a run's photos to the served answer."""
import json

import numpy as np
import pandas as pd
import pytest
from conftest import need_sources
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from snakecls.core import UserError
from snakecls.data.problem import MultiLabel, MultiTarget, OneLabel
from snakecls.data.splits import set_aside
from snakecls.evaluate.calibration import calibration_error, fit_reliability, fit_temperature, fit_temperatures
from snakecls.evaluate.conformal import SCORES, expect_sets, fit_conformal, fixed_k, label_scores, measure_sets, prediction_set
from snakecls.evaluate.verdicts import say_limits
from snakecls.stats import likely_coverage

need_sources()


def draw(n: int, seed: int, k: int = 12, spread: float = 1.6) -> tuple[np.ndarray, np.ndarray]:
    "Draw honest probabilities, some sure and some not, and what is right."
    rng = np.random.default_rng(seed)
    probs = OneLabel().to_probs(rng.normal(0, spread, (n, k)) * rng.choice([0.7, 2, 4], (n, 1)))
    return probs, (rng.random((n, 1)) < probs.cumsum(1)).argmax(1)


class Told:
    "A classifier of scikit-learn's kind whose features are its probabilities, as MAPIE wants one."

    _estimator_type = "classifier"

    def __init__(self, k: int):
        self.classes_, self.n_features_in_ = np.arange(k), k

    def fit(self, X, y):
        return self

    def predict(self, X):
        return np.asarray(X).argmax(1)

    def predict_proba(self, X):
        return np.asarray(X)

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags(), input_tags=InputTags())


def mapie_sets(score, X, y, new, coverage: float, **how) -> np.ndarray:
    from mapie.classification import SplitConformalClassifier

    fitted = SplitConformalClassifier(Told(X.shape[1]), confidence_level=coverage, conformity_score=score, prefit=True, random_state=7).conformalize(X, y)
    return fitted.predict_set(new, conformity_score_params=how)[1][:, :, 0]


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_lac_and_aps_give_the_sets_of_mapie(coverage):
    pytest.importorskip("mapie")
    (X, y), (new, _) = draw(300, 0), draw(300, 1)
    # ours always holds the likeliest label, where MAPIE's sets may be empty
    sets, theirs = prediction_set(new, fit_conformal(X, y, score="lac", coverage=coverage)), mapie_sets("lac", X, y, new, coverage)
    theirs[np.arange(len(new)), new.argmax(1)] = True
    np.testing.assert_array_equal(sets, theirs)
    # MAPIE draws the share of a label's own probability that does not count, by the same seed in fitting and in use
    u = 1 - np.random.RandomState(7).uniform(size=(300, 1))
    theirs = mapie_sets("aps", X, y, new, coverage, include_last_label="randomized")
    own = np.sort(label_scores(X, "aps", u=u)[np.arange(300), y])
    sets = label_scores(new, "aps", u=u) <= own[int(np.ceil(301 * coverage)) - 1] + 1e-9
    np.testing.assert_array_equal(sets, theirs)


def test_raps_scores_are_those_of_mapie():
    pytest.importorskip("mapie")
    from mapie.conformity_scores.sets.raps import RAPSConformityScore

    (X, y), u = draw(200, 2), np.random.default_rng(0).random((200, 1))
    total, rank = RAPSConformityScore.get_true_label_cumsum_proba(y, X, np.arange(X.shape[1]))
    theirs = RAPSConformityScore._regularize_conformity_score(np.array([2]), 0.1, total - (1 - u) * X[np.arange(200), y][:, None], rank)[:, 0, 0]
    np.testing.assert_allclose(label_scores(X, "raps", u=u, k_reg=2, lam=0.1)[np.arange(200), y], theirs, atol=1e-12)


def test_thresholds_of_pas_by_hand():
    "Five photos of a common class and one of a rare one; promise 0.5, half of each class's own threshold (Interp-Q)."
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.5, 0.5], [0.6, 0.4]])
    fitted = fit_conformal(probs, np.array([0, 0, 0, 0, 0, 1]), score="pas", coverage=0.5, prevalence=[8, 2], interpolate=0.5)
    scores = 1 - np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]) / np.array([0.8] * 5 + [0.2])
    assert np.isclose(fitted["threshold"], np.sort(scores)[3])  # place ceil(7 * 0.5)
    np.testing.assert_allclose(fitted["thresholds"], [(scores[2] + fitted["threshold"]) / 2, (scores[5] + fitted["threshold"]) / 2])
    alone = fit_conformal(probs[:5], np.zeros(5, int), score="pas", coverage=0.5, prevalence=[8, 2], interpolate=0.5)
    assert np.isclose(alone["thresholds"][1], (1 + alone["threshold"]) / 2) and "1 of 2 classes have no photo" in alone["notes"][0]


@pytest.mark.parametrize("score", SCORES)
def test_the_promise_is_kept_over_200_splits_with_smaller_sets_than_a_fixed_number(score):
    probs, y = draw(600, 3)
    assert (probs.argmax(1) == y).mean() < 0.85  # else the likeliest label alone keeps the promise
    found = expect_sets(probs, y, n_splits=200, score=score, coverage=0.9, prevalence=np.bincount(y))
    assert abs(found["coverage"] - 0.9) < 0.01 and found["size"] < found["fixed"]


def test_a_long_tail_is_covered_by_pas():
    rng, share = np.random.default_rng(0), np.geomspace(1, 0.02, 10) / np.geomspace(1, 0.02, 10).sum()

    def tail(n):
        y = rng.choice(10, n, p=share)
        return OneLabel().to_probs(2.2 * np.eye(10)[y] + rng.normal(size=(n, 10)) + np.log(share)), y

    (seen, truth), (new, right) = tail(1500), tail(20000)
    lac, pas = (measure_sets(prediction_set(new, fit_conformal(seen, truth, score=score, prevalence=share)), right) for score in ("lac", "pas"))
    assert pas["macro_coverage"] > lac["macro_coverage"] + 0.1 and min(pas["coverage"], lac["coverage"]) > 0.88
    own = measure_sets(prediction_set(new, fit_conformal(seen, truth, score="lac", interpolate=0.75)), right)
    assert own["macro_coverage"] > lac["macro_coverage"] + 0.05


def test_too_few_photos_are_said_and_the_set_is_everything():
    probs, y = draw(8, 0, k=4)
    fitted = fit_conformal(probs, y, coverage=0.9)
    assert fitted["threshold"] is None and "too few to promise 90%: that takes 9" in fitted["notes"][0] and prediction_set(probs, fitted).all()
    assert json.loads(json.dumps(fitted)) == fitted
    assert fixed_k(probs, y, 0.9) == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 20), st.integers(1, 3))
def test_a_single_temperature_never_changes_what_is_first(seed, temperature, n_views):
    views = [np.random.default_rng(seed + view).normal(0, 4, (20, 6)).astype(np.float32) for view in range(n_views)]
    np.testing.assert_array_equal(OneLabel().mean_probs(views, temperature).argmax(1), OneLabel().mean_probs(views).argmax(1))
    above = MultiLabel().mean_probs(views) > 0.5
    np.testing.assert_array_equal((MultiLabel().mean_probs(views, temperature) > 0.5)[above], True)


def test_a_temperature_is_found_again_for_each_target_and_label():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 4))
    y = (rng.random((3000, 1)) < OneLabel().to_probs(logits).cumsum(1)).argmax(1)
    assert abs(fit_temperature(OneLabel().to_probs(logits * 2), y) - 2) < 0.15
    both = MultiTarget([OneLabel(list("abcd"), target="one"), OneLabel(list("abcd"), target="two")])
    found = fit_temperatures([OneLabel().to_probs(logits * 2), OneLabel().to_probs(logits / 2)], [y, y], both)
    assert list(found) == ["one", "two"] and abs(found["one"] - 2) < 0.15 and abs(found["two"] - 0.5) < 0.05
    there = rng.random((3000, 4)) < MultiLabel().to_probs(logits - [0, 0, 0, 9])
    several = fit_temperatures([MultiLabel().to_probs((logits - [0, 0, 0, 9]) * [1, 3, 1, 1])], [there], MultiLabel(list("abcd")))
    assert abs(several[1] - 3) < 0.3 and abs(several[0] - 1) < 0.1
    assert several[3] == fit_temperatures([MultiLabel().to_probs((logits - [0, 0, 0, 9]) * [1, 3, 1, 1])], [there], MultiLabel(list("abcd")), mode="one")


def test_calibration_error_by_hand_and_its_interval():
    probs = np.array([[0.9, 0.1]] * 40 + [[0.6, 0.4]] * 40)
    y = np.array([0] * 30 + [1] * 10 + [0] * 30 + [1] * 10)  # right in 0.75 of both
    found = calibration_error(probs, y, bins=2)
    assert found["bins"] == 2 and np.isclose(found["ece"], 0.15) and found["low"] <= 0.15 <= found["high"]
    assert np.isclose(found["brier"], np.mean([2 * (p[1 - t]) ** 2 for p, t in zip(probs, y)]))
    probs, y = draw(2000, 5)
    logits = np.log(probs)
    reliability = fit_reliability(OneLabel().to_probs(3 * logits), y, groups=np.arange(2000) // 4)
    assert reliability["groups"] == 500 and reliability["after"]["high"] < reliability["before"]["low"]
    alike = calibration_error(OneLabel().to_probs(3 * logits), y, groups=np.arange(2000) // 100)
    assert alike["high"] - alike["low"] > calibration_error(OneLabel().to_probs(3 * logits), y)["high"] - calibration_error(OneLabel().to_probs(3 * logits), y)["low"] - 0.02


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Blobs of three colours in noise, which is not told apart everywhere; two photos a visit."
    folder, rng = tmp_path_factory.mktemp("trust"), np.random.default_rng(0)
    rows = []
    for i in range(150):
        colour = i // 2 % 3
        pixels = rng.integers(0, 256, (32, 32, 3)).astype(float)
        pixels[..., colour] += 60 * rng.random()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append({"path": f"{i}.png", "label": ["red", "green", "blue"][colour], "visit": f"v{i // 2}", "split": "test" if i >= 126 else None})
    pd.DataFrame(rows).assign(split=lambda table: table["split"].fillna("train")).to_csv(folder / "photos.csv", index=False)
    return folder


def describe(photos, **more):
    values = {"name": "trust", "data": {"source": str(photos / "photos.csv"), "group": "visit", "valid": 0.2}, "predict": {"examples": 0, "flip": True},
              "model": {"arch": "tf_efficientnet_lite0", "depths": [], "maximum": False}, "schedule": [{"size": 32, "epochs": 0, "head": "probe"}], "track": []}
    return {key: values[key] | value if isinstance(values.get(key), dict) else value for key, value in more.items()} | {key: value for key, value in values.items() if key not in more}


def run(photos, root, **more):
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow.run import run_experiment

    told = []
    return run_experiment(make_experiment(describe(photos, **more)), root=root / "runs", logbook=root / "logbook.md", say=told.append), told


def test_a_refitted_probe_is_calibrated_out_of_fold_and_serves_what_was_fitted(photos, tmp_path):
    from typer.testing import CliRunner

    from snakecls.cli import app
    from snakecls.deploy.predict import EnsemblePredictor, Predictor
    from snakecls.workflow.final import train_final

    done, told = run(photos, tmp_path, train={"refit": True})
    info, metrics = Predictor(done.run / "best").info, done.metrics
    source = info.trust["source"]
    assert source["from"] == "out of fold" and (source["n"], source["groups"]) == (126, 63) and source["splits"] == ["train", "valid"]
    assert any("from answers out of fold of 126 photos in 63 groups" in line for line in told)
    assert info.temperature != 1 and metrics["temperature"] == info.temperature and metrics["trust"] == json.loads(json.dumps(info.trust))
    table = pd.read_parquet(done.run / "predictions-test.parquet")
    for engine in ("onnxruntime", "torch"):
        predictor = Predictor(done.run / "best", engine=engine)
        np.testing.assert_allclose(predictor.probs(table["path"].tolist()), table[["p_0", "p_1", "p_2"]].to_numpy(), atol=2e-3)
        fitted = info.trust["conformal"]["label"]
        expected = [label for label, there in zip(info.labels, prediction_set(predictor.probs([table["path"][0]])[0], fitted)) if there]
        assert sorted(one.label for one in predictor.predict_set(table["path"][0])) == sorted(expected) and predictor.promised() == 0.9
    answer = CliRunner().invoke(app, ["predict", "--model", str(done.run / "best"), table["path"][0], "--json"])
    assert answer.exit_code == 0, answer.output
    given = json.loads(answer.stdout)
    row = (given["photos"] if isinstance(given, dict) else given)[0]
    assert row["set"]["promised"] == 0.9 and sorted(one["label"] for one in row["set"]["labels"]) == sorted(expected)
    final = train_final(done.run.id, root=tmp_path / "runs", logbook=tmp_path / "logbook.md", say=told.append)
    taken = Predictor(final.run / "best").info
    assert taken.trust["source"] == source | {"of": done.run.id} and taken.temperature == info.temperature and taken.trust["conformal"] == info.trust["conformal"]
    both = EnsemblePredictor([done.run / "best", done.run / "best"])
    with pytest.raises(UserError, match="promises no set"):
        both.predict_set(table["path"][0])


def test_a_network_is_calibrated_on_the_share_set_aside_or_on_the_validation_photos(photos, tmp_path):
    from snakecls.models.bundle import read_bundle

    schedule = [{"size": 32, "epochs": 2, "lr": 1e-3, "bs": 16}]
    model = {"arch": "lenet5", "weights": "none", "depths": [], "maximum": False}
    aside, _ = run(photos, tmp_path, data={"calibration": 0.4}, schedule=schedule, model=model)
    manifest = pd.read_parquet(aside.run / "manifest.parquet")
    counts = manifest["split"].value_counts()
    source = read_bundle(aside.run / "best").info.trust["source"]
    assert source["from"] == "calibration" and source["n"] == counts["calibration"] > 30
    visits = pd.read_csv(photos / "photos.csv").assign(path=lambda table: table["path"].map(lambda name: str(photos / name)))
    assert manifest.merge(visits[["path", "visit"]], on="path").groupby("visit")["split"].nunique().max() == 1
    plain, told = run(photos, tmp_path, schedule=schedule, model=model, trust={"coverage": None})
    info = read_bundle(plain.run / "best").info
    assert info.trust["source"]["from"] == "validation" and info.trust["source"]["chose_epoch"] and "conformal" not in info.trust
    assert info.trust["source"]["n"] < 50 and info.temperature == 1 and any("no temperature (that takes 50 photos)" in line for line in told)


def test_bundles_with_damaged_or_unknown_trust_are_refused_and_old_ones_are_read():
    from snakecls.models.bundle_info import BundleInfo, check_kinds, info_from_dict, info_to_dict

    values = {"model": {"library": "timm", "arch": "x", "kwargs": {"num_classes": 2}}, "labels": ["a", "b"], "photo": {"size": 8}}
    assert info_from_dict(check_kinds(values)).trust == {}
    for wrong, words in (({"trust": []}, "an object of objects"), ({"trust": {"conformal": 3}}, "an object of objects"), ({"temperature": [1.0]}, "one number"),
                         ({"temperature": {"x": 1.0}}, "one number"), ({"trust": {"conformla": {}}}, "did you mean 'conformal'")):
        with pytest.raises(UserError, match=words):
            info_from_dict(check_kinds(values | wrong))
    several = BundleInfo(**values | {"problem": "multi_label", "temperature": [0.5, 2.0]})
    assert info_from_dict(check_kinds(json.loads(json.dumps(info_to_dict(several))))).temperature == [0.5, 2.0]
    with pytest.raises(UserError, match="above 0"):
        BundleInfo(**values | {"problem": "multi_label", "temperature": [0.5, 0]})


def test_several_targets_have_a_temperature_and_a_set_each_and_their_answers_are_the_served_ones(photos, tmp_path):
    from snakecls.deploy.predict import Predictor

    table = pd.read_csv(photos / "photos.csv").assign(half=lambda table: np.where(table.index % 4 < 2, "left", "right"))
    table.to_csv(tmp_path / "both.csv", index=False)
    done, _ = run(photos, tmp_path, data={"source": str(tmp_path / "both.csv"), "root": str(photos), "target": ["label", "half"]}, train={"refit": True})
    predictor = Predictor(done.run / "best")
    assert list(predictor.info.temperature) == ["label", "half"] and len(set(predictor.info.temperature.values())) == 2
    assert set(predictor.info.trust["conformal"]) == set(predictor.info.trust["reliability"]) == {"label", "half"}
    answers = pd.read_parquet(done.run / "predictions-test-half.parquet")
    np.testing.assert_allclose(predictor.probs_all(answers["path"].tolist())["half"], answers[["p_0", "p_1"]].to_numpy(), atol=2e-3)
    assert {one.label for one in predictor.predict_set(answers["path"][0], "half")} <= {"left", "right"}
    assert "How sure it is" in (done.run / "report.html").read_text()


def test_a_bundle_whose_temperature_was_of_each_view_is_read_with_a_note(tiny_bundle, tmp_path):
    import shutil

    from snakecls.models.bundle import load_model, read_bundle
    from snakecls.models.seal import hash_parts

    folder = shutil.copytree(tiny_bundle, tmp_path / "old")
    values = json.loads((folder / "bundle.json").read_text())
    assert values["flip"] and values["temperature"] != 1 and "trust" in values["seal"]
    del values["trust"], values["seal"]["trust"]
    values["seal"]["self_test"]["probs"] = [[1 / len(row)] * len(row) for row in values["seal"]["self_test"]["probs"]]  # answered otherwise
    assert hash_parts(values)["answers"] == values["seal"]["answers"]
    (folder / "bundle.json").write_text(json.dumps(values))
    assert "now it is that of their mean" in read_bundle(folder).notes[0] and load_model(folder)
    (folder / "bundle.json").write_text(json.dumps(values | {"trust": {"conformal": {}}}))
    with pytest.raises(UserError, match=r"fitted \(trust\)"):
        read_bundle(folder)


def test_a_share_for_calibration_that_groups_do_not_allow_is_told():
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(60)], "label": ["a", "b"] * 30, "split": "train", "animal": [f"{'ab'[i % 2]}{i // 20}" for i in range(60)]})
    (note,) = set_aside(table, 0.1, group="animal").notes
    got = (set_aside(table, 0.1, group="animal").table["split"] == "calibration").sum()
    assert f"asks for 10% of 60 training photos, and {got} ({got / 60:.0%}) are set aside" in note and "6 groups of animal" in note
    assert set_aside(table, 0.1).notes == []


def test_a_promise_from_few_photos_says_how_far_it_can_be_off():
    rng, n, coverage = np.random.default_rng(0), 12, 0.9
    place = int(np.ceil((n + 1) * coverage))
    covered = np.sort(rng.random((20_000, n)), axis=1)[:, place - 1]  # a threshold of uniform scores is what it covers
    assert likely_coverage(n, coverage) == pytest.approx(np.quantile(covered, [0.025, 0.975]), abs=0.01)
    trust = {"source": {"n": 12, "groups": 12}, "conformal": {"label": {"n": 12, "coverage": 0.9}}}
    assert "comes from 12 photos" in say_limits(trust)[0] and "as few as 74%" in say_limits(trust)[0]
    trust["source"]["groups"], trust["conformal"]["label"]["n"] = 12, 400
    assert "12 groups of photos that belong together" in say_limits(trust)[0]
    assert say_limits({"source": {"n": 400, "groups": 400}, "conformal": {"label": {"n": 400, "coverage": 0.9}}}) == []
