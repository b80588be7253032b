"""How folders and photos are read: which level is the label, what is no photo of the user's, HEIC, pipes, names that are no text."""
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from PIL import Image

from snakecls.core import UserError
from snakecls.clean.files import check_files
from snakecls.data.photos import PhotoError, open_photo
from snakecls.data.tables import load_table, load_unlabelled, read_table, read_unlabelled
from test_tables import make

SMALL = ["--set", "model.arch=test_resnet", "--set", "model.weights=none", "--set", "schedule=[{size: 32, epochs: 1}]", "--set", "train.num_workers=0", "--set", "train.bs=4"]


def command(*words: str, cwd: Path) -> tuple[int, str, str]:  # exit code, standard output, standard error
    "Run a command in this process."
    from snakecls import cli

    out, err, code = io.StringIO(), io.StringIO(), 0
    before, argv = os.getcwd(), sys.argv
    os.chdir(cwd)
    sys.argv = ["snakecls", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as e:
        code = e.code or 0
    finally:
        os.chdir(before)
        sys.argv = argv
    return code, out.getvalue(), err.getvalue()


def draw(path: Path, colour: int, size=(40, 32), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(path.name) + colour)
    Image.fromarray((generator.integers(0, 90, (size[1], size[0], 3)) + np.eye(3, dtype=int)[colour % 3] * 150).astype(np.uint8)).save(path, **options)


# Which folder level is the label


def levels(folder: Path, *names: str, **options) -> tuple[set[str], list[str]]:
    noted = read_table(make(folder, *names), **options)
    table = noted.table
    return set(table["label"]), noted.notes


SPECIES = ("Natrix/Natrix natrix", "Natrix/Natrix maura", "Vipera/Vipera berus", "Vipera/Vipera aspis")
VEHICLES = tuple(f"{name}/{time}" for name in ("train", "car", "bus") for time in ("day", "night"))


def photos(*folders: str, n: int = 3) -> list[str]:
    return [f"{folder}/{folder.replace('/', '_')}{i}.jpg" for folder in folders for i in range(n)]


def test_genus_and_species_are_told(tmp_path):
    labels, notes = levels(tmp_path, *photos(*SPECIES))
    assert labels == {name.split("/")[1] for name in SPECIES}
    (note,) = notes
    assert "second folder level (4 names" in note and "the first has 2 names" in note and "data.label_level" in note
    assert levels(tmp_path, label_level=1)[0] == {"Natrix", "Vipera"}
    assert levels(tmp_path, label_level="path")[0] == labels


def test_epithets_are_joined_to_names(tmp_path):
    names = photos("Crotalus/viridis", "Crotalus/atrox", "Ahaetulla/viridis", "Ahaetulla/prasina")
    labels, notes = levels(tmp_path, *names)
    assert labels == {"Crotalus", "Ahaetulla"} and "path (such as" in notes[0]
    assert levels(tmp_path, label_level="path")[0] == {"Crotalus viridis", "Crotalus atrox", "Ahaetulla viridis", "Ahaetulla prasina"}
    labels, notes = levels(tmp_path, label_level=2)
    assert labels == {"viridis", "atrox", "prasina"} and any("'viridis'" in note and "below several folders" in note for note in notes)


@pytest.mark.parametrize("names, labels", [
    (VEHICLES, {"train", "car", "bus"}),
    (("test/day", "test/night", "car/day", "car/night"), {"test", "car"}),
    (("cat/session_1", "cat/session_2", "dog/session_3", "dog/session_4"), {"cat", "dog"}),
    (("cat/2021-05-01", "cat/2021-05-02", "dog/2021-06-01", "dog/2021-06-02"), {"cat", "dog"}),
    (("archive/set/cat", "archive/set/dog"), {"cat", "dog"}),
    (("tops/shirts", "tops/blouses", "shoes/boots", "shoes/sandals"), {"shirts", "blouses", "boots", "sandals"}),
    (("Animalia/Aves/Corvus corax", "Animalia/Aves/Pica pica", "Animalia/Amphibia/Rana", "Plantae/Rosids/Rosa", "Plantae/Rosids/Malus"), {"Corvus corax", "Pica pica", "Rana", "Rosa", "Malus"}),
])
def test_layouts(tmp_path, names, labels):
    found, notes = levels(tmp_path, *photos(*names))
    assert found == labels
    assert bool(notes) == (names[0] != "archive/set/cat"), notes
    assert "split" not in load_table(tmp_path)


def test_splits_within_the_classes(tmp_path):
    make(tmp_path, *photos(*(f"{label}/{split}" for label in ("cat", "dog") for split in ("train", "val", "test"))))
    noted = read_table(tmp_path)
    table = noted.table
    assert pd.crosstab(table["label"], table["split"]).to_dict() == {split: {"cat": 3, "dog": 3} for split in ("test", "train", "valid")}
    assert "splits were read from the second folder level" in noted.notes[0]


def test_splits_and_deeper_folders(tmp_path):
    make(tmp_path, *photos(*(f"{split}/images/{name}" for split in ("train", "test") for name in SPECIES)))
    table = load_table(tmp_path)
    assert table["label"].nunique() == 4 and set(table["split"]) == {"train", "test"}


def test_splits_without_training_photos(tmp_path):
    make(tmp_path, *photos("val/cat", "val/dog", "test/cat", "test/dog"))
    table = load_table(tmp_path)
    assert set(table["label"]) == {"cat", "dog"} and set(table["split"]) == {"valid", "test"}


def test_what_lies_beside_splits_is_told(tmp_path):
    make(tmp_path, *photos("train/cat", "train/dog", "val/cat", "val/dog", "plots", "odd/cat"))
    noted = read_table(tmp_path)
    table = noted.table
    assert len(table) == 12 and any("folders beside the splits: 'odd (3)', 'plots (3)'" in note for note in noted.notes)


def test_an_uncertain_split_is_asked_about(tmp_path):
    make(tmp_path, *photos("train/steam", "train/diesel", "unsorted"))
    with pytest.raises(UserError, match="may be the photos for training, or a class; give data.splits: {train: train} for the first, data.label_level: 1"):
        load_table(tmp_path)
    assert set(load_table(tmp_path, label_level=1)["label"]) == {"train", "unsorted"}
    assert set(load_table(tmp_path, splits={"train": "train"})["label"]) == {"steam", "diesel"}


def test_wrong_levels(tmp_path):
    make(tmp_path, *photos(*SPECIES))
    with pytest.raises(UserError, match="give a number from 1 to 2"):
        load_table(tmp_path, label_level=3)
    with pytest.raises(UserError, match="from 1, path, or auto"):
        load_table(tmp_path, label_level="genus")
    table = pd.DataFrame({"path": [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")], "label": ["a", "b"]})
    assert any("belongs to a folder of class folders" in note for note in read_table(table, label_level=2, check_files=False).notes)
    code, _, err = command("train", "--data", tmp_path, "--set", "data.label_level=genus", cwd=tmp_path)
    assert code == 2 and "give the number of a folder level from 1, path, or auto" in err


def test_names_that_look_alike_are_one_class(tmp_path):
    labels, notes = levels(tmp_path, *photos("Vip\u00e8re", "Vipe\u0300re", "Vip\u00e8re ", "Vip\u200b\u00e8re", " a", "a", "a "))
    assert labels == {"Vip\u00e8re", "a"} and len(load_table(tmp_path)) == 21
    assert any("2 classes have folders whose names differ only in blanks" in note for note in notes)


def test_a_model_finds_the_level_of_its_labels(tmp_path):
    from snakecls.workflow.evaluation import _load_known

    make(tmp_path, *photos(*SPECIES))
    assert set(_load_known(tmp_path, ["Natrix", "Vipera"]).table["label"]) == {"Natrix", "Vipera"}
    assert _load_known(tmp_path, ["Natrix natrix"]).table["label"].nunique() == 4


# Pictures that are no photos of the user's


@pytest.fixture(scope="module")
def nas(tmp_path_factory) -> Path:
    "A folder of photos on a NAS, in which two runs, a check and a bundle lie."
    folder = tmp_path_factory.mktemp("nas")
    for place, label in enumerate(("cat", "dog", "runs of deer")):
        for i in range(8):
            draw(folder / label / f"{label}{i}.jpg", place)
            draw(folder / label / "@eaDir" / f"{label}{i}.jpg" / "SYNOPHOTO_THUMB_XL.jpg", place)
    for junk in ("#recycle/cat", "$RECYCLE.BIN/S-1-5", "lost+found", ".Trash-1000/files", "__MACOSX/cat", "cat/.ipynb_checkpoints", "@Recycle", ".thumbnails", "System Volume Information", ".git"):
        draw(folder / junk / "old.jpg", 1)
    (folder / "venv").mkdir()
    (folder / "venv/pyvenv.cfg").touch()
    draw(folder / "venv/share/icon.png", 1)
    draw(folder / "wandb/run-1/media/plot.png", 1)
    (folder / "cat/Thumbs.db").touch()
    if sys.platform == "linux":
        with open(os.fsencode(folder / "dog") + b"/caf\xe9.jpg", "wb") as stream:
            stream.write((folder / "cat/cat0.jpg").read_bytes())
    for _ in range(2):
        code, _, err = command("train", "--data", ".", *SMALL, cwd=folder)
        assert code == 0, err
        (folder / "said.txt").write_text(err)
    assert command("export", "shipped", cwd=folder)[0] == 0
    return folder


LEFT = {"@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".Trash-1000", "__MACOSX", ".ipynb_checkpoints", "@Recycle", ".thumbnails", "System Volume Information", ".git", "venv", "wandb"}


def test_the_second_run_sees_what_the_first_saw(nas):
    first, second = sorted((nas / "runs").glob("*/manifest.parquet"))
    tables = [pd.read_parquet(path).sort_values("path").reset_index(drop=True) for path in (first, second)]
    assert len(tables[0]) == 24 and set(tables[0]["label"]) == {"cat", "dog", "runs of deer"}
    assert tables[0][["path", "label", "split"]].equals(tables[1][["path", "label", "split"]])
    issues = pd.read_parquet(second.parent / "issues.parquet")
    assert sys.platform != "linux" or r"caf\xe9.jpg" in set(issues["path"].map(lambda path: Path(path).name))
    out = issues[issues["issue"] == "left out"]
    assert {Path(path).name for path in out["path"]} == LEFT | {first.parent.name} and "thumbnails of a NAS" in set(out["reason"])
    (note,) = [line for line in (nas / "said.txt").read_text().splitlines() if "no photos of yours" in line]
    assert "thumbnails of a NAS ('cat/@eaDir', 'dog/@eaDir' and 1 more)" in note and "a run of snakecls ('runs/" in note


def test_every_command_sees_the_same(nas):
    code, out, err = command("check", ".", "--files-only", "--json", cwd=nas)
    said = json.loads(out)
    assert code == 0 and said["photos"] == 24 and "no photos of yours" in err
    checked = nas / said["folder"]
    assert pd.read_parquet(checked / "photos.parquet")["path"].map(lambda path: Path(path).parent.name).nunique() == 3
    assert "left out" in set(pd.read_parquet(checked / "issues.parquet")["issue"])
    from snakecls.clean.check_folder import CheckResult
    from snakecls.workflow.check import describe_check
    text = describe_check(CheckResult(checked, pd.read_parquet(checked / "photos.parquet"), pd.read_parquet(checked / "issues.parquet"), []))
    assert text.startswith("24 photos, 24 of them with a remark, and ") and "files and folders beside them" in text  # all are small
    code, out, err = command("predict", ".", "--json", cwd=nas)
    assert code == 0 and len(json.loads(out)) == 24 and "no photos of yours" in err
    code, out, err = command("evaluate", "--data", ".", "--json", cwd=nas)
    assert code == 0 and json.loads(out)["scores"]["n"] == 24 and "a model of snakecls ('shipped')" in err
    assert len(load_unlabelled(nas)) == 24 and any("no photos of yours" in note for note in read_unlabelled(nas).notes)


def test_ours_are_known_by_their_files_alone(tmp_path):
    make(tmp_path, *photos("runs", "checks", "wandb", "bundle", "status"), "runs/status.txt")
    (tmp_path / "elsewhere").mkdir()
    make(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "linked").unlink()
    (tmp_path / "linked").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere", target_is_directory=True)
    assert set(load_table(tmp_path)["label"]) == {"runs", "checks", "wandb", "bundle", "status", "linked"}


def test_a_demonstration_and_a_space_are_no_classes(tmp_path):
    make(tmp_path, *photos("cat", "dog"), "snakecls-demo/experiment.yaml", "snakecls-demo/data/demo.json", "snakecls-demo/data/photos/Boa/1.jpg",
         "space/app.py", "space/requirements.txt", "space/bundle/bundle.json", "space/bundle/examples/1.jpg", "space/plots/1.png")
    noted = read_table(tmp_path)
    table = noted.table
    assert set(table["label"]) == {"cat", "dog"} and "a demonstration of snakecls ('snakecls-demo')" in noted.notes[0]
    assert len(load_unlabelled(tmp_path / "snakecls-demo")) == 1  # asked for by name


def test_a_folder_of_nothing_else(tmp_path):
    make(tmp_path, "@eaDir/1.jpg")
    with pytest.raises(UserError, match="holds no photos .*, only what is left out: thumbnails of a NAS"):
        load_table(tmp_path)
    code, _, err = command("predict", ".", cwd=tmp_path)
    assert code == 2 and "thumbnails of a NAS" in err and len(err.strip().splitlines()) == 1


# HEIC


def heic(path: Path, image: Image.Image, **options) -> Path:
    import pillow_heif

    pillow_heif.register_heif_opener()
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "HEIF", **options)
    return path


def picture() -> Image.Image:
    image = Image.new("RGB", (96, 64), (40, 200, 60))
    image.paste((250, 20, 20), (0, 0, 48, 20))
    return image


def near(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() < 8


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "photo.jpg", "photo.heif"])
def test_heic_is_read_whatever_it_is_called(tmp_path, name):
    code = f"from snakecls.data.photos import open_photo; import sys; assert 'pillow_heif' not in sys.modules; print(open_photo({str(heic(tmp_path / name, picture()))!r}).getpixel((10, 10)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)  # where nobody has registered its reader
    assert done.returncode == 0, done.stderr
    assert np.abs(np.array(json.loads(done.stdout.replace("(", "[").replace(")", "]"))) - (250, 20, 20)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(tmp_path, orientation):
    from snakecls.data.photos import TURNS

    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = TURNS.get({6: 8, 8: 6}.get(orientation, orientation))
    path = heic(tmp_path / "a.heic", picture() if undo is None else picture().transpose(undo), exif=exif.tobytes())
    assert near(open_photo(path), picture()) and near(open_photo(path.read_bytes()), picture())
    assert ("EXIF-rotated" in set(check_files([path], n_workers=1)["issue"])) == (orientation != 1)


def test_odd_heic(tmp_path):
    import pillow_heif

    deep = pillow_heif.from_bytes(mode="RGB;16", size=(64, 48), data=(np.asarray(picture().resize((64, 48))).astype(np.uint16) * 257).tobytes())
    deep.save(tmp_path / "deep.heic")
    assert near(open_photo(tmp_path / "deep.heic"), picture().resize((64, 48)))
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    assert min(open_photo(heic(tmp_path / "clear.heic", clear)).getpixel((5, 5))) > 245
    heic(tmp_path / "grey.heic", picture().convert("L"))
    two = heic(tmp_path / "two.heic", picture(), save_all=True, append_images=[Image.new("RGB", (96, 64))])
    assert near(open_photo(two), picture())
    renamed = heic(tmp_path / "renamed.jpg", picture())
    issues = check_files(sorted(tmp_path.iterdir()), n_workers=1, min_size=1)
    found = {(Path(path).name, issue) for path, issue in zip(issues["path"], issues["issue"])}
    assert {("deep.heic", "10-bit"), ("clear.heic", "RGBA"), ("two.heic", "animated"), (renamed.name, "wrong extension")} <= found
    assert set(issues["verdict"]) == {"repaired", "look"} and set(issues.loc[issues["verdict"] == "look", "issue"]) == {"one colour"} and ("grey.heic", "wrong extension") not in found


def test_damaged_heic_is_one_sentence(tmp_path):
    data, generator, refused = heic(tmp_path / "whole.heic", picture()).read_bytes(), np.random.default_rng(0), 0
    for cut in range(12, len(data), 23):
        with pytest.raises(PhotoError) as error:
            open_photo(data[:cut])
        assert "\n" not in str(error.value) and "truncated or damaged" in str(error.value)
    for _ in range(300):
        changed = bytearray(data)
        for place in generator.integers(0, len(data), int(generator.integers(1, 6))):
            changed[place] = int(generator.integers(256))
        try:
            assert open_photo(bytes(changed), max_pixels=10**6).mode == "RGB"
        except PhotoError as e:
            assert "\n" not in str(e)
            refused += 1
    assert 50 < refused < 300
    (tmp_path / "cut.heic").write_bytes(data[:-40])
    issues = check_files([tmp_path / "cut.heic"], n_workers=1)
    assert issues[["issue", "verdict"]].values.tolist() == [["truncated", "drop"]]


def test_a_class_of_heic_alone_is_trained_checked_and_predicted(tmp_path):
    for i in range(6):
        draw(tmp_path / f"photos/lizard/{i}.jpg", 0)
        heic(tmp_path / f"photos/snake/IMG_{i}.HEIC", picture().rotate(i))
    code, _, err = command("train", "--data", "photos", *SMALL, cwd=tmp_path)
    assert code == 0, err
    (manifest,) = tmp_path.glob("runs/*/manifest.parquet")
    assert pd.read_parquet(manifest)["label"].value_counts().to_dict() == {"lizard": 6, "snake": 6}
    code, out, err = command("predict", "photos/snake", "--json", cwd=tmp_path)
    assert code == 0 and len(json.loads(out)) == 6, err
    code, out, err = command("check", "photos", "--files-only", "--json", cwd=tmp_path)
    assert code == 0 and not {row["issue"] for row in json.loads(out)["issues"]} & {"unknown format", "damaged", "not an image"}

    from snakecls.deploy.review import _photo_data
    assert _photo_data(str(tmp_path / "photos/snake/IMG_1.HEIC")).startswith("data:image/jpeg;base64,")


def test_a_space_requires_what_reads_heic():
    from snakecls.deploy.hub import _app_requirements

    assert any(line.startswith("pillow-heif") for line in _app_requirements())


# Pipes, sockets, devices; names that are no text; folders that may not be read


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
def test_pipes_sockets_and_devices_keep_nobody_waiting(tmp_path):
    for place, label in enumerate(("cat", "dog")):
        for i in range(6):
            draw(tmp_path / f"photos/{label}/{i}.png", place)
    os.mkfifo(tmp_path / "photos/cat/pipe.jpg")
    (tmp_path / "photos/cat/device.jpg").symlink_to("/dev/zero")
    server = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(tmp_path / "photos/dog")  # the path of a socket must be short
    server.bind("socket.png")
    os.chdir(before)
    rows = [(f"photos/{label}/{name}", label) for label in ("cat", "dog") for name in [f"{i}.png" for i in range(6)]] + [("photos/cat/pipe.jpg", "cat"), ("photos/dog/socket.png", "dog")]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "photos.csv", index=False)
    os.mkfifo(tmp_path / "table.csv")
    words = [["train", "--data", "photos.csv", *SMALL], ["check", "photos", "--files-only"], ["check", "photos.csv", "--files-only", "--output", "checks/table"],
             ["predict", "photos"], ["predict", "photos/cat/pipe.jpg"], ["train", "--data", "table.csv"]]
    code = f"import sys; sys.path[:0] = [{str(REPO)!r}, {str(REPO / 'tests')!r}]; from pathlib import Path; from test_faults_folders import command\nfor words in {words!r}: print(repr(command(*words, cwd=Path({str(tmp_path)!r}))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"})
    assert done.returncode == 0, done.stderr
    answers = [eval(line) for line in done.stdout.splitlines()]
    assert [code for code, _, _ in answers] == [0, 0, 0, 0, 2, 2], answers
    (run,) = tmp_path.glob("runs/*")
    assert len(pd.read_parquet(run / "manifest.parquet")) == 12
    for file in (run / "issues.parquet", tmp_path / "checks/photos/issues.parquet", tmp_path / "checks/table/issues.parquet"):
        assert set(pd.read_parquet(file)["path"].map(lambda path: Path(path).name)) >= {"pipe.jpg", "socket.png"}, file
    assert "it is a pipe, a socket or a device, and no file" in answers[4][1] and "is a pipe, a socket or a device" in answers[5][2]
    server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text_are_told(tmp_path):
    for place, label in enumerate(("cat", "dog")):
        for i in range(6):
            draw(tmp_path / f"photos/{label}/{i}.png", place)
    content = (tmp_path / "photos/cat/0.png").read_bytes()
    for name in (b"photos/cat/caf\xe9.png", b"photos/Vip\xe8re/1.png", b"photos/dog/a\\b.png", b"photos/cat/\xff.txt"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(content)
    os.symlink("loop.jpg", tmp_path / "photos/cat/loop.jpg")
    os.symlink("itself", tmp_path / "photos/itself")
    noted = read_table(tmp_path / "photos")
    table = noted.table
    assert len(table) == 12 and len(noted.notes) == 2
    code, _, err = command("check", "photos", "--files-only", cwd=tmp_path)
    assert code == 0 and r"caf\xe9.png" in err and "not UTF-8" in err, err
    names = {Path(path).name for path in pd.read_parquet(tmp_path / "checks/photos/issues.parquet")["path"]}
    assert {r"caf\xe9.png", r"Vip\xe8re", "a\\b.png", "loop.jpg", "itself"} <= names
    for words in (["predict", os.fsdecode(b"photos/cat/caf\xe9.png")], ["train", "--data", os.fsdecode(b"photos/Vip\xe8re")], ["check", os.fsdecode(b"photos/Vip\xe8re")]):
        code, _, err = command(*words, cwd=tmp_path)
        assert code == 2 and "not UTF-8" in err and len(err.strip().splitlines()) == 1 and err.encode(), err


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    "The tests may run as root, who reads everything, so the system's answer is played."
    make(tmp_path, *photos("cat", "dog", "locked", "broken"))
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        if str(path).endswith("broken"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    noted = read_table(tmp_path)
    table = noted.table
    assert set(table["label"]) == {"cat", "dog"} and "could not look into 2 folders" in noted.notes[0] and "'locked'" in noted.notes[0]
    assert {Path(issue["path"]).name: issue["issue"] for issue in noted.issues} == {"locked": "not permitted", "broken": "not permitted"}
    code, _, err = command("predict", tmp_path / "locked", cwd=tmp_path)
    assert code == 2 and "may not be read; change its permissions" in err
    with pytest.raises(UserError, match="cannot be read .Input/output error"):
        load_table(tmp_path / "broken")


@pytest.mark.parametrize("path", ["x" * 5000 + "/a.jpg", "a\0b/a.jpg", "loop/a.jpg"])
def test_paths_that_no_system_has_are_missing_photos(tmp_path, path):
    os.symlink("loop", tmp_path / "loop")
    make(tmp_path, "1.jpg", "2.jpg")
    noted = read_table(pd.DataFrame({"path": ["1.jpg", "2.jpg", path], "label": ["a", "b", "b"]}), root=tmp_path)
    table = noted.table
    assert len(table) == 2 and [issue["issue"] for issue in noted.issues] == ["missing"]


@pytest.mark.parametrize("name", ["x" * 200, "é" * 100, "photos.2024.01"], ids=["long", "accents", "dots"])
def test_a_run_is_named_after_any_folder(tmp_path, name):
    for place, label in enumerate(("cat", "dog")):
        for i in range(4):
            draw(tmp_path / name / label / f"{i}.png", place, size=(64, 64))
    code, out, err = command("check", name, "--files-only", "--json", cwd=tmp_path)
    assert code == 0 and json.loads(out)["folder"] == f"checks/{name[:80]}", err
    code, _, err = command("train", "--data", name, "--set", "model.arch=nothing", cwd=tmp_path)
    assert code == 2 and "nothing" in err and "at most 80" not in err


def test_heic_in_the_app(start_app, tiny_bundle, browser, tmp_path):
    "A browser that does not know the type: chosen or dropped, the photo is answered and shown."
    import base64

    from conftest import draw_snake
    from snakecls.deploy.predict import Predictor

    path = heic(tmp_path / "IMG_0001.HEIC", draw_snake(3))
    app = start_app(REPO / "app.py", tmp_path, SNAKECLS_BUNDLE=str(tiny_bundle)).wait()
    page = browser.new_page(viewport={"width": 390, "height": 844})
    expected = [guess.label for guess in Predictor(tiny_bundle).predict(path)]
    for how in ("choose", "drop"):
        page.goto(app.url)
        page.wait_for_selector("#result h2")
        if how == "choose":
            page.set_input_files("#photo input[type=file]", str(path))
        else:
            data = base64.b64encode(path.read_bytes()).decode()
            dropped = page.evaluate_handle("""text => { const given = new DataTransfer();
                given.items.add(new File([Uint8Array.from(atob(text), char => char.charCodeAt(0))], "IMG_0001.HEIC")); return given }""", data)
            page.dispatch_event("#photo button", "drop", {"dataTransfer": dropped})
        page.wait_for_selector(".sc-row", timeout=30_000)
        assert [row.get_attribute("data-label") for row in page.query_selector_all(".sc-row")] == expected
        page.wait_for_function("() => document.querySelector('#photo img')?.naturalWidth > 0", timeout=10_000)
    page.close()


def test_a_photo_dropped_the_moment_the_page_shows_is_answered(start_app, tiny_bundle, browser, tmp_path):
    "What mends the type of a HEIC, and says that it is on its way, must listen before there is anything to drop it on."
    import base64

    from conftest import draw_snake

    path = heic(tmp_path / "IMG_0001.HEIC", draw_snake(3))
    app = start_app(REPO / "app.py", tmp_path, SNAKECLS_BUNDLE=str(tiny_bundle)).wait()
    page = browser.new_page()
    page.add_init_script("""const given = new DataTransfer();
        given.items.add(new File([Uint8Array.from(atob("PHOTO"), char => char.charCodeAt(0))], "IMG_0001.HEIC"));
        new MutationObserver((_, observer) => {
            const button = document.querySelector("#photo button");
            if (!button) return;
            observer.disconnect();
            button.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: given}));
            window.dropped = true;
        }).observe(document, {childList: true, subtree: true})""".replace("PHOTO", base64.b64encode(path.read_bytes()).decode()))
    page.goto(app.url)
    page.wait_for_selector(".sc-row", timeout=30_000)
    assert page.evaluate("window.dropped") is True
    page.close()


# Corrections: no line touches another


HEAD = "path,action,label,note,date,hash\n"


@pytest.mark.parametrize("content, told", [
    (HEAD + 'a.jpg,drop,"stray,,,\nb.jpg,drop,,,,\nc.jpg,keep,,,,\n', "line 2 of"),
    (HEAD + 'a.jpg,drop,,"he said "no"",,\nb.jpg,drop,,,,\n', "line 2 of"),
    ("a.jpg,drop,,,,\nb.jpg,drop,,,,\n", "line 1 of"),
    ("a;b\n1;2\n", "line 1 of"),
    (HEAD + "a.jpg,relabel,Naja, naja,,,,\n", "line 2 of"),
    (HEAD + "a.jpg,drop,,,,\nb.jpg,drop,," + "x" * 140_000 + ",,\n", "line 3 of"),
    (HEAD + ",,,,,\n", "line 2 of"),
    ("path,action,label,Path\na.jpg,drop,,\n", "line 1 of"),
])  # fmt: skip
def test_a_mistake_in_corrections_is_named_and_nothing_is_appended_to_it(tmp_path, content, told):
    from snakecls.data.corrections import add_correction, read_corrections

    file = tmp_path / "corrections.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=told):
        read_corrections(file)
    if not content.endswith(",,,,,\n"):  # an empty line is told when it is read
        with pytest.raises(UserError, match=told):
            add_correction(file, tmp_path / "z.jpg", action="drop")
        assert file.read_text() == content
    assert os.listdir(tmp_path) == ["corrections.csv"]


def test_corrections_of_other_programs_are_read(tmp_path):
    from snakecls.data.corrections import add_correction, read_corrections

    for number, content in enumerate(("Path,Action,Label\ra.jpg,drop,\rb.jpg,relabel,x\r", "sep=;\npath;action;label\na.jpg;drop;\nb.jpg;relabel;x\n", " PATH ,ACTION,label\r\na.jpg,drop\r\nb.jpg,relabel,x")):
        file = tmp_path / f"{number}.csv"
        file.write_bytes(content.encode())
        assert read_corrections(file).decisions["action"].tolist() == ["drop", "relabel"]
        add_correction(file, tmp_path / "c.jpg", action="keep")
        found = read_corrections(file).decisions
        assert [Path(path).name for path in found["path"]] == ["a.jpg", "b.jpg", "c.jpg"] and found["label"].tolist() == ["", "x", ""]


def test_decisions_of_several_writers_are_all_kept(tmp_path):
    from snakecls.data.corrections import read_corrections

    code = "import sys; from snakecls.data.corrections import add_correction\nfor i in range(15): add_correction('c.csv', f'{sys.argv[1]}{i}.jpg', action='drop')"
    writers = [subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPO)}) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_corrections(tmp_path / "c.csv").decisions) == 30


