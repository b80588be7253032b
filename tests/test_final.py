"""A final model: the winner's settings on all photos, as long as the winner needed, and honest about what was not measured."""
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import draw_colours, need
from warm import run_command

from snakecls.core import UserError
from snakecls.disk import read_json, read_parquet
from snakecls.experiment.file import make_experiment
from snakecls.models.bundle import read_bundle, read_weights

need("optuna")
from snakecls.evaluate.thresholds import tune_thresholds  # noqa: E402
from snakecls.workflow.compare_runs import compare_runs  # noqa: E402
from snakecls.workflow.ended import StopRun  # noqa: E402
from snakecls.workflow.evaluation import evaluation_table  # noqa: E402
from snakecls.workflow.final import find_end, find_own_folds, find_winner, train_final  # noqa: E402
from snakecls.workflow.folds import run_folds  # noqa: E402
from snakecls.workflow.leaderboard import leaderboard_text  # noqa: E402
from snakecls.workflow.recorder import make_recorder  # noqa: E402
from snakecls.workflow.run import resume_run, run_experiment  # noqa: E402
from snakecls.workflow.run_folder import RunFolder, read_status  # noqa: E402
from snakecls.workflow.runs import all_runs  # noqa: E402
from snakecls.workflow.sweeps import run_sweep  # noqa: E402


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Thirty tiny photos of each of two colours, and a table in which some have two labels."
    folder = draw_colours(tmp_path_factory.mktemp("photos"))
    files = sorted(folder.glob("*/*.png"), key=lambda file: int(file.stem))
    rows = [{"path": str(file), "labels": file.parent.name + (";loud" if i % 5 < 2 else "")} for i, file in enumerate(files)]
    pd.DataFrame(rows).to_csv(folder / "several.csv", index=False)
    return folder


def describe(photos: Path, **more) -> dict:
    return {
        "name": "tiny", "data": {"source": str(photos), "test": 0.2, "seed": 0}, "model": {"arch": "lenet5"}, "predict": {"examples": 0},
        "train": {"num_workers": 0, "image_cache": 0, "bs": 4},
        "schedule": [{"size": 32, "epochs": 1, "lr": 1e-3}, {"size": 32, "epochs": 4, "lr": 1e-2}], **more}


def where(folder: Path, said: list | None = None) -> dict:
    return {"root": folder / "runs", "logbook": folder / "logbook.md", "say": (said if said is not None else []).append}


def best_at(run: RunFolder, stage: int, epoch: int) -> None:
    "Let an epoch be the one that a run has kept."
    metrics = run.metrics()
    run.write_metrics(metrics | {"best": metrics["best"] | {"stage": stage, "epoch": epoch}})


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    "A run whose best epoch is the second of its second stage, and its final model; killing changes neither, so tests may share them."
    folder = tmp_path_factory.mktemp("trained")
    run = run_experiment(make_experiment(describe(photos)), **where(folder)).run
    best_at(run, 2, 2)
    train_final("tiny", **where(folder))
    return folder


def runs_of(folder: Path) -> tuple[RunFolder, RunFolder]:
    winner, final = sorted((folder / "runs").glob("*-tiny*"), key=lambda path: len(path.name))[:2]
    return RunFolder(winner), RunFolder(final)


def test_it_trains_on_all_photos_as_long_as_the_winner(trained):
    winner, final = runs_of(trained)
    manifest, before = (read_parquet(run / "manifest.parquet") for run in (final, winner))
    assert set(manifest["split"]) == {"train", "test"} and len(manifest) == len(before) == 60
    assert set(manifest["path"][manifest["split"] == "test"]) == set(before["path"][before["split"] == "test"])
    history = final.history()
    assert list(zip(history["stage"], history["epoch"])) == [(1, 1), (2, 1), (2, 2)]
    assert history[["valid_loss", "f1_macro"]].isna().all().all() and history["train_loss"].notna().all()
    metrics = final.metrics()
    assert (metrics["best"], metrics["final"]["until"]) == ({"stage": 2, "epoch": 2, "size": 32}, {"1": 1, "2": 2})
    assert metrics["parent"] == winner.id and yaml.safe_load((final / "experiment.yaml").read_text())["schedule"][1]["epochs"] == 4


