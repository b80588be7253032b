"""A batch that does not fit in memory: the same steps in parts, whatever else a training does."""
import pytest
import torch

from snakecls.core import UserError
from snakecls.data.demo.draw import make_demo
from snakecls.experiment.batch_size import choose_batches
from snakecls.experiment.plan import make_plan
from snakecls.experiment.schema import Experiment
from snakecls.train.memory import FitInMemory
from snakecls.workflow.run import run_experiment

SHORT = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("memory"), n_per_species=8)


def described(photos, stages, **train):
    return Experiment(
        name="memory", seed=3, data={"source": str(photos), "valid": 0.25}, model={"arch": "test_resnet", "weights": "none"},
        train={"precision": "fp32", "bs": 16, "batch_norm": "all"} | train, schedule=[{"size": 64} | stage for stage in stages])


def play_shortage(monkeypatch, room, times=10**9, where="forward"):
    "Let networks refuse more than so many photos at once, in so many calls, in their forward or in their backward pass."
    from timm.models.resnet import ResNet

    forward, failed = ResNet.forward_features, []

    def short(self, x):
        if len(x) <= room or len(failed) >= times or not self.training:
            return forward(self, x)
        failed.append(len(x))
        if where == "forward":
            raise RuntimeError(SHORT)
        out = forward(self, x)
        out.register_hook(fail)
        return out

    def fail(gradient):
        raise RuntimeError(SHORT)

    monkeypatch.setattr(ResNet, "forward_features", short)
    return failed


def run(photos, tmp_path, stages, said=None, **train):
    say = (lambda line: None) if said is None else said.append
    return run_experiment(described(photos, stages, **train), root=tmp_path / "runs", logbook=tmp_path / "logbook.md", say=say)


def losses(result):
    history = (result.run / "history.csv").read_text().splitlines()
    place = history[0].split(",").index("train_loss")
    return [float(line.split(",")[place]) for line in history[1:]]


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    "A function that gives the losses of a run whose batches all fit; it is run once."
    known = {}

    def look(stage, train):
        if (key := repr((stage, train))) not in known:
            known[key] = losses(run(photos, tmp_path_factory.mktemp("whole"), [stage], **train))
        return known[key]

    return look


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("stage, train", [
    ({"epochs": 2}, {}), ({"epochs": 2, "mixup": 0.4}, {}), ({"epochs": 2}, {"accumulate": 2, "clip": 1.0}), ({"epochs": 1}, {"precision": "bf16"}),
    ({"epochs": 1, "freeze": 2}, {"ema": 0.9}),
], ids=["plain", "mixup", "accumulated and clipped", "bf16", "partly frozen"])
def test_steps_are_those_of_whole_batches(photos, whole, tmp_path, monkeypatch, where, stage, train):
    expected = whole(stage, train)
    failed, said = play_shortage(monkeypatch, room=6, where=where), []
    parted = losses(run(photos, tmp_path / "parted", [stage], said, **train))
    assert failed and any("did not fit in memory" in line for line in said)
    if "mixup" in stage or "accumulate" in train:  # the batch that failed is drawn or counted anew, so its step differs
        assert parted == pytest.approx(expected, rel=0.2)
    else:
        assert parted == pytest.approx(expected, rel=2e-2 if "precision" in train else 1e-4)


def test_not_even_two_photos(photos, tmp_path, monkeypatch):
    play_shortage(monkeypatch, room=1)
    with pytest.raises(UserError, match="not even 2 photos of 64 px fit in memory.*smaller size"):
        run(photos, tmp_path, [{"epochs": 1}])
    assert "failed" in (next((tmp_path / "runs").glob("*/status.json"))).read_text()


def test_another_error_is_not_swallowed(photos, tmp_path, monkeypatch):
    from timm.models.resnet import ResNet

    monkeypatch.setattr(ResNet, "forward_features", lambda self, x: torch.zeros(3) @ torch.zeros(4) if self.training else x)
    with pytest.raises(Exception, match="size|shape|inconsistent") as caught:
        run(photos, tmp_path, [{"epochs": 1}])
    assert not isinstance(caught.value, UserError) or "memory" not in str(caught.value)


def test_learner_is_left_as_it_was(photos, tmp_path, monkeypatch):
    learn = make_plan(described(photos, [{"epochs": 1}])).open_photos(tmp_path).learn
    before = set(vars(learn.model))
    play_shortage(monkeypatch, room=1)
    callback = FitInMemory(say=lambda line: None)
    with learn.no_bar(), learn.no_logging(), pytest.raises(UserError):
        learn.fit(1, cbs=[callback])
    assert set(vars(learn.model)) == before
    monkeypatch.undo()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)  # although the error has left no moment to put anything back
    assert "one_batch" not in vars(learn)


def test_auto_finds_what_fits(photos, monkeypatch):
    plan = make_plan(described(photos, [{"epochs": 1}, {"epochs": 1, "bs": 6}], bs="auto")).open_photos().choose_precision()
    monkeypatch.setattr("snakecls.experiment.batch_size._STEPS", 1)
    assert [stage.bs for stage in choose_batches(plan).stages] == [len(plan.learn.dls.train_ds), 6]
    play_shortage(monkeypatch, room=10)
    found = choose_batches(plan)
    assert [stage.bs for stage in found.stages] == [8, 6] == [stage.bs for stage in found.experiment.schedule]
    assert found.notes == ["train.bs auto: batches of 8 photos at 64 px (more do not fit in memory)."]


def test_auto_stands_in_the_run(photos, tmp_path):
    said = []
    result = run(photos, tmp_path, [{"epochs": 1}], said, bs="auto")
    assert result.run.experiment()["schedule"][0]["bs"] == 9  # 8 steps are wanted of so few photos
    assert any("batches of 9 photos at 64 px (so that an epoch of " in line for line in said)


@pytest.mark.parametrize("bs", [1, "large", 2.5])
def test_other_batch_sizes_are_refused(photos, bs):
    with pytest.raises(UserError, match="bs") as caught:
        described(photos, [{"epochs": 1}], bs=bs)
    assert "auto" in str(caught.value) or "2" in str(caught.value)
