"The demonstration data: the same for a seed whatever the workers, with every fault on record."

import csv
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snakecls.core import UserError
from snakecls.data.demo.draw import make_demo
from snakecls.data.demo.species import SPECIES

PAIR = ["Micrurus fulvius", "Lampropeltis elapsoides"]
FAULTS = {"label_noise": 0.25, "distractors": 3, "exact_duplicates": 2, "near_duplicates": 2, "broken": 4}


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / f"{name}.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def content(folder: Path) -> dict[str, str]:
    "Hash every file of a folder but the note of what was asked for."
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "demo.json")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "faulty", seed=1, n_per_species=8, size_px=64, species=PAIR, n_workers=1, **FAULTS)


def test_workers_do_not_matter(faulty: Path, tmp_path: Path) -> None:
    again = make_demo(tmp_path / "again", seed=1, n_per_species=8, size_px=64, species=PAIR, n_workers=3, **FAULTS)
    assert content(again) == content(faulty)
    other = make_demo(tmp_path / "other", seed=2, n_per_species=3, size_px=64, species=PAIR, n_workers=1)
    drawn = [{digest for path, digest in content(folder).items() if path.endswith(".jpg")} for folder in (other, faulty)]
    assert not drawn[0] & drawn[1]


def test_a_photo_does_not_depend_on_the_others(faulty: Path, tmp_path: Path) -> None:
    fewer = content(make_demo(tmp_path / "fewer", seed=1, n_per_species=5, size_px=64, species=["Vipera berus", PAIR[0]], n_workers=1))
    clean = content(make_demo(tmp_path / "clean", seed=1, n_per_species=8, size_px=64, species=PAIR, n_workers=1))
    coral = {path: digest for path, digest in fewer.items() if "Micrurus" in path}
    assert len(coral) == 5 and coral.items() <= clean.items()
    photos = {path: digest for path, digest in clean.items() if path.startswith("photos/")}
    assert photos.items() <= content(faulty).items()


def test_truth_records_every_fault(faulty: Path) -> None:
    photos, truth = table(faulty, "photos"), table(faulty, "truth")
    assert [row["path"] for row in photos] == [row["path"] for row in truth]
    assert len({row["path"] for row in photos}) == len(photos) == 2 * 8 + 3 + 2 + 2 + 4
    own = [row for row in truth if not (row["distractor"] or row["duplicate_of"] or row["broken"])]
    flipped = [row for row in own if row["label_flipped"] == "True"]
    assert len(flipped) == round(0.25 * sum(row["split"] != "test" for row in photos[: len(own)]))
    assert all((row["binomial"] != row["true_binomial"]) == (row["label_flipped"] == "True") for row in own)
    split = {row["path"]: row["split"] for row in photos}
    assert all(split[row["path"]] != "test" for row in truth if row["label_flipped"] == "True" and not row["duplicate_of"])
    for row in truth:
        if row["distractor"]:
            assert row["distractor"] in ("rope", "hose", "stick") and not row["true_binomial"] and split[row["path"]] != "test"
        if row["duplicate_of"]:
            same = (faulty / row["path"]).read_bytes() == (faulty / row["duplicate_of"]).read_bytes()
            assert same == (row["duplicate_kind"] == "exact")
        if row["broken"]:
            with pytest.raises(OSError):
                Image.open(faulty / row["path"]).load()
        else:
            assert Image.open(faulty / row["path"]).convert("RGB").size[0] <= 64
    assert sorted(row["broken"] for row in truth if row["broken"]) == ["empty", "random bytes", "truncated", "web page"]


@pytest.mark.parametrize("n", [3, 4, 12, 20])
def test_splits_never_part_an_observation(n: int, tmp_path: Path) -> None:
    folder = make_demo(tmp_path / "demo", seed=n, n_per_species=n, size_px=32, n_workers=2)
    observations, counts = defaultdict(set), defaultdict(lambda: defaultdict(int))
    for row in table(folder, "photos"):
        observations[row["observation_id"]].add((row["split"], row["binomial"], row["country"]))
        counts[row["binomial"]][row["split"]] += 1
    assert all(len(found) == 1 for found in observations.values())
    assert len(counts) == 12
    for split in counts.values():
        assert set(split) == {"train", "valid", "test"} and split["train"] == max(split.values())


def test_photos_of_an_observation_look_alike(tmp_path: Path) -> None:
    folder = make_demo(tmp_path / "demo", n_per_species=30, size_px=48, species=PAIR, n_workers=2)
    colours = defaultdict(list)
    for row in table(folder, "photos"):
        colours[row["observation_id"]].append(np.asarray(Image.open(folder / row["path"])).mean((0, 1)))
    groups = [np.stack(group) for group in colours.values()]
    within = np.mean([group.std(0).mean() for group in groups if len(group) > 1])
    assert max(map(len, groups)) <= 3 and within < 0.5 * np.std([group[0] for group in groups], 0).mean()


def test_facts_are_complete() -> None:
    venomous = {name for name, species in SPECIES.items() if species.venomous}
    assert venomous == {"Micrurus fulvius", "Crotalus adamanteus", "Crotalus horridus", "Agkistrodon contortrix", "Vipera berus", "Bungarus fasciatus"}
    assert {species.family for species in SPECIES.values()} == {"Elapidae", "Viperidae", "Colubridae"}
    assert len({species.genus for species in SPECIES.values()}) == 10


def test_an_interrupted_drawing_goes_on(faulty: Path, tmp_path: Path) -> None:
    arguments = {"seed": 1, "n_per_species": 3, "size_px": 64, "species": PAIR, "n_workers": 1}
    folder = make_demo(tmp_path / "demo", **arguments)
    before = content(folder)
    lost = folder / next(iter(path for path in before if path.endswith(".jpg")))
    kept = [file for file in folder.rglob("*.jpg") if file != lost]
    times = [file.stat().st_mtime_ns for file in kept]
    lost.unlink()
    make_demo(folder, **arguments)
    assert content(folder) == before and [file.stat().st_mtime_ns for file in kept] == times


def test_a_folder_with_something_else_is_refused(faulty: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another seed"):
        make_demo(faulty, seed=3, n_per_species=8, size_px=64, species=PAIR, **FAULTS)
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="not empty"):
        make_demo(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        make_demo(tmp_path / "thesis.txt")


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"species": ["Micrurus fulvus", "Vipera berus"]}, "did you mean"), ({"label_noise": 1.5}, "label_noise is 1.5"), ({"size_px": 8}, "size_px is 8"), ({"broken": -1}, "broken is -1")],
)
def test_impossible_requests_are_refused(argument: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_demo(tmp_path / "demo", **argument)
    assert not (tmp_path / "demo").exists()
