"""What share of this machine's measured peak the engine, a training step and the loader reach: interleaved in one process.

    python benchmarks/roofline.py            # lite0 at 224 px, JPEG of 400 x 533, 5 rounds
    python benchmarks/roofline.py --quick    # 2 rounds, nothing is recorded

Peaks, all measured here: matrix products of 2,048 x 2,048 in fp32 and bf16, copying 256 MB, and Pillow's decoding on one core.
A network's operations are those of its convolutions and linear layers (a multiplication and an addition are two; torch's FlopCounterMode must agree);
what trains computes them three times, for its answer, its weights' gradients and those that it hands down. A network's roofline (Williams et al., 2009) is the
time in which no layer could end sooner: each convolution takes the longer of its operations at the peak, and its input, output and weights at the speed of
copying; layers between them are thought of as fused and free. Kernels that keep a map in the cache can be faster than that, so a share may exceed 1.
"""
import argparse
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import record
from loader import draw_files, own_loader, without_cache
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from snakecls.data.photos import PhotoSpec
from snakecls.models.backbones import create_backbone
from snakecls.models.engine import draw_batch, make_engine, multiplies_bf16
from snakecls.models.freezing import freeze_groups

ARCH, SIZE, BS, BS_TRAIN, N_CLASSES, SIDE = "tf_efficientnet_lite0", 224, 32, 16, 10, 2048


@dataclass
class Layer:
    "What a convolution or linear layer does to a batch."
    flops: float
    moved: float  # bytes in 32 bits
    trains: bool


def list_layers(model: nn.Module, batch: torch.Tensor) -> list[Layer]:
    "Count each layer's operations and what it has to move."
    layers: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        a_row = module.weight.numel() / module.weight.shape[0]
        moved = 4.0 * (inputs[0].numel() + output.numel() + module.weight.numel())
        layers.append(Layer(2.0 * a_row * output.numel(), moved, module.weight.requires_grad))

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    with torch.inference_mode():
        model(batch)
    for hook in hooks:
        hook.remove()
    return layers


def count_flops(run: Callable[[], object]) -> int:
    "Count what torch computes."
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def seconds(run: Callable[[], object], repeats: int = 1) -> float:
    "Time a call."
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def read_all(loader: Iterable) -> None:
    "Read an epoch."
    for _ in loader:
        pass


def peaks() -> dict[str, Callable[[], float]]:  # each gives operations, bytes or photos a second
    "Make what measures the machine."
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    low = (a.bfloat16(), b.bfloat16())
    source, target = torch.ones(64 << 20), torch.empty(64 << 20)  # 256 MB each
    stream = io.BytesIO()
    grain = np.random.default_rng(0).normal(0, 6, (533, 400, 1))
    smooth = np.asarray(Image.radial_gradient("L").convert("RGB").resize((400, 533)), float)
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    has_bf16 = multiplies_bf16(torch.device("cpu"))  # else it takes minutes
    return {
        "matmul fp32": lambda: 2 * SIDE**3 / seconds(lambda: a @ b, 4),
        **({"matmul bf16": lambda: 2 * SIDE**3 / seconds(lambda: low[0] @ low[1], 4)} if has_bf16 else {}),
        "copying": lambda: 2 * 4 * source.numel() / seconds(lambda: target.copy_(source), 4),  # read and written
        "decoding, one core": lambda: 1 / seconds(lambda: Image.open(io.BytesIO(stream.getvalue())).load(), 50),
    }


def training_steps() -> dict[str, tuple[Callable[[], object], float]]:  # a step, and its operations
    "Make steps of fine-tuning: of the whole network, and of its upper half."
    steps = {}
    x, y = torch.randn(BS_TRAIN, 3, SIZE, SIZE).to(memory_format=torch.channels_last), torch.randint(0, N_CLASSES, (BS_TRAIN,))
    for name, freeze in (("training step, whole network", "none"), ("training step, blocks 1 to 4 frozen", 4)):
        for precision in ("fp32", "bf16") if multiplies_bf16(torch.device("cpu")) else ("fp32",):
            model = create_backbone(ARCH, N_CLASSES).to(memory_format=torch.channels_last).train()
            freeze_groups(model, freeze)

            def step(model: nn.Module = model, precision: str = precision) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                model.zero_grad()

            trained = sum(layer.flops for layer in list_layers(model, x) if layer.trains)
            steps[f"{name}, {precision}"] = step, sum(layer.flops for layer in list_layers(model, x)) + 2 * trained
    return steps


