"Bundles: what decides an answer is what was written or is refused, no link is followed, and nothing odd in one ends in a traceback (issue 11 A.2, B.7, C.10, D.17)."
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import FACTS, draw_snake, without_seal
from mutate import mutated_files

from snakecls.core import UserError

SECRET = b"\xff\xd8\xff of nobody's business"


@pytest.fixture
def bundle(tiny_bundle, tmp_path) -> Path:
    "A bundle of one's own, to damage."
    return Path(shutil.copytree(tiny_bundle, tmp_path / "runs" / "20260101-000000-a" / "best"))


def values_of(bundle: Path) -> dict:
    return json.loads((bundle / "bundle.json").read_text())


def rewrite(bundle: Path, values: dict) -> None:
    (bundle / "bundle.json").write_text(json.dumps(values))


def answer_of(bundle: Path, photo: Path) -> tuple:
    "What a person learns from a bundle: labels, probabilities, and what is dangerous about each."
    from snakecls.data.label_facts import danger_state, model_dangers
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(bundle)
    dangers = model_dangers(predictor.info)[0]
    facts = {label: [danger_state(predictor.info.label_facts.get(label, {}), key) for key in dangers] for label in predictor.labels}
    return predictor.labels, dangers, facts, predictor.info.label_facts, predictor.probs([photo])


def refused(bundle: Path, *, weights: bool = True) -> str:
    "Load a bundle that must not be loaded; gives the sentence."
    from snakecls.models.bundle import load_model, read_bundle

    with pytest.raises(UserError) as caught:
        (load_model if weights else read_bundle)(bundle)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and said.endswith(".") and len(said) < 1000 and ";" in said, said
    return said


@pytest.mark.parametrize("change", [
    {"labels": list(FACTS)[::-1]}, {"temperature": 1e-30}, {"temperature": 1e300}, {"temperature": -1}, {"temperature": 0.51}, {"temperature": True}, {"temperature": "1"}, {"flip": False}, {"flip": 1}, {"target": "genus"},
    {"photo": {"size": 64, "mean": [0.5, 0.5, 0.6], "std": [0.5] * 3}}, {"photo": {"size": 65}}, {"label_facts": {}}, {"label_facts": FACTS | {"Micrurus fulvius": {"venomous": False}}}, {"subject": "flower"}, {"danger_columns": ["spiny"]},
    {"problem": "multi_label", "thresholds": [0.9] * 5}, {"thresholds": [0.5] * 5}, {"format": 1, "labels": list(FACTS)[::-1]}, {"seal": None}, {"seal": {}}, {"seal": 3}, {"format": 3}, {"format": True}, {"format": None},
])
def test_what_decides_an_answer_cannot_be_edited(bundle, change):
    rewrite(bundle, values_of(bundle) | change)
    refused(bundle)


def test_what_decides_no_answer_may_be_edited_and_a_new_title_takes_no_danger_back(bundle, photo, tmp_path):
    from test_faults_person import make_bundle

    from snakecls.data.label_facts import model_dangers
    from snakecls.models.bundle import read_bundle

    before = answer_of(bundle, photo)
    rewrite(bundle, values_of(bundle) | {"title": "Mine", "notice": "Ask.", "licence": "none", "metrics": {"valid": {"f1_macro": 0.5}}, "name": "other"})
    after = answer_of(bundle, photo)
    assert before[:4] == after[:4] and np.array_equal(before[4], after[4])
    told = make_bundle(tmp_path / "told", ["brown", "green"], title="Snakes of the south")
    assert model_dangers(read_bundle(told).info)[0] == ("venomous",)
    rewrite(told, values_of(told) | {"title": "Things of the south"})
    assert model_dangers(read_bundle(told).info)[0] == ("venomous",)