def test_paths_of_corrections_in_other_spellings(tmp_path):
    import unicodedata

    from snakecls.data.corrections import apply_corrections

    name = unicodedata.normalize("NFC", "Vipère")
    table = load_table(make(tmp_path / "d", f"{name}/1.jpg", f"{name}/2.jpg", "dog/3.jpg", "dog/4.jpg"))
    file = tmp_path / "d" / "c.csv"
    file.write_text(f"path,action,label\n{unicodedata.normalize('NFD', name)}/1.jpg,drop,\ndog\\3.jpg,relabel,{name}\n", encoding="utf-8")
    found, done = apply_corrections(table, file)
    assert done["outcome"].tolist() == ["dropped", "relabelled"] and found.table["label"].tolist() == [name, name, "dog"]


def test_corrections_move_names_alone_and_never_a_group(tmp_path):
    from snakecls.data.corrections import add_correction, apply_corrections

    rows = [(f"{i}.jpg", "ab"[i % 2], "AB"[i % 2], "st"[i % 2], "FG"[i % 2], "yn"[i % 2]) for i in range(8)]
    table = pd.DataFrame(rows, columns=["path", "label", "genus", "observation_id", "family", "venomous"])
    table["path"] = [str(tmp_path / path) for path in table["path"]]
    for path in table["path"]:
        Path(path).write_text(path)
    file = tmp_path / "c.csv"
    add_correction(file, table["path"][0], action="relabel", label="b")
    add_correction(file, table["path"][1], action="drop")
    Path(table["path"][1]).write_text("another photo")
    noted, done = apply_corrections(table, file, group="family")
    found = noted.table
    assert found.iloc[0, 1:].tolist() == ["b", "B", "s", "F", "n"] and len(found) == 8
    assert done["outcome"].tolist() == ["relabelled, and with it genus, venomous", "another photo"]
    assert any("decide again" in note for note in noted.notes)


