"""Our own F1 of several labels, which the bootstrap asks for thousands of times, is scikit-learn's."""
import warnings
from typing import get_args

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from snakecls.data.balance import CLASS_WEIGHTS, POS_WEIGHTS
from snakecls.data.problem import MultiLabel, MultiTarget, OneLabel
from snakecls.experiment.schema import DataConfig, TrainConfig, _monitors
from snakecls.stats import bootstrap_interval, share_interval
from snakecls.train.losses import LOSSES
from snakecls.train.metrics import classification_metrics, mean_average_precision_score, multi_f1_score, multi_label_metrics, predict_labels
from snakecls.train.multi_target import problem_metrics, problem_scores
from snakecls.train.optimisers import OPTIMISERS


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 12), n_classes=st.integers(2, 6), share=st.sampled_from([0.0, 0.2, 0.6]), seed=st.integers(0, 1000))
@pytest.mark.parametrize("average, undefined", [("macro", np.nan), ("micro", np.nan), ("samples", 1.0)])
def test_f1_is_that_of_scikit_learn(average, undefined, n, n_classes, share, seed):
    rng = np.random.default_rng(seed)
    true, said = rng.random((n, n_classes)) < share, rng.random((n, n_classes)) < share
    expected = sk.f1_score(true, said, average=average, zero_division=undefined)
    assert multi_f1_score(true, said, average=average) == pytest.approx(0.0 if np.isnan(expected) else expected, abs=1e-12)


@pytest.mark.parametrize("n_classes", [3, 12])
def test_all_metrics_of_several_labels_are_those_of_scikit_learn(n_classes):
    rng = np.random.default_rng(0)
    true, probs = rng.random((30, n_classes)) < 0.3, rng.random((30, n_classes))
    true[:, 0] = true[0] = probs[:, 0] = probs[0] = 0  # a label and a photo without any
    got, chosen, occur = multi_label_metrics(true, probs), predict_labels(probs), true.any(0)
    assert mean_average_precision_score(true, probs) == pytest.approx(sk.average_precision_score(true[:, occur], probs[:, occur], average="macro"))
    assert (got["accuracy"], got["hamming_error"]) == (sk.accuracy_score(true, chosen), sk.hamming_loss(true, chosen))
    assert got["loss"] == pytest.approx(np.mean([sk.log_loss(true[:, c], probs[:, c], labels=[False, True]) for c in range(n_classes)]))


def test_the_loss_takes_float32_without_a_word_and_gives_nan_for_nan():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(200, 5)) * 4
    probs, targets = np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rng.integers(0, 5, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = classification_metrics(targets, probs.astype(np.float32))["loss"]
    assert loss == pytest.approx(-np.log(probs[np.arange(200), targets]).mean(), abs=1e-6)
    probs[0, 0] = np.nan
    assert np.isnan(classification_metrics(targets, probs)["loss"]) and np.isnan(multi_label_metrics(probs > 2, probs)["loss"])


@pytest.mark.parametrize("problem", [OneLabel(["a", "b", "c", "d", "e", "f"]), MultiLabel(["a", "b", "c"]), MultiTarget([OneLabel(list("abcdef"), target, target) for target in ("one", "two")])], ids=lambda problem: problem.word)
def test_an_epoch_a_probe_and_the_file_know_the_same_metrics(problem):
    "A metric that one of them lacks could be asked for as `monitor`, and be missing after the first stage."
    top_k = (3,) if problem.many else (3, 5)
    names = problem.score_names(top_k)
    assert {metric.name for metric in problem_metrics(problem, top_k)} == set(names)
    rng = np.random.default_rng(0)
    probs = [rng.dirichlet(np.ones(len(part.labels)), 40) for part in problem.parts]
    truth = [rng.random(each.shape) < 0.4 if problem.many else rng.integers(0, each.shape[1], 40) for each in probs]
    assert set(names) <= set(problem_scores(problem, truth, probs, top_k=top_k))
    data = {"source": "x", "multi_label": True} if problem.many else {"source": "x", "target": list(problem.by_target)} if len(problem.parts) > 1 else {"source": "x"}
    assert set(_monitors(DataConfig(**data), list(top_k))) == {*names, "valid_loss", "composite"}


@pytest.mark.parametrize("setting, names", [("loss", LOSSES), ("optimiser", OPTIMISERS), ("class_weights", CLASS_WEIGHTS), ("pos_weight", POS_WEIGHTS)])
def test_the_file_offers_what_the_library_has(setting, names):
    assert set(get_args(TrainConfig.model_fields[setting].annotation)) == set(names)


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05])
def test_a_perfect_score_of_several_labels_covers_the_true_score(rate):
    "A flipped label on a share of photos: forty photos are often all right, and the interval must still hold the score of a very long table."
    rng = np.random.default_rng(1)

    def answer(n: int) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.random((n, 3)) < 0.5
        flip = (rng.random(n) < rate)[:, None] & (np.arange(3) == rng.integers(0, 3, n)[:, None])
        return truth, truth ^ flip

    true_score, found = multi_f1_score(*answer(200_000)), [bootstrap_interval(multi_f1_score, *answer(40), n=60) for _ in range(120)]
    perfect = [each for each in found if each.value == 1]
    assert len(perfect) > 10 and all(each.low == pytest.approx(share_interval(40, 40)[0]) for each in perfect)
    assert np.mean([each.low <= true_score <= each.high for each in found]) >= 0.92
