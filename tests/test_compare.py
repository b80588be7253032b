"""Runs compared on the same validation photos: the numbers agree with what is counted by hand, what cannot be compared is refused, and the page needs nothing else."""
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import draw_snake
from sklearn.metrics import f1_score
from test_cli import snakecls
from typer.testing import CliRunner

from snakecls.cli import app
from snakecls.core import UserError
from snakecls.experiment.schema import Experiment
from snakecls.workflow.compare import judge_pair
from snakecls.workflow.compare_page import write_compare_page
from snakecls.workflow.compare_runs import compare_runs, compare_text
from snakecls.workflow.findings import _compare_with_parent, difference_text, settings_text
from snakecls.workflow.grid import read_seeds
from snakecls.workflow.recorder import resolve_parent
from snakecls.workflow.run_folder import RunFolder

N = 90
LABELS = ["adder", "boa", "cobra"]
TRUTH = [LABELS[i % 3] for i in range(N)]
FACTS = {"adder": {"venomous": "yes"}, "boa": {"venomous": "no"}, "cobra": {"venomous": "yes"}}


def wrong(*places: int, to: int = 1) -> list[str]:
    return [LABELS[(LABELS.index(label) + to) % 3] if i in places else label for i, label in enumerate(TRUTH)]


def record(root: Path, name: str, said: list, *, true: list = TRUTH, paths: list[str] | None = None, labels: list[str] = LABELS, targets: dict | None = None, seed: int = 1, **changes) -> RunFolder:
    "Write a finished run by hand; targets: name -> (true, said, labels) beside the first."
    column = "labels" if isinstance(true[0], list) else "label"
    hot = [[[label == cell or (isinstance(cell, list) and label in cell) for label in labels] for cell in cells] for cells in (true, said)]
    score = float(f1_score(*np.array(hot, int), average="macro", zero_division=0))

    def table(true, said, column, labels):
        probs = {f"p_{i}": [float(label == cell or (isinstance(cell, list) and label in cell)) for cell in said] for i, label in enumerate(labels)}
        return pd.DataFrame({"path": paths or [f"/photos/{i}.jpg" for i in range(len(true))], column: true, "predicted": said, **probs})

    with RunFolder.create(root, name) as run:
        run.write_experiment({"name": name, "seed": seed, "data": {"source": "/photos", "seed": 7}, "model": {"arch": "resnet18", **changes}})
        table(true, said, column, labels).to_parquet(run / "predictions-valid.parquet")
        metrics = {"labels": labels, "valid": {"n": len(true), "f1_macro": score, "f1_macro_interval": [0.1, 0.9]}}
        bundle = {"labels": labels, "label_facts": FACTS}
        if targets:
            metrics["targets"] = {"kind": {"valid": metrics["valid"]}}
            bundle["targets"] = {"kind": labels}
            for target, (theirs, answers, own) in targets.items():
                table(theirs, answers, "label", own).to_parquet(run / f"predictions-valid-{target}.parquet")
                metrics["targets"][target] = {"valid": {"n": len(theirs), "f1_macro": float(f1_score(theirs, answers, average="macro"))}}
                bundle["targets"][target] = own
        run.write_metrics(metrics)
        (run / "best").mkdir()
        (run / "best" / "bundle.json").write_text(json.dumps(bundle))
    return run