# Folders for splits with other names; links; what was unpacked; copies


@pytest.mark.parametrize("train, other, split", [
    ("train2017", "val2017", "valid"), ("TrainSet", "TestSet", "test"), ("trainData", "testData", "test"), ("images_train", "images_val", "valid"), ("01_train", "02_val", "valid"), ("train", "val1", "valid"),
    ("seg_train/seg_train", "seg_test/seg_test", "test"), ("traindata", "testdata", "test"), ("Train2019/images", "Val2019/images", "valid"),
])  # fmt: skip
def test_splits_with_other_names(tmp_path, train, other, split):
    make(tmp_path, *photos(f"{train}/cat", f"{train}/dog", f"{other}/cat", f"{other}/dog"), "seg_pred/seg_pred/x.jpg")
    noted = read_table(tmp_path)
    table = noted.table
    assert set(table["label"]) == {"cat", "dog"} and set(table["split"]) == {"train", split} and len(table) == 12
    assert train in ("train",) or any("read as splits" in note and "data.label_level: 1" in note for note in noted.notes)
    assert "split" not in load_table(tmp_path, label_level=1)


@pytest.mark.parametrize("names", [("train station/day", "train station/night", "bus station/day", "bus station/night"), ("freight_train/red", "freight_train/blue", "steam_train/red", "steam_train/blue"),
                                   ("train_set/a", "train_set/b", "test_tube/c", "test_tube/d")])  # fmt: skip
