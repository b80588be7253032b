"The report of a run: one file that stands alone, whatever the run folder holds or lacks."
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import REPO
from snakecls.disk import write_json
from snakecls.evaluate.report import write_report
from snakecls.workflow.run_folder import RunFolder

NASTY = ["<script>alert('x')</script>", "Naja & \"friends\"", "蛇 {{ 7 * 7 }}", "a/b\\c"]


def make_run(root: Path, *, n_classes: int = 14, n: int = 120, photos: bool = True, splits: tuple[str, ...] = ("valid", "test")) -> RunFolder:
    "Make a run folder with drawn photos and made-up predictions."
    rng = np.random.default_rng(0)
    labels = (NASTY + [f"Genus{i:02d} species{i:02d}" for i in range(n_classes)])[:n_classes]
    with RunFolder.create(root / "runs", "fake <b>run</b>") as run:
        metrics = {"name": "fake <b>run</b>", "labels": labels, "seconds": 754.2, "parent": None}
        for split in splits:
            truth = rng.integers(0, n_classes, n)
            probs = rng.dirichlet(np.ones(n_classes), n) * 0.85 + np.eye(n_classes)[truth] * 0.15
            paths = [f"{split}/{i}.jpg" for i in range(n)]
            if photos:
                (root / split).mkdir(parents=True)
                for path in paths:
                    Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(root / path)
            table = pd.DataFrame({"path": paths, "label": [labels[i] for i in truth], "predicted": [labels[i] for i in probs.argmax(1)]})
            table = pd.concat([table, pd.DataFrame(probs, columns=[f"p_{i}" for i in range(n_classes)])], axis=1)
            table.to_parquet(run / f"predictions-{split}.parquet")
            metrics[split] = {"n": n, "f1_macro": 0.8, "accuracy": 0.81, "top3_accuracy": 0.95, "loss": 0.6, "f1_macro_interval": [0.75, 0.85]}
        scores = metrics[splits[0]] if splits else {}
        if "valid" in metrics:
            metrics["valid"]["chosen_on"] = ["epoch"]
        metrics |= {"trained": {**scores, "stage": 2, "epoch": 2, "size": 352}, "fine_tuning": {"difference": 0.1, "low": 0.04, "high": 0.16, "n": n}}
        metrics |= {"probe": {"stage": 1, "epoch": 0, "size": 128, "f1_macro": 0.7}, "best": {"stage": 2, "epoch": 2, "size": 224},
                    "stages": [{"stage": i, "size": size, "valid_size": valid_size, "epochs": 2, "seconds": 60.0, "own": scores, "final": scores} for i, size, valid_size in [(1, 128, 128), (2, 224, 352)]]}
        run.write_metrics(metrics)
        run.write_experiment({"name": "fake", "data": {"source": "photos.csv"}, "model": {"arch": "resnet18"}})
        run.write_environment(root)
        for stage, size, valid_size in [(1, 128, 128), (2, 224, 352)]:
            for epoch in range(stage - 1, 3):
                run.add_epoch({"stage": stage, "epoch": epoch, "size": size, "valid_size": valid_size, "train_loss": None if epoch == 0 else 0.5, "valid_loss": 0.6,
                               "f1_macro": 0.7 + 0.02 * epoch, "is_best": (stage, epoch) == (2, 2)})
        facts = {label: {"common_name": f"The {i}th", "venomous": [True, False, None][i % 3]} for i, label in enumerate(labels)}
        write_json(run / "best" / "bundle.json", {"label_facts": facts})
    return run


class Addresses(HTMLParser):
    "Collect everything that a page would fetch."

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def parse(page: str) -> Addresses:
    parser = Addresses()
    parser.feed(page)
    return parser


def test_the_page_stands_alone_and_is_small(tmp_path):
    run = make_run(tmp_path)
    page = write_report(run.path, photo_root=tmp_path).read_text()
    parsed = parse(page)
    assert len(page.encode()) < 1_500_000
    assert all(address.startswith("data:") for address in parsed.found) and parsed.tags.count("img") >= 18  # and those of something dangerous that were called harmless
    assert not {"script", "iframe"} & set(parsed.tags) and not re.search(r"url\(|@import", page)
    for text in ("0.800", "0.750 to 0.850", "120 test photos", "Fine-tuning helped", "128 px", "224 → 352 px", "4 epochs", "Confusion matrix", "Most confused"):
        assert text in page, text