def test_every_bit_of_the_weights_counts(bundle):
    data = (bundle / "weights.safetensors").read_bytes()
    generator = np.random.default_rng(0)
    for place in [0, 9, len(data) - 1, *generator.integers(0, len(data), 12)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(generator.integers(0, 8))
        (bundle / "weights.safetensors").write_bytes(flipped)
        assert "copy the whole bundle again" in refused(bundle)


@pytest.mark.parametrize("kind", ["integers", "half", "other", "nan", "huge", "negative variance"])
def test_a_bundle_without_hashes_is_told_and_its_weights_are_looked_at(bundle, kind):
    import torch
    from safetensors.torch import load_file, save_file

    from snakecls.models.bundle import load_model, read_bundle

    weights = load_file(bundle / "weights.safetensors")
    rewrite(bundle, without_seal(values_of(bundle)) | {"flip": False})  # of two views the probabilities are averaged first, which are finite
    assert "before models had hashes" in read_bundle(bundle).notes[0] and load_model(bundle)
    bias = next(name for name in weights if name.endswith("fc.bias"))
    variance = next(name for name in weights if name.endswith("running_var"))
    changes = {"integers": {bias: weights[bias].to(torch.int64)}, "half": {name: value.half() for name, value in weights.items() if value.is_floating_point()}, "other": {bias: weights[bias].double()},
               "nan": {variance: weights[variance] * float("nan")}, "huge": {bias: weights[bias] + 3.4e38}, "negative variance": {variance: weights[variance] - 99}}[kind]
    if kind == "huge":  # finite, until a temperature below 1 divides it
        changes = {bias: torch.full_like(weights[bias], 3.4e38)}
    save_file(weights | changes, bundle / "weights.safetensors")
    refused(bundle)


def test_old_bundles_are_told_once_on_standard_error_and_export_seals_them(bundle, photo):
    from test_faults_person import run

    from snakecls.models.bundle import read_bundle

    rewrite(bundle, without_seal(values_of(bundle)))
    for command in (["predict", photo], ["facts"]):
        done = run(*command, "--model", bundle, cwd=bundle.parent)
        assert done.returncode == 0 and done.stderr.count("before models had hashes") == 1 and "hashes" not in done.stdout, done.stderr
    done = run("export", "new", "--model", bundle, cwd=bundle.parent)
    assert done.returncode == 0 and read_bundle(bundle.parent / "new").seal and read_bundle(bundle.parent / "new").notes == ()


def test_whoever_rewrites_a_bundle_seals_it_anew(bundle, photo, tmp_path):
    from snakecls.models.bundle import edit_bundle, load_model, read_bundle
    from snakecls.experiment.bundle_facts import add_facts

    (tmp_path / "facts.csv").write_text("label,venomous\nNatrix natrix,no\nMicrurus fulvius,yes\n")
    add_facts(bundle, tmp_path / "facts.csv", title="Mine", subject="snake")
    info = read_bundle(bundle).info
    assert load_model(bundle) and (info.title, info.subject) == ("Mine", "snake") and info.label_facts["Natrix natrix"]["venomous"] is False
    rewrite(bundle, values_of(bundle) | {"label_facts": {}})  # by hand: refused, until a table says what is known
    assert "snakecls facts FACTS.csv" in refused(bundle)
    add_facts(bundle, tmp_path / "facts.csv")
    assert load_model(bundle) and read_bundle(bundle).info.label_facts["Micrurus fulvius"]["venomous"] is True
    with pytest.raises(UserError):
        edit_bundle(read_bundle(bundle), {"label_facts": {"Micrurus fulvius": {"venomous": "mildly"}}})
    rewrite(bundle, values_of(bundle) | {"temperature": 2})
    with pytest.raises(UserError, match="temperature"):
        add_facts(bundle, tmp_path / "facts.csv")


def test_the_self_test_notices_another_network_under_the_same_name(bundle, monkeypatch):
    import snakecls.models.bundle as module

    build = module.rebuild_network

    def other(model):
        import torch

        made = build(model)
        made.register_forward_pre_hook(lambda net, args: (torch.flip(args[0], [1]),))  # as a version that took colours in another order
        return made

    monkeypatch.setattr(module, "rebuild_network", other)
    assert "answers its own test photo otherwise" in refused(bundle)


@pytest.mark.parametrize("problem", ["several_targets", "multi_label"])
def test_bundles_of_several_targets_and_labels_have_seals(problem, tmp_path):
    from snakecls.models.bundle import rebuild_network, load_model, write_bundle

    targets = {"genus": ["Naja", "Natrix"], "country": ["BE", "DE", "GH"]}
    several = {"targets": targets, "target": "genus"} if problem == "several_targets" else {"thresholds": [0.3, 0.6]}
    described = {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 2}} | ({"heads": {"genus": 2, "country": 3}} if problem == "several_targets" else {})
    made = write_bundle(tmp_path / "best", rebuild_network(described), {"model": described, "labels": targets["genus"], "photo": {"size": 64}, "problem": problem} | several)
    values = values_of(made)
    assert [len(probs) for probs in values["seal"]["self_test"]["probs"]] == ([2, 3] if problem == "several_targets" else [2]) and load_model(made)
    changes = {"targets": targets | {"country": ["GH", "DE", "BE"]}} if problem == "several_targets" else {"thresholds": [0.6, 0.3]}
    rewrite(made, values | changes)
    refused(made)


