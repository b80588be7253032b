"""Photos that are no snake, or no species known: how well each score on pretrained features tells them from known photos.

Drawn photos: settings (features of length one, 128 axes, 5 % shrinkage) were chosen on seeds 0 to 2; here seeds 3 to 7 are scored. Three of twelve
species are left out of training; the score is chosen, and its threshold set, inside the training photos (`evaluate.rejection.fit_rejection`) with
drawn things that are no snakes. Known: the test photos of the other species. Others: all photos of the three species; drawn things of another
seed, kind by kind; butterflies, checkboxes and scenes, which nothing was fitted or chosen on.
snakes_ph: `train` is fitted on, `val` is the test. Each species is left out once, in five rounds; other things are scored with all species known.
Intervals: t over seeds or rounds; percentile bootstrap over photos where there is one figure.
served: the same drawn photos through a run, its bundle and `Predictor`, with the run's own tuning (70 drawn things of its seed), beside the direct way.
cost: bytes of the statistics, milliseconds of an answer. served_cost: milliseconds of a `Predictor`'s answer, and what a run pays. maps: where the network looked (`evaluate.explain`), tested by deletion.

Usage: python benchmarks/rejection.py CACHE_FOLDER [--parts drawn served ph cost served_cost maps]; the photos are in $SNAKECLS_REAL_DATA."""
import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import record
from scipy import stats

from snakecls.data.demo.draw import make_demo
from snakecls.data.photos import PhotoError, PhotoSpec, open_photo
from snakecls.data.tables import load_table
from snakecls.evaluate.rejection import OTHER_KINDS, SCORES, all_scores, draw_others, fit_rejection, passing_others, probe_answer, rejection_score, tell_apart
from snakecls.experiment.schema import ModelConfig
from snakecls.models.backbones import create_backbone
from snakecls.models.batches import PhotoBatches
from snakecls.models.features import batch_features
from snakecls.models.probe import fit_probe

PHOTOS = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
REAL = {"butterflies": "butterflies/train", "checkboxes": "checkboxes/train", "scenes": "scenes_multilabel"}
LIKE_SNAKES = ("rope", "hose", "stick")
TOGETHER = {"species left out": ["species left out"], "drawn rope, hose and stick": [f"drawn {kind}" for kind in LIKE_SNAKES],
            "other drawn things": [f"drawn {kind}" for kind in OTHER_KINDS if kind not in LIKE_SNAKES], "butterflies, checkboxes and scenes": list(REAL)}
DRAWN_PX, PH_PX = 160, 224


def features_of(name: str, size: int, cache: Path, photos: list, **more: np.ndarray) -> dict[str, np.ndarray]:  # X, and what was given
    "Compute features once, of the network that a probe is served on by default."
    file = cache / f"{name}-{size}.npz"
    if not file.exists():
        model = create_backbone("tf_efficientnet_lite0", 2, **ModelConfig().joining).eval()
        spec = PhotoSpec(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
        np.savez(file, X=batch_features(model, PhotoBatches(photos, spec), precision="fp32")[0], **more)
    return dict(np.load(file))


def read_drawn(seed: int, cache: Path) -> dict[str, np.ndarray]:
    table = pd.read_csv(make_demo(cache / f"demo{seed}", seed=seed, n_per_species=40, size_px=192) / "photos.csv")
    photos = [str(cache / f"demo{seed}" / path) for path in table["path"]]
    return features_of(f"drawn{seed}", DRAWN_PX, cache, photos, y=table["binomial"].to_numpy(str), split=table["split"].to_numpy(str), group=table["observation_id"].to_numpy(str))


def read_things(seed: int, size: int, cache: Path) -> dict[str, np.ndarray]:  # kind -> features
    kinds, photos = zip(*draw_others(140, seed=seed, size_px=192))
    found = features_of(f"things{seed}", size, cache, list(photos), y=np.array(kinds))
    return {kind: found["X"][found["y"] == kind] for kind in OTHER_KINDS}


def read_real(size: int, cache: Path) -> dict[str, np.ndarray]:  # set -> features of 300 photos
    found = {}
    for name, place in REAL.items():
        files = sorted(file for file in (PHOTOS / place).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:300]]
        found[name] = features_of(name, size, cache, [str(file) for file in chosen if is_readable(file)])["X"]
    return found


