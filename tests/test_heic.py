"""A HEIC photo, as telephones take it, is one photo everywhere: whoever asks gets the same answer, and whoever shows it shows it upright."""
import base64
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import FACTS, draw_snake, need
from test_faults_folders import heic
from test_hardening_door import ask
from test_http import EDGE, form
from warm import run_command

gradio_client = need("gradio_client")
LABELS = list(FACTS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    torch.manual_seed(0)
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(LABELS)}}, "labels": LABELS, "photo": {"size": 64}, "label_facts": FACTS, "target": "label"}
    return write_bundle(tmp_path_factory.mktemp("heic") / "best", timm.create_model("test_resnet", num_classes=len(LABELS)), info)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[str, Path]:
    "A folder for each label, each with a HEIC: as taken, turned by EXIF, called JPEG, of more than 8 bits, with transparency."
    import pillow_heif

    root = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    whole, clear = draw_snake(3, (400, 300)), draw_snake(5, (300, 300)).convert("RGBA")
    clear.putalpha(128)
    found = {"taken": heic(root / LABELS[0] / "IMG_0001.HEIC", whole, quality=90), "turned": heic(root / LABELS[1] / "IMG_0002.heic", whole.transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes()),
             "called JPEG": heic(root / LABELS[2] / "a.jpg", draw_snake(4, (320, 240))), "clear": heic(root / LABELS[4] / "clear.heif", clear)}
    deep = pillow_heif.from_bytes(mode="RGB;16", size=(400, 300), data=(np.asarray(whole).astype(np.uint16) * 257).tobytes())
    (root / LABELS[3]).mkdir()
    deep.save(root / LABELS[3] / "deep.HEIC")
    return found | {"deep": root / LABELS[3] / "deep.HEIC"}


@pytest.fixture(scope="module")
def expected(bundle, photos) -> dict[str, np.ndarray]:
    from snakecls.deploy.predict import Predictor

    probs = {kind: Predictor(bundle).probs([path])[0] for kind, path in photos.items()}
    for kind in ("turned", "deep"):
        np.testing.assert_allclose(probs["taken"], probs[kind], atol=0.01)  # the same picture, but for what HEIC lost
    for kind in ("called JPEG", "clear"):
        assert np.abs(probs["taken"] - probs[kind]).max() > 1e-3  # else nothing would be told by equal answers
    return probs


def as_row(top: list[dict]) -> list[float]:
    return [{one["label"]: one["prob"] for one in top}[label] for label in LABELS]


def test_python_answers_files_bytes_and_streams_with_either_engine(bundle, photos, expected):
    from snakecls.deploy.predict import Predictor

    for engine in ("onnxruntime", "torch"):
        predictor = Predictor(bundle, engine=engine)
        for kind, path in photos.items():
            for given in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
                np.testing.assert_allclose(predictor.probs([given])[0], expected[kind], atol=2e-5, err_msg=f"{kind} {engine}")


