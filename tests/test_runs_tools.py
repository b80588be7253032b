"""Runs are filtered, sorted, put into a tree, drawn, tagged, noted and binned; what is in the bin is in no list."""
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import snakecls
from typer.testing import CliRunner
from warm import run_command

from snakecls.cli import app
from snakecls.charts import lay_curves
from snakecls.core import UserError
from snakecls.page import render
from snakecls.workflow.keep_runs import BIN, remove_runs, tag_run
from snakecls.workflow.run_folder import RunFolder, list_runs, read_notes
from snakecls.workflow.runs import all_runs
from snakecls.workflow.runs_page import write_runs_page
from snakecls.workflow.select_runs import filter_runs, run_tree, sort_runs, tree_text


def record(root: Path, name: str, *, score: float | None = None, arch: str = "resnet18", parent: str | None = None) -> RunFolder:
    with RunFolder.create(root, name) as run:
        run.write_experiment({"name": name, "question": f"is {name} better?", "parent": parent, "model": {"arch": arch}})
        if score is not None:
            run.add_epoch({"stage": 1, "epoch": 1, "valid_loss": 1 - score, "f1_macro": score})
            run.write_metrics({"labels": ["a", "b"], "parent": parent, "seconds": 100 * score, "valid": {"n": 9, "f1_macro": score, "f1_macro_interval": [score - 0.1, score]}})
    return run


@pytest.fixture
def runs(tmp_path, monkeypatch) -> dict[str, RunFolder]:
    "base, its child and grandchild, and one without a score, in `runs` of the present folder."
    monkeypatch.chdir(tmp_path)
    base = record(Path("runs"), "base", score=0.7)
    child = record(Path("runs"), "child", score=0.9, arch="resnet34", parent=base.id)
    return {"base": base, "child": child, "grandchild": record(Path("runs"), "grandchild", score=0.8, parent=child.id), "empty": record(Path("runs"), "empty")}


def listed(*words: str) -> list[str]:
    done = CliRunner().invoke(app, ["runs", *words, "--json"])
    assert done.exit_code == 0, done.exception
    return [row["name"] for row in json.loads(done.stdout)]


def test_runs_are_filtered_and_sorted(runs):
    assert listed("--filter", "arch=resnet18", "--filter", "f1_macro>0.7") == ["grandchild"]
    assert listed("--filter", "f1_macro>=0.7", "--sort", "-seconds") == ["base", "grandchild", "child"]
    assert listed("--filter", "CHILD", "--sort", "name") == ["child", "grandchild"] and listed("--sort", "f1_macro")[-1] == "empty"
    none = CliRunner().invoke(app, ["runs", "--filter", "nothing"])
    assert none.exit_code == 0 and "None of the 4 runs fits" in none.stdout and listed("--filter", "nothing") == []
    for words, why in ((["--filter", "f1_marco>0.8"], "f1_macro"),  # a sign without a column, and what other languages write
                       (["--filter", "f1_macro>high"], "no number"), (["--filter", ">0.5"], "names no column before >; write for example f1_macro>0.5"),
                       (["--filter", " = resnet18"], "names no column before ="), (["--filter", "arch==resnet18"], "has two signs"), (["--filter", "f1_macro=>0.8"], "has two signs"), (["--sort", "secnds"], "seconds"), (["--tree", "--sort", "name"], "leave out")):
        refused = CliRunner().invoke(app, ["runs", *words])
        assert isinstance(refused.exception, UserError) and why in str(refused.exception)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12), st.sampled_from(["f1_macro", "-f1_macro"]))
@settings(max_examples=30, deadline=None)
def test_sorting_loses_no_run_and_puts_those_without_a_value_last(values, column):
    board = pd.DataFrame({"run": [str(i) for i in range(len(values))], "f1_macro": pd.Series(values, dtype=float)})
    found = sort_runs(board, column)
    there = found["f1_macro"].dropna().tolist()
    assert sorted(found["run"]) == sorted(board["run"]) and there == sorted(there, reverse=column == "f1_macro") and found["f1_macro"][: len(there)].notna().all()