def is_readable(path: Path) -> bool:
    try:
        open_photo(path)
        return True
    except PhotoError:
        return False


def judge(X: np.ndarray, y: np.ndarray, groups: np.ndarray | None, known: np.ndarray, others: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> dict:
    "Fit on the training photos, and score what nothing was fitted on: score -> kind -> AUROC, FPR at 95 % TPR, share of others rejected."
    classes, targets = np.unique(y, return_inverse=True)
    probe = fit_probe(X, targets, n_classes=len(classes))
    fitted = fit_rejection(X, targets, groups=groups, others=drawn, answer=probe_answer(probe.C))
    scored = {}
    for kind, rows in {"": known, **others}.items():
        scored[kind] = all_scores(fitted["arrays"], rows, probe.logits(rows), alpha=fitted["alpha"]) | {"chosen": rejection_score(fitted, rows, probe.logits(rows))}
    print(" + ".join(fitted["scores"]), {k: round(v, 3) for k, v in fitted["table"][" + ".join(fitted["scores"])].items()}, flush=True)
    result = {("chosen", kind): (scored[""]["chosen"], scored[kind]["chosen"]) for kind in others}
    for score in SCORES:  # of single scores, kinds together
        for kind, parts in TOGETHER.items():
            if found := [scored[part][score] for part in parts if part in scored]:
                result[score, kind] = scored[""][score], np.concatenate(found)
    passed = {kind: float((values["chosen"] >= fitted["threshold"]).mean()) for kind, values in scored.items()}
    return {"pairs": result, "passed": passed, "scores": " + ".join(fitted["scores"])}


def write(arm: str, score: str, kind: str, pairs: list[tuple[np.ndarray, np.ndarray]], note: str) -> None:
    "Record AUROC and FPR at 95 % TPR of one score."
    for unit, measure in (("AUROC", tell_apart), ("FPR at 95 % TPR", passing_others)):
        values = [measure(*pair) for pair in pairs]
        record("rejection", f"{arm}, {kind}, {score}", values, unit=unit, note=f"{interval(values, pairs, measure)}; {note}")


def interval(values: list[float], pairs: list, measure) -> str:
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        return f"95 %: {max(0, np.mean(values) - half):.3f} to {min(1, np.mean(values) + half):.3f} (t, {len(values)} rounds)"
    rng, (known, others) = np.random.default_rng(0), pairs[0]
    draws = [measure(rng.choice(known, len(known)), rng.choice(others, len(others))) for _ in range(1000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"95 %: {low:.3f} to {high:.3f} (bootstrap, {len(known)} and {len(others)} photos)"


def run_drawn(cache: Path, seeds: list[int]) -> None:
    rounds, real = [], read_real(DRAWN_PX, cache)
    for seed in seeds:
        d = read_drawn(seed, cache)
        gone = np.isin(d["y"], np.random.default_rng(seed).permutation(np.unique(d["y"]))[:3])
        fit, test = (d["split"] != "test") & ~gone, (d["split"] == "test") & ~gone
        things = read_things(seed + 1000, DRAWN_PX, cache)
        others = {"species left out": d["X"][gone], **{f"drawn {kind}": rows for kind, rows in things.items()}, **real}
        rounds.append(judge(d["X"][fit], d["y"][fit], d["group"][fit], d["X"][test], others, read_things(seed, DRAWN_PX, cache)))
    note = f"seeds {seeds}, {DRAWN_PX} px, chosen inside training: {', '.join(one['scores'] for one in rounds)}"
    for score, kind in rounds[0]["pairs"]:
        write("drawn", score, kind, [one["pairs"][score, kind] for one in rounds], note if score == "chosen" else f"seeds {seeds}")
    for kind in rounds[0]["passed"]:
        record("rejection", f"drawn, {kind or 'known'}, chosen", [one["passed"][kind] for one in rounds], unit="share above the threshold", note="set for 95 % of held-out training photos")


def serve_round(seed: int, cache: Path, gone: np.ndarray) -> Path:  # the bundle
    "Train a probe by an experiment on the drawn photos of the species that are known."
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow.run import run_experiment

    table = pd.read_csv(cache / f"demo{seed}" / "photos.csv")
    known = table[~table["binomial"].isin(gone)].assign(path=lambda t: [str((cache / f"demo{seed}" / path).resolve()) for path in t["path"]])
    known.to_csv(cache / f"known{seed}.csv", index=False)
    values = {"name": f"served{seed}", "data": {"source": str(cache / f"known{seed}.csv"), "target": "binomial", "group": "observation_id"}, "train": {"refit": True},
              "schedule": [{"size": DRAWN_PX, "epochs": 0, "head": "probe"}], "track": []}
    return run_experiment(make_experiment(values), root=cache / "runs", logbook=None, say=print).run / "best"


def run_served(cache: Path, seeds: list[int]) -> None:
    "Score through bundle and Predictor what `run_drawn` scores on features."
    from snakecls.deploy.predict import Predictor

    values: dict[str, list[tuple[float, float]]] = {}
    passed: dict[str, list[float]] = {}
    chosen = []
    for seed in seeds:
        d, table = read_drawn(seed, cache), pd.read_csv(cache / f"demo{seed}" / "photos.csv")
        names = np.random.default_rng(seed).permutation(np.unique(d["y"]))[:3]
        gone = np.isin(d["y"], names)
        fit, test = (d["split"] != "test") & ~gone, (d["split"] == "test") & ~gone
        direct = judge(d["X"][fit], d["y"][fit], d["group"][fit], d["X"][test],
                       {"species left out": d["X"][gone], **{f"drawn {kind}": rows for kind, rows in read_things(seed + 1000, DRAWN_PX, cache).items()}}, read_things(seed, DRAWN_PX, cache))
        predictor = Predictor(serve_round(seed, cache, names))
        paths = np.array([str(cache / f"demo{seed}" / path) for path in table["path"]], object)
        kinds, photos = zip(*draw_others(140, seed=seed + 1000, size_px=192))
        sets = {"": list(paths[test]), "species left out": list(paths[gone]), **{f"drawn {kind}": [photo for one, photo in zip(kinds, photos) if one == kind] for kind in OTHER_KINDS}}
        scored = {kind: np.array([one["score"] for one in predictor.probs_known(given)[1]]) for kind, given in sets.items()}
        chosen.append(" + ".join(predictor.known["scores"]))
        for kind, scores in scored.items():
            passed.setdefault(kind, []).append(float((scores >= predictor.known["threshold"]).mean()))
            if kind:
                values.setdefault(kind, []).append((tell_apart(scored[""], scores), tell_apart(*direct["pairs"]["chosen", kind])))
        print(seed, chosen[-1], {kind: tuple(round(v, 3) for v in pairs[-1]) for kind, pairs in values.items()}, flush=True)
    for kind, pairs in values.items():
        served, plain = map(list, zip(*pairs))
        gaps = np.subtract(served, plain)
        half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
        note = f"seeds {seeds}, {DRAWN_PX} px, direct {np.mean(plain):.3f}; served less direct {gaps.mean():+.3f} ({gaps.mean() - half:+.3f} to {gaps.mean() + half:+.3f}); chosen by the runs: {', '.join(chosen)}"
        record("rejection", f"drawn, {kind}, served", served, unit="AUROC", note=note)
    for kind, shares in passed.items():
        record("rejection", f"drawn, {kind or 'known'}, served", shares, unit="share above the threshold", note="set for 95 % of held-out training photos")


def run_served_cost(cache: Path, seed: int = 3) -> None:
    "Measure what an answer through Predictor pays for it, with the network's own features and with a second graph."
    from snakecls.deploy.predict import Predictor
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow import results
    from snakecls.workflow.run import run_experiment

    d = read_drawn(seed, cache)
    table = pd.read_csv(cache / f"demo{seed}" / "photos.csv").assign(path=lambda t: [str((cache / f"demo{seed}" / path).resolve()) for path in t["path"]])
    table.to_csv(cache / "cost.csv", index=False)
    seconds, add = {}, results.add_rejection

    def timed(*args, **kwargs):
        start = time.perf_counter()
        found = add(*args, **kwargs)
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return found

    results.add_rejection = timed
    arms = {"a probe": {"schedule": [{"size": 224, "epochs": 0, "head": "probe"}]},
            "a fine-tuned network, with a second graph": {"schedule": [{"size": 224, "epochs": 1, "head": "keep", "lr": 1e-4, "freeze": "body"}], "trust": {"rejection": "always"}}}
    made = {}
    for name, change in arms.items():
        values = {"name": "cost", "data": {"source": str(cache / "cost.csv"), "target": "binomial", "group": "observation_id"}, "track": []}
        run = run_experiment(make_experiment(values | change), root=cache / "runs", logbook=None, say=print)
        made[name] = Predictor(run.run / "best")
        sizes = {file.name: file.stat().st_size / 1e6 for file in (run.run / "best").iterdir() if file.name in ("rejection.safetensors", "features.onnx")}
        record("rejection", f"end of a run, {name}", seconds[name], unit="s", note=f"{(d['split'] != 'test').sum()} photos of 12 species at 224 px, {'training features kept' if name == 'a probe' else 'pretrained features kept by the probe before; else one more pass over the photos'}, 70 drawn things, other work beside")
        record("rejection", f"files, {name}", [sum(sizes.values())], unit="MB", note=", ".join(f"{file} {size:.2f}" for file, size in sorted(sizes.items())))
    photos, times = table["path"].tolist()[:40], {}
    works = {f"{what}, {name}": ask for name, predictor in made.items() for what, ask in (("answer alone", lambda photo, p=predictor: p.probs([photo])), ("answer and whether it is known", lambda photo, p=predictor: p.probs_known([photo])))}
    for photo in [*photos[:3], *photos]:
        best = dict.fromkeys(works, np.inf)
        for _ in range(5):  # other work beside makes some of them slow
            for arm, work in works.items():
                start = time.perf_counter()
                work(photo)
                best[arm] = min(best[arm], 1000 * (time.perf_counter() - start))
        for arm, value in best.items():
            times.setdefault(arm, []).append(value)
    times = {arm: values[3:] for arm, values in times.items()}
    for arm, values in times.items():
        ratios = np.divide(values, times[f"answer alone, {arm.partition(', ')[2]}"])
        low, high = np.quantile([np.median(np.random.default_rng(i).choice(ratios, len(ratios))) for i in range(1000)], [0.025, 0.975])
        record("rejection", f"Predictor, {arm}", values, unit="ms a photo",
               note=f"{np.median(ratios):.3f} of the answer alone ({low:.3f} to {high:.3f}, median over photos, bootstrap); the best of 5 of each photo, arms in turn, 192 px photos for 224 px, other work beside")


def run_ph(cache: Path) -> None:
    table = load_table(PHOTOS / "snakes_ph").sort_values("path")
    table = table[[is_readable(path) for path in table["path"]]]
    sets = {}
    for name, part in (("ph_train", table[table["split"] == "train"]), ("ph_val", table[table["split"] != "train"])):
        sets[name] = features_of(name, PH_PX, cache, part["path"].tolist(), y=part["label"].to_numpy(str))
    train, val, drawn = sets["ph_train"], sets["ph_val"], read_things(0, PH_PX, cache)
    from nested import read_train

    groups = read_train()[2] if len(read_train()[0]) == len(train["y"]) else None
    order, rounds = np.random.default_rng(0).permutation(np.unique(train["y"])), []
    for number in range(5):
        gone = {name: np.isin(d["y"], order[number::5]) for name, d in sets.items()}
        fit = ~gone["ph_train"]
        rounds.append(judge(train["X"][fit], train["y"][fit], groups[fit] if groups is not None else None, val["X"][~gone["ph_val"]],
                            {"species left out": val["X"][gone["ph_val"]]}, drawn))
    for score, kind in rounds[0]["pairs"]:
        write("snakes_ph", score, kind, [one["pairs"][score, kind] for one in rounds], f"val, 5 rounds of 2 or 3 of 14 species, {PH_PX} px, chosen inside training: {', '.join(one['scores'] for one in rounds)}")
    for kind in ("", "species left out"):
        record("rejection", f"snakes_ph, {kind or 'known'}, chosen", [one["passed"][kind] for one in rounds], unit="share above the threshold", note="5 rounds; set for 95 % of held-out training photos")
    whole = judge(train["X"], train["y"], groups, val["X"], read_real(PH_PX, cache) | {f"drawn {kind}": rows for kind, rows in read_things(1000, PH_PX, cache).items()}, drawn)
    for (score, kind), pair in whole["pairs"].items():
        write("snakes_ph", score, kind, [pair], f"val, all species known, {PH_PX} px, chosen inside training: {whole['scores']}")
    for kind, share in whole["passed"].items():
        record("rejection", f"snakes_ph, {kind or 'known'}, chosen, all species", [share], unit="share above the threshold", note="set for 95 % of held-out training photos")


def run_cost() -> None:
    "Measure what a bundle and an answer pay: bytes of the statistics, and milliseconds of a photo."
    from snakecls.models.bundle_graph import make_graph
    from snakecls.models.bundle_info import BundleInfo
    from snakecls.models.graph import Graph
    from snakecls.models.graph_export import export_graph, read_answers
    from snakecls.models.known_file import make_features_graph, write_known

    rng, joining = np.random.default_rng(0), ModelConfig().joining
    model = create_backbone("tf_efficientnet_lite0", 50, **joining).eval()
    for n_classes in (10, 50, 772):
        X, targets = rng.normal(0, 1, (20 * n_classes, model.num_features)).astype(np.float32), np.arange(20 * n_classes) % n_classes
        from snakecls.evaluate.rejection import fit_statistics

        arrays = fit_statistics(X, targets)
        with tempfile.TemporaryDirectory() as folder:
            size = write_known(folder, arrays)["bytes"]
        record("rejection", f"statistics of {n_classes} classes, {len(X)} photos", [size / 1e6], unit="MB", note=f"{model.num_features} features, 128 axes, at most 4,000 neighbours")
    photo = PhotoSpec(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    info = BundleInfo(model={"library": "joined", "arch": "tf_efficientnet_lite0", "kwargs": {"num_classes": 50, **joining}}, photo=photo, labels=[f"s{i}" for i in range(50)])
    plain, both = Graph(export_graph(model, 224, reads=read_answers, photo=photo)), Graph(make_graph(model, info)[0])
    small_content = make_features_graph(create_backbone("tf_efficientnet_lite0", 2).eval(), PhotoSpec(size=160, mean=(0.5,) * 3, std=(0.5,) * 3))
    small, X = Graph(small_content), rng.normal(0, 1, (1000, model.num_features)).astype(np.float32)
    fitted = fit_rejection(X, np.arange(1000) % 50, answer=probe_answer(0.01))
    fitted["arrays"] = {name: array.astype(np.float32) for name, array in fitted["arrays"].items()}  # as `read_known` gives them
    record("rejection", "graph of pretrained features, 16-bit weights", [len(small_content) / 1e6], unit="MB", note="tf_efficientnet_lite0, 160 px; for fine-tuned networks")
    pixels, few, times = rng.integers(0, 256, (1, 224, 224, 3), dtype=np.uint8), rng.integers(0, 256, (1, 160, 160, 3), dtype=np.uint8), {}

    def full() -> None:
        features, logits = both.both(pixels)
        rejection_score(fitted, features, logits)

    arms = {"answer alone": lambda: plain.logits(pixels), "answer and features": lambda: both.both(pixels), "answer, features and score": full, "score alone": lambda: rejection_score(fitted, X[:1], X[:1, :50]), "second graph's features, 160 px": lambda: small.features(few)}
    for turn in range(43):
        for arm, work in arms.items():
            start = time.perf_counter()
            work()
            if turn >= 3:
                times.setdefault(arm, []).append(1000 * (time.perf_counter() - start))
    for arm, values in times.items():
        record("rejection", arm, values, unit="ms a photo", note="arms in turn, one photo at a time, 224 px unless said, other work beside")


def run_maps(cache: Path, seeds: list[int]) -> None:
    "Test the maps of where the network looked: blur what they name first, and compare with random order, photo by photo."
    from snakecls.evaluate.explain import deletion_curve
    from snakecls.models.probe import set_head

    def compare(name: str, X: np.ndarray, y: np.ndarray, photos: list[tuple[str, str]], size: int) -> list[tuple[float, float]]:
        classes, targets = np.unique(y, return_inverse=True)
        network = create_backbone("tf_efficientnet_lite0", len(classes), **ModelConfig().joining).eval()
        set_head(network, fit_probe(X, targets, n_classes=len(classes)))
        spec, rows = PhotoSpec(size=size, mean=(0.5,) * 3, std=(0.5,) * 3), []
        for path, label in photos:
            one = deletion_curve(network, path, spec, int(np.searchsorted(classes, label)))
            rows.append((one["area"], one["random_area"]))
        return rows

    def note(name: str, rows: list[tuple[float, float]], what: str) -> None:
        gains = np.array([random - area for area, random in rows])
        half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))
        record("explain", f"{name}, deletion: random less map", gains.tolist(), unit="area under the probability's curve",
               note=f"95 %: {gains.mean() - half:.3f} to {gains.mean() + half:.3f}; map {np.mean([a for a, _ in rows]):.3f}, random {np.mean([b for _, b in rows]):.3f}; {what}")

    rows = []
    for seed in seeds:
        d, place = read_drawn(seed, cache), cache / f"demo{seed}"
        table = pd.read_csv(place / "photos.csv")
        test = table[table["split"] == "test"].groupby("binomial").head(1)
        photos = [(str(place / path), label) for path, label in zip(test["path"], test["binomial"])]
        rows += compare("drawn", d["X"][d["split"] != "test"], d["y"][d["split"] != "test"], photos, DRAWN_PX)
    note("drawn", rows, f"seeds {seeds}, a test photo of each of 12 species, its true label, {DRAWN_PX} px, exact maps of the default probe")
    table = load_table(PHOTOS / "snakes_ph").sort_values("path")
    val = table[(table["split"] != "train")].groupby("label").head(3)
    train = features_of("ph_train", PH_PX, cache, [])
    note("snakes_ph", compare("ph", train["X"], train["y"], list(zip(val["path"], val["label"])), PH_PX), f"3 val photos of each of 14 species, their true labels, {PH_PX} px, exact maps of the default probe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="folder for features and drawn photos")
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 4, 5, 6, 7])
    parser.add_argument("--parts", nargs="+", default=["drawn", "served", "ph", "cost", "served_cost", "maps"])
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if "drawn" in args.parts:
        run_drawn(args.cache, args.seeds)
    if "served" in args.parts:
        run_served(args.cache, args.seeds)
    if "served_cost" in args.parts:
        run_served_cost(args.cache)
    if "ph" in args.parts:
        run_ph(args.cache)
    if "cost" in args.parts:
        run_cost()
    if "maps" in args.parts:
        run_maps(args.cache, args.seeds)


if __name__ == "__main__":
    main()
