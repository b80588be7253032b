"Photos of other things: fitted at the end of a run, kept in the bundle, told by Predictor, command line and API, and carried by copies."
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import need, need_sources

from snakecls.core import UserError
from snakecls.deploy.predict import EnsemblePredictor, Predictor, join_probs
from snakecls.evaluate.decide import STRANGE as WORDS
from snakecls.evaluate.rejection import draw_others, tell_apart
from snakecls.models.bundle import copy_bundle, load_model, read_bundle, write_bundle
from snakecls.models.bundle_files import FEATURES_FILE, KNOWN_FILE

need_sources()
SIZE, SPECIES = 112, ["Vipera berus", "Natrix natrix", "Bungarus fasciatus", "Opheodrys aestivus"]

STRANGE = f"{WORDS}: do not rely on the names below."


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from snakecls.data.demo.draw import make_demo

    return make_demo(tmp_path_factory.mktemp("drawn") / "demo", n_per_species=30, size_px=128, seed=3, species=SPECIES, n_workers=1)


def run(demo, root, **more):
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow.run import run_experiment

    told = []
    values = {"name": "known", "data": {"source": str(demo / "photos.csv"), "target": "binomial", "group": "observation_id"}, "predict": {"examples": 1},
              "model": {"depths": [], "maximum": False}, "schedule": [{"size": SIZE, "epochs": 0, "head": "probe"}], "track": []}
    return run_experiment(make_experiment(values | more), root=root / "runs", logbook=None, say=told.append), told


