"""A run that was killed at any moment goes on to the bits of the run that nothing had stopped."""
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from snakecls.core import UserError
from snakecls.data.demo.draw import make_demo
from snakecls.experiment.file import make_experiment
from snakecls.workflow.run import resume_run, run_experiment
from snakecls.workflow.run_folder import RunFolder, find_run, read_status

SPECIES = ["Bungarus fasciatus", "Vipera berus", "Natrix natrix"]
MOMENTS = {  # where the process is killed: module, what is called there, and at which of its calls; "after" it, or before
    "within the first batch": ("fastai.learner:Learner", "_do_one_batch", 2, "before"),
    "within a later epoch": ("fastai.learner:Learner", "_do_one_batch", 13, "before"),
    "within a validation": ("fastai.learner:Learner", "_do_epoch_validate", 2, "before"),
    "in the probe": ("snakecls.train.schedules:", "fit_heads", 1, "before"),
    "after the probe, before its checkpoint": ("snakecls.train.schedules:", "_keep", 1, "before"),
    "while the best weights are written": ("os:", "replace", 24, "before"),
    "while a checkpoint is written": ("snakecls.train.checkpoints:", "_hash", 3, "before"),
    "after a checkpoint was written": ("snakecls.train.schedules:", "_keep", 3, "after"),
    "between the stages": ("snakecls.train.schedules:", "valid_metrics", 1, "before"),
    "while the bundle is written": ("snakecls.models.bundle:", "_write_sealed", 1, "before"),
    "while the report is written": ("snakecls.workflow.results:", "write_run_report", 1, "before"),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo"), n_per_species=11, size_px=64, species=SPECIES, seed=2)


@pytest.fixture(scope="module")
def server():
    "A process that has loaded the library: its children begin at once, and are killed."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["snakecls.workflow.run", "snakecls.train.learner"])
    return context


def describe(photos: Path) -> dict:
    "Mixed, averaged and augmented, in two stages; the second one trains the head on what is kept of the frozen part."
    return {
        "name": "killed", "data": {"source": str(photos / "photos.csv"), "target": "binomial", "valid": 0.3},
        "model": {"arch": "test_efficientnet", "weights": "none"}, "augment": {"backend": "fastai"},
        "train": {"bs": 4, "num_workers": 0, "precision": "fp32", "batch_norm": "all", "ema": 0.9, "image_cache": 0.1},
        "schedule": [{"size": 48, "epochs": 2, "head": "probe", "lr": 1e-3, "mixup": 0.3},
                     {"size": 64, "epochs": 3, "bs": 6, "freeze": "body", "lr": 1e-3, "cached_views": 1}],
    }


def die_at(place: str, name: str, call: int, when: str) -> None:
    "Let a function's call end the process, as kill -9 does."
    from importlib import import_module

    module, _, kind = place.partition(":")
    owner = getattr(import_module(module), kind) if kind else import_module(module)
    real, left = getattr(owner, name), [call]

    def dying(*args, **kwargs):
        left[0] -= 1
        if not left[0] and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def train(values: dict, folder: Path, moment: tuple | None = None, resume: bool = False) -> None:
    "Train, or go on, in a process of its own."
    os.environ["SNAKECLS_CACHE"] = str(folder / "cache")
    sys.stdout = sys.stderr = (folder / "out.txt").open("a")
    if moment is not None:
        die_at(*moment)
    if resume:
        resume_run("latest", root=folder / "runs", command="snakecls train --resume latest")
    else:
        run_experiment(make_experiment(values), root=folder / "runs", logbook=folder / "logbook.md", command="snakecls train")


def run(server, *args) -> int:
    "Wait for such a process; gives its exit code."
    process = server.Process(target=train, args=args)
    process.start()
    process.join(180)
    return process.exitcode


def without_time(value):
    "Leave out what time and place do to a run's records."
    if isinstance(value, dict):
        names = ("seconds", "training_seconds", "budget", "bundle_mb", "model_mb", "created", "run", "run_id")
        return {key: without_time(part) for key, part in value.items() if key not in names}
    return [without_time(part) for part in value] if isinstance(value, list) else value


def all_of(folder: Path) -> dict:
    "All that a finished run says: weights, history, metrics and answers."
    path = find_run(folder / "runs", "latest").path
    assert read_status(path)["status"] == "finished", (folder / "out.txt").read_text()[-3000:]
    history = pd.read_csv(path / "history.csv").drop(columns="seconds")
    metrics = without_time(json.loads((path / "metrics.json").read_text()))
    answers = {file.name: pd.read_parquet(file) for file in sorted(path.glob("predictions*.parquet"))}
    return {"weights": load_file(path / "best" / "weights.safetensors"), "history": history, "metrics": metrics, "answers": answers}


def check_same(one: dict, two: dict) -> None:
    assert one["weights"].keys() == two["weights"].keys()
    assert all(np.array_equal(value, two["weights"][name]) for name, value in one["weights"].items())
    pd.testing.assert_frame_equal(one["history"], two["history"], check_exact=True)
    assert one["metrics"] == two["metrics"]
    assert one["answers"].keys() == two["answers"].keys() and one["answers"]
    for name, table in one["answers"].items():
        pd.testing.assert_frame_equal(table, two["answers"][name], check_exact=True)


