"""Photos a second of four networks by every engine, and by the one that `make_engine` chooses: interleaved in one process.

    python benchmarks/engine.py [--quick] [--networks NAME …] [--timm benchmark.py] [--threads N] [--note WORDS]

`--timm` names the script of timm's repository, which is run as it stands on the same machine. OpenVINO is measured where it is installed.
Rows go to results.csv; it ends with 1 where another engine that agrees is more than 10 % faster than the chosen one."""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import record

from snakecls.data.photos import PhotoSpec
from snakecls.models.backbones import create_backbone
from snakecls.models.engine import TorchEngine, agrees, draw_batch, make_engine
from snakecls.models.graph import Engine
from snakecls.models.graph_export import export_graph, read_answers, read_features

NETWORKS = ["tf_efficientnet_lite0", "resnet50", "convnext_tiny", "vit_small_patch16_224"]
SIZE, N_CLASSES = 224, 10


class OpenVino(Engine):
    "The graph run by OpenVINO."

    def __init__(self, content: bytes, precision: str):
        import openvino

        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision), "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.compiled = core.compile_model(core.read_model(content), "CPU", hints)
        self.name = f"openvino {precision}"

    def logits(self, batch: np.ndarray) -> np.ndarray:
        return self.compiled([batch])[0]


def make_engines(arch: str, folder: Path) -> tuple[dict[str, Engine], Engine, float]:  # by name; the chosen one; seconds to choose
    "Make every engine of a network."
    torch.manual_seed(0)
    weights = "auto" if arch == "tf_efficientnet_lite0" else "none"
    model = create_backbone(arch, N_CLASSES, weights=weights).eval()
    spec = PhotoSpec(SIZE, mean=model.backbone_info.mean, std=model.backbone_info.std)
    start = time.perf_counter()
    chosen = make_engine(model, SIZE, n_photos=100_000, photo=spec, cache=folder)
    seconds = time.perf_counter() - start
    engines: dict[str, Engine] = {}
    for precision in ("fp32", "bf16"):
        for channels_last in (False, True):
            engine = TorchEngine(model, SIZE, photo=spec, precision=precision, channels_last=channels_last)
            engines[engine.name] = engine
    try:
        engines["onnxruntime fp32"] = make_engine(model, SIZE, n_photos=1, photo=spec, use="onnxruntime", cache=folder)
        content = export_graph(model, SIZE, reads=read_answers, photo=spec)
        engines |= {engine.name: engine for engine in (OpenVino(content, "fp32"), OpenVino(content, "bf16"))}
    except ImportError:
        print("openvino is not installed, and is left out")
    return engines, chosen, seconds


SLOW = 6  # times slower than the fastest in its warm-up: an arm is measured once more, on few photos


def takes_turns(arms: dict[str, Callable[[np.ndarray], object]], batch: np.ndarray, rounds: int) -> dict[str, list[float]]:  # photos a second
    "Time arms in turns, after a first turn of four photos that warms up; one that is far slower there has only one turn of four."
    def rate(run: Callable[[np.ndarray], object], photos: np.ndarray) -> float:
        start = time.perf_counter()
        run(photos)
        return len(photos) / (time.perf_counter() - start)

    for run in arms.values():
        rate(run, batch[:4])
    first = {name: rate(run, batch[:4]) for name, run in arms.items()}
    slow = {name for name in arms if first[name] * SLOW < max(first.values())}
    rates: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in arms}
    for name in [name for _ in range(rounds) for name in arms if name not in slow]:
        rates[name].append(rate(arms[name], batch))
    return rates


def timm_rate(script: Path, arch: str, bs: int) -> float:
    "Run timm's own benchmark of inference."
    command = [sys.executable, str(script), "--bench", "inference", "--model", arch, "--batch-size", str(bs), "--device", "cpu", "--precision", "float32",
               "--img-size", str(SIZE), "--num-warm-iter", "2", "--num-bench-iter", "8", "--num-classes", str(N_CLASSES)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "--result" not in done.stdout:
        raise SystemExit(f"timm's benchmark.py said nothing of {arch}: {done.stderr[-500:]}")
    found = json.loads(done.stdout[done.stdout.index("--result") + len("--result"):])
    return float((found[0] if isinstance(found, list) else found)["infer_samples_per_sec"])


def measure(arch: str, args: argparse.Namespace, folder: Path) -> bool:  # whether the chosen engine is the fastest, within 10 %
    "Measure a network, and write its rows."
    engines, chosen, seconds = make_engines(arch, folder)
    photo = engines["torch fp32"].photo
    batch = draw_batch((SIZE, SIZE), photo, args.bs)
    agreeing = [name for name, engine in engines.items()
                if agrees(engine, engines["torch fp32"], batch[:8], reads=read_answers if name.startswith("openvino") else read_features)]
    rates = takes_turns({name: engine.logits for name, engine in engines.items()}, batch, args.rounds)
    rates |= {"timm benchmark.py": [timm_rate(args.timm, arch, args.bs) for _ in range(2 if args.quick else 3)]} if args.timm else {}
    usual = statistics.median(rates["torch fp32"])
    for name, values in rates.items():
        told = [] if name in agreeing or name.startswith("timm") else ["does not agree"]
        told += ["chosen"] * (name == chosen.name) + [f"{statistics.median(values) / usual:.2f} x eager fp32", args.note]
        record("engine", f"{arch} {name}", values, unit="photos/s", note="; ".join(filter(None, told)))
    record("engine", f"{arch} choosing", [seconds], unit="s", note=args.note or chosen.why[:200])
    own = [name for name in agreeing if not name.startswith("openvino")]
    best = max(own, key=lambda name: statistics.median(rates[name]))
    share = statistics.median(rates[chosen.name]) / statistics.median(rates[best])
    print(f"{arch}: chosen {chosen.name}, {share:.2f} of the fastest that agrees ({best}), {statistics.median(rates[chosen.name]) / usual:.2f} x eager fp32\n")
    return share >= 0.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of eight photos")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--timm", type=Path, help="benchmark.py of timm's repository")
    parser.add_argument("--threads", type=int, help="of every engine; the machine's cores otherwise")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    args.bs, args.rounds = (8, 2) if args.quick else (32, 7)
    warnings.filterwarnings("ignore")
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        held = [measure(arch, args, Path(folder)) for arch in args.networks]
    return 0 if all(held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
