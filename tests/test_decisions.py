"""Country, tree of names, cost: golden values, oracles, what never happens, and what an answer needs to import."""
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from snakecls.core import UserError
from snakecls.data.countries import country_names, find_country, read_country
from snakecls.data.demo.draw import _plan_demo
from snakecls.data.demo.species import SPECIES
from snakecls.data.taxonomy import label_ranks, snakeclef_facts, species_countries
from snakecls.evaluate.prior import apply_prior, check_prior, fit_prior
from snakecls.evaluate.risk import COSTS, _fit_platt, _logit, expected_costs, fit_risk, label_states, lookalike_warning, rank_by_cost, recalibrate, risk_level, venom_prob
from snakecls.evaluate.taxonomy import check_taxonomy, finest_answer, fit_taxonomy
from snakecls.train.snakeclef import mean_observations, snakeclef_metrics, track1_score, track2_cost

META = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "metadata"


def need_metadata() -> None:
    if not META.is_dir():
        pytest.skip(f"SnakeCLEF's tables are not there ({META}); set SNAKECLS_REAL_DATA")


def draw_probs(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, k, n)
    probs = np.exp(rng.normal(0, 1, (n, k)) + 1.5 * np.eye(k)[targets])
    return probs / probs.sum(1, keepdims=True), targets


# SnakeCLEF's scores

def test_the_golden_values_of_snakeclef_2023():
    assert round(track1_score(53.65, {"00": 29.53, "01": 3.06, "10": 7.38, "11": 19.51}), 2) == 85.64
    assert track2_cost({"00": 1860, "01": 193, "10": 112, "11": 296}) == 3398


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_the_scores_are_those_counted_one_by_one(seed):
    rng = np.random.default_rng(seed)
    true, said, venomous = rng.integers(0, 6, 40), rng.integers(0, 6, 40), [True, False, True, False, False, True]
    got = snakeclef_metrics(true, said, venomous)
    counts = dict.fromkeys(("00", "01", "10", "11"), 0)
    for t, p in zip(true.tolist(), said.tolist()):
        if t != p:
            counts[f"{int(venomous[t])}{int(venomous[p])}"] += 1
    sizes = [sum(not venomous[t] for t in true), sum(venomous[t] for t in true)]
    rates = {pair: round(100 * counts[pair] / sizes[int(pair[0])], 2) for pair in counts}
    f1 = 100 * f1_score(true, said, average="macro", zero_division=0)
    expected = (f1 + (100 - rates["00"]) + 2 * (100 - rates["01"]) + 5 * (100 - rates["10"]) + 2 * (100 - rates["11"])) / 11
    assert got["track1"] == pytest.approx(expected, abs=1e-9) and got["track2"] == counts["00"] + 2 * counts["01"] + 5 * counts["10"] + 2 * counts["11"]
    assert {pair: got[f"p{pair}"] for pair in counts} == rates
    order = rng.permutation(40)
    assert snakeclef_metrics(true[order], said[order], venomous) == got


def test_an_unknown_venom_status_is_refused_or_told_and_never_harmless():
    with pytest.raises(UserError, match="class 1"):
        snakeclef_metrics([0, 1], [0, 0], [False, None])
    with pytest.warns(UserWarning, match="counted as venomous"):
        got = snakeclef_metrics([0, 1], [0, 0], [False, None], unknown="venomous")
    assert got["n10"] == 1 and got["n_venomous"] == 1
    assert snakeclef_metrics([0, 1], [0, 0], [False, True, None])["n10"] == 1  # a class that does not occur may be unknown


def test_photos_of_an_observation_are_joined_by_their_logits():
    probs, _ = draw_probs(0, 6, 3)
    joined, first = mean_observations(probs, ["b", "a", "b", "c", "a", "b"])
    assert first.tolist() == [0, 1, 3]
    mean = np.exp(np.log(probs[[0, 2, 5]]).mean(0))
    assert joined[0] == pytest.approx(mean / mean.sum())


# Countries

def test_every_country_of_snakeclef_is_known_by_its_name_and_its_code():
    need_metadata()
    matrix = pd.read_csv(META / "snakeclef2021_species_to_country.csv", keep_default_na=False, nrows=1)
    names = [*matrix.columns[1:]]
    names += pd.read_csv(META / "snakeclef2021_country_lut.csv", keep_default_na=False).to_numpy().ravel().tolist()
    names += [name for name in pd.read_csv(META / "snakeclef2021_train_sample.csv", keep_default_na=False)["country"].unique() if name != "unknown"]
    names += pd.read_csv(META / "snakeclef2023_train_hm.csv", keep_default_na=False)["code"].unique().tolist()
    assert [name for name in names if find_country(name) is None] == []
    assert {find_country(name) for name in ("usa", "US", "United States of America")} == {"United States"}


