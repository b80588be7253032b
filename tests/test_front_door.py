"""The front door: `from snakecls import *`, and fastai's habits on the Learner that it gives."""
import ast
import json
import subprocess
import sys
import warnings
from functools import partial  # noqa: F401
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

matplotlib.use("Agg")
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat  # noqa: F401  named in WRONG and HABITS, as others below
from fastai.metrics import F1Score, accuracy, accuracy_multi, error_rate, top_k_accuracy  # noqa: F401
from fastai.optimizer import Adam, OptimWrapper  # noqa: F401
from fastai.vision.augment import Resize, aug_transforms  # noqa: F401
from fastai.vision.core import PILImage, TensorImage
from fastcore.foundation import L
from torch import nn
from torchvision.models import resnet18  # noqa: F401

import snakecls
from snakecls import *  # noqa: F403
from snakecls.core import IdleWarning, UserError
from snakecls.models.freezing import stage_groups

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
    "photo_learner(PHOTOS.drop(columns='split'), target=[])": "target",
    "photo_learner(PHOTOS, network(3), batch_size=4)": "photo_learner has no argument 'batch_size'; here it is called bs",
    "photo_learner(PHOTOS, network(3), sise=32)": "photo_learner has no argument 'sise'; did you mean 'size'",
    "photo_learner(PHOTOS, label='genus')": "photo_learner has no argument 'label'; here it is called target",
    "photo_learner(PHOTOS, network(3), size=-5)": "size|photo.size",
    "photo_learner(PHOTOS, network(3), seed=2**70)": "seed is [0-9]+; give a whole number of at most",
    "photo_learner(PHOTOS, network(3), seed='x')": "seed is 'x', and photo_learner takes int",
    "photo_learner(PHOTOS, network(3), optimiser=partial(torch.optim.AdamW))": "optimiser is torch's AdamW; give partial.OptimWrapper",
    "photo_learner(PHOTOS, network(3), optimiser=OptimWrapper)": "optimiser is OptimWrapper without an optimiser in it",
    "photo_learner(PHOTOS, network(3), metrics=partial(accuracy_multi, thresh=0.3))": "metrics hold accuracy_multi, which does not take",
    "photo_learner(PHOTOS, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))": "the network .Sequential. has no weights",
    "record_run(None, LEARN)": "name is None, and record_run takes str",
    "record_run('a', LEARN, question=5)": "question is 5, and record_run takes str",
    "record_run('a', LEARN, say=None)": "say is None; give a function",
    "photo_dls(PHOTOS, size=(64, 96))": "size is .64, 96., and photo_dls takes int",
    "photo_dls(PHOTOS, bs='8')": "bs is '8', and photo_dls takes int",
    "photo_dls(PHOTOS, num_workers=-1)": "num_workers is -1; give 0",
    "photo_dls(PHOTOS, device='gpu')": "device 'gpu' cannot be used here",
    "photo_learner(PHOTOS, None)": "arch is None; give a name, or a network of your own",
    "photo_learner(PHOTOS, resnet18)": "arch is the function resnet18; give its name, 'resnet18', or a network of your own",
    "photo_learner(PHOTOS, weights=None)": "weights is None; give 'auto', 'none' for random ones",
    "photo_learner(PHOTOS, augment={'flip': False})": "augment is .'flip': False., and photo_learner takes Augment",
    "photo_learner(PHOTOS, loss=3)": "loss is 3; give a name",
    "photo_learner(PHOTOS, metrics='accuracy')": "metrics is 'accuracy'; give a list",
    "photo_learner(PHOTOS, metrics=accuracy_multi)": "metrics hold accuracy_multi, which does not take one label on a photo",
    "photo_learner(PHOTOS, loss=CrossEntropyLossFlat)": "loss is the class CrossEntropyLossFlat; give a loss made of it",
    "photo_learner(PHOTOS, loss=BCEWithLogitsLossFlat())": "loss BCEWithLogitsLossFlat does not take one label on a photo .*CrossEntropyLossFlat",
    "photo_learner(PHOTOS, optimiser=None)": "optimiser is None; give a name",
    "photo_learner(PHOTOS, optimiser=torch.optim.Adam)": "optimiser is torch's Adam; give partial.OptimWrapper, opt=torch.optim.Adam",
    "photo_learner(PHOTOS, flip='no')": "flip is 'no', and photo_learner takes bool .*give True or False",
    "load_table('photos.csv', multi_label='no')": "multi_label is 'no', and load_table takes bool .*give True or False",
    "photo_learner(PHOTOS, target=[])": "target .. is empty or names a column twice",
    "photo_learner(PHOTOS, 'test_resnet', weights='none', drop_rate=2.0)": "drop_rate is 2.0.*give a number from 0 to 1",
    "photo_learner(PHOTOS, network(2), size=32)": "gives 2 outputs for a photo, and there are 3 labels .*give it an output for each",
    "photo_learner(PHOTOS, network(3), size=32, target=['binomial', 'genus'])": "the network .Sequential. has no get_classifier",
    "photo_learner(PHOTOS, 'test_resnet', weights='none', seed='a')": "seed is 'a', and photo_learner takes int",
    "progressive_stages('64')": "sizes is '64', and progressive_stages takes Sequence",
    "progressive_stages((0, 64))": "the sizes are .0, 64.; give the pixels",
    "progressive_stages(())": "the sizes are ..; give the pixels",
    "progressive_fit(LEARN, [{'size': 64, 'epochs': 1}])": "stages is .*and progressive_fit takes Sequence.Stage",
    "progressive_fit(PHOTOS, progressive_stages((64,)))": "learn is (?s:.*)and progressive_fit takes Learner",
    "save_bundle(LEARN, None)": "folder is None, and save_bundle takes",
    "record_run('x', None)": "learn is None, and record_run takes Learner",
    "photo_learner(PHOTOS, nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), size=32)": "has lazy layers, which are not made yet; give it a batch first",
    "photo_learner(PHOTOS[['path']])": "the table has no column 'label'",
    "run_experiment({'name': 'x'})": "experiment is .'name': 'x'., and run_experiment takes Experiment",
    "check_source(None)": "data.source is",
    "Predictor(None)": "bundle is None, and Predictor takes",
}


