"""What do decisions change? Country prior, tree of names, answers that cost least, class weights, look-alike warnings; all fitted out of fold.

Usage: python benchmarks/decisions.py FOLDER [--choose] [--sets drawn snakes_ph] [--sizes 160 272]
Drawn: 960 photos of 12 species a seed, a quarter of the observations as test (240 photos), beside 200 photos of the mimic pair that are drawn for this alone;
at 160 px, where the probe is right in nine of ten, and at the demonstration's own 272 px, where it hardly errs. Costs and weights were chosen on seeds 0 to 2 (`--choose`, which records nothing), and are scored on 3 to 7. `snakes_ph`: fitted on the folder
`train`, scored on `val`, once. A probe (C 0.03) on features of `tf_efficientnet_lite0` with depths and maximum; its temperature, the prior, the thresholds and
the calibrations are fitted on out-of-fold answers of the training photos, groups undivided. Intervals are 95 %, by bootstrap over observations (drawn: of all
scored seeds together), or Wilson's where a share is given alone. Features stay in FOLDER. The countries of drawn photos are drawn evenly from each species'
own range, so no photo lies outside of it, and the mimics share their only country: see the logbook for what that means."""
import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from active import REAL, read_features
from common import record
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from snakecls.core import told_before
from snakecls.data.demo.draw import make_demo
from snakecls.data.demo.species import SPECIES
from snakecls.data.taxonomy import label_ranks, snakeclef_facts, species_countries
from snakecls.evaluate.prior import apply_prior, fit_prior
from snakecls.evaluate.risk import COSTS, expected_costs, fit_risk, label_states, lookalike_warning, risk_level, venom_prob
from snakecls.evaluate.taxonomy import finest_answer, fit_taxonomy
from snakecls.models.probe import fit_probe
from snakecls.stats import score_draws, share_interval
from snakecls.data.label_facts import PAIRS
from snakecls.train.snakeclef import _group_counts, _rate, snakeclef_metrics, track1_score

SIZES, N_PER_SPECIES, C, PROMISE, SET = (160, 272), 80, 0.03, 0.95, 0.95
MIMICS = ("Micrurus fulvius", "Lampropeltis elapsoides")
# What a venomous snake called harmless costs, for each size of photos. The last was chosen on seeds 0 to 2 among 5, 10, 15, 20, 25, 30, 40 and 60: the smallest with
# 80 % fewer errors on the pair, at 160 px in the test and in the further photos alike, at 272 px (4 errors in the test) in these. Those between show the curve.
DEAR = {160: (5, 10, 15, 25), 272: (5, 60), 224: (5, 10, 25)}
WEIGHTS = (2.5, 10)  # of venomous photos in the loss
META = REAL / "metadata"


def drawn_table(folder: Path, size: int, **how) -> pd.DataFrame:
    "Draw photos, and read their table."
    drawn = make_demo(folder, size_px=size, n_workers=1, **how)
    table = pd.read_csv(drawn / "photos.csv")
    return table.assign(path=[str(drawn / path) for path in table["path"]])


def load_drawn(folder: Path, seed: int, size: int) -> dict[str, np.ndarray]:
    "Draw a seed's photos, and keep what the frozen network sees in them."
    file = folder / f"{size}" / f"drawn_{seed}.npz"
    if not file.exists():
        table = drawn_table(file.with_suffix(""), size, seed=seed, n_per_species=N_PER_SPECIES)
        np.savez(file, features=read_features(table, size), label=table["binomial"].to_numpy(str), group=table["observation_id"].to_numpy(str),
                 country=table["country"].to_numpy(str), test=table["split"].eq("test").to_numpy())
    with np.load(file) as stored:
        return dict(stored)


def load_pair(folder: Path, seed: int, size: int) -> dict[str, np.ndarray]:
    "Draw photos of the mimics alone, which nothing is fitted on."
    file = folder / f"{size}" / f"pair_{seed}.npz"
    if not file.exists():
        table = drawn_table(file.with_suffix(""), size, seed=1000 + seed, n_per_species=100, species=list(MIMICS))
        np.savez(file, features=read_features(table, size), label=table["binomial"].to_numpy(str), group=table["observation_id"].to_numpy(str), country=table["country"].to_numpy(str))
    with np.load(file) as stored:
        return dict(stored)


