"""How a command ends: which model is meant, what a stopped run leaves, and one sentence for whatever goes wrong."""
import contextlib
import io
import json
import os
import pickletools
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import draw_snake

ROOT = Path(__file__).parent.parent
CODE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'snakecls'; from snakecls.cli import main; main()"
SMALL = ["--set", "model.arch=test_resnet", "--set", "model.weights=none", "--set", "train.num_workers=0", "--set", "data.valid=0.25"]
ONE = ["--set", "schedule=[{size: 32, epochs: 1}]"]


def snakecls(*words: object, cwd: Path, encoding: str = "utf-8") -> SimpleNamespace:  # returncode, stdout, stderr
    "Run a command in this process, with a terminal of that encoding."
    from snakecls.cli import main

    raw = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(stream, encoding=encoding) for stream in raw)
    old, code = (os.getcwd(), sys.argv, warnings.formatwarning), 0
    try:
        os.chdir(cwd)
        sys.argv = ["snakecls", *map(str, words)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            main()
    except SystemExit as e:
        code = e.code or 0
    finally:
        os.chdir(old[0])
        sys.argv, warnings.formatwarning = old[1:]
    out.flush(), err.flush()
    return SimpleNamespace(returncode=code, stdout=raw[0].getvalue().decode(encoding), stderr=raw[1].getvalue().decode(encoding))


def refused(done: SimpleNamespace, text: str, code: int = 2) -> None:
    "It ended in one sentence that holds `text`."
    assert done.returncode == code and text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("snakecls: ") == 1, done.stderr


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    "A folder with photos in clothes/, and a run of the same name."
    folder = tmp_path_factory.mktemp("ends")
    for number in range(24):
        file = folder / "clothes" / ("dress", "Vipère 蛇")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_snake(number, (48, 40)).save(file)
    done = snakecls("train", "--data", "clothes/", *SMALL, *ONE, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "run.txt").write_text(json.loads(done.stdout)["run"])
    return folder


def test_a_folder_of_photos_does_not_hide_the_run_of_its_name(shop):
    run = (shop / "run.txt").read_text()
    for words in (["evaluate", "clothes"], ["evaluate", "--model", "clothes/"], ["evaluate", "-m", run], ["evaluate", "--model", f"runs/{run}"]):
        done = snakecls(*words, "--json", cwd=shop)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bundle"].startswith(f"runs/{run}")
    photo = next((shop / "clothes").rglob("*.jpg"))
    for option in ("--model", "--bundle"):
        assert snakecls("predict", photo, option, "clothes", cwd=shop).returncode == 0
    for words in (["export", "out/one", "--model", "clothes"], ["publish", "--model", "clothes", "--space", "me/x", "--dry-run", "out/space"], ["publish", "clothes", "--space", "me/x", "--dry-run", "out/space2"]):
        done = snakecls(*words, "--json", cwd=shop)
        assert done.returncode == 0 and json.loads(done.stdout)["model"].startswith(f"runs/{run}"), done.stderr
    refused(snakecls("evaluate", "./clothes", cwd=shop), "neither a bundle")
    refused(snakecls("evaluate", "clothes", "--model", "other", cwd=shop), "two models are named")


def test_two_models_of_one_name_are_a_question(shop):
    run = (shop / "run.txt").read_text()
    shutil.move(shop / "clothes", shop / "photos")
    shutil.copytree(shop / "runs" / run / "best", shop / "clothes")
    try:
        done = snakecls("app", "clothes", cwd=shop)
        refused(done, run)
        assert "./clothes" in done.stderr
    finally:
        shutil.rmtree(shop / "clothes")
        shutil.move(shop / "photos", shop / "clothes")


@pytest.mark.parametrize("command", ["evaluate", "predict", "app", "ensemble", "export", "publish"])
def test_every_command_names_a_model_by_the_same_option(command, tmp_path):
    assert "--model" in snakecls(command, "--help", cwd=tmp_path).stdout


def end_training(folder: Path, root: str, act) -> tuple[int, str]:  # exit code, what was said
    "Start a long training in a process of its own, and act on it after its first epoch."
    words = ["train", "--data", "clothes", *SMALL, "--set", "schedule=[{size: 32, epochs: 5000}]", "--runs", root, "--logbook", f"{root}.md"]
    process = subprocess.Popen([sys.executable, "-c", CODE, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = []
    for line in process.stderr:
        lines.append(line)
        if " epoch 1 " in line:  # in the sentence at the end too: a second Ctrl-C takes nothing away
            act(process.pid)
    return process.wait(), "".join(lines)


@pytest.fixture(scope="module")
def ended(shop) -> dict[str, tuple[int, str]]:
    "What runs said that were ended in four ways, side by side; their folders are runs-NAME."
    ways = {name: lambda pid, name=name: os.kill(pid, getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGKILL")}
    if hasattr(__import__("resource"), "prlimit"):
        import resource
        ways["FULL"] = lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (4000, 4000))
    said = {}
    threads = [threading.Thread(target=lambda name=name, act=act: said.update({name: end_training(shop, f"runs-{name}", act)})) for name, act in ways.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_a_run_that_was_ended_keeps_its_best_so_far(shop, ended, name, code):
    said, root = ended[name], f"runs-{name}"
    assert said[0] == code and "Traceback" not in said[1], said[1]
    run = next((shop / root).iterdir())
    if name != "SIGKILL":
        last = said[1].splitlines()[-1]
        assert "the best so far, epoch" in last and f"snakecls evaluate --model {run.name}" in last
        status = json.loads((run / "status.json").read_text())
        assert status["status"] == "stopped" and status["message"] == last
        assert "(stopped)" in (shop / f"{root}.md").read_text() and json.loads((run / "metrics.json").read_text())["best"]["stage"] == 1
    if name == "SIGKILL":
        trained = snakecls("train", "--data", "clothes", *SMALL, *ONE, "--set", f"model.weights={run.name}", "--runs", root, cwd=shop)
        assert trained.returncode == 0 and f"run {run.name} ended early; its model is the best so far" in trained.stderr, trained.stderr
        shutil.rmtree(run / "best")
        assert "ended early" in snakecls("evaluate", "--model", run, cwd=shop).stderr
    scored = snakecls("evaluate", "--model", run.name, "--runs", root, "--json", cwd=shop)
    assert scored.returncode == 0, scored.stderr
    history = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    best = [row for row in history[1:] if row[history[0].index("is_best")] == "True"][-1]
    split = "test" if (run / "predictions-test.parquet").exists() else "valid"
    again = json.loads(snakecls("evaluate", "--model", run.name, "--runs", root, "--split", split, "--json", cwd=shop).stdout)
    assert abs(again["scores"]["f1_macro"] - float(best[history[0].index("f1_macro")])) < 1e-6  # the checkpoint's weights, at the checkpoint's size
    for words in (["predict", next((shop / "clothes").rglob("*.jpg"))], ["export", f"out/{name}"]):
        assert snakecls(*words, "--model", run.name, "--runs", root, cwd=shop).returncode == 0


def test_a_full_disk_ends_a_run_in_one_sentence(shop, ended):
    if "FULL" not in ended:
        pytest.skip("this system cannot limit the size of another process's files")
    code, said = ended["FULL"]
    run = next((shop / "runs-FULL").iterdir())
    assert code == 1 and "Traceback" not in said and said.count("snakecls: ") == 1, said
    assert "The disk is full; " in said and "checkpoints/best.pth" in said
    assert json.loads((run / "status.json").read_text())["status"] == "failed"
    assert snakecls("evaluate", "--model", run.name, "--runs", "runs-FULL", cwd=shop).returncode == 0  # there is room again


def test_a_disk_without_room_is_told_before_training(shop, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9 - 200_000, free=200_000))
    refused(snakecls("train", "--data", "clothes", *SMALL, *ONE, "--runs", "new-runs", cwd=shop), "has 0.2 MB left")
    assert not (shop / "new-runs").exists()


@pytest.mark.parametrize("words, text", [
    (["train", "--data", "clothes", "--runs", "run.txt/runs"], "run.txt is a file"),
    (["train", "--data", "clothes", "--runs", "/proc/runs"], "cannot be written"),
    (["train", "--data", "clothes", "--logbook", "/proc/logbook.md"], "cannot be written"),
    (["train", "--data", "clothes", "--logbook", "clothes"], "is a folder"),
    (["demo", "run.txt/demo"], "run.txt is a file"),
    (["check", "clothes", "--output", "/proc/checks"], "cannot be written"),
    (["evaluate", "--csv", "run.txt/predictions.csv"], "run.txt is a file"),
    (["evaluate", "--csv", "predictions.xlsx"], "such as predictions.csv"),
    (["export", "run.txt/model"], "run.txt is a file"),
    (["export", "model.onnx"], "give --to onnx (32 bits), --to int8 or --to int8-dynamic, or a folder's name for a bundle"),
    (["export", "model.safetensors"], "has the name of a .safetensors file"),
    (["export", "model.pkl", "--format", "bundle"], "has the name of a pickle"),
    (["export", "model.zip", "--format", "fastai"], "such as model.pkl"),
    (["publish", "--space", "me/x", "--dry-run", "space.zip"], "give a name without .zip"),
])
def test_what_cannot_be_written_is_told_at_once(shop, words, text):
    if words[-1].startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("there is no folder here that root cannot write")
    before = sorted(shop.iterdir())
    refused(snakecls(*words, cwd=shop), text)
    assert sorted(shop.iterdir()) == before


def test_the_pickle_holds_no_path_of_this_system(shop):
    assert snakecls("export", "export.pkl", "--model", "clothes", cwd=shop).returncode == 0
    with zipfile.ZipFile(shop / "export.pkl") as archive:
        stored = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    texts = [str(value) for _, value, _ in pickletools.genops(stored) if value is not None]
    assert "pathlib Path" in texts and not [text for text in texts if "PosixPath" in text or "WindowsPath" in text or str(shop) in text]
    from snakecls.deploy.export import LearnerPredictor

    assert len(LearnerPredictor(shop / "export.pkl", trust=True).predict(next((shop / "clothes").rglob("*.jpg")))) == 2


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_terminal_takes_any_label(shop, encoding):
    photo = next((shop / "clothes").rglob("*.jpg"))
    done = snakecls("predict", photo, "--model", "clothes", cwd=shop, encoding=encoding)
    assert done.returncode == 0 and "\\u86c7" in done.stdout
    done = snakecls("predict", photo, "--model", "clothes", "--json", cwd=shop, encoding=encoding)
    assert {guess["label"] for guess in json.loads(done.stdout)[0]["top"]} == {"dress", "Vipère 蛇"}
    for words in (["evaluate", "--model", "蛇"], ["predict", "蛇.jpg"], ["train", "--data", "蛇"], ["export", "蛇.zip"], ["review", "蛇"]):
        refused(snakecls(*words, cwd=shop, encoding=encoding), "\\u86c7")


def test_photos_of_one_class_are_scored(shop):
    (shop / "one.csv").write_text("path,label\n" + "".join(f"{photo},dress\n" for photo in sorted((shop / "clothes" / "dress").iterdir())))
    shutil.copytree(shop / "clothes" / "dress", shop / "one" / "dress")
    for data in ("one.csv", "one"):
        done = snakecls("evaluate", "--model", "clothes", "--data", data, "--json", cwd=shop)
        assert done.returncode == 0 and json.loads(done.stdout)["scores"]["n"] == 12, done.stderr
        assert "all 12 photos are of 'dress'" in done.stderr


def test_a_damaged_manifest_is_a_sentence(shop):
    run = shop / "runs" / (shop / "run.txt").read_text()
    whole = (run / "manifest.parquet").read_bytes()
    (run / "manifest.parquet").write_bytes(b"no table")
    try:
        refused(snakecls("evaluate", "--model", "clothes", cwd=shop), "manifest.parquet cannot be read as a table")
    finally:
        (run / "manifest.parquet").write_bytes(whole)


def test_what_was_not_foreseen_is_one_sentence_and_a_traceback_in_a_file(shop, monkeypatch):
    import snakecls.workflow.answers as module

    def evaluate_table(*given, **more):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(module, "evaluate_given", evaluate_table)
    done = snakecls("evaluate", "--model", "clothes", cwd=shop)
    refused(done, "this was not foreseen: ZeroDivisionError", 1)
    log = Path(done.stderr.split("The traceback is in ")[1].split(";")[0])
    assert "Traceback" in log.read_text() and "evaluate_table" in log.read_text()
    log.unlink()
    with pytest.raises(ZeroDivisionError):
        snakecls("evaluate", "--model", "clothes", "--debug", cwd=shop)
    monkeypatch.setenv("SNAKECLS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        snakecls("evaluate", "--model", "clothes", cwd=shop)


@pytest.mark.parametrize("error, told", [(MemoryError(), "there is not enough memory"), (OSError(5, "Input/output error"), "the disk gave an error")])
def test_an_error_of_the_machine_that_another_one_hides_is_what_is_told(shop, monkeypatch, error, told):
    import snakecls.workflow.answers as module

    def evaluate_table(*given, **more):
        try:
            raise error
        except (MemoryError, OSError) as e:
            e.args[0].none if e.args else e.args[0]  # as fastai's modify_exception does

    monkeypatch.setattr(module, "evaluate_given", evaluate_table)
    done = snakecls("evaluate", "--model", "clothes", cwd=shop)
    refused(done, told, 1)
    assert "foreseen" not in done.stderr
    Path(done.stderr.split("The traceback is in ")[1].split(";")[0]).unlink()


def test_an_error_while_training_keeps_the_best_so_far_too(shop, monkeypatch):
    import snakecls.workflow.run as module

    def fails(row, monitor):
        if row["epoch"] == 2:
            raise MemoryError("no room for a batch")
        return "an epoch"

    monkeypatch.setattr(module, "_describe_epoch", fails)
    done = snakecls("train", "--data", "clothes", *SMALL, "--set", "schedule=[{size: 32, epochs: 3}]", "--runs", "runs-error", cwd=shop)
    run = next((shop / "runs-error").iterdir())
    refused(done, "there is not enough memory", 1)
    assert "the best so far, epoch" in done.stderr and str(run.name) in done.stderr and "run.log" in done.stderr
    assert json.loads((run / "status.json").read_text())["status"] == "failed" and "MemoryError" in (run / "run.log").read_text()
    assert snakecls("evaluate", "--model", run.name, "--runs", "runs-error", cwd=shop).returncode == 0
