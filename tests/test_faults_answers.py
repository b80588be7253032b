"""What a program, a table and a terminal read never sounds safer than the page, and an answer that is none is not shown (review of issue 11)."""
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import draw_snake, without_seal
from test_faults_person import make_bundle, run

from snakecls.core import UserError

SAFE = ["a snake", "b snake", "c snake"]


def sure_bundle(folder: Path, labels: list[str], probs: list[float], **more) -> Path:
    "Write a bundle that says these probabilities of every photo."
    import torch

    from snakecls.models.bundle import load_model, write_bundle

    bundle = make_bundle(folder, labels, target="label", **more)
    model, given = load_model(bundle), np.asarray(probs, float)
    with torch.no_grad():
        model.get_classifier().weight.zero_()
        model.get_classifier().bias.copy_(torch.tensor(np.log(given / (1 - given)) if more.get("problem") == "multi_label" else np.log(given), dtype=torch.float32))
    return write_bundle(folder, model, json.loads((bundle / "bundle.json").read_text()))


def page_of(bundle: Path, photo: Path) -> str:
    from snakecls.deploy.app import show_answer
    from snakecls.deploy.predict import Predictor

    return show_answer(Predictor(bundle), str(photo))


def facts_of(labels: list[str], **dangers) -> dict:
    return {label: {"venomous": label in dangers.get("yes", ["cobra"])} for label in labels}


@pytest.mark.parametrize("top", [1, 3])
def test_table_json_api_and_terminal_warn_of_what_the_page_warns_of(top, photo, tmp_path):
    from snakecls.deploy.app import answer_json
    from snakecls.deploy.predict import Predictor

    labels = [*[f"{letter} snake" for letter in "abcdefghij"], "cobra"]
    bundle = sure_bundle(tmp_path / "best", labels, [0.3] + [0.07] * 9 + [0.07], label_facts=facts_of(labels))
    page = page_of(bundle, photo)
    heading = re.search("<strong>(.*?)</strong>", page)[1]
    assert heading == "May be venomous. Keep away."
    done = run("predict", photo, "--model", "best", "--top", top, "--csv", "said.csv", "--json", cwd=tmp_path)
    (row,), table = json.loads(done.stdout), pd.read_csv(tmp_path / "said.csv")
    assert len(row["top"]) == top and row["caution"]["heading"] == heading and row["dangers"]["venomous"]["among_them"] is True
    assert row["dangers"]["venomous"]["at_most"] == pytest.approx(0.07, abs=1e-4)
    assert table["venomous_among_them"].tolist() == ["yes"] and table["caution"].str.startswith(heading).all()
    assert table["venomous_at_most"].tolist() == pytest.approx([0.07], abs=1e-4)
    assert all(answer["caution"]["heading"] == heading for answer in answer_json(Predictor(bundle), str(photo)))
    said = run("predict", photo, "--model", "best", "--top", top, cwd=tmp_path)
    assert heading in said.stdout and "no promise: keep your distance from a snake" in said.stderr


def test_what_is_below_its_threshold_or_small_together_is_told_too(photo, tmp_path):
    bundle = sure_bundle(tmp_path / "several", ["cobra", *SAFE], [0.45, 0.9, 0.6, 0.2], problem="multi_label", label_facts=facts_of(["cobra", *SAFE]))
    (row,) = json.loads(run("predict", photo, "--model", "several", "--csv", "several.csv", "--json", cwd=tmp_path).stdout)
    assert "May be venomous" in page_of(bundle, photo) and row["caution"]["heading"] == "May be venomous. Keep away."
    assert pd.read_csv(tmp_path / "several.csv")["venomous_among_them"].tolist() == ["yes"]
    vipers = [f"{i} viper" for i in range(6)]
    bundle = sure_bundle(tmp_path / "vipers", [*SAFE, *vipers], [0.9, 0.8, 0.7] + [0.049] * 6, problem="multi_label", label_facts=facts_of([*SAFE, *vipers], yes=vipers))
    assert "May be venomous" in page_of(bundle, photo) and "29%" in page_of(bundle, photo)
    bundle = sure_bundle(tmp_path / "little", [*SAFE, "cobra"], [0.7, 0.15, 0.101, 0.049], label_facts=facts_of([*SAFE, "cobra"]))
    page = page_of(bundle, photo)
    assert "None of these is listed as venomous; other labels, together with at most 5%, are or may be." in page and "sc-caution" not in page
    (row,) = json.loads(run("predict", photo, "--model", "little", "--json", cwd=tmp_path).stdout)
    assert row["caution"] is None and row["dangers"] == {"venomous": {"among_them": False, "at_most": pytest.approx(0.049, abs=1e-4)}}


