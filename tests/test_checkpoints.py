"""A schedule that goes on from a checkpoint ends with the bits of the one that was never stopped."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner

from snakecls.core import UserError, seed_everything
from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls
from snakecls.data.demo.draw import make_demo
from snakecls.data.tables import load_table
from snakecls.models.backbones import create_backbone
from snakecls.models.freezing import stage_groups
from snakecls.train.averaging import ExponentialMovingAverage
from snakecls.train.checkpoints import KEPT, TENSORS, read_checkpoint, write_checkpoint
from snakecls.train.gradients import AccumulateGradients
from snakecls.train.metrics import epoch_metrics
from snakecls.train.monitoring import SaveBestF1
from snakecls.train.optimisers import make_optimiser
from snakecls.train.precision import PrecisionCallback
from snakecls.train.schedules import progressive_fit
from snakecls.train.stages import Stage
from snakecls.train.stopping import EarlyStopping, ValidateEvery


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pd.DataFrame:
    folder = make_demo(tmp_path_factory.mktemp("demo"), n_per_species=11, size_px=80, species=["Bungarus fasciatus", "Vipera berus", "Natrix natrix"], seed=2)
    return load_table(folder / "photos.csv", target="binomial")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path / "cache"))


SETTINGS = {
    "one cycle": {},
    "augmented, by processes": {"augment": "fastai", "num_workers": 2},
    "mixed": {"stage": {"mixup": 0.4, "label_smoothing": 0.1}},
    "an average": {"cbs": lambda: [ExponentialMovingAverage(0.9)]},
    "accumulated": {"cbs": lambda: [AccumulateGradients(3)]},
    "plateau": {"stage": {"lr_schedule": "plateau", "lr_options": {"patience": 1, "min_delta": 0.5}}},
    "gradual": {"stage": {"gradual": True}},
    "SGD": {"optimiser": "sgd"},
    "channels_last": {"cbs": lambda: [PrecisionCallback("fp32", channels_last=True)]},
    "bf16": {"cbs": lambda: [PrecisionCallback("bf16")]},
    "early stopping": {"cbs": lambda: [EarlyStopping("valid_loss", 2, min_delta=0.3, verbose=False)]},
    "validated every second epoch": {"cbs": lambda: [ValidateEvery(2)]},
    "a rate that is found": {"stage": {"lr": "auto"}},
    "what is frozen is kept": {"arch": "tf_efficientnet_lite0", "views": 1, "stage": {"freeze": "body"}},
    "kept in two augmented views": {"views": 2, "augment": "fastai", "stage": {"freeze": "body", "epochs": 4}},
    "kept in bf16": {"views": 1, "stage": {"freeze": "body"}, "cbs": lambda: [PrecisionCallback("bf16")]},
}


def train(photos, folder, settings, *, keep=None, resume=None):
    "A schedule with a probe and two stages; gives the result and all weights."
    settings = {"arch": "test_efficientnet", "augment": "none", "num_workers": 0, "optimiser": "adam", "cbs": list, "views": 0, "stage": {}} | settings
    seed_everything(0)
    model = create_backbone(settings["arch"], 3, weights="none")
    dls = photo_dls(photos, 48, bs=4, augment=Augment(backend=settings["augment"]), network=model, device="cpu", num_workers=settings["num_workers"])
    learn = Learner(dls, model, metrics=epoch_metrics(problem=dls.problem), splitter=stage_groups, opt_func=make_optimiser(settings["optimiser"]), train_bn=False, path=folder)
    shared = {"lr": 1e-3, "cached_views": settings["views"]} | settings["stage"]
    stages = [Stage(**{"epochs": 3, "size": 48, "bs": 4, "head": "probe"} | shared), Stage(**{"epochs": 2, "size": 64, "bs": 4, "head": "keep"} | shared)]
    batch_norm = "all" if settings["views"] else "auto"
    with learn.no_bar(), learn.no_logging():
        result = progressive_fit(
            learn, stages, saver=SaveBestF1(verbose=False), cbs=settings["cbs"](), keep=keep, keep_every=0, resume=resume, keep_answers=True, batch_norm=batch_norm)
    return result, {name: value.clone() for name, value in learn.model.state_dict().items()}


def plain(result) -> str:
    "All that a schedule says, without what time does to it."
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.rows]
    stages = [{key: value for key, value in stage.items() if key != "seconds"} for stage in result.stages]
    return json.dumps([rows, stages, result.best, result.message, {name: [np.asarray(each).tolist() for each in given] for name, given in result.answers.items()}], default=float)


@pytest.mark.parametrize("how", SETTINGS)
def test_a_schedule_goes_on_to_the_same_bits(photos, tmp_path, monkeypatch, how):
    "From the state after its probe or its first epoch, from one of the later ones, and from two within an epoch: each is all that a new process would know."
    places, inside = [], []

    def keep(state: dict) -> None:
        write_checkpoint(tmp_path / "states" / str(len(places)), state)
        places.append((state["stage"], state["epoch"]))
        if state["learner"].get("within"):
            inside.append(len(places) - 1)

    monkeypatch.setattr("snakecls.train.cut_cache._remove", lambda file: None)  # a process that is killed removes nothing
    whole, wanted = train(photos, tmp_path / "whole", SETTINGS[how], keep=keep)
    assert {(1, 0), (2, 0)} <= set(places)  # after the probe, and between the stages
    rng = np.random.default_rng(len(how))
    assert bool(inside) == ("kept" not in how)  # over kept activations an epoch takes seconds
    ends = [number for number in range(len(places)) if number not in inside]
    for chosen in (rng.choice(ends[:2]), rng.choice(ends[2:-1]), *(rng.choice(inside, 2, replace=False) if inside else ())):
        _, state = read_checkpoint(tmp_path / "states" / str(chosen))
        result, weights = train(photos, tmp_path / "whole", SETTINGS[how], resume=state)
        assert plain(result) == plain(whole), places[chosen]
        assert all(torch.equal(value, wanted[name]) for name, value in weights.items()), places[chosen]
    if "kept" in how:
        assert "trained only what is above" in whole.message


def test_the_state_of_another_network_is_refused(photos, tmp_path):
    states = []
    train(photos, tmp_path, {}, keep=states.append)
    state = states[-1] | {"learner": {"model": torch.nn.Linear(2, 2).state_dict()}}
    with pytest.raises(UserError, match="another network; go on with the experiment"):
        train(photos, tmp_path, {}, resume=state)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    for number in range(3):
        write_checkpoint(tmp_path, {"number": number, "weights": torch.full((4,), float(number))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"] and KEPT == 2
    newest = tmp_path / "000003" / TENSORS
    whole = newest.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"?", b""):
        newest.write_bytes(damaged)
        assert read_checkpoint(tmp_path)[1]["number"] == 1
    newest.write_bytes(whole)
    assert read_checkpoint(tmp_path)[1]["number"] == 2
    (tmp_path / "000003" / "state.json").write_text("{}")
    assert read_checkpoint(tmp_path)[1]["number"] == 1
    (tmp_path / ".new-000004").mkdir()  # half written when the process was killed
    assert write_checkpoint(tmp_path, {"number": 4}).name == "000004" and read_checkpoint(tmp_path)[1]["number"] == 4


def test_a_full_disk_leaves_the_earlier_ones(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, {"number": 1})
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_checkpoint(tmp_path, {"number": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["000001"] and read_checkpoint(tmp_path)[1]["number"] == 1
