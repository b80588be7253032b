"""Answering many photos: what grows with their number, and what batches bring.

    python benchmarks/answers.py [--quick] [--note WORDS]

Memory is the peak of a process of its own (VmHWM): `snakecls predict TABLE --csv` over a table that names forty drawn photos again and again, at two
lengths, and listings alone, as they are and as they were (`given_photos`, a list). Speed: `stream_answers`, as it is and in batches, against one photo at a time, in turns.
Rows go to results.csv."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

from common import record

REPO = Path(__file__).resolve().parent.parent
PEAK = """
import json, sys, time
def status(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))
"""
ANSWER = PEAK + """
from snakecls.data.given import iter_photos
from snakecls.workflow.streamed import Listing, stream_answers
warm = stream_answers(Listing(iter_photos(["photos"])), sys.argv[2], csv="warm.csv")
before, start = status("VmHWM"), time.perf_counter()
tally = stream_answers(Listing(iter_photos([sys.argv[1]]), folder="."), sys.argv[2], csv="said.csv")
print(json.dumps({"before": before, "peak": status("VmHWM"), "seconds": time.perf_counter() - start, "n": tally.n}))
"""
LIST = PEAK + """
import pandas, pyarrow.csv, pyarrow.parquet
from snakecls.data.given import given_photos, iter_photos
from snakecls.workflow.streamed import Listing
given_photos(["photos"])
before, start = status("VmHWM"), time.perf_counter()
photos = Listing(iter_photos([sys.argv[1]]), folder=".") if sys.argv[2] == "listing" else given_photos([sys.argv[1]])
print(json.dumps({"before": before, "peak": status("VmHWM"), "seconds": time.perf_counter() - start, "n": len(photos)}))
"""


def run(code: str, *words: object, folder: Path) -> dict:
    "Run a program in a process of its own."
    env = os.environ | {"PYTHONPATH": str(REPO), "SNAKECLS_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *map(str, words)], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def prepare(folder: Path) -> None:
    "Draw forty photos, and write a small model and a usual one."
    import torch

    from snakecls.data.demo.drawing import draw_snake
    from snakecls.models.bundle import write_bundle
    from snakecls.models.networks import build_network

    (folder / "photos").mkdir()
    for i in range(40):
        draw_snake(["Vipera berus", "Natrix natrix"][i % 2], seed=i, size_px=320).save(folder / f"photos/{i:02}.jpg", quality=92)
    for name, arch, size in (("small", "test_resnet", 64), ("usual", "tf_efficientnet_lite0", 224)):
        torch.manual_seed(0)
        described = {"library": "timm", "arch": arch, "kwargs": {"num_classes": 2}}
        facts = {"Vipera berus": {"venomous": True}, "Natrix natrix": {"venomous": False}}
        write_bundle(folder / name, build_network(**described), {"model": described, "labels": list(facts), "photo": {"size": size}, "label_facts": facts})


def write_names(folder: Path, n: int) -> Path:
    "Write a table that names the photos again and again."
    file = folder / f"{n}.csv"
    file.write_text("path\n" + "".join(f"photos/{i % 40:02}.jpg\n" for i in range(n)))
    return file


def measure_answers(folder: Path, lengths: tuple[int, int], rounds: int, note: str) -> None:
    "Answer tables of two lengths, in turns."
    found: dict[int, list[dict]] = {n: [] for n in lengths}
    for _ in range(rounds):
        for n in lengths:
            found[n].append(run(ANSWER, write_names(folder, n), "small", folder=folder))
    for n, rows in found.items():
        assert all(row["n"] == n for row in rows)
        grown = [row["peak"] - row["before"] for row in rows]
        record("answers", f"memory above that of 40 photos: {n:,} photos answered", grown, unit="MB (peak RSS)",
               note=f"test_resnet at 64 px; before {statistics.median(row['before'] for row in rows):.0f} MB; {n / statistics.median(row['seconds'] for row in rows):.0f} photos/s{note}")


def measure_listings(folder: Path, n: int, rounds: int, note: str) -> None:
    "List a long table as CSV and Parquet, and a folder, into a listing and into a list."
    import pandas as pd

    table = write_names(folder, n)
    pd.read_csv(table).to_parquet(folder / "names.parquet", index=False)
    tree, in_folder = folder / "tree", n // 10
    for i in range(in_folder // 100):
        (tree / f"{i:05}").mkdir(parents=True)
        for j in range(100):
            (tree / f"{i:05}/{j:03}.jpg").touch()
    found: dict[tuple[str, str, int], list[dict]] = {}
    for _ in range(rounds):
        for what, source, size in (("CSV", table, n), ("Parquet file", folder / "names.parquet", n), ("folder", tree, in_folder)):
            for how in ("listing", "list"):
                found.setdefault((what, how, size), []).append(run(LIST, source, how, folder=folder))
    for (what, how, size), rows in found.items():
        assert all(row["n"] == size for row in rows)
        record("answers", f"memory of listing {size:,} photos of a {what}: {'kept on the disk' if how == 'listing' else 'as a list'}",
               [row["peak"] - row["before"] for row in rows], unit="MB (peak RSS)", note=f"{statistics.median(row['seconds'] for row in rows):.1f} s{note}")


def measure_speed(folder: Path, n: int, rounds: int, note: str) -> None:
    "Answer the same photos streamed, and one by one, in turns."
    from snakecls.data.given import iter_photos
    from snakecls.deploy.predict import Predictor
    from snakecls.workflow.answers import answer_batch
    from snakecls.workflow.streamed import Listing, answer_here, stream_answers

    arms = {"streamed into a table": {}, "in batches of 16": {"engine": partial(answer_here, bs=16)}, "one at a time": None}
    for name in ("small", "usual"):
        listing = Listing(iter_photos([write_names(folder, n)]))
        rates: dict[str, list[float]] = {arm: [] for arm in arms}
        for turn in range(1 + rounds):  # the first fills caches
            for arm, how in arms.items():
                start = time.perf_counter()
                if how is None:
                    predictor = Predictor(folder / name)  # as the other arms do
                    for _, file in listing:
                        answer_batch(predictor, [file])
                else:
                    stream_answers(listing, folder / name, csv=folder / "said.csv", **how)
                if turn:
                    rates[arm].append(n / (time.perf_counter() - start))
        for arm, values in rates.items():
            gain = [own / one for own, one in zip(values, rates["one at a time"])]
            record("answers", f"{name} network, {arm}", values, unit="photos/s",
                   note=f"{n} photos of 320 x 320, loading included; against one at a time {statistics.median(gain):.2f} ({min(gain):.2f} to {max(gain):.2f}); "
                        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}{note}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the photos, once")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    note, (part, rounds) = f"; {args.note}" if args.note else "", (10, 1) if args.quick else (1, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        measure_speed(folder, 200 // part, 5 if not args.quick else 1, note)
        measure_answers(folder, (2_000 // part, 20_000 // part), rounds, note)
        measure_listings(folder, 1_000_000 // part, min(rounds, 2), note)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
