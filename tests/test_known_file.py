"What a bundle keeps of the known photos: round trip, damage, and the graph that gives features with the answer."
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import need

from snakecls.core import UserError
from snakecls.data.photos import PhotoSpec
from snakecls.evaluate.rejection import fit_rejection, known_score, probe_answer
from snakecls.models.bundle_graph import make_graph
from snakecls.models.bundle_info import BundleInfo
from snakecls.models.graph import Graph
from snakecls.models.known_file import KNOWN_FILE, check_known, halve_weights, known_values, make_features_graph, read_known, write_known

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(0, 1, (120, 24)) + 3 * np.eye(24)[np.arange(120) % 3]).astype(np.float32), np.arange(120) % 3
FITTED = fit_rejection(X, Y, answer=probe_answer(0.01))


def test_what_is_read_scores_as_what_was_written(tmp_path):
    seal = {"rejection": write_known(tmp_path, FITTED["arrays"])}
    values = json.loads(json.dumps(known_values(FITTED)))  # as bundle.json gives it back
    found = read_known(tmp_path, values, seal, n_labels=3)
    logits = probe_answer(0.01)(X, Y)(X[:5])
    assert [known_score(found, row, one) for row, one in zip(X, logits)] == [known_score(FITTED, row, one) for row, one in zip(X, logits)]


@pytest.mark.parametrize("change", [
    {"scores": []}, {"scores": ["knn", "knn"]}, {"scores": "knn"}, {"norm": {}}, {"norm": {"knn": [0, 0]}}, {"threshold": None}, {"threshold": True},
    {"threshold": float("nan")}, {"alpha": "1"}, {"pass_rate": 1}, {"n": 0}, {"n": 9.5}, {"needs": "elsewhere"},
])
def test_damaged_values_are_refused_in_a_sentence(change):
    good = {"scores": ["knn"], "norm": {"knn": [0.0, 1.0]}, "alpha": 1.0, "threshold": -2.0, "pass_rate": 0.95, "n": 20}
    check_known(good)
    with pytest.raises(UserError, match="copy the bundle again"):
        check_known(good | change)
    with pytest.raises(UserError):
        check_known([])


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_bit, lambda file: file.write_bytes(file.read_bytes()[:-3]), lambda file: file.write_bytes(b""), Path.unlink])
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path, damage):
    seal = {"rejection": write_known(tmp_path, FITTED["arrays"])}
    damage(tmp_path / KNOWN_FILE)
    with pytest.raises(UserError, match="copy the whole bundle again"):
        read_known(tmp_path, known_values(FITTED), seal, n_labels=3)


@pytest.mark.parametrize("change", [{"mean": np.zeros(5, np.float32)}, {"axes": np.full((24, 12), np.nan, np.float32)}, {"centres": np.zeros((3, 5), np.float32)}, {"mean": np.zeros(24, np.int64)}])
def test_arrays_that_do_not_fit_are_not_written(tmp_path, change):
    with pytest.raises(UserError, match=KNOWN_FILE):
        write_known(tmp_path, {**FITTED["arrays"], **change})
    with pytest.raises(UserError, match="has to hold"):
        write_known(tmp_path, {"mean": X[0]})
    assert not (tmp_path / KNOWN_FILE).exists()


def make_network():
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=3).eval()


def test_a_bundles_graph_gives_features_with_the_same_answer():
    need("onnxruntime")
    from snakecls.models.engine import TorchEngine

    network, photo = make_network(), PhotoSpec(64)
    info = BundleInfo(model={"library": "timm", "arch": "test_efficientnet", "kwargs": {"num_classes": 3}}, photo=photo, labels=["a", "b", "c"])
    graph, usual = Graph(make_graph(network, info)[0]), TorchEngine(network, 64, photo=photo)
    pixels = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    features, logits = graph.both(pixels)
    np.testing.assert_allclose(features, usual.features(pixels), atol=1e-4)
    np.testing.assert_allclose(logits, usual.logits(pixels), atol=1e-4)
    np.testing.assert_array_equal(logits, graph.logits(pixels))


def test_an_older_graph_gives_no_features():
    need("onnxruntime")
    from snakecls.models.graph_export import export_graph, read_answers

    graph = Graph(export_graph(make_network(), 64, reads=read_answers, photo=PhotoSpec(64)))
    pixels = RNG.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    features, logits = graph.both(pixels)
    assert features is None and logits.shape == (1, 3)


def test_several_targets_keep_their_tuple():
    need("onnxruntime")
    from snakecls.models.graph_export import export_graph
    from snakecls.models.heads import add_heads

    network = add_heads(make_network(), {"species": 3, "genus": 2}).eval()
    features, logits = Graph(export_graph(network, 64, photo=PhotoSpec(64))).both(RNG.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    assert features.shape[0] == 2 and [one.shape for one in logits] == [(2, 3), (2, 2)]


def test_half_weights_are_half_the_bytes_and_too_large_is_refused(monkeypatch):
    need("onnxruntime")
    from snakecls.models import known_file
    from snakecls.models.graph_export import export_graph, read_features

    network, photo = make_network(), PhotoSpec(64)
    whole = export_graph(network, 64, reads=read_features, photo=photo)
    assert len(halve_weights(whole)) < 0.75 * len(whole)
    assert len(make_features_graph(network, photo)) == len(halve_weights(whole))
    monkeypatch.setattr(known_file, "MOST_GRAPH", 1000)
    with pytest.raises(UserError, match="rejection is not available"):
        make_features_graph(network, photo)
