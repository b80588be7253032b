"""How long opening a photo takes, beside another commit: interleaved in one process, so that both see the same machine.

    python benchmarks/decoding.py --photos FOLDER --before 844164d
"""
import argparse
import importlib
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

from common import record
from PIL import Image

from snakecls.data.photos import PhotoSpec, open_photo, prepare_photo, prepare_shown

ROOT = Path(__file__).parent.parent


def load_before(commit: str, folder: Path):
    "Import `data.photos` of another commit beside this one's."
    archive = folder / "before.tar"
    archive.write_bytes(subprocess.run(["git", "archive", commit, "snakecls"], cwd=ROOT, check=True, capture_output=True).stdout)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "snakecls"}
    for name in ours:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    module = importlib.import_module("snakecls.data.photos")
    assert Path(module.__file__).is_relative_to(folder)
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "snakecls"]:
        del sys.modules[name]
    sys.modules.update(ours)
    return module


def large(photos: list[Path], folder: Path, n: int) -> list[Path]:
    "Real photos enlarged to 4000 x 3000, as a phone writes them."
    files = []
    for number, path in enumerate(photos[:n]):
        files.append(folder / f"{number}.jpg")
        open_photo(path).resize((4000, 3000), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def measure(arms: dict, photos: list[Path], repeats: int) -> dict[str, list[float]]:  # arm -> ms of each photo, the least of its repeats
    "Time each photo with every arm in turn, in an order that changes."
    times = {name: [] for name in arms}
    for path in photos:
        best = dict.fromkeys(arms, float("inf"))
        for _ in range(repeats):
            for name in random.sample(list(arms), len(arms)):
                start = time.perf_counter()
                arms[name](path)
                best[name] = min(best[name], time.perf_counter() - start)
        for name, seconds in best.items():
            times[name].append(1000 * seconds)
    return times


def main() -> None:
    "Measure and record."
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", required=True)
    parser.add_argument("--before", default="844164d")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    random.seed(0)
    found = sorted(path for path in Path(args.photos).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    photos = random.sample(found, min(200, len(found)))
    with tempfile.TemporaryDirectory() as scratch:
        before, spec = load_before(args.before, Path(scratch)), PhotoSpec(224)
        old_spec = before.PhotoSpec(224)
        for what, files in (("real", photos), ("12 MP", large(photos, Path(scratch), 20))):
            arms = {f"open {args.before}": before.open_photo, "open now": open_photo, f"prepare {args.before}": lambda path: before.prepare_photo(path, old_spec),
                    "prepare now": lambda path: prepare_photo(path, spec), "prepare to be named now": lambda path: prepare_shown(path, spec)}
            times = measure(arms, files, args.repeats)
            for name, values in times.items():
                first = times[f"{name.split()[0]} {args.before}"]
                ratio = sorted(now / then for now, then in zip(values, first))[len(values) // 2]
                record("decoding", f"{what}, {name}", values, unit="ms", note=f"JPEG, the least of {args.repeats} times each, 224 px; median of the ratio to {args.before} photo by photo {ratio:.3f}")


if __name__ == "__main__":
    main()
