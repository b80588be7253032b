"""Sweeps: a space is checked, trials are runs of a group, those that fall behind end early, and whatever is killed is tried again."""
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPO, draw_colours, need
from warm import run_command

from snakecls.core import UserError
from snakecls.experiment.file import make_experiment

need("optuna")
from snakecls.deploy.predict import Predictor  # noqa: E402
from snakecls.workflow.final import train_final  # noqa: E402
from snakecls.workflow.run_folder import read_status  # noqa: E402
from snakecls.workflow.space import apply_settings, axis_values, check_space, grid_points, read_space  # noqa: E402
from snakecls.workflow.study import next_trial, open_study, working  # noqa: E402
from snakecls.workflow.sweeps import _quickest, find_sweep, resume_sweep, run_sweep, sweep_text, sweep_winner  # noqa: E402

LR = {"schedule.0.lr": {"low": 1e-4, "high": 1e-1, "log": True}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Thirty tiny photos of each of two colours."
    return draw_colours(tmp_path_factory.mktemp("photos"))


def describe(photos: Path, **more) -> dict:
    return {
        "name": "tiny", "data": {"source": str(photos), "test": 0.2}, "model": {"arch": "lenet5"}, "predict": {"examples": 0},
        "train": {"num_workers": 0, "image_cache": 0, "bs": 2}, "schedule": [{"size": 32, "epochs": 1, "lr": 1e-3}], **more}


def where(tmp_path: Path, said: list | None = None) -> dict:
    return {"root": tmp_path / "runs", "logbook": tmp_path / "logbook.md", "say": (said if said is not None else []).append}


@pytest.mark.parametrize("space, sentence", [
    ({"schedule.0.lrr": [1e-3]}, "did you mean 'schedule.0.lr'"),
    ({"train.bss": [8, 16]}, "key 'train.bss' does not exist; did you mean 'train.bs'?"),
    ({"model.ach": ["lenet5"]}, "did you mean 'model.arch'"),
    ({"schedule.4.lr": [1e-3]}, "no entry '4'"),
    ({"train.wd": {"low": -1, "high": 1.0}}, "greater than or equal to 0"),
    ({"train.wd": {"low": 0.1, "hihg": 1.0}}, "did you mean 'high'"),
    ({"train.wd": {"low": 0, "high": 1.0, "log": True}}, "a low above 0"),
    ({"train.wd": 0.1}, "what does not vary"),
    ({"seed": [1, 2]}, "--grid"),
    ({"data.valid": [0.1, 0.2]}, "the same photos"),
    ({"train": [{}], "train.wd": [0.1]}, "a part of it"),
    ({}, "write keys with values"),
    ({"name": "snakes", "data": {"source": "photos"}, "train": {"wd": 0.1}}, "has data and train as an experiment has"),
    ({"parameters": {"train.wd": {"distribution": "normal", "mu": 0}}}, "word 'mu'"),
    ({"parameters": {"train.wd": {"distribution": "normal"}}}, "distribution 'normal'"),
    ({"method": "bayess", "parameters": {"train.wd": {"values": [0.1]}}}, "did you mean 'bayes'"),
    ({"metric": {"name": "f1_macro", "goal": "minimize"}, "parameters": {"train.wd": {"values": [0.1]}}}, "every other metric maximised"),
    ({"metric": {"name": "f1_macr"}, "parameters": {"train.wd": {"values": [0.1]}}}, "did you mean 'f1_macro'"),
])
def test_a_space_that_cannot_be_is_refused(space, sentence, tmp_path):
    "With the nearest name, and before the photos (which are not there) are looked for."
    with pytest.raises(UserError, match=".") as error:
        run_sweep(make_experiment(describe(tmp_path / "nowhere")), space, **where(tmp_path))
    assert sentence in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text, sentence", [
    ("", "is empty; write keys with values, such as train.wd: [0.01, 0.1]."),
    ("# nothing yet\n", "is empty"),
    ("- train.wd", "is ['train.wd']; write keys with values"),
    ("train.wd: [0.01, 0.1\ntrain.bs: [8]\n", "is not valid YAML (line 2, column 9, 'train.bs: [8]': a list whose [ has no ]); mind"),
    ("train.wd: [0.01]\n\ttrain.bs: [8]\n", "is not valid YAML (line 2, column 1, 'train.bs: [8]': a tab, or a character"),
    ("train.wd: 'a\n", "is not valid YAML (line 2, column 1, at the end: a quote that is not closed); mind"),
    ("data: {source: photos}\ntrain: {wd: 0.1}\n", "the space has data and train as an experiment has"),
])
def test_a_space_file_that_is_none_is_told_in_one_plain_sentence(text, sentence, tmp_path):
    (tmp_path / "space.yaml").write_text(text)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(describe(tmp_path)))
    done = run_command("sweep", "a.yaml", "--space", "space.yaml", cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "None" not in done.stderr and "unicode string" not in done.stderr
    whole = read_space({"model": {"values": [{"arch": "lenet5"}, {"arch": "alexnet"}]}})  # a whole part may be varied
    assert len(whole.axes[0].choices) == 2


def test_every_kind_of_axis_reaches_the_experiment(photos):
    space = read_space({
        "train.wd": {"low": "1e-4", "high": "1e-1", "log": True}, "schedule.0.epochs": {"low": 1, "high": 5, "step": 2},
        "model.depths": [[], [3, 5]], "predict.flip": [True, False], "augment.mixup": {"low": 0.0, "high": 0.4, "step": 0.2}})
    experiment = check_space(space, make_experiment(describe(photos)))
    assert [axis_values(axis) for axis in space.axes[1:]] == [[1, 3, 5], [[], [3, 5]], [True, False], [0.0, 0.2, 0.4]]
    changed = apply_settings(experiment, {"train.wd": 0.02, "schedule.0.epochs": 3, "model.depths": [3, 5], "predict.flip": True, "augment.mixup": 0.2})
    assert (changed.train.wd, changed.schedule[0].epochs, changed.model.depths, changed.predict.flip, changed.augment.mixup) == (0.02, 3, [3, 5], True, 0.2)


def test_a_sweep_file_of_wandb_is_read(tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({
        "program": "train.py", "method": "grid", "metric": {"name": "accuracy", "goal": "maximize"}, "run_cap": 3,
        "parameters": {"train": {"parameters": {"wd": {"values": [0.1, 0.2]}}}, "train.bs": {"value": 8}, "schedule.0.epochs": {"min": 1, "max": 2}}}, sort_keys=False))
    space = read_space(tmp_path / "sweep.yaml")
    assert [(axis.key, axis_values(axis)) for axis in space.axes] == [("train.wd", [0.1, 0.2]), ("schedule.0.epochs", [1, 2])]
    assert (space.sampler, space.trials, space.monitor, space.fixed) == ("grid", 3, "accuracy", {"train.bs": 8})
    assert len(grid_points(space)) == 4 and "program" in space.notes[0]
    checked = check_space(space, make_experiment(describe(tmp_path)))
    assert (checked.monitor, checked.train.bs) == ("accuracy", 8)


def test_a_sweep_is_a_group_of_runs_with_one_entry_and_a_page(photos, tmp_path):
    said = []
    swept = run_sweep(make_experiment(describe(photos, question="Which rate?")), LR, trials=3, **where(tmp_path, said))
    assert swept.table["state"].tolist() == ["complete"] * 3 and swept.table["schedule.0.lr"].iloc[0] == 1e-3  # its own settings first
    runs = [tmp_path / "runs" / run for run in swept.table["run"]]
    assert {read_status(run)["part_of"] for run in runs} == {swept.folder.name}
    experiments = [yaml.safe_load((run / "experiment.yaml").read_text()) for run in runs]
    assert len({(values["seed"], values["data"]["seed"]) for values in experiments}) == 1
    values = [json.loads((run / "metrics.json").read_text())["best"]["value"] for run in runs]
    assert swept.table["value"].tolist() == values and swept.value == max(values)
    book = (tmp_path / "logbook.md").read_text()
    assert book.count("\n## ") == 1 and book.count("macro F1") == 2 and f"({swept.folder.name})" not in book  # the verdict's and the winner's test
    page = (swept.folder / "sweep.html").read_text()
    tests = [json.loads((run / "metrics.json").read_text())["test"]["f1_macro"] for run in runs]
    assert f"it has macro F1 {tests[values.index(max(values))]:.3f}" in page and "so this score is too good" in page and "http" not in page.replace("http://www.w3.org", "")
    assert "too good" in sweep_text(swept)
    resume_sweep(swept.folder, **where(tmp_path))  # nothing is added, so there is nothing to tell
    assert (tmp_path / "logbook.md").read_text() == book
    resume_sweep(swept.folder, trials=4, **where(tmp_path))
    assert (tmp_path / "logbook.md").read_text().count("\n## ") == 2
    notes = [line for line in said if line.startswith("Note: ")]
    assert len(notes) == len(set(notes))  # what trials have in common is told once


def test_a_sweep_whose_time_is_up_says_how_it_goes_on(photos, tmp_path):
    "And its settings can be pasted behind a command, lists too."
    said = []
    space = {"model.kwargs.filters": [[4, 8], [8, 8]]}
    cnn = describe(photos, model={"arch": "cnn", "kwargs": {"filters": [4, 8], "dense_neurons": 8}})
    swept = run_sweep(make_experiment(cnn), space, trials=9, timeout=0.001, **where(tmp_path, said))
    assert not len(swept.table) and any(f"after 0 of 9 trials; snakecls sweep --resume {swept.folder.name}" in line for line in said)
    swept = resume_sweep(swept.folder, trials=1, **where(tmp_path, said))
    words = shlex.split(next(line for line in sweep_text(swept).splitlines() if line.startswith("Its settings:")))
    assert words[2:] == ["--set", "model.kwargs.filters=[4, 8]"]


def test_of_trials_that_do_not_lead_the_least_is_written(photos, tmp_path):
    "The winner has all that a run has; of the others graph, export and report are missing, said so, and not linked to."
    two = [{"size": 32, "epochs": 1, "lr": 1e-3}, {"size": 36, "epochs": 1, "lr": 1e-3}]
    space = {"schedule.0.lr": [0.05, 1e-9], "schedule.1.lr": [0.05, 1e-9]}
    swept = run_sweep(make_experiment(describe(photos, schedule=two)), space, sampler="grid", pruner="none", **where(tmp_path))
    page, best, brief = (swept.folder / "sweep.html").read_text(), -1.0, 0
    for row in swept.table.itertuples():
        run, leads = tmp_path / "runs" / row.run, row.value > best
        best, metrics = max(best, row.value), json.loads((run / "metrics.json").read_text())
        assert (run / "report.html").exists() == (run / "export.pkl").exists() == ("left_out" not in metrics) == leads
        assert len(Predictor(run).probs([str(next(photos.rglob("*.png")))])[0]) == 2 and (run / "predictions-valid.parquet").exists()
        assert (f"../{row.run}/report.html" in page) == leads
        brief += not leads
    assert brief and (tmp_path / "runs" / swept.run / "report.html").exists()
    assert "<th>0.lr</th><th>1.lr</th>" in "".join(page.split("\n")).replace("  ", "") and "| 0.lr | 1.lr |" in (tmp_path / "logbook.md").read_text()


def test_a_grid_has_all_combinations_and_no_more(photos, tmp_path):
    swept = run_sweep(make_experiment(describe(photos)), {"train.wd": [0.01, 0.1], "predict.flip": [False, True]}, sampler="grid", trials=50, **where(tmp_path))
    assert sorted(zip(swept.table["train.wd"], swept.table["predict.flip"])) == [(0.01, False), (0.01, True), (0.1, False), (0.1, True)]
    assert "the experiment's own settings" in swept.verdict  # 0.01 and False, which are among them


def test_a_probe_is_swept_on_kept_features(photos, tmp_path, monkeypatch):
    "No photo goes through the network for the head's second trial, and what was tried is not trained again."
    from snakecls.models import feature_cache

    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path / "cache"))
    computed, usual, said = [], feature_cache._compute, []
    monkeypatch.setattr(feature_cache, "_compute", lambda model, photos, *args, **how: computed.append(len(photos)) or usual(model, photos, *args, **how))
    values = describe(photos, model={"arch": "tf_efficientnet_lite0"}, schedule=[{"size": 64, "epochs": 0, "head": "probe"}])
    started = []
    where_said = where(tmp_path) | {"say": lambda text: (said.append(text), started.append(len(computed)) if text.startswith("Trial ") else None)}
    swept = run_sweep(make_experiment(values), {"schedule.0.mirrored": [True, False]}, trials=4, pruner="median", **where_said)
    assert computed and started[0] == 0 and set(started[1:]) == {len(computed)}  # all of it in the first
    assert swept.table["state"].tolist() == ["complete"] * 4  # after a probe alone there is nothing to save
    assert swept.table["run"].nunique() == 2 and swept.table["note"].str.contains("not trained again").sum() == 2


