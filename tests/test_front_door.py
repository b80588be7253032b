"""The front door: `from snakecls import *`, and fastai's habits on the Learner that it gives."""
import ast
import json
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner
from torch import nn

import snakecls
from snakecls import *  # noqa: F403
from snakecls.core import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    demo = make_demo(folder, n_per_species=10, size_px=64, species=["Micrurus fulvius", "Crotalus adamanteus", "Thamnophis sirtalis"], n_workers=1)  # noqa: F405
    return load_table(demo / "photos.csv", target="binomial")  # noqa: F405


@pytest.fixture
def learn(photos, tmp_path):
    made = photo_learner(photos, "test_resnet", size=64, bs=8, weights="none", num_workers=0, path=tmp_path)  # noqa: F405
    with made.no_bar(), made.no_logging():
        yield made


def test_import_is_quick_and_loads_nothing_heavy():
    code = "import sys, time; t = time.perf_counter(); import snakecls; took = time.perf_counter() - t; print(took); print(*sys.modules)"
    found = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout.split("\n") for _ in range(3)]
    assert min(float(lines[0]) for lines in found) < 0.2
    assert not {"torch", "fastai", "timm", "pandas", "numpy", "PIL", "pydantic", "sklearn"} & set(found[0][1].split())


def test_the_names_for_editors_are_the_names_that_are_loaded():
    tree = ast.parse(Path(snakecls.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    for_editors = {alias.name: node.module for node in block.body for alias in node.names}
    assert for_editors == snakecls.FRONT, f"in FRONT or in the block for editors alone: {sorted(set(for_editors.items()) ^ set(snakecls.FRONT.items()))}; write a name in both"
    assert len(snakecls.FRONT) <= 17, f"the front door has {len(snakecls.FRONT)} names; it holds at most 17, so leave one to its module"


def test_a_wrong_name_is_told_with_those_that_are_there():
    with pytest.raises(AttributeError, match="photo_learner"):
        print(snakecls.photo_lerner)
    assert {"photo_learner", "__version__"} <= set(dir(snakecls))


def test_the_index_has_at_most_ten_lines_from_table_to_prediction():
    cells = json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code" and "from snakecls import *" in "".join(cell["source"]))
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10
    assert all(word in code for word in ("load_table", "photo_learner", "progressive_fit", "save_bundle", "Predictor"))


def test_progressive_fit_and_a_bundle_that_answers_as_the_learner(learn, photos, tmp_path):
    result = progressive_fit(learn, progressive_stages((32, 64), epochs=1, lr=1e-2, bs=8, mixup=0.2))  # noqa: F405
    bundle = save_bundle(learn, tmp_path / "best")  # noqa: F405
    probs = Predictor(bundle).probs(photos.path[:5])  # noqa: F405
    own, _ = learn.get_preds(dl=learn.dls.test_dl(list(photos.path[:5])))
    assert abs(probs - own.numpy()).max() < 1e-4
    assert result.best["value"] == pytest.approx(Predictor(bundle).info.metrics["valid"]["f1_macro"], abs=1e-6)  # noqa: F405


@pytest.mark.parametrize("arch", ["lenet5", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))])
def test_networks_from_scratch(photos, tmp_path, arch):
    made = photo_learner(photos, arch, size=32, bs=8, num_workers=0, path=tmp_path)  # noqa: F405
    with made.no_bar(), made.no_logging():
        made.fit_one_cycle(1, 1e-3)
    mean = made.dls.valid.one_batch()[0].float().mean()
    assert abs(mean) < 0.5  # normalised by the photos' own colours


def test_splits_are_made_where_there_are_none_and_are_the_same_again(photos, tmp_path):
    options = {"size": 32, "weights": "none", "num_workers": 0, "path": tmp_path}
    bare = photos.drop(columns="split")
    one, two = (photo_learner(bare, "test_resnet", **options) for _ in range(2))  # noqa: F405
    assert list(one.dls.valid_ds.items.path) == list(two.dls.valid_ds.items.path)
    assert len(one.dls.valid_ds) == round(0.2 * len(bare))
    assert "split" not in bare