def test_classes_that_are_no_splits(tmp_path, names):
    assert "split" not in load_table(make(tmp_path, *photos(*names)), label_level="auto") or names[0] == "train_set/a"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_the_folder_itself_comes_before_links_to_it(tmp_path):
    make(tmp_path / "set", *photos("cat", "dog", "wolf"))
    for link, target in (("cat/see_also", "../dog"), ("aaa", "dog"), ("cat/up", "../.."), ("zzz", "."), ("dog/c.jpg", "../cat/cat0.jpg")):
        (tmp_path / "set" / link).symlink_to(target)
    make(tmp_path / "store", *photos("fox"))
    (tmp_path / "set/fox").symlink_to("../store/fox")
    noted = read_table(tmp_path / "set")
    table = noted.table
    assert table["label"].value_counts().to_dict() == {"cat": 3, "dog": 3, "wolf": 3, "fox": 3}
    (note,) = [note for note in noted.notes if "5 links" in note]
    assert "'aaa' is a link to 'dog', which was read already" in note and "'cat/up' is a link to a folder that holds this one" in note


def test_the_unpacked_zip_is_no_class_unless_it_is_meant(tmp_path):
    import zipfile

    make(tmp_path, *photos("cat", "dog"))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in photos("cat", "dog"):
            archive.writestr(name, b"x")
    load_table(tmp_path / "photos.zip")
    noted = read_table(tmp_path)
    table = noted.table
    assert set(table["label"]) == {"cat", "dog"} and any("what was unpacked from a zip ('photos.unpacked')" in note for note in noted.notes)
    make(tmp_path / "around")
    (tmp_path / "around").mkdir(exist_ok=True)
    (tmp_path / "photos.unpacked").rename(tmp_path / "around/photos.unpacked")
    assert set(load_table(tmp_path / "around")["label"]) == {"cat", "dog"}


