"The report of a run that names a parent: the comparison itself, as `snakecls compare` makes it, or one sentence that says why there is none."
import html
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from snakecls.disk import read_json, write_json
from snakecls.experiment.file import make_experiment
from snakecls.workflow.compare_runs import compare_runs, say_danger_change, say_points
from snakecls.workflow.run import run_experiment
from snakecls.workflow.run_folder import RunFolder
from snakecls.workflow.run_report import write_run_report

COLOURS = {"adder": (200, 60, 60), "boa": (170, 70, 60), "cobra": (60, 60, 200)}


def draw_photos(folder: Path) -> pd.DataFrame:
    "Small photos of a colour and noise; half of the validation photos of one class look like another."
    rng, rows = np.random.default_rng(0), []
    for label, colour in COLOURS.items():
        for i in range(24):
            shown = COLOURS["boa"] if label == "adder" and i % 8 == 2 else colour
            path = folder / f"{label}{i}.png"
            Image.fromarray(np.clip(np.array(shown) + rng.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)).save(path)
            split = ["train", "train", "valid", "train" if i % 8 else "valid"][i % 4]
            rows.append({"path": str(path), "label": label, "split": split})
    return pd.DataFrame(rows)


def train(folder: Path, name: str, source: Path, *, parent: str | None = None, **stage) -> RunFolder:
    "Run an experiment of an untrained network, which takes seconds."
    settings = {"name": name, "seed": 1, "parent": parent, "data": {"source": str(source), "facts": str(source.parent / "facts.csv")},
                "model": {"arch": "test_resnet", "weights": "none"}, "train": {"num_workers": 0, "device": "cpu"},
                "schedule": [{"size": 32, "epochs": 1, "bs": 8, "lr": 1e-6, **stage}]}
    return run_experiment(make_experiment(settings), root=folder / "runs", logbook=None, say=lambda text: None).run


def part_of(run: RunFolder) -> str:
    "The part of a report that is about the parent, with its tags; empty where there is none."
    found = re.search(r'<section id="parent">.*?</section>', (run / "report.html").read_text(), re.DOTALL)
    return found[0] if found else ""


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    table = draw_photos(folder)
    table.to_csv(folder / "photos.csv", index=False)
    pd.DataFrame({"label": [*COLOURS, "python"], "venomous": ["yes", "no", "yes", "no"]}).to_csv(folder / "facts.csv", index=False)
    base = train(folder, "base", folder / "photos.csv")
    return folder, table, base, train(folder, "longer", folder / "photos.csv", parent=base.id, epochs=6, lr=3e-3)


def test_the_report_shows_what_compare_shows(project):
    _, _, base, child = project
    said, found = text_of(part_of(child)), compare_runs(base, [child])["runs"][0]
    one = next(iter(found["targets"].values()))
    assert one["won"] + one["lost"] > 0, "the two runs answer alike, so this test shows nothing"
    assert say_points(one, found["verdict"]) in said and f"n = {one['n']}" in said and "schedule[0].epochs: 1 -> 6" in said
    assert f"{one['won']} photos won, {one['lost']} lost" in said
    assert one["dangers"] and all(say_danger_change(danger)[1:] in said for danger in one["dangers"])
    moved = [row for row in one["classes"] if row["difference"]]
    assert moved and all(f"{row['label']} {row['n']} {row['other']:.3f} {row['this']:.3f} {row['difference']:+.3f}" in said for row in moved[:6])
    for photo in one["photos"][:1]:
        assert f"is {photo['label'][0]} now {photo['this'][0]} before {photo['other'][0]}" in said
    assert part_of(child).count("<img") == min(one["won"], 4) + min(one["lost"], 4)
    assert f"snakecls compare {base.id} {child.id}" in said
    assert not part_of(base)


def test_other_photos_and_other_labels_are_said_in_one_sentence(project):
    folder, table, base, _ = project
    table.assign(split=np.where(table.index % 4 == 1, "valid", "train")).to_csv(folder / "split.csv", index=False)
    assert "other validation photos" in text_of(part_of(train(folder, "split", folder / "split.csv", parent=base.id)))
    table.assign(label=table["label"].replace("boa", "python")).to_csv(folder / "labels.csv", index=False)
    said = text_of(part_of(train(folder, "labels", folder / "labels.csv", parent=base.id)))
    assert "Not compared" in said and "other labels (" in said and "python in" in said and said.count("Not compared") == 1


def test_a_parent_that_is_gone_or_damaged_is_said_in_one_sentence(project, tmp_path):
    folder, _, base, child = project
    shutil.copytree(folder / "runs", tmp_path / "runs")
    parent, run = RunFolder(tmp_path / "runs" / base.id), RunFolder(tmp_path / "runs" / child.id)
    (parent / "predictions-valid.parquet").write_bytes(b"PAR1 and then nothing")
    write_run_report(run)
    said = text_of(part_of(run))
    assert said.startswith("Against its parent") and "Not compared" in said and "cannot be read as a table" in said
    (parent / "predictions-valid.parquet").unlink()
    write_run_report(run)
    assert "kept no predictions of its validation photos" in text_of(part_of(run))
    (parent / "metrics.json").write_text("[")
    write_run_report(run)
    assert "Not compared" in text_of(part_of(run))
    shutil.rmtree(parent.path)
    write_run_report(run)
    assert f"the folder of {base.id} is not there any more" in text_of(part_of(run)) and "Macro F1" in (run / "report.html").read_text()


def test_a_parent_elsewhere_is_named_by_its_folder(project, tmp_path):
    _, _, base, child = project
    shutil.copytree(base.path, tmp_path / base.id), shutil.copytree(child.path, tmp_path / "runs" / child.id)
    run = RunFolder(tmp_path / "runs" / child.id)
    write_json(run / "metrics.json", read_json(run / "metrics.json") | {"parent": str(tmp_path / base.id)})
    write_run_report(run)
    assert f"snakecls compare {tmp_path / base.id} {child.id}" in text_of(part_of(run))
