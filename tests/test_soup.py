"""A greedy soup: who stays is decided by the rule alone, batch norm is measured where it moved, and what has no mean is refused."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import draw_colours
from typer.testing import CliRunner

from snakecls.cli import app
from snakecls.core import UserError
from snakecls.deploy.predict import Predictor
from snakecls.disk import read_json, read_parquet
from snakecls.evaluate.ensembles import average_weights
from snakecls.experiment.file import make_experiment
from snakecls.models.bundle import load_model, read_bundle, read_weights
from snakecls.train.metrics import f1_macro_score
from snakecls.workflow.run import run_experiment
from snakecls.workflow.run_folder import RunFolder
from snakecls.workflow.soup import Soup, _measure_layers, _moved_layers, _try_all, check_members, greedy_soup, soup_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunFolder]:
    "One pretrained network, fine-tuned with two seeds; batch norm moved in the upper blocks alone."
    folder = tmp_path_factory.mktemp("runs")
    draw_colours(folder / "photos", step=6)
    values = {
        "data": {"source": str(folder / "photos"), "test": 0.2, "valid": 0.4, "seed": 0}, "model": {"arch": "tf_efficientnet_lite0"},
        "train": {"num_workers": 0, "image_cache": 0, "batch_norm": "frozen"}, "track": [], "predict": {"examples": 0},
        "schedule": [{"size": 32, "epochs": 1, "freeze": 5, "lr": 0.005, "bs": 8}]}
    experiments = [make_experiment(values | {"name": f"seed{seed}", "seed": seed}) for seed in (1, 2)]
    return [run_experiment(one, root=folder / "runs", logbook=None, say=lambda text: None).run for one in experiments]


class Scripted:
    "A kitchen whose means have the scores of a script."

    def __init__(self, scores: dict[tuple[int, ...], float]):
        self.scores, self.now, self.weights = scores, (), range(9)

    def mix(self, members): self.now = tuple(members)
    def answer(self, members): return self.now
    def score(self, answers): return self.scores[answers]


def test_one_stays_where_the_mean_is_not_worse(runs):
    "Also where it is as good; and what was left out is in no later mean."
    scores = {(0,): 0.8, (0, 1): 0.79, (0, 2): 0.8, (0, 2, 3): 0.85}
    members, steps, answers = _try_all(Scripted(scores), [runs[0]] * 4)
    assert members == [0, 2, 3] and [step["kept"] for step in steps] == [True, False, True, True]
    assert answers == [(0,), (0, 2), (0, 2, 3)]
    members, _, _ = _try_all(Scripted({(0,): 0.8, (0, 1): 0.7999}), [runs[0]] * 2)
    assert members == [0]


def test_batch_norm_is_measured_where_it_moved_alone(runs):
    bundles = [run / "best" for run in runs]
    names, weights = _moved_layers(bundles), average_weights(bundles)
    all_layers = [name.removesuffix(".running_var") for name in weights if name.endswith("running_var")]
    assert 0 < len(names) < len(all_layers)
    model = load_model(bundles[0])
    model.load_state_dict(weights)
    manifest = read_parquet(runs[0] / "manifest.parquet")
    paths, spec = manifest["path"][manifest["split"] == "train"].tolist(), read_bundle(bundles[0]).info.photo
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(names[0])  # what comes into it went through layers that were held
    hook = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    _measure_layers(model, names, paths, spec)
    hook.remove()
    assert torch.allclose(layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), atol=1e-5)
    assert torch.allclose(layer.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0), rtol=1e-4)
    kept = {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] not in names}
    assert all(torch.equal(value, weights[name]) for name, value in kept.items())
    assert not any(module.training for module in model.modules())


def test_the_soup_is_a_bundle_that_says_how_it_was_chosen(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("snakecls.workflow.soup._Kitchen.score", lambda self, answers: 0.5)  # as good with each other run
    soup = greedy_soup(runs, tmp_path / "soup")
    assert soup.won and sorted(soup.runs) == sorted(run.id for run in runs) and soup.batch_norm == "measured anew"
    info = read_bundle(soup.bundle).info
    assert info.extra["mean_of"] == soup.runs and info.metrics["valid"]["chosen_on"] == ["runs"] and info.metrics["test"]["n"] == 12
    manifest = read_parquet(runs[0] / "manifest.parquet")
    for split in ("valid", "test"):  # what is served has the scores that it says
        photos = manifest[manifest["split"] == split]
        predictor = Predictor(soup.bundle)
        said = [predictor.labels[i] for i in predictor.probs(photos["path"].tolist()).argmax(1)]
        assert f1_macro_score(photos["label"].tolist(), said) == pytest.approx(info.metrics[split]["f1_macro"])
    text = soup_text(soup)
    assert "that score is too good; by how much is not known" in text and "test photos, which chose nothing" in text
    weights = read_weights(read_bundle(soup.bundle))
    mean = average_weights([run / "best" for run in runs])
    assert all(torch.equal(value, weights[name]) for name, value in mean.items() if name.endswith("weight"))
    with pytest.raises(UserError, match="exists already"):
        greedy_soup(runs, tmp_path / "soup")


def test_where_nothing_is_won_the_best_run_stays(runs, tmp_path, monkeypatch):
    scores = iter([0.9, 0.1])
    monkeypatch.setattr("snakecls.workflow.soup._Kitchen.score", lambda self, answers: next(scores))
    soup: Soup = greedy_soup([run.path for run in runs], tmp_path / "soup")
    best = max(runs, key=lambda run: run.metrics()["valid"]["f1_macro"])
    assert not soup.won and soup.bundle == best / "best" and not (tmp_path / "soup").exists()
    assert "Nothing was won" in soup_text(soup) and soup_text(soup).endswith(f"the best run stays, {best.id}.")


def test_an_ensemble_of_the_same_network_is_told(runs, tmp_path, monkeypatch):
    "As two runs of one experiment and seed are."
    double = RunFolder(Path(shutil.copytree(runs[0].path, runs[0].path.parent / "double")))
    try:
        for pair, same in (((runs[0], double), True), (runs, False)):
            done = CliRunner().invoke(app, ["ensemble", *(str(run.path) for run in pair)])
            assert done.exit_code == 0 and ("the same probabilities, as the same network does, so nothing is won" in done.stdout) == same, done.exception
        monkeypatch.chdir(tmp_path)
        shutil.copytree(runs[0] / "best", "served")  # a bundle outside of a run has no answers
        for more in ([], ["--soup", "--output", "new"]):
            done = CliRunner().invoke(app, ["ensemble", "./served", str(runs[1].path), *more])
            assert isinstance(done.exception, UserError) and "the bundle served lies outside of a run" in str(done.exception), done.exception
    finally:
        shutil.rmtree(double.path)


def test_what_has_no_mean_is_refused_in_one_sentence(runs, tmp_path):
    def changed(name: str, file: str, change) -> RunFolder:
        shutil.copytree(runs[1].path, tmp_path / name)
        path: Path = tmp_path / name / file
        path.write_text(json.dumps(change(read_json(path))))
        return RunFolder(tmp_path / name)

    def without_seal(values: dict) -> dict:
        return {key: value for key, value in values.items() if key != "seal"} | {"format": 1}

    other = changed("other", "metrics.json", lambda values: values)
    table = read_parquet(other / "predictions-valid.parquet")
    table.iloc[1:].to_parquet(other / "predictions-valid.parquet")
    for run, sentence in (
        (runs[0], "two or more different runs"), (other, "other validation photos"),
        (changed("final", "metrics.json", lambda values: values | {"final": {"winner": "x"}}), "train --final"),
        (changed("refit", "metrics.json", lambda values: values | {"refit": True}), "train.refit"),
        (changed("early", "metrics.json", lambda values: values | {"valid": None}), "no answers to its validation photos"),
        (changed("scratch", "best/bundle.json", lambda values: without_seal(values) | {"weights_source": "elsewhere"}), "differ in 'weights_source'"),
        (changed("labels", "best/bundle.json", lambda values: without_seal(values) | {"labels": ["red", "green"]}), "differ in 'labels'"),
    ):
        with pytest.raises(UserError) as error:
            check_members([runs[0], run])
        assert sentence in str(error.value) and "\n" not in str(error.value)
    assert {read_bundle(runs[0] / "best").info.labels[0]} == {"green"}


def test_runs_with_the_same_weights_add_nothing_and_it_is_said(runs, tmp_path):
    shutil.copytree(runs[0].path, tmp_path / "twin")
    twin = RunFolder.open(tmp_path / "twin")
    soup = greedy_soup([runs[0], twin], tmp_path / "soup")
    assert not soup.won and "all have the same weights" in soup_text(soup) and not (tmp_path / "soup").exists()
    shutil.copytree(runs[1].path, tmp_path / "other")
    four = greedy_soup([*runs, twin, RunFolder.open(tmp_path / "other")], tmp_path / "soup")
    assert "the same weights as" in soup_text(four) and len(four.runs) <= 2  # of the best one at least
