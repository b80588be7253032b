"Properties of the bootstrap that hold for any labels."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from snakecls.stats import bootstrap_interval, mean_sd, paired_bootstrap, rule_of_three, say_difference, share_interval

labels = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=2, max_size=60)
metrics = st.sampled_from(["f1_macro", "accuracy", "balanced_accuracy"])


@settings(max_examples=40, deadline=None)
@given(labels, metrics, st.randoms(use_true_random=False))
def test_shuffling_the_samples_changes_nothing(rows, metric, random):
    truth, a, b = map(np.array, zip(*rows))
    order = list(range(len(rows)))
    random.shuffle(order)
    assert bootstrap_interval(metric, truth, a, n=50) == bootstrap_interval(metric, truth[order], a[order], n=50)
    assert paired_bootstrap(metric, truth, a, b, n=50) == paired_bootstrap(metric, truth[order], a[order], b[order], n=50)


@settings(max_examples=40, deadline=None)
@given(labels, metrics)
def test_interval_lies_in_range_and_renaming_changes_nothing(rows, metric):
    truth, guess, _ = map(np.array, zip(*rows))
    interval = bootstrap_interval(metric, truth, guess, n=50)
    assert 0 <= interval.low <= interval.high <= 1 and 0 <= interval.value <= 1
    names = np.array(["b", "e", "f", "g", "z"])  # in the same order as the numbers
    assert bootstrap_interval(metric, names[truth], names[guess], n=50) == interval


@settings(max_examples=60, deadline=None)
@given(labels)
def test_value_is_scikit_learns(rows):
    truth, guess, _ = map(np.array, zip(*rows))
    assert np.isclose(bootstrap_interval("f1_macro", truth, guess, n=10).value, f1_score(truth, guess, average="macro"))
    assert np.isclose(bootstrap_interval("accuracy", truth, guess, n=10).value, accuracy_score(truth, guess))


@settings(max_examples=30, deadline=None)
@given(labels)
def test_comparison_is_antisymmetric_and_fair(rows):
    truth, a, b = map(np.array, zip(*rows))
    forth, back = (paired_bootstrap("f1_macro", truth, *pair, n=50) for pair in [(a, b), (b, a)])
    assert np.isclose(forth.difference, -back.difference) and 0 < forth.p <= 1
    same = paired_bootstrap("f1_macro", truth, a, a, n=50)
    assert same == (0, -same.high, same.high, 1, 0) and same.high == rule_of_three(len(rows)) > 0


def test_interval_covers_the_true_accuracy_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        right = rng.random(150) < 0.8
        interval = bootstrap_interval("accuracy", np.ones(150, int), right.astype(int), n=200)
        covered += interval.low <= 0.8 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_mean_sd_always_says_n(values):
    assert mean_sd(values).endswith(f"(n={len(values)})") and ("±" in mean_sd(values)) == (len(values) > 1)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "top2_accuracy"])
def test_a_perfect_score_of_few_photos_is_no_certainty(metric):
    "Every draw of right answers is right; the bound of the share of right ones says what so few can show."
    truth = np.arange(17) % 3
    given = np.eye(3)[truth] if metric.startswith("top") else truth
    found = bootstrap_interval(metric, truth, given)
    assert found.value == found.high == 1.0 and found.low == pytest.approx(share_interval(17, 17)[0]) and 0.8 < found.low < 0.83
    wrong = bootstrap_interval("accuracy", truth, (truth + 1) % 3)
    assert wrong.value == wrong.low == 0.0 and 0.17 < wrong.high < 0.2


@pytest.mark.parametrize("expected", [0.5, 1.0, 2.0])
def test_the_interval_of_a_difference_covers_one_that_few_photos_do_not_show(expected):
    "One model is wrong where the other is right, on so few photos that a table of fifty often shows none."
    rng, n, found = np.random.default_rng(2), 50, []
    for _ in range(300):
        truth, lost = rng.integers(0, 2, n), rng.random(n) < expected / n
        found.append(paired_bootstrap("accuracy", truth, truth, np.where(lost, 1 - truth, truth), n=200))
    assert sum(each.differ == 0 for each in found) > 20
    assert np.mean([each.low <= expected / n <= each.high for each in found]) >= 0.93


def test_no_photo_with_another_answer_is_said_with_the_rule_of_three():
    truth = np.arange(60) % 3
    assert rule_of_three(60) == pytest.approx(3 / 60, abs=2e-4) and rule_of_three(1) == 1
    said = "no photo was answered differently (n = 60), so a difference up to about ±0.050 cannot be excluded"
    assert say_difference(paired_bootstrap("f1_macro", truth, truth, truth, n=20), 60) == said
    all_other = paired_bootstrap("accuracy", truth, truth, (truth + 1) % 3, n=20)  # every draw says 1, and a new photo need not
    assert (all_other.difference, all_other.high, all_other.differ) == (1, 1, 60) and all_other.low == pytest.approx(0.95, abs=1e-3)