def test_a_model_that_gives_no_numbers_is_not_written(tmp_path):
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    model = timm.create_model("test_resnet", num_classes=2)
    with torch.no_grad():
        model.get_classifier().weight.fill_(3e38)
    with pytest.raises(UserError, match="no number"):
        write_bundle(tmp_path / "best", model, {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 2}}, "labels": ["a", "b"], "photo": {"size": 64}})
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize("text", [
    b"", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", "{}".encode("utf-16"), '{"labels": ["é"]}'.encode("latin-1"), b"[" * 100_000, b'{"a":' * 100_000, b'{"extra": ' * 60 + b"1" + b"}" * 60, b'{"format": 2, "format": 2}', b'{"temperature": ' + b"9" * 10**5 + b"}",
    b'{"temperature": 1e999}', b'{"temperature": NaN}', b'{"labels": ["\\ud800"]}',
])
def test_a_description_that_is_none_is_one_sentence(bundle, text):
    (bundle / "bundle.json").write_bytes(text)
    refused(bundle, weights=False)


@pytest.mark.parametrize("change", [
    {"model": []}, {"model": "resnet18"}, {"model": {"library": "timm", "arch": None, "kwargs": {}}}, {"model": {"library": "timm", "arch": "test_resnet", "kwargs": "num_classes"}}, {"model": {"library": ["timm"], "arch": "test_resnet", "kwargs": {}}},
    {"labels": {"a": 1}}, {"labels": "abcde"}, {"labels": [None] * 5}, {"labels": [[]] * 5}, {"labels": ["a", " a", "b", "c", "d"]}, {"labels": ["\u00fc", "u\u0308", "b", "c", "d"]}, {"labels": ["", "a", "b", "c", "d"]},
    {"photo": {"size": 1e9}}, {"photo": {"size": 10**9}}, {"photo": {"size": "64"}}, {"photo": {"size": True}}, {"photo": {"size": [64, None]}}, {"photo": {"size": 64, "mean": ["a", "b", "c"]}}, {"photo": {"size": 64, "std": "abc"}}, {"photo": 64},
    {"photo": {"size": 64, "crop_pct": "1"}}, {"photo": {"size": 64, "interpolation": []}}, {"label_facts": []}, {"label_facts": {"Natrix natrix": "no"}}, {"metrics": "good"}, {"targets": []}, {"extra": 3}, {"title": 3}, {"name": None}, {"notice": []},
    {"thresholds": "high"}, {"danger_columns": {"a": 1}}, {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 5, "pretrained": True}}}, {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 5, "act_layer": "os.system"}}},
    {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 5, "stem_width": 10**6}}}, {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 5, "in_chans": 10**8}}}, {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 5, "layers": [10**7, 1, 1, 1]}}},
    {"model": {"library": "timm", "arch": "vit_base_patch16_224", "kwargs": {"num_classes": 5, "embed_dim": 120_000}}},
])
def test_odd_values_and_networks_beyond_memory_are_one_sentence(bundle, change):
    rewrite(bundle, without_seal(values_of(bundle)) | change)  # whatever the hashes say
    start = time.monotonic()
    refused(bundle)
    assert time.monotonic() - start < 20


def test_a_description_of_two_gigabytes_is_not_read(bundle):
    with open(bundle / "bundle.json", "r+b") as stream:
        stream.truncate(2 << 30)
    assert "2,048 MB" in refused(bundle, weights=False)


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors", "examples"])
def test_links_inside_a_bundle_are_refused_by_every_command(bundle, name, tmp_path, photo):
    from snakecls.deploy.hub import write_space
    from snakecls.deploy.predict import Predictor
    from snakecls.workflow.models import copy_model

    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    for use in (lambda: Predictor(bundle), lambda: copy_model(bundle, tmp_path / "copy"), lambda: write_space(bundle, tmp_path / "space", space="a/b")):
        with pytest.raises(UserError, match="is a link"):
            use()
    assert not (tmp_path / "copy").exists() and not (tmp_path / "space" / "bundle").exists()