def test_the_command_line_says_the_same(bundle, photos, expected):
    folder = photos["taken"].parent.parent
    done = run_command("predict", *photos.values(), "--model", bundle, "--top", "5", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    for (kind, _), row in zip(photos.items(), json.loads(done.stdout)):
        np.testing.assert_allclose(as_row(row["top"]), expected[kind], atol=1e-5, err_msg=kind)


def test_evaluation_says_the_same(bundle, photos, expected, tmp_path):
    done = run_command("evaluate", bundle, "--data", photos["taken"].parent.parent, "--predictions", tmp_path / "p.parquet", "--report", tmp_path / "report", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["scores"]["n"] == 5, done.stderr
    table = pd.read_parquet(tmp_path / "p.parquet").set_index("path")
    for kind, path in photos.items():
        np.testing.assert_allclose(table.loc[str(path), [f"p_{i}" for i in range(5)]].to_numpy(float), expected[kind], atol=1e-5, err_msg=kind)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_reader_of_training_sees_the_same(bundle, photos, expected, workers):
    import torch

    from snakecls.data.datablocks import photo_dls
    from snakecls.data.tables import load_table
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(bundle, engine="torch")
    table = load_table(photos["taken"].parent.parent).assign(split="valid")
    table = pd.concat([table, table.assign(split="train")], ignore_index=True)
    dls = photo_dls(table, 64, bs=5, spec=predictor.info.photo, num_workers=workers, device="cpu")
    assert list(dls.vocab) == sorted(LABELS)
    pixels, targets = dls.valid.one_batch()
    with torch.no_grad():
        probs = predictor.model(torch.as_tensor(pixels)).softmax(1).numpy()
    seen = {LABELS.index(dls.vocab[int(target)]): row for target, row in zip(targets, probs)}
    for kind, path in photos.items():
        np.testing.assert_allclose(seen[LABELS.index(path.parent.name)], expected[kind], atol=1e-5, err_msg=kind)
    assert dls.train.one_batch()[0].shape == (5, 3, 64, 64)


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    from snakecls.deploy.predict import Predictor
    from snakecls.deploy.serving import launch_service

    address = launch_service(Predictor(bundle), block=False, most=4, flags=tmp_path_factory.mktemp("flags"))
    yield address
    address.close()


def test_the_app_and_plain_http_say_the_same(served, photos, expected):
    client = gradio_client.Client(str(served), verbose=False, analytics_enabled=False)
    for kind, path in photos.items():
        answers = [client.predict(gradio_client.handle_file(str(path)), "", api_name="/predict"), *(json.loads(ask(served, "POST", "/predict", body, **headers)[1]) for body, headers in (
            (path.read_bytes(), {"content-type": "image/heic"}), (path.read_bytes(), {"content-type": "application/octet-stream"}), (form(("photo", path)), EDGE)))]
        for answer in answers:  # the three that are shown
            for one in answer:
                assert one["prob"] == pytest.approx(expected[kind][LABELS.index(one["label"])], abs=1e-5), kind
            assert [one["label"] for one in answer] == [LABELS[i] for i in np.argsort(-expected[kind], kind="stable")[:3]]


def shown(html: str) -> Image.Image:
    "The picture within a page."
    (data,) = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_whatever_shows_a_photo_shows_it_upright(bundle, photos, tmp_path):
    "The preview beside the answer, where it looked, the thumbnail of reports, the page of review, what is flagged."
    from snakecls.data.photos import open_photo
    from snakecls.data.thumbnails import find_thumbnail, make_thumbnail
    from snakecls.deploy.app import _answer_or_say, _look, show_look
    from snakecls.deploy.flags import Flags
    from snakecls.deploy.predict import Predictor
    from snakecls.deploy.review import _photo_data
    from snakecls.evaluate.cover import cover_map

    predictor, flags = Predictor(bundle), Flags(tmp_path / "flags")
    for kind, path in photos.items():
        whole = open_photo(path)
        html, kept = _answer_or_say(predictor, "", [str(path)])
        for picture in (shown(html), shown(make_thumbnail(path)), shown(find_thumbnail(path.name, [path.parent])["image"]), shown(_photo_data(str(path)))):
            assert picture.width / picture.height == pytest.approx(whole.width / whole.height, abs=0.02), kind
            small = [np.asarray(one.resize((16, 16), Image.Resampling.BOX), float) for one in (picture, whole)]
            assert np.abs(small[0] - small[1]).mean() < 4, kind
        assert shown(show_look(predictor, kept, "", [str(path)])).size[0] >= 64
        assert _look(predictor, str(path), 0)[0].mode == "RGB"
        assert cover_map(predictor.probs, path, 0, grid=2)[0].width / cover_map(predictor.probs, path, 0, grid=2)[0].height == pytest.approx(whole.width / whole.height, abs=0.02)
        flags.keep([str(path)], [{"label": LABELS[0], "prob": 0.5}], words="", country="", model="m")
    kept = [file for file in (tmp_path / "flags").rglob("*") if file.is_file() and file.suffix.lower() not in (".csv", ".lock")]
    assert len(kept) == 5 and all(open_photo(file).size for file in kept)


def test_what_the_page_decodes_itself_waits_for_the_places_of_all(bundle, photos, monkeypatch, tmp_path):
    "The preview of a HEIC, and where the network looked: beside questions over plain HTTP two photos are decoded at a time, one of them large."
    import snakecls.deploy.app as app
    import snakecls.deploy.batching as batching
    from snakecls.deploy.predict import Predictor

    monkeypatch.setattr(batching, "LARGE_PIXELS", 100_000)  # 400 x 300 is large
    batcher = batching.Batcher(Predictor(bundle), most=4)
    together, lock, now, most, kinds = batching.BatchedPredictor(batcher.predictor, batcher), threading.Lock(), {"all": 0, "large": 0}, {"all": 0, "large": 0}, set()

    def watched(kind, work):
        def run(photo, *args, **more):
            counted = ["all", "large"] if str(photo) == str(photos["taken"]) else ["all"]
            with lock:
                kinds.add(kind)
                for one in counted:
                    now[one] += 1
                    most[one] = max(most[one], now[one])
            time.sleep(0.05)
            try:
                return work(photo, *args, **more)
            finally:
                with lock:
                    for one in counted:
                        now[one] -= 1
        return run

    seen = app._look
    looked = watched("look", lambda photo, predictor, label: seen(predictor, photo, label))
    monkeypatch.setattr(app, "_look", lambda predictor, photo, label: looked(photo, predictor, label))
    monkeypatch.setattr(app, "open_photo", watched("preview", app.open_photo))
    batcher._prepare = watched("prepare", batcher._prepare)
    _, kept = app._answer_or_say(together, "", [str(photos["taken"])])
    every = [str(photos[kind]) for kind in ("taken", "taken", "called JPEG", "clear")]
    works = [lambda path=path: app._answer_or_say(together, "", [path])[0] for path in every] + [lambda path=path: app.show_look(together, kept, "", [path]) for path in every] + [lambda path=path: together.probs_known([path]) for path in every]
    with ThreadPoolExecutor(12) as threads:
        answers = [one.result(60) for one in [threads.submit(work) for work in works]]
    assert all("data:image/jpeg" in html for html in answers[:8])
    assert most == {"all": 2, "large": 1} and kinds == {"look", "preview", "prepare"}
    batcher.close()


def test_a_heic_of_too_many_pixels_is_told_by_its_head_alone(served, tmp_path, monkeypatch):
    import pillow_heif

    big = heic(tmp_path / "big.heic", Image.new("L", (7200, 7000)), quality=10)  # 50.4 megapixels, of one colour
    from snakecls.deploy.app import _answer_or_say, _preview_html
    from snakecls.deploy.turns import count_pixels

    def fail(*args, **more):
        raise AssertionError("it was decoded")

    status, answer = ask(served, "POST", "/predict", big.read_bytes())
    assert status == 413 and b"50 megapixels are more than the 50" in answer
    monkeypatch.setattr(pillow_heif.HeifImage, "load", fail, raising=False)
    assert count_pixels(big) == 50_400_000 and _preview_html(str(big)) == "" and "too large" in _answer_or_say(nobody(), "", [str(big)])[0]


def nobody():
    "A predictor that must not be asked."
    from types import SimpleNamespace

    return SimpleNamespace(info=SimpleNamespace(label_facts={}, labels=[], danger_columns=[], target="label", targets=None, problem="single_label", subject="", title="", extra={}))