def test_the_numbers_are_those_counted_by_hand(tmp_path):
    base, run = record(tmp_path, "base", wrong(*range(20))), record(tmp_path, "deeper", wrong(0, 1, 2, 40), arch="resnet34")
    found = compare_runs(base, [run])["runs"][0]
    one = found["targets"][""]
    assert (one["won"], one["lost"], one["n"], found["verdict"], found["finding"]) == (17, 1, N, "better", True)
    scores = [f1_score(TRUTH, said, average=None) for said in (wrong(0, 1, 2, 40), wrong(*range(20)))]
    by_label = {row["label"]: row for row in one["classes"]}
    assert [by_label[label]["this"] for label in LABELS] == pytest.approx(scores[0]) and [by_label[label]["other"] for label in LABELS] == pytest.approx(scores[1])
    assert one["difference"] == pytest.approx(scores[0].mean() - scores[1].mean()) == pytest.approx(one["this"] - one["other"])
    harmless = [sum(true != "boa" and answer == "boa" for true, answer in zip(TRUTH, said)) for said in (wrong(0, 1, 2, 40), wrong(*range(20)))]
    assert [(danger["n"], danger["this"], danger["other"]) for danger in one["dangers"]] == [(60, *harmless)]
    assert f"venomous called harmless: {harmless[0]} of 60 photos, was {harmless[1]}" in compare_text(compare_runs(base, [run]))
    back = compare_runs(run, [base])["runs"][0]
    assert (back["verdict"], back["targets"][""]["won"]) == ("worse", 1) and back["said"].startswith("worse by")


def test_what_is_no_finding_says_so_and_comparisons_are_counted(tmp_path):
    base = record(tmp_path, "base", wrong(*range(20)))
    alike, few = record(tmp_path, "alike", wrong(*range(1, 21)), dropout=0.1), record(tmp_path, "few", wrong(*range(16)), dropout=0.2)
    seed, same = record(tmp_path, "seed", wrong(*range(2)), seed=2), record(tmp_path, "same", wrong(*range(20)), dropout=0.3)
    compared = compare_runs(base, [alike, few, seed, same])
    said = [run["said"] for run in compared["runs"]]
    assert not any(run["finding"] for run in compared["runs"])
    for part, text in zip(("includes zero", "only 4 photos", "seed alone", "no photo was answered differently (n = 90), so a difference up to about ±3.3 points"), said):
        assert text.startswith("no finding") and part in text
    assert compared["luck"].startswith("4 comparisons") and "19%" in compared["luck"]


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path):
    base, none = record(tmp_path, "base", TRUTH), record(tmp_path, "none", TRUTH)
    (none / "predictions-valid.parquet").unlink()
    others = {
        "other validation photos": record(tmp_path, "photos", TRUTH, paths=[f"/photos/{i}.jpg" for i in range(1, N + 1)]),
        "other labels (viper in": record(tmp_path, "labels", TRUTH, labels=[*LABELS, "viper"]),
        "another problem": record(tmp_path, "lists", [[label] for label in TRUTH], true=[[label] for label in TRUTH]),
        "other true labels": record(tmp_path, "truth", TRUTH, true=wrong(3)),
        "kept no predictions": none, "compared with itself": base,
    }
    for why, run in others.items():
        with pytest.raises(UserError) as refused:
            compare_runs(base, [run])
        assert why in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(UserError, match="give two runs"):
        compare_runs(base, [])


def test_several_labels_and_several_targets(tmp_path):
    lists = [[label, "male"] if i % 2 else [label] for i, label in enumerate(TRUTH)]
    names = [*LABELS, "male"]
    one = record(tmp_path, "lists", [[label] for label in TRUTH], true=lists, labels=names)
    two = record(tmp_path, "more", [labels if i > 9 else labels[:1] for i, labels in enumerate(lists)], true=lists, labels=names, arch="resnet34")
    found = compare_runs(one, [two])["runs"][0]["targets"][""]
    assert (found["won"], found["lost"]) == (40, 0) and found["photos"][0]["this"] == sorted(lists[11])
    genus = ["Vipera" if label == "adder" else "Boa" for label in TRUTH]
    own = ["Boa", "Vipera"]
    a = record(tmp_path, "two", wrong(*range(20)), targets={"genus": (genus, genus, own)})
    b = record(tmp_path, "two-more", TRUTH, targets={"genus": (genus, ["Boa"] * 30 + genus[30:], own)}, arch="resnet34")
    targets = compare_runs(a, [b])["runs"][0]["targets"]
    assert list(targets) == ["kind", "genus"] and (targets["kind"]["won"], targets["genus"]["lost"]) == (20, 10)
    assert "genus: macro F1" in compare_text(compare_runs(a, [b]))