def find_final(root: Path, swept) -> tuple[list[str], int]:
    "Say what a final model of a sweep would be made of."
    from snakecls.workflow.final import find_winner

    winner = find_winner(root, swept.folder.name)
    return [run.id for run in winner.runs], winner.trials


PROBED = [{"size": 32, "epochs": 1, "head": "probe", "bs": 9}]


def test_after_a_probe_a_trial_is_judged_by_what_it_trained(photos, tmp_path):
    "Rates that wreck the network have the wrecked scores, though the probe is what is served; the winner of a final model is the same."
    swept = run_sweep(make_experiment(describe(photos, schedule=PROBED)), {"schedule.0.lr": [0.3, 1e3]}, sampler="grid", **where(tmp_path))
    table, runs = swept.table, [tmp_path / "runs" / run for run in swept.table["run"]]
    for row, run in zip(table.itertuples(), runs):
        history, best = pd.read_csv(run / "history.csv"), json.loads((run / "metrics.json").read_text())["best"]
        assert row.value == pytest.approx(history["f1_macro"][history["epoch"] > 0].max()) and row.served == best["value"]
        assert (row.about, row.serves, best["epoch"]) == ("trained", "probe", 0) and row.value < row.served
    assert table["value"].nunique() == 2 and table["served"].nunique() == 1
    study = open_study(swept.folder, read_space(LR))
    assert [trial.intermediate_values for trial in study.trials] == [{1: value} for value in table["value"]]
    best = table.loc[table["value"].idxmax()]
    assert (swept.value, swept.run) == (best["value"], best["run"]) and sweep_winner(swept.folder) == (*find_final(tmp_path / "runs", swept), "") == ([best["run"]], 2, "")
    book, page, text = (tmp_path / "logbook.md").read_text(), (swept.folder / "sweep.html").read_text(), sweep_text(swept)
    assert "(trained)" in swept.verdict and "| of | served |" in book and "<th>Served</th>" in page and "serves" in text and "Its settings:" in text
    served = f"he probe, {best['served']:.3f}, is served; no trial's training beat it"
    assert all(served in words.replace("&#39;", "'") for words in (book, text, page))