def load_snakes(folder: Path) -> dict[str, np.ndarray]:
    "Read 14 Philippine snakes; the folder `val` is the test."
    file = folder / "snakes_ph.npz"
    if not file.exists():
        from snakecls.clean.duplicates import photo_groups
        from snakecls.clean.scan import scan_files
        from snakecls.data.tables import load_table

        table = load_table(REAL / "snakes_ph").reset_index(drop=True)
        groups = photo_groups(table, scan_files(table, n_workers=1))
        np.savez(file, features=read_features(table, 224), label=table["label"].to_numpy(str), group=np.asarray(groups).astype(str),
                 test=table["path"].str.contains("/val/").to_numpy())
    with np.load(file) as stored:
        return dict(stored)


def answer(data: dict[str, np.ndarray], more: dict[str, np.ndarray] | None = None) -> dict:
    "Fit the probe and its temperature; gives labels, out-of-fold and test probabilities, and what goes with them."
    labels, y = np.unique(data["label"], return_inverse=True)
    train, test = ~data["test"], data["test"]
    X, Y, groups = data["features"][train], y[train], data["group"][train]
    logits = np.zeros((len(Y), len(labels)))
    for fit, held in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(X, Y, groups):
        logits[held] = fit_probe(X[fit], Y[fit], n_classes=len(labels), C=C).logits(X[held])
    heat = np.exp(minimize_scalar(lambda t: -np.log(softmax(logits / np.exp(t), 1)[np.arange(len(Y)), Y] + 1e-12).mean(), bounds=(-3, 3), method="bounded").x)
    probe = fit_probe(X, Y, n_classes=len(labels), C=C)
    scaler = StandardScaler().fit(X)
    weighed = {}

    def weigh(features: np.ndarray, venomous: np.ndarray, weight: float) -> np.ndarray:  # class numbers
        "What a probe says whose loss weighs venomous photos more."
        if weight not in weighed:
            weighed[weight] = LogisticRegression(C=C, max_iter=300, tol=1e-3).fit(scaler.transform(X), Y, sample_weight=np.where(venomous[Y], weight, 1.0))
        return weighed[weight].predict(scaler.transform(features))

    parts = {"test": {key: data[key][test] for key in data if key != "test"}} | ({"pair": more} if more else {})
    for part in parts.values():
        part |= {"probs": softmax(probe.logits(part["features"]) / heat, 1), "y": np.searchsorted(labels, part["label"])}
    return {"labels": labels.tolist(), "oof": softmax(logits / heat, 1), "y": Y, "groups": groups, "country": data["country"][train].tolist() if "country" in data else None,
            "weigh": weigh, **parts}


def bootstrap(groups: np.ndarray, score: Callable[[np.ndarray], float], n: int = 1000) -> tuple[float, float]:
    "Give the 95 % interval of a score of rows, by drawing groups."
    _, number = np.unique(groups, return_inverse=True)
    rows = [np.flatnonzero(number == i) for i in range(number.max() + 1)]
    rng = np.random.default_rng(0)
    values = [score(np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])) for _ in range(n)]
    return tuple(np.nanquantile(values, [0.025, 0.975]))


def fast_f1(y: np.ndarray, p: np.ndarray) -> float:
    return float(score_draws("f1_macro", y, p, np.arange(len(y))[None])[0])


