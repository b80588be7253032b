"Graphs of 8-bit integers: a quarter of the size, nearly the same answers, nothing but ONNX's own operations."
from pathlib import Path

import numpy as np
import pytest
import torch

from snakecls.core import UserError
from snakecls.deploy.quantised import bundle_graph, quantise, read_description, with_description
from snakecls.models.bundle import read_bundle, write_bundle
from snakecls.models.graph import Graph
from snakecls.models.networks import build_network


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def bundle(request, tmp_path_factory):
    torch.manual_seed(2)
    kwargs = {"num_classes": 4} | ({"img_size": 64} if request.param == "test_vit" else {})
    info = {"model": {"library": "timm", "arch": request.param, "kwargs": kwargs}, "labels": list("abcd"), "photo": {"size": 64}, "temperature": 0.7}
    return read_bundle(write_bundle(tmp_path_factory.mktemp("int8") / "best", build_network("timm", request.param, kwargs), info))


def photos(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("dynamic", [False, True])
def test_small_and_close(bundle, dynamic: bool) -> None:
    whole = bundle_graph(bundle)
    small = quantise(whole, None if dynamic else np.split(photos(24), 6))
    assert len(small) < 0.5 * len(whole)  # of a network of 1 MB; the nodes' names and scales weigh more than in a large one
    for n in (1, 3):  # a dynamic batch
        expected, found = (Graph(content).logits(photos(n)) for content in (whole, small))
        assert found.shape == expected.shape == (n, 4)
        assert 0 < np.abs(found - expected).max() < 0.1
    kept = [one.shape for one in Graph(small).read(photos(2))]
    assert kept == [one.shape for one in Graph(whole).read(photos(2))]


def test_static_depends_on_the_photos(bundle) -> None:
    whole, dark = bundle_graph(bundle), [np.full((4, 64, 64, 3), 3, np.uint8)]
    assert np.abs(Graph(quantise(whole, dark)).logits(photos(8)) - Graph(quantise(whole, [photos(8)])).logits(photos(8))).max() > 0
    with pytest.raises(UserError, match="no photos"):
        quantise(whole, [])


def test_the_file_says_what_it_means(bundle) -> None:
    told = read_description(with_description(bundle_graph(bundle), bundle.info, form="onnx"))
    assert told["labels"] == list("abcd") and told["temperature"] == 0.7 and told["photo"]["size"] == 64 and told["form"] == "onnx"
    assert read_description(bundle_graph(bundle)) == {}


def test_without_a_graph_in_the_bundle(bundle, tmp_path: Path) -> None:
    from snakecls.models.bundle import load_model

    bare = read_bundle(write_bundle(tmp_path / "bare", load_model(bundle), bundle.info, graph=False))
    np.testing.assert_allclose(Graph(bundle_graph(bare)).logits(photos(2)), Graph(bundle_graph(bundle)).logits(photos(2)), atol=1e-5)
