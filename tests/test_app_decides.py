"""The app where a bundle decides: country, risk, rejection, several photos, where it looked; on a telephone, and by keyboard alone."""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import REPO, need
from trusting import ANSWERS, LABELS, SCRIPT, draw_colour, write_trusting

gradio_client = need("gradio_client")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    return {**{colour: draw_colour(colour, folder / f"{colour}.png") for colour in "rgb"}, "dark": draw_colour("g", folder / "dark.png", dark=True)}


@pytest.fixture(scope="module")
def app(start_app, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decides")
    bundle = write_trusting(folder / "best")
    (folder / "page.py").write_text(SCRIPT.format(paths=[str(REPO)], answers=ANSWERS, bundle=str(bundle)))
    return start_app(folder / "page.py", folder).wait()


@pytest.fixture
def page(app, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(app.url)
    page.wait_for_selector("#result h2")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing is beside the screen
    page.close()


def give(page, file, place="#photo"):
    page.set_input_files(f"{place} input[type=file]", file)


def shown(page, text, timeout=20_000):
    page.wait_for_selector(f"#result .sc-answer:has-text({json.dumps(text)})", timeout=timeout)
    return page.inner_text("#result .sc-answer")  # and not Gradio's clock, which stands before it for a moment


def test_the_risk_stands_first_and_a_likely_one_is_told(page, photos):
    give(page, str(photos["r"]))
    text = shown(page, "Probably venomous")
    assert text.index("Keep away") < text.index("Almost surely Eastern coral snake (Micrurus fulvius)") < text.index("Eastern coral snake\n")
    assert page.locator(".sc-row").first.get_by_text("⚠ venomous").is_visible()  # a sign and a word, not a colour alone
    assert page.evaluate("document.querySelector('#result').getAttribute('aria-live')") == "polite"
    assert page.evaluate("document.querySelector('#result').getBoundingClientRect().top") < 500  # the answer came to whoever waits for it
    give(page, str(photos["g"]))
    text = shown(page, "Pantherophis")
    assert "by this guess. When it was tried," in text and ("keep your distance" in text or "Keep away" in text) and "harmless" not in text and "safe" not in text


def test_another_country_answers_the_same_photo_anew(page, photos):
    uploads = []
    page.on("request", lambda request: "/gradio_api/upload?" in request.url and uploads.append(request.url))
    give(page, str(photos["b"]))
    before = shown(page, "Scarlet kingsnake")
    assert "With what is known of" not in before and "Not excluded that it is venomous. Keep away." in before
    assert page.evaluate("getComputedStyle(document.querySelector('.sc-caution')).backgroundColor") == "rgb(255, 243, 209)"  # a quiet sign is not red
    page.click("#country input")
    page.keyboard.type("United")
    page.keyboard.press("Enter")
    text = shown(page, "With what is known of United States")
    assert "Eastern coral snake" in page.inner_text(".sc-row >> nth=0") and len(uploads) == 1
    page.click("#country input")
    page.click("[role=option]:has-text('Mexico')")
    text = shown(page, "With what is known of Mexico")
    assert "Keep away." in text  # no country calms
    page.locator("#country input").fill("")  # an empty box is no country
    page.keyboard.press("Enter")  # of the first choice, which says so
    page.wait_for_function("before => document.querySelector('#result').innerText === before", arg=before, timeout=10_000)


def test_a_country_can_be_typed_and_a_wrong_one_loses_nothing(page, photos):
    give(page, str(photos["b"]))
    shown(page, "Scarlet kingsnake")
    box, result = page.locator("#country input"), page.locator("#result")
    box.fill("Mexiko")
    page.keyboard.press("Tab")
    result.get_by_text("did you mean 'Mexico'?").wait_for(timeout=10_000)
    assert box.input_value() == "Mexiko"
    for typed, said in (("usa", "With what is known of United States"), ("Kenya", "Nothing is known here of Kenya, so it changes nothing."), ("", "Scarlet kingsnake")):
        box.fill(typed)
        page.keyboard.press("Enter")
        shown(page, said)  # the same photo, which was not sent again
    assert "known of" not in page.inner_text("#result").replace("not known", "")


def test_a_country_chosen_while_one_waits_is_answered(page, photos):
    page.click("#country input")
    page.click("[role=option]:has-text('Canada')")
    give(page, str(photos["b"]))
    shown(page, "With what is known of Canada")


def test_what_is_not_known_is_said_first_and_nothing_calms(page, photos):
    give(page, str(photos["dark"]))
    text = shown(page, "This does not look like anything I know")
    assert text.removeprefix("Random weights: for tests only.").strip().startswith("This does not look like anything I know")
    assert "May be venomous. Keep away." in text and "by this guess" not in text and "99%" not in text and "not listed" not in text
    assert "the right answer is one of these" not in text
    big, small = (page.evaluate("at => parseFloat(getComputedStyle(document.querySelector(at)).fontSize)", at) for at in (".sc-verdict h2", ".sc-row .sc-name"))
    assert small < big
    page.click("#country input")
    page.click("[role=option]:has-text('France')")
    assert "This does not look like anything I know" in shown(page, "With what is known of France")


def test_several_photos_of_one_animal_are_answered_together(page, photos):
    give(page, str(photos["g"]))
    shown(page, "Corn snake")
    page.click("#more-photos button")
    page.wait_for_selector("#more input[type=file]", state="attached")
    give(page, [str(photos["r"]), str(photos["r"])], "#more")
    assert "Eastern coral snake" in shown(page, "that of 3 photos together")
    give(page, str(photos["b"]))  # another animal: the others' photos do not stay
    assert "photos together" not in shown(page, "Scarlet kingsnake")


def test_where_it_looked_is_shown_on_demand(page, photos):
    assert not page.locator("#look").is_visible()
    give(page, str(photos["r"]))
    shown(page, "Eastern coral snake")
    page.click("#look")
    page.wait_for_selector("#looked .sc-look img", timeout=40_000)
    assert page.inner_text("#looked").startswith("For Eastern coral snake.") and page.evaluate("document.querySelector('#looked img').naturalWidth") > 60
    give(page, str(photos["g"]))
    shown(page, "Corn snake")
    assert page.locator("#looked .sc-look").count() == 0  # it was of another photo


def test_what_to_do_after_a_bite_is_at_hand(page, photos):
    give(page, str(photos["r"]))
    shown(page, "Eastern coral snake")
    for top in (0, 10_000):
        page.evaluate("top => window.scrollTo(0, top)", top)
        box = page.locator(".sc-bite summary").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844  # on the screen, wherever one is
    page.click(".sc-bite summary")
    text = page.inner_text(".sc-bite")
    for words in ("emergency number", "Move away from the snake", "keep still", "rings", "no tourniquet", "suck", "no medical advice", "World Health Organization"):
        assert words in text
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    page.click(".sc-bite summary")
    last, bar = page.locator(".sc-notice p").last.bounding_box(), page.locator(".sc-bite summary").bounding_box()
    assert last["y"] + last["height"] <= bar["y"] + 1  # the bar hides nothing for good


def test_everything_can_be_reached_by_keyboard_and_the_focus_is_seen(page, photos):
    give(page, str(photos["b"]))
    shown(page, "Scarlet kingsnake")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    asked = {"bite": ".sc-bite summary", "photo": "#photo button", "country": "#country input", "more": "#more-photos button", "look": "#look"}
    met = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        for name, at in asked.items():
            if name not in met and page.evaluate("at => !!document.activeElement?.closest(at)", at):
                met[name] = page.evaluate("() => { const style = getComputedStyle(document.activeElement); return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2; }")
                if name == "bite":
                    page.keyboard.press("Enter")
                    assert page.evaluate("document.querySelector('.sc-bite').open")
                    page.keyboard.press("Enter")
                if name == "country":
                    page.keyboard.type("Mexico")
                    page.keyboard.press("Enter")
                    shown(page, "With what is known of Mexico")
                if name == "look":
                    page.keyboard.press("Enter")
                    page.wait_for_selector("#looked .sc-look", timeout=40_000)
    assert met == dict.fromkeys(asked, True)


def test_programs_give_a_country_and_get_the_decision(app, photos):
    client = gradio_client.Client(app.url, verbose=False, analytics_enabled=False)
    photo = gradio_client.handle_file(str(photos["b"]))
    alone = client.predict(photo, api_name="/predict")[0]["decision"]
    there = client.predict(photo, "US", api_name="/predict")[0]
    assert alone["country"] is None and there["decision"]["country"] == "United States" and there["set"]["promised"] == 0.9
    assert there["known"] == {"score": 2.0, "threshold": 1.0, "like": True}
    assert there["decision"]["order"][0]["label"] == LABELS[0] and there["decision"]["said"]
    both = client.predict(photo, "", [gradio_client.handle_file(str(photos["g"]))], api_name="/predict")
    assert both[0]["label"] == "Pantherophis guttatus"
    with pytest.raises(Exception, match="Atlantis"):
        client.predict(photo, "Atlantis", api_name="/predict")
    with pytest.raises(Exception, match="at most 5"):
        client.predict(photo, "", [gradio_client.handle_file(str(photos["g"]))] * 5, api_name="/predict")


def test_the_api_says_what_the_command_line_says(tmp_path, photos):
    from snakecls.deploy.app import answer_json
    from snakecls.deploy.predict import Predictor
    from snakecls.workflow.streamed import predict_given

    bundle = write_trusting(tmp_path / "best")
    rows, _ = predict_given([("b.png", str(photos["b"]))], bundle, country="Mexico")
    said = answer_json(Predictor(bundle), str(photos["b"]), "Mexico")[0]
    assert {key: said[key] for key in ("decision", "set", "caution", "dangers")} == {key: rows[0][key] for key in ("decision", "set", "caution", "dangers")}


def test_where_it_looked_needs_no_torch(tmp_path, photos):
    import subprocess

    bundle = write_trusting(tmp_path / "best")
    code = f"""
import sys
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else find(name, *more)
class Gone:
    def find_spec(self, name, *more):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Gone())
from snakecls.deploy.predict import Predictor
from snakecls.deploy.app import _answer_now, show_look
predictor = Predictor({str(bundle)!r}, engine="onnxruntime")
_, kept = _answer_now(predictor, {str(photos['b'])!r})
print("sc-look" in show_look(predictor, kept, "", [{str(photos['b'])!r}]), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_model_without_venom_has_no_advice_about_bites():
    from snakecls.deploy.answer import can_bite, header_html, notice_html
    box = SimpleNamespace(labels=["checked", "empty"], label_facts={}, target="label", subject="checkbox", title="", problem="single_label", notice="", licence="")
    assert not can_bite(box) and not any(word in header_html(box) + notice_html(box, 2) for word in ("snake", "tourniquet", "medical", "Bitten"))



def test_several_photos_never_take_an_alarm_back(tmp_path, photos):
    "One venomous snake among harmless ones is warned of as loudly as alone, and that the photos do not agree is said, on page and to programs."
    from snakecls.deploy.app import answer_json, decide_anew, ask_photos, _keep, _tell
    from snakecls.deploy.predict import Predictor
    from snakecls.evaluate.decide import ALARMS

    class Colours(Predictor):  # answers as the app of these tests does
        def probs_known(self, photos, *, bs=16):
            rows = np.array([ANSWERS[Path(photo).stem[0]] for photo in photos], np.float32)
            return {self.info.target: rows}, [{"score": 2.0, "threshold": 1.0, "like": True}] * len(rows)

    predictor = Colours(write_trusting(tmp_path / "best"))
    red, green = str(photos["r"]), str(photos["g"])
    alone, calm = predictor.decide(red), predictor.decide(green)
    assert ALARMS.index(alone.alarm["level"]) > ALARMS.index(calm.alarm["level"]) and alone.risk["level"] == "likely"
    for files in ([red, green, green, green], [green, green, green, red]):
        together = predictor.decide(files)
        assert together.alarm["level"] == alone.alarm["level"] and together.risk["venom_prob"] == pytest.approx(alone.risk["venom_prob"])
        assert list(together.apart.values()) == [3, 1] and together.in_set is None and "Almost surely" not in together.name()
        told = answer_json(predictor, files)[0]
        assert "Keep away" in told["caution"]["heading"] and told["dangers"]["venomous"]["at_most"] == pytest.approx(alone.risk["venom_prob"], abs=1e-6)
        assert told["decision"]["said"] == together.sentences() and any("do not agree" in said for said in together.sentences()) and "set" not in told
        asked = ask_photos(predictor, files)
        page = _tell(predictor, asked).page()
        assert "do not agree" in page and "Keep away" in page
        again, _ = decide_anew(predictor, _keep(asked, ""), "Mexico")  # another country, from what the browser kept
        assert "do not agree" in again and "Keep away" in again
    same = predictor.decide([red, red])
    assert not same.apart and not same.alone and same.alarm["level"] == alone.alarm["level"] and same.risk["tested"] is None
    harmless = predictor.decide([green, green])  # answers to several photos were not tried, so the least is the quiet sign
    assert harmless.alarm["level"] in ("open", calm.alarm["level"]) and "rated like" not in " ".join(harmless.sentences())


def test_where_a_model_has_no_costs_the_most_alarming_photo_speaks(tmp_path):
    from snakecls.deploy.told import tell
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(write_trusting(tmp_path / "best"))
    predictor.info.trust.pop("risk")
    red, green = (np.array(ANSWERS[colour], np.float32) for colour in "rg")
    mean = np.exp((np.log(red) + 9 * np.log(green)) / 10)
    target = predictor.info.target
    alone, together = tell(predictor, {target: red}), tell(predictor, {target: mean / mean.sum()}, each=[{target: red}, *[{target: green}] * 9])
    assert alone.warning[0].startswith("Venomous") and together.warning == alone.warning
    assert together.judged.at_most["venomous"] == alone.judged.at_most["venomous"] and "do not agree" in together.page()