def test_programs_and_their_copies_are_no_classes(tmp_path):
    names = photos("cat", "dog")
    copies = [f"cat/{folder}/{prefix}cat{i}.jpg" for folder, prefix in (("thumbs", "thumb_"), ("Thumbnails", ""), ("_thumbs", "tn_"), ("Picasa", ""), ("Originals", "")) for i in range(3)]
    junk = ["~snapshot/h/cat/c1.jpg", "RECYCLER/S-1-5-21/x.jpg", "Network Trash Folder/x.jpg", "Temporary Items/x.jpg", "@tmp/x.jpg", "@sharebin/x.jpg", "_gsdata_/x.jpg", "Previews.lrdata/x.jpg", "A.aplibrary/x.jpg",
            "mlruns/0/meta.yaml", "mlruns/0/x.jpg", "lightning_logs/version_0/x.jpg", "flagged/log.csv", "flagged/image/x.jpg", "env/lib/python3/site-packages/x.png", "build/lib/x.png"]  # fmt: skip
    noted = read_table(make(tmp_path, *names, *copies, *junk))
    table = noted.table
    assert len(table) == 6 and set(table["label"]) == {"cat", "dog"}
    assert {Path(issue["path"]).name for issue in noted.issues if issue["issue"] == "left out"} == {name.split("/")[0] for name in junk} | {name.split("/")[1] for name in copies}