def test_where_all_trials_are_level_none_is_recommended(photos, tmp_path):
    "Rates of nothing leave the probe as it is."
    swept = run_sweep(make_experiment(describe(photos, schedule=PROBED)), {"schedule.0.lr": [1e-12, 2e-12]}, sampler="grid", **where(tmp_path))
    level = "all 2 trials have the same score: what was varied made no difference"
    served = f"the probe, {swept.table['served'].iloc[0]:.3f}, is served; no trial's training beat it"
    page, book, text = (swept.folder / "sweep.html").read_text(), (tmp_path / "logbook.md").read_text(), sweep_text(swept)
    assert swept.settings == {} and swept.table["serves"].tolist() == ["probe"] * 2
    assert all(level in words and served in words for words in (book, text)) and level[1:] in page and served[1:] in page.replace("&#39;", "'")
    assert "Its settings" not in text and "Best run" not in text and "the best:" not in book
    assert "the darker" not in page and "All trials have the same score" in page and '<tr class="best"' not in page
    said: list[str] = []
    quickest = swept.table.loc[swept.table["seconds"].idxmin()]
    final = train_final(swept.folder.name, **where(tmp_path, said)).metrics["final"]
    assert any(f"{level}; trial {quickest['trial']} is taken, the " in line for line in said) and final["winner"] == quickest["run"]