def main() -> None:
    "Measure and record."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    rounds, n = (2, 64) if args.quick else (5, 512)
    model = create_backbone(ARCH, N_CLASSES).eval()
    photo = PhotoSpec(SIZE, mean=model.backbone_info.mean, std=model.backbone_info.std)
    batch = draw_batch((SIZE, SIZE), photo, BS)
    layers = list_layers(model, torch.zeros(BS, 3, SIZE, SIZE))
    flops = sum(layer.flops for layer in layers)
    counted = count_flops(lambda: model(torch.zeros(BS, 3, SIZE, SIZE)))
    assert abs(flops / counted - 1) < 0.01, (flops, counted)
    machine, steps = peaks(), training_steps()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        engine = make_engine(model, SIZE, n_photos=100_000, photo=photo, cache=Path(scratch) / "graphs")
        table = draw_files(Path(scratch) / "photos", (400, 533), n)
        for _ in range(rounds + 1):  # the first one warms up
            for name, peak in machine.items():
                found.setdefault(name, []).append(peak())
            found.setdefault("engine", []).append(BS / seconds(lambda: engine.logits(batch), 4))
            for name, (step, _) in steps.items():
                found.setdefault(name, []).append(BS_TRAIN / seconds(step))
            cached, plain = own_loader(table, 0), without_cache(table, 0)
            found.setdefault("loader, first epoch, no cache", []).append(n / seconds(partial(read_all, plain)))
            found.setdefault("loader, first epoch", []).append(n / seconds(partial(read_all, cached)))
            found.setdefault("loader, later epochs", []).append(n / seconds(partial(read_all, cached)))
    found = {name: values[1:] for name, values in found.items()}
    fp32, moving, decoding = (np.array(found[name]) for name in ("matmul fp32", "copying", "decoding, one core"))
    cores = torch.get_num_threads()
    limit = np.array([sum(max(layer.flops / peak, layer.moved / speed) for layer in layers) for peak, speed in zip(fp32, moving)])
    bytes_of_photo = 3 * SIZE * SIZE * (1 + 4 + 4)  # bytes in, floats written by the warp, and once more by normalising
    shares = {
        f"engine ({engine.name}), of matmul fp32": np.array(found["engine"]) * flops / BS / fp32,
        f"engine ({engine.name}), of its roofline": np.array(found["engine"]) * limit / BS,
        **{f"{name}, of matmul {name[-4:]}": np.array(found[name]) * operations / BS_TRAIN / np.array(found[f"matmul {name[-4:]}"])
           for name, (_, operations) in steps.items()},
        **{f"{name}, of decoding on {cores} cores": np.array(found[name]) / (cores * decoding) for name in found if name.startswith("loader, first")},
        "loader, later epochs, of copying": np.array(found["loader, later epochs"]) * bytes_of_photo / moving,
    }
    notes = {"engine": f"{flops / BS / 1e9:.3f} GFLOP a photo", "copying": "bytes read and written, a second"}
    for name, values in found.items():
        scaled = [value / 1e9 for value in values] if name.startswith(("matmul", "copying")) else values
        unit = {"m": "GFLOP/s", "c": "GB/s"}[name[0]] if name.startswith(("matmul", "copying")) else "photos/s"
        tell("roofline", name, scaled, unit, notes.get(name, ""), args.quick)
    for name, values in shares.items():
        tell("roofline", f"share: {name}", values.tolist(), "ratio", "", args.quick)


def tell(benchmark: str, arm: str, values: list[float], unit: str, note: str, quick: bool) -> None:
    "Print a figure, and record it."
    if quick:
        print(f"{arm}: {statistics.median(values):.3g} {unit} ({min(values):.3g} to {max(values):.3g})")
    else:
        record(benchmark, arm, values, unit=unit, note=note)


if __name__ == "__main__":
    main()