def test_classes_called_like_a_programs_folders_stay_and_are_told(tmp_path):
    names = ("thumbs", "Originals", "flagged", "build", "env", "mlruns", "Recycler")
    noted = read_table(make(tmp_path, *[f"{name}/{i}.jpg" for name in (*names, "cat") for i in range(3)], "cat/originals/9.jpg"))
    table = noted.table
    assert set(table["label"]) == {*names, "cat"} and len(table) == 25
    (note,) = noted.notes
    assert "read 8 folders" in note and "move them elsewhere" in note
    table = load_table(make(tmp_path, *[f"{i}.jpg" for i in range(3)]))  # loose ones of the same names make no copies of a class
    assert set(table["label"]) == {*names, "cat"} and len(table) == 25


@pytest.mark.skipif(os.name == "nt", reason="there are no such names there")
def test_names_with_line_breaks_are_told_on_one_line(tmp_path):
    noted = read_table(make(tmp_path, *photos("cat", "dog"), "wolf\nfox/1.jpg", "cat/a\nb.jpg", "cat/c\\d.jpg"))
    table = noted.table
    (note,) = noted.notes
    assert len(table) == 6 and "\n" not in note and "holds a line break" in note and "holds a backslash" in note and r"wolf\nfox" in note
    draw(tmp_path / "a\nb.jpg", 1)
    code, _, err = command("predict", tmp_path / "a\nb.jpg", cwd=tmp_path)
    assert code == 2 and "line break" in err and len(err.strip().splitlines()) == 1