def test_the_tree_shows_every_run_once_below_its_parent(runs):
    done = CliRunner().invoke(app, ["runs", "--tree"]).stdout.splitlines()
    assert [len(line) - len(line.lstrip()) for line in done] == [0, 2, 4, 0] and "grandchild" in done[2]
    gap = {"difference": -0.058, "difference_low": -0.19, "difference_high": 0.066}
    assert "-0.058 (-0.190 to +0.066) trained" in tree_text(all_runs("runs").assign(about="trained", **gap))
    board = all_runs("runs")
    loop = board.assign(parent=board["run"].tolist()[1:] + board["run"].tolist()[:1])
    assert sorted(row["run"] for _, row in run_tree(loop)) == sorted(board["run"])


def test_the_plot_is_one_page_of_the_runs_that_are_listed(runs):
    done = CliRunner().invoke(app, ["runs", "--plot", "--filter", "arch=resnet18"])
    page = Path("runs.html").read_text()
    assert done.exit_code == 0 and "0.800 (0.700 to 0.800)" in page and ">child<" not in page and "<script" not in page
    refused = CliRunner().invoke(app, ["runs", "--plot", "--filter", "empty"])
    assert isinstance(refused.exception, UserError) and "has a score or an epoch" in str(refused.exception)


def test_tags_and_notes_stand_in_the_list_and_in_the_report(runs):
    run = runs["base"]
    (run / "report.html").write_text("<h1>base</h1>\n<!--n--><!--/n-->\n<img src='data:x'>")
    for words in (["tag", "base", "good", "paper"], ["tag", "base", "paper", "--remove"], ["note", "base", "worth \\1 <b>more</b>"]):
        assert CliRunner().invoke(app, words).exit_code == 0
    assert read_notes(run.path) == {"tags": ["good"], "note": "worth \\1 <b>more</b>"}
    wide = CliRunner().invoke(app, ["runs", "--wide"]).stdout
    assert "worth \\1 <b>more</b>" in wide and "good" in wide and listed("--filter", "tags=good") == listed("--filter", "worth") == ["base"]
    page = (run / "report.html").read_text()
    assert "worth \\1 &lt;b&gt;more" in page and "good" in page and page.endswith("<img src='data:x'>")
    assert CliRunner().invoke(app, ["note", "base", ""]).exit_code == 0 and read_notes(run.path)["note"] == ""
    tag_run(run, ["good"], remove=True)
    assert (run / "report.html").read_text().count("<section") == 0
    for tags, remove in ((["a,b"], False), ([""], False), (["good"], True)):
        with pytest.raises(UserError):
            tag_run(run, tags, remove=remove)
    (run / "notes.json").write_text("{")
    assert read_notes(run.path) == {"tags": [], "note": ""} and len(list_runs("runs")) == 4


def test_the_bin_hides_runs_and_gives_them_back(runs):
    done = CliRunner().invoke(app, ["rm", "base"])
    assert done.exit_code == 0 and f"the parent of {runs['child'].id}" in done.stdout and "mv " in done.stdout
    assert "base" not in listed() and not runs["base"].path.exists() and (Path("runs") / BIN / runs["base"].id / "metrics.json").exists()
    assert "base" not in CliRunner().invoke(app, ["runs", "--tree"]).stdout.splitlines()[0]
    (Path("runs") / BIN / runs["base"].id).rename(runs["base"].path)
    assert "base" in listed()
    group = Path("runs/20261001-000000-several-folds")
    group.mkdir()
    member = RunFolder.create(Path("runs"), "member", part_of=group.name)
    member.finish()
    assert f"one of the runs of {group.name}, whose table and page still name it" in remove_runs([member])[0]
    with RunFolder.create(Path("runs"), "busy") as busy, pytest.raises(UserError, match="is running"):
        remove_runs([runs["base"], busy])
    assert "base" in listed()  # none was moved