def test_a_bundle_in_the_cache_of_the_hub_is_one(bundle, tmp_path, photo):
    from snakecls.deploy.hub import write_space
    from snakecls.deploy.predict import Predictor
    from snakecls.workflow.models import copy_model

    cache = tmp_path / "hub" / "models--a--b"
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in bundle.rglob("*") if file.is_file())):
        place = snapshot / file.relative_to(bundle)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, cache / "blobs" / f"{number:040x}")
        place.symlink_to(os.path.relpath(cache / "blobs" / f"{number:040x}", place.parent))
    assert np.array_equal(answer_of(snapshot, photo)[4], answer_of(bundle, photo)[4]) and len(Predictor(snapshot).examples) == len(Predictor(bundle).examples) > 0
    for copy in (copy_model(snapshot, tmp_path / "copy"), write_space(snapshot, tmp_path / "space", space="a/b") / "bundle"):
        assert not any(file.is_symlink() for file in copy.rglob("*")) and np.array_equal(answer_of(copy, photo)[4], answer_of(bundle, photo)[4])
    (tmp_path / "secret").write_bytes((bundle / "bundle.json").read_bytes())
    (cache / "blobs" / "link").symlink_to(tmp_path / "secret")
    (cache.parent / "models--a--c" / "blobs").mkdir(parents=True)
    shutil.copy(bundle / "bundle.json", cache.parent / "models--a--c" / "blobs" / "x")
    (cache / "blobs" / "below").mkdir()
    shutil.copy(bundle / "bundle.json", cache / "blobs" / "below" / "x")
    for target in (tmp_path / "secret", "../../../../secret", "../../blobs/link", "../../blobs", "../../../models--a--c/blobs/x", "../../blobs/../../../secret", "../../blobs/below/x", "../../blobs/none", "/dev/null"):
        (snapshot / "bundle.json").unlink()
        (snapshot / "bundle.json").symlink_to(target)
        with pytest.raises(UserError, match="snapshot_download.*local_dir"):
            Predictor(snapshot)
    shutil.copytree(cache, tmp_path / "hub" / "other", symlinks=True)  # not by that name, it is no cache
    other = tmp_path / "hub" / "other" / "snapshots" / "0123abc"
    (other / "bundle.json").unlink(), shutil.copy(bundle / "bundle.json", other / "bundle.json")
    with pytest.raises(UserError, match="is a link"):
        Predictor(other)


@pytest.mark.parametrize("setting", ["float64", "bfloat16", "float16", "autocast", "meta"])
def test_what_a_process_has_set_as_its_default_changes_no_answer(bundle, tmp_path, photo, setting):
    import torch

    from snakecls.deploy.predict import Predictor
    from snakecls.models.bundle import load_model, read_bundle, write_bundle

    before, info, model = Predictor(bundle).probs([photo]), read_bundle(bundle).info, load_model(bundle)
    try:
        if setting == "meta":
            torch.set_default_device("meta")
        elif setting != "autocast":
            torch.set_default_dtype(getattr(torch, setting))
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            assert np.array_equal(Predictor(bundle).probs([photo]), before)
            write_bundle(tmp_path / "again", model, info)
            assert setting in ("autocast", "meta") or torch.get_default_dtype() == getattr(torch, setting)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(Predictor(tmp_path / "again").probs([photo]), before)