def test_it_pretends_no_validation_score(trained):
    winner, final = runs_of(trained)
    metrics, valid = final.metrics(), winner.metrics()["valid"]
    assert metrics["valid"] is None and metrics["trained"] is None and metrics["test"]["n"] == 12
    assert not (final / "predictions-valid.parquet").exists() and (final / "predictions-test.parquet").exists()
    expected = metrics["final"]["expected"]
    assert (expected["f1_macro"], [expected["low"], expected["high"]], expected["n"]) == (valid["f1_macro"], valid["f1_macro_interval"], valid["n"])
    report = (final / "report.html").read_text()
    assert "without a validation score" in report and "they are trained on now" in report and "the epoch was chosen on these photos" in report
    assert "on the validation photos;" not in report and "nothing was validated" in report
    board = all_runs(trained / "runs", photos=True, verdicts=True)
    row = board[board["run"] == final.id].iloc[0]
    assert pd.isna(row["f1_macro"]) and row["served"] == "epoch 2, final" and row["verdict"] == "final" and row["compared_with"] == winner.id
    assert "expected macro F1" in leaderboard_text(board, None)
    entry = (trained / "logbook.md").read_text().split("\n## ")[1]
    assert "validated on none" in entry and "they are trained on now" in entry and f"[{final.id}]" in entry
    with pytest.raises(UserError, match="was trained on its validation photos"):
        compare_runs(winner, [final])
    info = read_bundle(final / "best").info
    assert "valid" not in info.metrics and info.extra["final"]["winner"] == winner.id
    with pytest.raises(UserError, match="nothing to score it on"):
        evaluation_table(final / "best", split="valid")