@pytest.mark.parametrize("given", ["folder", None, 3])
def test_what_is_no_table_is_refused(given, tmp_path):
    with pytest.raises(UserError, match="load_table"):
        photo_learner(given, "test_resnet", path=tmp_path)  # noqa: F405


def test_several_labels_and_several_targets(photos, tmp_path):
    options = {"arch": "test_resnet", "size": 32, "bs": 8, "weights": "none", "num_workers": 0, "path": tmp_path}
    for table, target, names in (
        (photos.assign(labels=[[label, "snake"] for label in photos.label]).drop(columns="label"), None, ["accuracy", "f1_micro", "f1_macro"]),
        (photos, ["binomial", "genus"], ["accuracy", "f1_macro", "binomial_accuracy"]),
    ):
        made = photo_learner(table, target=target, **options)  # noqa: F405
        with made.no_bar(), made.no_logging():
            made.fit_one_cycle(1, 1e-3)
        assert set(names) <= {metric.name for metric in made.metrics}
        bundle = save_bundle(made, tmp_path / "best", say=lambda text: None)  # noqa: F405
        assert Predictor(bundle).predict(photos.path[0])  # noqa: F405


# fastai's habits, each on the Learner of photo_learner -------------------------------------------------------------


def test_show_batch_and_show_results(learn):
    learn.dls.show_batch(max_n=4)
    learn.show_results(max_n=3)


def test_lr_find(learn):
    assert learn.lr_find(num_it=6, show_plot=False).valley > 0


def test_fine_tune_and_fit_one_cycle(learn):
    learn.fine_tune(1, 1e-3)
    learn.fit_one_cycle(1, slice(1e-4, 1e-3))
    assert len(learn.recorder.values) == 1 and len(learn.opt.param_groups) > 2


def test_validate_and_get_preds(learn, photos):
    loss, accuracy, *_ = learn.validate()
    probs, targets = learn.get_preds()
    assert loss > 0 and accuracy == pytest.approx((probs.argmax(1) == targets).float().mean().item())


def test_tta(learn):
    probs, _ = learn.tta(n=2)
    assert probs.sum(1).numpy() == pytest.approx(1, abs=1e-5)


def test_predict_on_a_path_and_vocab(learn, photos):
    for photo in (photos.path[0], Path(photos.path[0])):
        label, number, probs = learn.predict(photo)
        assert label == learn.dls.vocab[number] and probs.argmax() == number


def test_test_dl(learn, photos):
    dl = learn.dls.test_dl(photos[:4], with_labels=True)
    probs, targets = learn.get_preds(dl=dl)
    assert probs.shape == (4, 3) and [learn.dls.vocab[i] for i in targets] == list(photos.label[:4])


def test_to_fp16_and_back(learn):
    assert any("MixedPrecision" in type(cb).__name__ for cb in learn.to_fp16().cbs)
    learn.to_fp32()
    learn.fit(1, 1e-3)


def test_interpretation(learn):
    found = ClassificationInterpretation.from_learner(learn)
    found.plot_top_losses(2)
    found.plot_confusion_matrix()
    assert found.confusion_matrix().sum() == len(learn.dls.valid_ds)


