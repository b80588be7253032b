"""The records tell the truth: a run is judged against its parent, on the same photos, in what was changed; folds, grids and seeds are one finding; the list of runs is one line each."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from PIL import Image

from snakecls.experiment.file import make_experiment
from snakecls.workflow.logbook import LogbookTracker
from snakecls.workflow.run import run_experiment
from snakecls.workflow.folds import run_folds
from snakecls.workflow.grid import run_grid
from snakecls.workflow.run_folder import RunFolder, find_run

N = 120
TRUTH = [["adder", "boa", "cobra"][i % 3] for i in range(N)]
STAGES = [{"size": 64, "epochs": 0, "head": "probe"}, {"size": 96, "epochs": 3, "head": "keep"}]


def answers(wrong: int) -> list[str]:
    "Answers of which the first `wrong` are false."
    return [["boa", "cobra", "adder"][i % 3] if i < wrong else label for i, label in enumerate(TRUTH)]


def photo_paths(folder: str = "/photos") -> list[str]:
    return [f"{folder}/{label}/{i}.jpg" for i, label in enumerate(TRUTH)]


def record(root: Path, name: str, served: list[str], *, trained: list[str] | None = None, probe: bool = False, parent: str | None = None, paths: list[str] | None = None,
           size: int = 1000, hashes: list[str] | None = None, chosen: list[str] | None = None, part_of: str = "", **changes) -> RunFolder:
    "Write a finished run by hand, with its entry in logbook.md beside the folder of runs."
    experiment = {"name": name, "question": f"{name}?", "parent": parent, "seed": 42, "data": {"source": "/photos", "seed": 42}, "augment": {"mixup": 0.0}, "model": {"arch": "resnet18"}, "schedule": STAGES}
    for key, value in changes.items():
        part, _, last = key.partition("__")
        experiment[part] = {**experiment[part], last: value} if last else value
    tracker = LogbookTracker(root.parent / "logbook.md", command=f"snakecls train {name}.yaml")
    with RunFolder.create(root, name, **({"part_of": part_of} if part_of else {})) as run:
        tracker.start(experiment, run)
        run.write_experiment(experiment)
        paths = paths or photo_paths()
        pd.DataFrame({"path": paths, "label": TRUTH, "split": "valid", "size_bytes": size, "hash": hashes}).to_parquet(run / "manifest.parquet")
        metrics = {"labels": sorted(set(TRUTH)), "parent": parent, "best": {"stage": 1 if probe else 2, "epoch": 0 if probe else 3}, "seconds": 60.0}
        for key, said in (("valid", served), ("trained", trained)):
            if said is not None:
                pd.DataFrame({"path": paths, "label": TRUTH, "predicted": said}).to_parquet(run / f"predictions-valid{'-trained' if key == 'trained' else ''}.parquet")
                metrics[key] = {"n": N, "f1_macro": float(np.mean([a == b for a, b in zip(said, TRUTH)])), "f1_macro_interval": [0.1, 0.9]} | ({"chosen_on": chosen} if chosen else {})
        if trained is not None:
            metrics["trained"] |= {"stage": 2, "epoch": 3, "size": 96}
        run.write_metrics(metrics)
        tracker.finish(metrics)
    return run


def entries(root: Path) -> list[str]:
    "The logbook's entries, the newest first."
    return (root.parent / "logbook.md").read_text().split("\n## ")[1:]


def test_a_run_is_judged_against_its_parent_and_the_best_is_a_second_line(tmp_path):
    root = tmp_path / "runs"
    base = record(root, "base", answers(40))
    best = record(root, "best", answers(0))
    child = record(root, "child", answers(36), parent=base.id, augment__mixup=0.4)
    entry = entries(root)[0]
    assert entry.splitlines()[0].endswith(f"child?; augment.mixup: 0.0 -> 0.4 (no difference to {base.id} that {N} photos could show)")
    assert f"- Changed against {base.id}: `augment.mixup: 0.0 -> 0.4`\n" in entry
    compared = next(line for line in entry.splitlines() if line.startswith("- Compared"))
    assert compared.startswith(f"- Compared with {base.id}: ") and best.id not in compared and re.search(r"0\.700 beside 0\.667, \+0\.03\d macro F1 \(95 % \+?-?0\.", compared)
    line = next(line for line in entry.splitlines() if line.startswith("- Best so far"))
    assert best.id in line and "of 3 runs" in line and "-0.3" in line
    far = record(root, "far", answers(90), parent=base.id)
    assert f"(worse than {base.id})" in entries(root)[0] and f"(better than {far.id})" not in entries(root)[0]
    record(root, "near", answers(10), parent=far.id)
    assert f"(better than {far.id})" in entries(root)[0]
    assert child.id not in entries(root)[0]


def test_without_a_parent_the_nearest_on_the_same_photos_is_proposed_and_the_entry_says_so(tmp_path):
    root = tmp_path / "runs"
    record(root, "best", answers(0))
    newest = record(root, "newest", answers(20))
    record(root, "elsewhere", answers(5), paths=photo_paths("/photos/else"), size=77, data__source="/else")
    assert "(first of its task)" in entries(root)[0]
    record(root, "another", answers(20), model__arch="resnet50")
    entry = entries(root)[0]
    assert f"no difference to {newest.id}" in entry and f"Changed against {newest.id}: `model.arch: resnet18 -> resnet50` (no parent was given; {newest.id} is the nearest" in entry
    record(root, "far", answers(20), model__arch="resnet18", augment__mixup=0.4, train={"wd": 0.2})  # the newest by now
    record(root, "near", answers(20), model__arch="resnet50", augment__mixup=0.1)
    entry = entries(root)[0]
    assert "another: `augment.mixup" in entry.replace(newest.id, "") and "Changed together" not in entry  # one change, not three


def test_where_a_probe_is_served_the_verdict_is_about_the_training_that_was_changed(tmp_path):
    root = tmp_path / "runs"
    base = record(root, "base", answers(38), trained=answers(63), probe=True)
    record(root, "mixup", answers(38), trained=answers(40), probe=True, parent=base.id, augment__mixup=0.4)
    entry = entries(root)[0]
    assert f"(better than {base.id})" in entry.splitlines()[0]
    assert "trained 0.667 beside 0.475" in entry and "served 0.683 beside 0.683, no photo was answered differently (n = 120), so a difference up to about ±0.025 cannot be excluded" in entry and "a linear probe is served" in entry
    assert "served the linear probe" in entry and "trained to the end (epoch 3 of stage 2 at 96 px), not served, valid: macro F1 0.667" in entry
    record(root, "arch", answers(80), trained=answers(40), probe=True, parent=base.id, model__arch="resnet50")  # here the probe shows it
    assert f"(worse than {base.id})" in entries(root)[0] and "served 0.333 beside 0.683" in entries(root)[0]
    record(root, "both", answers(38), trained=answers(63), parent=base.id, augment__mixup=0.1)  # an epoch beside a probe says nothing about mixup
    assert f"(no difference to {base.id}" in entries(root)[0] and "trained 0.475 beside 0.475" in entries(root)[0]
    board = json.loads(snakecls("runs", "--json", cwd=tmp_path).stdout)
    row = next(row for row in board if row["name"] == "mixup")
    assert row["trained_f1_macro"] == pytest.approx(0.667, abs=1e-3) and row["served"] == "probe" and row["about"] == "trained" and 0 < row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["compared_with"] == base.id and row["changed"] == "augment.mixup: 0.0 -> 0.4" and row["question"] == "mixup?" and row["seed"] == 42 and row["date"].startswith("20")


def test_runs_from_before_the_trained_weights_were_scored_get_no_verdict_from_the_same_probe(tmp_path):
    root, runs = tmp_path / "runs", []
    for name, last in (("base", 0.476), ("mixup", 0.660)):
        runs.append(record(root, name, answers(38), probe=True, parent=runs[0].id if runs else None, augment__mixup=0.4 * len(runs)))
        runs[-1].write_history(pd.DataFrame({"stage": [1, 2], "epoch": [0, 3], "f1_macro": [0.683, last]}))
        (runs[-1] / "verdict.json").unlink(missing_ok=True)
    shown = snakecls("runs", "--wide", cwd=tmp_path).stdout
    line = next(line for line in shown.splitlines() if line.startswith(runs[1].id))
    assert "not shown" in line and "0.660" in line and "better" not in line
    from snakecls.workflow.compare import _judge_run
    from snakecls.workflow.logbook import _compared_text

    assert "macro F1 after the last epoch 0.660 here and 0.476 there, without an interval" in _compared_text(_judge_run(runs[1]))


@pytest.mark.parametrize("other, why", [
    ({"paths": photo_paths()[:-1] + ["/photos/boa/new.jpg"]}, "other validation photos"),
    ({"size": 999}, "another content"), ({"hashes": ["b" * 32] * N}, "another content")])
def test_runs_on_other_photos_are_not_compared_whatever_their_number(tmp_path, other, why):
    root = tmp_path / "runs"
    base = record(root, "base", answers(90), hashes=["a" * 32] * N if "hashes" in other else None)
    record(root, "child", answers(0), parent=base.id, augment__mixup=0.4, **other)
    entry = entries(root)[0]
    assert f"(not compared with {base.id})" in entry and why in entry and "better" not in entry and "macro F1 (95 %" not in entry
    assert f"Changed against {base.id}: `augment.mixup: 0.0 -> 0.4`" in entry


def test_photos_that_were_moved_are_the_same_and_relabelled_ones_are_not(tmp_path):
    root = tmp_path / "runs"
    base = record(root, "base", answers(90))
    record(root, "moved", answers(0), parent=base.id, paths=photo_paths("/disk2/project/photos"))
    assert f"(better than {base.id})" in entries(root)[0]
    table = pd.read_parquet(base / "predictions-valid.parquet")
    table.assign(label=["boa", *TRUTH[1:]]).to_parquet(base / "predictions-valid.parquet")
    record(root, "relabelled", answers(0), parent=base.id)
    assert f"(not compared with {base.id})" in entries(root)[0] and "other true labels" in entries(root)[0]


def test_another_seed_is_noise_and_one_seed_is_said_to_be_one(tmp_path):
    root = tmp_path / "runs"
    base = record(root, "base", answers(0))
    record(root, "seed", answers(60), parent=base.id, seed=5, data={"source": "/photos", "seed": 5})
    entry = entries(root)[0]
    assert f"(another seed than {base.id} gives -0.5" in entry and "that is the noise" in entry and "(worse" not in entry
    assert f"- Changed against {base.id}: `seed: 42 -> 5`\n" in entry
    record(root, "mixup", answers(60), parent=base.id, augment__mixup=0.4)
    assert f"(worse than {base.id})" in entries(root)[0] and "what another seed would change is not known" in entries(root)[0]


def test_a_change_of_thresholds_is_not_judged_on_the_photos_that_chose_them(tmp_path):
    root = tmp_path / "runs"
    plain = record(root, "plain", answers(60))
    tuned = record(root, "tuned", answers(0), parent=plain.id, chosen=["epoch", "thresholds"], predict={"thresholds": "per_class"})
    entry = entries(root)[0]
    assert f"(no verdict against {plain.id}: the thresholds were chosen on these photos)" in entry and "better" not in entry
    marked = f"The thresholds of {tuned.id} were chosen on these photos, which makes its score too good"
    assert all(marked in next(line for line in entry.splitlines() if line.startswith(begin)) for begin in ("- Compared", "- Best"))
    record(root, "both", answers(60), parent=tuned.id, chosen=["thresholds"], predict={"thresholds": "per_class"}, augment__mixup=0.4)
    assert f"(worse than {tuned.id})" in entries(root)[0] and "which makes their scores too good" in entries(root)[0]


def test_what_is_as_good_is_level_and_not_the_highest(tmp_path):
    root = tmp_path / "runs"
    base = record(root, "base", answers(10))
    record(root, "same", answers(10), augment__mixup=0.4)
    best = next(line for line in entries(root)[0].splitlines() if line.startswith("- Best"))
    assert f"this run is level with {base.id}, with the same answers" in best


def test_one_of_several_runs_is_not_proposed_for_the_comparison(tmp_path):
    root = tmp_path / "runs"
    base = record(root, "base", answers(10))
    record(root, "member", answers(50), part_of="20260101-000000-x-grid", augment__mixup=0.1)
    record(root, "next", answers(12), augment__mixup=0.4)
    assert f"no difference to {base.id}" in entries(root)[0] and "(no parent was given" in entries(root)[0]


def test_the_list_puts_runs_on_the_same_photos_together_and_marks_tuned_thresholds(tmp_path):
    root = tmp_path / "runs"
    weak = record(root, "weak", answers(60))
    other = record(root, "other", answers(0), paths=photo_paths("/photos/else"), size=77, data__source="/else")
    best = record(root, "best", answers(60), chosen=["thresholds"], parent=weak.id)
    lines = snakecls("runs", cwd=tmp_path).stdout.splitlines()
    place = {run.id: next(i for i, line in enumerate(lines) if line.startswith(run.id)) for run in (weak, other, best)}
    assert "120 validation photos of 3 classes: else" in lines[place[other.id] - 1] and "120 validation photos of 3 classes: photos" in lines
    assert abs(place[weak.id] - place[best.id]) == 1 and "0.500*" in lines[place[best.id]] and "thresholds were chosen on these photos" in lines[-1]
    rows = {row["run"]: row for row in json.loads(snakecls("runs", "--json", cwd=tmp_path).stdout)}
    assert rows[weak.id]["photos"] == rows[best.id]["photos"] != rows[other.id]["photos"] and rows[best.id]["chosen_on"] == ["thresholds"]
    assert "the same answers" in snakecls("runs", "--wide", cwd=tmp_path).stdout


def test_wandb_is_missed_only_where_it_was_given():
    from snakecls.experiment.doubts import find_idle

    plain = make_experiment({"data": {"source": "/photos"}})
    again = make_experiment(plain.model_dump())
    assert not any("wandb" in note for note in find_idle(again, again.schedule))  # as every run of a grid is made
    assert any("wandb.entity is given" in note for note in find_idle(make_experiment(plain.model_dump(), overrides=["wandb.entity=me"]), again.schedule))


def test_a_parent_that_is_gone_or_damaged_is_told_and_the_run_is_recorded(tmp_path):
    root = tmp_path / "runs"
    base = record(root, "base", answers(90))
    (base / "metrics.json").write_text('{"valid": ')
    record(root, "child", answers(0), parent=base.id)
    record(root, "orphan", answers(0), parent="20200101-000000-gone")
    orphan, child = entries(root)[:2]
    assert f"(not compared with {base.id})" in child and "cannot be read" in child
    assert "(not compared with 20200101-000000-gone)" in orphan and "not there any more" in orphan


def snakecls(*words: str, cwd: Path, columns: int | None = None, terminal: bool = False) -> subprocess.CompletedProcess:
    "Run a command, in a pipe or on a terminal of so many columns."
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); sys.argv[0] = 'snakecls'; from snakecls.cli import main; main()"
    env = {**os.environ, "NO_COLOR": "1"} | ({"COLUMNS": str(columns)} if columns else {})
    command = [sys.executable, "-c", code, *words]
    if terminal:
        command = ["script", "-qec", shlex.join(command), "/dev/null"]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120, stdin=subprocess.DEVNULL)


def snapshot(folder: Path) -> dict:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_the_list_of_runs_is_one_line_each_and_its_ids_are_taken_by_other_commands(tmp_path):
    root = tmp_path / "runs"
    runs = [record(root, f"a very long name of an experiment that says everything {i}", answers(i)) for i in range(3)]
    for run, name in ((record(root, "damaged", answers(5)), "metrics.json"), (record(root, "no status", answers(5)), "status.json")):
        (run / name).write_text("{")
    stopped = record(root, "killed", answers(5))
    (stopped / "status.json").write_text(json.dumps({"status": "running", "name": "killed", "started": "2026-01-01T00:00:00+00:00"}))
    (stopped / ".lock").unlink(missing_ok=True)
    assert "was killed" in snakecls("runs", cwd=tmp_path, columns=40).stderr  # its records are completed, once
    before = snapshot(tmp_path)
    piped = snakecls("runs", cwd=tmp_path, columns=40).stdout.splitlines()
    assert len(piped) == 7 and {line.split()[0] for line in piped[1:]} == {path.name for path in root.iterdir()}
    assert any("not valid JSON" in line for line in piped) and any("killed" in line for line in piped)
    shown = snakecls("runs", cwd=tmp_path, columns=80, terminal=True).stdout.replace("\r", "").splitlines()
    assert len(shown) == 7 and max(map(len, shown)) <= 80, shown
    named = [find_run(root, line.split()[0]).id for line in shown[1:]]
    assert sorted(named) == sorted(path.name for path in root.iterdir()) and runs[0].id in named
    wide = snakecls("runs", "--wide", cwd=tmp_path, columns=80).stdout.splitlines()
    assert len(wide) == 7 and "question" in wide[0] and "difference" in wide[0] and "seed" in wide[0]
    assert len(json.loads(snakecls("runs", "--json", cwd=tmp_path).stdout)) == 6
    assert snapshot(tmp_path) == before  # reading writes nothing, no lock either


# Real runs, as small as they come.

@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Sixty squares in three colours."
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for i in range(60):
        label = ["red", "green", "blue"][i % 3]
        pixels = rng.integers(0, 200, (32, 32, 3), dtype=np.uint8)
        pixels[..., i % 3] += 50
        (folder / label).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def squares(photos: Path, *overrides: str):
    return make_experiment({"name": "squares", "data": {"source": str(photos)}, "model": {"arch": "test_resnet", "weights": "none"}, "train": {"num_workers": 0, "bs": 16, "device": "cpu"},
                            "schedule": [{"size": 32, "epochs": 0, "head": "probe"}, {"size": 32, "epochs": 1}]}, overrides=overrides)


def where(folder: Path) -> dict:
    return {"root": folder / "runs", "logbook": folder / "logbook.md", "say": lambda text: None}


def headings(folder: Path) -> list[str]:
    return [line for line in (folder / "logbook.md").read_text().splitlines() if line.startswith("## ")]


def test_a_grid_over_seeds_repeats_the_training_on_one_split_and_is_one_finding(photos, tmp_path):
    base = run_experiment(squares(photos), **where(tmp_path)).run
    compared = run_grid(squares(photos, f"parent={base.id}"), ["seed=1,2", "train.wd=0.01,0.1"], **where(tmp_path))
    table = compared.table
    valid = [set(pd.read_parquet(tmp_path / "runs" / run / "predictions-valid.parquet")["path"]) for run in table["run"]]
    assert len(table) == 4 and all(paths == valid[0] for paths in valid) and valid[0] == set(pd.read_parquet(base / "predictions-valid.parquet")["path"])
    assert {find_run(tmp_path / "runs", run).experiment()["seed"] for run in table["run"]} == {1, 2}
    text = (tmp_path / "logbook.md").read_text()
    members = headings(tmp_path)[1:5]
    assert len(headings(tmp_path)) == 6 and all("part of" in line for line in members) and not any(word in line for line in members for word in ("better", "worse", "difference"))
    group = next((tmp_path / "runs").glob("*-grid"))
    assert text.count(f'<a id="{group.name}"></a>') == 1 and text.count(f"(#{group.name})") == 4
    entry = text.split("\n## ")[1]
    assert f"against {base.id}" in entry and "| wd=0.1 |" in entry and "± " in entry and "(n=2)" in entry and "split by 42" in entry
    assert set(compared.summary["settings"]) == {"wd=0.01", "wd=0.1"} and all(each["difference"]["seeds"] == 2 for each in compared.summary["settings"].values())


def test_folds_are_one_entry_and_never_better_or_worse_than_each_other(photos, tmp_path):
    probe = "schedule=[{size: 32, epochs: 0, head: probe}]"
    base = run_experiment(squares(photos, probe), **where(tmp_path)).run
    first = run_folds(squares(photos, probe, f"parent={base.id}"), 2, **where(tmp_path))
    assert len(headings(tmp_path)) == 4
    entry, *members = (tmp_path / "logbook.md").read_text().split("\n## ")[1:4]
    assert "± " in entry.splitlines()[0] and "over 2 folds" in entry.splitlines()[0] and f"not compared with the run {base.id}" in entry and entry.count("\n| ") == 4
    for member in members:
        assert f"(part of {first.folder.name})" in member and f"(#{first.folder.name})" in member and not re.search("better|worse|no difference|Compared|first of its", member)
    second = run_folds(squares(photos, probe, "data.resize=squash", f"parent={first.folder.name}"), 2, **where(tmp_path))
    heading, entry = headings(tmp_path)[0], (tmp_path / "logbook.md").read_text().split("\n## ")[1]
    assert f"to {first.folder.name} that 60 photos could show" in heading and f"Changed against {first.folder.name}: `data.resize: crop -> squash`" in entry and second.folder.name in entry
    assert "(proposed)" not in entry and "no parent was given" not in entry
    from snakecls.workflow.folds import find_folds

    assert find_folds(tmp_path / "runs", "squares") == find_folds(tmp_path / "runs", "squares-folds") == second.folder