def test_the_page_is_one_file_and_photos_may_be_gone(tmp_path):
    photos = [tmp_path / f"{i}.png" for i in range(N)]
    for photo in photos[:2]:
        draw_snake(1).save(photo)
    paths = list(map(str, photos))
    base = record(tmp_path / "runs", "<b>base</b>", wrong(0, 1, 2), paths=paths)
    run = record(tmp_path / "runs", "deeper", wrong(5), paths=paths, arch="resnet34")
    page = write_compare_page(tmp_path / "page.html", compare_runs(base, [run])).read_text()
    assert page.count("data:image/jpeg") == 2 and page.count("not there any more") == 2  # one won and one lost
    assert "<b>base</b>" not in page and not re.search(r"(src|href)=\"(?!data:|#)", page) and "<script" not in page and page.count("<circle") == 1


def test_the_command_writes_the_page_and_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(Path("runs"), "base", wrong(*range(20)))
    for name in ("deeper", "wider"):
        record(Path("runs"), name, wrong(1), arch=name)
    runner = CliRunner()
    done = runner.invoke(app, ["compare", "base", "deeper", "wider"])
    assert done.exit_code == 0 and "better by" in done.stdout and Path("comparisons/deeper-wider-against-base.html").exists()
    done = runner.invoke(app, ["compare", "base", "wider", "--base", "deeper", "--json", "--output", "own.html"])
    said = json.loads(done.stdout)
    assert said["base"]["name"] == "deeper" and [run["name"] for run in said["runs"]] == ["base", "wider"] and Path("own.html").exists()
    refused = snakecls("compare", "base", "nobody", cwd=tmp_path)
    assert refused.returncode == 2 and "nobody" in refused.stderr and "Traceback" not in refused.stderr


def test_a_parent_of_several_seeds_is_compared_seed_by_seed(tmp_path):
    places = {0: range(20), 1: range(5, 27), 2: range(30, 49)}
    parents = [record(tmp_path, f"base-{seed}", wrong(*each), seed=seed) for seed, each in places.items()]
    record(tmp_path, "other photos", TRUTH, seed=3, paths=[f"/elsewhere/x/{i + 1}.jpg" for i in range(N)])
    children = [record(tmp_path, f"deeper-{seed}", wrong(*list(each)[:4]), seed=seed, arch="resnet34") for seed, each in places.items()]
    found = _compare_with_parent({"": children}, parents[1].path)[""]
    gaps = [f1_score(TRUTH, wrong(*list(each)[:4]), average="macro") - f1_score(TRUTH, wrong(*each), average="macro") for each in places.values()]
    assert found["by_seed"] and found["seeds"] == 3 and found["clear"]
    assert found["difference"] == pytest.approx(np.mean(gaps)) and found["sd"] == pytest.approx(np.std(gaps, ddof=1))
    assert found["over_seeds"][0] < np.mean(gaps) < found["over_seeds"][1] and "their own interval" in difference_text(found)
    summary = {"settings": {"": {"difference": found}}, "reference": parents[1].id, "parent_reason": ""}
    assert "seed by seed" in settings_text(summary, parents[1].id)
    alone = _compare_with_parent({"": children[:1]}, parents[1].path)[""]  # one seed is compared with the parent itself
    assert "by_seed" not in alone and alone["seeds"] == 1


def test_folds_and_trials_have_no_mean_to_be_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(Path("runs"), "base", wrong(0))
    for kind, changes in (("folds", [{}, {}]), ("sweep", [{"arch": "resnet34"}, {"arch": "resnet50"}])):
        group = Path("runs") / f"20260101-000000-own-{kind}"
        group.mkdir()
        (group / "progress.json").write_text("{}")
        for number, change in enumerate(changes):
            run = record(Path("runs"), f"{kind}-{number}", wrong(*range(9 - number)), **change)
            (run / "status.json").write_text(json.dumps(json.loads((run / "status.json").read_text()) | {"part_of": group.name}))
            if kind == "folds":
                values = run.experiment()
                run.write_experiment(values | {"data": values["data"] | {"folds": 2, "fold": number}})
        for words in ([f"own-{kind}", "base"], ["base", f"own-{kind}"]):
            refused = CliRunner().invoke(app, ["compare", *words])
            why = str(refused.exception)
            assert isinstance(refused.exception, UserError) and group.name in why and "\n" not in why
            assert ("--folds N --parent" in why) if kind == "folds" else (run.id in why and "different settings (model.arch)" in why)


