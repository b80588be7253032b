"""Every command has help and stands in the page of commands; mistakes are one sentence with exit code 2; --json is JSON."""
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from warm import run_command

ROOT = Path(__file__).parent.parent
COMMANDS = ["demo", "check", "review", "train", "evaluate", "predict", "facts", "app", "runs", "compare", "tag", "note", "rm", "ensemble", "export", "bench", "publish", "cache"]


snakecls = partial(run_command, NO_COLOR="1", COLUMNS="200")


def new_process(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'snakecls'; from snakecls.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}, timeout=600)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    "A folder in which `snakecls demo --tiny` has run."
    folder = tmp_path_factory.mktemp("cli")
    done = snakecls("demo", "shop", "--tiny", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "demo.json").write_text(done.stdout)
    return folder


def test_help_names_every_command_and_so_does_the_page_of_commands(tmp_path):
    page = json.loads((ROOT / "nbs" / "commands.ipynb").read_text(encoding="utf-8"))
    table, *_, sections = ("".join(output["data"]["text/markdown"]) for cell in page["cells"] for output in cell.get("outputs", []))
    shown = snakecls("--help", cwd=tmp_path).stdout
    for command in COMMANDS:
        assert f" {command} " in shown
        assert f"| `snakecls {command}` |" in table and f"### snakecls {command}\n" in sections
        assert snakecls(command, "--help", cwd=tmp_path).returncode == 0


def test_help_is_quick(tmp_path):
    seconds, clock = [], []  # of the processor, as on a busy machine the clock says little; and by the clock, for whoever waits or sleeps
    for _ in range(5):
        begin, start = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        new_process("--help", cwd=tmp_path)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
        clock.append(time.perf_counter() - begin)
    assert min(seconds) < 0.6 and min(clock) < 2


def test_demo_prints_json_and_leaves_a_run(demo):
    said = json.loads((demo / "demo.json").read_text())
    assert 0 <= said["metrics"]["test"]["f1_macro"] <= 1
    assert [len(photo["top"]) for photo in said["held_out"]] == [3, 3, 3]
    run = demo / Path(said["report"]).parent
    for name in ("experiment.yaml", "environment.json", "manifest.parquet", "history.csv", "metrics.json", "run.log", "best/bundle.json", "best/weights.safetensors", "report.html", "export.pkl"):
        assert (run / name).exists(), name


def test_predict_evaluate_runs_export(demo):
    run_root = ["--runs", "shop/runs"]
    photo = next((demo / "shop/data/photos").rglob("*.jpg"))
    rows = json.loads(snakecls("predict", str(photo), "--json", *run_root, cwd=demo).stdout)
    assert len(rows[0]["top"]) == 3 and abs(sum(guess["prob"] for guess in rows[0]["top"]) - 1) < 1e-4
    said = json.loads((demo / "demo.json").read_text())
    scored = json.loads(snakecls("evaluate", "--json", *run_root, cwd=demo).stdout)
    assert abs(scored["scores"]["f1_macro"] - said["metrics"]["test"]["f1_macro"]) < 1e-6
    board = json.loads(snakecls("runs", "--json", *run_root, cwd=demo).stdout)
    assert [row["status"] for row in board] == ["finished"]
    assert "demo" in snakecls("runs", *run_root, cwd=demo).stdout
    assert snakecls("export", "model", *run_root, cwd=demo).returncode == 0
    again = json.loads(snakecls("predict", str(photo), "--json", "--bundle", "model", cwd=demo).stdout)
    assert again == rows


@pytest.mark.parametrize("words, message", [
    (["train"], "nothing to train on"),
    (["train", "nope.yaml"], "does not exist"),
    (["train", "--data", "nowhere"], "does not exist"),
    (["train", "shop/experiment.yaml", "--set", "modl.arch=x"], "did you mean 'model'"),
    (["train", "shop/experiment.yaml", "--set", "model.arch=convnext_tny"], "did you mean 'convnext_tiny'"),
    (["train", "shop/experiment.yaml", "--set", "schedule=[{size: 64, epochs: fast}]"], "schedule.0.epochs"),
    (["train", "shop/experiment.yaml", "--set", "data.target=colour"], "target 'colour'"),
    (["predict", "none.jpg"], "none.jpg does not exist"),
    (["evaluate", "foo", "--runs", "shop/runs"], "foo"),
    (["app", "--runs", "empty"], "snakecls demo"),
    (["app", "--prot", "1"], "Usage: "),
    (["publish", "--space", "me/snakes", "--runs", "shop/runs"], "--dry-run"),
])
def test_mistakes_are_one_sentence(demo, words, message):
    done = snakecls(*words, cwd=demo)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert message in said and "Traceback" not in said
    sentences = [line for line in said.splitlines() if line.startswith("snakecls: ")]
    assert len(sentences) == (0 if "Usage: " in said else 1), said  # what typer refuses it says in its own way


def test_the_same_seed_gives_the_same_numbers(demo):
    said = []
    for _ in range(2):
        done = new_process("train", "shop/experiment.yaml", "--runs", "twice", "--logbook", "twice.md", "--json", cwd=demo)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout)["metrics"])
    assert said[0]["stages"] != []
    for part in ("valid", "test", "best", "probe"):
        assert said[0][part] == said[1][part]
    assert (demo / "twice.md").read_text().count("\n## ") == 2