# Archives: names as their programs wrote them


def test_names_in_archives_are_read_as_they_were_written(tmp_path):
    import zipfile

    from snakecls.data.archives import unpack_zip

    path = tmp_path / "photos.zip"
    names = ["set\\Vip\u00e8re\\1.jpg", "set\\Boa\\2.jpg", "set\\Boa\\", "set/Boa/3.jpg"]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name.replace("\u00e8", "##"), b"" if name.endswith("\\") else name.encode())
        archive.writestr("set/Boa/3.jpg", b"the last")
    path.write_bytes(path.read_bytes().replace(b"Vip##re", "Vip\u00e8re".encode()))  # without the flag that says so
    noted = read_table(path)
    table = noted.table
    assert set(table["label"]) == {"Vip\u00e8re", "Boa"} and len(table) == 3
    assert any("unpacked 3 files" in note and "1 name stands in it more than once ('set/Boa/3.jpg')" in note for note in noted.notes)
    folder = tmp_path / "photos.unpacked"
    assert (folder / "set/Boa/3.jpg").read_bytes() == b"the last"
    note = json.loads((folder / ".unpacked.json").read_text())  # as an earlier version left it
    (folder / ".unpacked.json").write_text(json.dumps({key: value for key, value in note.items() if key != "names"}))
    (folder / "set").rename(folder / "other")
    assert (unpack_zip(path)[0] / "set/Boa/3.jpg").exists() and "was unpacked before" in unpack_zip(path)[1]
    old = tmp_path / "old.zip"
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("##/1.jpg", b"x")
    old.write_bytes(old.read_bytes().replace(b"##", b"\x8a\x82"))  # cp437
    assert (unpack_zip(old)[0] / "\u00e8\u00e9/1.jpg").exists()