def test_examples_are_photos_of_the_folder_and_copies_hold_known_files_alone(bundle, tmp_path, photo):
    from snakecls.deploy.hub import write_space
    from snakecls.deploy.predict import Predictor
    from snakecls.workflow.models import copy_model

    (tmp_path / "secret.jpg").write_bytes(SECRET)
    examples = bundle / "examples"
    (examples / "02.jpg").symlink_to(tmp_path / "secret.jpg")
    (examples / "03.jpg").write_text("no photo")
    os.mkfifo(examples / "04.jpg")
    (bundle / ".hidden").write_text("x"), (bundle / "id_rsa").symlink_to(tmp_path / "secret.jpg"), (bundle / "folder").symlink_to(tmp_path)
    odd = [{"file": name, "label": ""} for name in ("02.jpg", "03.jpg", "04.jpg", "../../secret.jpg", str(tmp_path / "secret.jpg"), "..", "", "\0")] + [3, None, [], {"file": 3, "label": "a"}, {"label": "a"}, {"file": "00.jpg", "label": {}}]
    (examples / "examples.json").write_text(json.dumps(json.loads((examples / "examples.json").read_text()) + odd))
    predictor = Predictor(bundle)
    assert [file.name for file, _ in predictor.examples] == ["00.jpg", "01.jpg"] and "14 of the examples" in predictor.notes[0]
    notes = []
    for copy in (copy_model(bundle, tmp_path / "copy", say=notes.append), write_space(bundle, tmp_path / "space", space="a/b", say=notes.append) / "bundle"):
        assert sorted(str(file.relative_to(copy)) for file in copy.rglob("*") if not file.is_dir()) == ["bundle.json", "examples/00.jpg", "examples/01.jpg", "examples/examples.json", "model.onnx", "weights.safetensors"]
        assert Predictor(copy).notes == ()
    assert "6 files" in notes[0] and not any(SECRET in file.read_bytes() for file in (tmp_path / "space").rglob("*") if file.is_file())
    for damage in (b"{", b"3", b'{"file": 1}', b"[" * 10**5, b"\xff"):
        (examples / "examples.json").write_bytes(damage)
        predictor = Predictor(bundle)
        assert predictor.examples == [] and "examples" in predictor.notes[0]


def test_a_link_to_a_bundle_is_one_and_a_pickle_that_is_a_link_is_not_copied(bundle, tmp_path, photo):
    from snakecls.workflow.models import copy_model, find_model

    latest = tmp_path / "latest"
    latest.symlink_to(bundle)
    assert np.array_equal(answer_of(latest, photo)[4], answer_of(bundle, photo)[4]) and find_model(latest)
    (tmp_path / "secret").write_bytes(SECRET)
    (bundle.parent / "export.pkl").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="is a link"):
        copy_model(bundle, tmp_path / "out.pkl")
    assert not (tmp_path / "out.pkl").exists()


def test_the_package_is_published_without_what_links_in_it_point_to(bundle, tmp_path, monkeypatch):
    import snakecls
    from snakecls.deploy import hub

    package = tmp_path / "checkout" / "snakecls"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(""), (package / "notes.txt").write_text("mine")
    (tmp_path / "secret.py").write_bytes(SECRET)
    (package / "data.py").symlink_to(tmp_path / "secret.py")
    monkeypatch.setattr(snakecls, "__file__", str(package / "__init__.py"))
    with pytest.raises(UserError, match="is a link"):
        hub._copy_package(tmp_path / "out")
    (package / "data.py").unlink()
    hub._copy_package(tmp_path / "out2")
    assert [file.name for file in (tmp_path / "out2").iterdir()] == ["__init__.py"]


def test_what_a_crash_left_between_two_renames_is_found_by_every_command(bundle, photo, tmp_path, monkeypatch):
    from snakecls.deploy.app import find_bundle, newest_bundle
    from snakecls.evaluate.report_data import read_run
    from snakecls.models.bundle import read_bundle
    from snakecls.workflow.ended import revive
    from snakecls.workflow.models import find_model
    from snakecls.workflow.run_folder import RunFolder

    run = bundle.parent
    (run / "status.json").write_text(json.dumps({"status": "finished", "name": "a", "started": "2026"}))
    monkeypatch.chdir(tmp_path)

    def from_environment() -> Path:
        monkeypatch.setenv("SNAKECLS_BUNDLE", str(bundle))
        return find_bundle()

    for find in (lambda: newest_bundle(), lambda: find_bundle(), lambda: find_model(None), lambda: find_model("a"), lambda: find_model(run), lambda: find_model(bundle), lambda: read_bundle(bundle), lambda: read_run(run).bundle, lambda: revive(RunFolder(run)) == "", from_environment):
        if bundle.exists():
            bundle.rename(run / ".best.previous")
        assert find() and bundle.exists() and not (run / ".best.previous").exists()
    assert answer_of(bundle, photo)


def test_a_reader_in_the_middle_of_a_replacement_does_not_break_it(bundle, monkeypatch):
    from snakecls.models import bundle as module

    rename, reads = Path.rename, []

    def slowly(self, target):
        if self.name == ".best.new" and not reads:
            reads.append(module.read_bundle(bundle))  # puts the previous one back
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slowly)
    opened = module.read_bundle(bundle)
    module.write_bundle(bundle, module.load_model(opened), opened.info, examples=[(draw_snake(1), "a")])
    assert reads and sorted(os.listdir(bundle.parent)) == ["best"] and len(module.read_bundle(bundle).examples) == 1


