"""Graphs of 8-bit integers: which setting, chosen inside training photos; then size, speed and macro F1, judged once on photos that nothing was chosen on; pruning.

    python benchmarks/quantise.py CACHE --demo RUN [--real FOLDER] [--parts choose judge speed openvino prune]

`choose`: a probe on `tf_efficientnet_lite0` as the demonstration joins it, fitted on two thirds of the *training* photos of drawn seeds 11 and 12 and of the folder `train`
of `snakes_ph`, and a ResNet-50; the other third (of ResNet-50: photos held out of its training) says how far the answers of each setting are from those of 32 bits.
`judge`: the bundle of a run of `snakecls demo` (RUN) and the ResNet-50 on every photo of seeds 201 to 203, which were drawn for this alone. ResNet-50 begins with random weights, as there are no others to be had offline, and learns 9 epochs at 96 px. `openvino` needs openvino and nncf,
`prune` torch-pruning; none of them is required by the package. What is drawn, trained and answered stays in CACHE."""
import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import record
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

from snakecls.data.demo.draw import make_demo
from snakecls.data.demo.species import SPECIES
from snakecls.data.photos import PhotoSpec, photo_pixels
from snakecls.deploy.quantised import _Batches, _classifiers, _plain, _quietly, bundle_graph, quantise
from snakecls.experiment.schema import JOINED_BY_DEFAULT
from snakecls.models.bundle import read_bundle, write_bundle
from snakecls.models.graph import Graph
from snakecls.stats import paired_bootstrap

CHOSEN_ON, TESTED_ON, OF_RESNET, SIZE = (11, 12), (201, 202, 203), ((301, 150), (11, 100), (12, 100)), 96
ARCH = "tf_efficientnet_lite0"
REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@dataclass
class Case:
    "A network, photos to find ranges on, and photos to judge by."
    name: str
    graph: bytes
    weights: int  # bytes of its weights in 32 bits
    spec: PhotoSpec
    calibrating: list[str]
    judging: list[str]
    truth: np.ndarray  # class numbers
    bundle: Path


def drawn(cache: Path, seed: int, n: int = 100) -> pd.DataFrame:
    "Draw a seed's photos, once, and read their table."
    folder = make_demo(cache / "data" / f"s{seed}", seed=seed, n_per_species=n, n_workers=1)
    table = pd.read_csv(folder / "photos.csv")
    return table.assign(path=[str(folder / path) for path in table["path"]])


def read_pixels(paths: Iterable[str], spec: PhotoSpec) -> np.ndarray:  # (n, h, w, 3) uint8
    "Open photos as the network takes them."
    return np.stack([photo_pixels(path, spec) for path in paths])


def probe_case(cache: Path, name: str, table: pd.DataFrame, groups: np.ndarray, size: int) -> Case:
    "Fit a probe on two thirds of training photos, and hold one third out."
    from snakecls.models.backbones import create_backbone
    from snakecls.models.batches import PhotoBatches
    from snakecls.models.features import batch_features
    from snakecls.models.probe import fit_probe, set_head

    labels = sorted(table["label"].unique())
    targets = table["label"].map(labels.index).to_numpy()
    fit, held = next(StratifiedGroupKFold(3, shuffle=True, random_state=0).split(targets, targets, groups))
    paths, folder = table["path"].to_numpy(), cache / "bundles" / name
    if not folder.exists():
        model = create_backbone(ARCH, len(labels), **JOINED_BY_DEFAULT[ARCH])
        info = model.backbone_info
        spec = PhotoSpec(size=size, mean=info.mean, std=info.std, interpolation=info.interpolation)
        features = batch_features(model, PhotoBatches(list(paths[fit]), spec), precision="fp32")
        set_head(model, fit_probe(features, targets[fit], n_classes=len(labels)))
        described = {"model": {"library": info.library, "arch": info.arch, "kwargs": info.kwargs}, "labels": labels, "photo": spec.to_dict()}
        write_bundle(folder, model.eval(), described)
    opened = read_bundle(folder)
    return Case(name, bundle_graph(opened), opened.weights_path.stat().st_size, opened.info.photo, list(paths[fit]), list(paths[held]), targets[held], folder)


