"""One run by two processes on the processor: the metrics of one process, one folder, one entry, one line an epoch; and what ends one ends all."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPO, draw_colours, need

from snakecls.core import UserError
from snakecls.experiment.file import make_experiment
from snakecls.workflow.processes import Processes, find_processes, part_of_batch
from snakecls.workflow.recorder import make_recorder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Sixty tiny photos of each of two colours."
    return draw_colours(tmp_path_factory.mktemp("photos"), n=120)


def describe(photos: Path, **train) -> dict:
    "Without augmentation, so that two processes and one see the same photos."
    return {
        "name": "tiny", "data": {"source": str(photos), "test": 0.2, "valid": 0.275}, "model": {"arch": "lenet5"}, "predict": {"examples": 0, "flip": True},
        "augment": {"backend": "none"}, "train": {"num_workers": 0, "image_cache": 0, "precision": "fp32"} | train,
        "schedule": [{"size": 32, "epochs": 3, "lr": 2e-3, "bs": 8, "cached_views": 0}]}


# A program that lets the first of two processes run out of memory in its third batch of training, and the second in its fifth.
SHORTAGES = """
import os
if os.environ.get("RANK"):
    import fastai.learner as learner
    usual, rank = learner.Learner._backward, os.environ["RANK"]
    left = [3 if rank == "0" else 5]
    def backward(self):
        left[0] -= 1
        if not left[0]:
            with open("short.txt", "a") as file: file.write(rank + "\\n")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        usual(self)
    learner.Learner._backward = backward
"""


def launch(folder: Path, n: int, *words: str, **environment: str) -> subprocess.CompletedProcess:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n), "-m"] if n > 1 else [sys.executable, "-m"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)} | environment
    return subprocess.run([*start, "snakecls", "train", "e.yaml", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def test_two_processes_are_one_run(photos, tmp_path):
    "The steps are those of one process up to rounding, and so is everything that is written; also where one of them has to compute a batch in parts."
    need("accelerate")
    import pandas as pd

    (tmp_path / "sitecustomize.py").write_text(SHORTAGES)
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(describe(photos)))
    path = os.pathsep.join([str(tmp_path), str(REPO)])
    done = {n: launch(tmp_path, n, "--runs", f"runs{n}", "--logbook", f"book{n}.md", PYTHONPATH=path) for n in (2, 1)}
    assert sorted((tmp_path / "short.txt").read_text().split()) == ["0", "1"] and "in 2 parts of 2" in done[2].stderr
    assert not any(each.returncode for each in done.values()), done[2].stderr[-3000:]
    two, one = ([*(tmp_path / f"runs{n}").iterdir()] for n in (2, 1))
    assert len(one) == len(two) == 1
    (two,), (one,) = two, one
    history = [pd.read_csv(run / "history.csv") for run in (one, two)]
    assert len(history[1]) == 3
    for column in ("train_loss", "valid_loss", "f1_macro", "accuracy"):
        assert history[0][column].to_numpy() == pytest.approx(history[1][column].to_numpy(), abs=2e-3), column
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert metrics[1]["best"]["value"] == pytest.approx(metrics[0]["best"]["value"], abs=2e-3) and metrics[1]["test"]["n"] == metrics[0]["test"]["n"]
    answers = [pd.read_parquet(run / "predictions-valid.parquet") for run in (one, two)]
    assert answers[0]["path"].tolist() == answers[1]["path"].tolist()
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()} and (two / "report.html").exists()
    assert (tmp_path / "book2.md").read_text().count("\n## ") == 1
    told = done[2].stdout + done[2].stderr
    assert len(re.findall(r"epoch 2  loss", told)) == 1 and told.count("Served:") == 1 and told.count("each reads 4 photos of a batch, which has 8") == 1


def test_an_error_in_one_process_ends_all(photos, tmp_path):
    "The second process fails in its second epoch; the first says so in a sentence, and keeps its best so far."
    need("accelerate")
    (tmp_path / "sitecustomize.py").write_text("""
import os
if os.environ.get("RANK") == "1":
    import fastai.learner as learner
    usual = learner.Learner._do_epoch_train
    def train(self):
        if self.epoch == 1: raise MemoryError("no memory left here")
        usual(self)
    learner.Learner._do_epoch_train = train
""")
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(describe(photos)))
    done = launch(tmp_path, 2, PYTHONPATH=os.pathsep.join([str(tmp_path), str(REPO)]))
    assert done.returncode
    (run,) = (tmp_path / "runs").iterdir()
    status = json.loads((run / "status.json").read_text())
    assert status["status"] in ("failed", "stopped") and "epoch 1 of stage 1" in status["message"] and (run / "best").exists()
    assert "no memory left here" in done.stderr and ("another of the processes has ended" in done.stderr or "stopped by" in done.stderr.lower())


@pytest.mark.parametrize("change, sentence", [
    ({"schedule": [{"size": 32, "epochs": 1, "lr": "auto"}]}, "searched in one process"),
    ({"schedule": [{"size": 32, "epochs": 3, "lr": 1e-3, "cached_views": 2}]}, "keeps what one process computes"),
    ({"train": {"device": "cpu"}}, "each process has its own"),
])
def test_what_several_processes_cannot_have_is_refused(change, sentence):
    experiment = make_experiment({"data": {"source": "."}, "schedule": [{"size": 32, "epochs": 1, "lr": 1e-3}]} | change)
    with pytest.raises(UserError, match=sentence):
        Processes(0, 2).agree(experiment, make_recorder(say=[].append), None)


def test_a_budget_is_refused_and_a_precision_settled():
    experiment, said = make_experiment({"data": {"source": "."}, "schedule": [{"size": 32, "epochs": 1, "lr": 1e-3}]}), []
    with pytest.raises(UserError, match="a budget"):
        Processes(0, 2).agree(experiment, make_recorder(say=said.append), 60)
    experiment = experiment.model_copy(update={"train": experiment.train.model_copy(update={"precision": "auto"})})
    settled, recorder = Processes(1, 2).agree(experiment, make_recorder(say=said.append), None)
    recorder.say("heard by nobody")
    assert settled.train.precision in ("fp32", "bf16") and not said
    assert Processes(0, 2).agree(experiment, make_recorder(say=said.append), None)[0] == settled and "measured in one process alone" in said[0]


def test_without_accelerate_there_is_one_sentence(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"pip install 'snakecls\[distributed\]'"):
        find_processes()


def test_several_runs_at_once_are_refused(photos, tmp_path):
    "And so is going on with a run."
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(describe(photos)))
    done = launch(tmp_path, 2, "--seeds", "0,1")
    assert done.returncode and "several runs" in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("n, of", [(1, 2), (7, 2), (8, 3), (3, 4)])
def test_parts_are_the_batch_in_order(n, of):
    parts = [part_of_batch(n, rank, of).tolist() for rank in range(of)]
    assert len({len(part) for part in parts}) == 1 and [each for part in parts for each in part][:n] == list(range(n))
