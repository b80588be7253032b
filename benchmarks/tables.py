"""A table of a million photos: read, filtered to the top classes, split, written down. No photo is opened. Usage: python benchmarks/tables.py [ROWS] [REPEATS]

The photos are empty files in as many folders as there are classes, so looking them up costs what it does in earnest."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = 1784  # as in SnakeCLEF 2023; the most frequent has 2,000 times the photos of the rarest

WORK = """
import json, resource, sys, time
start = time.perf_counter()
from snakecls.data.manifest import read_manifest, write_manifest
from snakecls.data.splits import split_table
from snakecls.data.tables import filter_classes, load_table
import pandas as pd
steps = {"import": time.perf_counter() - start}
def step(name, function):
    start = time.perf_counter()
    result = function()
    steps[name] = time.perf_counter() - start
    return result
source, manifest, several = sys.argv[1], sys.argv[2], sys.argv[3] == "labels"
options = {"multi_label": True, "separator": " ", "unlabelled": "negative"} if several else {}
if source.startswith("frame:"):
    source = pd.read_parquet(source[6:])
    options["root"] = sys.argv[4]
table = step("load", lambda: load_table(source, **options))
n = len(table)
table = step("filter", lambda: filter_classes(table, top_classes=200, **({"unlabelled": "drop"} if several else {})))
table = step("split", lambda: split_table(table, test=0.1, group="observation_id"))
step("manifest", lambda: write_manifest(table, manifest))
assert len(read_manifest(manifest)) == len(table) and table["split"].nunique() == 3
print(json.dumps({"rows": n, "kept": len(table), "steps": steps, "seconds": sum(steps.values()), "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""


def make_tables(folder: Path, rows: int) -> None:
    "Write the empty photos and the tables that name them."
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    weights = 1 / (np.arange(CLASSES) + 1)
    classes = rng.choice(CLASSES, rows, p=weights / weights.sum())
    names = np.array([f"Genus{i // 5} species{i}" for i in range(CLASSES)])
    paths = [f"photos/{number:04}/{i:07}.jpg" for i, number in enumerate(classes)]
    for number in range(CLASSES):
        (folder / f"photos/{number:04}").mkdir(parents=True)
    for path in paths:
        (folder / path).touch()
    observations = [f"HM {i // 2}-{number}" for i, number in enumerate(classes)]
    table = pd.DataFrame({"observation_id": observations, "binomial_name": names[classes], "image_path": paths, "class_id": classes})
    table.to_csv(folder / "photos.csv", index=False)
    table.to_parquet(folder / "photos.parquet")
    second = rng.choice(CLASSES, rows, p=weights / weights.sum())
    pd.DataFrame({"ImageID": paths, "Labels": [f"{a} {b}" for a, b in zip(classes, second)], "observation_id": observations}).to_csv(folder / "labels.csv", index=False)


def main(rows: int = 1_000_000, repeats: int = 3) -> None:
    from common import record

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tables(folder, rows)
        sources = {"CSV": "photos.csv", "Parquet": "photos.parquet", "DataFrame": "frame:photos.parquet", "several labels, CSV": "labels.csv"}
        for arm, source in sources.items():
            given = f"frame:{folder / source[6:]}" if source.startswith("frame:") else str(folder / source)
            command = [sys.executable, "-W", "ignore", "-c", WORK, given, folder / "manifest.parquet", "labels" if source == "labels.csv" else "label", folder]
            done = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)]
            steps = ", ".join(f"{step} {min(one['steps'][step] for one in done):.1f}" for step in done[0]["steps"])
            note = f"{rows:,} rows, {done[0]['kept']:,} of the 200 most frequent classes; fewest seconds: {steps}"
            record("tables", f"{arm}, {rows:,} rows", [one["seconds"] for one in done], unit="seconds", note=note)
            record("tables", f"{arm}, {rows:,} rows, largest process", [one["GiB"] for one in done], unit="GiB", note=note)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