def test_the_plots_are_pictures_and_pyplot_is_left_alone(tmp_path):
    run = make_run(tmp_path, n_classes=60, photos=False)
    code = ("import sys; from snakecls.evaluate.report import _write_plots; _write_plots(sys.argv[1]); "
            "assert 'matplotlib.pyplot' not in sys.modules")  # it alone chooses a backend
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, cwd=REPO)
    sizes = {file.name: Image.open(file).size for file in (run / "plots").iterdir()}
    assert set(sizes) == {"confusion-test.png", "confusion-valid.png", "history.png"} and min(map(min, sizes.values())) > 300


def test_text_of_the_user_is_escaped(tmp_path):
    page = write_report(make_run(tmp_path, n_classes=5, photos=False).path).read_text()
    assert "<script" not in page and "<b>run" not in page and "{{ 7 * 7 }}" in page and "蛇" in page and "Naja &amp; &#34;friends&#34;" in page


@pytest.mark.parametrize("missing", ["metrics.json", "history.csv", "experiment.yaml", "environment.json", "status.json", "best/bundle.json",
                                     "predictions-test.parquet", "predictions-*.parquet"])
def test_a_missing_part_leaves_a_shorter_page(tmp_path, missing):
    run = make_run(tmp_path, photos=False)
    for file in run.path.glob(missing):
        file.unlink()
    page = write_report(run.path).read_text()
    assert "How it was made" in page and ("is not there any more" in page or missing == "predictions-*.parquet")
    assert "None" not in re.sub(r"<pre>.*?</pre>|None of", "", page, flags=re.DOTALL) and ">nan<" not in page


def test_a_run_without_test_photos_speaks_of_validation(tmp_path):
    page = write_report(make_run(tmp_path, photos=False, splits=("valid",)).path).read_text()
    assert "on 120 validation photos" in page and "expect a little less on new ones" in page and "test photos" not in page


def test_a_failed_run_says_so(tmp_path):
    with pytest.raises(RuntimeError), RunFolder.create(tmp_path, "broken") as run:
        run.write_experiment({"name": "broken"})
        raise RuntimeError("out of <memory>")
    page = write_report(run.path).read_text()
    assert "This run failed" in page and "RuntimeError: out of &lt;memory&gt;" in page


def test_two_reports_of_the_same_run_are_the_same(tmp_path):
    run = make_run(tmp_path, photos=False)
    assert write_report(run.path).read_bytes() == write_report(run.path).read_bytes()


@pytest.mark.parametrize("n_classes", [3, 14, 60])
def test_nothing_sticks_out_on_a_telephone_or_asks_the_network(tmp_path, browser, n_classes):
    report = write_report(make_run(tmp_path, n_classes=n_classes, photos=False).path)
    for width in (390, 1280):
        page, asked = browser.new_page(viewport={"width": width, "height": 844}), []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(report.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert all(url.startswith(("file:", "data:")) for url in asked)
        page.close()


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    "A bundle with random weights that two labels were asked of, and a run folder around it."
    import timm
    import torch

    from snakecls.data.demo.draw import make_demo
    from snakecls.evaluate.predictions import evaluate_bundle
    from snakecls.models.bundle import write_bundle

    root, labels = tmp_path_factory.mktemp("answered"), ["Micrurus fulvius", "Thamnophis sirtalis"]
    demo = make_demo(root / "demo", n_per_species=6, size_px=96, species=labels)
    paths = sorted((demo / "photos").rglob("*.jpg"))
    truth = [path.parent.name.replace("_", " ") for path in paths]
    keep = [i for i, label in enumerate(truth) if label in labels]
    table = pd.DataFrame({"path": [str(paths[i]) for i in keep], "label": [truth[i] for i in keep]})
    with RunFolder.create(root / "runs", "looked") as run:
        torch.manual_seed(0)
        info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 2}}, "labels": labels, "photo": {"size": 96}, "target": "label",
                "label_facts": {labels[0]: {"venomous": True}, labels[1]: {"venomous": False}}}
        write_bundle(run / "best", timm.create_model("test_resnet", num_classes=2), info)
        predictions, scores = evaluate_bundle(run / "best", table)
        predictions.to_parquet(run / "predictions-test.parquet")
        run.write_metrics({"name": "looked", "labels": labels, "test": scores, "problem": "single_label"})
    return run, predictions