def snakes_tables(real: Path) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:  # training photos, their groups of copies, photos of `val`
    "Read the Philippine snakes."
    from snakecls.clean.duplicates import photo_groups
    from snakecls.clean.scan import scan_files
    from snakecls.data.tables import load_table

    table = load_table(real / "snakes_ph").reset_index(drop=True)
    groups, train = np.asarray(photo_groups(table, scan_files(table, n_workers=1))), (table["split"] == "train").to_numpy()
    return table[train].reset_index(drop=True), groups[train], table[~train].reset_index(drop=True)


def train_resnet(cache: Path, epochs: int = 9) -> Path:
    "Train a ResNet-50 from random weights on drawn photos, but those of split test; gives its bundle."
    folder = cache / "bundles" / "resnet50"
    if folder.exists():
        return folder
    import timm

    table = pd.concat([drawn(cache, seed, n) for seed, n in OF_RESNET])
    table, labels = table[table["split"] != "test"], sorted(table["binomial"].unique())
    torch.manual_seed(0)
    model = timm.create_model("resnet50", num_classes=len(labels), zero_init_last=True)
    fit_network(model, table["path"], table["binomial"].map(labels.index), epochs=epochs, lr=2e-3)
    described = {"model": {"library": "timm", "arch": "resnet50", "kwargs": {"num_classes": len(labels)}}, "labels": labels,
                 "photo": PhotoSpec(size=SIZE, resize="squash").to_dict(),
                 "label_facts": json.loads((cache / "facts.json").read_text()) if (cache / "facts.json").exists() else {}}
    return write_bundle(folder, model.eval(), described)


