"A report, the console and metrics.json tell what was trained beside what is served, and claim no difference that the photos cannot show."
import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from snakecls.cli import app, _scores_text
from snakecls.disk import write_json
from snakecls.evaluate.predictions import compare_tables
from snakecls.evaluate.report import write_report
from snakecls.experiment.file import make_experiment
from snakecls.workflow.run import run_experiment

LIST_CHANCE = 0.45


def draw(folder: Path, classes: dict[str, tuple[int, int, int]], n: int, *, noise: int = 40) -> pd.DataFrame:
    "Small photos of a colour and noise."
    rng, rows = np.random.default_rng(0), []
    for label, colour in classes.items():
        for i in range(n):
            path = folder / f"{label}{i}.png"
            Image.fromarray(np.clip(np.array(colour) + rng.normal(0, noise, (32, 32, 3)), 0, 255).astype(np.uint8)).save(path)
            rows.append({"path": str(path), "label": label, "split": ["train", "train", "valid", "test"][i % 4]})
    return pd.DataFrame(rows)


def settings(table: pd.DataFrame, folder: Path, **change) -> dict:
    table.to_csv(folder / "photos.csv", index=False)
    return {"name": "base", "seed": 1, "data": {"source": str(folder / "photos.csv")}, "model": {"arch": "test_resnet", "weights": "none"}, "train": {"num_workers": 0, "device": "cpu"},
            "schedule": [{"size": 32, "epochs": 2, "head": "probe", "bs": 8, "lr": 1e-9}]} | change


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.split("<main>")[1])).split())