@pytest.mark.parametrize("text", ["", None, float("nan"), "unknown", "?"])
def test_what_says_nothing_is_no_country(text):
    assert read_country(text) is None


def test_a_typo_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'Philippines'"):
        read_country("Philipines")
    with pytest.raises(UserError, match="did you mean 'Myanmar'"):
        read_country("Burmah")


def test_names_in_any_case_and_with_accents_are_one():
    for name in country_names():
        assert find_country(name.upper()) == find_country(f" {name.lower()} ") == name
    assert find_country("CÔTE D’IVOIRE") == "Ivory Coast" and find_country("Curaçao") == "Curacao" and find_country("México") == "Mexico"


# Country prior

@cache
def fitted_prior() -> dict:
    probs, targets = draw_probs(1, 200, 4)
    return fit_prior(probs, targets, np.array(["India", "Peru", "Ghana", "Kenya"])[targets].tolist())


@settings(max_examples=40, deadline=None)
@given(country=st.sampled_from([None, "", "unknown", "Atlantis", "Iceland", float("nan")]), kind=st.sampled_from(["float32", "float64"]), seed=st.integers(0, 99))
def test_an_unknown_country_changes_no_bit(country, kind, seed):
    prior, probs = fitted_prior(), draw_probs(seed, 3, 4)[0].astype(kind)
    assert apply_prior(probs, country, prior).tobytes() == probs.tobytes()
    some = apply_prior(probs, [country, "India", country], prior)
    assert some[[0, 2]].tobytes() == probs[[0, 2]].tobytes() and some.dtype == probs.dtype and some[1] == pytest.approx(apply_prior(probs[1], "in", prior))


def test_no_species_ever_gets_zero_and_rows_sum_to_one():
    prior, probs = fitted_prior(), draw_probs(2, 50, 4)[0]
    got = apply_prior(probs, "India", prior)
    assert (got > 0).all() and got.sum(1) == pytest.approx(np.ones(50)) and prior["strength"] > 0


def test_a_photos_own_record_does_not_vouch_for_it():
    "Every photo has a country of its own, so in the table all is certain, and out of fold nothing is known."
    probs, targets = draw_probs(3, 150, 4)
    prior = fit_prior(probs, targets, [country_names()[i] for i in range(150)])
    assert prior["strength"] == 0 and prior["countries"] == {}