def test_what_is_lost_with_a_run_of_a_group_is_told_in_one_sentence(runs):
    "The best trial of a sweep, a fold, one of several seeds; not where the whole group goes."
    root = Path("runs")
    for kind, file in (("sweep", "sweep.json"), ("folds", "folds.json"), ("seeds", "group.json")):
        group = root / f"20260101-000000-own-{kind}"
        group.mkdir()
        members = [record(root, f"{kind}-{number}", score=0.5 + number / 10) for number in range(3)]
        for run in members:
            (run / "status.json").write_text(json.dumps(json.loads((run / "status.json").read_text()) | {"part_of": group.name}))
        (group / file).write_text(json.dumps({"experiment": {"monitor": "f1_macro"}}))
        if kind == "sweep":
            pd.DataFrame({"run": [run.id for run in members], "value": [0.5, None, 0.7]}).to_parquet(group / "trials.parquet")
        words = {"sweep": f"the best trial of {group.name}, of which train --final needs it", "folds": f"a fold of {group.name}", "seeds": f"one of the runs of {group.name}"}
        said = CliRunner().invoke(app, ["rm", members[2].id]).stdout
        assert f"Moved {members[2].id} ({words[kind]}" in said and len(said.strip().splitlines()) == 1 and "mv " in said
        other = CliRunner().invoke(app, ["rm", members[0].id]).stdout
        assert ("best trial" not in other) and group.name in other
        whole = CliRunner().invoke(app, ["rm", f"own-{kind}"])
        assert whole.exit_code == 0 and " (" not in whole.stdout and whole.stdout.count("Moved") == 2, whole.stdout
    assert " (" not in CliRunner().invoke(app, ["rm", "empty"]).stdout


def test_the_bin_is_emptied_only_when_asked_twice(runs, tmp_path):
    remove_runs([runs["base"], runs["empty"]])
    refused = snakecls("rm", "--empty-bin", cwd=tmp_path)
    assert refused.returncode == 2 and "2 runs" in refused.stderr and "--yes" in refused.stderr and len(list((tmp_path / "runs" / BIN).iterdir())) == 2
    done = CliRunner().invoke(app, ["rm", "--empty-bin", "--yes", "--json"])
    assert json.loads(done.stdout) == {"deleted": 2} and not (tmp_path / "runs" / BIN).exists() and sorted(listed()) == ["child", "grandchild"]
    assert "empty" in CliRunner().invoke(app, ["rm", "--empty-bin"]).stdout
    for words in ([], ["child", "--empty-bin"]):
        assert isinstance(CliRunner().invoke(app, ["rm", *words]).exception, UserError)


def test_a_filter_of_nothing_keeps_everything(runs):
    board = all_runs("runs")
    assert len(filter_runs(board, [])) == len(board)


def learned(root: Path, name: str, first: int, *, answered: bool = True) -> None:
    "Write a run of two epochs on photos of its own; without answers it was stopped before its end."
    with RunFolder.create(root, name) as run:
        run.write_experiment({"name": name, "data": {"source": "snakes"}, "model": {"arch": "resnet18"}})
        table = pd.DataFrame({"path": [f"x/{i}.jpg" for i in range(first, first + 20)], "label": ["a", "b"] * 10, "split": "valid"})
        table.assign(size_bytes=99).to_parquet(run / "manifest.parquet")
        for epoch in (1, 2):
            run.add_epoch({"stage": 1, "epoch": epoch, "valid_loss": 1 / epoch, "f1_macro": 0.4 * epoch})
        if answered:
            table[["path", "label"]].assign(predicted=table["label"]).to_parquet(run / "predictions-valid.parquet")
            run.write_metrics({"labels": ["a", "b"], "valid": {"n": 20, "f1_macro": 1.0}})


def test_epochs_of_other_photos_stand_in_other_charts(tmp_path):
    "Also where two data sets share a name and a number of photos; a run that was stopped stands beside those with its photos."
    for name, first, answered in (("one", 0, True), ("two", 100, True), ("three", 0, True), ("stopped", 0, False)):
        learned(tmp_path, name, first, answered=answered)
    page = write_runs_page(tmp_path / "runs.html", all_runs(tmp_path, photos=True), [tmp_path]).read_text()
    charts = [re.findall(r"</svg>(.*?)</span>", keys) for keys in re.findall(r'<div class="keys">(.*?)</div>', page, re.DOTALL)]
    assert sorted(map(sorted, charts)) == sorted([["one", "stopped", "three"], ["two"]] * 2)
    said = re.findall(r"20 validation photos of 2 classes: snakes \(photos \w{8}\)", page)
    assert len(set(said)) == 2 and len(said) == 6  # final scores, macro F1 and loss of each


