"""The review page in a browser: every click is on the disk at once, and a killed page goes on where it stopped. And the page of `snakecls check`."""
import os
import signal

import pytest

from conftest import draw_snake, need
from snakecls.disk import file_hash
from snakecls.data.corrections import apply_corrections, read_corrections

COLUMNS = ["path", "issue", "verdict", "score", "reason", "label", "suggested"]
SCRIPT = """
import pandas as pd
from snakecls.deploy.review import launch_review
launch_review(pd.read_pickle("issues.pkl"), {labels}, "corrections.csv", problem={problem!r})
"""


def write_folder(folder, rows: list[tuple], labels: list[str], *, problem: str = "single_label"):
    "Draw a photo for each path of the issues, and write the issues and the program that asks about them."
    import pandas as pd

    issues = pd.DataFrame(rows, columns=COLUMNS)
    for number, name in enumerate(dict.fromkeys(issues["path"])):
        draw_snake(number).save(folder / name)
    issues["path"] = [str(folder / name) for name in issues["path"]]
    issues.to_pickle(folder / "issues.pkl")
    (folder / "review.py").write_text(SCRIPT.format(labels=labels, problem=problem))
    return folder


@pytest.fixture(scope="module")
def started(start_app, tmp_path_factory):
    "Both kinds of review page, started side by side: {kind: (folder, app)}."
    need("gradio")
    single = write_folder(tmp_path_factory.mktemp("single"), [
        ("0.png", "label", "relabel", 0.99, "looks like Naja naja (96%), not Vipera berus (1%)", "Vipera berus", "Naja naja"),
        ("1.png", "label", "look", 0.95, "looks like <b>Vipera berus</b>", "Naja naja", "Vipera berus"),
        ("2.png", "something else", "drop", 0.92, "unlike the photos of every class", "Naja naja", ""),
        ("3.png", "something else", "drop", 0.9, "unlike the photos of every class", "Naja naja", ""),
        ("4.png", "EXIF-rotated", "repaired", 1.0, "it is set upright", "Naja naja", ""),
    ], ["Naja naja", "Natrix natrix", "Vipera berus"])
    (single / "3.png").write_bytes(b"no photo any more")
    several = write_folder(tmp_path_factory.mktemp("several"), [
        ("0.png", "label", "relabel", 0.99, "probably lacks sea (98%)", ["sunset"], ["sea", "sunset"]),
        ("1.png", "label", "relabel", 0.97, "probably should not have trees (1%)", ["trees"], []),
        ("2.png", "near duplicate", "look", 0.95, "it shows the same picture as 0.png (sunset, similarity 0.95)", ["sea"], []),
    ], ["sea", "sunset", "trees"], problem="multi_label")
    apps = {"single": (single, start_app(single / "review.py", single)), "several": (several, start_app(several / "review.py", several))}
    return {kind: (folder, app.wait()) for kind, (folder, app) in apps.items()}


def decisions(folder) -> list[tuple[str, str, str]]:
    "What stands in the file now, the last decision last."
    if not (folder / "corrections.csv").exists():
        return []
    table = read_corrections(folder / "corrections.csv").decisions
    return [(os.path.basename(path), action, label) for path, action, label in zip(table["path"], table["action"], table["label"])]


def wait_for(page, place: str) -> None:
    "Wait until the page shows a place such as '2 of 4', and all of it is about the same photo."
    page.wait_for_function("""place => document.querySelector('.sc-place strong')?.innerText === place
        && document.querySelector('#path textarea, #path input').value === (document.querySelector('.sc-case')?.dataset.path || '')""", arg=place, timeout=60_000)