class Pool:
    "Answers of all scored seeds under one arm, and what they are scored by."

    def __init__(self, states: list[bool | None]):
        self.states = states
        self.dangerous = np.array([state is not False for state in states])
        self.y, self.groups, self.said, self.sizes = [], [], {}, []

    def add(self, seed: int, y: np.ndarray, groups: np.ndarray, said: dict[str, np.ndarray]) -> None:
        self.y.append(y)
        self.groups.append(np.char.add(f"{seed}:", groups.astype(str)))
        self.sizes.append(len(y))
        for arm, predicted in said.items():
            self.said.setdefault(arm, []).append(predicted)

    def scores(self) -> dict[str, tuple[list[float], Callable]]:
        "Give each score's function of (true, predicted)."
        def track1(y, p):  # as `snakeclef_metrics` has it (asserted below), without scikit-learn's half millisecond a draw
            counts, sizes = _group_counts(y, p, self.dangerous)
            return track1_score(100 * fast_f1(y, p), {pair: _rate(counts[pair], sizes[int(pair[0])]) for pair in PAIRS})

        return {
            "macro F1 in percent": lambda y, p: 100 * fast_f1(y, p), "Track 1": track1,
            "top-1": lambda y, p: float((y == p).mean()),
            "venomous called harmless": lambda y, p: float((self.dangerous[y] & ~self.dangerous[p]).sum()),
            "harmless called venomous": lambda y, p: float((~self.dangerous[y] & self.dangerous[p]).sum()),
        }

    def write(self, title: str, base: str, keys: list[str], note: str, *, keep: bool) -> None:
        "Record each arm by seed, with the interval of the paired difference to the base over all seeds together."
        y, groups = np.concatenate(self.y), np.concatenate(self.groups)
        for arm in self.said:
            for key in keys:
                score = self.scores()[key]
                values = [score(a, b) for a, b in zip(self.y, self.said[arm])]
                p = np.concatenate(self.said[arm])
                if key == "Track 1":
                    with told_before():
                        assert abs(score(y, p) - snakeclef_metrics(y, p, self.states, unknown="venomous")["track1"]) < 1e-6
                bases = [name for name in (base, f"{base} and country" if arm.endswith("and country") else base) if name != arm]
                said = "; ".join([self.compare(score, y, groups, p, name, count=key.endswith(("harmless", "venomous"))) for name in dict.fromkeys(bases)] + [note])
                write(f"{title}, {arm}", values, key, said, keep=keep)

    def compare(self, score: Callable, y: np.ndarray, groups: np.ndarray, p: np.ndarray, base: str, *, count: bool) -> str:
        "Say the difference to another arm over all seeds together; of counts the change in percent."
        q = np.concatenate(self.said[base])
        if not count:
            low, high = bootstrap(groups, lambda r: score(y[r], p[r]) - score(y[r], q[r]), n=400)
            return f"against '{base}' {score(y, p) - score(y, q):+.4f} ({low:+.4f} to {high:+.4f})"
        before, after = score(y, q), score(y, p)
        low, high = bootstrap(groups, lambda r: score(y[r], p[r]) / score(y[r], q[r]) - 1 if score(y[r], q[r]) else np.nan)
        return f"{after:.0f} of all seeds together, '{base}' {before:.0f}: {after / max(before, 1) - 1:+.0%} ({low:+.0%} to {high:+.0%})"


def write(arm: str, values: list[float], unit: str, note: str, *, keep: bool) -> None:
    print(f"{arm} | {unit}: {np.round(values, 3)} | {note}", flush=True)
    if keep:
        record("decisions", arm, [round(float(value), 4) for value in values], unit=unit, note=note)


def cost_arms(size: int) -> dict[str, dict]:
    "Name the cost tables of a size of photos."
    return {f"1-2-{dear}-2": COSTS | {"10": dear} for dear in DEAR[size]}


def decide(risk: dict, probs: np.ndarray) -> dict[str, np.ndarray]:
    "Give the label of each cost table."
    return {name: expected_costs(probs, fitted).argmin(1) for name, fitted in risk.items()}


def lac_sets(oof: np.ndarray, y: np.ndarray, probs: np.ndarray) -> np.ndarray:  # (n, k) bool
    "Give the simplest conformal sets: labels whose probability is above a quantile of those of true labels."
    scores = np.sort(1 - oof[np.arange(len(y)), y])
    return probs >= 1 - scores[min(len(y) - 1, int(np.ceil((len(y) + 1) * SET)) - 1)]


def add_tree(rows: list, probs: np.ndarray, y: np.ndarray, labels: list[str], fitted: dict) -> None:
    "Note for each photo which level was answered, and whether that was right."
    for row, target in zip(probs, y):
        given = finest_answer(row, labels, fitted)
        names = labels if given["rank"] == "species" else fitted["ranks"].get(given["rank"])
        rows.append((given["rank"], names is not None and names[target] == given["name"], int(row.argmax()) == target))


