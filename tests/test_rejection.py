"Rejection: the scores against the package pytorch-ood, and what has to hold of what is fitted."
import numpy as np
import pytest
from conftest import need

from snakecls.core import UserError
from snakecls.evaluate.rejection import (
    DEFAULT, FEATURES_ALONE, all_scores, compare_candidates, draw_others, fit_rejection, fit_statistics, known_score, passing_others, probe_answer,
    rejection_score, tell_apart, vim_scale,
)


def draw_classes(n: int, *, d: int = 24, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Draw classes as round clouds in the first dimensions, on a slope that all share."
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    centres = 4 * np.eye(classes, d)
    return (centres[targets] + rng.normal(0, 0.5, (n, d)) * np.linspace(1, 0.1, d) + 2).astype(np.float32), targets


X, Y = draw_classes(400)
FAR = (np.random.default_rng(5).normal(0, 2, (120, 24)) + 2).astype(np.float32)


def test_scores_are_those_of_pytorch_ood():
    "With all axes, nothing mixed in and numbers of 32 bits; the packages' scores are higher for what is not known."
    need("pytorch_ood")
    import torch
    from pytorch_ood.detector import KNN, RMD, EnergyBased, MaxLogit, ViM

    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    new = np.concatenate([draw_classes(50, seed=1)[0], FAR])
    new_unit = torch.tensor(new / np.linalg.norm(new, axis=1, keepdims=True))
    rng = np.random.default_rng(2)
    weight, bias = rng.normal(0, 1, (4, 24)).astype(np.float32), np.zeros(4, np.float32)
    logits = new_unit.numpy() @ weight.T
    whole = fit_statistics(X, Y, n_axes=24, shrink=0, kind=np.float32)
    ours = all_scores(whole, new, logits, neighbour=7)

    knn = KNN(None, k=7).fit_features(torch.tensor(X), torch.tensor(Y)).predict_features(torch.tensor(new)).numpy()
    np.testing.assert_allclose(-ours["knn"], knn, atol=2e-3)
    theirs = RMD(None).fit_features(torch.tensor(100 * unit), torch.tensor(Y))  # it adds 1e-6 to a sum of squares: as good as nothing here
    relative = theirs.predict_features(100 * new_unit).numpy() * len(X)  # its covariances are sums, ours are means
    np.testing.assert_allclose(-ours["mahalanobis"], relative, rtol=0.02, atol=0.02 * np.abs(relative).max())
    np.testing.assert_allclose(-ours["energy"], EnergyBased.score(torch.tensor(logits)).numpy(), rtol=1e-5)
    np.testing.assert_allclose(-ours["max_logit"], MaxLogit.score(torch.tensor(logits)).numpy(), rtol=1e-5)

    few = fit_statistics(X, Y, n_axes=6, kind=np.float32)
    mean = few["mean"]
    vim = ViM(None, d=6, w=torch.tensor(weight), b=torch.tensor(bias))
    vim.u = torch.tensor(mean)  # centred as ours is, not at the classifier's origin
    vim.fit_features(torch.tensor(unit), torch.tensor(Y))
    train_logits = unit @ weight.T
    alpha = vim_scale(train_logits, all_scores(few, X, train_logits)["residual"])
    assert alpha == pytest.approx(vim.alpha, rel=1e-3)
    np.testing.assert_allclose(-all_scores(few, new, logits, alpha=alpha)["vim"], vim.predict_features(new_unit).numpy(), rtol=1e-3, atol=1e-3)


def test_auroc_is_scikit_learns():
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    known, others = rng.integers(0, 9, 60).astype(float) + 2, rng.integers(0, 9, 80).astype(float)
    truth, scores = [1] * 60 + [0] * 80, np.r_[known, others]
    assert tell_apart(known, others) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert passing_others(known, others) == pytest.approx(fpr[tpr >= 0.95][0])


def test_the_threshold_holds_on_new_photos():
    fitted = fit_rejection(X, Y, others={"far": FAR[:60]}, answer=probe_answer(0.01))
    new = draw_classes(2000, seed=3)[0]
    logits = probe_answer(0.01)(X, Y)(new)
    passed = (rejection_score(fitted, new, logits) >= fitted["threshold"]).mean()
    assert 0.92 < passed < 0.98
    assert fitted["n"] == len(X) and 0 < fitted["pass_rate"] < 1
    assert (rejection_score(fitted, FAR[60:], probe_answer(0.01)(X, Y)(FAR[60:])) < fitted["threshold"]).mean() > 0.95


def test_the_best_candidate_is_chosen_and_ties_with_its_table():
    fitted = fit_rejection(X, Y, others={"far": FAR}, answer=probe_answer(0.01))
    table = fitted["table"]
    merit = {name: (row["species left out"] + row["far"]) / 2 for name, row in table.items()}
    assert " + ".join(fitted["scores"]) == max(merit, key=merit.get)
    assert set(compare_candidates(X, Y, answer=probe_answer(0.01), candidates=FEATURES_ALONE)) == {" + ".join(names) for names in FEATURES_ALONE}


def test_order_of_photos_does_not_matter_to_what_is_applied():
    fitted = fit_rejection(X, Y, candidates=FEATURES_ALONE, answer=probe_answer(0.01))
    order = np.random.default_rng(0).permutation(len(FAR))
    np.testing.assert_allclose(rejection_score(fitted, FAR)[order], rejection_score(fitted, FAR[order]), rtol=1e-4)
    one = known_score(fitted, FAR[3])
    assert one["score"] == pytest.approx(float(rejection_score(fitted, FAR)[3]), rel=1e-4) and one["known"] is False


def test_groups_are_never_divided():
    "Copies in both halves would make every photo look like a neighbour of itself."
    twice, targets = np.repeat(X, 2, axis=0), np.repeat(Y, 2)
    together = fit_rejection(twice, targets, groups=np.repeat(np.arange(len(X)), 2), candidates=[("knn",)], answer=probe_answer(0.01))
    apart = fit_rejection(twice, targets, candidates=[("knn",)], answer=probe_answer(0.01))
    assert together["norm"]["knn"][0] < apart["norm"]["knn"][0]


def test_two_classes_and_nothing_else_fall_back():
    few = Y < 2
    fitted = fit_rejection(X[few], Y[few], answer=probe_answer(0.01))
    assert fitted["scores"] == list(DEFAULT)


def test_a_score_that_is_no_number_is_not_known():
    fitted = fit_rejection(X, Y, candidates=[("knn",)], answer=probe_answer(0.01))
    assert known_score(fitted, np.full(24, np.nan))["known"] is False


@pytest.mark.parametrize(("change", "said"), [({"targets": np.eye(4)[Y]}, "several"), ({"pass_rate": 1.0}, "between 0 and 1"), ({"features": X * np.nan}, "no numbers")])
def test_what_cannot_be_fitted_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        fit_rejection(**{"features": X, "targets": Y} | change)


def test_other_things_are_drawn_the_same_again():
    first, again = ([np.asarray(photo) for _, photo in draw_others(7, seed=4, size_px=64)] for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again)) and len({a.tobytes() for a in first}) == 7


def test_applying_needs_numpy_alone():
    import subprocess
    import sys

    code = "import sys, snakecls.evaluate.rejection; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "pandas", "sklearn", "scipy", "matplotlib"} & set(loaded)