def test_export_and_load_learner(learn, photos, tmp_path):
    expected = learn.predict(photos.path[0])[2]
    learn.export(tmp_path / "export.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai warns of pickle
        again = load_learner(tmp_path / "export.pkl")
    with again.no_bar(), again.no_logging():
        assert again.predict(photos.path[0])[2].numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_loaded_learner_has_nothing_to_score_and_says_so(learn, tmp_path):
    learn.export(tmp_path / "export.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = load_learner(tmp_path / "export.pkl")
    with pytest.raises(UserError, match="no validation photos, as one that load_learner opened"):
        save_bundle(again, tmp_path / "bundle")  # noqa: F405
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("given", [["binomial", "genus"], ("binomial",), 3])
def test_a_table_has_one_label_and_several_targets_are_named_later(photos, given):
    with pytest.raises(UserError, match="is not one name.*photo_learner"):
        load_table(photos, target=given)  # noqa: F405


WRONG = {  # a call of the front door with something else than its hint says -> what its sentence begins with
    "load_table(None)": "source is None, and load_table takes",
    "load_table(['a.jpg'])": "source is .'a.jpg'., and load_table takes",
    "load_table(PHOTOS, splits=['train'])": "splits is .'train'., and load_table takes dict",
    "split_table(PHOTOS, valid='a')": "valid is 'a', and split_table takes float .share for validation",
    "photo_dls(PHOTOS, size=(64, 96))": "size is .64, 96., and photo_dls takes int",
    "photo_dls(PHOTOS, bs='8')": "bs is '8', and photo_dls takes int",
    "photo_dls(PHOTOS, num_workers=-1)": "num_workers is -1; give 0",
    "photo_dls(PHOTOS, device='gpu')": "device 'gpu' cannot be used here",
    "photo_learner(PHOTOS, None)": "arch is None, and create_backbone takes str",
    "photo_learner(PHOTOS, augment={'flip': False})": "augment is .'flip': False., and photo_learner takes Augment",
    "photo_learner(PHOTOS, loss=3)": "loss is 3; give a name",
    "photo_learner(PHOTOS, metrics='accuracy')": "metrics is 'accuracy'; give a list",
    "photo_learner(PHOTOS, 'test_resnet', weights='none', seed='a')": "seed is 'a', and photo_learner takes int",
    "progressive_stages('64')": "sizes is '64', and progressive_stages takes Sequence",
    "progressive_stages((0, 64))": "the sizes are .0, 64.; give the pixels",
    "progressive_stages(())": "the sizes are ..; give the pixels",
    "progressive_fit(LEARN, [{'size': 64, 'epochs': 1}])": "stages is .*and progressive_fit takes Sequence.Stage",
    "progressive_fit(PHOTOS, progressive_stages((64,)))": "learn is (?s:.*)and progressive_fit takes Learner",
    "save_bundle(LEARN, None)": "folder is None, and save_bundle takes",
    "run_experiment({'name': 'x'})": "experiment is .'name': 'x'., and run_experiment takes Experiment",
    "check_source(None)": "data.source is",
    "Predictor(None)": "bundle is None, and Predictor takes",
}


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_argument_is_named_with_what_is_taken(call, learn, photos):
    with pytest.raises(UserError, match=WRONG[call]):
        eval(call, globals() | {"PHOTOS": photos, "LEARN": learn})


def test_an_error_with_another_cause_stays_as_it_is(photos, monkeypatch):
    import snakecls.data.tables as tables

    def fail(*args, **kwargs):
        raise ValueError("the disk is gone")

    monkeypatch.setattr(tables, "read_table", fail)
    with pytest.raises(ValueError, match="the disk is gone"):
        load_table(photos)  # noqa: F405


def test_a_folder_is_checked_from_the_front_door(tmp_path, monkeypatch):
    make_demo(tmp_path / "demo", n_per_species=6, size_px=64, species=["Micrurus fulvius", "Thamnophis sirtalis"], n_workers=1)  # noqa: F405
    monkeypatch.chdir(tmp_path)
    assert check_source("demo/photos", files_only=True, n_workers=1).folder == Path("checks/photos")  # noqa: F405


def test_a_note_names_the_line_that_called(photos):
    with pytest.warns(UserWarning, match="max_warp") as told:
        photo_learner(photos, "test_resnet", size=64, weights="none", num_workers=0, augment=Augment(backend="albumentations", max_warp=0.3))  # noqa: F405
    assert {one.filename for one in told if "max_warp" in str(one.message)} == {__file__}
    with pytest.warns(UserWarning, match="do not grow") as told:
        progressive_stages((128, 64))  # noqa: F405
    assert [one.filename for one in told] == [__file__]