def test_300_damages_to_a_description(bundle, photo):
    whole = (bundle / "bundle.json").read_bytes()
    expected, told = answer_of(bundle, photo), 0
    for damaged in mutated_files(whole, seed=11, plain=True):
        (bundle / "bundle.json").write_bytes(damaged)
        try:
            found = answer_of(bundle, photo)
        except UserError as e:
            assert len(str(e).splitlines()) == 1, e
            told += 1
            continue
        assert found[:4] == expected[:4], damaged[:3000]
        np.testing.assert_allclose(found[4], expected[4], atol=1e-5)
    assert told > 150


def test_300_damages_to_a_description_without_a_seal_end_in_a_sentence_or_a_finite_answer(bundle, photo):
    whole = json.dumps(without_seal(values_of(bundle))).encode()
    for damaged in mutated_files(whole, seed=12, plain=True):
        (bundle / "bundle.json").write_bytes(damaged)
        try:
            found = answer_of(bundle, photo)
        except UserError as e:
            assert len(str(e).splitlines()) == 1, e
            continue
        assert np.isfinite(found[4]).all()


def test_300_damages_to_weights(bundle, photo):
    whole = (bundle / "weights.safetensors").read_bytes()
    expected = answer_of(bundle, photo)
    for damaged in mutated_files(whole, seed=13):
        (bundle / "weights.safetensors").write_bytes(damaged)
        if damaged != whole:
            refused(bundle)
    values = values_of(bundle)
    (bundle / "weights.safetensors").write_bytes(whole)
    assert np.array_equal(answer_of(bundle, photo)[4], expected[4])
    rewrite(bundle, without_seal(values))
    from snakecls.models.bundle import load_model

    for damaged in mutated_files(whole, seed=14):
        (bundle / "weights.safetensors").write_bytes(damaged)
        try:
            load_model(bundle)
        except UserError as e:
            assert len(str(e).splitlines()) == 1, e


def test_300_damages_to_a_table_of_facts(tmp_path):
    from snakecls.experiment.facts import read_facts

    labels = list(FACTS)
    lines = ["label,common_name,venomous,countries"] + [f"{label},{known['common_name']},{ {True: 'yes', False: 'no', None: ''}[known['venomous']] },\"{'; '.join(known.get('countries', []))}\"" for label, known in FACTS.items()]
    whole = "\n".join(lines).encode() + b"\n"
    expected, read = {label: known["venomous"] for label, known in FACTS.items()}, 0
    for damaged in mutated_files(whole, seed=15):
        (tmp_path / "facts.csv").write_bytes(damaged)
        try:
            facts, _ = read_facts(tmp_path / "facts.csv", labels, target="binomial")
        except UserError as e:
            assert len(str(e).splitlines()) == 1, e
            continue
        read += 1
        for label, known in facts.items():  # a yes is never a no, unless the table says so of that label
            state = known.get("venomous")
            assert state is None or state is True or state is False
            if expected[label] is True and state is False:
                assert any(line.split(b",")[0].strip(b'" \xef\xbb\xbf').decode("latin-1") == label and (b",no," in line or b",0," in line) for line in damaged.replace(b"\r", b"\n").split(b"\n")), damaged
    assert read > 30


@pytest.mark.parametrize("column, value, known", [("risk", "high", None), ("Rear-fanged", "yes", None), ("rear_fanged", "no", False), ("bite", "very painful", None), ("risk level", "3", None), ("risk", "low", False), ("extinction risk", "high", False), ("Fangs", "none", False)])
def test_a_column_that_may_mean_danger_takes_a_no_back(column, value, known, tmp_path):
    from snakecls.experiment.facts import read_facts

    (tmp_path / "facts.csv").write_text(f"label,venomous,{column}\nBoiga,no,{value}\n")
    facts, notes = read_facts(tmp_path / "facts.csv", ["Boiga"])
    assert facts["Boiga"]["venomous"] is known and (column == "extinction risk" or "counts as not known" in " ".join(notes))