def write_tree(title: str, rows: list, note: str, *, keep: bool) -> None:
    "Record how many photos each level answers, and how many of these are right."
    for rank in ("species", "genus", "family", None):
        own = [right if rank else top for level, right, top in rows if level == rank]
        if own:
            low, high = share_interval(sum(own), len(own))
            write(f"{title}, tree of names, {rank or 'nothing sure'}", [float(np.mean(own))], "share right" if rank else "share right by the likeliest species",
                  f"{sum(own)} of {len(own)} answers ({low:.3f} to {high:.3f}), {len(own) / len(rows):.0%} of {len(rows)} photos; promise {PROMISE}; {note}", keep=keep)


def write_warnings(title: str, rows: list, note: str, *, keep: bool) -> None:
    "Record how many dangerous mistakes carry the look-alike warning, and how many right harmless answers do."
    for name, own in (("dangerous mistakes that are warned of", [warned for kind, warned in rows if kind == "mistake"]),
                      ("right harmless answers that are warned of", [warned for kind, warned in rows if kind == "right"])):
        low, high = share_interval(sum(own), len(own)) if own else (0, 1)
        write(f"{title}, {name}", [float(np.mean(own)) if own else 0.0], "share", f"{sum(own)} of {len(own)} ({low:.3f} to {high:.3f}); LAC sets of {SET:.0%}; {note}", keep=keep)


def write_lines(title: str, rows: list, note: str, *, keep: bool) -> None:
    "Record how often the risk line calls venom unlikely in a venomous snake, and possible or likely in a harmless one."
    for name, dangerous, wrong in (("venomous photos whose risk line says unlikely", True, {"unlikely"}), ("harmless photos whose risk line says possible or likely", False, {"possible", "likely"})):
        own = [level in wrong for truth, level in rows if truth is dangerous]
        low, high = share_interval(sum(own), len(own))
        write(f"{title}, {name}", [float(np.mean(own))], "share", f"{sum(own)} of {len(own)} ({low:.3f} to {high:.3f}); costs 1-2-5-2; {note}", keep=keep)


def add_warnings(rows: list, probs: np.ndarray, sets: np.ndarray, y: np.ndarray, labels: list[str], states: list) -> None:
    for row, inside, target in zip(probs, sets, y):
        top = int(row.argmax())
        warned = lookalike_warning(top, inside.tolist(), row, labels, states) is not None
        if states[top] is False and states[target] is not False:
            rows.append(("mistake", warned))
        elif states[top] is False and top == target:
            rows.append(("right", warned))