HABITS = {  # a keyword of fastai or timm -> the end of its sentence, in `photo_learner`
    "batch_size=8": "here it is called bs.", "loss_func=CrossEntropyLossFlat()": "here it is called loss.", "opt_func=Adam": "here it is called optimiser.",
    "cbs=[]": "give them to learn.add_cbs(…), or as cbs=… to a fit.", "lr=1e-3": "give lr=… to a Stage, or to the fit of the Learner itself.",
    "wd=0.1": "give wd=… to a Stage, or to the fit of the Learner itself.", "n_out=3": "leave it out, as there is one output for each label of the training photos.",
    "num_classes=7": "leave it out, as there is one output for each label of the training photos.", "n_classes=5": "leave it out, as there is one output for each label of the training photos.",
    "labels=['a']": "(photo_dls takes them in another order).", "pretrained=False": "here it is called weights ('none' for random ones).",
    "item_tfms=Resize(64)": "here it is called augment, such as augment=Augment(flip=False).", "batch_tfms=aug_transforms()": "such as augment=Augment(flip=False).",
    "valid_pct=0.2": "such as split_table(table, valid=0.2).", "normalize=True": "as photos are normalised as the weights of the network want them.",
    "sise=64": "did you mean 'size'?", "colour=2": "tf_efficientnet_lite0 takes none either, so leave it out.",
}  # fmt: skip


@pytest.mark.parametrize("given", HABITS)
def test_what_fastai_calls_otherwise_is_told_in_one_line(given, photos):
    with pytest.raises(UserError) as refused:
        eval(f"photo_learner(PHOTOS, size=64, num_workers=0, {given})", globals() | {"PHOTOS": photos})
    said = str(refused.value)
    assert said.startswith(f"photo_learner has no argument '{given.partition('=')[0]}'; ") and said.endswith(HABITS[given]) and "\n" not in said


@pytest.mark.parametrize("call, said", {
    "load_table('a.csv', valid_pct=0.2)": "load_table has no argument 'valid_pct'; give the shares to split_table",
    "split_table(PHOTOS, valid_pct=0.2)": "split_table has no argument 'valid_pct'; here it is called valid, a share such as 0.2.",
    "photo_dls(PHOTOS, batch_size=8)": "photo_dls has no argument 'batch_size'; here it is called bs.",
    "progressive_fit(LEARN, [], lr=1e-3)": "progressive_fit has no argument 'lr'; give lr=… to a Stage",
    "progressive_fit(LEARN, [], monitor='accuracy')": "give saver=SaveBestF1('…') to progressive_fit.",
    "progressive_stages((32,), batch_size=8)": "progressive_stages has no argument 'batch_size'; here it is called bs.",
    "save_bundle(LEARN, 'best', label_facts='f.csv')": "save_bundle has no argument 'label_facts'; did you mean 'facts'?",
    "Predictor('best', devise='cpu')": "Predictor has no argument 'devise'; did you mean 'device'?",
    "SaveBestF1(metric='accuracy')": "SaveBestF1 has no argument 'metric'; it takes monitor, rule, ",
    "record_run('x', LEARN, batch_size=8)": "record_run has no argument 'batch_size'; give bs=… to photo_learner",
    "record_run('x', LEARN, foo=8)": "record_run has no argument 'foo'; it takes name, learn, question, parent, ",
    "check_source('photos', workers=2)": "check_source has no argument 'workers'; did you mean 'n_workers'?",
}.items())  # fmt: skip
def test_a_name_that_is_not_there_is_told_in_the_words_of_the_function_that_was_called(call, said, learn, photos):
    with pytest.raises(UserError) as refused:
        eval(call, globals() | {"PHOTOS": photos, "LEARN": learn})
    assert said in str(refused.value)


