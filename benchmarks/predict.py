"""Serving one model: from the process's start to its first answer, one photo at a time, and a thousand of them.

    python benchmarks/predict.py [--quick] [--size 224] [--note WORDS]

Arms: `Predictor` with the bundle's graph, `Predictor` with torch, and fastai's `load_learner` with `learn.predict`; the same network (lite0), the same drawn photos.
Cold starts are processes of their own, in turns; the rest is interleaved in one process. Rows go to results.csv."""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import record

ARCH, SPECIES = "tf_efficientnet_lite0", ["Micrurus fulvius", "Vipera berus", "Natrix natrix", "Crotalus adamanteus"]
REPO = Path(__file__).resolve().parent.parent
COLD = {
    "graph": "from snakecls.deploy.predict import Predictor; print(Predictor({bundle!r}).predict({photo!r})[0].label)",
    "torch": "from snakecls.deploy.predict import Predictor; print(Predictor({bundle!r}, engine='torch').predict({photo!r})[0].label)",
    "fastai": "from fastai.vision.all import load_learner; print(load_learner({pickle!r}).predict({photo!r})[0])",
}


def draw_photos(folder: Path, n: int) -> list[str]:
    "Draw photos of 533 x 400 pixels, as JPEG, in a folder for each species."
    from PIL import Image

    from snakecls.data.demo.drawing import draw_snake

    paths = []
    for i in range(n):
        name = SPECIES[i % len(SPECIES)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        paths.append(str(folder / name / f"{i:04}.jpg"))
        draw_snake(name, seed=i % 40, size_px=533).resize((533, 400), Image.Resampling.BILINEAR).save(paths[-1], quality=92)
    return paths


def write_models(folder: Path, photos: list[str], size: int) -> tuple[str, str]:  # bundle, export.pkl
    "Write the network as a bundle and, by plain fastai, as export.pkl."
    from fastai.vision.all import ImageDataLoaders, Resize, vision_learner

    from snakecls.data.photos import PhotoSpec
    from snakecls.models.backbones import create_backbone
    from snakecls.models.bundle import write_bundle
    from snakecls.models.bundle_info import BundleInfo

    model = create_backbone(ARCH, len(SPECIES)).eval()
    described = {"library": "timm", "arch": ARCH, "kwargs": {"num_classes": len(SPECIES)}}
    info = BundleInfo(model=described, labels=sorted(SPECIES), photo=PhotoSpec(size, mean=model.backbone_info.mean, std=model.backbone_info.std))
    bundle = write_bundle(folder / "bundle", model, info, say=print)
    dls = ImageDataLoaders.from_folder(Path(photos[0]).parent.parent, valid_pct=0.2, seed=0, item_tfms=Resize(size), bs=32, num_workers=0)
    learn = vision_learner(dls, ARCH, pretrained=False)
    learn.path = folder
    learn.export("export.pkl")
    return str(bundle), str(folder / "export.pkl")


def cold_starts(bundle: str, pickle: str, photo: str, rounds: int) -> dict[str, list[float]]:  # seconds
    "Start processes in turns, after a first turn that fills the disk's cache."
    seconds: dict[str, list[float]] = {name: [] for name in COLD}
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))}
    for turn in range(1 + rounds):
        for name, code in COLD.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", "-c", code.format(bundle=bundle, pickle=pickle, photo=photo)], check=True, capture_output=True, env=env)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def interleaved(arms: dict[str, Callable[[str], object]], photos: list[str]) -> dict[str, list[float]]:  # ms of each photo
    "Ask every arm each photo."
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn, photo in enumerate([*photos[:3], *photos]):
        for name, ask in arms.items():
            start = time.perf_counter()
            ask(photo)
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def throughput(arms: dict[str, Callable[[list[str]], object]], photos: list[str], rounds: int) -> dict[str, list[float]]:  # photos a second
    "Let every arm answer all photos, in turns."
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, ask in arms.items():
            start = time.perf_counter()
            ask(photos)
            rates[name].append(len(photos) / (time.perf_counter() - start))
    return rates


def write_rows(what: str, values: dict[str, list[float]], unit: str, note: str, *, lower: bool) -> None:
    "Write a row for each arm, with how many times better than fastai it is."
    theirs = statistics.median(values["fastai"])
    for name, own in values.items():
        times = theirs / statistics.median(own) if lower else statistics.median(own) / theirs
        tail = f"; p99 {np.percentile(own, 99):.1f}" if what == "latency" else ""
        record("predict", f"{what} {name}", own, unit=unit, note=f"{times:.1f} x better than fastai{tail}{'; ' + note if note else ''}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one cold start, ten photos one by one, forty at once")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    starts, n_single, n_many, rounds = (1, 10, 40, 1) if args.quick else (5, 200, 1000, 3)
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder) / "photos", n_many)
        bundle, pickle = write_models(Path(folder), photos, args.size)
        write_rows("cold start", cold_starts(bundle, pickle, photos[0], starts), "s", args.note, lower=True)
        from fastai.vision.all import load_learner

        from snakecls.deploy.predict import Predictor

        graph, torch, learn = Predictor(bundle), Predictor(bundle, engine="torch"), load_learner(pickle)
        if graph.graph is None:
            raise SystemExit("the bundle has no graph; install onnx and onnxruntime.")
        learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])  # a bar for every photo is not what is compared
        single = {"graph": graph.predict, "torch": torch.predict, "fastai": learn.predict}
        write_rows("latency", interleaved(single, photos[:n_single]), "ms", args.note, lower=True)
        many = {"graph": lambda paths: graph.probs(paths, bs=32), "torch": lambda paths: torch.probs(paths, bs=32),
                "fastai": lambda paths: [learn.predict(path) for path in paths[: len(paths) // 5]],
                "fastai in batches": lambda paths: learn.get_preds(dl=learn.dls.test_dl(paths, bs=32, num_workers=0))}
        rates = throughput(many, photos, rounds)
        rates["fastai"] = [rate / 5 for rate in rates["fastai"]]  # a fifth of the photos was asked, as one takes as long as another
        write_rows("throughput", rates, "photos/s", args.note, lower=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
