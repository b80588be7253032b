"""A class or photos that vanish while a run trains: it ends with its best so far, and nothing is compared across different photos."""
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import draw_snake
from test_faults_ends import refused
from test_hardening_runs import split_of, the_run, train_and


def make_three(folder: Path, n: int = 36) -> None:
    for number in range(n):
        file = folder / ("adder", "boa", "cobra")[number % 3] / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_snake(number, (40, 40)).save(file)


@pytest.mark.parametrize("when, splits", [(1, None), (2, ["valid"]), (1, ["train"])])
def test_a_class_that_vanishes_ends_the_run_with_its_best_so_far(tmp_path, monkeypatch, when, splits):
    make_three(tmp_path / "photos")

    def act(run):
        photos = split_of(run).query("label == 'cobra'")
        for path in photos["path"][photos["split"].isin(splits or ["train", "valid", "test"])]:
            Path(path).unlink()

    done = train_and(monkeypatch, tmp_path, act, when=when, epochs=4)
    run = the_run(tmp_path / "runs")
    refused(done, "no photo of 'cobra' in the split ")
    assert "the best so far, epoch " in done.stderr, done.stderr
    assert len(pd.read_csv(run / "history.csv")) == when, "an epoch without the class was measured"
    assert json.loads((run / "status.json").read_text())["status"] == "failed" and (run / "best" / "weights.safetensors").exists()



def test_epochs_are_compared_on_the_photos_that_both_saw(tmp_path, monkeypatch):
    import snakecls.train.comparison as module

    make_three(tmp_path / "photos")
    seen = []
    real = module.KeepAnswers.together

    def together(self, now, best):
        rows = real(self, now, best)
        seen.append((len(now.losses), len(best.losses), rows))
        return rows

    monkeypatch.setattr(module.KeepAnswers, "together", together)

    def act(run):
        for path in split_of(run).query("split == 'valid' and label == 'boa'")["path"].iloc[:2]:
            Path(path).unlink()

    done = train_and(monkeypatch, tmp_path, act, epochs=3)
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path / "runs")
    n = len(split_of(run).query("split == 'valid'"))
    assert seen and seen[0][:2] == (n - 2, n) and all(one["n"] == two["n"] == n - 2 for _, _, (one, two) in seen)
    history = pd.read_csv(run / "history.csv")
    assert history["n_valid"].isna().tolist() == [True, False, False] and set(history["n_valid"].dropna()) == {n - 2}


def test_scores_remain_where_all_validation_photos_vanish_before_the_end(tmp_path, monkeypatch):
    make_three(tmp_path / "photos")
    done = train_and(monkeypatch, tmp_path, lambda run: (tmp_path / "photos").rename(tmp_path / "gone"), epochs=1)
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path / "runs")
    n = len(split_of(run).query("split == 'valid'"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["valid"]["n"] == n and (run / "report.html").exists() and len(pd.read_parquet(run / "predictions-valid.parquet")) == n
    history = pd.read_csv(run / "history.csv")
    assert metrics["valid"]["f1_macro"] == pytest.approx(history["f1_macro"].iloc[-1], abs=1e-6)