def score_drawn(folder: Path, seeds: list[int], size: int, *, keep: bool) -> None:
    "Score the drawn photos."
    states = [SPECIES[name].venomous for name in sorted(SPECIES)]
    facts = {name: {"family": SPECIES[name].family} for name in SPECIES}
    (where, elsewhere, costs, pair, within), losses, tree, warned, lines = (Pool(states) for _ in range(5)), {}, [], [], []
    for seed in seeds:
        found = answer(load_drawn(folder, seed, size), load_pair(folder, seed, size))
        labels, test, rng = found["labels"], found["test"], np.random.default_rng(seed)
        assert labels == sorted(SPECIES)
        prior = fit_prior(found["oof"], found["y"], found["country"], groups=found["groups"])
        ranges = fit_prior(found["oof"], found["y"], found["country"], groups=found["groups"], ranges=[SPECIES[name].countries for name in labels])
        countries, everywhere = test["country"].tolist(), sorted({name for species in SPECIES.values() for name in species.countries})
        strange = [str(rng.choice(everywhere)) if rng.random() < 0.1 else name for name in countries]
        print(seed, {key: value for key, value in prior.items() if key != "countries"}, ranges["kind"], ranges["strength"], flush=True)
        arms = {"no country": test["probs"], "country": apply_prior(test["probs"], countries, prior), "country, ranges offered too": apply_prior(test["probs"], countries, ranges),
                "country, a tenth wrong": apply_prior(test["probs"], strange, prior), "country alone": apply_prior(np.full_like(test["probs"], 1 / len(labels)), countries, prior), "countries shuffled": apply_prior(test["probs"], rng.permutation(countries).tolist(), prior)}
        where.add(seed, test["y"], test["group"], {arm: probs.argmax(1) for arm, probs in arms.items()})
        alone = np.array(countries) == "United States of America"
        elsewhere.add(seed, test["y"][alone], test["group"][alone], {arm: arms[arm].argmax(1)[alone] for arm in ("no country", "country")})
        with_country = apply_prior(found["oof"], found["country"], prior)
        for part, pool in ((test, costs), (found["pair"], pair)):
            said = {}
            for name, oof, probs in (("", found["oof"], part["probs"]), (" and country", with_country, apply_prior(part["probs"], part["country"].tolist(), prior))):
                risk = {arm: fit_risk(oof, found["y"], states, groups=found["groups"], costs=table) for arm, table in cost_arms(size).items()}
                said[f"likeliest{name}"] = probs.argmax(1)
                said |= {f"costs {arm}{name}": predicted for arm, predicted in decide(risk, probs).items()}
                if part is test:
                    truth, first = np.array(states)[part["y"]], risk["1-2-5-2"]
                    for when, value in (("summed", probs[:, np.array(states)].sum(1)), ("calibrated", venom_prob(probs, first))):
                        losses.setdefault(f"venom {when}{name}", []).append(float(-np.log(np.where(truth, value, 1 - value).clip(1e-6)).mean()))
            said |= {f"class weights {weight}": found["weigh"](part["features"], np.array(states), weight) for weight in WEIGHTS}
            pool.add(seed, part["y"], part["group"], said)
            if part is test:
                own = np.isin(part["label"], MIMICS)
                within.add(seed, part["y"][own], part["group"][own], {arm: predicted[own] for arm, predicted in said.items()})
        fitted = fit_taxonomy(with_country, found["y"], label_ranks(labels, facts), promise=PROMISE)
        after = apply_prior(test["probs"], countries, prior)
        plain = fit_risk(with_country, found["y"], states, groups=found["groups"])
        lines += [(states[target], risk_level(row, plain)["level"]) for row, target in zip(after, test["y"])]
        add_tree(tree, after, test["y"], labels, fitted)
        add_warnings(warned, after, lac_sets(with_country, found["y"], after), test["y"], labels, states)
    note = f"12 species, {sum(where.sizes)} test photos of seeds {seeds}, probe on tf_efficientnet_lite0 at {size} px"
    title = "drawn" if size == SIZES[0] else f"drawn at {size} px"
    where.write(title, "no country", ["top-1"], note, keep=keep)
    elsewhere.write(f"{title}, photos in the United States alone", "no country", ["top-1"], f"{sum(elsewhere.sizes)} test photos, 9 species live there; {note}", keep=keep)
    costs.write(title, "likeliest", ["macro F1 in percent", "Track 1", "venomous called harmless"], note, keep=keep)
    within.write(f"{title}, test photos of the mimic pair", "likeliest", ["venomous called harmless"], f"{sum(within.sizes)} test photos of the pair; {note}", keep=keep)
    pair_note = f"{sum(pair.sizes)} photos of the mimic pair drawn for this alone, 100 venomous a seed, seeds {seeds}, probe on tf_efficientnet_lite0 at {size} px"
    pair.write(f"{title}, further photos of the mimic pair", "likeliest", ["venomous called harmless", "harmless called venomous"], pair_note, keep=keep)
    for name, values in losses.items():
        write(f"{title}, {name}", values, "log loss of 'is it venomous'", note, keep=keep)
    write_tree(title, tree, f"with the country; {note}", keep=keep)
    write_warnings(title, warned, f"with the country; {note}", keep=keep)
    write_lines(title, lines, f"with the country; {note}", keep=keep)