@pytest.fixture(scope="module")
def probe(demo, tmp_path_factory):
    return run(demo, tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def tuned(demo, tmp_path_factory):
    "A fine-tuned network with the pretrained one beside it, as two of the snakes are venomous."
    schedule = [{"size": SIZE, "epochs": 1, "lr": 1e-3, "bs": 16, "head": "keep"}]
    data = {"source": str(demo / "photos.csv"), "target": "binomial", "group": "observation_id", "facts": str(demo / "facts.csv")}
    return run(demo, tmp_path_factory.mktemp("tuned"), schedule=schedule, data=data)


@pytest.fixture(scope="module")
def snakes(demo):
    table = pd.read_csv(demo / "photos.csv")
    return [str(demo / path) for path in table[table["split"] == "test"]["path"]]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things")
    for number, (kind, photo) in enumerate(draw_others(24, seed=99, size_px=128, kinds=("ground", "page", "wall", "blobs"))):
        photo.save(folder / f"{number:02}-{kind}.png")
    return sorted(map(str, folder.glob("*.png")))


@pytest.mark.parametrize("kind", ["probe", "tuned"])
def test_other_things_are_told_and_snakes_pass(kind, request, snakes, things):
    done, told = request.getfixturevalue(kind)
    assert any(line.startswith("Photos of other things are told, tuned on ") for line in told)
    found = {}
    for engine in ("auto", "torch"):
        predictor = Predictor(done.run / "best", engine=engine)
        assert predictor.decides
        (_, known), (_, others) = predictor.probs_known(snakes), predictor.probs_known(things)
        found[engine] = [np.array([one["score"] for one in scores]) for scores in (known, others)]
        assert np.mean([one["like"] for one in known]) > 0.8 and np.mean([one["like"] for one in others]) < 0.5
        assert tell_apart(*found[engine]) > 0.9
    np.testing.assert_allclose(np.concatenate(found["auto"]), np.concatenate(found["torch"]), atol=0.02)
    files = {file.name for file in (done.run / "best").iterdir()}
    assert KNOWN_FILE in files and (FEATURES_FILE in files) == (kind == "tuned")
    assert predictor.info.trust["rejection"].get("needs", "network") == (FEATURES_FILE if kind == "tuned" else "network")


def test_a_decision_says_it_first_and_promises_nothing(probe, snakes, things):
    predictor = Predictor(probe[0].run / "best")
    _, scores = predictor.probs_known(things)
    strangest = things[int(np.argmin([one["score"] for one in scores]))]
    strange = predictor.decide(strangest)
    assert strange.known == min(scores, key=lambda one: one["score"]) and set(strange.known) == {"score", "threshold", "like"}
    assert strange.sentences()[0] == STRANGE and strange.in_set is None and strange.promised is None
    json.dumps(strange.for_programs()["known"])
    _, scores = predictor.probs_known(snakes)
    clearest = predictor.decide(snakes[int(np.argmax([one["score"] for one in scores]))])
    assert clearest.known["like"] is True and STRANGE not in clearest.sentences() and clearest.promised == 0.9


def test_several_photos_of_one_animal_are_one_answer(probe, snakes):
    from snakecls.evaluate.scores import join_observations
    from snakecls.evaluate.predictions import probs_table

    predictor = Predictor(probe[0].run / "best")
    answers, known = predictor.probs_known(snakes[:3])
    probs, = answers.values()
    together = predictor.decide(snakes[:3])
    assert together.known["score"] == pytest.approx(np.mean([one["score"] for one in known]))
    joined = join_observations(probs_table(snakes[:3], None, probs, predictor.labels), ["a"] * 3, predictor.labels)
    np.testing.assert_allclose(join_probs(probs), joined[[f"p_{i}" for i in range(len(predictor.labels))]].to_numpy()[0], atol=1e-6)
    alone = predictor.decide([snakes[0]])
    np.testing.assert_array_equal(alone.probs, predictor.decide(snakes[0]).probs)
    with pytest.raises(UserError, match="at least one"):
        predictor.decide([])


def test_the_answer_itself_stays_the_same(probe, snakes):
    predictor = Predictor(probe[0].run / "best")
    np.testing.assert_array_equal(predictor.probs_known(snakes)[0]["binomial"], predictor.probs(snakes))


def test_flipped_photos_are_scored_as_they_are(probe, snakes, tmp_path):
    bundle = read_bundle(probe[0].run / "best")
    flips = write_bundle(tmp_path / "flips", load_model(bundle), replace(bundle.info, flip=True), known=bundle.known)
    ours, plain = (Predictor(folder).probs_known(snakes[:4], bs=2)[1] for folder in (flips, bundle.folder))
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in plain], abs=1e-5)


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def swap_link(file: Path) -> None:
    file.rename(file.with_suffix(".other"))
    file.symlink_to(file.with_suffix(".other"))