def test_groups_are_not_divided_between_table_and_score():
    "Two photos of each observation in a country of their own: only undivided they say nothing."
    probs, targets = draw_probs(4, 200, 4)
    targets = np.repeat(targets[:100], 2)
    countries = [country_names()[i // 2] for i in range(200)]
    assert fit_prior(probs, targets, countries, groups=np.arange(200) // 2)["strength"] == 0
    assert fit_prior(probs, targets, countries)["strength"] > 0


def test_a_prior_of_772_species_and_200_countries_is_compact_and_survives_json():
    rng = np.random.default_rng(0)
    names, targets = country_names()[:200], rng.integers(0, 772, 2_000)
    home = rng.integers(0, 200, (772, 6))
    probs = np.full((2_000, 772), 0.5 / 771)
    probs[np.arange(2_000), targets] = 0.5
    probs /= probs.sum(1, keepdims=True)
    prior = fit_prior(probs, targets, [names[home[t, i]] for t, i in zip(targets, rng.integers(0, 6, 2_000))])
    text = json.dumps(prior)
    assert prior["strength"] > 0 and len(text) < 150_000
    assert check_prior(json.loads(text), 772) == prior


def test_the_matrix_is_joined_by_latin_name():
    need_metadata()
    labels = ["Philippine Cobra (Naja philippinensis)", "Crotalus horridus", "Naja imaginaria"]
    lived = species_countries(labels, META / "snakeclef2021_species_to_country.csv")
    assert lived[0] == ["Philippines"] and "USA" in lived[1] and lived[2] is None
    prior = fit_prior(np.full((1, 3), 1 / 3), np.array([0]), [None], ranges=lived)
    there = apply_prior(np.full(3, 1 / 3), "philippines", prior)
    assert there[0] == there[2] > 5 * there[1]  # what the matrix does not know is not punished


def test_the_countries_of_drawn_photos_do_not_reach_the_drawing():
    "They are drawn from each species' own range, and what is drawn does not depend on them."
    request = {"species": list(SPECIES), "seed": 5, "n_per_species": 12, "label_noise": 0.0, "exact_duplicates": 0, "near_duplicates": 0, "distractors": 0, "broken": 0}
    rows = _plan_demo(request)
    assert all(row["country"] in SPECIES[row["binomial"]].countries for row in rows)
    assert not any(str(row["country"]) in map(str, row["draw"]) for row in rows) and not any(row["country"] in row["path"] for row in rows)
    assert SPECIES["Micrurus fulvius"].countries == SPECIES["Lampropeltis elapsoides"].countries  # a country cannot tell the mimics apart


# Tree of names

def test_a_level_keeps_its_promise_on_new_photos():
    rng = np.random.default_rng(0)

    def draw(n):
        targets = rng.integers(0, 6, n)
        logits = 1.2 * np.eye(6)[targets] + 1.6 * (targets[:, None] // 2 == np.arange(6) // 2)
        noisy = logits + rng.normal(0, 1, (n, 6))
        joint = np.stack([-((noisy - (1.2 * np.eye(6)[t] + 1.6 * (t // 2 == np.arange(6) // 2))) ** 2).sum(1) / 2 for t in range(6)], 1)
        probs = np.exp(joint - joint.max(1, keepdims=True))
        return probs / probs.sum(1, keepdims=True), targets

    labels = ["Aa a", "Aa b", "Bb a", "Bb b", "Cc a", "Cc b"]
    tree = fit_taxonomy(*draw(1500), label_ranks(labels), promise=0.9)
    probs, targets = draw(3000)
    answers = [finest_answer(row, labels, tree) for row in probs]
    for rank, names in (("species", labels), ("genus", tree["ranks"]["genus"])):
        rows = [i for i, answer in enumerate(answers) if answer["rank"] == rank]
        assert len(rows) > 150 and np.mean([names[targets[i]] == answers[i]["name"] for i in rows]) > 0.87
    assert check_taxonomy(json.loads(json.dumps(tree)), 6) == tree


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), st.floats(0.5, 1), st.floats(0.5, 1))
def test_the_answer_is_the_finest_level_above_its_threshold(weights, species, genus):
    probs, labels = np.array(weights) / sum(weights), ["Naja a", "Naja b", "Bitis a", "Python a"]
    keys = {"n": 1, "answered": 1, "right": 1, "low": 0.1, "high": 1.0, "few": True}
    tree = {"format": 1, "promise": 0.9, "n_labels": 4, "ranks": label_ranks(labels),
            "levels": [{"rank": "species", "threshold": species, **keys}, {"rank": "genus", "threshold": genus, **keys}]}
    answer, naja = finest_answer(probs, labels, tree), probs[:2].sum()
    expected = "species" if probs.max() >= species else "genus" if naja >= genus else None
    assert answer["rank"] == expected and answer["most_likely"]["prob"] > 0
    if expected == "genus":
        assert answer["prob"] == pytest.approx(naja) and answer["most_likely"]["label"] in labels[:2]


# Cost

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), dear=st.sampled_from([1, 5, 40]))
def test_expected_costs_are_those_of_every_truth(seed, dear):
    rng = np.random.default_rng(seed)
    states = [[True, False, None][i] for i in rng.integers(0, 3, 5)]
    costs, probs = COSTS | {"10": dear}, draw_probs(seed, 1, 5)[0][0]
    risk = {"n_labels": 5, "costs": costs, "danger": "venomous", "venomous": states, "calibration": {"kind": "none"}}
    group = [int(state is not False) for state in states]
    slow = [sum(probs[i] * costs[f"{group[i]}{group[j]}"] for i in range(5) if i != j) for j in range(5)]
    assert expected_costs(probs, risk) == pytest.approx(slow)
    assert slow[rank_by_cost(probs, risk)[0]] == pytest.approx(min(slow))
    ranked = rank_by_cost(probs, risk)
    for kind in (0, 1):  # within a group the likelier comes first
        own = [probs[i] for i in ranked if group[i] == kind]
        assert own == sorted(own, reverse=True)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999))
def test_what_is_not_known_is_never_harmless(seed):
    probs = draw_probs(seed, 1, 4)[0][0]
    known, unknown = [True, False, False, False], [True, None, False, False]
    risk = {"n_labels": 4, "costs": COSTS, "danger": "venomous", "calibration": {"kind": "none"}}
    assert venom_prob(probs, risk | {"venomous": unknown}) >= venom_prob(probs, risk | {"venomous": known})
    assert venom_prob(probs, risk | {"venomous": [None] * 4}) == pytest.approx(1) and risk_level(probs, risk | {"venomous": [None] * 4})["level"] == "likely"
    assert lookalike_warning(2, [False, True, True, False], probs, list("abcd"), unknown)["unknown"] == ["b"]


def test_a_venomous_look_alike_in_the_set_is_warned_of_and_only_then():
    probs, labels, states = np.array([0.2, 0.7, 0.1]), ["coral", "king", "grass"], [True, False, False]
    assert lookalike_warning(1, [True, True, False], probs, labels, states) == {"answer": "king", "state": False, "venomous": ["coral"], "unknown": [], "prob": 0.2}
    assert lookalike_warning(1, ["king", "grass"], probs, labels, states) is None
    assert lookalike_warning(0, labels, probs, labels, states) is None


def test_platt_is_a_logistic_regression_on_the_log_odds():
    probs, targets = draw_probs(0, 400, 3)
    said, truth = probs[:, 0], targets == 0
    ours, n, positive = _fit_platt(said, truth), len(truth), int(truth.sum())
    wanted = np.where(truth, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
    z = _logit(said)
    oracle = LogisticRegression(C=1e9, tol=1e-9, max_iter=2000).fit(np.tile(z, 2)[:, None], np.repeat([1, 0], n), sample_weight=np.concatenate([wanted, 1 - wanted]))
    assert [ours["a"], ours["b"]] == pytest.approx([oracle.coef_[0, 0], oracle.intercept_[0]], abs=2e-3)


def test_calibration_mends_what_is_too_sure_and_leaves_alone_what_is_right():
    probs, targets = draw_probs(5, 1500, 4)
    sure = probs**3 / (probs**3).sum(1, keepdims=True)
    risk = fit_risk(sure, targets, [True, False, False, False])
    assert risk["calibration"]["kind"] != "none" and min(risk["loss"].values()) < risk["loss"]["none"] - 0.05
    new, truth = draw_probs(6, 1500, 4)
    new = new**3 / (new**3).sum(1, keepdims=True)
    assert abs(venom_prob(new, risk).mean() - (truth == 0).mean()) < 0.03
    assert recalibrate(new, risk).sum(1) == pytest.approx(np.ones(1500)) and recalibrate(new, risk)[:, 0] == pytest.approx(venom_prob(new, risk))
    plain = fit_risk(probs, targets, [False] * 4)
    assert plain["calibration"] == {"kind": "none"} and recalibrate(probs, plain) == pytest.approx(probs)


# Facts

def test_snakeclefs_lists_say_nothing_harmless_of_what_they_do_not_know():
    need_metadata()
    labels = ["Philippine Cobra (Naja philippinensis)", "Samar Cobra (Naja samarensis)", "Marens Bronzeback (Dendrelaphis marenae)", "Common Wolf Snake (Lycodon capucinus)"]
    how = dict(venom=META / "snakeclef2023_venomous_status.csv", families=META / "snakeclef2021_train_sample.csv", labels=labels)
    table = snakeclef_facts(META / "snakeclef2023_train_hm.csv", **how).table.set_index("binomial")
    assert table["medically_important"].isna().tolist() == [False, True, True, False] and table["family"].tolist() == ["Elapidae", "Elapidae", "Colubridae", "Colubridae"]
    facts = {label: {key: None if pd.isna(value) else value for key, value in row.items()} for label, row in zip(labels, table.to_dict("records"))}
    assert label_states(labels, facts) == ("medically_important", [True, None, None, False])
    noted = snakeclef_facts(META / "snakeclef2023_train_hm.csv", from_genus=True, **how)
    assert noted.table["venomous"].fillna(False).tolist() == [True, True, False, False] and any("Naja samarensis" in note and "called venomous" in note for note in noted.notes)


def test_an_answer_needs_numpy_alone():
    code = ("import sys; import snakecls.evaluate.prior, snakecls.evaluate.taxonomy, snakecls.evaluate.risk; "
            "print([name for name in ('torch', 'pandas', 'sklearn', 'scipy', 'fastai', 'matplotlib') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
