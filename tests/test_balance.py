"""Weights of classes and draws of photos: what holds for any counts."""
import numpy as np
import pandas as pd
import pytest

from snakecls.core import UserError
from snakecls.data.balance import balanced_weights, count_labels, draw_photos, draw_weights, effective_weights, number_repeats, positive_weights


def test_only_training_photos_count():
    table = pd.DataFrame({"label": ["boa"] * 6 + ["viper"] * 2 + ["boa"], "split": ["train"] * 8 + ["valid"]})
    assert count_labels(table).to_dict() == {"boa": 6, "viper": 2}
    assert count_labels(table, labels=["viper", "cobra", "boa"]).tolist() == [2, 0, 6]
    scenes = pd.DataFrame({"labels": [["sea", "sky"], ["sky"], []], "split": "train"})
    assert count_labels(scenes, "labels").to_dict() == {"sea": 1, "sky": 2}


def test_weights_of_classes():
    counts = np.array([1000, 100, 10])
    np.testing.assert_allclose(balanced_weights(counts), 1110 / (3 * counts))  # scikit-learn's class_weight='balanced'
    assert (effective_weights(counts) * counts).sum() / 1110 == pytest.approx(1)
    np.testing.assert_allclose(effective_weights(counts, beta=0), np.ones(3))
    np.testing.assert_allclose(effective_weights(counts, beta=1 - 1e-8), balanced_weights(counts), rtol=1e-3)
    effective = effective_weights(counts, beta=0.99)
    assert effective[1] / effective[0] == pytest.approx((1 - 0.99**1000) / (1 - 0.99**100))
    assert effective[2] / effective[0] < effective_weights(counts)[2] / effective_weights(counts)[0] < 100
    with pytest.raises(UserError, match="class number 1 has no training photo"):
        balanced_weights([3, 0])
    with pytest.raises(UserError, match=r"'cobra' has no training photo \(nor have 1 others\)"):
        effective_weights(pd.Series({"boa": 3, "cobra": 0, "viper": 0}))
    with pytest.raises(UserError, match="no training photo"):
        positive_weights([100, 0], n_photos=200)


def test_weights_of_photos():
    labels = ["boa"] * 90 + ["viper"] * 10
    equal, half = draw_weights(labels, oversample=1), draw_weights(labels, oversample=0.5)
    assert equal[:90].sum() == pytest.approx(50) and half[90] / half[0] == pytest.approx(3)
    assert (draw_weights(labels, oversample=0) == 1).all()
    np.testing.assert_allclose(draw_weights([["sky"], ["sky", "sea"], ["sky"], ["sky", "sky"], []], oversample=1), np.array([1, 4, 1, 1, 1]) / 1.6)


def test_draws_are_as_even_as_they_can_be():
    weights = draw_weights(["boa"] * 90 + ["viper"] * 10, oversample=0.8)
    draws = [np.bincount(draw_photos(weights, seed=seed), minlength=100) for seed in range(200)]
    assert all((draw >= np.floor(weights)).all() and (draw <= np.ceil(weights)).all() and draw.sum() == 100 for draw in draws)
    assert np.abs(np.mean(draws, axis=0) - weights).max() < 0.15  # four standard errors
    assert (np.sort(draw_photos(np.ones(100), seed=3)) == np.arange(100)).all()
    assert (draw_photos(weights, seed=1) == draw_photos(weights, seed=1)).all() and (draw_photos(weights, seed=1) != draw_photos(weights, seed=2)).any()
    assert number_repeats([4, 7, 4, 4]) == [0, 0, 1, 2]