@pytest.fixture(scope="module")
def whole(photos, server, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    assert run(server, describe(photos), folder) == 0, (folder / "out.txt").read_text()[-3000:]
    found = all_of(folder)
    assert "trained only what is above" in found["metrics"]["message"]
    assert not (find_run(folder / "runs", "latest") / "checkpoints" / "resume").exists()
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bits(photos, server, whole, tmp_path, moment):
    assert run(server, describe(photos), tmp_path, MOMENTS[moment]) == -signal.SIGKILL, (tmp_path / "out.txt").read_text()[-3000:]
    assert read_status(find_run(tmp_path / "runs", "latest").path)["status"] == "killed"
    assert run(server, {}, tmp_path, None, True) == 0, (tmp_path / "out.txt").read_text()[-3000:]
    check_same(all_of(tmp_path), whole)
    assert not list((tmp_path / "cache").glob("**/*.activations"))
    log = (tmp_path / "logbook.md").read_text()
    assert log.count("## 20") == 1 and "(killed)" not in log  # what came of it, and how it ended before
    assert ("- Ended early: " in log and "kill -9" in log) or moment == "while the report is written"  # whose scores were there already
    assert "- Command: `snakecls train # then: snakecls train --resume latest`" in log


def test_what_cannot_go_on_is_refused(tmp_path):
    early = RunFolder.create(tmp_path, "early")
    with pytest.raises(UserError, match="still running"):
        resume_run(early)
    early.finish("failed", message="the disk is full")
    with pytest.raises(UserError, match="keeps no list of its photos"):
        resume_run("early", root=tmp_path)
    early.finish()
    with pytest.raises(UserError, match="is finished, so there is nothing to go on with; snakecls train .*experiment.yaml trains it again"):
        resume_run(early.path)
    with pytest.raises(UserError, match="earl"):
        resume_run("earyl", root=tmp_path)


def in_process(photos: Path, folder: Path, monkeypatch, error: BaseException, batch: int) -> tuple[str, RunFolder]:
    "Train in this process until a batch raises; gives all that was said."
    from fastai.learner import Learner

    monkeypatch.setenv("SNAKECLS_CACHE", str(folder / "cache"))
    real, left, said = Learner._do_one_batch, [batch], []

    def raising(self):
        left[0] -= 1
        if not left[0]:
            raise error
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_do_one_batch", raising)
        with pytest.raises(type(error)):
            run_experiment(make_experiment(describe(photos)), root=folder / "runs", logbook=folder / "logbook.md", say=said.append)
    return "\n".join(map(str, said)), find_run(folder / "runs", "latest")


def test_the_command_goes_on_with_a_run_that_was_stopped_and_names_itself(photos, whole, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from snakecls.cli import app

    said, stopped = in_process(photos, tmp_path, monkeypatch, KeyboardInterrupt("SIGTERM"), 9)
    assert said.endswith(f"; snakecls train --resume {stopped.id} goes on with it.") and "the best so far" in said
    assert stopped.metrics()["ended_early"] and (stopped / "best").is_dir()
    call = lambda *words: CliRunner().invoke(app, ["train", "--resume", *words, "--runs", str(tmp_path / "runs")])  # noqa: E731
    for extra, told in (("--set=seed=1", "--set"), (f"--data={photos}", "--data"), ("--budget=1m", "--budget"), ("--folds=3", "--folds")):
        refused = call("latest", extra)
        assert isinstance(refused.exception, UserError) and f"as it was described, so {told} cannot be given with it" in str(refused.exception)
    history = (stopped / "history.csv").read_text()
    assert stopped.metrics()["ended_early"] and history  # a refusal has changed nothing
    done = call(stopped.id, "--json")
    assert done.exit_code == 0, done.exception
    check_same(all_of(tmp_path), whole)
    assert "ended_early" not in stopped.metrics() and "message" not in {k for k, v in json.loads((stopped / "status.json").read_text()).items() if v}
    assert isinstance(call("latest").exception, UserError)  # finished now


def test_an_error_and_a_changed_machine_are_told_and_the_run_goes_on(photos, whole, tmp_path, monkeypatch):
    said, failed = in_process(photos, tmp_path, monkeypatch, RuntimeError("the card is gone"), 13)
    assert "RuntimeError: the card is gone" in said and "train --resume" in said
    environment = json.loads((failed / "environment.json").read_text())
    (failed / "environment.json").write_text(json.dumps(environment | {"cores": 999}))
    (photos / "photos.csv").rename(photos / "elsewhere.csv")  # the photos are known without their table
    said = []
    try:
        resume_run(failed, say=said.append)
    finally:
        (photos / "elsewhere.csv").rename(photos / "photos.csv")
    assert any("and was 999, so the run may not end with the same bits" in str(line) for line in said)
    check_same(all_of(tmp_path), whole)


def test_a_checkpoint_that_cannot_be_written_ends_no_run(photos, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("snakecls.workflow.resuming.write_checkpoint", full)
    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    result = run_experiment(make_experiment(describe(photos)), root=tmp_path / "runs", logbook=None, say=said.append)
    assert result.metrics["valid"] and sum("a checkpoint could not be written (No space left on device)" in str(line) for line in said) == 1


def test_a_budget_without_a_checkpoint_is_refused_before_anything_is_changed(tmp_path):
    run = RunFolder.create(tmp_path, "within")
    (run / "checkpoints").mkdir()
    pd.DataFrame({"path": ["a.jpg"], "label": ["a"], "split": ["train"]}).to_parquet(run / "checkpoints" / "photos.parquet")
    (run / "budget.json").write_text("{}")
    run.finish("failed", message="the disk is full")
    with pytest.raises(UserError, match="within a budget and has no checkpoint yet; give its first command again"):
        resume_run(run, say=lambda text: None)
    assert read_status(run.path)["message"] == "the disk is full"