@pytest.mark.parametrize("name", [KNOWN_FILE, FEATURES_FILE])
@pytest.mark.parametrize(("damage", "said"), [(flip_bit, "copy the whole bundle again"), (Path.unlink, "is missing"), (swap_link, "is a link")])
def test_damaged_files_are_refused_in_a_sentence_and_not_copied(tuned, snakes, tmp_path, name, damage, said):
    folder = shutil.copytree(tuned[0].run / "best", tmp_path / "best")
    damage(folder / name)
    with pytest.raises(UserError, match=said) as found:
        Predictor(folder).decide(snakes[0])
    assert name in str(found.value)
    with pytest.raises(UserError, match=said):
        copy_bundle(read_bundle(folder), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_its_values_are_sealed(probe, tmp_path):
    folder = shutil.copytree(probe[0].run / "best", tmp_path / "best")
    values = json.loads((folder / "bundle.json").read_text())
    values["trust"]["rejection"]["threshold"] = -99
    (folder / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="damaged, or was edited"):
        read_bundle(folder)


@pytest.mark.parametrize("kind", ["probe", "tuned"])
def test_copies_answer_alike(kind, request, snakes, tmp_path):
    from snakecls.deploy.hub import write_space

    bundle = read_bundle(request.getfixturevalue(kind)[0].run / "best")
    copy = copy_bundle(bundle, tmp_path / "copy")
    space = write_space(bundle.folder, tmp_path / "space", space="me/snakes") / "bundle"
    expected = Predictor(bundle.folder).decide(snakes[0]).for_programs()
    assert all(Predictor(folder).decide(snakes[0]).for_programs() == expected for folder in (copy, space))
    assert sorted(file.name for file in copy.iterdir()) == sorted(file.name for file in bundle.folder.iterdir())


def test_what_cannot_be_carried_is_said(probe, tuned, snakes, tmp_path):
    from snakecls.deploy.export import LearnerPredictor
    from snakecls.workflow.ensemble import soup_runs

    bundle, told = read_bundle(probe[0].run / "best"), []
    again = write_bundle(tmp_path / "again", load_model(bundle), bundle.info, say=told.append)
    assert "does not tell photos that are unlike" in told[0] and "rejection" not in read_bundle(again).info.trust
    assert Predictor(again).decide(snakes[0]).known is None
    both = EnsemblePredictor([bundle.folder, bundle.folder])
    assert both.decide(snakes[0]).known is None and any("an ensemble does not tell photos" in note for note in both.notes)
    pickled = LearnerPredictor(probe[0].run / "export.pkl", trust=True)
    assert pickled.decide(snakes[0]).known is None and "the run's bundle does" in pickled.notes[0]
    mean = soup_runs([tuned[0].run / "best"] * 2, tmp_path / "soup")  # its pretrained features are those of both
    assert Predictor(mean).decide(snakes[0]).known == Predictor(tuned[0].run / "best").decide(snakes[0]).known
    told.clear()
    assert "rejection" not in read_bundle(soup_runs([bundle.folder] * 2, tmp_path / "probes", say=told.append)).info.trust and "does not tell" in told[0]


def test_a_bundle_from_before_answers_as_before(tiny_bundle, snake_photos):
    predictor = Predictor(tiny_bundle)
    assert predictor.known is None and not predictor.decides
    answers, known = predictor.probs_known(snake_photos)
    assert known == [None] * 5 and predictor.decide(snake_photos[0]).known is None
    np.testing.assert_array_equal(answers["binomial"], predictor.probs(snake_photos))


def test_without_onnxruntime_a_second_graph_is_not_asked(tuned, snakes, monkeypatch):
    from snakecls.deploy import predict

    monkeypatch.setattr(predict, "can_run_graphs", lambda: False)
    predictor = Predictor(tuned[0].run / "best")
    assert predictor.decide(snakes[0]).known is None and any("pip install onnxruntime" in note for note in predictor.notes)


def test_the_command_line_tells_it(probe, snakes, things):
    from typer.testing import CliRunner

    from snakecls.cli import app

    predictor = Predictor(probe[0].run / "best")
    strangest = min(things, key=lambda photo: predictor.decide(photo).known["score"])
    asked = ["predict", "--model", str(probe[0].run / "best"), strangest]
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 0 and STRANGE in " ".join(answer.stdout.split())
    answer = CliRunner().invoke(app, [*asked, snakes[0], "--json"])
    rows = json.loads(answer.stdout)
    rows = rows["photos"] if isinstance(rows, dict) else rows
    assert rows[0]["decision"]["known"]["like"] is False and rows[0]["decision"]["said"][0] == STRANGE and "set" not in rows[0]
    assert rows[1]["decision"]["known"] == predictor.decide(snakes[0]).known


def test_a_photo_is_told_without_torch_or_pandas(tuned, snakes):
    need("onnxruntime")
    code = (f"import sys; from snakecls.deploy.predict import Predictor; print(Predictor({str(tuned[0].run / 'best')!r}).decide({snakes[0]!r}).known['like']); print(*sys.modules)")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent).stdout.splitlines()
    assert said[0] in ("True", "False") and not {"torch", "pandas", "scipy", "sklearn", "timm", "fastai"} & set(said[1].split())