def fit_network(model: torch.nn.Module, paths: Iterable[str], targets: Iterable[int], *, epochs: int, lr: float) -> None:
    "Train a network in bf16, with crops and mirror images."
    spec = PhotoSpec(size=SIZE + 12, resize="squash")
    photos, targets = torch.from_numpy(read_pixels(paths, spec)).permute(0, 3, 1, 2), torch.tensor(list(targets))
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    model.to(memory_format=torch.channels_last).train()
    optimiser, n, rng = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05), len(photos) // 32, np.random.default_rng(0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=epochs * n, pct_start=0.25)
    for epoch in range(epochs):
        for rows in np.array_split(rng.permutation(len(photos))[: 32 * n], n):
            top, left = rng.integers(0, 13, 2)
            batch = photos[rows][:, :, top : top + SIZE, left : left + SIZE]
            batch = ((batch.flip(3) if rng.random() < 0.5 else batch).float() / 255 - mean) / std
            with torch.autocast("cpu", torch.bfloat16):
                answers = model(batch.contiguous(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(answers.float(), targets[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            rates.step()
            optimiser.zero_grad()
        print(f"epoch {epoch + 1} of {epochs}, loss of the last batch {loss.item():.3f}", flush=True)
    model.eval()


def resnet_case(cache: Path) -> Case:
    "Judge ResNet-50 by photos that were held out of its training."
    folder = train_resnet(cache)
    opened, table = read_bundle(folder), pd.concat([drawn(cache, seed, n) for seed, n in OF_RESNET])
    held = table[table["split"] == "test"]
    return Case("resnet50", bundle_graph(opened), opened.weights_path.stat().st_size, opened.info.photo, table.loc[table["split"] == "train", "path"].tolist(),
                held["path"].tolist(), held["binomial"].map(opened.info.labels.index).to_numpy(), folder)


def calibration(case: Case, n: int) -> list[np.ndarray]:
    "Draw photos to find ranges on, as `snakecls export` does."
    drawn_ = np.random.default_rng(0).permutation(len(case.calibrating))[:n]
    pixels = read_pixels([case.calibrating[i] for i in drawn_], case.spec)
    return [pixels[i : i + 4] for i in range(0, len(pixels), 4)]


def by_hand(graph: bytes, batches: list[np.ndarray], *, method: str = "MinMax", keep: Callable = _classifiers, prepare: bool = False,
            signed: bool = True, **how) -> bytes:
    "Quantise with another setting than the library's."
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quietly():
        made, model = Path(folder) / "made.onnx", onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
        if prepare:
            (Path(folder) / "whole.onnx").write_bytes(graph)
            quant_pre_process(str(Path(folder) / "whole.onnx"), str(Path(folder) / "ready.onnx"))
            model = onnx.load(Path(folder) / "ready.onnx")
        settings = {"per_channel": True, "reduce_range": True} | how
        quantize_static(model, made, _Batches(model.graph.input[0].name, batches), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8 if signed else QuantType.QUInt8, calibrate_method=CalibrationMethod[method], nodes_to_exclude=keep(model), **settings)
        return _plain(onnx.load(made))


def first_too(model) -> list[str]:
    "Keep the first convolution in 32 bits as well."
    return [*_classifiers(model), next(node.name for node in model.graph.node if node.op_type == "Conv")]


def depthwise_too(model) -> list[str]:
    "Keep convolutions of one channel each in 32 bits as well."
    return [*_classifiers(model), *(node.name for node in model.graph.node if node.op_type == "Conv"
                                    and any(a.name == "group" and a.i > 1 for a in node.attribute))]


SUMS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool"]  # no averages, maxima and joining of what the classifier sees, no normalisation of pixels
MEAN = {"extra_options": {"CalibMovingAverage": True, "WeightSymmetric": True}}
UNSIGNED = {"op_types_to_quantize": SUMS, "reduce_range": False, "signed": False}  # the processor's products of two unsigned bytes do not overflow
ARMS: dict[str, tuple[int, Callable[[bytes, list], bytes]]] = {  # name -> photos to find ranges on, how
    "as before: means of batches of 4, 96 photos": (96, partial(by_hand, **MEAN)),
    "32 photos": (32, partial(by_hand, **MEAN)),
    "256 photos": (256, partial(by_hand, **MEAN)),
    "the widest of 96 photos": (96, by_hand),
    "percentile 99.999, 32 photos": (32, partial(by_hand, method="Percentile", extra_options={"CalibPercentile": 99.999})),
    "entropy, 32 photos": (32, partial(by_hand, method="Entropy")),
    "weights of eight bits": (96, partial(by_hand, reduce_range=False, **MEAN)),
    "one scale for a whole weight": (96, partial(by_hand, per_channel=False, **MEAN)),
    "classifier in 8 bits too": (96, partial(by_hand, keep=lambda model: [], **MEAN)),
    "first convolution in 32 bits": (96, partial(by_hand, keep=first_too, **MEAN)),
    "depthwise in 32 bits": (96, partial(by_hand, keep=depthwise_too, **MEAN)),
    "products and sums alone": (96, partial(by_hand, op_types_to_quantize=SUMS, **MEAN)),
    "products and sums alone, weights of eight bits": (96, partial(by_hand, op_types_to_quantize=SUMS, reduce_range=False, **MEAN)),
    "products and sums alone, percentile 99.999, 32 photos": (
        32, partial(by_hand, op_types_to_quantize=SUMS, method="Percentile", extra_options={"CalibPercentile": 99.999})),
    "products and sums alone, entropy, 32 photos": (32, partial(by_hand, op_types_to_quantize=SUMS, method="Entropy")),
    "products and sums alone, weights of eight bits without sign": (96, partial(by_hand, **UNSIGNED, **MEAN)),
    "products and sums alone, weights of eight bits without sign, percentile 99.999, 32 photos": (
        32, partial(by_hand, **UNSIGNED, method="Percentile", extra_options={"CalibPercentile": 99.999, "WeightSymmetric": True})),
    "products and sums alone, first convolution in 32 bits": (96, partial(by_hand, op_types_to_quantize=SUMS, keep=first_too, **MEAN)),
    "products and sums alone, depthwise in 32 bits": (96, partial(by_hand, op_types_to_quantize=SUMS, keep=depthwise_too, **MEAN)),
    "products and sums alone, prepared by quant_pre_process": (96, partial(by_hand, op_types_to_quantize=SUMS, prepare=True, **MEAN)),
    "graph prepared by quant_pre_process": (96, partial(by_hand, prepare=True, **MEAN)),
}


def answer(graph: Graph, pixels: np.ndarray, bs: int = 16) -> np.ndarray:  # (n, n_classes) logits
    return np.concatenate([graph.logits(pixels[i : i + bs]) for i in range(0, len(pixels), bs)])


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    "Compute the mean Kullback-Leibler divergence of answers from those of 32 bits, in thousandths of a nat."
    from scipy.special import log_softmax

    p, q = log_softmax(expected, 1), log_softmax(found, 1)
    return 1e3 * float((np.exp(p) * (p - q)).sum(1).mean())


def choosing_case(cache: Path, real: Path, name: str) -> Case:
    "Make one of the cases that the setting is chosen on."
    if name == "resnet50":
        return resnet_case(cache)
    if name == "snakes_ph":
        train, groups, _ = snakes_tables(real)
        return probe_case(cache, name, train, groups, 224)
    table = drawn(cache, int(name.removeprefix("drawn_")))
    table = table[table["split"] == "train"].rename(columns={"binomial": "label"}).reset_index(drop=True)
    return probe_case(cache, name, table, table["observation_id"].to_numpy(), 256)


def choose(cache: Path, real: Path, cases: list[str], arms: list[str] | None) -> None:
    "Compare settings on photos held out of training."
    for case in (choosing_case(cache, real, name) for name in cases):
        pixels = read_pixels(case.judging, case.spec)
        expected = answer(Graph(case.graph), pixels)
        whole = f1_score(case.truth, expected.argmax(1), average="macro")
        batches = calibration(case, max(n for n, _ in ARMS.values()))
        for name, (n, make) in ARMS.items():
            if arms and name not in arms:
                continue
            start = time.perf_counter()
            try:
                content = make(case.graph, batches[: n // 4])
            except Exception as e:  # noqa: BLE001  (whatever ONNX Runtime makes of a setting that it cannot do for this network)
                print(f"{case.name}, {name}: {type(e).__name__}: {str(e)[:200]}", flush=True)
                continue
            found = answer(Graph(content), pixels)
            same = float((found.argmax(1) == expected.argmax(1)).mean())
            lost = f1_score(case.truth, found.argmax(1), average="macro") - whole
            note = (f"{len(pixels)} photos held out of training; agreement {same:.4f}, macro F1 {lost:+.4f} beside {whole:.4f}, "
                    f"{len(content) / case.weights:.3f} of the weights' bytes; {time.perf_counter() - start:.0f} s to make and to judge")
            record("quantise", f"choosing, {case.name}, {name}", [apart(found, expected)], unit="KL from 32 bits, 0.001 nat", note=note)


def demo_case(run: Path) -> Case:
    "Take the bundle of a run of the demonstration; its ranges come from its training photos."
    opened, manifest = read_bundle(run / "best"), pd.read_parquet(run / "manifest.parquet")
    return Case("demonstration", bundle_graph(opened), opened.weights_path.stat().st_size, opened.info.photo,
                manifest.loc[manifest["split"] == "train", "path"].tolist(), [], np.zeros(0, int), run / "best")


def test_photos(cache: Path, case: Case, seeds: Iterable[int]) -> tuple[list[str], np.ndarray]:  # paths, class numbers
    "Give photos that were drawn for judging alone."
    table, labels = pd.concat([drawn(cache, seed) for seed in seeds]), read_bundle(case.bundle).info.labels
    return table["path"].tolist(), table["binomial"].map(labels.index).to_numpy()


def judge(cache: Path, case: Case, paths: list[str], truth: np.ndarray, words: str) -> None:
    "Compare 8 bits with 32 on the same photos, once: macro F1, agreement, venomous snakes called harmless, size."
    labels, small = read_bundle(case.bundle).info.labels, quantise(case.graph, calibration(case, 96))
    graphs = {"32 bits": Graph(case.graph), "int8": Graph(small)}
    found = {name: [] for name in graphs}
    for start in range(0, len(paths), 48):
        pixels = read_pixels(paths[start : start + 48], case.spec)
        for name, graph in graphs.items():
            found[name].append(answer(graph, pixels).argmax(1))
    before, now = (np.concatenate(rows) for rows in found.values())
    np.savez(cache / f"judged-{case.name}.npz", truth=truth, before=before, now=now)
    gap = paired_bootstrap("f1_macro", truth, now, before, seed=0)
    same, n = float((now == before).mean()), len(truth)
    note = f"{n} photos, {words}; paired 95 % {gap.low:+.4f} to {gap.high:+.4f}; agreement {same:.4f}"
    record("quantise", f"judged, {case.name}, macro F1 of int8 less that of 32 bits", [gap.difference], unit="f1_macro", note=note)
    record("quantise", f"judged, {case.name}, macro F1 in 32 bits", [f1_score(truth, before, average="macro")], unit="f1_macro", note=f"{n} photos, {words}")
    record("quantise", f"judged, {case.name}, bytes of int8", [len(small) / case.weights], unit="share of the weights", note=f"{len(small)} of {case.weights} bytes")
    if all(label in SPECIES for label in labels):
        venomous = np.array([SPECIES[label].venomous for label in labels])
        harmed = venomous[truth]
        missed = [(~venomous[one[harmed]]).astype(int) for one in (before, now)]
        gap = paired_bootstrap("accuracy", np.ones(harmed.sum(), int), missed[1], missed[0], seed=0)
        record("quantise", f"judged, {case.name}, venomous called harmless, int8 less 32 bits", [gap.difference], unit="share",
               note=f"{missed[0].sum()} and {missed[1].sum()} of {harmed.sum()}; paired 95 % {gap.low:+.4f} to {gap.high:+.4f}")


def at_size(cache: Path, case: Case, size: int) -> Case:
    "Give the same weights a larger photo, to be timed as such a network is usually run."
    from dataclasses import replace

    from snakecls.models.bundle import load_model

    opened, folder = read_bundle(case.bundle), cache / "bundles" / f"{case.name}_{size}"
    if not folder.exists():
        write_bundle(folder, load_model(opened), replace(opened.info, photo=replace(opened.info.photo, size=size)))
    opened = read_bundle(folder)
    return replace(case, graph=bundle_graph(opened), spec=opened.info.photo, bundle=folder)


def speed(case: Case, rounds: int, more: dict[str, Callable] | None = None) -> None:
    "Time 16 photos a batch, every arm in turn; the ratios are of the same round."
    from snakecls.models.bundle import load_model
    from snakecls.models.engine import TorchEngine

    arms: dict[str, Callable] = {
        "torch in 32 bits": TorchEngine(load_model(read_bundle(case.bundle)), (case.spec.height, case.spec.width), photo=case.spec).logits,
        "ONNX Runtime in 32 bits": Graph(case.graph).logits, "int8": Graph(quantise(case.graph, calibration(case, 16))).logits, **(more or {})}
    batch = np.random.default_rng(0).integers(0, 256, (16, case.spec.height, case.spec.width, 3), dtype=np.uint8)
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run(batch)
            if turn:
                rates[name].append(len(batch) / (time.perf_counter() - start))
    for name, values in rates.items():
        times = np.array(values) / np.array(rates["torch in 32 bits"])
        record("quantise", f"speed, {case.name} at {case.spec.size} px, {name}", values, unit="photos/s",
               note=f"{np.median(times):.2f} x torch in 32 bits (median of rounds; {times.min():.2f} to {times.max():.2f}); "
                    f"{torch.get_num_threads()} threads; other work on the machine")


def prune(cache: Path, *, share: float = 0.5, epochs: int = 2, rounds: int = 8, seeds: Iterable[int] = TESTED_ON) -> None:
    "Take a share of the channels out of ResNet-50, train it on, and compare size, speed and macro F1; in 8 bits as well."
    import torch_pruning

    from snakecls.models.bundle import load_model
    from snakecls.models.graph_export import export_graph, read_both

    case = resnet_case(cache)
    model, labels = load_model(read_bundle(case.bundle)), read_bundle(case.bundle).info.labels
    kept = cache / f"pruned-{share}-{epochs}.onnx"
    if not kept.exists():
        parameters = sum(p.numel() for p in model.parameters())
        torch_pruning.pruner.BasePruner(model, torch.zeros(1, 3, SIZE, SIZE), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                                        pruning_ratio=share, ignored_layers=[model.get_classifier()], round_to=8).step()
        print(f"{sum(p.numel() for p in model.parameters()) / parameters:.3f} of the parameters are left", flush=True)
        table = pd.concat([drawn(cache, seed, n) for seed, n in OF_RESNET])
        table = table[table["split"] != "test"]
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        start = time.perf_counter()
        fit_network(model, table["path"], table["binomial"].map(labels.index), epochs=epochs, lr=1e-3)
        print(f"{time.perf_counter() - start:.0f} s of training", flush=True)
        model = model.to(memory_format=torch.contiguous_format).eval()
        kept.write_bytes(export_graph(model, (SIZE, SIZE), reads=read_both, photo=case.spec))
    pruned = Case(f"resnet50 without {share:.0%} of its channels", kept.read_bytes(), case.weights, case.spec, case.calibrating, [], np.zeros(0, int), case.bundle)
    small = quantise(pruned.graph, calibration(pruned, 96))
    speed(case, rounds, {"pruned, ONNX Runtime in 32 bits": Graph(pruned.graph).logits, "pruned, int8": Graph(small).logits})
    paths, truth = test_photos(cache, case, seeds)
    graphs, found = {"whole": Graph(case.graph), "pruned": Graph(pruned.graph), "pruned, int8": Graph(small)}, {}
    pixels = [read_pixels(paths[start : start + 48], case.spec) for start in range(0, len(paths), 48)]
    for name, graph in graphs.items():
        found[name] = np.concatenate([answer(graph, some).argmax(1) for some in pixels])
    for name, content in (("pruned", pruned.graph), ("pruned, int8", small)):
        gap = paired_bootstrap("f1_macro", truth, found[name], found["whole"], seed=0)
        record("quantise", f"{name}, {share:.0%} of the channels of resnet50, macro F1 less that of the whole in 32 bits", [gap.difference], unit="f1_macro",
               note=f"{len(truth)} photos of drawn seeds {list(seeds)}; paired 95 % {gap.low:+.4f} to {gap.high:+.4f}; {epochs} more epochs of training for the pruned one alone; "
                    f"{len(content) / case.weights:.3f} of the weights' bytes; whole {f1_score(truth, found['whole'], average='macro'):.4f}")


def openvino_beside(case: Case, cache: Path, rounds: int, seeds: Iterable[int]) -> None:
    "Compare NNCF's 8 bits, run by OpenVINO, with the library's, on the same photos."
    import nncf
    import openvino

    core, batches = openvino.Core(), calibration(case, 96)
    whole = core.read_model(case.graph)
    made = nncf.quantize(whole, nncf.Dataset(batches), subset_size=len(batches), preset=nncf.QuantizationPreset.MIXED)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    at = next(i for i, one in enumerate(made.outputs) if any(name.startswith("logits") for name in one.get_names()))
    compiled = {"OpenVINO in 32 bits": core.compile_model(core.read_model(case.graph), "CPU", hints), "OpenVINO, NNCF int8": core.compile_model(made, "CPU", hints)}
    speed(case, rounds, {name: (lambda batch, one=one: one([batch])[at]) for name, one in compiled.items()})
    paths, truth = test_photos(cache, case, seeds)
    graphs = {"32 bits": Graph(case.graph).logits, "int8": Graph(quantise(case.graph, batches)).logits, "nncf": lambda batch: compiled["OpenVINO, NNCF int8"]([batch])[at]}
    found: dict[str, list] = {name: [] for name in graphs}
    for start in range(0, len(paths), 16):
        pixels = read_pixels(paths[start : start + 16], case.spec)
        for name, run in graphs.items():
            found[name].append(np.asarray(run(pixels)).argmax(1))
    answers = {name: np.concatenate(rows) for name, rows in found.items()}
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(made, Path(folder) / "made.xml")
        n_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
    gap = paired_bootstrap("f1_macro", truth, answers["nncf"], answers["int8"], seed=0)
    record("quantise", f"{case.name}, macro F1 of NNCF's int8 less that of ONNX Runtime's", [gap.difference], unit="f1_macro",
           note=f"{len(truth)} photos of drawn seeds {list(seeds)}; paired 95 % {gap.low:+.4f} to {gap.high:+.4f}; agreement with 32 bits "
                f"{(answers['nncf'] == answers['32 bits']).mean():.4f} and {(answers['int8'] == answers['32 bits']).mean():.4f}; {n_bytes / case.weights:.3f} of the weights' bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--parts", nargs="+", default=["choose", "speed", "judge"])
    parser.add_argument("--cases", nargs="+", default=[*(f"drawn_{seed}" for seed in CHOSEN_ON), "snakes_ph", "resnet50"])
    parser.add_argument("--arms", nargs="+", help="of `choose`; all if not given")
    parser.add_argument("--judge", nargs="*", default=["demonstration", "resnet50"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(TESTED_ON))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--demo", type=Path, help="the folder of a run of `snakecls demo`")
    parser.add_argument("--real", type=Path, default=REAL)
    args = parser.parse_args()
    if "choose" in args.parts:
        choose(args.cache, args.real, args.cases, args.arms)
    judged = {"demonstration": lambda: demo_case(args.demo), "resnet50": lambda: resnet_case(args.cache)}
    for case in (make() for name, make in judged.items() if name in args.judge):
        if "speed" in args.parts:
            speed(case, args.rounds)
            if case.name == "resnet50":
                speed(at_size(args.cache, case, 224), args.rounds)
        if "openvino" in args.parts:
            openvino_beside(case, args.cache, args.rounds, args.seeds)
        if "judge" in args.parts:
            judge(args.cache, case, *test_photos(args.cache, case, args.seeds), f"every one of drawn seeds {args.seeds}, looked at once")
    if "prune" in args.parts:
        prune(args.cache, rounds=args.rounds, seeds=args.seeds)


if __name__ == "__main__":
    main()