def test_of_level_trials_the_quickest_is_taken_and_the_first_where_that_is_not_known():
    table = pd.DataFrame({"trial": [0, 1, 2, 3], "seconds": [30.0, 20.0, 10.0, 25.0]})
    assert _quickest(table, [0, 1, 3]) == (1, "the quickest of them (20.0 s, the slowest 30.0 s)")
    for seconds in ([30.0, None, 10.0, 25.0], [20.0] * 4):
        assert _quickest(table.assign(seconds=seconds), [0, 1, 3]) == (0, "the first of them, as none is known to be quicker")


def test_folds_are_judged_by_what_they_trained(photos, tmp_path):
    swept = run_sweep(make_experiment(describe(photos, schedule=PROBED)), {"schedule.0.lr": [1e3]}, sampler="grid", folds=2, **where(tmp_path))
    histories = [pd.read_csv(file) for file in (tmp_path / "runs").glob("*/history.csv")]
    assert len(histories) == 2 and swept.value == pytest.approx(sum(each["f1_macro"][each["epoch"] == 1].iloc[0] for each in histories) / 2)
    assert swept.value < swept.table["served"].iloc[0] and "in the mean" not in swept.verdict and "is served" in swept.verdict


def test_a_trial_that_falls_behind_ends_early(photos, tmp_path):
    "Steps count over both stages; a rate of nothing is behind the others' median at its first epoch."
    schedule = [{"size": 32, "epochs": 2, "lr": 0.05}, {"size": 36, "epochs": 2, "lr": 0.05}]
    swept = run_sweep(
        make_experiment(describe(photos, schedule=schedule)), {"schedule.0.lr": [0.05, 0.04, 0.06, 0.055, 0.045, 1e-9, 2e-9, 3e-9]}, sampler="grid",
        pruner="median", **where(tmp_path))
    pruned = swept.table[swept.table["state"] == "pruned"]
    assert len(pruned) and set(pruned["schedule.0.lr"]) <= {1e-9, 2e-9, 3e-9} and (pruned["epochs"] < 4).all()
    run = tmp_path / "runs" / pruned["run"].iloc[0]
    assert read_status(run)["status"] == "stopped" and "by the sweep" in read_status(run)["message"]
    steps = [list(trial.intermediate_values) for trial in open_study(swept.folder, read_space(LR)).trials if trial.state.name == "COMPLETE"]
    assert steps and all(each == [1, 2, 3, 4] for each in steps)


