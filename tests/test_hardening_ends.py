"""What ends and what goes on again: resumed fits, groups of runs that a signal ends, disks that take nothing, Ctrl-C at any time."""
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from snakecls.train.callbacks import KeepAnswers, SaveBestF1
from snakecls.train.probes import answer_metrics
from snakecls.train.stopping import EarlyStopping


class Scripted(torch.nn.Module):
    "Knows each photo by its grey, and answers rightly as the script of the epoch says."

    def __init__(self, levels: torch.Tensor, right: set[int]):
        super().__init__()
        self.levels, self.right, self.weight = levels, right, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        if self.training:
            return torch.zeros(len(x), 2) + self.weight
        number = (x.float().mean((1, 2, 3))[:, None] - self.levels[None]).abs().argmin(1)
        wrong = torch.tensor([int(each) not in self.right for each in number])
        return torch.nn.functional.one_hot((number + wrong) % 2, 2).float() * 5 + 0 * self.weight


def grey_table(folder: Path) -> pd.DataFrame:
    "Draw 12 photos for validation and 4 for training, each in a grey of its own."
    rows = []
    for number in range(16):
        file = folder / f"{number:02}.png"
        Image.new("RGB", (40, 40), (number * 15,) * 3).save(file)
        rows.append((str(file), "ab"[number % 2], "valid" if number < 12 else "train"))
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def fit_on(table: pd.DataFrame, folder: Path, levels: torch.Tensor | None, right: set[int], *cbs) -> torch.Tensor:
    "Fit an epoch whose validation answers rightly on some photos; gives the photos' greys as the network sees them."
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat

    from snakecls.data.datablocks import photo_dls
    from snakecls.data.photos import PhotoSpec
    from snakecls.train.metrics import epoch_metrics

    dls = photo_dls(table, spec=PhotoSpec(size=32), bs=4, num_workers=0)
    if levels is None:
        levels = torch.cat([x.float().mean((1, 2, 3)) for x, _ in dls.valid])
    learn = Learner(dls, Scripted(levels, right), loss_func=CrossEntropyLossFlat(), metrics=epoch_metrics(), path=folder)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[*cbs, KeepAnswers(partial(answer_metrics, learn))])
    return levels


@pytest.mark.parametrize("how", ["left out of the table", "vanished since the start"])
@pytest.mark.parametrize("lost, right, wins", [(range(8, 12), set(range(7)), False), (range(4), set(range(4, 9)), True)])
def test_a_resumed_fit_compares_on_the_photos_that_both_saw(tmp_path, how, lost, right, wins):
    "Photos 0 to 7 of 12 were right: 0.67. Then those that were wrong are lost, and 7 of 8 are worse; or four right ones are, and 5 of 8 are better."
    table = grey_table(tmp_path)
    saver, stop = SaveBestF1(verbose=False), EarlyStopping(patience=3, verbose=False)
    levels = fit_on(table, tmp_path, None, set(range(8)), saver, stop)
    assert saver.best == pytest.approx(2 / 3, abs=0.01)
    torch.save([saver.state_dict(), stop.state_dict()], tmp_path / "states.pth")
    states = torch.load(tmp_path / "states.pth", weights_only=True)  # the checkpoint is plain data
    for number in lost:
        Path(table["path"][number]).unlink()
    if how == "left out of the table":
        table = table.drop(index=list(lost)).reset_index(drop=True)
    saver, stop = SaveBestF1(verbose=False), EarlyStopping(patience=3, verbose=False)
    saver.load_state_dict(states[0]), stop.load_state_dict(states[1])
    with pytest.warns(UserWarning, match="compared with it on the 8 that both saw") as told:
        fit_on(table, tmp_path, levels, right, saver, stop)
    assert sum("the best so far (epoch 1 of stage 1)" in str(each.message) for each in told) == 1
    assert (saver.best_stage == 2, stop.waited == 0) == (wins, wins)
    assert SaveBestF1().load_state_dict(saver.state_dict()) is None


def test_a_resumed_fit_on_the_same_photos_says_nothing_and_counts_on(tmp_path):
    table, saver = grey_table(tmp_path), SaveBestF1(verbose=False)
    levels = fit_on(table, tmp_path, None, set(range(8)), saver)
    for right, wins in ((set(range(8)), False), (set(range(9)), True)):
        again = SaveBestF1(verbose=False)
        again.load_state_dict(saver.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            fit_on(table.sample(frac=1, random_state=1).sort_values("split", kind="stable") if wins else table, tmp_path, levels, right, again)
        assert (again.best_stage == 2) == wins


def test_what_cannot_be_compared_beats_nothing_and_is_told(tmp_path):
    "The project was moved: no photo is known by its name any more."
    table, saver = grey_table(tmp_path), SaveBestF1(verbose=False)
    levels = fit_on(table, tmp_path, None, set(range(8)), saver)
    (tmp_path / "moved").mkdir()
    moved = grey_table(tmp_path / "moved")
    again = SaveBestF1(verbose=False)
    again.load_state_dict(saver.state_dict())
    with pytest.warns(UserWarning, match="no epoch can beat it; bring the photos back"):
        fit_on(moved, tmp_path, levels, set(range(12)), again)
    assert (again.best_stage, again.best) == (1, saver.best) and np.isfinite(again.best)


def test_a_checkpoint_from_before_still_resumes_and_says_what_it_does_not_know(tmp_path):
    table, saver, stop = grey_table(tmp_path), SaveBestF1(verbose=False), EarlyStopping(patience=3, verbose=False)
    levels = fit_on(table, tmp_path, None, set(range(8)), saver, stop)
    old = [{name: value for name, value in each.state_dict().items() if name != "best_answers"} for each in (saver, stop)]
    old[0]["last_saved_path"] = Path(old[0]["last_saved_path"])  # as it was kept
    again, stops = SaveBestF1(verbose=False), EarlyStopping(patience=3, verbose=False)
    again.load_state_dict(old[0]), stops.load_state_dict(old[1])
    with pytest.warns(UserWarning, match="does not say which validation photos the best so far"):
        fit_on(table, tmp_path, levels, set(range(10)), again, stops)
    assert (again.best_stage, stops.waited) == (2, 0)
