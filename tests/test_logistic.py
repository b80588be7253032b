"""Logistic regressions that are fitted side by side find what scikit-learn finds one by one."""
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from snakecls.models.logistic import LogisticFit
from snakecls.models.probe import C_GRID, fit_probe


def drawn(n: int, n_features: int, n_classes: int, seed: int = 0, views: int = 1) -> tuple[np.ndarray, np.ndarray]:
    "Features of few directions and much noise, of different scales, as a network gives them; some are nearly constant."
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 24))
    features = hidden @ rng.normal(size=(24, n_features)) + 2 * rng.normal(size=(views, n, n_features))
    features = np.maximum(features, 0) * rng.lognormal(0, 1.5, n_features) + rng.normal(size=n_features)
    features[..., -1] = 0.25
    features[..., -2] = 0
    features[0, 0, -2] = 1
    targets = (hidden[:, :n_classes] + rng.normal(size=(n, n_classes))).argmax(1)
    targets[:n_classes] = np.arange(n_classes)
    return features.astype(np.float32), targets


def penalised(fitted: LogisticFit, X: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, C: float) -> float:
    "The loss that scikit-learn minimises, per photo."
    of_standardised = weight.astype(float) * fitted.scale
    loss = log_loss(y, softmax(X.astype(float) @ weight.T + bias, axis=1), labels=np.arange(len(weight)))
    return loss + 0.5 * (of_standardised**2).sum() / (len(y) * C)


@pytest.mark.parametrize("n_classes", [2, 6])
@pytest.mark.parametrize("C", [C_GRID[0], 1e-2, C_GRID[-1]])
def test_the_optimum_is_scikit_learns(n_classes: int, C: float):
    features, targets = drawn(300, 120, n_classes)
    X = features[0]
    fitted = LogisticFit(features, targets)
    weight, bias = fitted.weights(C)
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(((X - X.mean(0)) / np.maximum(X.std(0), 1e-6)).astype(float), targets)
    probs = theirs.predict_proba((X - X.mean(0)) / np.maximum(X.std(0), 1e-6))
    assert abs(softmax(X @ weight.T + bias, axis=1) - probs).max() < 0.02
    assert abs(log_loss(targets, softmax(X @ weight.T + bias, axis=1)) - log_loss(targets, probs)) < 1e-3
    if n_classes > 2:
        own = theirs.coef_ / np.maximum(X.std(0), 1e-6)
        best = penalised(fitted, X, targets, own, theirs.intercept_ - own @ X.mean(0), C)
        assert best - 1e-4 < penalised(fitted, X, targets, weight, bias, C) < best + 1e-3


def test_each_c_of_a_path_finds_its_own_optimum():
    features, targets = drawn(300, 120, 5)
    path = LogisticFit(features, targets)
    for C in C_GRID:
        weight, bias = path.weights(C)
        cold = LogisticFit(features, targets)
        assert penalised(cold, features[0], targets, weight, bias, C) == pytest.approx(
            penalised(cold, features[0], targets, *cold.weights(C), C), abs=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_fits_side_by_side_are_those_alone(several: bool):
    "With mirrored views, a class that one fit has no photo of, and a feature in which the photos of one fit are all alike."
    features, targets = drawn(240, 60, 4, views=2)
    targets = np.stack([targets == 0, targets >= 2, targets >= 0], 1) if several else targets
    rows = np.arange(240)
    fits = [rows[80:], rows[:160], np.flatnonzero(targets[:, 0] if several else targets < 3)]
    for fit, (weight, bias) in zip(fits, LogisticFit(features, targets, fits=fits).solve(1e-2, tol=1e-7)):
        own_weight, own_bias = LogisticFit(features[:, fit], targets[fit], n_classes=4).weights(1e-2, tol=1e-7)
        logits, own = (features[0] @ w.T + b for w, b in ((weight, bias), (own_weight, own_bias)))
        assert logits.shape == own.shape == (240, 3 if several else 4)
        known = np.isfinite(bias)
        assert known.sum() == (3 if several else len(np.unique(targets[fit])))
        np.testing.assert_allclose(logits[:, known], own[:, known], atol=0.02)


def test_labels_side_by_side_are_those_alone():
    features, targets = drawn(300, 80, 5)
    labels = np.stack([targets == 0, targets >= 3, np.arange(300) < 3], 1)
    weight, bias = LogisticFit(features, labels).weights(1e-2, tol=1e-7)
    X = (features[0] - features[0].mean(0)) / np.maximum(features[0].std(0), 1e-6)
    for at, label in enumerate(labels.T):
        theirs = LogisticRegression(C=1e-2, tol=1e-8, max_iter=5000).fit(X.astype(float), label)
        np.testing.assert_allclose(features[0] @ weight[at] + bias[at], theirs.decision_function(X), atol=0.03)


def test_the_same_bits_come_twice():
    features, targets = drawn(200, 50, 3, views=2)
    first, again = fit_probe(features, targets), fit_probe(features, targets)
    assert first.C == again.C and first.scores == again.scores
    assert (first.weight == again.weight).all() and (first.bias == again.bias).all()


def test_large_numbers_lose_nothing():
    "Features far from 0 beside how much they vary, and a scale a million times another's."
    features, targets = drawn(300, 40, 3)
    far = features.copy()
    far[..., :10] = far[..., :10] * 1e4 + 3e4
    near, moved = (LogisticFit(given, targets).weights(1e-2, tol=1e-7) for given in (features, far))
    logits = [given[0].astype(float) @ weight.T.astype(float) + bias for given, (weight, bias) in ((features, near), (far, moved))]
    np.testing.assert_allclose(softmax(logits[0], axis=1), softmax(logits[1], axis=1), atol=0.01)