def network(n):
    "A network of one's own with n outputs."
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, n))


def told_while(call):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = call()
    return result, [str(one.message) for one in told if issubclass(one.category, IdleWarning)]


@pytest.mark.parametrize("metrics", [accuracy, [accuracy], (accuracy,)])
def test_one_metric_is_as_good_as_a_list(metrics, photos, tmp_path):
    made = photo_learner(photos, network(3), size=32, bs=8, num_workers=0, path=tmp_path, metrics=metrics)  # noqa: F405
    assert [metric.name for metric in made.metrics] == ["accuracy"]


def test_a_list_of_one_target_is_that_target(photos, tmp_path):
    options = {"size": 32, "bs": 8, "num_workers": 0, "path": tmp_path}
    one, listed = (photo_learner(photos, network(3), target=target, **options) for target in ("binomial", ["binomial"]))  # noqa: F405
    assert type(listed.loss_func) is type(one.loss_func) and list(listed.dls.vocab) == list(one.dls.vocab)
    with listed.no_bar(), listed.no_logging():
        listed.fit(1)
    dls = photo_dls(photos, 32, target=["label"], labels={"label": sorted(photos.label.unique())[::-1]}, bs=8, num_workers=0)  # noqa: F405
    assert list(dls.vocab) == sorted(photos.label.unique())[::-1]


def test_outputs_to_spare_are_told_and_no_bundle_is_made_of_them(photos, tmp_path):
    make = lambda: photo_learner(photos, network(7), size=32, bs=8, num_workers=0, path=tmp_path)  # noqa: E731, F405
    made, told = told_while(make)
    assert any("gives 7 outputs for a photo, and there are 3 labels" in note for note in told)
    with made.no_bar(), made.no_logging():
        made.fit(1)
        assert made.predict(photos.path[0])[2].shape == (7,)  # as before
    for call in (lambda: save_bundle(made, tmp_path / "best"), lambda: record_run("seven", made, root=tmp_path, logbook=None).__enter__()):  # noqa: F405
        with pytest.raises(UserError, match="gives 7 outputs for a photo, and there are 3 labels"):
            call()


def test_a_bundle_is_refused_where_the_loaders_have_other_labels(learn, photos, tmp_path):
    learn.dls = photo_dls(photos[photos.label != "Micrurus fulvius"], 64, bs=8, num_workers=0)  # noqa: F405
    with pytest.raises(UserError, match="gives 3 outputs for a photo, and there are 2 labels .* the loaders that it was made with"):
        save_bundle(learn, tmp_path / "best")  # noqa: F405


def test_a_network_is_looked_at_without_a_trace(photos, tmp_path):
    own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    own[1].eval()
    before = {name: values.clone() for name, values in own.state_dict().items()}
    photo_learner(photos, own, size=32, bs=8, num_workers=0, path=tmp_path, seed=5)  # noqa: F405
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert all(torch.equal(values.cpu(), before[name]) for name, values in own.state_dict().items())
    assert [module.training for module in own] == [True, False, True, True, True, True] and torch.equal(drawn, torch.rand(3))


def test_settings_of_a_network_that_is_made_already_are_told(photos, tmp_path):
    make = lambda: photo_learner(photos, network(3), size=32, num_workers=0, path=tmp_path, drop_rate=0.1, weights="none")  # noqa: E731, F405
    _, told = told_while(make)
    assert [note.partition(" does nothing")[0] for note in told] == ["drop_rate", "weights"]


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_a_loss_that_leaves_answers_raw_is_told(loss, photos, tmp_path):
    make = lambda loss: told_while(lambda: photo_learner(photos, network(3), size=32, bs=8, num_workers=0, path=tmp_path, loss=loss))  # noqa: E731, F405
    made, told = make(loss)
    assert any("learn.predict and get_preds give the network's answers as they are" in note for note in told)
    assert make(CrossEntropyLossFlat())[1] == []
    with made.no_bar(), made.no_logging():
        made.fit(1)
        assert abs(float(made.predict(photos.path[0])[2].sum()) - 1) > 1e-3  # which is what the note is about