def strict(text: str):
    "Read JSON as other languages do: NaN is a mistake."
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="session")
def usual(demo, tmp_path_factory) -> Path:
    "A folder in which `snakecls demo` has run without a name, as `make demo` does."
    folder = tmp_path_factory.mktemp("usual")
    shutil.copytree(demo / "shop" / "runs", folder / "snakecls-demo" / "runs")
    return folder


def test_without_runs_the_commands_find_the_demo(usual, demo, tmp_path):
    photo = next((demo / "shop/data/photos").rglob("*.jpg"))
    assert len(strict(snakecls("predict", str(photo), "--json", cwd=usual).stdout)[0]["top"]) == 3
    run = strict(snakecls("runs", "--json", cwd=usual).stdout)[0]["run"]
    bundle = f"snakecls-demo/runs/{run}/best"
    assert strict(snakecls("export", str(tmp_path / "model"), "--json", cwd=usual).stdout) == {"model": bundle, "output": str(tmp_path / "model"), "format": "bundle"}
    said = strict(snakecls("publish", "--space", "me/snakes", "--dry-run", str(tmp_path / "space"), "--json", cwd=usual).stdout)
    assert said["model"] == bundle and (tmp_path / "space" / "bundle" / "bundle.json").exists()
    assert snakecls("runs", "--runs", "runs", cwd=usual).stdout.startswith("There are no runs in runs")
    assert snakecls("runs", "runs", cwd=usual).stdout.startswith("There are no runs in runs")


def test_evaluate_leaves_out_what_cannot_be_read_and_makes_the_csv_folder(demo, tmp_path):
    shutil.copytree(demo / "shop" / "data", tmp_path / "data")
    next((tmp_path / "data/photos").rglob("*.jpg")).write_bytes(b"broken")
    done = snakecls("evaluate", "--runs", "shop/runs", "--data", str(tmp_path / "data/photos.csv"), "--csv", str(tmp_path / "new/dir/x.csv"), "--json", cwd=demo)
    assert strict(done.stdout)["scores"]["n"] == 29, done.stderr
    assert "1 of 30 photos cannot be read" in done.stderr
    assert len((tmp_path / "new/dir/x.csv").read_text().splitlines()) == 30


def test_a_question_with_an_emoji_and_the_command_reach_the_logbook(demo):
    done = snakecls("train", "shop/experiment.yaml", "--question", "Is it a 🐍?", "--parent", "demo", "--runs", "shop/emoji", cwd=demo)
    assert done.returncode == 2 and "demo" in done.stderr  # no such parent in these runs
    done = snakecls("train", "shop/experiment.yaml", "--question", "Is it a 🐍?", "--runs", "emoji", "--logbook", "emoji.md", cwd=demo)
    assert done.returncode == 0, done.stderr
    logbook = (demo / "emoji.md").read_text(encoding="utf-8")
    assert "Is it a 🐍?" in logbook and "snakecls train shop/experiment.yaml --question" in logbook
    assert "snakecls app" in done.stdout


def test_a_folder_is_not_an_experiment(demo):
    done = snakecls("train", "shop/data", cwd=demo)
    assert done.returncode == 2 and "--data shop/data" in done.stderr


def test_folds_a_grid_and_an_ensemble(demo):
    small = ["train", "shop/experiment.yaml", "--set", "schedule=[{size: 64, epochs: 0, head: probe}]", "--set", "track=[]", "--json", "--runs", "several"]
    folds = snakecls(*small, "--folds", "2", cwd=demo)
    assert folds.returncode == 0, folds.stderr
    said = json.loads(folds.stdout)
    assert len(said["runs"]) == 2 and said["out_of_fold"]["n"] == sum(json.loads((demo / "several" / run / "metrics.json").read_text())["valid"]["n"] for run in said["runs"])
    grid = snakecls(*small, "--grid", "data.seed=1,2", "--grid", "train.wd=0.1", cwd=demo)
    assert grid.returncode == 0, grid.stderr
    rows = json.loads(grid.stdout)
    assert {row["setting"] for row in rows} == {"seed=1 wd=0.1", "seed=2 wd=0.1"}
    both = snakecls("ensemble", *said["runs"], "--runs", "several", "--json", cwd=demo)  # the folds share their test photos
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)["split"] == "test" and len(json.loads(both.stdout)["members"]) == 2
    twice = snakecls(*small, "--folds", "2", "--compare-precision", cwd=demo)
    assert twice.returncode == 2 and "give one of them" in twice.stderr


def test_a_mistake_in_the_file_is_told_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "typo.yaml").write_text("data: photos\ntrain: {batch: 8}\n")
    (tmp_path / "gone.yaml").write_text("data: photos\n")
    for words, told in ((["train", "typo.yaml"], "train.batch"), (["train", "gone.yaml"], "photos' does not exist"), (["check", "gone.yaml"], "photos' does not exist")):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from snakecls.cli import main\ntry: main()\nfinally: print('imported', *(name for name in ('torch', 'timm', 'fastai') if name in sys.modules), file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and told in done.stderr and done.stderr.splitlines()[-1] == "imported", done.stderr


def test_a_source_in_the_home_folder_is_found(demo, tmp_path):
    (tmp_path / "home.yaml").write_text("data: {source: ~/photos.csv, target: colour}\n")
    for words in (["train", "home.yaml"], ["train", "--data", "~/photos.csv", "--set", "data.target=colour"], ["check", "home.yaml"]):
        done = snakecls(*words, cwd=tmp_path, HOME=str(demo / "shop" / "data"))
        assert done.returncode == 2 and "target 'colour'" in done.stderr, done.stderr  # it was read