def test_each_trial_can_be_folds(photos, tmp_path):
    said = []
    swept = run_sweep(make_experiment(describe(photos)), {"train.wd": [0.01, 0.1]}, sampler="grid", folds=2, **where(tmp_path, said))
    assert len(list((tmp_path / "runs").glob("*-fold1"))) == 2 and any("Wilcoxon" in line for line in said)
    study = open_study(swept.folder, read_space({"train.wd": [0.01, 0.1]}))
    for trial in study.trials:
        assert trial.value == pytest.approx(sum(trial.intermediate_values.values()) / 2)


def test_a_trial_that_cannot_run_is_noted_and_the_others_go_on(photos, tmp_path):
    swept = run_sweep(make_experiment(describe(photos)), {"model.arch": ["resnet_nothing", "lenet5"]}, sampler="grid", **where(tmp_path))
    assert swept.table["state"].tolist() == ["failed", "complete"] and "resnet_nothing" in swept.table["note"].iloc[0]


def test_a_key_that_is_twice_in_a_study_is_given_up_by_its_dead_worker(tmp_path):
    space = read_space(LR)
    study = open_study(tmp_path, space)
    with working(tmp_path) as gone:
        lost = next_trial(study, space, 1, tmp_path, gone)
    with working(tmp_path) as worker:
        again = next_trial(study, space, 1, tmp_path, worker)
        assert again.params == lost.params and next_trial(study, space, 1, tmp_path, worker) is None
    assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING"]


def command(*words: str, cwd: Path) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    return subprocess.Popen([sys.executable, "-m", "snakecls", "sweep", *words], cwd=cwd, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_sweep_goes_on_and_loses_no_trial(photos, tmp_path):
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(describe(photos, schedule=[{"size": 32, "epochs": 3, "lr": 1e-3}])))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(LR))
    first = command("e.yaml", "--space", "s.yaml", "--trials", "3", cwd=tmp_path)
    end = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*-t1/checkpoints/resume/000001")) and time.monotonic() < end and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    folder = find_sweep(tmp_path / "runs", "tiny")
    killed = open_study(folder, read_space(LR)).trials[1]
    assert killed.state.name == "RUNNING"
    swept = resume_sweep("tiny", **where(tmp_path))
    assert swept.folder == folder and swept.table["state"].tolist() == ["complete"] * 3
    assert killed.params["schedule.0.lr"] in swept.table["schedule.0.lr"].tolist() and 1 not in swept.table["trial"].tolist()
    run = next((tmp_path / "runs").glob("*-t1"))  # it goes on from its checkpoint, in its own folder
    assert run.name in swept.table["run"].tolist() and read_status(run)["status"] == "finished" and len((run / "history.csv").read_text().split()) == 4


def test_two_processes_share_a_study(photos, tmp_path):
    schedule = [{"size": 32, "epochs": 10, "lr": 1e-3}]  # the other process takes some seconds to begin
    swept = run_sweep(make_experiment(describe(photos, schedule=schedule)), LR, trials=12, pruner="none", jobs=2, **where(tmp_path))
    study = open_study(swept.folder, read_space(LR))
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2, (swept.folder / "process-2.log").read_text()
    assert swept.table["state"].tolist() == ["complete"] * 12
    assert (tmp_path / "logbook.md").read_text().count("\n## ") == 1


def test_the_command_says_what_is_wrong(tmp_path):
    for words, sentence in ((["e.yaml"], "needs an experiment and a space"), (["--resume", "x", "--sampler", "tpe"], "--sampler cannot be given"), (["--resume", "x"], "there is no sweep")):
        done = run_command("sweep", *words, cwd=tmp_path)
        assert sentence in done.stderr and done.returncode == 2


def test_an_empty_space_file_is_called_empty(tmp_path):
    (tmp_path / "empty.yaml").write_text("# train.wd: [0.1]\n")
    with pytest.raises(UserError, match=r"empty.yaml is empty; write keys"):
        read_space(tmp_path / "empty.yaml")