def test_a_loss_of_ones_own_is_not_tried(photos, tmp_path):
    seen = []

    def loss(answers, targets):
        seen.append(len(targets))
        return F.cross_entropy(answers, targets)

    photo_learner(photos, network(3), size=32, num_workers=0, path=tmp_path, loss=loss)  # noqa: F405
    assert seen == []


def test_metrics_are_taken_as_fastai_takes_them(photos, tmp_path):
    for metrics in (L(accuracy), L(accuracy, error_rate), (accuracy,), [F1Score(average="macro")]):
        made = photo_learner(photos, network(3), size=32, num_workers=0, path=tmp_path, metrics=metrics)  # noqa: F405
        assert len(made.metrics) == len(list(metrics))
    spare = photo_learner(photos, network(7), size=32, num_workers=0, path=tmp_path, metrics=top_k_accuracy)  # noqa: F405
    assert [metric.name for metric in spare.metrics] == ["top_k_accuracy"]


def test_a_single_layer_is_a_network(photos, tmp_path):
    layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    for model in (layer, nn.Conv2d(3, 3, 1)):
        assert len(stage_groups(model)) == 1
    assert photo_learner(photos, layer, size=32, num_workers=0, path=tmp_path).fit(1) is None  # noqa: F405


def test_a_seed_below_zero_is_told(photos, tmp_path):
    _, told = told_while(lambda: photo_learner(photos, network(3), size=32, num_workers=0, path=tmp_path, seed=-1))  # noqa: F405
    assert any("seed is -1, which gives the same results each time" in note for note in told)


def test_the_learners_folder_is_there_when_it_is_exported(photos, tmp_path):
    made = photo_learner(photos, network(3), size=32, num_workers=0, path=tmp_path / "new" / "deep")  # noqa: F405
    made.export("e.pkl")
    assert (tmp_path / "new" / "deep" / "e.pkl").is_file()


def test_a_missing_monitor_is_told_with_how_another_is_given(photos, tmp_path):
    made = photo_learner(photos, "test_resnet", weights="none", size=32, bs=8, num_workers=0, path=tmp_path, metrics=accuracy)  # noqa: F405
    stages = [Stage(32, epochs=1, bs=8, head="keep")]  # noqa: F405
    with pytest.raises(UserError, match=r"monitor 'f1_macro' is not measured by this Learner; choose one of .*accuracy, such as SaveBestF1\('accuracy'\)"):
        progressive_fit(made, stages)  # noqa: F405
    with made.no_bar(), made.no_logging():
        assert progressive_fit(made, stages, saver=SaveBestF1("accuracy")).best["monitor"] == "accuracy"  # noqa: F405


def test_a_run_stands_for_its_bundle(learn, photos, tmp_path):
    bundle = save_bundle(learn, tmp_path / "run" / "best")  # noqa: F405
    expected = Predictor(bundle).probs(photos.path[:2])  # noqa: F405
    assert (Predictor(tmp_path / "run").probs(photos.path[:2]) == expected).all()  # noqa: F405
    again = create_backbone("test_resnet", 3, weights=tmp_path / "run", labels=Predictor(bundle).labels)  # noqa: F405
    assert all(torch.equal(values, again.state_dict()[name]) for name, values in learn.model.cpu().state_dict().items())
    with pytest.raises(UserError, match="has no bundle.json"):
        Predictor(tmp_path)  # noqa: F405


def test_predict_takes_a_tensor_as_in_fastai(learn, photos):
    pixels = np.asarray(PILImage.create(photos.path[0]))
    expected = learn.predict(photos.path[0])[2]
    for given in (TensorImage(torch.tensor(pixels).permute(2, 0, 1)), torch.tensor(pixels), pixels):
        assert torch.equal(learn.predict(given)[2], expected)


def test_loaders_split_a_table_as_photo_learner_does(photos, tmp_path):
    bare = photos.drop(columns="split")
    dls = photo_dls(bare, 32, bs=8, num_workers=0)  # noqa: F405
    made = photo_learner(bare, network(3), size=32, bs=8, num_workers=0, path=tmp_path)  # noqa: F405
    other = photo_dls(bare[["path", "label"]].rename(columns={"label": "kind"}), 32, target="kind", bs=8, num_workers=0)  # noqa: F405
    assert list(other.valid_ds.items.path) == list(dls.valid_ds.items.path) and "label" not in other.valid_ds.items
    assert list(dls.valid_ds.items.path) == list(made.dls.valid_ds.items.path) == list(dls.rebuild(size=48, seed=3).valid_ds.items.path)


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
