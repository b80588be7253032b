"W&B, MLflow, TensorBoard and Trackio are told of a run, offline; what was written is read back through each library's own reader."
import json
import os
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snakecls.core import UserError
from snakecls.experiment.file import make_experiment
from snakecls.workflow import trackers as module
from snakecls.workflow.run import resume_run, run_experiment
from snakecls.workflow.run_folder import RunFolder, read_status
from snakecls.workflow.trackers import LibraryTracker, Trackers, check_libraries

EPOCHS = [1, 2, 3]  # two stages, of two epochs and one


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Sixty photos of three colours in class folders."
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for place, label in enumerate(("blue", "green", "red")):
        (folder / label).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 60, (40, 48, 3), dtype=np.uint8)
            pixels[..., place] += 180
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def installed(*names: str) -> list[str]:
    "Those libraries that are here; the tests of the others are skipped."
    found = []
    for name in names:
        try:
            check_libraries([name])
            found.append(name)
        except UserError:
            continue
    return found


def describe(photos: Path, folder: Path, track: list[str]) -> dict:
    return {
        "name": "told", "data": {"source": str(photos), "valid": 0.4}, "model": {"arch": "lenet5", "weights": "none"},
        "train": {"num_workers": 0, "precision": "fp32", "bs": 12}, "predict": {"examples": 0},
        "schedule": [{"size": 32, "epochs": 2}, {"size": 40, "epochs": 1}], "track": track,
        "wandb": {"project": "told"}, "mlflow": {"experiment": "told"}, "trackio": {"project": "told", "folder": str(folder / "trackio")},
    }


@pytest.fixture(scope="module")
def told(photos, tmp_path_factory):
    "One run, told to all libraries that are here."
    folder, said = tmp_path_factory.mktemp("told"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        track = installed("wandb", "mlflow", "tensorboard", "trackio")
        result = run_experiment(make_experiment(describe(photos, folder, track)), root=folder / "runs", logbook=None, say=said.append)
    for name in track:
        log = (result.run / f"{name}.log").read_text()
        assert "Traceback" not in log, log
    assert not [text for text in said if text.startswith("Note:") and ("failed" in text or "did not finish" in text)], said
    return result


def need(name: str) -> None:
    if not installed(name):
        pytest.skip(f"{name} is not installed; pip install 'snakecls[{name}]'")


def test_libraries_are_not_loaded_by_the_run(told):
    loaded = subprocess.run([sys.executable, "-c", "import sys, snakecls.workflow.trackers, snakecls.workflow.mirrors; print(*sys.modules)"],
                            capture_output=True, text=True, check=True).stdout.split()
    assert not {"wandb", "mlflow", "tensorboardX", "trackio"} & set(loaded)
    assert set(json.loads((told.run / "trackers.json").read_text())) == set(installed("wandb", "mlflow", "tensorboard", "trackio"))


def check_answers(told, rows: list[tuple]) -> None:  # file, label, answer, probability
    "What a library says of single photos is what the run folder says."
    import pandas as pd

    table = pd.read_parquet(told.run / "predictions-valid.parquet")
    probs = table[[name for name in table if name.startswith("p_")]].max(axis=1)
    known = {(Path(path).name, label, answer, round(float(p), 4)) for path, label, answer, p in zip(table.path, table.label, table.predicted, probs)}
    assert len(rows) == 16 and set(rows) <= known


def wandb_frames(data: bytes) -> Iterator[bytes]:
    "Take the records out of a .wandb file: LevelDB's log of 32 KB blocks, after seven bytes. W&B 0.31 itself reads them in its Go program alone."
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def wandb_records(folder: Path) -> list:
    "Read offline W&B runs: their frames by hand, and their messages by W&B's own definitions."
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(frame)
            for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")) for frame in wandb_frames(file.read_bytes())]


def wandb_curves(records: list) -> list[dict]:
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records if record.WhichOneof("record_type") == "history"]


