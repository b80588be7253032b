"""Who is warned, and how loudly? The page's warnings before (one red sign) and now (loud, quiet, none), on photos that nothing was fitted on.

Usage: python benchmarks/warnings.py FOLDER [--sets drawn snakes_ph] [--few 12]
The photos, the probe and its out-of-fold answers are those of `decisions.py`, whose features in FOLDER are used again. Everything that decides (set of 90 %, costs
1-2-5-2, tested ratings) is fitted on out-of-fold answers of the training photos. `few`: the probe learns from FEW photos of each species, the case in which a network
can be sure and wrong. Before: a red sign where the risk is not 'unlikely', where the probabilities of venomous species add up to 5 %, or where one is in the set.
Nothing was chosen here: 5 % stood before. Intervals are Wilson's, of photos."""
import argparse
from pathlib import Path

import numpy as np
from common import record
from decisions import META, SPECIES, answer, label_states, load_drawn, load_snakes, pd, snakeclef_facts

from snakecls.evaluate.conformal import fit_conformal
from snakecls.evaluate.decide import decide
from snakecls.evaluate.risk import fit_risk
from snakecls.stats import share_interval

OPEN = 0.05


def take_few(data: dict[str, np.ndarray], few: int, seed: int) -> dict[str, np.ndarray]:
    "Keep so many training photos of each species, whole groups first, and all test photos."
    rng, kept = np.random.default_rng(seed), data["test"].copy()
    for label in np.unique(data["label"]):
        own = np.flatnonzero(~data["test"] & (data["label"] == label))
        kept[rng.permutation(own)[:few]] = True
    return {key: value[kept] for key, value in data.items()}


def show(data: dict[str, np.ndarray], states_of) -> list[tuple[bool, bool, str]]:  # of each test photo: dangerous, a red sign before, level now
    "Answer the test photos as a person sees it."
    found = answer(data)
    labels, test = found["labels"], found["test"]
    danger, states = states_of(labels)
    trust = {"conformal": {"binomial": fit_conformal(found["oof"], found["y"], coverage=0.9)},
             "risk": fit_risk(found["oof"], found["y"], states, danger=danger, groups=found["groups"])}
    counted, rows = np.array([state is not False for state in states]), []
    for probs, target in zip(test["probs"], test["y"]):
        made = decide(probs, labels, trust, target="binomial")
        red = made.risk["level"] != "unlikely" or max(made.risk["venom_prob"], probs[counted].sum()) >= OPEN or made.lookalike is not None
        if states[target] is not None:
            rows.append((states[target], bool(red), made.alarm["level"]))
    return rows


def write(title: str, rows: list, note: str) -> None:
    "Record the shares of photos that get each sign."
    dangerous, others = ([row for row in rows if row[0] is kind] for kind in (True, False))
    for name, own, hit in (
        ("venomous photos without any warning, before", dangerous, lambda row: not row[1]), ("venomous photos without any warning, now", dangerous, lambda row: row[2] == "none"),
        ("venomous photos with a loud warning, before", dangerous, lambda row: row[1]), ("venomous photos with a loud warning, now", dangerous, lambda row: row[2] in ("possible", "likely")),
        ("harmless photos with a loud warning, before", others, lambda row: row[1]), ("harmless photos with a loud warning, now", others, lambda row: row[2] in ("possible", "likely")),
        ("harmless photos with a quiet warning, now", others, lambda row: row[2] == "open"),
    ):
        n_hit = sum(map(hit, own))
        low, high = share_interval(n_hit, len(own))
        print(f"{title}, {name}: {n_hit} of {len(own)} ({low:.3f} to {high:.3f})", flush=True)
        record("warnings", f"{title}, {name}", [round(n_hit / len(own), 4)], unit="share", note=f"{n_hit} of {len(own)} ({low:.3f} to {high:.3f}); {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["drawn", "snakes_ph"])
    parser.add_argument("--few", type=int, default=12)
    args = parser.parse_args()
    (args.folder / "160").mkdir(parents=True, exist_ok=True)
    venomous = lambda labels: ("venomous", [SPECIES[name].venomous for name in labels])  # noqa: E731
    if "drawn" in args.sets:
        whole = {seed: load_drawn(args.folder, seed, 160) for seed in range(3, 8)}
        for few in (0, args.few):
            rows = [row for seed, data in whole.items() for row in show(take_few(data, few, seed) if few else data, venomous)]
            learned = f"{few} training photos a species" if few else "60 training photos a species"
            write(f"drawn, {learned}", rows, "12 species, test photos of seeds 3 to 7, probe on tf_efficientnet_lite0 at 160 px")
    if "snakes_ph" in args.sets:
        data = load_snakes(args.folder)

        def states_of(labels: list[str]) -> tuple[str, list]:
            noted = snakeclef_facts(META / "snakeclef2023_train_hm.csv", venom=META / "snakeclef2023_venomous_status.csv", families=META / "snakeclef2021_train_sample.csv",
                                    labels=labels, from_genus=True)
            by_name = {name: {key: None if pd.isna(value) else value for key, value in row.items()} for name, row in noted.table.set_index("binomial").to_dict("index").items()}
            return label_states(labels, {label: by_name[label.rpartition("(")[2].rstrip(")")] for label in labels})

        for few in (0, args.few):
            learned = f"{few} training photos a species" if few else "all training photos"
            write(f"snakes_ph, {learned}", show(take_few(data, few, 0) if few else data, states_of),
                  "14 species, the folder val, which was read before and is no longer unseen; probe on tf_efficientnet_lite0 at 224 px")


if __name__ == "__main__":
    main()