def test_facts_that_cannot_be_read_can_be_replaced(bundle, tmp_path):
    from test_faults_person import run

    from snakecls.models.bundle import read_bundle

    values = without_seal(values_of(bundle))
    for facts in (FACTS | {"Micrurus fulvius": {"venomous": "mildly", "common_name": "Coral snake"}}, FACTS | {"Micrurus fulvius": {"venomous": 2}}, FACTS | {"Nobody": {"venomous": True}}, FACTS | {"Micrurus fulvius": "no"}, []):
        rewrite(bundle, values | {"label_facts": facts, "temperature": 0.005})
        assert "label_facts" in (said := refused(bundle, weights=False)) or "facts" in said or "Micrurus" in said
        (tmp_path / "facts.csv").write_text("label,venomous\nMicrurus fulvius,yes\n")
        done = run("facts", tmp_path / "facts.csv", "--model", bundle, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        known = read_bundle(bundle).info.label_facts
        assert known["Micrurus fulvius"]["venomous"] is True
        if facts and facts != []:
            assert all(known[label]["venomous"] is True for label, facts in FACTS.items() if facts.get("venomous") is True)


@pytest.mark.parametrize("labels, dangers", [(["Shelby Cobra", "Ford Mustang"], ()), (["Dodge Viper", "AC Cobra", "Ford Mustang"], ()), (["cobra", "mustang"], ("venomous",)), (["Naja naja", "AC Cobra"], ("venomous",)), (["king cobra", "viper"], ("venomous",))])
def test_cars_that_are_named_after_snakes_are_none(labels, dangers, tmp_path):
    from test_faults_person import make_bundle

    from snakecls.data.label_facts import model_dangers
    from snakecls.models.bundle import read_bundle

    assert model_dangers(read_bundle(make_bundle(tmp_path / "best", labels)).info)[0] == dangers


@pytest.mark.parametrize("target, labels, danger", [("effect", ["harmless", "venomous"], "venomous"), ("venomous", ["no", "yes"], "venomous"), ("edible", ["yes", "no"], "poisonous"), ("danger", ["low", "high"], "dangerous")])
def test_what_a_further_target_says_of_danger_is_not_passed_over(target, labels, danger, photo, tmp_path):
    import torch

    from snakecls.deploy.app import answer_json, show_answer
    from snakecls.deploy.predict import Predictor
    from snakecls.models.bundle import rebuild_network, write_bundle
    from snakecls.models.heads import find_heads
    from snakecls.workflow.streamed import predict_given

    targets = {"kind": ["brown", "green"], target: labels}
    described = {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 2}, "heads": {"kind": 2, target: 2}}
    for second in (0, 9, -9):  # sure of the danger, and sure of none
        model = rebuild_network(described)
        with torch.no_grad():
            head = list(find_heads(model).values())[1]
            head.weight.zero_(), head.bias.copy_(torch.tensor([0.0, float(second)]))
        facts = {name: {danger: False} for name in targets["kind"]}
        bundle = write_bundle(tmp_path / "best", model, {"model": described, "labels": targets["kind"], "targets": targets, "target": "kind", "problem": "several_targets", "photo": {"size": 64}, "label_facts": facts})
        predictor = Predictor(bundle)
        page, said, (rows, lines) = show_answer(predictor, str(photo)), answer_json(predictor, str(photo)), predict_given([("a.jpg", str(photo))], bundle)
        if second < 0 and labels[0] == "low":  # a low danger is no plain no
            assert "None of these is listed" not in page and rows[0]["dangers"][danger]["among_them"] is None
        elif second < 0:
            assert "sc-caution" not in page and said[0]["caution"] is None and rows[0]["dangers"][danger]["among_them"] is False
        else:
            assert "sc-caution" in page and "None of these is listed" not in page and labels[1] in said[0]["caution"]["sentence"] and labels[1] in lines[0]
            assert rows[0]["dangers"][danger]["among_them"] is True and rows[0]["dangers"][danger]["at_most"] >= 0.45


def test_facts_of_a_model_that_has_none_say_that_nothing_is_known(tmp_path):
    from test_faults_person import make_bundle, run

    make_bundle(tmp_path / "best", ["Naja naja", "Natrix natrix"])
    said = json.loads(run("facts", "--json", "--model", "best", cwd=tmp_path).stdout)
    assert said["facts"] == {label: {"venomous": None} for label in ("Naja naja", "Natrix natrix")} and said["known"] is False and "knows nothing about venom" in " ".join(said["notes"])