COLOURS = {"red": (200, 60, 60), "green": (60, 180, 60), "blue": (60, 60, 200), "grey": (120, 120, 120)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A run whose probe is kept, as its rate destroys what the probe knew; and a child of it that changes the training."
    folder = tmp_path_factory.mktemp("kept")
    table = draw(folder, COLOURS, 16)
    ruin = {"size": 32, "epochs": 2, "head": "probe", "bs": 8, "lr": 3.0, "lr_schedule": "constant"}
    base, child = (run_experiment(make_experiment(settings(table, folder, name=name, parent=parent, schedule=[ruin | change])), root=folder / "runs", logbook=None, say=lambda text: None)
                   for name, parent, change in (("base", None, {}), ("mixup", "base", {"mixup": 0.4})))
    return base, child


def test_what_was_trained_stands_beside_what_is_served(runs):
    metrics, run = runs[0].metrics, runs[0].run
    history = pd.read_csv(run / "history.csv")
    assert metrics["best"]["epoch"] == 0 and metrics["valid"]["f1_macro"] > metrics["trained"]["f1_macro"]
    trained = pd.read_parquet(run / "predictions-valid-trained.parquet")
    served = pd.read_parquet(run / "predictions-valid.parquet")
    assert list(trained.columns) == list(served.columns) and trained["path"].tolist() == served["path"].tolist()
    assert {key: metrics["trained"][key] for key in ("stage", "epoch", "size", "n")} == {"stage": 1, "epoch": 2, "size": 32, "n": 16}
    assert metrics["trained"]["f1_macro"] == pytest.approx(f1_score(trained["label"], trained["predicted"], average="macro")) == pytest.approx(history["f1_macro"].iloc[-1], abs=1e-4)
    assert metrics["valid"]["f1_macro"] == pytest.approx(history["f1_macro"].iloc[0], abs=1e-4)
    assert set(metrics["valid"]) - {"chosen_on"} <= set(metrics["trained"])
    bundle = json.loads((run / "best" / "bundle.json").read_text())  # speaks of what it holds
    assert "trained" not in bundle["metrics"] and bundle["metrics"]["valid"]["chosen_on"] == ["epoch"] and "chosen_on" not in bundle["metrics"]["test"]


def test_report_and_console_show_both(runs):
    metrics = runs[0].metrics
    page, console = text_of((runs[0].run / "report.html").read_text()), _scores_text(metrics)
    probe, trained = f"{metrics['valid']['f1_macro']:.3f}", f"{metrics['trained']['f1_macro']:.3f}"
    assert f"Served: the linear probe, macro F1 {probe}; trained: {trained} after 2 epochs" in page
    assert "Macro F1, trained: after 2 epochs" in page and "not what is served" in page
    assert console.splitlines()[0] == "Served: the linear probe. Trained: after 2 epochs." and f"trained, valid  macro F1 {trained}" in console
    found = metrics["fine_tuning"]
    tables = [pd.read_parquet(runs[0].run / f"predictions-{name}.parquet") for name in ("valid-trained", "valid")]
    assert found == pytest.approx(compare_tables(*tables)._asdict() | {"n": 16})
    claim = "worse by" if found["high"] < 0 else "no difference that 16 photos could show"
    assert f"Trained weights against the linear probe, on the validation photos: {claim}" in console and f"The trained weights against the linear probe: {claim}" in page


def test_the_bold_row_of_the_stages_is_what_was_kept(runs):
    page = (runs[0].run / "report.html").read_text()
    bold = re.findall(r'<tr class="best">.*?</tr>', page, flags=re.DOTALL)
    assert len(bold) == 1 and "probe" in bold[0] and f"{runs[0].metrics['valid']['f1_macro']:.3f}" in bold[0] and f"{runs[0].metrics['trained']['f1_macro']:.3f}" not in bold[0]


def test_a_child_is_compared_with_its_parent_by_what_was_trained(runs):
    base, child = runs
    assert base.metrics["valid"]["f1_macro"] == child.metrics["valid"]["f1_macro"]  # both serve the same probe
    tables = [pd.read_parquet(run.run / "predictions-valid-trained.parquet") for run in (child, base)]
    compared, page = compare_tables(*tables), text_of((child.run / "report.html").read_text())
    what = "better by" if compared.low > 0 else "worse by" if compared.high < 0 else "no finding"
    assert "Against its parent, base" in page and "schedule[0].mixup" in page and f"Trained weights: {what}" in page
    assert compared.differ == 0 or f"{100 * compared.difference:+.1f} points" in page.replace("by ", "by +" if compared.difference > 0 else "by -")
    assert f"Macro F1 of the trained weights {child.metrics['trained']['f1_macro']:.3f}, was {base.metrics['trained']['f1_macro']:.3f}" in page


@pytest.mark.parametrize(("change", "served"), [({"schedule": [{"size": 32, "epochs": 3, "bs": 8, "lr": 3e-3}], "train": {"num_workers": 0, "device": "cpu", "ema": 0.9}}, None),
                                                ({"schedule": [{"size": 32, "epochs": 0, "head": "probe"}]}, 0),
                                                ({"schedule": [{"size": 32, "epochs": 2, "bs": 8, "lr": 1e-3}, {"size": 32, "epochs": 0, "head": "probe"}]}, None)],
                         ids=["average of weights", "probe alone", "a probe after training"])
def test_trained_is_the_last_epoch_whatever_else_there_is(tmp_path, change, served):
    result = run_experiment(make_experiment(settings(draw(tmp_path, COLOURS, 16), tmp_path, **change)), root=tmp_path / "runs", logbook=None, say=lambda text: None)
    history, metrics = pd.read_csv(result.run / "history.csv"), result.metrics
    epochs = history[history["epoch"] > 0]
    if served == 0:
        assert metrics["trained"] is None and metrics["fine_tuning"] is None and not (result.run / "predictions-valid-trained.parquet").exists() and "chosen_on" not in metrics["valid"]
        assert "The model is a linear probe" in text_of((result.run / "report.html").read_text())
    else:
        assert metrics["trained"]["f1_macro"] == pytest.approx(epochs["f1_macro"].iloc[-1], abs=1e-4) and metrics["trained"]["epoch"] == epochs["epoch"].iloc[-1]
        assert metrics["valid"]["f1_macro"] == pytest.approx(history["f1_macro"].max(), abs=1e-4) and metrics["valid"]["chosen_on"] == ["epoch"]


def made_up(folder: Path, change: dict) -> str:
    "A report of metrics alone."
    scores = {"n": 120, "f1_macro": 0.693, "accuracy": 0.7}
    write_json(folder / "metrics.json", {"name": "told", "labels": ["a", "b"], "valid": scores, "trained": {**scores, "stage": 1, "epoch": 3, "size": 64}, "best": {"stage": 1, "epoch": 3, "size": 64},
                                         "probe": {"f1_macro": 0.685, "size": 64, "stage": 1}, "stages": [{"stage": 1, "size": 64, "epochs": 3, "own": scores, "final": scores}]} | change)
    return text_of(write_report(folder).read_text())


def test_one_photo_of_120_is_no_help(tmp_path):
    for gap, low, high, said, never in [(0.008, -0.02, 0.04, "Fine-tuning: no difference that 120 photos could show", "helped"), (0.07, 0.02, 0.12, "Fine-tuning helped: +0.070", "no difference"),
                                        (-0.07, -0.12, -0.02, "Fine-tuning made it worse: -0.070", "helped")]:
        page = made_up(tmp_path, {"fine_tuning": {"difference": gap, "low": low, "high": high, "n": 120}})
        assert said in page and never not in page
    old = made_up(tmp_path, {"trained": None})  # a run that compared nothing photo by photo claims nothing
    assert "0.685" in old and "helped" not in old and "it is not known whether the training changed anything" in old


def test_two_classes_have_no_top_three(tmp_path):
    result = run_experiment(make_experiment(settings(draw(tmp_path, {"red": COLOURS["red"], "blue": COLOURS["blue"]}, 16), tmp_path)), root=tmp_path / "runs", logbook=tmp_path / "log.md", say=lambda text: None)
    listed = CliRunner().invoke(app, ["runs", "--runs", str(tmp_path / "runs")]).stdout
    evaluated = CliRunner().invoke(app, ["evaluate", str(result.run / "best"), "--split", "test"])
    assert evaluated.exit_code == 0, evaluated.output
    texts = [(result.run / name).read_text() for name in ("metrics.json", "history.csv", "report.html", "best/bundle.json")] + [(tmp_path / "log.md").read_text(), listed, evaluated.output, _scores_text(result.metrics)]
    experiment = (result.run / "experiment.yaml").read_text()
    for text in texts:
        assert not re.search(r"top-?3", text.replace(html.escape(experiment), "").replace("top_k", ""), flags=re.IGNORECASE), text[:2000]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    "Photos with several labels that nobody can tell, so that thresholds tuned on few of them are luck."
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(1)
    rows = []
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        names = [name for name in ("sea", "boat", "sky") if rng.random() < LIST_CHANCE] or ["sky"]
        rows.append({"path": str(folder / f"{i}.png"), "labels": ",".join(names), "split": ["train", "valid", "test"][i % 3]})
    pd.DataFrame(rows).to_csv(folder / "photos.csv", index=False)
    given = {"name": "scenes", "seed": 1, "data": {"source": str(folder / "photos.csv"), "multi_label": True, "separator": ",", "label_column": "labels"}, "model": {"arch": "test_resnet", "weights": "none"},
             "train": {"num_workers": 0, "device": "cpu"}, "predict": {"thresholds": "per_class"}, "schedule": [{"size": 32, "epochs": 2, "bs": 8, "lr": 1e-3}]}
    return run_experiment(make_experiment(given), root=folder / "runs", logbook=None, say=lambda text: None)


def test_scores_on_photos_by_which_something_was_chosen_say_so(scenes):
    metrics = scenes.metrics
    assert metrics["valid"]["chosen_on"] == ["epoch", "thresholds"] and metrics["trained"]["chosen_on"] == ["thresholds"] and "chosen_on" not in metrics["test"]
    console, page = _scores_text(metrics), text_of((scenes.run / "report.html").read_text())
    lines = {line.split()[0]: line for line in console.splitlines()}
    assert lines["valid"].endswith("(epoch and thresholds were chosen on these photos)") and "chosen" not in lines["test"]
    assert f"validation: {metrics['valid']['f1_macro']:.3f}, chosen there" in page
    assert json.loads((scenes.run / "best" / "bundle.json").read_text())["metrics"]["valid"]["chosen_on"] == ["epoch", "thresholds"]
    evaluated = CliRunner().invoke(app, ["evaluate", str(scenes.run / "best"), "--split", "valid"])
    assert evaluated.exit_code == 0 and "epoch and thresholds were chosen on these photos" in evaluated.output


def test_tuned_thresholds_claim_no_more_than_the_test_photos_can_show(scenes):
    table = pd.read_parquet(scenes.run / "predictions-test.parquet")
    probs = table[["p_0", "p_1", "p_2"]].to_numpy()
    at_half = table.assign(predicted=[[label for label, p in zip(scenes.metrics["labels"], row) if p > 0.5] for row in probs])
    compared, page = compare_tables(table, at_half), text_of((scenes.run / "report.html").read_text())
    clear = not compared.low <= 0 <= compared.high
    assert ("Tuned thresholds: no difference that 20 test photos could show" in page) == (not clear)
    assert (f"Tuned thresholds: {compared.difference:+.3f} macro F1" in page) == clear and "Gain" not in page


def test_nothing_is_called_calibrated_that_is_not(runs):
    assert json.loads((runs[0].run / "best" / "bundle.json").read_text())["temperature"] == 1.0
    for name in ("report.html", "best/bundle.json", "metrics.json"):
        assert "calibrated" not in (runs[0].run / name).read_text().lower()
    from snakecls.deploy.predict import Predictor
    assert "calibrated" not in (Predictor.probs.__doc__ or "")


def test_the_report_counts_danger_called_harmless(runs, tmp_path):
    import shutil
    run = tmp_path / "run"
    shutil.copytree(runs[0].run.path, run)
    assert "venom" not in text_of((run / "report.html").read_text())  # colours are no snakes
    bundle = json.loads((run / "best" / "bundle.json").read_text())
    facts = {"red": {"venomous": True}, "green": {"venomous": False}, "blue": {"venomous": False}, "grey": {"venomous": None}}
    write_json(run / "best" / "bundle.json", bundle | {"label_facts": facts})
    table = pd.read_parquet(run / "predictions-test.parquet")
    table["predicted"] = ["green" if label == "red" and i % 2 else label for i, label in enumerate(table["label"])]
    table.to_parquet(run / "predictions-test.parquet")
    red = table[table["label"] == "red"]
    page = text_of(write_report(run).read_text())
    n = int((red["predicted"] == "green").sum())
    assert f"{n} of {len(red)} venomous test photos {'was' if n < 2 else 'were'} called not venomous" in page and f"green ({n})" in page
    write_json(run / "best" / "bundle.json", bundle | {"label_facts": {}, "subject": "snake"})
    assert "knows nothing about venom" in text_of(write_report(run).read_text())
