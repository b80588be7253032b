"""A model and a Space are sent to the Hub: here to a stand-in on this machine, with whichever huggingface_hub is installed.

SNAKECLS_HUBS names folders of further versions (`pip install --target FOLDER 'huggingface_hub==1.*'`), separated as in PATH; in CI there are 1.x and 2.x.
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPO, do_without
from hub_standin import TOKEN, Hub

VERSIONS = list(filter(None, os.environ.get("SNAKECLS_HUBS", "").split(os.pathsep))) or [""]  # "": the installed one


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()


def in_new_process(code: str, *words: object, cwd: Path, version: str = "", **environment: str) -> subprocess.CompletedProcess:
    "Run Python with the library read anew, since it reads its settings when it is imported."
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    kept |= {"PYTHONPATH": os.pathsep.join(filter(None, [version, *sys.path])), "HF_HOME": str(cwd / "home"), "HF_HUB_DISABLE_XET": "1",
             "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=kept | environment, timeout=300)


def publish(*words: object, cwd: Path, **options: str) -> subprocess.CompletedProcess:
    return in_new_process("import sys; sys.argv[0] = 'snakecls'; from snakecls.cli import main; main()", "publish", *words, cwd=cwd, **options)


def test_both_generations_of_the_library_are_tried(tmp_path):
    said = {version: in_new_process("import huggingface_hub as h; print(h.__version__, h.__file__)", cwd=tmp_path, version=version).stdout.split() for version in VERSIONS}
    assert all(file.startswith(version) for version, (_, file) in said.items()), said
    majors = {number.split(".")[0] for number, _ in said.values()}
    if not {"1", "2"} <= majors:
        do_without(f"of huggingface_hub only {sorted(majors)} is tried; SNAKECLS_HUBS names folders of 1.x and 2.x")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_is_sent_and_the_lines_of_its_card_load_it(hub, tiny_bundle, snake_photos, tmp_path, version):
    from snakecls.deploy.predict import Predictor

    told = {"version": version, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    done = publish(tiny_bundle, "--repo", "maria/snakes", "--json", cwd=tmp_path, **told)
    assert done.returncode == 0, done.stderr
    said, files, made = json.loads(done.stdout), hub.repos["models/maria/snakes"], hub.made["models/maria/snakes"]
    assert said["url"] == f"{hub.url}/maria/snakes" and said["files"] == len(files) and said["bytes"] == sum(map(len, files.values()))
    assert made.get("private") is True or made.get("visibility") == "private"
    for file in tiny_bundle.rglob("*"):
        if file.is_file():
            assert files[f"bundle/{file.relative_to(tiny_bundle).as_posix()}"] == file.read_bytes()
    assert hub.objects, "nothing went the way of large files"
    files["bundle/old.jpg"] = b"of an earlier one"  # sent again, what is gone goes there too, and the repository that is there is taken
    assert publish(tiny_bundle, "--repo", "maria/snakes", cwd=tmp_path, **told).returncode == 0
    assert "bundle/old.jpg" not in hub.repos["models/maria/snakes"]
    code = re.search(r"```python\n(.+?)```", files["README.md"].decode(), re.DOTALL)[1].replace("photo.jpg", str(snake_photos[1]))
    assert len(code.strip().splitlines()) == 3
    loaded = in_new_process(code, cwd=tmp_path, **told)
    assert loaded.returncode == 0, loaded.stderr
    assert Predictor(tiny_bundle).predict(snake_photos[1])[0].label in loaded.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_a_space_is_sent(hub, tiny_bundle, tmp_path, version):
    done = publish(tiny_bundle, "--space", "maria/snakes", "--public", cwd=tmp_path, version=version, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    files, made = hub.repos["spaces/maria/snakes"], hub.made["spaces/maria/snakes"]
    assert made["sdk"] == "gradio" and made.get("private") is not True and made.get("visibility") != "private"
    assert {"app.py", "requirements.txt", "README.md", "snakecls/deploy/app.py", "bundle/bundle.json"} <= set(files)
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_public_is_never_filled_unasked(hub, tiny_bundle, tmp_path, version):
    told = {"cwd": tmp_path, "version": version, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    assert publish(tiny_bundle, "--repo", "maria/open", "--public", **told).returncode == 0
    before = len([request for request in hub.requests if "/commit/" in request])
    again = publish(tiny_bundle, "--repo", "maria/open", **told)
    assert again.returncode == 2 and "everybody can read it; give --public" in again.stderr and "Traceback" not in again.stderr, again.stderr
    assert before == 1 == len([request for request in hub.requests if "/commit/" in request])
    assert publish(tiny_bundle, "--repo", "maria/open", "--public", **told).returncode == 0  # who asks for it may


def test_timm_alone_reads_what_was_published(hub, tiny_bundle, tmp_path):
    "Once from the folder of the dry run and once from the Hub, by the lines of the card; and an earlier model's layout does not stay."
    import timm
    import torch

    from snakecls.models.bundle import load_model, read_bundle

    told, repo = {"cwd": tmp_path, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}, ["--repo", "maria/snakes"]
    assert publish(tiny_bundle, *repo, "--dry-run", "there", **told).returncode == 0
    assert publish(tiny_bundle, *repo, **told).returncode == 0
    opened = read_bundle(tiny_bundle)
    batch = torch.randn(2, 3, opened.info.photo.height, opened.info.photo.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_model(opened)(batch)
        found = timm.create_model(f"local-dir:{tmp_path / 'there'}", pretrained=True).eval()(batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    card = hub.repos["models/maria/snakes"]["README.md"].decode()
    code = re.findall(r"```python\n(.+?)```", card, re.DOTALL)[1]
    assert "tags: [image-classification, snakecls, timm]" in card and code.startswith("import timm")
    code += "\nimport torch\nshape = torch.Size(map(int, __import__('sys').argv[1:]))\n"
    code += "print(model(torch.randn(shape, generator=torch.Generator().manual_seed(0))).tolist())"
    loaded = in_new_process(code, *batch.shape, **told)
    assert loaded.returncode == 0, loaded.stderr
    names, logits = loaded.stdout.strip().splitlines()[-2:]
    assert names == str(opened.info.labels)
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, atol=1e-5, rtol=1e-5)


def test_without_timms_layout_the_reason_is_told_and_the_earlier_one_goes(hub, tiny_bundle, tmp_path):
    from snakecls.models.bundle import write_bundle
    from snakecls.models.networks import build_network

    told, kwargs = {"cwd": tmp_path, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}, {"num_classes": 2, "depths": [2], "maximum": True}
    info = {"model": {"library": "joined", "arch": "test_resnet", "kwargs": kwargs}, "labels": ["Boa", "Naja naja"], "photo": {"size": 64}}
    joined = write_bundle(tmp_path / "joined", build_network("joined", "test_resnet", kwargs), info)
    assert publish(tiny_bundle, "--repo", "maria/snakes", **told).returncode == 0
    assert {"config.json", "model.safetensors"} < set(hub.repos["models/maria/snakes"])
    done = publish(joined, "--repo", "maria/snakes", **told)
    assert done.returncode == 0 and "Without timm's layout: its classifier sees more" in done.stderr, done.stderr
    files = hub.repos["models/maria/snakes"]
    assert not {"config.json", "model.safetensors"} & set(files) and "bundle/bundle.json" in files and "timm" not in files["README.md"].decode().split("---")[1]


def test_a_fault_of_this_machine_is_not_called_the_network():
    from snakecls.deploy.upload import _is_of_the_hub

    assert _is_of_the_hub(ConnectionRefusedError()) and not any(map(_is_of_the_hub, (PermissionError(), TypeError(), KeyError())))


def test_the_dry_run_writes_what_would_be_sent_and_sends_nothing(hub, tiny_bundle, tmp_path):
    told = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    done = publish(tiny_bundle, "--repo", "maria/snakes", "--dry-run", "there", "--json", cwd=tmp_path, **told)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert hub.requests == [] and said["uploaded"] is False
    assert publish(tiny_bundle, "--repo", "maria/snakes", cwd=tmp_path, **told).returncode == 0
    sent = hub.repos["models/maria/snakes"]
    assert said["would_send"] == {name: len(content) for name, content in sent.items()}
    assert {name: (tmp_path / "there" / name).read_bytes() for name in sent} == sent


@pytest.mark.parametrize("version", VERSIONS)
def test_what_stands_in_the_way_is_one_sentence(hub, tiny_bundle, tmp_path, version):
    repo = [tiny_bundle, "--repo", "maria/snakes"]

    def sentence(*words: object, **options: str) -> str:
        done = publish(*words, cwd=tmp_path, version=version, **options)
        said = [line for line in done.stderr.splitlines() if line.startswith("snakecls: ")]
        assert done.returncode == 2 and len(said) == 1 and "Traceback" not in done.stderr and TOKEN not in done.stderr, done.stderr
        return said[0]

    assert "no token" in sentence(*repo, HF_ENDPOINT=hub.url)
    assert hub.requests == []
    assert "does not know the token" in sentence(*repo, HF_ENDPOINT=hub.url, HF_TOKEN="hf_wrong")
    assert "was not reached" in sentence(*repo, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert "HF_HUB_OFFLINE" in sentence(*repo, HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN)
    hub.refuse = 403
    assert "may not write" in sentence(*repo, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert hub.repos["models/maria/snakes"] == {}
    assert "not a model's name" in sentence(tiny_bundle, "--repo", "snakes")
    assert "give one of them" in sentence(tiny_bundle)


def test_a_card_says_what_was_measured_what_is_missed_and_what_to_do(tmp_path):
    import numpy as np
    import pandas as pd
    import timm

    from snakecls.deploy.hub import write_model, write_space
    from snakecls.disk import write_json
    from snakecls.models.bundle import write_bundle

    labels = [f"Naja {i:02}" for i in range(24)] + ["a|<b>[x](y)"]
    y = np.arange(100) % 25
    said = np.where(np.arange(100) < 4, 24, y)  # four of the venomous are called harmless
    run = tmp_path / "run"
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 25}}, "labels": labels, "photo": {"size": 64},
            "label_facts": {label: {"venomous": label != labels[24]} for label in labels}, "licence": "CC BY 4.0", "metrics": {"test": {"n": 100, "f1_macro": 0.9}}}
    bundle = write_bundle(run / "best", timm.create_model("test_resnet", num_classes=25), info)
    write_json(run / "metrics.json", {"labels": labels, "test": {"n": 100, "f1_macro": 0.9}})
    probs = 0.01 + 0.75 * np.eye(25)[said]
    pd.DataFrame({"path": [f"{i}.jpg" for i in range(100)], "label": [labels[i] for i in y], "predicted": [labels[i] for i in said],
                  **{f"p_{i}": probs[:, i] for i in range(25)}}).to_parquet(run / "predictions-test.parquet")
    cards = [(write_model(bundle, tmp_path / "model", repo="m/s") / "README.md").read_text(encoding="utf-8"),
             (write_space(bundle, tmp_path / "space", space="m/s") / "README.md").read_text(encoding="utf-8")]
    for card in cards:
        assert re.search(r"\| macro F1 \| 0\.900 \| 0\.\d{3} to \d\.\d{3} \|", card)
        assert re.search(r"4 of 96 venomous photos .+?: 4\.2% \(95 %: 1\.6% to 10\.2%\)", card)
        assert "All 25 labels</summary>" in card and card.count("| Naja 05 |") == 1
        assert card.count("| Naja 00 | **yes** | 4 | 0.75 (0.30 to 0.95) |") == 2  # among the weakest, and in the fold
        assert "Call your emergency number" in card and "CC BY 4.0" in card
        assert "<b>" not in card and "a\\|&lt;b&gt;" in card
    assert cards[0].startswith("---\nlicense: cc-by-4.0\n")
    (run / "metrics.json").unlink()  # published without its run: nothing is made up
    alone = (write_model(bundle, tmp_path / "alone", repo="m/s") / "README.md").read_text(encoding="utf-8")
    assert "| macro F1 | 0.900 | not kept |" in alone and "was not counted here" in alone and "0.75 (" not in alone


def test_a_card_says_where_the_photos_come_from_and_names_no_folder(tmp_path):
    import pandas as pd
    import timm

    from snakecls.data.manifest import write_manifest
    from snakecls.deploy.hub import write_model, write_space
    from snakecls.disk import atomic_write, write_json
    from snakecls.models.bundle import write_bundle

    run, labels = tmp_path / "run", ["Naja naja", "Natrix natrix"]
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 2}}, "labels": labels, "photo": {"size": 64}}
    bundle = write_bundle(run / "best", timm.create_model("test_resnet", num_classes=2), info)
    write_json(run / "metrics.json", {"labels": labels, "valid": {"n": 8}})
    table = pd.DataFrame({"path": [f"/home/maria/secret/{i}.jpg" for i in range(48)], "label": [labels[i % 4 == 0] for i in range(48)],
                          "split": ["valid" if i < 8 else "train" for i in range(48)], "sighting": [f"s{i // 2}" for i in range(48)],
                          "License": ["CC BY 4.0"] * 40 + ["a|<b>"] * 4 + [None] * 4})
    write_manifest(table, run / "manifest.parquet", group="sighting")
    pd.DataFrame({"path": ["/home/maria/secret/x.jpg"] * 3, "issue": ["missing", "missing", "unreadable"], "reason": "-"}).to_parquet(run / "issues.parquet")
    atomic_write(run / "corrections.csv", "path,action,label,previous,outcome\n/home/maria/secret/y.jpg,drop,,Naja naja,left out\n")
    atomic_write(run / "experiment.yaml", "data: {source: /home/maria/secret/photos.csv, target: binomial, group: sighting}\n")
    for folder in (write_model(bundle, tmp_path / "model", repo="m/s"), write_space(bundle, tmp_path / "space", space="m/s")):
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "They come from photos.csv, column binomial." in card and "Photos with the same sighting are in one split." in card
        assert "| training | 40 | 2 | 10 to 30 (median 20) | 20 |" in card and "| validation | 8 | 2 | 2 to 6 (median 4) | 4 |" in card
        assert "1 of 2 labels were learned from fewer than 20 photos." in card
        assert "2 missing, 1 unreadable" in card and "1 left out (copies, photos of something else)" in card
        assert "CC BY 4.0 (40)" in card and "not stated (4)" in card and "a\\|&lt;b&gt; (4)" in card
        assert "maria/" not in card and "secret" not in card and "<b>" not in card


def test_a_card_of_things_without_venom_says_nothing_of_bites(tmp_path):
    import timm

    from snakecls.deploy.hub import write_model
    from snakecls.models.bundle import write_bundle

    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 2}}, "labels": ["boot", "shirt"], "photo": {"size": 64}}
    bundle = write_bundle(tmp_path / "best", timm.create_model("test_resnet", num_classes=2), info)
    card = (write_model(bundle, tmp_path / "model", repo="m/s") / "README.md").read_text(encoding="utf-8")
    assert "bite" not in card and "emergency" not in card and "not stated; ask" in card and "Nothing was measured." in card


def test_the_checkout_is_named_in_no_file_that_is_sent(tiny_bundle, tmp_path):
    from snakecls.deploy.hub import write_model

    for file in write_model(tiny_bundle, tmp_path / "model", repo="m/s").rglob("*"):
        if file.is_file():
            assert str(REPO).encode() not in file.read_bytes(), file