@pytest.mark.parametrize(("change", "said"), [
    ({"schedule": [{"size": 64, "epochs": 1, "lr": 1e-3, "bs": 16}], "model": {"arch": "lenet5", "weights": "none"}}, "began with random weights"),
    ({"schedule": [{"size": 64, "epochs": 1, "lr": 1e-3, "bs": 16, "head": "keep"}]}, "trust.rejection: always"),
    ({"trust": {"rejection": "none"}}, ""),
])
def test_where_it_is_not_told_the_run_says_why(demo, tmp_path, change, said):
    done, told = run(demo, tmp_path, **change)
    lines = [line for line in told if "other things" in line]
    assert (said in lines[0] and lines[0].startswith("Photos of other things are not told: ")) if said else not lines
    assert "rejection" not in read_bundle(done.run / "best").info.trust and not (done.run / "best" / KNOWN_FILE).exists()


def test_too_few_photos_and_a_folder_that_is_none_are_said(demo, tmp_path):
    table = pd.read_csv(demo / "photos.csv").assign(path=lambda table: [str(demo / path) for path in table["path"]])
    few = pd.concat([table[table["split"] == split].groupby("binomial").head(n) for split, n in (("train", 6), ("test", 2))])
    few.to_csv(tmp_path / "few.csv", index=False)
    data = {"source": str(tmp_path / "few.csv"), "target": "binomial", "valid": 0.2}
    _, told = run(demo, tmp_path, data=data)
    assert any("that takes 50 training photos" in line for line in told)
    with pytest.raises(UserError, match="trust.distractors is nowhere, which is no folder"):
        run(demo, tmp_path, trust={"distractors": "nowhere"})


def test_own_distractors_are_looked_at_and_a_final_model_is_fitted_anew(demo, probe, things, tmp_path):
    from snakecls.workflow.final import train_final

    done, _ = run(demo, tmp_path, trust={"distractors": str(Path(things[0]).parent)})
    info = read_bundle(done.run / "best").info
    assert set(next(iter(info.trust["rejection"]["table"].values()))) == {"drawn", "distractors", "species left out"}
    final = train_final(done.run.id, root=tmp_path / "runs", logbook=None, say=lambda line: None)
    taken = read_bundle(final.run / "best")
    assert taken.info.trust["rejection"]["n"] > info.trust["rejection"]["n"] and taken.known is not None


def test_the_same_experiment_gives_the_same_bits(demo, probe, tmp_path):
    again, _ = run(demo, tmp_path)
    first, second = (done.run / "best" for done in (probe[0], again))
    assert (first / KNOWN_FILE).read_bytes() == (second / KNOWN_FILE).read_bytes()
    assert read_bundle(first).info.trust["rejection"] == read_bundle(second).info.trust["rejection"]


def test_the_api_has_it(probe, things, tiny_bundle, snake_photos):
    need("gradio")
    from snakecls.deploy.app import answer_json

    predictor = Predictor(probe[0].run / "best")
    rows = answer_json(predictor, things[0])
    assert all(row["known"] == predictor.decide(things[0]).known for row in rows)
    assert all("known" not in row for row in answer_json(Predictor(tiny_bundle), str(snake_photos[0])))


def test_a_run_that_goes_on_gives_the_same_bits(demo, tmp_path, monkeypatch):
    from snakecls.workflow import run as module
    from snakecls.workflow.run import resume_run

    whole, _ = run(demo, tmp_path / "whole")
    monkeypatch.setattr(module, "finish_records", lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("the machine stopped")))
    with pytest.raises(RuntimeError):
        run(demo, tmp_path / "broken")
    monkeypatch.undo()
    folder, = [path for path in (tmp_path / "broken" / "runs").iterdir() if path.is_dir() and not path.is_symlink()]
    resume_run(folder, say=lambda line: None)
    assert (folder / "best" / KNOWN_FILE).read_bytes() == (whole.run / "best" / KNOWN_FILE).read_bytes()
