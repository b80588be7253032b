"""A compiled network answers as torch does, whatever the network; and a kept graph is never a wrong one."""
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import nn

from conftest import REPO, need
from snakecls.core import UserError
from snakecls.data.photos import PhotoSpec, normalise_pixels
from snakecls.deploy.predict import Predictor
from snakecls.models import engine as module
from snakecls.models.backbones import create_backbone
from snakecls.models.bundle import copy_bundle, load_model, read_bundle, write_bundle
from snakecls.models.bundle_graph import seal_graph
from snakecls.models.engine import FEW, TorchEngine, _choose_engine, make_engine
from snakecls.models.graph import Graph, _check_graph
from snakecls.models.graph_cache import GraphCache
from snakecls.models.graph_export import export_graph, linear_heads, read_both
from snakecls.models.heads import add_heads

need("onnxruntime")
SPEC = PhotoSpec(64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
NETWORKS = ["tf_efficientnet_lite0", "resnet18", "test_vit", "test_convnext", "test_resnet", "test_efficientnet", "lenet5", "alexnet_scratch", "googlenet_scratch", "googlenet", "shufflenet_v2_x0_5"]


def pixels(n: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def network(arch: str = "test_resnet", n: int = 5, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(arch, n, weights="none", **kwargs)


@pytest.mark.parametrize("use", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_a_graph_says_what_torch_says(arch, use, tmp_path):
    pytest.importorskip(use)
    size = {"test_vit": 160, "test_convnext": 160, "lenet5": 32, "alexnet_scratch": 224}.get(arch, 64)
    model, batch = network(arch), pixels(4, size)
    fast, usual = make_engine(model, size, n_photos=1000, photo=SPEC, use=use, cache=tmp_path), TorchEngine(model, size, photo=SPEC)
    assert fast.name.startswith(use)
    features, logits = usual.features(batch), usual.logits(batch)
    np.testing.assert_allclose(fast.features(batch), features, atol=1e-4 * abs(features).max())
    np.testing.assert_allclose(fast.logits(batch), logits, atol=1e-4 * max(1, abs(logits).max()))
    for n in (1, 3):  # whatever the batch
        np.testing.assert_allclose(fast.logits(batch[:n]), logits[:n], atol=1e-4 * max(1, abs(logits).max()))
    assert model.training  # as it was


def test_torch_normalises_pixels_bit_by_bit_as_the_photos_are():
    batch = pixels(2)
    assert np.array_equal(module._normalise(torch.from_numpy(batch), SPEC).numpy(), normalise_pixels(batch, SPEC))
    model = network()
    assert np.array_equal(TorchEngine(model, 64, photo=SPEC).logits(batch), TorchEngine(model, 64).logits(torch.from_numpy(normalise_pixels(batch, SPEC))))


def test_several_targets_give_a_tuple(tmp_path):
    model, batch = add_heads(network("test_resnet", 3), {"species": 3, "venomous": 2}), pixels(3)
    for engine in (make_engine(model, 64, n_photos=999, photo=SPEC, use="onnxruntime", cache=tmp_path), TorchEngine(model, 64, photo=SPEC)):
        answer = engine.logits(batch)
        assert isinstance(answer, tuple) and [one.shape for one in answer] == [(3, 3), (3, 2)]
    whole = Graph(export_graph(model.eval(), 64, photo=SPEC, reads=read_both))
    for one, other in zip(whole.logits(batch), answer):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_normalised_batches_have_graphs_of_their_own(tmp_path):
    model, batch = network(), normalise_pixels(pixels(3), SPEC)
    fast = make_engine(model, 64, n_photos=999, use="onnxruntime", cache=tmp_path)
    np.testing.assert_allclose(fast.features(torch.from_numpy(batch)), TorchEngine(model, 64).features(batch), atol=1e-4)
    with pytest.raises(UserError, match="prepare_photo"):
        fast.features(pixels(3))


def test_other_weights_make_another_graph_and_another_head_does_not(tmp_path):
    model, batch = network(), pixels(2)
    first = make_engine(model, 64, n_photos=999, photo=SPEC, use="onnxruntime", cache=tmp_path).logits(batch)
    with torch.no_grad():
        linear_heads(model)[0].weight *= 2
    second = make_engine(model, 64, n_photos=999, photo=SPEC, use="onnxruntime", cache=tmp_path).logits(batch)
    assert len(list(tmp_path.glob("*.graph"))) == 1 and abs(first - second).max() > 1e-3
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    third = make_engine(model, 64, n_photos=999, photo=SPEC, use="onnxruntime", cache=tmp_path).logits(batch)
    np.testing.assert_allclose(third, TorchEngine(model, 64, photo=SPEC).logits(batch), atol=1e-4)
    assert len(list(tmp_path.glob("*.graph"))) == 2


def test_few_photos_pay_for_nothing(tmp_path):
    engine = make_engine(network(), 64, n_photos=FEW - 1, photo=SPEC, cache=tmp_path)
    assert engine.name.startswith("torch") and not list(tmp_path.iterdir())


def test_a_choice_is_remembered(tmp_path, monkeypatch):
    first = make_engine(network(), 64, n_photos=FEW, photo=SPEC, cache=tmp_path)
    monkeypatch.setattr(module, "_measure_engines", lambda *a, **k: pytest.fail("it was measured again"))
    again = make_engine(network(), 64, n_photos=FEW, photo=SPEC, cache=tmp_path)
    assert again.name == first.name and "measured before" in again.why
    assert np.array_equal(first.features(pixels(4)), again.features(pixels(4)))
    np.testing.assert_allclose(make_engine(network(), 64, n_photos=FEW, photo=SPEC, cache=tmp_path).logits(pixels(9))[:2], first.logits(pixels(2)), atol=1e-5)


def test_the_first_of_those_that_are_about_as_fast_is_chosen():
    assert _choose_engine({"graph": 100, "torch": 105}) == "graph" and _choose_engine({"graph": 100, "torch": 120}) == "torch"


def test_a_wrong_graph_is_never_used(tmp_path, monkeypatch):
    model = network()
    other = export_graph(network("test_resnet", 5).eval(), 64, photo=PhotoSpec(64), reads=module.read_features)
    monkeypatch.setattr(module, "export_graph", lambda *a, **k: other)
    with torch.no_grad():
        next(model.parameters()).mul_(3)
    engine = make_engine(model, 64, n_photos=999, photo=SPEC, cache=tmp_path)
    assert engine.name.startswith("torch") and "answers otherwise" in engine.why


def test_a_network_that_cannot_be_written_is_run_by_torch(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(torch.onnx, "export", fail)
    engine = make_engine(network(), 64, n_photos=999, photo=SPEC, cache=tmp_path)
    assert engine.name.startswith("torch") and "no such operation" in engine.why


def test_without_onnxruntime_torch_runs(tmp_path, monkeypatch):
    for name in ("can_run_graphs", "can_run_openvino"):
        monkeypatch.setattr(module, name, lambda: False)
    engine = make_engine(network(), 64, n_photos=999, photo=SPEC, cache=tmp_path)
    assert engine.name.startswith("torch") and "pip install onnxruntime" in engine.why


def test_a_damaged_graph_is_made_again(tmp_path):
    model, batch = network(), pixels(2)
    expected = make_engine(model, 64, n_photos=999, photo=SPEC, use="onnxruntime", cache=tmp_path).logits(batch)
    file = next(tmp_path.glob("*.graph"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(make_engine(model, 64, n_photos=999, photo=SPEC, use="onnxruntime", cache=tmp_path).logits(batch), expected)
    assert file.read_bytes() != bytes(content)


def _write(folder: str, number: int) -> int:
    cache = GraphCache(folder, max_bytes=5000)
    for turn in range(30):
        cache.put(f"k{turn % 4}", bytes([number]) * 1000)
        found = cache.get(f"k{turn % 4}")
        assert found is None or (len(found) == 1000 and len(set(found)) == 1)
    return number


def test_writers_at_the_same_time_leave_whole_files(tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(_write, [str(tmp_path)] * 3, range(3))) == [0, 1, 2]
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".graph"]


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path / "there"))
    make_engine(network(), 64, n_photos=999, photo=SPEC, use="onnxruntime")
    assert len(list((tmp_path / "there" / "graphs").glob("*.graph"))) == 1


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_what_is_no_graph_is_refused_before_it_is_opened(damage):
    content = export_graph(network().eval(), 64, photo=SPEC)
    bad = {"cut": content[: len(content) // 2], "noise": np.random.default_rng(0).bytes(2000), "empty": b""}[damage]
    with pytest.raises(UserError, match="this graph is not used"):
        _check_graph(bad)


def test_a_graph_is_run_without_torch(tmp_path):
    (tmp_path / "a.onnx").write_bytes(export_graph(network().eval(), 64, photo=SPEC))
    code = ("import sys, numpy as np; from snakecls.models.graph import Graph; from pathlib import Path; "
            f"print(Graph(Path({str(tmp_path / 'a.onnx')!r}).read_bytes()).logits(np.zeros((2, 64, 64, 3), np.uint8)).shape); "
            "print(sorted({name.split('.')[0] for name in sys.modules}))")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(REPO)})
    shape, names = map(eval, done.stdout.splitlines())
    assert shape == (2, 5) and not set(names) & {"torch", "timm", "pandas", "fastai", "onnx", "scipy"}


def photos(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (n, 40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("flip", [False, True])
def test_many_photos_are_answered_as_few_are(flip, tmp_path, monkeypatch):
    "Features and probabilities by a graph, and by torch."
    from snakecls.models import features as answers
    from snakecls.models.batches import PhotoBatches

    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_choose_engine", lambda rates: "onnxruntime fp32")
    model, many, told = add_heads(network("test_resnet", 3), {"species": 3, "venomous": 2}), photos(FEW), []
    fast = answers.batch_features(model, PhotoBatches(many, SPEC, bs=30), flip=flip, say=told.append)
    slow = np.concatenate([answers.batch_features(model, PhotoBatches(many[at : at + 16], SPEC), flip=flip, precision="fp32") for at in range(0, FEW, 16)], axis=1)
    np.testing.assert_allclose(fast, slow, atol=1e-4 * abs(slow).max())
    assert told[0].startswith("onnxruntime fp32")
    settings = {"flip": flip, "temperature": 1.5, "problem": "several_targets", "description": None}
    fast, slow = answers.target_probs(model, many, SPEC, bs=50, **settings), [answers.target_probs(model, [one], SPEC, **settings) for one in many[:5]]
    for target in (0, 1):
        np.testing.assert_allclose(fast[target][:5], np.concatenate([one[target] for one in slow]), atol=1e-5)


def test_views_of_other_sizes_have_engines_of_their_own(tmp_path, monkeypatch):
    import pandas as pd

    from snakecls.evaluate.predictions import predict_table, table_probs

    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_choose_engine", lambda rates: "onnxruntime fp32")
    model, table = network("resnet18", 3), pd.DataFrame({"path": photos(FEW)})
    many = predict_table(model, table, SPEC, ["a", "b", "c"], tta="scales")
    few = predict_table(model, table.iloc[:4], SPEC, ["a", "b", "c"], tta="scales")
    assert len(list((tmp_path / "graphs").glob("*.graph"))) == 3
    np.testing.assert_allclose(table_probs(many)[:4], table_probs(few), atol=1e-4)


def test_a_check_reads_stages_through_a_graph(tmp_path, monkeypatch):
    from snakecls.clean.label_issues import _read_features

    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_choose_engine", lambda rates: "onnxruntime fp32")
    model, many = network("test_resnet", 2), photos(FEW)
    ends, stages = _read_features(model, many, SPEC)
    few_ends, few_stages = _read_features(model, many[:8], SPEC)
    assert list((tmp_path / "graphs").glob("*.graph"))
    for fast, slow in zip([ends[:, :8], *(stage[:8] for stage in stages)], [few_ends, *few_stages]):
        np.testing.assert_allclose(fast, slow, atol=1e-3 * abs(slow).max())


def test_a_bundle_is_answered_without_torch(tiny_bundle, snake_photos):
    code = ("import json, sys; from snakecls.deploy.predict import Predictor; "
            f"probs = Predictor({str(tiny_bundle)!r}).probs({[str(one) for one in snake_photos]!r}); "
            "print(json.dumps({'probs': probs.tolist(), 'modules': sorted({name.split('.')[0] for name in sys.modules})}))")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(REPO)})
    answer = json.loads(done.stdout.splitlines()[-1])
    assert not set(answer["modules"]) & {"torch", "torchvision", "timm", "pandas", "fastai", "fastcore", "scipy", "sklearn", "onnx", "matplotlib", "rich", "pyarrow"}
    np.testing.assert_allclose(answer["probs"], Predictor(tiny_bundle, engine="torch").probs(snake_photos), atol=1e-5)


def test_a_bundle_without_a_graph_is_answered_by_torch(tiny_bundle, tmp_path, snake_photos):
    bundle = read_bundle(tiny_bundle)
    plain = write_bundle(tmp_path / "plain", load_model(bundle), bundle.info, graph=False)
    assert not (plain / "model.onnx").exists()
    np.testing.assert_allclose(Predictor(plain).probs(snake_photos), Predictor(tiny_bundle).probs(snake_photos), atol=1e-5)
    with pytest.raises(UserError, match="has no model.onnx"):
        Predictor(plain, engine="onnxruntime")
    shutil.copyfile(tiny_bundle / "model.onnx", plain / "model.onnx")  # not in its seal
    assert Predictor(plain).graph is None


@pytest.mark.parametrize("damage, told", [("flip", "is not what the bundle was written with"), ("cut", "is not what the bundle was written with"),
                                          ("missing", "is missing"), ("link", "is a link"), ("large", "too large")])
def test_a_damaged_graph_is_refused(tiny_bundle, tmp_path, damage, told):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    file = bundle / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage in ("missing", "link"):
        file.unlink()
    if damage == "link":
        file.symlink_to(tiny_bundle / "model.onnx")
    elif damage != "missing":
        file.write_bytes({"flip": bytes(content), "cut": bytes(content[:-9]), "large": bytes(200 << 20)}[damage])
    with pytest.raises(UserError, match=told):
        Predictor(bundle)


@pytest.mark.parametrize("trick", ["foreign", "outside", "function", "loop", "other answers", "other size"])
def test_a_strangers_graph_is_refused_though_it_is_sealed(tiny_bundle, tmp_path, trick):
    onnx = need("onnx")
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    model = onnx.load_from_string((bundle / "model.onnx").read_bytes())
    if trick == "foreign":
        model.graph.node[0].domain = "acme.ops"
    elif trick == "outside":
        array = model.graph.initializer[0]
        array.ClearField("raw_data")
        array.data_location = onnx.TensorProto.EXTERNAL
        array.external_data.add(key="location", value="../secret.bin")
    elif trick == "function":
        model.functions.add(name="f", domain="acme")
    elif trick == "loop":
        model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.CopyFrom(onnx.GraphProto(name="inner"))
    elif trick == "other answers":
        biases = next(one for one in model.graph.initializer if list(one.dims) == [5])
        biases.raw_data = (np.frombuffer(biases.raw_data, np.float32) + np.arange(5, dtype=np.float32)).tobytes()
    else:
        model = onnx.load_from_string(export_graph(network().eval(), 32, photo=SPEC, reads=module.read_answers))
    content = model.SerializeToString()
    (bundle / "model.onnx").write_bytes(content)
    values = json.loads((bundle / "bundle.json").read_text())
    values["seal"]["graph"] = seal_graph(content)
    (bundle / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="answers its own test photo otherwise" if trick == "other answers" else "takes other photos" if trick == "other size" else "this graph is not used"):
        Predictor(bundle)


def test_a_graph_that_disagrees_is_not_written_and_that_is_told(tiny_bundle, tmp_path, monkeypatch):
    bundle, told = read_bundle(tiny_bundle), []
    monkeypatch.setattr(module, "agrees", lambda *a, **k: False)
    folder = write_bundle(tmp_path / "new", load_model(bundle), bundle.info, say=told.append)
    assert not (folder / "model.onnx").exists() and "answers otherwise than torch" in told[0]
    assert Predictor(folder).graph is None


def test_a_copy_keeps_the_graph(tiny_bundle, tmp_path):
    copy = copy_bundle(read_bundle(tiny_bundle), tmp_path / "copy")
    assert (copy / "model.onnx").read_bytes() == (tiny_bundle / "model.onnx").read_bytes() and Predictor(copy).graph is not None