def score_snakes(folder: Path, *, keep: bool) -> None:
    "Score the Philippine snakes: `val`, once; to choose, out of fold on `train` alone."
    data = load_snakes(folder)
    if not keep:
        train = ~data["test"]
        held = next(StratifiedGroupKFold(5, shuffle=True, random_state=1).split(data["label"][train], data["label"][train], data["group"][train]))[1]
        data = {key: value[train] for key, value in data.items()} | {"test": np.isin(np.arange(train.sum()), held)}
    found = answer(data)
    labels, test = found["labels"], found["test"]
    noted = snakeclef_facts(META / "snakeclef2023_train_hm.csv", venom=META / "snakeclef2023_venomous_status.csv", families=META / "snakeclef2021_train_sample.csv",
                            labels=labels, from_genus=True)
    by_name = {name: {key: None if pd.isna(value) else value for key, value in row.items()} for name, row in noted.table.set_index("binomial").to_dict("index").items()}
    facts = {label: by_name[label.rpartition("(")[2].rstrip(")")] for label in labels}
    danger, states = label_states(labels, facts)
    print(*noted.notes, danger, dict(zip(labels, states)), sep="\n", flush=True)
    ranges = species_countries(labels, META / "snakeclef2021_species_to_country.csv")
    listed = fit_prior(found["oof"], found["y"], ["Philippines"] * len(found["y"]), groups=found["groups"], ranges=ranges)
    print("country prior of ranges, all photos in the Philippines:", {key: value for key, value in listed.items() if key != "countries"}, flush=True)
    pool, losses = Pool(states), {}
    risk = {arm: fit_risk(found["oof"], found["y"], states, danger=danger, groups=found["groups"], costs=table) for arm, table in cost_arms(224).items()}
    said = {"likeliest": test["probs"].argmax(1)} | {f"costs {arm}": predicted for arm, predicted in decide(risk, test["probs"]).items()}
    counted = np.array([state is not False for state in states])
    said |= {f"class weights {weight}": found["weigh"](test["features"], counted, weight) for weight in WEIGHTS}
    pool.add(0, test["y"], test["group"], said)
    note = (f"{len(test['y'])} photos of {'val, once' if keep else 'a fold of train'}, 14 species, {int(counted.sum())} counted as venomous, 2 of these as nothing is "
            "known of them; probe on tf_efficientnet_lite0 at 224 px")
    pool.write("snakes_ph", "likeliest", ["macro F1 in percent", "Track 1", "venomous called harmless", "harmless called venomous"], note, keep=keep)
    known = np.array([state is not None for state in states])[test["y"]]
    truth = np.array([state is True for state in states])[test["y"]]
    for when, value in (("summed", test["probs"][:, counted].sum(1)), ("calibrated", venom_prob(test["probs"], risk["1-2-5-2"]))):
        losses[when] = float(-np.log(np.where(truth, value, 1 - value)[known].clip(1e-6)).mean())
        write(f"snakes_ph, venom {when}", [losses[when]], "log loss of 'is it venomous'", f"chosen: {risk['1-2-5-2']['calibration']['kind']}; {note}", keep=keep)
    fitted = fit_taxonomy(found["oof"], found["y"], label_ranks(labels, facts), promise=PROMISE)
    print(*fitted["levels"], sep="\n", flush=True)
    tree, warned = [], []
    add_tree(tree, test["probs"], test["y"], labels, fitted)
    write_tree("snakes_ph", tree, note, keep=keep)
    add_warnings(warned, test["probs"], lac_sets(found["oof"], found["y"], test["probs"]), test["y"], labels, states)
    write_warnings("snakes_ph", warned, note, keep=keep)
    write_lines("snakes_ph", [(states[target], risk_level(row, risk["1-2-5-2"])["level"]) for row, target in zip(test["probs"], test["y"])], f"species of which nothing is known left out; {note}", keep=keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--choose", action="store_true", help="Score seeds 0 to 2, and snakes_ph out of fold on `train`; record nothing.")
    parser.add_argument("--sets", nargs="+", default=["drawn", "snakes_ph"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="Sides of the drawn photos in pixels.")
    args = parser.parse_args()
    for size in SIZES:
        (args.folder / f"{size}").mkdir(parents=True, exist_ok=True)
    if "drawn" in args.sets:
        for size in args.sizes:
            score_drawn(args.folder, [0, 1, 2] if args.choose else [3, 4, 5, 6, 7], size, keep=not args.choose)
    if "snakes_ph" in args.sets:
        score_snakes(args.folder, keep=not args.choose)


if __name__ == "__main__":
    main()
