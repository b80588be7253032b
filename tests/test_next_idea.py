"""An entry of the logbook ends with an idea for the next run, whose command does what it says."""
import shlex

import pandas as pd
import pytest
from conftest import draw_colours
from warm import run_command

from snakecls.evaluate.next_idea import next_idea
from snakecls.experiment.file import make_experiment
from snakecls.workflow.run import run_experiment
from snakecls.workflow.run_folder import RunFolder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a project")  # a space, as in many names of folders
    draw_colours(folder / "photos", step=12)
    return folder


def test_the_command_of_an_entry_runs_and_names_its_change(project, monkeypatch):
    monkeypatch.chdir(project)
    values = {"name": "tiny", "data": {"source": "photos", "valid": 0.4}, "model": {"arch": "lenet5"}, "predict": {"examples": 0}, "track": ["logbook"],
              "train": {"num_workers": 0, "image_cache": 0}, "augment": {"backend": "none"}, "schedule": [{"size": 32, "epochs": 2, "lr": 1e-3, "bs": 8}]}
    run = run_experiment(make_experiment(values), root=project / "my runs", logbook=project / "logbook.md", say=lambda line: None).run
    rows = run.history()
    assert rows["f1_macro"].iloc[1] - rows["f1_macro"].iloc[0] >= 0.01 and rows["valid_loss"].iloc[1] < rows["valid_loss"].iloc[0]
    (line,) = [line for line in (project / "logbook.md").read_text().splitlines() if line.startswith("- Next: ")]
    assert f"{rows['f1_macro'].iloc[0]:.3f}, then {rows['f1_macro'].iloc[1]:.3f}" in line
    program, *words = shlex.split(line.split("`")[1])
    done = run_command(*words, cwd=project, OMP_NUM_THREADS="1")
    assert program == "snakecls" and done.returncode == 0, done.stderr
    heading = next(line for line in (project / "logbook.md").read_text().splitlines() if line.startswith("## "))
    assert "; schedule[0].epochs: 2 -> 4 (" in heading and run.id in heading


def test_nothing_is_proposed_without_a_reason(tmp_path):
    run = RunFolder.create(tmp_path, "flat")
    rows = pd.DataFrame({"stage": 1, "epoch": [1, 2], "train_loss": [1.0, 0.9], "valid_loss": [1.0, 1.0], "f1_macro": [0.6, 0.6]})
    assert next_idea({}, rows, {"schedule": [{"epochs": 2}]}, run=str(run.path)) == ""


@pytest.mark.parametrize("n, gap, low, high, words", [
    (400, 0.020, -0.005, 0.045, "--seeds 0,1,2"),  # three seeds may narrow 0.025 to 0.014
    (400, 0.005, -0.020, 0.030, "more photos do"),  # they cannot narrow it to 0.005
    (40, 0.100, -0.010, 0.210, "40 validation photos cannot tell"),  # few photos
    (400, 0.000, -0.007, 0.007, "more photos do"),  # no photo was answered differently
])
def test_more_photos_are_proposed_where_seeds_cannot_tell(n, gap, low, high, words):
    rows = pd.DataFrame({"stage": 1, "epoch": [1, 2], "train_loss": [1.0, 0.9], "valid_loss": [1.0, 1.0], "f1_macro": [0.6, 0.6]})
    view = {"n": n, "difference": gap, "low": low, "high": high}
    verdict = {"verdict": "no difference", "other": "a", "changed": [["model.arch", "a", "b"]], "about": "served", "views": {"served": view}}
    said = next_idea({}, rows, {"schedule": [{"epochs": 2}]}, run="runs/b", verdict=verdict)
    assert words in said and ("--seeds" in said) != ("--folds 5" in said)
