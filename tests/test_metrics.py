"""Our own F1 of several labels, which the bootstrap asks for thousands of times, is scikit-learn's."""
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from snakecls.train.metrics import classification_metrics, mean_average_precision_score, multi_f1_score, multi_label_metrics, predict_labels


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
