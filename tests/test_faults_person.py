"""What a person with a photo is told: danger, what is not known, and nothing about danger where there is none (issue 10 D, issue 11 A.1)."""
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import FACTS, REPO, draw_snake, without_seal

from snakecls.core import UserError

DANGER_WORDS = re.compile(r"venom|poison|danger|keep away|distance|closer|emergency|hurt|bitten|safe\b|safety", re.I)
YES, NO = [1, "1", 1.0, True, "True", "x", "ja", "Yes ", np.bool_(True), "oui"], [0, "0", 0.0, False, "false", "nein", "No", np.bool_(False)]


def run(*words: str, cwd: Path) -> SimpleNamespace:  # returncode, stdout, stderr
    "Run a command in this process: starting one anew takes seconds each time."
    from typer.testing import CliRunner

    from snakecls.cli import app

    before = Path.cwd()
    os.chdir(cwd)
    try:
        result = CliRunner().invoke(app, [str(word) for word in words])
    finally:
        os.chdir(before)
    if isinstance(result.exception, UserError):  # as `main` does it
        return SimpleNamespace(returncode=2, stdout=result.stdout, stderr=f"{result.stderr}snakecls: {result.exception}")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return SimpleNamespace(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def make_bundle(folder: Path, labels: list[str], **more) -> Path:
    "Write a bundle of a tiny network with random weights."
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    torch.manual_seed(0)
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(labels)}}, "labels": labels, "photo": {"size": 64}} | more
    return write_bundle(folder, timm.create_model("test_resnet", num_classes=len(labels)), info)


def answer(folder: Path, probs: list[float], photo: Path) -> str:
    "Give what the app answers where the model says these probabilities."
    from snakecls.deploy.app import show_answer
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(folder)
    predictor.probs_all = lambda photos, bs=16: {predictor.info.target: np.array([probs], np.float32)}
    return show_answer(predictor, str(photo))


@pytest.mark.parametrize("header", ["venomous", "Venomous ", "POISONOUS", "Vénimeux", "Is dangerous?"])
def test_a_danger_in_any_spelling_warns_and_only_an_explicit_no_for_every_label_says_not_listed(header, photo, tmp_path):
    labels = ["Amanita phalloides", "Agaricus campestris", "Boletus edulis"] if header == "POISONOUS" else ["one", "two", "three"] if "dangerous" in header else ["Naja naja", "Natrix natrix", "Coronella austriaca"]
    for cells, warned in ((YES[0], NO[0], NO[1]), True), ((NO[0], NO[2], NO[5]), False), ((NO[0], NO[1], None), True), ((NO[0], NO[1], "?"), True), ((NO[0], NO[1], YES[5]), True):
        bundle = make_bundle(tmp_path / "b", labels, label_facts={label: {header: cell} for label, cell in zip(labels, cells) if cell is not None})
        page = answer(bundle, [0.5, 0.3, 0.2], photo)
        assert ('class="sc-caution"' in page) == warned, cells
        assert ("None of these is listed" in page) == (not warned), cells
        stored = json.loads((bundle / "bundle.json").read_text())["label_facts"]
        assert all(value is True or value is False or value is None for known in stored.values() for value in known.values())


@pytest.mark.parametrize("cell", YES)
def test_every_yes_is_a_yes_in_old_bundles_too(cell, photo, tmp_path):
    bundle = make_bundle(tmp_path / "b", list(FACTS))
    values = json.loads((bundle / "bundle.json").read_text())
    values["label_facts"] = {label: {"Venomous ": (bool(cell) if isinstance(cell, np.bool_) else cell) if label == "Natrix natrix" else "no"} for label in FACTS}
    (bundle / "bundle.json").write_text(json.dumps(without_seal(values)))  # as a hand or an older version wrote it
    assert "Venomous. Keep away." in answer(bundle, [0.1, 0.1, 0.1, 0.1, 0.6], photo)