def test_a_stopped_final_goes_on_to_the_same_bits(trained, tmp_path):
    _, final = runs_of(trained)

    def stop(row: dict) -> None:
        if (row["stage"], row["epoch"]) == (2, 1):
            raise StopRun("the test")

    place = where(trained) | {"logbook": None}
    recorder = make_recorder(**place)
    object.__setattr__(recorder, "watch", stop)
    with pytest.raises(StopRun):
        train_final(runs_of(trained)[0].id, recorder=recorder)
    stopped = RunFolder(max((trained / "runs").glob("*-final*"), key=lambda path: path.stat().st_ctime_ns))
    assert read_status(stopped.path)["status"] == "stopped"
    again = resume_run(stopped, say=lambda text: None).run
    weights = [read_weights(read_bundle(run / "best")) for run in (final, again)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    assert again.metrics()["final"] == final.metrics()["final"]


def test_what_cannot_be_made_final_is_said_in_one_sentence(trained, tmp_path):
    winner, final = runs_of(trained)
    root = tmp_path / "runs"
    for name in ("killed", "recorded", "gone", "changed", "plateau"):
        shutil.copytree(winner.path, root / f"20260101-000000-{name}")
        status = read_json(root / f"20260101-000000-{name}" / "status.json")
        (root / f"20260101-000000-{name}" / "status.json").write_text(json.dumps(status | {"name": name}))
    shutil.copytree(final.path, root / "20260101-000000-whole")

    def edit(name: str, file: str, change) -> None:
        path = root / f"20260101-000000-{name}" / file
        path.write_text(change(path.read_text()))

    edit("killed", "status.json", lambda text: text.replace('"finished"', '"running"'))
    edit("recorded", "experiment.yaml", lambda text: f"recorded: from a Learner\n{text}")
    edit("plateau", "experiment.yaml", lambda text: text.replace("lr_schedule: one_cycle", "lr_schedule: plateau"))
    for name, change in (("gone", lambda path: "/nowhere/a.png"), ("changed", lambda path: path)):
        file = root / f"20260101-000000-{name}" / "manifest.parquet"
        table = pd.read_parquet(file)
        place = table.index[table["split"] == "valid"][0]
        table.loc[place, "path"] = change(table.loc[place, "path"])
        table.loc[place, "size_bytes"] += 1
        table.to_parquet(file)
    for name, sentence in (
        ("killed", "was killed before its end"), ("recorded", "was recorded from a Learner"), ("gone", "are not there any more, such as"),
        ("changed", "have another content"), ("20260101-000000-whole", "is a final model already"), ("plateau", "lr_schedule: plateau"),
        ("kiled", "did you mean 'killed'"),
    ):
        with pytest.raises(UserError) as error:
            train_final(name, root=root, logbook=None, say=lambda text: None)
        assert sentence in str(error.value) and "\n" not in str(error.value)
    assert len(list(root.iterdir())) == 6  # nothing was begun


def test_a_sweep_gives_its_winner_and_none_without_a_finished_trial(photos, tmp_path):
    experiment = make_experiment(describe(photos, schedule=[{"size": 32, "epochs": 1, "lr": 1e-3}]))
    swept = run_sweep(experiment, {"train.wd": [0.01, 0.1]}, sampler="grid", **where(tmp_path))
    winner = find_winner(tmp_path / "runs", "tiny-sweep")
    best = winner.runs[0].id  # of level ones the quickest
    assert winner.trials == 2 and (best == swept.run or winner.note)
    said = train_final(swept.folder.name, **where(tmp_path)).metrics["final"]
    assert said["winner"] == best and said["expected"]["trials"] == 2
    (tmp_path / "runs" / "20260101-000000-none-sweep").mkdir()
    shutil.copy(swept.folder / "sweep.json", tmp_path / "runs" / "20260101-000000-none-sweep")
    with pytest.raises(UserError, match="has no finished trial, so there is no winner"):
        train_final("none-sweep", **where(tmp_path))


def test_folds_give_the_expected_score_and_the_calibration(photos, tmp_path):
    "Also where they were run beside the winner, and where each trial of a sweep was folds."
    experiment = make_experiment(describe(photos, schedule=[{"size": 32, "epochs": 2, "lr": 1e-2}]))
    folds = run_folds(experiment, 3, **where(tmp_path))
    said = train_final("tiny-folds", **where(tmp_path)).metrics["final"]
    assert (said["winner"], said["expected"]["f1_macro"], said["expected"]["n"], said["calibration"]["n"]) == (folds.folder.name, folds.scores["f1_macro"], 48, 48)
    assert said["calibration"]["from"] == "out of fold" and said["photos"]["train"] + said["photos"]["valid"] == 48
    histories = pd.concat([run.history() for run in folds.runs]).groupby("epoch")["f1_macro"].mean()
    assert find_end(folds.runs) == (1, histories.idxmax())
    alone = run_experiment(experiment.model_copy(update={"name": "alone"}), **where(tmp_path)).run
    assert [run.id for run in find_own_folds(alone)] == [run.id for run in folds.runs]
    (alone / "experiment.yaml").write_text((alone / "experiment.yaml").read_text().replace("bs: 4", "bs: 8"))
    assert find_own_folds(alone) == []
    swept = run_sweep(experiment, {"train.wd": [0.01, 0.1]}, sampler="grid", trials=1, folds=2, name="both", **where(tmp_path))
    winner = find_winner(tmp_path / "runs", swept.run)
    assert (len(winner.runs), winner.trials) == (2, 1)


def test_several_labels_take_thresholds_from_answers_out_of_fold(photos, tmp_path):
    values = describe(photos, schedule=[{"size": 32, "epochs": 2, "lr": 1e-2}], name="several")
    values["data"] |= {"source": str(photos / "several.csv"), "label_column": "labels", "multi_label": True, "separator": ";", "test": 0.0}
    values["predict"]["thresholds"] = "global"
    folds = run_folds(make_experiment(values), 2, **where(tmp_path))
    run = train_final(folds.folder.name, **where(tmp_path)).run
    info, table = read_bundle(run / "best").info, read_parquet(folds.folder / "predictions.parquet")
    probs = table[[f"p_{i}" for i in range(len(info.labels))]].to_numpy(float).clip(1e-7, 1 - 1e-7)
    cooled = 1 / (1 + np.exp(-np.log(probs / (1 - probs)) / info.temperature))
    truth = np.array([[label in labels for label in info.labels] for labels in table["labels"]])
    assert np.allclose(info.thresholds, tune_thresholds(truth, cooled, mode="global"), atol=1e-6)
    metrics = run.metrics()
    assert metrics["test"] is None and metrics["thresholds"]["on"] == "answers out of fold" and (run / "report.html").exists()


def test_a_probe_needs_no_epochs_and_is_the_refitted_one(photos, tmp_path):
    values = describe(photos, model={"arch": "tf_efficientnet_lite0"}, schedule=[{"size": 48, "epochs": 0, "head": "probe"}], name="probe")
    run_experiment(make_experiment(values), **where(tmp_path))
    refit = run_experiment(make_experiment(values | {"name": "refit", "train": values["train"] | {"refit": True}}), **where(tmp_path)).run
    final = train_final("probe", **where(tmp_path))
    assert final.metrics["final"]["until"] == {"1": 0} and final.metrics["stages"][0]["epochs"] == 0
    one, two = (read_parquet(run / "predictions-test.parquet").sort_values("path") for run in (refit, final.run))
    assert np.allclose(one[["p_0", "p_1"]], two[["p_0", "p_1"]], atol=5e-3)  # another order of photos chooses another C, 0.07 away


def test_the_command(trained):
    winner, _ = runs_of(trained)
    run = partial(run_command, "train", cwd=trained)
    done = run("--final", winner.id, "--question", "What is served?")
    assert done.returncode == 0, done.stderr
    assert "Expected macro F1" in done.stdout and "Calibration in the bundle" in done.stdout and "\ntest " in done.stdout and "valid  " not in done.stdout
    assert "What is served?" in (trained / "logbook.md").read_text()
    done = run("--final", winner.id, "--folds", "3")
    assert done.returncode == 2 and "--folds cannot be given" in done.stderr
