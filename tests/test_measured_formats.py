"Forms of a model side by side: the same photos, paired intervals, and a loss that is seen."
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from snakecls.core import UserError
from snakecls.deploy.measured_formats import _f1, compare_forms, draw_forms, form_predictor, forms_text, say_lost
from snakecls.deploy.quantised import bundle_graph, quantise
from snakecls.models.bundle import read_bundle, write_bundle
from snakecls.models.networks import build_network

FACTS = {"Naja naja": {"venomous": True}, "Vipera berus": {"venomous": True}, "Natrix natrix": {"venomous": False}, "Boa": {"venomous": False}}


def bundle_of(folder, **more):
    torch.manual_seed(0)
    kwargs = {"num_classes": 4}
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": kwargs}, "photo": {"size": 64}, "labels": [*FACTS], "label_facts": FACTS}
    return write_bundle(folder / "best", build_network("timm", "test_resnet", kwargs), info | more)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundle_of(tmp_path_factory.mktemp("forms"))


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(np.clip(rng.normal(rng.uniform(40, 200, 3), 40, (64, 64, 3)), 0, 255).astype(np.uint8)) for _ in range(60)]


class Answering:
    "A form whose answers are given."

    def __init__(self, like, probs):
        self.info, self.labels, self.graph, self._probs = like.info, like.labels, like.graph, probs

    def probs(self, photos):
        return self._probs


def test_the_same_network_loses_nothing(bundle, photos) -> None:
    graph = bundle_graph(read_bundle(bundle))
    forms = {"torch": form_predictor(bundle), "onnx": form_predictor(bundle, graph), "int8": form_predictor(bundle, quantise(graph))}
    truth = [[forms["torch"].labels[i % 4]] for i in range(len(photos))]
    table = compare_forms(forms, photos, truth, sizes={"onnx": len(graph)}, rounds=2)
    assert table["form"].tolist() == [*forms] and (table["n"] == 60).all() and table["bytes"][1] == len(graph)
    assert table["agreement"][1] == 1 and table["f1_difference"][1] == 0 and table["f1_low"][1] < 0 < table["f1_high"][1]
    assert (table[["p50_ms", "p99_ms", "photos_per_s"]] > 0).all().all() and (table["p99_ms"] >= table["p50_ms"]).all()
    answers = forms["torch"].probs(photos).argmax(1)
    assert table["f1_macro"][0] == pytest.approx(f1_score(np.arange(60) % 4, answers, average="macro"))
    dangerous = np.isin(np.arange(60) % 4, [0, 1])
    assert table["venomous_as_harmless"][0] == pytest.approx((answers[dangerous] > 1).mean()) and table["venomous_n"][0] == 30
    assert say_lost(table.to_dict("records")[1]) == ""
    assert "macro F1" in forms_text(table) and len(draw_forms(table).axes) == 3


def test_a_loss_is_seen(bundle, photos) -> None:
    right, original = np.eye(4)[np.arange(60) % 4], form_predictor(bundle, bundle_graph(read_bundle(bundle)))
    wrong = np.where((np.arange(60) % 4 < 2)[:, None], np.eye(4)[2], right)  # whatever is venomous is called harmless
    truth = [[original.labels[i % 4]] for i in range(60)]
    rows = compare_forms({"right": Answering(original, right), "wrong": Answering(original, wrong)}, photos, truth, rounds=1).to_dict("records")
    assert say_lost(rows[0]) == "" and rows[1]["venomous_as_harmless"] == 1 and rows[1]["agreement"] == 0.5
    said = say_lost(rows[1])
    assert "macro F1 is lower by" in said and "venomous photos are called harmless more often, by 1.000" in said and "60 photos" in said
    better = compare_forms({"wrong": Answering(original, wrong), "right": Answering(original, right)}, photos, truth, rounds=1).to_dict("records")
    assert say_lost(better[1]) == "" and better[1]["f1_low"] > 0


def test_several_labels(tmp_path, photos) -> None:
    made = form_predictor(bundle_of(tmp_path, problem="multi_label", thresholds=[0.5, 0.4, 0.5, 0.6]))
    truth = [[made.labels[i % 4], made.labels[(i // 4) % 4]] for i in range(60)]
    row = compare_forms({"torch": made, "again": made}, photos, truth, rounds=1).to_dict("records")[0]
    true = np.array([[label in names for label in made.labels] for names in truth])
    answers = made.probs(photos) > np.array([0.5, 0.4, 0.5, 0.6])
    seen = true.any(0) | answers.any(0)
    assert row["f1_macro"] == pytest.approx(f1_score(true[:, seen], answers[:, seen], average="macro", zero_division=0)) == _f1(true, answers)


def test_refused(bundle) -> None:
    made = form_predictor(bundle)
    with pytest.raises(UserError, match="no photos"):
        compare_forms({"torch": made}, [], [])
