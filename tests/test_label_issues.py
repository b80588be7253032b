"""Wrong labels and photos of something else: groups stay together, order does not matter, the findings become corrections."""
import numpy as np
import pandas as pd
import pytest

from snakecls.core import UserError
from snakecls.data.corrections import add_correction, apply_corrections, open_issues, read_corrections
from snakecls.clean.label_issues import judge_labels, _make_folds, _out_of_fold_probs
from snakecls.clean.outliers import find_outliers

NAMES = ["Bungarus fasciatus", "Naja naja", "Vipera berus"]


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    "Features of 150 photos in three classes (two views), and their true classes."
    rng = np.random.default_rng(0)
    targets = np.arange(150) % 3
    points = rng.normal(0, 1, (2, 150, 12)).astype(np.float32)
    points[:, np.arange(150), targets] += 6
    points[:, 30] = 6 * (np.arange(12) == targets[30])  # a typical photo: cleanlab is sure of a class only from its mean probability upwards
    return points, targets


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_group_is_never_divided_and_every_photo_is_held_out_once(size):
    targets, groups = np.arange(90) % 3, np.arange(90) // size
    folds = _make_folds(targets, groups=groups)
    assert all(not set(groups[fit]) & set(groups[held]) for fit, held in folds)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(90))


def test_a_copy_of_a_wrongly_labelled_photo_does_not_hide_it(points):
    features, targets = points
    given = targets.copy()
    given[:4] = 2 - given[3]  # four copies of photo 3, which is of class 0, all called class 2
    features = features.copy()
    features[:, :4] = features[:, 3:4]
    groups = np.concatenate([[0] * 4, np.arange(1, 147)])
    probs = _out_of_fold_probs(features, given, n_classes=3, groups=groups)
    assert (probs[:4, given[3]] < 0.2).all()


def test_flips_and_strangers_are_found_and_the_order_of_photos_does_not_matter(points):
    features, targets = points
    features, labels = features.copy(), [NAMES[k] for k in targets]
    features[:, 20] = np.random.default_rng(1).normal(0, 1, (2, 12)) + 9 * (np.arange(12) == 8)
    labels[30] = NAMES[(targets[30] + 1) % 3]
    paths = [f"{i}.jpg" for i in range(150)]
    issues, _ = judge_labels(features, [], labels, paths=paths)
    assert issues.loc[issues["issue"] == "something else", "path"].iloc[0] == "20.jpg"
    flip = issues[issues["issue"] == "label"].iloc[0]
    assert (flip["path"], flip["suggested"], flip["verdict"]) == ("30.jpg", NAMES[targets[30]], "relabel")
    assert NAMES[targets[30]] in flip["reason"] and "20.jpg" not in set(issues.loc[issues["issue"] == "label", "path"])
    order = np.random.default_rng(2).permutation(150)
    again, _ = judge_labels(features[:, order], [], [labels[i] for i in order], paths=[paths[i] for i in order])
    assert again["path"].iloc[0] in set(issues["path"].iloc[:2])
    assert issues["score"].between(0, 1).all() and issues["score"].is_monotonic_decreasing


def test_several_labels_are_judged_one_by_one(points):
    features, targets = points
    labels = [["photo", "day", NAMES[k]] if i % 2 else ["photo", NAMES[k]] for i, k in enumerate(targets)]
    features = features.copy()
    features[:, 1::2, 5] += 6
    labels[40] = ["day", *labels[40]]
    issues, _ = judge_labels(features, [], labels, paths=[f"{i}.jpg" for i in range(150)])
    wrong = issues[issues["issue"] == "label"].iloc[0]
    assert wrong["path"] == "40.jpg" and sorted(wrong["suggested"]) == [NAMES[targets[40]], "photo"] and "day" in wrong["reason"]


@pytest.mark.parametrize("labels", [["a"] * 30, ["a"] * 29 + ["b"], list(map(str, range(30)))])
def test_odd_counts_of_classes_give_scores_that_are_numbers(labels):
    features = np.random.default_rng(0).normal(0, 1, (30, 5))
    issues = find_outliers([features], labels, paths=[str(i) for i in range(30)], threshold=0)
    assert len(issues) == 30 and issues["score"].between(0, 1).all()


def test_one_class_is_refused_in_a_sentence(points):
    with pytest.raises(UserError, match="at least two classes"):
        judge_labels(points[0], [], ["a"] * 150, paths=[str(i) for i in range(150)])


def test_decisions_correct_the_table_and_settle_the_issues(points, tmp_path):
    features, targets = points
    labels = [NAMES[k] for k in targets]
    labels[30] = NAMES[(targets[30] + 1) % 3]
    for i in range(150):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]))
    paths = [str(tmp_path / f"{i}.jpg") for i in range(150)]
    table = pd.DataFrame({"path": paths, "label": labels})
    issues, _ = judge_labels(features, [], labels, paths=paths)
    row, file = issues[issues["path"] == paths[30]].iloc[0], tmp_path / "corrections.csv"
    add_correction(file, row["path"], action="relabel", label=row["suggested"])
    add_correction(file, paths[0], action="drop")
    noted, done = apply_corrections(table, read_corrections(file))
    corrected = noted.table
    assert len(corrected) == 149 and corrected.set_index("path").loc[paths[30], "label"] == NAMES[targets[30]]
    assert done["outcome"].tolist() == ["relabelled", "dropped"] and (table["label"].to_numpy() == labels).all()
    assert paths[30] not in set(open_issues(issues, file)["path"])
    assert [issue["issue"] for issue in noted.issues] == ["dropped"]