def test_where_it_looked_stands_beside_mistakes_with_a_deletion_score(answered):
    from snakecls.data.photos import PhotoSpec
    from snakecls.evaluate.explain import class_map, deletion_curve
    from snakecls.models.bundle import load_model, read_bundle
    from snakecls.workflow.run_report import write_run_report

    run, predictions = answered
    wrong = predictions[predictions.label != predictions.predicted]
    page = write_run_report(run).read_text()
    looks = re.findall(r'class="look" src="data:image/jpeg[^"]*" alt="where the network looked for ([^"]*)"', page)
    assert len(wrong) and 1 <= len(looks) <= 8 and set(looks) == set(wrong.predicted) and "deletion score" in page
    assert len(page.encode()) < 5_000_000 and all(address.startswith("data:") for address in parse(page).found)
    opened = read_bundle(run / "best")
    network, row = load_model(opened).eval(), wrong.iloc[0]
    number = list(opened.info.labels).index(row.predicted)
    assert isinstance(opened.info.photo, PhotoSpec)
    found = class_map(network, row.path, opened.info.photo, number)
    fall = deletion_curve(network, row.path, opened.info.photo, number, found=found, steps=4, n_random=2)
    assert found.how == "exact" and f"for {row.predicted}: score {fall['area']:.2f}, at random {fall['random_area']:.2f}" in page


def test_a_model_that_cannot_be_shown_says_why_and_the_page_is_written(answered, tmp_path):
    import shutil

    from snakecls.workflow.run_report import write_run_report

    run, _ = answered
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    (copy / "best" / "weights.safetensors").write_bytes(b"broken")
    page = write_run_report(copy).read_text()
    assert "Where the network looked is not shown: " in page and 'class="look"' not in page and "Confusion matrix" in page


def test_two_classes_have_curves_and_their_areas_are_those_of_scikit_learn(answered):
    from sklearn.metrics import average_precision_score, roc_auc_score

    run, predictions = answered
    page, label = write_report(run.path).read_text(), "Thamnophis sirtalis"
    truth = predictions.label == label
    assert "Every threshold" in page and f"{label} {roc_auc_score(truth, predictions.p_1):.2f}" in page
    assert f"{label} {average_precision_score(truth, predictions.p_1):.2f}" in page


def test_more_than_two_classes_of_one_label_have_no_curves(tmp_path):
    assert "Every threshold" not in write_report(make_run(tmp_path, n_classes=5, photos=False).path).read_text()


def test_a_run_says_what_its_calibration_could_not_do(tmp_path):
    run = make_run(tmp_path, n_classes=3, photos=False)
    measured = {"ece": 0.1, "low": 0.05, "high": 0.2, "brier": 0.3, "loss": 0.5, "n": 12, "kind": "adaptive", "bins": 1, "table": [[0.8, 0.7, 12]]}
    trust = {"source": {"from": "calibration", "n": 12, "groups": 12}, "reliability": {"label": {"before": measured, "after": measured | {"ece": 0.12, "loss": 0.6}}},
             "conformal": {"label": {"score": "lac", "coverage": 0.9, "n": 12, "n_classes": 3, "threshold": 0.9, "notes": [],
                                     "expected": {"coverage": 0.91, "macro_coverage": 0.9, "size": 1.5, "single": 0.5, "fixed": 2.0}}}}
    run.write_metrics(run.metrics() | {"trust": trust, "temperature": 1.3})
    run.write_experiment({"name": "fake", "data": {"source": "photos.csv", "calibration": 0.1}})
    pd.DataFrame({"path": [str(i) for i in range(40)], "split": ["calibration"] * 12 + ["train"] * 28}).to_parquet(run / "manifest.parquet")
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", write_report(run.path).read_text()))
    for text in ("On photos that it was not fitted on, the temperature did not help (log loss 0.500, then 0.600",
                 "The promise of 90% is rough, as it comes from 12 photos", "data.calibration asked for 10% of the training photos; 12 of 40 (30%) were set aside",
                 "1 bin of all photos", "The promise: for 90 of 100 photos, the right label is among those named", "Promised and measured"):
        assert text.replace("Promised and measured", "How sure it is") in page, text