def test_the_surest_danger_is_told_first_and_none_is_hidden(photo, tmp_path):
    bundle = sure_bundle(tmp_path / "b", ["toad", "newt"], [0.9, 0.1], label_facts={"toad": {"poisonous": True, "venomous": False}, "newt": {"poisonous": False, "venomous": None}})
    page = page_of(bundle, photo)
    assert "<strong>Poisonous. Do not eat or touch it.</strong>" in page and "May be venomous. Keep away. Whether newt is venomous is not known here." in page
    bundle = sure_bundle(tmp_path / "c", ["toad", "newt"], [0.9, 0.1], label_facts={"toad": {"poisonous": True, "venomous": True}, "newt": {"poisonous": False, "venomous": False}})
    assert "<strong>Venomous. Keep away.</strong>" in page_of(bundle, photo)


def test_predict_gives_every_target(photo, tmp_path):
    from snakecls.deploy.app import answer_json
    from snakecls.deploy.predict import Predictor
    from snakecls.models.bundle import rebuild_network, write_bundle

    targets = {"country": ["DE", "IN", "PH"], "binomial": ["Naja naja", "Natrix natrix"]}
    described = {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 3}, "heads": {"country": 3, "binomial": 2}}
    bundle = write_bundle(tmp_path / "best", rebuild_network(described), {"model": described, "labels": targets["country"], "targets": targets, "problem": "several_targets", "target": "country", "photo": {"size": 64}})
    (row,) = json.loads(run("predict", photo, "--model", "best", "--csv", "said.csv", "--json", cwd=tmp_path).stdout)
    best = row["targets"]["binomial"][0]["label"]
    assert f'<li data-target="binomial"><span>Binomial</span> <b>{best}</b>' in re.sub(r">\s*\n\s*<", "><", page_of(bundle, photo))
    assert pd.read_csv(tmp_path / "said.csv")["binomial_rank1"].tolist() == [best]
    assert f"binomial: {best} " in run("predict", photo, "--model", "best", cwd=tmp_path).stdout
    assert answer_json(Predictor(bundle), str(photo))[0]["targets"]["binomial"]["label"] == best


def test_percentages_are_never_certain_in_a_terminal_either(photo, tmp_path):
    sure_bundle(tmp_path / "best", ["shirt", "shoe"], [0.99999, 0.00001])
    assert "shirt >99%, shoe <1%" in run("predict", photo, "--model", "best", cwd=tmp_path).stdout


def test_an_answer_that_is_no_number_is_refused_and_never_shown(photo, tmp_path):
    from safetensors.torch import load_file, save_file

    from snakecls.deploy.app import answer_json
    from snakecls.deploy.predict import Predictor
    from snakecls.models.bundle import read_bundle

    bundle = make_bundle(tmp_path / "best", SAFE, target="label", label_facts=facts_of(SAFE))
    weights, values = load_file(bundle / "weights.safetensors"), without_seal(json.loads((bundle / "bundle.json").read_text()))
    (bundle / "bundle.json").write_text(json.dumps(values))  # with a seal the weights would be refused whatever they hold
    predictor = Predictor(bundle)
    predictor.model.get_classifier().bias.data[0] = float("nan")
    for ask in (predictor.predict, predictor.predict_all, lambda photo: predictor.probs([photo])):
        with pytest.raises(UserError, match="no number"):
            ask(str(photo))
    with pytest.raises(Exception, match="no number"):
        answer_json(predictor, str(photo))
    from snakecls.deploy.app import show_answer

    assert "There is no answer" in show_answer(predictor, str(photo)) and "nan%" not in show_answer(predictor, str(photo))
    (name,) = [name for name in weights if name.endswith("fc.bias")]
    for value in ("nan", "inf", "-inf"):
        broken = weights[name].clone()
        broken[1] = float(value)
        save_file(weights | {name: broken}, bundle / "weights.safetensors")
        done = run("predict", photo, "--model", "best", "--csv", "said.csv", cwd=tmp_path)
        assert done.returncode == 2 and "holds weights that are no numbers" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    save_file(weights, bundle / "weights.safetensors")
    for change in ({"temperature": 0}, {"temperature": float("inf")}, {"photo": values["photo"] | {"mean": [float("nan"), 0.5, 0.5]}}, {"photo": values["photo"] | {"std": [0.2, float("inf"), 0.2]}}):
        (bundle / "bundle.json").write_text(json.dumps(values | change))
        assert run("predict", photo, "--model", "best", cwd=tmp_path).returncode == 2, change
    (bundle / "bundle.json").write_text(json.dumps(values | {"danger_columns": None}))
    assert read_bundle(bundle).info.danger_columns == [] and run("predict", photo, "--model", "best", cwd=tmp_path).returncode == 0


