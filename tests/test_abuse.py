"""What somebody may put into a model's folder: a pickle called weights, names that lead out, texts that a terminal would obey.

What is sent to the app and to plain HTTP is in test_hardening_http and test_hardening_door."""
import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from conftest import draw_snake, without_seal
from snakecls.core import UserError
from test_hardening_bundles import refused, rewrite, values_of
from warm import run_command


class Touch:
    "Whoever unpickles it writes a file."

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def bundle(tiny_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "runs" / "20260101-000000-a" / "best"))


def pickles(marker: Path) -> dict[str, bytes]:
    import io
    import zipfile

    import torch

    torch.save({"weight": Touch(marker)}, new := io.BytesIO())
    torch.save({"weight": Touch(marker)}, old := io.BytesIO(), _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touch(marker)))
    return {"torch": new.getvalue(), "torch of before": old.getvalue(), "plain": pickle.dumps(Touch(marker)), "zip": packed.getvalue(), "behind a head": (16).to_bytes(8, "little") + b'{"__metadata__":{' + pickle.dumps(Touch(marker))}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("kind", ["torch", "torch of before", "plain", "zip", "behind a head"])
@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx"])
def test_a_pickle_under_another_name_is_never_run(bundle, photo, tmp_path, kind, sealed, name):
    "By whatever reads a model, with and without the hashes that would tell it."
    from snakecls.deploy.predict import Predictor
    from snakecls.models.bundle import load_model, read_bundle

    (bundle / name).write_bytes(pickles(tmp_path / "run")[kind])
    if not sealed:
        rewrite(bundle, without_seal(values_of(bundle)))
    if name == "weights.safetensors":
        refused(bundle)
    for use in (lambda: Predictor(bundle).predict(photo), lambda: Predictor(bundle, engine="torch").predict(photo), lambda: load_model(read_bundle(bundle))):
        try:
            use()
        except UserError as e:
            assert len(str(e).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_no_command_runs_a_pickle_that_is_called_weights(bundle, photo, tmp_path):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    (bundle / "weights.safetensors").write_bytes(pickles(tmp_path / "run")["torch"])
    for words in (["predict", photo, "--model", bundle], ["export", bundle, "out"], ["bench", bundle], ["evaluate", bundle, "--data", photo.parent], ["publish", bundle, "--repo", "a/b", "--dry-run", "page"]):
        done = run_command(*words, cwd=tmp_path / "empty")
        assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, (words, done.stderr)
    assert [file for file in sorted(tmp_path.rglob("*")) if tmp_path / "empty" not in file.parents] == before and not [file for file in (tmp_path / "empty").rglob("*") if file.is_file()]


def test_weights_of_an_earlier_run_are_no_pickle_either(tmp_path):
    "Training that starts from a file of weights."
    folder = tmp_path / "photos"
    for number in range(8):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        draw_snake(number).save(folder / "ab"[number % 2] / f"{number}.jpg")
    (tmp_path / "w.safetensors").write_bytes(pickles(tmp_path / "run")["torch"])
    done = run_command("train", "--data", folder, "--set", "model.arch=test_resnet", "--set", f"model.weights={tmp_path / 'w.safetensors'}", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "run").exists()


UP = "../../../../was-here"


def texts_of(value, path=()):
    "Every text in a description, with its place."
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_of(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts_of(inner, (*path, number))
    elif isinstance(value, str):
        yield path


def test_no_text_of_a_description_leads_out_of_the_folder(bundle, photo, tmp_path):
    "Each text in turn is a path that leads out, in a bundle whose seal is taken away; what is answered, copied, exported and published stays where it should."
    from snakecls.deploy.hub import write_space
    from snakecls.deploy.predict import Predictor
    from snakecls.workflow.models import copy_model

    whole = without_seal(values_of(bundle))
    places, answered = list(texts_of(whole)), 0
    assert len(places) > 15
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = {file for file in tmp_path.rglob("*") if bundle not in file.parents}
    for number, place in enumerate(places):
        for text in ((UP,) if number % 3 else (UP, str(tmp_path / "was-here"))):
            values = json.loads(json.dumps(whole))
            inner = values
            for step in place[:-1]:
                inner = inner[step]
            inner[place[-1]] = text
            rewrite(bundle, values)
            uses = [lambda: Predictor(bundle).predict(photo), partial(copy_model, bundle, tmp_path / "a" / "b" / f"copy{number}")]
            if number % 8 == 0:
                uses.append(partial(write_space, bundle, tmp_path / "a" / "b" / f"space{number}", space="a/b"))
            for use in uses:
                try:
                    use()
                    answered += 1
                except UserError as e:
                    assert len(str(e).splitlines()) == 1, e
    out = {file for file in tmp_path.rglob("*") if bundle not in file.parents and tmp_path / "a" / "b" not in file.parents}
    assert out == before and answered > 20 and not list(tmp_path.rglob("*was-here*"))


@pytest.mark.parametrize("name", ["../secret.jpg", "../../secret.jpg", "/etc/hostname", "..\\secret.jpg", "examples/../../secret.jpg", "secret.jpg/../../secret.jpg"])
def test_examples_that_lead_out_are_shown_to_nobody(bundle, tmp_path, name):
    from snakecls.deploy.hub import write_space
    from snakecls.deploy.predict import Predictor

    draw_snake(1).save(bundle / "secret.jpg")
    draw_snake(1).save(bundle.parent / "secret.jpg")
    (bundle / "examples" / "examples.json").write_text(json.dumps([{"file": name, "label": "a"}]))
    predictor = Predictor(bundle)
    assert predictor.examples == [] and any("left out" in note for note in predictor.notes)
    space = write_space(bundle, tmp_path / "space", space="a/b")
    assert not list(space.rglob("*secret*"))


ODD = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "harmless \u202eekans\u202c snake", "\u2067abc\u2069 {{ 7*7 }}", "=cmd|'/c calc'!A1", "| a | `b` | [c](http://evil.example)"]
TURNS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    "A bundle whose labels, facts and texts hold markup, formulas, signs of terminals, and signs that turn text round."
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    torch.manual_seed(0)
    facts = {label: {"venomous": True, "common_name": f"{label} \u202ex\x1b[31m"} for label in ODD}
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(ODD)}}, "labels": ODD, "photo": {"size": 64}, "name": ODD[1], "target": "label", "subject": "snake", "notice": f"{ODD[0]}\u202e\x1b[2J",
            "licence": ODD[2], "title": f"Which {ODD[0]}?", "weights_source": ODD[1], "label_facts": facts}
    return write_bundle(tmp_path_factory.mktemp("odd") / "best", timm.create_model("test_resnet", num_classes=len(ODD)), info)