def open_page(browser, app, place: str, **viewport: int):
    "Open the page and note what it asks of other machines."
    page = browser.new_page(viewport=viewport or {"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.outside = []
    page.on("request", lambda request: request.url.startswith((app.url, "data:", "blob:")) or page.outside.append(request.url))
    page.goto(app.url)
    wait_for(page, place)
    return page


def test_clicks_keys_and_a_crash(started, start_app, browser):
    folder, app = started["single"]
    before = {path.name: file_hash(path) for path in folder.glob("*.png")}
    page = open_page(browser, app, "1 of 4", width=390, height=844)  # what was read rightly is not asked about
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing is cut off on a telephone
    assert page.evaluate("document.querySelector('.sc-photo img').naturalWidth") == 120
    assert "looks like Naja naja" in page.inner_text("#case") and page.inner_text("#actions .suggested") == "Relabel: Naja naja"
    tops = page.evaluate("Object.fromEntries([...document.querySelectorAll('#actions button')].map(button => [button.id, button.getBoundingClientRect().top]))")
    assert min(tops, key=tops.get) == "relabel" and not page.is_enabled("#back") and not page.is_enabled("#undo")

    page.click("#keep")
    wait_for(page, "2 of 4")
    assert decisions(folder) == [("0.png", "keep", "")]
    page.click("#back")
    wait_for(page, "1 of 4")
    assert "You decided: keep" in page.inner_text("#case")
    page.keyboard.press("Enter")  # the suggestion, not Back once more; the last decision counts
    wait_for(page, "2 of 4")
    assert decisions(folder) == [("0.png", "relabel", "Naja naja")]

    assert "<b>" in page.inner_text("#case")  # shown, not obeyed
    page.click("#label input")  # any label can be chosen, and typing is no shortcut
    page.keyboard.type("Natrix")
    page.click("[role=option]:has-text('Natrix natrix')")
    page.wait_for_function("document.querySelector('#relabel').innerText === 'Relabel: Natrix natrix'")
    page.click("#relabel")
    wait_for(page, "3 of 4")
    assert decisions(folder) == [("0.png", "relabel", "Naja naja"), ("1.png", "relabel", "Natrix natrix")]

    assert page.inner_text("#actions .suggested") == "Drop" and not page.is_enabled("#relabel")
    page.keyboard.press("d")
    wait_for(page, "4 of 4")
    assert decisions(folder)[2:] == [("2.png", "drop", "")]
    assert "This photo cannot be read" in page.inner_text("#photo-shown") and "Traceback" not in page.content()

    os.killpg(app.process.pid, signal.SIGKILL)
    app.process.wait(10)
    assert len(decisions(folder)) == 3
    again = start_app(folder / "review.py", folder).wait()
    page.goto(again.url)
    wait_for(page, "4 of 4")  # the first that nobody has decided on
    page.keyboard.press("u")  # the last decision, though it was made before the crash
    wait_for(page, "3 of 4")
    assert len(decisions(folder)) == 2 and "You decided" not in page.inner_text("#case")
    page.keyboard.press("ArrowRight")
    wait_for(page, "4 of 4")
    page.keyboard.press("Enter")
    wait_for(page, "Done")
    assert decisions(folder)[2:] == [("3.png", "drop", "")]
    end = page.inner_text("#photo-shown")
    assert "2 relabelled, 0 kept, 1 dropped, 1 skipped" in end and "data: {corrections: corrections.csv}" in end and not page.is_visible("#keep")
    page.click("#skip")
    wait_for(page, "3 of 4")
    page.keyboard.press("k")
    wait_for(page, "Done")
    assert "Nothing left to decide" in page.inner_text("#photo-shown")

    page.reload()
    wait_for(page, "Done")  # nobody is asked twice
    assert {path.name: file_hash(path) for path in folder.glob("*.png")} == before
    assert [url for url in page.outside if not url.startswith(again.url)] == [] and app.asked() == again.asked() == []
    page.close()


def test_several_labels_are_taken_changed_and_taken_away(started, browser):
    import pandas as pd

    folder, app = started["several"]
    table = pd.DataFrame({"path": [str(folder / f"{number}.png") for number in range(3)], "labels": [["sunset"], ["trees"], ["sea"]]})
    page = open_page(browser, app, "1 of 3")
    assert page.inner_text("#actions .suggested") == "Relabel: sea, sunset"
    page.keyboard.press("Enter")
    wait_for(page, "2 of 3")
    assert decisions(folder) == [("0.png", "relabel", '["sea", "sunset"]')]

    assert page.inner_text("#actions .suggested") == "Relabel: no label"
    page.click("#relabel")
    wait_for(page, "3 of 3")
    assert decisions(folder)[1:] == [("1.png", "relabel", "[]")]

    assert page.inner_text("#actions .suggested") == "Keep: sea" and not page.is_enabled("#relabel")  # the labels as they are, to be changed
    page.keyboard.press("r")  # so it asks for labels
    page.keyboard.type("tre")
    page.click("[role=option]:has-text('trees')")
    page.keyboard.press("Escape")  # closes the list
    page.wait_for_function("document.querySelector('#relabel').innerText === 'Relabel: sea, trees'")
    page.click("#relabel")
    wait_for(page, "Done")
    corrected, _ = apply_corrections(table, folder / "corrections.csv")
    assert corrected.table["labels"].tolist() == [["sea", "sunset"], [], ["sea", "trees"]]
    assert page.outside == [] and app.asked() == []
    page.close()


def test_the_page_about_two_thousand_photos_stays_small(tmp_path):
    import numpy as np
    import pandas as pd
    from PIL import Image

    from snakecls.clean.check_page import write_check_page

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(tmp_path / "noise.png")  # nothing compresses worse
    names = [f"class {i % 100}/{i}.png" for i in range(2000)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.link(tmp_path / "noise.png", tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    table = pd.DataFrame({"path": paths, "label": [f"class {i % 100}" for i in range(2000)], "split": "train", "width": 300, "height": 300})
    kinds = [(kind, "look") for kind in ("conflicting labels", "label", "something else", "leak", "exact duplicate", "near duplicate", "too small", "one colour")] + [(f"format {i}", "repaired") for i in range(9)]
    rows = [(path, kind, verdict, 0.9, f"it is like {paths[i ^ 1]}") for kind, verdict in kinds for i, path in enumerate(paths)]
    issues = pd.DataFrame(rows, columns=COLUMNS[:5]).assign(others=[[paths[i ^ 1]] for _ in kinds for i in range(2000)])
    page = write_check_page(tmp_path / "report.html", table, issues, root=tmp_path)
    assert 500_000 < page.stat().st_size < 5_000_000
    text = page.read_text()
    assert text.count("<img") > 100 and f">{tmp_path}" not in text and text.count(f"{tmp_path}") == text.count(f'title="{tmp_path}')