def test_wandb_has_curves_scores_pictures_answers_and_bundle(told):
    need("wandb")
    records = wandb_records(told.run.path)
    rows, history = wandb_curves(records), told.run.history()
    curve = {row["_step"]: row["valid_loss"] for row in rows if "valid_loss" in row}
    assert list(curve) == EPOCHS and list(curve.values()) == pytest.approx(history.valid_loss.tolist())
    assert any("confusion-valid" in str(row) for row in rows)
    summary = {item.key or "/".join(item.nested_key): item.value_json for record in records for item in record.summary.update}
    assert json.loads(summary["valid/f1_macro"]) == pytest.approx(told.metrics["valid"]["f1_macro"])
    assert json.loads(summary["valid/f1_macro_low"]) == pytest.approx(told.metrics["valid"]["f1_macro_interval"][0])
    artifacts = [record.request.log_artifact.artifact for record in records if record.request.HasField("log_artifact")]
    artifacts += [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    (bundle,) = [one for one in artifacts if one.type == "model"]
    assert {entry.path for entry in bundle.manifest.contents} >= {"bundle.json", "weights.safetensors"}
    config = {item.key: item.value_json for record in records for item in record.run.config.update}
    assert json.loads(config["model"])["arch"] == "lenet5"
    (table,) = told.run.path.rglob("samples*.table.json")
    names = json.loads(table.read_text())
    check_answers(told, [tuple(row[1:]) for row in names["data"]])


def test_mlflow_has_curves_scores_pictures_answers_and_bundle(told, tmp_path):
    need("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{told.run.path.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("told").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == told.run.id and run.data.params["model.arch"] == "lenet5"
    for name in ("train_loss", "valid_loss", "f1_macro", "lr"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == EPOCHS
        assert [point.value for point in points] == pytest.approx(told.run.history()[name].tolist())
    low, high = told.metrics["valid"]["f1_macro_interval"]
    assert (run.data.metrics["valid/f1_macro_low"], run.data.metrics["valid/f1_macro_high"]) == pytest.approx((low, high))
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (folder / "plots/confusion-valid.png").read_bytes() == (told.run / "plots/confusion-valid.png").read_bytes()
    assert (folder / "bundle/weights.safetensors").read_bytes() == (told.run / "best/weights.safetensors").read_bytes()
    samples = json.loads((folder / "samples.json").read_text())
    assert Image.open(folder / samples["data"][0][0]).size == (48, 40)
    check_answers(told, [tuple(row[1:]) for row in samples["data"]])


def test_tensorboard_has_curves_scores_and_pictures(told):
    need("tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="only `pip install tensorboard` can read what is written")
    events = accumulator.EventAccumulator(str(told.run / "tensorboard")).Reload()
    for name in ("train_loss", "valid_loss", "f1_macro", "lr"):
        points = events.Scalars(name)
        assert [point.step for point in points] == EPOCHS
        assert [point.value for point in points] == pytest.approx(told.run.history()[name].tolist(), rel=1e-5)
    assert events.Scalars("final/valid/f1_macro_high")[0].value == pytest.approx(told.metrics["valid"]["f1_macro_interval"][1])
    picture = Image.open(BytesIO(events.Images("confusion-valid")[0].encoded_image_string))
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(told.run / "plots/confusion-valid.png").convert("RGB")))
    assert events.Images("samples")[0].width == 4 * 180 and "lenet5" in str(events.Tensors("experiment/text_summary"))


def trackio_logs(folder: Path, name: str) -> dict:
    "Read a run from Trackio in a process of its own, as Trackio fixes its folder when it is loaded."
    code = ("import json, sys, trackio; from trackio.sqlite_storage import SQLiteStorage as S\n"
            "runs = list(trackio.Api().runs('told'))\n"
            "print(json.dumps({'runs': [run.name for run in runs], 'config': runs[0].config, 'logs': S.get_logs('told', sys.argv[1]), 'artifacts': S.get_artifacts('told')}))")
    out = subprocess.run([sys.executable, "-c", code, name], env={**os.environ, "TRACKIO_DIR": str(folder)}, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def test_trackio_has_curves_scores_pictures_answers_and_bundle(told):
    need("trackio")
    folder = told.run.path.parent.parent / "trackio"
    found = trackio_logs(folder, told.run.id)
    assert found["runs"] == [told.run.id] and found["config"]["model"]["arch"] == "lenet5"
    for name in ("train_loss", "valid_loss", "f1_macro", "lr"):
        curve = {row["step"]: row[name] for row in found["logs"] if name in row}
        assert list(curve) == EPOCHS and list(curve.values()) == pytest.approx(told.run.history()[name].tolist())
    last = {key: value for row in found["logs"] for key, value in row.items()}
    assert last["final/valid/f1_macro_low"] == pytest.approx(told.metrics["valid"]["f1_macro_interval"][0])
    assert (folder / "media" / last["confusion-valid"]["file_path"]).stat().st_size > 1000
    rows = last["samples"]["_value"]
    assert Image.open(folder / "media" / rows[0]["photo"]["file_path"]).size == (48, 40)
    check_answers(told, [(row["file"], row["label"], row["answer"], row["probability"]) for row in rows])
    assert [(one["name"], one["type"]) for one in found["artifacts"]] == [(f"bundle-{told.run.id}", "model")]


# --- going on ------------------------------------------------------------------------------------------------------------------------

def test_a_resumed_run_goes_on_in_the_same_run_of_each_library(photos, tmp_path, monkeypatch):
    track = installed("wandb", "mlflow", "tensorboard", "trackio")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values, add = describe(photos, tmp_path, track), RunFolder.add_epoch

    def breaking(run, row):
        if row["stage"] == 2:
            raise OSError("the cable was pulled")
        add(run, row)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="cable"):
        patch.setattr(RunFolder, "add_epoch", breaking)
        run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=None, say=lambda text: None)
    (path,) = (file.parent for file in (tmp_path / "runs").glob("*/status.json"))
    first, said = json.loads((path / "trackers.json").read_text()), []
    assert read_status(path)["status"] == "failed" and set(first) == set(track)
    result = resume_run(path, say=said.append)
    assert json.loads((path / "trackers.json").read_text()) == first
    assert not [text for text in said if text.startswith("Note:") and "failed" in text], said
    if "mlflow" in track:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("told").experiment_id])
        assert run.info.status == "FINISHED" and [point.step for point in client.get_metric_history(run.info.run_id, "valid_loss")] == EPOCHS
    if "trackio" in track:
        found = trackio_logs(tmp_path / "trackio", result.run.id)
        assert found["runs"] == [result.run.id] and [row["step"] for row in found["logs"] if "valid_loss" in row] == EPOCHS
    if "wandb" in track:
        records = wandb_records(path)
        assert {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"} == {first["wandb"]}
        assert [row["_step"] for row in wandb_curves(records) if "valid_loss" in row] == EPOCHS
    if "tensorboard" in track:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        assert [point.step for point in accumulator.EventAccumulator(str(path / "tensorboard")).Reload().Scalars("valid_loss")] == EPOCHS


@pytest.mark.parametrize("where", ["folder", "sqlite:///{}/a/b.db"])
def test_mlflow_takes_a_folder_and_a_database(tmp_path, monkeypatch, where):
    need("mlflow")
    from mlflow import MlflowClient

    (tmp_path / "a").mkdir()
    uri = str(tmp_path / where) if where == "folder" else where.format(tmp_path)
    with RunFolder.create(tmp_path / "runs", "told") as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        trackers = Trackers([LibraryTracker("mlflow", {"uri": uri, "experiment": "mosses"})])
        trackers.start({"model": {"arch": "resnet18"}}, run)
        trackers.log({"epoch": 1, "f1_macro": 0.5})
        trackers.finish({"valid": {"f1_macro": 0.5}})
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("mosses").experiment_id])
    assert found.info.status == "FINISHED" and found.data.metrics["valid/f1_macro"] == 0.5