def test_what_is_neither_yes_nor_no_is_refused_with_its_cell_and_changes_nothing(tmp_path):
    bundle = make_bundle(tmp_path / "best", ["Naja naja", "Natrix natrix"], label_facts={"Naja naja": {"venomous": True}})
    before = (bundle / "bundle.json").read_bytes()
    for text, parts in [("label,Venomous\nNaja naja,mildly\n", ["'Naja naja'", "'Venomous'", "'mildly'"]), ("label,venomous\nNaja naja,2\n", ["'Naja naja'", "'2'"]), ("label,harmless\nNaja naja,1\n", ["'harmless'", "opposite"]),
                        ("label,venomous,Venomous \nNaja naja,1,0\n", ["two columns", "venomous"]), ("label,venomous\nNaja naja,yes,no\n", ["line 2"]), ("label,venomous\nHomo sapiens,no\n", ["knows none"]),
                        ('label,venomous\n"Naja naja,yes\nNatrix natrix,no\n', ["facts.csv"])]:
        (tmp_path / "facts.csv").write_text(text)
        done = run("facts", "facts.csv", "--model", "best", cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert all(part in done.stderr for part in parts), done.stderr
        assert (bundle / "bundle.json").read_bytes() == before


def test_facts_are_added_to_a_copied_bundle_without_training(photo, tmp_path):
    labels = ["Philippine Cobra (Naja philippinensis)", "Common Wolf Snake (Lycodon capucinus)", "Philippine Shrub Snake (Oxyrhabdium modestum)"]
    bundle = make_bundle(tmp_path / "copied", labels)
    weights = (bundle / "weights.safetensors").read_bytes()
    asked = run("predict", photo, "--model", "copied", cwd=tmp_path)
    assert asked.returncode == 0 and "knows nothing about venom" in asked.stderr and "venomous: not known" in asked.stdout
    assert "knows nothing about venom" in answer(bundle, [0.5, 0.3, 0.2], photo)
    done = run("facts", REPO / "experiments/snakes_ph_facts.csv", "--model", "copied", "--subject", "snake", "--title", "Snakes of Luzon", "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert said["facts"][labels[0]]["venomous"] is True and said["facts"][labels[1]]["venomous"] is False and said["facts"][labels[2]]["venomous"] is None
    assert "fit no label" in done.stderr and (bundle / "weights.safetensors").read_bytes() == weights
    assert "Venomous. Keep away." in answer(bundle, [0.5, 0.3, 0.2], photo)
    assert "2 of 3" not in run("facts", "--model", "copied", cwd=tmp_path).stdout and "1 yes, 1 no, 1 not known" in run("facts", "--model", "copied", cwd=tmp_path).stdout
    assert "knows nothing" not in run("predict", photo, "--model", "copied", cwd=tmp_path).stderr


def test_nobody_is_sent_closer_to_a_snake_and_clothes_are_not_dangerous(photo, tmp_path):
    from snakecls.deploy.app import show_answer
    from snakecls.deploy.hub import _space_readme
    from snakecls.deploy.answer import header_html, notice_html
    from snakecls.deploy.predict import Predictor
    from snakecls.models.bundle import read_bundle

    snakes = make_bundle(tmp_path / "snakes", list(FACTS), label_facts=FACTS)
    for probs in ([0.3, 0.2, 0.2, 0.2, 0.1], [0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.6, 0.1]):
        page = answer(snakes, probs, photo)
        assert not re.search(r"(?<!do not go )closer", page)
    assert "same distance" in answer(snakes, [0.3, 0.2, 0.2, 0.2, 0.1], photo)
    assert "do not go closer" in show_answer(Predictor(snakes), None)
    for labels, name in ((["shirt", "shoe", "boa"], "clothes"), (["checked", "unchecked"], "checkboxes")):
        bundle = make_bundle(tmp_path / name, labels, target="label", name=name, label_facts={"shoe": {"in_stock": True}} if "shoe" in labels else {})
        info = read_bundle(bundle).info
        shown = [header_html(info), notice_html(info, len(labels)), show_answer(Predictor(bundle), None), _space_readme(read_bundle(bundle), "a/b"), answer(bundle, [0.4, 0.35, 0.25][: len(labels)], photo), answer(bundle, [0.9, 0.06, 0.04][: len(labels)], photo)]
        assert not [DANGER_WORDS.search(text)[0] for text in shown if DANGER_WORDS.search(re.sub(r"<[^>]*>", "", text))]
        assert "other two" not in answer(bundle, [0.6, 0.4, 0][: len(labels)], photo) or len(labels) == 3
    titled = make_bundle(tmp_path / "titled", list(FACTS), title="Snakes of <Luzon>", subject="snake")
    assert "<h1>Snakes of &lt;Luzon&gt;</h1>" in header_html(read_bundle(titled).info)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Twelve photos of three labels in class folders, a table, and a model whose facts know one danger, one harmless, one unknown label."
    folder = tmp_path_factory.mktemp("given")
    rows = []
    for i in range(12):
        label = ["cobra", "rat snake", "shrub snake"][i % 3]
        file = folder / "photos" / label / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_snake(i).save(file)
        rows.append((f"photos/{label}/{i}.jpg", label))
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(folder / "photos.csv", index=False)
    pd.DataFrame(rows, columns=["path", "label"])[["path"]].to_parquet(folder / "unlabelled.parquet")
    make_bundle(folder / "best", ["cobra", "rat snake", "shrub snake"], target="label", label_facts={"cobra": {"venomous": True}, "rat snake": {"venomous": False}})
    return folder


def test_evaluate_counts_what_was_called_harmless_and_shows_the_photos(photos):
    done = run("evaluate", "best", "--data", "photos", "--csv", "out/said.csv", "--report", "page", "--json", cwd=photos)
    assert done.returncode == 0, done.stderr
    (danger,) = json.loads(done.stdout)["dangers"]
    said = pd.read_csv(photos / "out/said.csv")
    cobras = said[said["label"] == "cobra"]
    assert danger["n"] == 4 and danger["unknown"] == 4 and danger["harmless"] == 4
    assert danger["as_harmless"] == int((cobras["predicted"] == "rat snake").sum()) and danger["as_unknown"] == int((cobras["predicted"] == "shrub snake").sum())
    assert 0 <= danger["low"] <= danger["share"] <= danger["high"] <= 1
    assert list(said) == ["path", "label", "predicted", "rank1", "prob1", "rank2", "prob2", "rank3", "prob3", "known"]
    assert said["path"].str.startswith("photos/").all() and (said["rank1"] == said["predicted"]).all()
    page = (photos / "page/report.html").read_text()
    assert ("Venomous, and called harmless" in page) == (danger["as_harmless"] > 0) and f"{danger['as_harmless'] or 'None'} of 4 venomous" in page and "<script" not in page


def test_predictions_of_a_known_table_are_counted_by_hand():
    from snakecls.evaluate.danger import count_dangers

    facts = {"cobra": {"venomous": True}, "rat": {"venomous": False}, "wolf": {"venomous": False}, "sand": {"venomous": False}, "shrub": {}}
    rows = [("cobra", [.6, .2, .1, .1, 0])] * 5 + [("cobra", [.2, .6, .1, .1, 0])] * 2 + [("cobra", [.05, .5, .3, .1, .05])] * 3 + [("cobra", [.1, .2, .1, 0, .6])] + [("rat", [.6, .4, 0, 0, 0])] + [("shrub", [0, 1, 0, 0, 0])] * 2
    table = pd.DataFrame([{"path": f"{i}.jpg", "label": label, "predicted": list(facts)[int(np.argmax(probs))]} | {f"p_{k}": p for k, p in enumerate(probs)} for i, (label, probs) in enumerate(rows)])
    (found,) = count_dangers(table, list(facts), facts)
    assert {key: found[key] for key in ("n", "as_harmless", "as_unknown", "none_in_top", "harmless", "false_alarms", "unknown")} == {"n": 11, "as_harmless": 5, "as_unknown": 1, "none_in_top": 3, "harmless": 1, "false_alarms": 1, "unknown": 2}
    assert found["classes"][0]["took"] == {"rat": 5} and len(found["photos"]) == 5
    assert found["low"] == pytest.approx(0.2127, abs=2e-4) and found["high"] == pytest.approx(0.7199, abs=2e-4)  # Wilson's interval of 5 in 11


def test_patterns_tables_folders_and_addresses(photos):
    by_pattern = run("predict", "photos/*/*.jpg", "--model", "best", "--csv", "a.csv", "--json", cwd=photos)
    by_table = run("predict", "unlabelled.parquet", "--model", "best", "--csv", "b.csv", "--json", cwd=photos)
    by_folder = run("predict", "photos", "--model", "best", "--json", cwd=photos)
    answers = [{row["path"]: row["top"] for row in json.loads(done.stdout)} for done in (by_pattern, by_table, by_folder)]
    assert len(answers[0]) == 12 and answers[0] == answers[1] == answers[2]
    tables = [pd.read_csv(photos / name, keep_default_na=False).sort_values("path", ignore_index=True) for name in ("a.csv", "b.csv")]
    assert (tables[0] == tables[1]).all(axis=None)
    assert {"path", "rank1", "prob1", "venomous_among_them"} <= set(pd.read_csv(photos / "a.csv"))
    first = [json.loads(run("evaluate", "best", "--data", data, "--json", cwd=photos).stdout)["scores"] for data in ("photos", "photos/*/*.jpg", "photos.csv")]
    assert first[0]["n"] == 12 and first[0] == first[1] == first[2]
    for words, sentence in ((["predict", "ftp://example.org/a.jpg"], "ftp://example.org/a.jpg is an address"), (["evaluate", "best", "--data", "https://example.org/photos"], "https://example.org/photos is an address"),
                            (["predict", "none/*.jpg"], "no photo fits the pattern 'none/*.jpg'"), (["evaluate", "best", "--data", "none/**/*.jpg"], "no photo fits the pattern")):
        done = run(*words, *(["--model", "best"] if words[0] == "predict" else []), cwd=photos)
        assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_cells_that_a_spreadsheet_would_run_are_written_as_text(photos):
    from snakecls.data.cells import unguard_cells

    evil = photos / "evil"
    evil.mkdir(exist_ok=True)
    names = ["=1+1.jpg", "-x.jpg", "@a.jpg", "+b.jpg", "'=c.jpg"]
    for name in names:
        draw_snake(1).save(evil / name)
    (evil / "evil.csv").write_text("path\n" + "\n".join(names) + "\n")
    assert run("predict", "evil.csv", "--model", "../best", "--csv", "said.csv", cwd=evil).returncode == 0
    written = pd.read_csv(evil / "said.csv", dtype=str)
    assert not written["path"].str.match(r"[=+\-@]").any() and unguard_cells(written)["path"].tolist() == names


def test_a_run_without_facts_says_so_in_its_report():
    from snakecls.evaluate.report import judge_unknown

    assert "venom" in judge_unknown({"labels": ["Naja naja", "Natrix natrix"]})["title"]
    assert judge_unknown({"labels": ["shirt", "shoe"]}) is None
    assert judge_unknown({"labels": ["Naja naja"], "label_facts": {"Naja naja": {"venomous": True}}}) is None


def test_the_facts_of_the_philippine_snakes_agree_with_the_experiment():
    from snakecls.experiment.file import load_experiment
    from snakecls.experiment.facts import read_facts

    experiment = load_experiment(REPO / "experiments/snakes_ph.yaml")
    table = pd.read_csv(experiment.data.facts)
    facts, _ = read_facts(experiment.data.facts, table["label"].tolist())
    assert len(facts) == 14 and experiment.predict.subject == "snake"
    for label, known in facts.items():
        if any(word in label for word in ("Naja", "Tropidolaemus", "Trimeresurus")):
            assert known["venomous"] is True
        assert known["countries"] and known["binomial"] in label
    with pytest.raises(UserError):
        read_facts(experiment.data.facts, ["Homo sapiens"])