COUNTING = '''
import sys, time
from snakecls.deploy.app import launch_app, load_predictor
predictor, calls, probs = load_predictor(sys.argv[1]), [], None
real = predictor.probs_all
def counted(photos, bs=16):
    calls.append(photos)
    print("asked", len(calls), flush=True)
    if len(calls) == 2:
        raise RuntimeError("the model is out of order")
    time.sleep(0 if len(calls) < 4 else 60)
    return real(photos, bs=bs)
predictor.probs_all = counted
launch_app(predictor)
'''


def test_an_old_answer_never_stands_under_a_new_photo_and_each_is_asked_once(start_app, browser, snake_photos, tmp_path):
    bundle = make_bundle(tmp_path / "best", SAFE, target="label", label_facts=facts_of(SAFE))
    script = tmp_path / "counting.py"
    script.write_text(COUNTING.replace("sys.argv[1]", repr(str(bundle))))
    app = start_app(script, tmp_path).wait()
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(app.url)
    page.wait_for_selector("#result h2")
    for number, (file, shown) in enumerate(zip([*snake_photos[:3], snake_photos[0]], [".sc-answer", ".sc-error", ".sc-answer", ".sc-waiting"])):
        page.set_input_files("#photo input[type=file]", str(file))
        page.wait_for_selector(f"#result {shown}", timeout=30_000)
        page.wait_for_timeout(700)
        assert (page.query_selector(".sc-answer") is not None) == (shown == ".sc-answer"), number
        assert app.log.read_text().count("\nasked ") == number + 1
    app.process.kill()  # in the middle of an answer
    page.wait_for_timeout(1500)
    assert page.query_selector(".sc-answer") is None
    log = app.log.read_text()
    assert "share=True" not in log and "Running on local URL:  http://127.0.0.1" in log and "the model is out of order" in log
    page.close()


def test_a_pickle_with_older_facts_is_not_exported_as_a_copy(tmp_path):
    from fastai.learner import Learner
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageDataLoaders
    import timm

    from snakecls.deploy.export import export_learner, pickled_info

    for number, label in enumerate(SAFE * 3):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        draw_snake(number).save(tmp_path / "photos" / label / f"{number}.png")
    make_bundle(tmp_path / "run/best", SAFE, target="label", label_facts=facts_of(SAFE))
    dls = ImageDataLoaders.from_folder(tmp_path / "photos", valid_pct=0.3, seed=0, bs=3, item_tfms=Resize(64), num_workers=0)
    learn = Learner(dls, timm.create_model("test_resnet", num_classes=3))
    learn.snakecls_info = {"label_facts": facts_of(SAFE), "target": "label"}
    export_learner(learn, tmp_path / "run/export.pkl")
    assert pickled_info(tmp_path / "run/export.pkl")["label_facts"] == facts_of(SAFE)
    assert run("export", "same.pkl", "--model", "run/best", cwd=tmp_path).returncode == 0
    (tmp_path / "facts.csv").write_text("label,venomous\na snake,yes\nb snake,no\nc snake,no\n")
    assert run("facts", "facts.csv", "--model", "run/best", cwd=tmp_path).returncode == 0
    done = run("export", "older.pkl", "--model", "run/best", cwd=tmp_path)
    assert done.returncode == 2 and "label facts" in done.stderr and "--format bundle" in done.stderr and not (tmp_path / "older.pkl").exists()
    assert run("export", "copy", "--model", "run/best", cwd=tmp_path).returncode == 0


def test_one_definition_of_top_k_for_score_and_interval():
    from snakecls.stats import bootstrap_interval
    from snakecls.train.metrics import top_k_score

    targets, probs = np.arange(16) % 4, np.full((16, 4), 0.25)  # ties everywhere
    value, low, high = bootstrap_interval("top3_accuracy", targets, probs)
    assert value == top_k_score(targets, probs, k=3) and low <= value <= high