# --- what goes wrong -----------------------------------------------------------------------------------------------------------------

class Quiet:
    def start(self, experiment, run): pass
    def log(self, row): pass
    def finish(self, metrics): pass


def forever(*args): time.sleep(3600)
def raising(*args): raise OSError("no route to host")
def leaving(*args): sys.exit(3)


@pytest.mark.parametrize("event", ["start", "log", "finish"])
@pytest.mark.parametrize("fault, told", [(forever, "did not answer within 0.3 s"), (raising, "no route to host"), (leaving, "wanted to end the run")])
def test_a_tracker_that_hangs_raises_or_exits_is_told_once_and_left_out(photos, tmp_path, monkeypatch, event, fault, told):
    from snakecls.workflow.recorder import RunRecorder

    bad, good, heard, said = Quiet(), Quiet(), [], []
    setattr(bad, event, fault)
    good.log, good.finish = heard.append, heard.append
    monkeypatch.setattr(RunRecorder, "trackers", lambda self, experiment: Trackers([bad, good], say=self.say, limit_s=0.3))
    values = describe(photos, tmp_path, []) | {"schedule": [{"size": 32, "epochs": 2}]}
    result = run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=None, say=said.append)
    assert read_status(result.run.path)["status"] == "finished" and len(heard) == 3
    (note,) = [text for text in said if "is left out from here on" in text]
    assert told in note
    assert note.removeprefix("Note: ") in (result.run / "run.log").read_text()


