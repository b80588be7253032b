"""A run within a budget: what is planned never shrinks with the time, ends inside it, keeps what the file says, and refuses in one sentence."""
import json
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fastai.callback.core import Callback
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from warm import run_command

from snakecls.core import UserError
from snakecls.experiment.budget import Budget, Costs, Free, list_candidates, plan_budget, _reckon, shorten_schedule
from snakecls.experiment.duration import Scene, StageCosts
from snakecls.experiment.file import make_experiment
from snakecls.experiment.in_budget import leave_free
from snakecls.experiment.plan import make_plan
from snakecls.train.deadline import EndInTime, EndWithoutGain
from snakecls.train.schedules import progressive_fit
from snakecls.train.stages import Stage
from snakecls.workflow.run import run_experiment

SMALL = {"arch": "test_resnet", "weights": "none"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("budget"), np.random.default_rng(0)
    for place, label in enumerate(("red", "green")):
        (folder / label).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 130, (40, 44, 3), dtype=np.uint8)
            pixels[..., place] += 60
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def described(photos: Path, **values):
    return make_experiment({"data": {"source": photos, "valid": 0.3}, "model": SMALL, "train": {"num_workers": 0, "image_cache": 0}, "track": []} | values)


def costs_of(read: float, train: float, answer: float, features: float, n_train: int, workers: int = 0) -> Costs:
    return Costs(224, StageCosts(read, read, train, answer, features, 0.01, 3304), Scene(n_train, 200, 10, workers=workers, on_cpu=True, cores=2, threads=2))


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.floats(1e-5, 0.5)] * 4), st.integers(8, 20_000), st.integers(0, 2), st.booleans(), st.booleans())
def test_more_time_never_plans_less_and_every_plan_ends_inside_its_budget(seconds, n_train, workers, depths, probes):
    costs, candidates = costs_of(*seconds, n_train, workers), list_candidates(Free(depths=(3, 4) if depths else (), probes=probes))
    least = min(_reckon(candidate, costs, spent=5.0).seconds for candidate in candidates)
    plans = [plan_budget(candidates, costs, budget, spent=5.0) for budget in np.geomspace(least, 100 * least, 15)]
    assert all(plan.taken.seconds <= plan.seconds for plan in plans)
    for less, more in pairwise(plans):
        assert less.chosen <= more.chosen and less.taken.epochs <= more.taken.epochs
        assert max(stage.seen_size for stage in less.taken.stages) <= max(stage.seen_size for stage in more.taken.stages)
        assert bool(less.taken.joining) <= bool(more.taken.joining)
    with pytest.raises(UserError, match="less than the smallest plan takes here"):
        plan_budget(candidates, costs, 0.99 * least, spent=5.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
def test_a_written_schedule_loses_epochs_alone_and_no_stage_gets_fewer_with_more(epochs):
    stages = [Stage(size=32 * (i + 1), epochs=n, lr=1e-4 * (i + 1)) for i, n in enumerate(epochs)]
    found = shorten_schedule(stages)
    assert [candidate.epochs for candidate in found] == list(range(1, sum(epochs) + 1))
    for less, more in pairwise(found):
        assert all(a.epochs <= b.epochs for a, b in zip(less.stages, more.stages))
    assert all(new.replace(epochs=old.epochs) == old for candidate in found for new, old in zip(candidate.stages, stages))
    assert list(found[-1].stages) == stages


def test_what_the_file_says_is_kept(photos):
    lite = {"arch": "tf_efficientnet_lite0"}
    assert leave_free(described(photos, model=lite))[1].depths == (3, 4, 5, 6, 7)
    kept, free = leave_free(described(photos, model=lite | {"depths": [5]}, predict={"flip": False}))
    assert (kept.model.depths, free.depths, free.flip) == ([5], (), False)
    written = described(photos, schedule=[{"size": 32, "epochs": 4, "lr": 0.002}])
    assert leave_free(written) == (written, None)
    plan = make_plan(written)
    fitted = plan.open_photos().fit_budget(Budget(600, started=0.0, clock=lambda: 1.0), None)
    assert fitted.experiment == plan.experiment and fitted.experiment.schedule == written.schedule


class Slow(Callback):
    "Let every training batch take longer, by a clock that a test moves."

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def after_batch(self):
        if self.training:
            self.clock.now += self.seconds


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("slower", [1, 3, 20])
def test_a_schedule_ends_inside_also_where_epochs_take_longer_than_was_thought(photos, tmp_path, slower):
    clock, experiment = Clock(), described(photos, schedule=[{"size": 32, "epochs": 3, "bs": 4}, {"size": 40, "epochs": 3, "bs": 4}])
    opened = make_plan(experiment).open_photos(tmp_path)
    costs = Costs(32, StageCosts(0, 0, 0.25, 0, 0, 0), Scene(28, 12, 2, workers=0, on_cpu=True))
    chosen = plan_budget(shorten_schedule(opened.stages), costs, 100.0)
    plan = opened.watch(Budget(100.0, started=0.0, clock=clock), chosen)
    gain, end = plan.cbs[-2:]
    assert (type(gain), type(end)) == (EndWithoutGain, EndInTime) and chosen.taken.epochs == 6
    with plan.learn.no_bar(), plan.learn.no_logging():
        result = progressive_fit(plan.learn, plan.stages, saver=plan.saver, cbs=[end, Slow(clock, slower)], begins=end.may_begin)
    assert clock.now <= 100
    by_stage = [sum(row["stage"] == number and row["epoch"] > 0 for row in result.rows) for number in (1, 2)]
    assert by_stage == {1: [3, 3], 3: [2, 2], 20: [1, 0]}[slower]
    assert ("ended in time" in result.message) == (slower > 1)


def test_a_run_within_a_budget_says_what_was_planned_and_keeps_it(photos, tmp_path):
    said: list[str] = []
    experiment = described(photos, schedule=[{"size": 32, "epochs": 1000, "bs": 4}])
    start = time.monotonic()
    result = run_experiment(experiment, root=tmp_path / "runs", logbook=None, say=said.append, budget="90s")
    assert time.monotonic() - start < 90
    kept = json.loads((result.run / "budget.json").read_text())
    assert kept["seconds"] == 90 and kept["used"] <= 90 and kept["planned"] <= 90 and kept["kept"].startswith("The schedule is the experiment's own")
    assert result.metrics["budget"]["candidates"] == kept["candidates"]
    assert any(line.startswith("Budget: 1:30, of which") for line in said) and any("  taken  " in line for line in said) and any("would end by" in line for line in said)
    assert 1 <= len([row for row in result.run.history().to_dict("records") if row["epoch"]]) < 1000


def test_the_default_recipe_tells_how_long_it_takes_at_most(photos, tmp_path, monkeypatch):
    said: list[str] = []
    import snakecls.workflow.run as module

    monkeypatch.setattr(module, "estimate_seconds", lambda *args, **kwargs: -29.9)  # at most 0.2 seconds
    default = described(photos, model={"arch": "test_resnet", "weights": "none"})
    result = run_experiment(default, root=tmp_path / "runs", logbook=None, say=said.append)
    assert any("no epoch is trained that would not end within" in line for line in said)
    rows = result.run.history().to_dict("records")
    assert [row["epoch"] for row in rows] == [1] and rows[0]["is_best"]  # cut, but there is a model


def command(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    return run_command("train", *args, cwd=cwd)


@pytest.mark.parametrize("args, says", [
    (["--budget", "10"], "--budget 10 has no unit; write 10s, 10m or 10h."),
    (["--budget=-5m"], "--budget '-5m' is no time that something can take; write 90s, 10m, 1.5h or 1h30m."),
    (["--budget", "soon"], "--budget 'soon' is no time that something can take"),
    (["--budget", "10m", "--folds", "3"], "--budget is the time of one run"),
])
def test_a_budget_that_is_none_is_one_sentence(photos, tmp_path, args, says):
    done = command("--data", str(photos), *args, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_too_little_time_is_refused_before_anything_is_written_and_the_file_stays(photos, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: {{source: {photos}}}\nmodel: {{arch: test_resnet, weights: none}}\ntrack: []\n")
    before = file.read_text()
    done = command(str(file), "--budget", "1s", cwd=tmp_path)
    assert done.returncode == 2 and "less than the smallest plan takes here" in done.stderr and "give at least" in done.stderr
    assert file.read_text() == before and not list(tmp_path.glob("runs/*"))