def test_seeds_are_whole_numbers(tmp_path):
    assert read_seeds("3, 1,3") == [3, 1]
    for text in ("1", "1,x", "-1,2", "", "1,,2"):
        with pytest.raises(UserError, match="--seeds"):
            read_seeds(text)
    done = snakecls("train", "--data", "nowhere", "--seeds", "1,2", "--folds", "2", cwd=tmp_path)
    assert done.returncode == 2 and "give one of them" in done.stderr


def test_train_with_seeds_keeps_the_split_and_writes_one_entry(tmp_path):
    from test_faults_ends import SMALL
    from test_hardening_runs import make_photos

    make_photos(tmp_path / "photos", 24)
    words = ["train", "--data", "photos", *SMALL, "--set", "schedule=[{size: 32, epochs: 1}]", "--seeds", "0,1"]
    done = snakecls(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    runs = [tmp_path / "runs" / row["run"] for row in said["runs"]]
    valid = [set(pd.read_parquet(run / "predictions-valid.parquet")["path"]) for run in runs]
    assert len(runs) == 2 and valid[0] == valid[1] and len(next(iter(said["summary"]["settings"].values()))["served"]) == 2
    book = (tmp_path / "logbook.md").read_text()
    entries = re.findall(r"^## (.*)$", book, re.MULTILINE)  # that of the group says what came of it, the others that they are part of it
    assert book.count("#seeds") == 1 and len([entry for entry in entries if "(part of " not in entry]) == 1 and len(entries) == 3
    again = snakecls(*words, "--set", "train.wd=0.2", "--parent", said["runs"][0]["run"].rsplit("-seed-", 1)[0][16:] + "-seeds", cwd=tmp_path)
    assert again.returncode == 0 and "seed by seed" in again.stdout, again.stdout + again.stderr


def with_trained(run: RunFolder, said: list) -> RunFolder:
    "Give a run weights after its last epoch that answer otherwise than the probe that it serves."
    pd.read_parquet(run / "predictions-valid.parquet").assign(predicted=said).to_parquet(run / "predictions-valid-trained.parquet")
    run.write_metrics(run.metrics() | {"best": {"epoch": 0}, "trained": {"epoch": 3, "f1_macro": f1_score(TRUTH, said, average="macro")}})
    return run


def test_every_number_says_of_which_score_it_is(tmp_path):
    base = with_trained(record(tmp_path, "base", wrong(*range(20))), wrong(*range(40)))
    same = with_trained(record(tmp_path, "same", wrong(*range(20)), dropout=0.3), wrong(*range(12)))
    trains = with_trained(record(tmp_path, "trains", wrong(*range(20))), wrong(*range(12)))
    experiment = trains.experiment()
    (trains / "experiment.yaml").write_text(json.dumps(experiment | {"train": {"wd": 0.2}}))  # what a probe does not show
    compared = compare_runs(base, [same, trains])
    one, two = compared["runs"]
    scores = [f1_score(TRUTH, wrong(*range(n)), average="macro") for n in (12, 40)]
    assert (one["view"], one["beside"]["view"], two["view"], two["beside"]["view"]) == ("served", "trained", "trained", "served")
    assert [one["beside"][key] for key in ("this", "other")] == pytest.approx(scores) == [two["targets"][""][key] for key in ("this", "other")]
    for run, other in ((one, same), (two, trains)):
        judged = judge_pair(other, base)
        assert (run["verdict"], run["view"]) == (judged["verdict"], judged["about"]) and run["beside"]["difference"] == judged["views"][run["beside"]["view"]]["difference"]
    text = compare_text(compared)
    served = f1_score(TRUTH, wrong(*range(20)), average="macro")
    assert f"macro F1 as served {served:.3f}, was {served:.3f}" in text and "no photo was answered differently (n = 90)" in text
    assert f"beside it, macro F1 of the trained weights {scores[0]:.3f}, was {scores[1]:.3f}: {100 * (scores[0] - scores[1]):+.1f} points" in text
    page = write_compare_page(tmp_path / "page.html", compared).read_text()
    assert all(part in page for part in ("same, as served<", "trains, trained weights<", "Two kinds of score", "Macro F1 of the trained weights", "F1 of each class as served", "Answers of the trained weights"))
    assert "Two kinds" not in write_compare_page(tmp_path / "page.html", compare_runs(base, [same])).read_text()


def test_groups_of_seeds_are_compared_seed_by_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, n in (("plain", 20), ("deep", 4)):
        group = Path("runs") / f"20260101-000000-{name}-seeds"
        group.mkdir(parents=True)
        (group / "progress.json").write_text("{}")
        for seed in (0, 1):
            run = record(Path("runs"), f"{name}-seed-{seed}", wrong(*range(n - seed)), seed=seed, arch=name)
            status = json.loads((run / "status.json").read_text())
            (run / "status.json").write_text(json.dumps(status | {"part_of": group.name}))
    gaps = [f1_score(TRUTH, wrong(*range(4 - seed)), average="macro") - f1_score(TRUTH, wrong(*range(20 - seed)), average="macro") for seed in (0, 1)]
    said = json.loads(CliRunner().invoke(app, ["compare", "plain-seeds", "deep-seeds", "--json"]).stdout)["groups"][0]
    assert said["difference"] == pytest.approx(np.mean(gaps)) and said["clear"] and len(said["pairs"]) == 2
    assert all(one.split("seed-")[1] == two.split("seed-")[1] for one, two in said["pairs"])
    mixed = CliRunner().invoke(app, ["compare", "deep-seed-0", "plain-seeds"])  # each seed of the group against the one run
    alone = [f1_score(TRUTH, wrong(*range(20 - seed)), average="macro") - f1_score(TRUTH, wrong(*range(4)), average="macro") for seed in (0, 1)]
    assert mixed.exit_code == 0 and f"{np.mean(alone):+.3f} (" in mixed.stdout and "worse" in mixed.stdout, mixed.exception
    assert "changed: model.arch: deep -> plain\n" in mixed.stdout and "2 seeds, each against run" in mixed.stdout and "seed by seed" not in mixed.stdout
    other = json.loads(CliRunner().invoke(app, ["compare", "plain-seeds", "deep-seed-0", "--json"]).stdout)["groups"][0]
    assert other["difference"] == pytest.approx(-np.mean(alone)) and other["seeds"] == 2 and other["sd"] == pytest.approx(np.std(alone, ddof=1))
    for words, why in ((["deep-seeds", "deep-seed-0"], "one of the group's own"), (["deep-seeds", "deep-seeds"], "named twice"), (["deep-seeds", "nobody"], "nobody")):
        refused = CliRunner().invoke(app, ["compare", *words])
        assert isinstance(refused.exception, UserError) and why in str(refused.exception) and "\n" not in str(refused.exception)
    record(Path("runs"), "elsewhere", TRUTH, paths=[f"/elsewhere/x/{i + 1}.jpg" for i in range(N)])
    assert "other validation photos" in str(CliRunner().invoke(app, ["compare", "deep-seeds", "elsewhere"]).exception)
    ask = Experiment.model_validate({"data": {"source": "photos"}, "parent": "plain-seeds", "seed": 1})
    assert resolve_parent(ask, "runs").parent.endswith("plain-seed-1")
    removed = CliRunner().invoke(app, ["rm", "plain"])
    assert removed.exit_code == 0 and removed.stdout.count("bring it back") == 3 and not list(Path("runs").glob("*plain*"))
    refused = CliRunner().invoke(app, ["compare", "deep-seed-0", "plain-seed-1"])
    assert "is in the bin" in str(refused.exception) and "mv runs/.bin/" in str(refused.exception)