@pytest.fixture(scope="module")
def odd_photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd-photos")
    for number in range(len(ODD)):
        draw_snake(number).save(folder / f"{number}.jpg")
    pd.DataFrame({"path": [f"{number}.jpg" for number in range(len(ODD))], "label": ODD}).to_csv(folder / "photos.csv", index=False)
    return folder


def test_a_terminal_is_told_nothing_that_it_would_obey(odd, odd_photos, tmp_path):
    for words in (["predict", odd_photos, "--model", odd], ["evaluate", odd, "--data", odd_photos / "photos.csv"], ["facts", "--model", odd]):
        done = run_command(*words, cwd=tmp_path)
        assert done.returncode == 0 and not [sign for sign in done.stdout + done.stderr if sign in TURNS or (not sign.isprintable() and sign not in "\n\t")], (words, done.stderr)
    done = run_command("predict", odd_photos, "--model", odd, "--json", "--csv", "out.csv", "--top", len(ODD), cwd=tmp_path)
    assert "\x1b" not in done.stdout and {one["label"] for one in json.loads(done.stdout)[0]["top"]} == set(ODD)  # for programs they are what they are
    cells = pd.read_csv(tmp_path / "out.csv")[[f"rank{i + 1}" for i in range(len(ODD))]].to_numpy().ravel()
    assert not [cell for cell in cells if cell[0] in "=+-@"]  # for a spreadsheet they are text


def test_pages_of_odd_labels_hold_no_markup_of_theirs(odd, odd_photos, tmp_path):
    "The report of an evaluation, the Hub's card and a Space's README; the app is in test_hardening_http."
    done = run_command("evaluate", odd, "--data", odd_photos / "photos.csv", "--report", "page", cwd=tmp_path)
    page = (tmp_path / "page" / "report.html").read_text() if (tmp_path / "page" / "report.html").exists() else next((tmp_path / "page").glob("*.html")).read_text()
    assert done.returncode == 0, done.stderr
    assert "<img src=x" not in page and "</script><script>alert(2)" not in page and not TURNS & set(page) and "&lt;img src=x" in page and "{{ 7*7 }}" in page
    for words in (["--repo", "a/b"], ["--space", "a/b"]):
        done = run_command("publish", odd, *words, "--dry-run", words[0].strip("-"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        text = (tmp_path / words[0].strip("-") / "README.md").read_text()
        assert not TURNS & set(text)
        text = text.split("---\n", 2)[2]  # above are values of YAML, which the Hub shows as text
        assert "<img src=x" not in text and "<script>" not in text and "[c](http" not in text, text