def test_two_dangers_of_the_same_classes_are_told_once_and_no_label_is_no_first_answer(photo, tmp_path):
    labels = ["cobra", "rat snake"]
    facts = {"cobra": {"venomous": True, "dangerous": True}, "rat snake": {"venomous": False, "dangerous": False}}
    for number in range(4):
        file = tmp_path / "photos" / labels[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_snake(number).save(file)
    sure_bundle(tmp_path / "best", labels, [0.2, 0.8], label_facts=facts)
    done = run("evaluate", "best", "--data", "photos", "--report", "page", cwd=tmp_path)
    text = (tmp_path / "page/report.html").read_text()
    assert done.stdout.count("2 of 2") == 2 and "venomous and dangerous" in done.stdout  # the sentence, and its class
    assert text.count("and called harmless</h2>") == 1 and "Venomous and dangerous, and called harmless" in text
    sure_bundle(tmp_path / "several", labels, [0.2, 0.3], problem="multi_label", label_facts={label: {"venomous": known["venomous"]} for label, known in facts.items()})
    pd.DataFrame({"path": [f"photos/cobra/{i}.jpg" for i in (0, 2)], "labels": ["cobra;rat snake"] * 2}).to_csv(tmp_path / "both.csv", index=False)
    done = run("evaluate", "several", "--data", "both.csv", "--report", "page2", cwd=tmp_path)
    assert "first answer" not in done.stdout and "got no label at all" in done.stdout, done.stdout + done.stderr
    text = (tmp_path / "page2/report.html").read_text()
    assert "is cobra, with rat snake" in text and re.search(r"is cobra, with rat snake</span><span class=\"fix\">\s*20", text)


def test_a_missing_file_among_several_has_its_row_and_the_others_their_answer(photo, tmp_path):
    make_bundle(tmp_path / "best", SAFE, target="label", label_facts=facts_of(SAFE))
    done = run("predict", photo, "nofile.jpg", "--model", "best", "--csv", "said.csv", "--json", cwd=tmp_path)
    rows, table = json.loads(done.stdout), pd.read_csv(tmp_path / "said.csv")
    assert done.returncode == 2 and "top" in rows[0] and "no such file" in rows[1]["error"] and len(table) == 2 and table["rank1"].notna().tolist() == [True, False]
    alone = run("predict", "nofile.jpg", "--model", "best", cwd=tmp_path)
    assert alone.returncode == 2 and "nofile.jpg does not exist" in alone.stderr and alone.stdout == ""


@pytest.mark.parametrize("words, part", [
    (["predict", "snake.jpg", "--csv", "p.xlsx"], "--csv p.xlsx is to be a file of the kind .csv"), (["predict", "file:///home/x.jpg"], "give its path alone, such as /home/x.jpg"),
    (["export", "model.pt"], "model.pt has the name of a .pt file, which is not written"),
])
def test_names_and_addresses_are_refused_in_words(words, part, photo, tmp_path):
    make_bundle(tmp_path / "best", SAFE, target="label")
    draw_snake(1).save(tmp_path / "snake.jpg")
    done = run(*words, "--model", "best", cwd=tmp_path)
    assert done.returncode == 2 and part in done.stderr and not (tmp_path / "p.xlsx").exists(), done.stderr


def test_a_subject_in_the_plural_reads_well(photo, tmp_path):
    from snakecls.deploy.answer import header_html
    from snakecls.models.bundle import read_bundle

    bundle = sure_bundle(tmp_path / "best", SAFE, [0.7, 0.2, 0.1], label_facts=facts_of(SAFE), subject="snakes")
    assert "a snakes" not in page_of(bundle, photo) and re.search("from (a snake|snakes) that", page_of(bundle, photo))
    assert re.search(r"Which (snake is this|snakes are these)\?", header_html(read_bundle(bundle).info))


def test_no_keep_is_suggested_for_a_photo_under_two_labels(tmp_path):
    from snakecls.clean.duplicates import find_duplicates
    from snakecls.clean.cases import make_cases
    from snakecls.deploy.review import _case_html

    photos = []
    for label in ("cobra", "rat snake"):
        (tmp_path / label).mkdir()
        draw_snake(1).save(tmp_path / label / "a.png")
        photos.append({"path": str(tmp_path / label / "a.png"), "label": label})
    table = pd.DataFrame(photos)
    for case in make_cases(find_duplicates(table), table=table):
        assert case.suggested == "" and "keep it as it is" not in _case_html(case, None)


def test_programs_and_the_page_are_told_what_the_terminal_is(tmp_path):
    make_bundle(tmp_path / "best", SAFE, target="label", subject="snake")  # no facts
    for label in SAFE[:2]:
        (tmp_path / "photos" / label).mkdir(parents=True)
        draw_snake(len(label)).save(tmp_path / "photos" / label / "1.png")
    done = run("evaluate", "--model", "best", "--data", "photos", "--report", "page", "--json", cwd=tmp_path)
    notes = json.loads(done.stdout)["notes"]
    assert any("knows nothing about venom" in note for note in notes) and all(note in done.stderr for note in notes)
    page = (tmp_path / "page" / "report.html").read_text()
    assert "knows nothing about venom" in page and "2 photos" in page and "these photos" not in page