@pytest.mark.parametrize("library", ["mlflow", "tensorboard", "trackio"])
@pytest.mark.parametrize("worker, complaint", [("import time; time.sleep(60)", "did not finish within 1 s"), ("import sys; sys.exit(3)", ""),
                                               ("import sys; sys.stdin.readline(); print('{\"failed\": \"no room\"}', flush=True); sys.exit(1)", "no room")])
def test_a_library_process_that_hangs_dies_or_fails_is_left_behind(tmp_path, library, worker, complaint):
    with RunFolder.create(tmp_path, "stubborn") as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracker, started = LibraryTracker(library, command=[sys.executable, "-c", worker], wait_s=1), time.monotonic()
        trackers = Trackers([tracker])
        trackers.start({}, run)
        for epoch in range(1, 4):
            trackers.log({"epoch": epoch, "text": "x" * 10})
            time.sleep(0.1)
        trackers.finish({"valid": {"f1_macro": 0.5}})
    assert time.monotonic() - started < 6 and tracker.process.poll() is not None
    said = [str(one.message) for one in caught if type(one.message).__name__ == "TrackerWarning"]  # and not what the collector finds of other tests
    assert len(said) == 1 and complaint in said[0]


def test_a_process_that_reads_nothing_cannot_hold_the_run(tmp_path):
    with RunFolder.create(tmp_path, "full") as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracker = LibraryTracker("mlflow", command=[sys.executable, "-c", "import time; time.sleep(60)"])
        tracker.limit_s, started = 1, time.monotonic()
        Trackers([tracker]).start({"text": "x" * 1_000_000}, run)  # more than a pipe holds
    assert time.monotonic() - started < 5 and tracker.process.poll() is not None and "did not answer within 1 s" in " ".join(str(one.message) for one in caught)


def test_a_library_that_refuses_its_settings_is_told_with_its_own_words(tmp_path):
    need("mlflow")
    with RunFolder.create(tmp_path, "refused") as run:
        (tmp_path / "file").write_text("no folder")
        said, trackers = [], Trackers([LibraryTracker("mlflow", {"uri": f"sqlite:///{tmp_path / 'file' / 'a.db'}"})])
        trackers.say = said.append
        trackers.start({}, run)
        trackers.finish({"valid": {"f1_macro": 0.5}})
    assert len(said) == 1 and "MLflow failed" in said[0], said
    assert "Traceback" in (run / "mlflow.log").read_text()


def test_what_is_not_installed_or_unknown_is_refused_before_the_run(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(module.LIBRARIES, "mlflow", ("MLflow", ["mlflow_that_is_not_here"]))
    with pytest.raises(UserError, match=r"MLflow, which is not installed; pip install 'snakecls\[mlflow\]'"):
        run_experiment(make_experiment(describe(photos, tmp_path, ["mlflow"])), root=tmp_path / "runs", logbook=None)
    assert not list(tmp_path.rglob("status.json"))
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        make_experiment(describe(photos, tmp_path, ["tensorbord"]))
    with pytest.raises(UserError, match="did you mean 'experiment'"):
        make_experiment(describe(photos, tmp_path, ["mlflow"]) | {"mlflow": {"experimnt": "x"}})
