"""The app in a browser and through its API, with a bundle and with an exported learner."""
import subprocess
import sys

import pytest

from conftest import FACTS, REPO, draw_snake, need

gradio_client = need("gradio_client")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "An export.pkl of a tiny fastai learner with the facts of five species."
    import timm
    from fastai.learner import Learner
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageDataLoaders

    from snakecls.deploy.export import export_learner

    folder = tmp_path_factory.mktemp("learner")
    for number, label in enumerate([label for label in FACTS for _ in range(3)]):
        (folder / "photos" / label).mkdir(parents=True, exist_ok=True)
        draw_snake(number).save(folder / "photos" / label / f"{number}.png")
    dls = ImageDataLoaders.from_folder(folder / "photos", valid_pct=0.3, seed=0, bs=4, item_tfms=Resize(64), num_workers=0)
    learn = Learner(dls, timm.create_model("test_resnet", num_classes=len(FACTS)))
    learn.snakecls_info = {"label_facts": FACTS, "notice": "Random weights: for tests only.", "target": "binomial"}
    return export_learner(learn, folder / "export.pkl")


@pytest.fixture(scope="module")
def started(start_app, tiny_bundle, exported, tmp_path_factory):
    "Both apps, started side by side, each with the predictor that it should agree with."
    from snakecls.deploy.export import LearnerPredictor
    from snakecls.deploy.predict import Predictor

    empty = tmp_path_factory.mktemp("cwd")
    apps = {"bundle": (start_app(REPO / "app.py", empty, SNAKECLS_BUNDLE=str(tiny_bundle)), Predictor(tiny_bundle)),
            "learner": (start_app(REPO / "app.py", empty, SNAKECLS_BUNDLE=str(exported), SNAKECLS_TRUST_PICKLE="1"), LearnerPredictor(exported, trust=True))}
    return {kind: (app.wait(), predictor) for kind, (app, predictor) in apps.items()}


@pytest.mark.parametrize("kind", ["bundle", "learner"])
def test_a_photo_in_the_browser_shows_what_the_predictor_says(kind, started, browser, snake_photos, broken_photo):
    app, predictor = started[kind]
    page = browser.new_page(viewport={"width": 390, "height": 844})
    outside: list[str] = []
    page.on("request", lambda request: request.url.startswith((app.url, "data:", "blob:")) or outside.append(request.url))
    page.goto(app.url)
    page.wait_for_selector("#result h2")
    assert "Random weights: for tests only." in page.inner_text("body")
    assert "emergency number" in page.inner_text("body")

    page.set_input_files("#photo input[type=file]", str(snake_photos[0]))
    page.wait_for_selector(".sc-row", timeout=30_000)
    rows = page.query_selector_all(".sc-row")
    expected = predictor.predict(snake_photos[0])
    assert [row.get_attribute("data-label") for row in rows] == [p.label for p in expected]
    assert [float(row.get_attribute("data-prob")) for row in rows] == pytest.approx([p.prob for p in expected], abs=1e-5)
    for row, prediction in zip(rows, expected):
        assert FACTS[prediction.label]["common_name"] in row.inner_text() and row.query_selector(".sc-bar div").is_visible()
        assert ("⚠ VENOMOUS" in row.inner_text()) == (FACTS[prediction.label]["venomous"] is True)
        assert ("venomous: not known" in row.inner_text()) == (FACTS[prediction.label]["venomous"] is None)
    assert page.query_selector(".sc-caution") is not None  # of five species two are not venomous, so one of three may be

    page.reload()
    page.wait_for_selector("#result h2")
    page.set_input_files("#photo input[type=file]", str(broken_photo))
    page.wait_for_selector(".sc-error", timeout=30_000)
    assert "This photo cannot be read" in page.inner_text("#result")
    assert "Traceback" not in page.content() and page.query_selector(".sc-row") is None
    assert outside == []
    page.close()


def test_an_example_is_answered_as_soon_as_it_is_picked(started, browser):
    app, predictor = started["bundle"]
    page = browser.new_page()
    page.goto(app.url)
    page.click(".gallery-item >> nth=0")
    page.wait_for_selector(".sc-row", timeout=30_000)
    shown = [row.get_attribute("data-label") for row in page.query_selector_all(".sc-row")]
    assert shown == [p.label for p in predictor.predict(predictor.examples[0][0])]
    page.close()


@pytest.mark.parametrize("kind", ["bundle", "learner"])
def test_the_api_answers_what_the_predictor_says(kind, started, snake_photos, broken_photo):
    app, predictor = started[kind]
    client = gradio_client.Client(app.url, verbose=False, analytics_enabled=False)
    for photo in snake_photos[:2]:
        answer = client.predict(gradio_client.handle_file(str(photo)), api_name="/predict")
        expected = predictor.predict(photo)
        assert [row["label"] for row in answer] == [p.label for p in expected]
        assert [row["prob"] for row in answer] == pytest.approx([p.prob for p in expected], abs=1e-5)
        assert [row["facts"] for row in answer] == [p.facts for p in expected]
    with pytest.raises(Exception, match="cannot be read"):
        client.predict(gradio_client.handle_file(str(broken_photo)), api_name="/predict")
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/predict"]


def test_nothing_was_asked_of_the_network(started):
    for app, _ in started.values():
        assert app.asked() == []


@pytest.mark.parametrize("environment, sentence", [({}, "There is no trained model here"), ({"SNAKECLS_BUNDLE": "nowhere"}, "does not exist")])
def test_without_a_model_one_sentence_says_how_to_make_one(environment, sentence, tmp_path, monkeypatch):
    for key in ("SNAKECLS_BUNDLE", "SNAKECLS_TRUST_PICKLE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    done = subprocess.run([sys.executable, str(REPO / "app.py")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_pickle_is_not_loaded_without_trust(tmp_path, monkeypatch):
    (tmp_path / "export.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    monkeypatch.setenv("SNAKECLS_BUNDLE", "export.pkl")
    monkeypatch.delenv("SNAKECLS_TRUST_PICKLE", raising=False)
    done = subprocess.run([sys.executable, str(REPO / "app.py")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "SNAKECLS_TRUST_PICKLE=1" in done.stderr and not (tmp_path / "pwned").exists()
