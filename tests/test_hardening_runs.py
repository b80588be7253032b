"""What a run does when photos, room, power or its own files fail: it goes on where it can, keeps what is whole, and says so."""
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import draw_snake
from test_faults_ends import SMALL, refused, snakecls


def make_photos(folder: Path, n: int = 32) -> Path:
    "Draw photos of two classes."
    for number in range(n):
        file = folder / ("adder", "boa")[number % 2] / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_snake(number, (48, 40)).save(file)
    return folder


def split_of(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "manifest.parquet")


def the_run(root: Path) -> Path:
    return next(root.glob("*/status.json")).parent


def ruin(file: Path, how: str) -> None:
    "Do to a photo what disks do."
    if how == "vanished":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:300])
    else:
        file.write_bytes(b"garbage " * 100)


def train_and(monkeypatch, cwd: Path, act, *words: object, when: int = 1, epochs: int = 3):
    "Train, and act on the run's folder after an epoch."
    import snakecls.workflow.run as module

    def describe(row, monitor):
        if row["epoch"] == when and row["stage"] == 1:
            act(the_run(cwd / "runs"))
        return f"epoch {row['epoch']}"

    monkeypatch.setattr(module, "_describe_epoch", describe)
    return snakecls("train", "--data", "photos", *SMALL, "--set", "data.test=0.25", "--set", f"schedule=[{{size: 32, epochs: {epochs}}}]", "--json", *words, cwd=cwd)


@pytest.mark.parametrize("how, workers", [("vanished", 0), ("vanished", 2), ("cut short", 0), ("replaced by garbage", 2)])
def test_a_run_goes_on_without_photos_that_get_lost(tmp_path, monkeypatch, how, workers):
    make_photos(tmp_path / "photos")
    lost = {}

    def act(run):
        for split, n in (("train", 2), ("valid", 1), ("test", 1)):
            lost[split] = split_of(run).query("split == @split")["path"].tolist()[:n]
            for path in lost[split]:
                ruin(Path(path), how)
        lost["all"] = [path for paths in lost.values() for path in paths]

    done = train_and(monkeypatch, tmp_path, act, "--set", f"train.num_workers={workers}")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    run = the_run(tmp_path / "runs")
    metrics, manifest, issues = json.loads((run / "metrics.json").read_text()), split_of(run), pd.read_parquet(run / "issues.parquet")
    assert metrics["lost"] == {"train": 2, "valid": 1, "test": 1}
    for split in ("valid", "test"):
        there = manifest.query("split == @split")["path"].tolist()[1:]
        assert metrics[split]["n"] == len(there) == len(pd.read_parquet(run / f"predictions-{split}.parquet"))
        assert pd.read_parquet(run / f"predictions-{split}.parquet")["path"].tolist() == there
    assert sorted(issues["path"]) == sorted(lost["all"]) and set(issues["issue"]) == {"lost"}
    assert issues["reason"].str.contains("cannot be read as a photo: ").all()
    for path in lost["all"]:
        assert path in (run / "run.log").read_text()
    assert "4 photos could not be read any more (2 of train, 1 of valid, 1 of test)" in done.stderr
    assert json.loads((run / "status.json").read_text())["status"] == "finished" and (run / "report.html").exists()
    said = "photos could not be read any more (2 of train, 1 of valid, 1 of test)"
    assert said in (run / "report.html").read_text() and said in (tmp_path / "logbook.md").read_text()
    history = pd.read_csv(run / "history.csv")
    assert len(history) == 3 and history[["train_loss", "valid_loss", "f1_macro"]].notna().all(axis=None)


def test_what_stands_in_for_a_lost_photo_does_not_depend_on_who_reads(tmp_path, monkeypatch):
    scores = {}
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        make_photos(folder / "photos")

        def act(run):
            for path in split_of(run).query("split == 'train'")["path"][3:6]:
                Path(path).unlink()

        done = train_and(monkeypatch, folder, act, "--set", f"train.num_workers={workers}")
        assert done.returncode == 0, done.stderr
        scores[workers] = pd.read_csv(the_run(folder / "runs") / "history.csv")[["train_loss", "valid_loss", "f1_macro"]]
    pd.testing.assert_frame_equal(scores[0], scores[2], rtol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_gone_ends_a_run_with_its_best_so_far(tmp_path, monkeypatch, workers):
    make_photos(tmp_path / "photos")
    done = train_and(monkeypatch, tmp_path, lambda run: (tmp_path / "photos").rename(tmp_path / "unmounted"), "--set", f"train.num_workers={workers}")
    run = the_run(tmp_path / "runs")
    refused(done, "can be read any more")
    assert "the best so far, epoch 1 of stage 1" in done.stderr and f"snakecls evaluate --model {run.name}" in done.stderr and len(done.stderr.splitlines()) < 20, done.stderr
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed" and "can be read any more" in status["message"] and "Error" not in status["message"]
    assert "can be read any more" in (tmp_path / "logbook.md").read_text()
    (tmp_path / "unmounted").rename(tmp_path / "photos")
    assert snakecls("evaluate", "--model", run.name, cwd=tmp_path).returncode == 0


PROBE = "schedule=[{size: 32, epochs: 0, head: probe}, {size: 32, epochs: 1, head: probe}]"


@pytest.mark.parametrize("more", [["--set", "train.refit=true"], ["--set", "predict.flip=true"], []])
def test_a_probe_goes_on_without_photos_that_get_lost(tmp_path, monkeypatch, more):
    make_photos(tmp_path / "photos", 48)

    def act(run):
        for _, photos in split_of(run).query("split != 'test'").groupby("split"):
            Path(photos["path"].iloc[0]).unlink()

    done = train_and(monkeypatch, tmp_path, act, "--set", PROBE, *more, when=0)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    run = the_run(tmp_path / "runs")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["lost"] == {"train": 1, "valid": 1} and metrics["valid"]["n"] == 11
    for name in ("predictions-valid-probe.parquet", "predictions-valid-trained.parquet"):
        if (run / name).exists():
            assert not pd.read_parquet(run / name).filter(like="p_").isna().any(axis=None)


def test_photos_that_get_lost_while_a_model_is_scored_are_counted(tmp_path, monkeypatch):
    make_photos(tmp_path / "photos")
    assert train_and(monkeypatch, tmp_path, lambda run: None, epochs=1).returncode == 0
    import snakecls.evaluate.predictions as module

    files, real = sorted((tmp_path / "photos").rglob("*.jpg")), module._check_sizes

    def _check_sizes(*given):
        files[0].unlink(missing_ok=True)
        return real(*given)

    monkeypatch.setattr(module, "_check_sizes", _check_sizes)
    done = snakecls("evaluate", "--data", "photos", "--tta", "scales", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["scores"]["n"] == 31, done.stderr
    assert "1 of 32 photos could not be read any more" in done.stderr and any("any more" in note for note in json.loads(done.stdout)["notes"])