# Patterns; photos that a model has seen


@pytest.mark.skipif(sys.platform != "linux", reason="links and names")
def test_patterns_leave_out_what_folders_leave_out(tmp_path):
    from snakecls.data.given import _find_photos, pattern_table

    for name in ("cat/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "cat/thumbs/1.jpg", "dog/2.jpg", "cat/a\nb.jpg"):
        draw(tmp_path / "p" / name, 0)
    (tmp_path / "p/dog/notes.txt").touch()
    with open(os.fsencode(tmp_path / "p/cat") + b"/odd\xff.jpg", "wb") as stream:
        stream.write((tmp_path / "p/cat/1.jpg").read_bytes())
    (tmp_path / "p/cat/more").symlink_to("../dog")
    said: list[str] = []
    assert [os.path.relpath(path, tmp_path / "p") for path in _find_photos(f"{tmp_path}/p/**/*", say=said.append)] == ["cat/1.jpg", "dog/2.jpg"]
    text = "\n".join(said)
    assert all(words in text for words in ("thumbnails of a NAS", "thumbnails of the photos", r"odd\xff.jpg", r"a\nb.jpg", "which was read already", "notes.txt")) and len(said) == 4, text
    assert set(pattern_table(f"{tmp_path}/p/**/*.jpg")["label"]) == {"cat", "dog"}
    assert len(_find_photos(f"{tmp_path}/p/cat/@eaDir/*/*.jpg")) == 1  # asked for by name
    before = os.getcwd()
    os.chdir(tmp_path / "p")
    try:
        assert _find_photos("**/*.jpg") == ["cat/1.jpg", "dog/2.jpg"] and _find_photos("cat/*") == ["cat/1.jpg"]
    finally:
        os.chdir(before)


def test_scores_on_photos_that_the_model_knows_are_told(nas, tmp_path):
    import shutil

    (manifest, *_) = sorted((nas / "runs").glob("*/manifest.parquet"))
    known = pd.read_parquet(manifest)
    trained = int((known["split"] == "train").sum())
    code, _, err = command("evaluate", manifest.parent / "best", "--data", ".", cwd=nas)
    assert code == 0 and f"{trained} of 24 it was trained on" in err and "it was chosen by" in err, err
    for label, rows in known[known["split"] == "train"].groupby("label"):
        (tmp_path / "copy" / label).mkdir(parents=True)
        shutil.copy(rows["path"].iloc[0], tmp_path / "copy" / label / "renamed.jpg")
        draw(tmp_path / "copy" / label / "new.jpg", 5, size=(44, 30))
    code, out, err = command("evaluate", manifest.parent / "best", "--data", "copy", cwd=tmp_path)
    assert code == 0 and "3 of 6 it was trained on ('renamed.jpg'" in out + err and "chosen by" not in out + err, err
    for folder in (tmp_path / "copy").iterdir():
        (folder / "renamed.jpg").unlink()
    code, out, err = command("evaluate", manifest.parent / "best", "--data", "copy", cwd=tmp_path)
    assert code == 0 and "trained on" not in out + err, err
