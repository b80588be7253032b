"""Predict the same photos with the same bundle by two installations and compare: compare_lanes.py DEMO_FOLDER SNAKECLS_A SNAKECLS_B."""
import json
import subprocess
import sys
from pathlib import Path

folder, *commands = sys.argv[1:]
bundle = next(Path(folder).glob("runs/*/best"))
photos = sorted(map(str, Path(folder).glob("data/photos/**/*.jpg")))[:10]
first, second = (
    json.loads(subprocess.run([command, "predict", *photos, "--bundle", str(bundle), "--json"], check=True, capture_output=True, text=True).stdout)
    for command in commands
)
worst = 0.0
for a, b in zip(first, second, strict=True):
    assert [guess["label"] for guess in a["top"]] == [guess["label"] for guess in b["top"]], (a, b)
    worst = max(worst, *(abs(x["prob"] - y["prob"]) for x, y in zip(a["top"], b["top"])))
assert worst < 1e-5, worst
print(f"{len(first)} photos: the same answers in both installations (largest difference {worst:.1e})")
