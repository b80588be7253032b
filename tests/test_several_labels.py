"""Photos with several labels, from the bundle to the table, the report, the ensemble and the app's API."""
import numpy as np
import pandas as pd
import pytest

from conftest import FACTS

LISTS = [["Micrurus fulvius"], ["Natrix natrix", "Pantherophis guttatus"], [], list(FACTS), ["Crotalus adamanteus"]]
CUTS = [0.5, 0.45, 0.55, 0.4, 0.6]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, snake_photos):
    "Two bundles of several labels, and a table of photos."
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet", num_classes=len(FACTS))
        info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(FACTS)}}, "labels": list(FACTS), "photo": {"size": 64}, "flip": seed == 1,
                "label_facts": FACTS, "problem": "multi_label", "thresholds": CUTS, "target": "labels"}
        folders.append(write_bundle(tmp_path_factory.mktemp(f"run{seed}") / "best", model, info))
    return folders, pd.DataFrame({"path": [str(path) for path in snake_photos], "labels": LISTS})


def test_table_predictor_and_ensemble_agree(scenes):
    from snakecls.deploy.predict import EnsemblePredictor, Predictor
    from snakecls.evaluate.ensembles import ensemble_probs
    from snakecls.evaluate.predictions import evaluate_bundle, table_probs

    folders, photos = scenes
    tables = [evaluate_bundle(folder, photos)[0] for folder in folders]
    for folder, table in zip(folders, tables):
        predictor = Predictor(folder)
        np.testing.assert_allclose(predictor.probs(photos.path), table_probs(table), atol=1e-6)
        for path, predicted in zip(table.path, table.predicted):
            answer = predictor.predict(path)
            assert sorted(p.label for p in answer if p.above) == sorted(predicted)
            assert [p.prob for p in answer] == sorted((p.prob for p in answer), reverse=True)
            assert predicted or (len(answer) == 3 and not any(p.above for p in answer))
    together, served = ensemble_probs(tables, list(FACTS), thresholds=CUTS), EnsemblePredictor(folders)
    np.testing.assert_allclose(served.probs(photos.path), table_probs(together), atol=1e-6)
    assert served.info.thresholds == pytest.approx(CUTS)


def test_what_the_app_says(scenes):
    from snakecls.deploy.app import answer_json, show_answer
    from snakecls.deploy.predict import Predictor

    folders, photos = scenes
    predictor = Predictor(folders[0])
    for path in photos.path:
        page, rows, fitting = show_answer(predictor, path), answer_json(predictor, path), [p for p in predictor.predict(path) if p.above]
        assert page.count("sc-cut") == max(3, len(fitting)) and page.count("sc-below") == max(0, 3 - len(fitting))
        assert [row["above"] for row in rows] == ([True] * len(fitting) or [False] * 3)


def test_the_report_of_a_run_with_several_labels(scenes, tmp_path, browser):
    from snakecls.disk import write_json
    from snakecls.evaluate.predictions import evaluate_bundle
    from snakecls.evaluate.report import write_report

    folders, photos = scenes
    predictions, scores = evaluate_bundle(folders[0], photos)
    predictions.to_parquet(tmp_path / "predictions-test.parquet")
    write_json(tmp_path / "metrics.json", {"name": "scenes", "problem": "multi_label", "labels": list(FACTS), "test": scores, "thresholds": {"mode": "per_class", "values": CUTS}})
    (tmp_path / "best").mkdir()
    write_json(tmp_path / "best" / "bundle.json", {"label_facts": FACTS})
    report = write_report(tmp_path)
    text = report.read_text()
    for part in ("Label by label", "Labels together", "Most wrong labels", f"{scores['f1_macro']:.3f}", "venomous test photos", "0.45"):
        assert part in text, part
    assert "Confusion" not in text and "<script" not in text and ">nan<" not in text
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
