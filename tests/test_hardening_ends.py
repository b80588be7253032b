"""What ends and what goes on again: resumed fits, groups of runs that a signal ends, disks that take nothing, Ctrl-C at any time."""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import REPO
from PIL import Image
from test_faults_ends import SMALL, snakecls
from test_hardening_runs import make_photos

from snakecls.train.comparison import KeepAnswers
from snakecls.train.monitoring import SaveBestF1
from snakecls.train.learner_probe import answer_metrics
from snakecls.train.stopping import EarlyStopping
from snakecls.workflow.leaderboard import leaderboard_text
from snakecls.workflow.run_folder import find_run
from snakecls.workflow.runs import all_runs


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


ONE = ["--set", "data.test=0.25", "--set", "schedule=[{size: 32, epochs: 1}]"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A folder with photos, facts, a check with an issue that can be accepted, and two runs, `one` and `two`."
    folder = tmp_path_factory.mktemp("ends")
    first = next(make_photos(folder / "photos").rglob("*.jpg"))
    shutil.copy(first, first.with_name("copy.jpg"))
    (folder / "facts.csv").write_text("label,venomous,common_name\nadder,yes,Adder\nboa,no,Boa\n")
    for words in (["train", "--data", "photos", *SMALL, *ONE, "--set", "name=one"], ["check", "photos", "--files-only"]):
        done = snakecls(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
    one = next((folder / "runs").glob("*-one"))
    two = Path(shutil.copytree(one, one.with_name("20200101-000000-two")))
    (two / "status.json").write_text(json.dumps(json.loads((two / "status.json").read_text()) | {"name": "two"}))
    return folder


@pytest.fixture
def copied(project, tmp_path) -> Path:
    "The project, to be changed."
    return Path(shutil.copytree(project, tmp_path / "project"))


def with_nul(values, path: tuple):
    "Put a NUL behind a text of a JSON file, or behind the name of what is no text."
    values = json.loads(json.dumps(values))
    at = values
    for part in path[:-1]:
        at = at[part]
    if isinstance(at[path[-1]], str):
        at[path[-1]] += "\0x"
    else:
        at[path[-1] + "\0"] = at.pop(path[-1])
    return values


def places(values: dict, before: tuple = ()) -> list[tuple]:
    "List the places of a JSON file, two levels deep."
    found = [(*before, name) for name in values]
    return found + ([place for name, inner in values.items() if isinstance(inner, dict) for place in places(inner, (name,))] if not before else [])


@pytest.mark.parametrize("name", ["status.json", "metrics.json", "verdict.json", "environment.json", "experiment.yaml"])
def test_a_nul_in_any_place_of_a_run_breaks_no_list_of_runs(copied, name):
    two, root = copied / "runs" / "20200101-000000-two", copied / "runs"
    whole = (two / name).read_text()
    values = yaml.safe_load(whole) if name.endswith("yaml") else json.loads(whole)
    texts = [(yaml.safe_dump if name.endswith("yaml") else json.dumps)(with_nul(values, place)) for place in places(values)[:: 1 if name in ("status.json", "verdict.json") else 3]]
    for text in [*texts, whole + "\0", "\0" + whole, whole.replace("\n", "\n\0", 1)]:
        (two / name).write_text(text)
        board = all_runs(root, photos=True, verdicts=True)
        assert len(board) == 2 and np.isfinite(board.set_index("run").loc[find_run(root, "one").id, "f1_macro"])
        assert "\0" not in leaderboard_text(board, root, wide=True)
    for words in (["runs", "--wide"], ["runs", "--json"]):
        done = snakecls(*words, cwd=copied)
        assert done.returncode == 0 and "\0" not in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize("name, commands", [("history.csv", ["runs"]), ("manifest.parquet", ["runs", "evaluate"]), ("predictions-test.parquet", ["runs", "ensemble"]), ("progress.json", ["runs"])])
def test_a_nul_in_a_table_of_a_run_is_a_sentence(copied, name, commands):
    two = copied / "runs" / "20200101-000000-two"
    words = {"runs": ["runs", "--wide"], "evaluate": ["evaluate", "--model", two.name], "ensemble": ["ensemble", "one", two.name]}
    if name.endswith("parquet"):
        table = pd.read_parquet(two / name)
        for change in ("path", "column", "label"):
            other = table.rename(columns={"path": "path\0"}) if change == "column" else table.assign(**{change: table[change] + "\0"})
            other.to_parquet(two / name, index=False)
            for command in commands:
                done = snakecls(*words[command], cwd=copied)
                assert done.returncode in (0, 2) and "\0" not in done.stdout + done.stderr and "foreseen" not in done.stderr, (change, done.stderr)
                assert done.returncode == 0 if command == "runs" else done.stderr, (change, done.stderr)
        return
    text = (two / name).read_text() if (two / name).exists() else json.dumps({"status": "running", "kind": "folds", "of": 2, "name": "folds", "logbook": "l.md", "command": "x"})
    for other in (text + "\0", text.replace("f", "f\0", 1), text.replace("\n", "\n\0", 1), text.replace("l.md", "l\\u0000.md").replace("folds", "fo\\u0000lds", 1)):
        (two / name).write_text(other)
        done = snakecls(*words["runs"], cwd=copied)
        assert done.returncode == 0 and "\0" not in done.stdout + done.stderr and "foreseen" not in done.stderr, done.stderr


def test_a_name_with_a_nul_is_one_sentence(copied):
    for words in (["evaluate", "--model", "one\0"], ["runs", "--runs", "r\0"], ["train", "--data", "photos\0"], ["export", "out\0", "--model", "one"], ["review", "photos\0"], ["ensemble", "one", "two\0"], ["train", "--data", "photos", "--parent", "one\0"], ["facts", "facts.csv\0", "--model", "one"]):
        done = snakecls(*words, cwd=copied)  # no shell can give one, but a program that calls the commands can
        assert done.returncode == 2 and "foreseen" not in done.stderr and "\0" not in done.stderr and len(done.stderr.splitlines()) == 1, (words, done.returncode, done.stderr)


SEVERAL = {"folds": ["--folds", "2"], "grid": ["--grid", "seed=1,2"], "precision": ["--compare-precision"]}


def second_run(monkeypatch, act) -> None:
    "Act at the end of the first epoch of the second of several runs."
    import snakecls.workflow.run as module

    started = []

    def describe(row, monitor):
        started.append(row)
        if len(started) == 2:
            act()
        return "epoch"

    monkeypatch.setattr(module, "_describe_epoch", describe)


def group_of(cwd: Path, kind: str) -> tuple[Path, list[dict]]:  # its folder, and the status of its runs, by start
    folder = next((cwd / "runs").glob(f"*-{kind}"))
    statuses = [json.loads(file.read_text()) | {"id": file.parent.name} for file in sorted((cwd / "runs").glob("*/status.json"))]
    return folder, sorted((each for each in statuses if each.get("part_of") == folder.name), key=lambda each: each["status"] != "finished")


@pytest.mark.parametrize("kind", ["grid", "precision"])
def test_a_group_that_sigterm_ends_says_what_is_done(tmp_path, monkeypatch, kind):
    make_photos(tmp_path / "photos", 24)
    second_run(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    done = snakecls("train", "--data", "photos", *SMALL, "--set", "schedule=[{size: 32, epochs: 1}]", *SEVERAL[kind], cwd=tmp_path)
    assert done.returncode == 143 and "Traceback" not in done.stderr, done.stderr
    folder, (first, second) = group_of(tmp_path, kind)
    assert (first["status"], second["status"]) == ("finished", "stopped") and "the best so far, epoch 1" in second["message"]
    assert json.loads((tmp_path / "runs" / first["id"] / "metrics.json").read_text())["valid"]["n"] and (tmp_path / "runs" / first["id"] / "best" / "bundle.json").exists()
    said = json.loads((folder / "progress.json").read_text())
    n = 4 if kind == "precision" else 2
    assert (said["status"], said["done"], said["of"]) == ("stopped", 1, n)
    for text in (done.stderr, said["message"], (tmp_path / "logbook.md").read_text()):
        assert f"topped after 1 of {n} runs (stopped by SIGTERM): finished is {first['id']}" in text, text
    entry = (tmp_path / "logbook.md").read_text()
    assert f"(stopped after 1 of {n})" in entry and f"](runs/{folder.name})" in entry and sum(line.startswith("## ") and "(stopped" in line for line in entry.splitlines()) == 2  # of the second run, too
    listed = snakecls("runs", cwd=tmp_path)
    assert listed.returncode == 0 and f"1 of {n} runs" in listed.stderr and "killed" not in listed.stderr
    assert snakecls("evaluate", "--model", first["id"], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("kind", ["folds", "grid"])
def test_a_disk_that_is_full_during_the_second_of_several_runs_names_the_finished_one(tmp_path, monkeypatch, kind):
    "From there on nothing can be written, the group's own records neither; the next command, with room again, completes them."
    import snakecls.disk as disk

    make_photos(tmp_path / "photos", 24)
    real, full = os.replace, []

    def replace(source, target, *more):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return real(source, target, *more)

    monkeypatch.setattr(disk.os, "replace", replace)
    second_run(monkeypatch, lambda: full.append(True))
    done = snakecls("train", "--data", "photos", *SMALL, "--set", "schedule=[{size: 32, epochs: 1}]", *SEVERAL[kind], cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("snakecls: ") == 1 and "snakecls: the disk is full" in done.stderr and "Traceback" not in done.stderr, done.stderr
    full.clear()
    folder, (first, second) = group_of(tmp_path, kind)
    assert first["status"] == "finished" and "ailed after 1 of 2 runs" in done.stderr and f"finished is {first['id']}" in done.stderr
    listed = snakecls("runs", cwd=tmp_path)
    assert listed.returncode == 0 and "1 of 2 runs" in listed.stderr, listed.stderr
    assert json.loads((folder / "progress.json").read_text())["status"] == "killed" and "after 1 of 2" in (tmp_path / "logbook.md").read_text()
    for run in (first, second):
        assert snakecls("evaluate", "--model", run["id"], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_disk_without_room_for_several_runs_is_told_before_a_photo_is_read(tmp_path, monkeypatch, kind):
    import snakecls.experiment.plan as module

    make_photos(tmp_path / "photos", 24)
    free, read = (8_000_000 if kind != "grid" else 1_000_000), []  # one run of this network needs 5.5 MB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9 - free, free=free))
    monkeypatch.setattr(module, "keep_readable", lambda table: read.append(table))
    done = snakecls("train", "--data", "photos", *SMALL, "--set", "schedule=[{size: 32, epochs: 1}]", *SEVERAL[kind], cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("snakecls: ") == 1 and f"has {free / 1e6:.1f} MB left" in done.stderr, done.stderr
    assert not read and not list((tmp_path / "runs").glob("*")) and not (tmp_path / "logbook.md").exists()


@pytest.fixture
def read_only(monkeypatch):
    "Let nothing be written below a folder, as on a disk that is mounted for reading; of what Python itself writes."
    import builtins
    import io

    roots = []

    def refuses(path) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and any(Path(os.path.abspath(os.fsdecode(path))).is_relative_to(root) for root in roots)

    def guard(module, name, writes):
        real = getattr(module, name)

        def guarded(*given, **more):
            if writes(given, more):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(given[0]))
            return real(*given, **more)

        monkeypatch.setattr(module, name, guarded)

    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    guard(os, "open", lambda given, more: given[1] & writing and refuses(given[0]))
    for module in (builtins, io):
        guard(module, "open", lambda given, more: set(str(given[1] if len(given) > 1 else more.get("mode", "r"))) & set("wax+") and refuses(given[0]))
    for name in ("mkdir", "unlink", "remove", "rmdir", "rename", "replace", "utime", "chmod", "symlink"):
        guard(os, name, lambda given, more: any(map(refuses, given[:2])))
    return roots.append


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("words", [
    ["ensemble", "one", "two", "--output", "soup"], ["review", "--accept", "exact duplicate"], ["review"], ["facts", "facts.csv", "--model", "one"], ["facts", "--model", "one", "--title", "Snakes"],
    ["evaluate", "--model", "one", "--csv", "answers.csv"], ["evaluate", "--model", "one", "--report", "page"], ["export", "out", "--model", "one"], ["export", "out.pkl", "--model", "one"],
    ["publish", "--model", "one", "--space", "me/x", "--dry-run", "space"], ["predict", "photos", "--model", "one", "--csv", "answers.csv"], ["train", "--data", "photos", "--folds", "2"], ["train", "--data", "photos", "--grid", "seed=1,2"]],
    ids=lambda words: " ".join(word for word in words if word in ("--accept", "--csv", "--report", "--title", "--folds", "--grid", "out.pkl") or word == words[0]))
def test_a_read_only_target_is_told_before_photos_are_read(project, monkeypatch, read_only, words):
    import snakecls.data.photos as photos

    def opened(*given, **more):
        raise AssertionError("a photo was read")

    before = content(project)
    read_only(project)
    monkeypatch.setattr(photos, "open_photo", opened)
    done = snakecls(*words, cwd=project)
    assert done.returncode == 2 and re.search("cannot be written(, as the disk of .* can only be read| .Read-only file system.); ", done.stderr), (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert content(project) == before


@pytest.mark.parametrize("words", [["ensemble", "one", "two"], ["facts", "--model", "one"], ["evaluate", "--model", "one"], ["runs"]], ids=lambda words: words[0])
def test_what_writes_nothing_works_on_a_read_only_disk(project, read_only, words):
    read_only(project)
    done = snakecls(*words, cwd=project)
    assert done.returncode == 0 and "annot be written" not in done.stderr, done.stderr


CODE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
class Interrupt:
    pass
sys.path.insert(0, {repo!r})
from snakecls.start import main
module, sys.argv[1:] = sys.argv[1], sys.argv[2:]
Interrupt.find_spec = lambda name, *more: os.kill(os.getpid(), signal.SIGINT) if name == module else None
sys.meta_path.insert(0, Interrupt)
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself Ctrl-C alone")
@pytest.mark.parametrize("module, words", [("snakecls.cli", ["runs"]), ("typer", ["runs"]), ("rich.panel", ["--help"]), ("snakecls.workflow.killed", ["runs"]), ("pandas", ["runs"])])
def test_ctrl_c_while_python_imports_is_one_sentence(tmp_path, module, words):
    done = subprocess.run([sys.executable, "-c", CODE.format(repo=str(REPO)), module, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "snakecls: stopped by Ctrl-C.\n")


def test_a_command_begins_where_ctrl_c_is_looked_after_and_no_slower():
    assert "snakecls=snakecls.start:main" in (Path(REPO) / "settings.ini").read_text()
    code = f"import os, signal, sys; sys.path.insert(0, {str(REPO)!r}); before = set(sys.modules); import snakecls.start; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert set(done.stdout.split()) == {"snakecls", "snakecls.start"}  # beside os and signal, without which it cannot be done


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["runs"]], ids=lambda words: words[0])
def test_python_m_is_the_command(tmp_path, words):
    done, same = (subprocess.run([sys.executable, *how, *words], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPO)})
                  for how in (["-m", "snakecls"], ["-c", "from snakecls.start import main; import sys; sys.argv[0] = 'snakecls'; main()"]))
    assert (done.returncode, done.stderr) == (same.returncode, same.stderr)
    assert "".join(done.stdout.replace("python -m snakecls", "snakecls").split()) == "".join(same.stdout.split())
    assert words != ["--version"] or done.stdout == "snakecls 0.1.0\n"


@pytest.mark.parametrize("state", [None, [], {}, {"items": 1}, {"best": 0.5, "other": 1}])
def test_what_is_no_state_of_a_callback_is_refused(state):
    from snakecls.core import UserError
    from snakecls.train.monitoring import SaveBestF1
    from snakecls.train.stopping import EarlyStopping

    for callback in (SaveBestF1(), EarlyStopping(patience=2)):
        with pytest.raises(UserError, match="this is no state of"):
            callback.load_state_dict(state)
        callback.load_state_dict(callback.state_dict())