def test_equal_lines_of_a_chart_are_both_seen():
    "The first is whole and wide, what lies on it has gaps and an edge; the key shows them alike, and needs no background, which print leaves out."
    page = render("runs.html", title="x", subtitle="", groups=[], footer="",
                  curves=[{"title": "Macro F1", "said": "", "charts": [lay_curves({"macro F1": [0.5, 0.7], "accuracy": [0.5, 0.7]})]}])
    lines = re.findall(r"<polyline[^>]*>", page)
    colours, dashed = [re.search(r"var\(--(\w+)\)", line)[1] for line in lines], ["dasharray" in line for line in lines]
    assert colours == ["c0", "card", "c1"] and dashed == [False, True, True]
    keys = re.findall(r'<svg class="key".*?</svg>', page, re.DOTALL)
    assert ["dasharray" in key for key in keys] == [False, True] and "background:var(--c" not in page
@pytest.mark.parametrize("damage", ['{"labels": ["a", "b"], "val', "", "[]", '{"valid": 3}', '{"valid": {"f1_macro": "high"}}', "\0\0\0"])
def test_a_cut_or_damaged_file_is_named_in_a_plain_sentence(runs, damage):
    "In the table, in comparisons and where the run is asked for; never by the name of a class."
    for file in ("metrics.json", "status.json", "experiment.yaml"):
        whole = (runs["child"] / file).read_text()
        (runs["child"] / file).write_text(damage)
        row = next(row for row in json.loads(CliRunner().invoke(app, ["runs", "--json"]).stdout) if row["run"] == runs["child"].id)
        said = [row["message"] or "", row["not_compared"] or "", CliRunner().invoke(app, ["runs", "--tree"]).stdout]
        for words in (["compare", "base", runs["child"].id], ["train", "--final", runs["child"].id]):
            done = CliRunner().invoke(app, words)
            assert isinstance(done.exception, UserError) and "\n" not in str(done.exception)
            said.append(str(done.exception))
        text = "\n".join(said)
        assert not re.search(r"\b[A-Z]\w*(Error|Exception)\b|Expecting|\(char ", text), text
        if file == "metrics.json" or (file == "status.json" and damage != "{}"):
            assert f"{runs['child'].id}/{file}" in row["message"], row["message"]
        (runs["child"] / file).write_text(whole)


def test_a_place_that_keeps_no_files_is_refused_with_advice_that_helps(tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for words in (["train", "--data", "photos", "--runs", "/proc/self/runs"], ["train", "--data", "photos", "--logbook", "/proc/logbook.md"], ["check", "photos", "--output", "/proc/self/check"]):
        done = run_command(*words, cwd=tmp_path)
        assert done.returncode == 2 and "/proc is the system's own and keeps no files; give a folder on a disk." in done.stderr, done.stderr
        assert "writable" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    (tmp_path / "file").write_text("x")
    done = run_command("runs", "--runs", "file", cwd=tmp_path)
    assert done.returncode == 2 and "file is a file, and no folder of runs" in done.stderr


def test_how_a_run_ended_is_short_in_the_table_and_whole_where_it_is_asked_for(runs):
    message = f"Its process ended without a word; the best so far can be used: snakecls evaluate --model {runs['empty'].id} (or predict, app, export)"
    status = json.loads((runs["empty"] / "status.json").read_text())
    (runs["empty"] / "status.json").write_text(json.dumps(status | {"status": "killed", "message": message}))
    lines = CliRunner().invoke(app, ["runs"]).stdout.splitlines()
    said = next(line for line in lines if line.startswith(runs["empty"].id)).partition("killed: ")[2]
    assert message.startswith(said.rstrip("…")) and said.endswith("…") and len("killed: " + said) <= 60 and max(map(len, lines)) < 150
    assert message in CliRunner().invoke(app, ["runs", "--wide"]).stdout
    assert message in CliRunner().invoke(app, ["runs", "--json"]).stdout
