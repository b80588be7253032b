"""Whatever lies in a file becomes a verdict, the reader agrees with it, and copies are found."""
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from snakecls.clean.duplicates import find_duplicates
from snakecls.clean.files import check_files
from snakecls.data.photos import PhotoError, open_photo
from snakecls.clean.scan import scan_files
from snakecls.data.tables import load_table

REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}


def real(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"the real photographs are not there ({REAL / name}); set SNAKECLS_REAL_DATA")
    return REAL / name


def encoded(generator: np.random.Generator, format: str) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((64, 48))
    options = {"JPEG": {"progressive": bool(generator.random() < 0.5)}, "TIFF": {"compression": str(generator.choice(["tiff_lzw", "jpeg", "raw"]))}}
    image.save(stream, format, **options.get(format, {}))
    return stream.getvalue()


def mutated(generator: np.random.Generator, data: bytes, other: bytes) -> bytes:
    "Cut, flip bytes anywhere, flip bytes of the header, give it another's header, repeat a part."
    kind, place = int(generator.integers(5)), int(generator.integers(1, len(data)))
    changed = bytearray(data)
    if kind == 0:
        return data[:place]
    if kind in (1, 2):
        for at in generator.integers(0, len(data) if kind == 1 else min(60, len(data)), int(generator.integers(1, 9))):
            changed[at] = int(generator.integers(256))
        return bytes(changed)
    if kind == 3:
        return other[:40] + data[40:]
    return data[:place] + data[place // 2 :]


def test_500_mutated_images_become_verdicts(tmp_path):
    generator, paths = np.random.default_rng(0), []
    for number in range(500):
        suffix, other = generator.choice(list(FORMATS), 2)
        path = tmp_path / f"{number:03d}.{suffix}"
        path.write_bytes(mutated(generator, encoded(generator, FORMATS[suffix]), encoded(generator, FORMATS[other])))
        paths.append(str(path))
    issues = check_files(paths, pixel_limit=10**6, n_workers=1)
    dropped = set(issues.loc[issues["verdict"] == "drop", "path"])
    refused = set()
    for path in paths:
        try:
            assert open_photo(path, max_pixels=10**6).mode == "RGB"
        except PhotoError:
            refused.add(path)
    assert dropped == refused and 100 < len(dropped) < 450
    assert set(issues["verdict"]) <= {"drop", "repaired", "look"} and issues["reason"].str.len().min() > 10


def test_killed_pass_goes_on(tmp_path, monkeypatch):
    from snakecls.clean import scan

    generator, calls = np.random.default_rng(0), []
    for number in range(150):
        (tmp_path / f"{number:03d}.jpg").write_bytes(encoded(generator, "JPEG"))
    paths, examine = sorted(map(str, tmp_path.glob("*.jpg"))), scan.examine

    def counted(path, limit):
        calls.append(path)
        if len(calls) == 100:
            raise KeyboardInterrupt
        return examine(path, limit)

    monkeypatch.setattr(scan, "examine", counted)
    with pytest.raises(KeyboardInterrupt):
        scan_files(paths, cache=tmp_path / "photos.sqlite", n_workers=1)
    kept = set(calls[:96])  # whole chunks of 16
    calls.clear()
    facts = scan_files(paths, cache=tmp_path / "photos.sqlite", n_workers=1)
    assert (facts["issue"] == "").all() and len(calls) == 54 and not kept & set(calls)


@pytest.mark.skipif(os.name == "nt", reason="the change reaches the processes by fork")
def test_a_photo_that_kills_its_process_costs_itself_alone(tmp_path, monkeypatch):
    from snakecls.clean import scan

    generator = np.random.default_rng(0)
    for number in range(40):
        (tmp_path / f"{number:03d}.jpg").write_bytes(encoded(generator, "JPEG"))
    examine = scan.examine
    monkeypatch.setattr(scan, "examine", lambda path, limit: os._exit(1) if path.endswith("013.jpg") else examine(path, limit))
    issues = check_files(sorted(map(str, tmp_path.glob("*.jpg"))), n_workers=2, min_size=1)
    assert issues[["issue", "verdict"]].values.tolist() == [["damaged", "drop"]] and issues["path"][0].endswith("013.jpg")


def test_many_copies_of_one_photo(tmp_path):
    data = encoded(np.random.default_rng(0), "PNG")
    for number in range(300):
        (tmp_path / f"{number}.png").write_bytes(data)
    issues = find_duplicates(pd.DataFrame({"path": [str(tmp_path / f"{n}.png") for n in range(300)], "label": "x"}))
    assert issues["verdict"].value_counts().to_dict() == {"drop": 299, "keep": 1}


@pytest.mark.real
def test_real_butterflies():
    facts = scan_files(load_table(real("butterflies_noisy")))
    issues = check_files(facts)
    odd = issues[issues["verdict"] == "repaired"]
    assert odd["path"].nunique() == 13
    assert odd["issue"].value_counts().to_dict() == {"palette": 6, "RGBA": 4, "wrong extension": 4, "MPO": 2, "grey with transparency": 1, "16-bit": 1}  # one of the RGBA has 16 bits
    assert set(issues["verdict"]) == {"repaired", "look"}
    copies = find_duplicates(facts)
    conflicts = copies[(copies["issue"] == "conflicting labels") & (copies["score"] == 1)]
    exact = copies[copies["issue"] == "exact duplicate"]
    groups = facts[facts["path"].isin(exact["path"])].groupby("sha")["label"].nunique()
    assert len(exact) == 17 and len(groups) == 8 and (groups > 1).all() and set(exact["verdict"]) == {"look"}
    assert set(exact["path"]) <= set(conflicts["path"])


@pytest.mark.real
def test_real_snakes():
    issues = find_duplicates(load_table(real("snakes_ph")))
    leaks = issues[issues["issue"] == "leak"]
    across = {(Path(path).stem, score) for path, score in zip(leaks["path"], leaks["score"]) if "/val/" in path}
    names = ("coelognathus_erythrurus__val_0003", "coelognathus_erythrurus__val_0010", "tropidolaemus_philippensis__val_0004")  # all three looked at: copies
    assert sorted(stem.partition("snake__")[2] or stem.partition("viper__")[2] for stem, _ in across) == sorted(names)


def test_odd_files_are_named(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
    lying = Image.Exif()
    lying[0x0112] = 6
    for name, image, options in [
        ("fine.jpg", noise, {}), ("turned.jpg", noise, {"exif": lying}), ("print.jpg", noise.convert("CMYK"), {}), ("palette.png", noise.quantize(16), {}),
        ("clear.png", noise.quantize(16), {"transparency": 0}), ("alpha.png", noise.convert("RGBA"), {}), ("moving.gif", noise, {"save_all": True, "append_images": [noise.rotate(90)]}),
        ("stereo.mpo", noise, {"save_all": True, "append_images": [noise]}), ("icon.bmp", noise.resize((20, 20)), {}), ("white.png", Image.new("RGB", (70, 70), "white"), {}),
        ("deep.png", Image.fromarray(np.arange(4900, dtype=np.uint16).reshape(70, 70) * 13), {}), ("huge.png", Image.new("1", (9000, 9000)), {}),
    ]:
        image.save(tmp_path / name, **options)
    (tmp_path / "png.jpg").write_bytes((tmp_path / "alpha.png").read_bytes())
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "fine.jpg").read_bytes()[:900])
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.jpg").touch()
    issues = check_files([*sorted(tmp_path.iterdir()), tmp_path / "gone.jpg"], pixel_limit=10**7)
    assert set(zip(issues["path"].map(lambda path: Path(path).stem), issues["issue"], issues["verdict"])) == {
        ("turned", "EXIF-rotated", "repaired"), ("print", "CMYK", "repaired"), ("palette", "palette", "repaired"), ("clear", "palette with transparency", "repaired"),
        ("alpha", "RGBA", "repaired"), ("png", "RGBA", "repaired"), ("png", "wrong extension", "repaired"), ("moving", "animated", "repaired"), ("moving", "palette", "repaired"),
        ("stereo", "MPO", "repaired"), ("icon", "too small", "look"), ("white", "one colour", "look"), ("deep", "16-bit", "repaired"), ("huge", "too large", "drop"),
        ("cut", "truncated", "drop"), ("page", "not an image", "drop"), ("empty", "empty", "drop"), ("gone", "missing", "drop")}


def test_the_limit_of_pixels_and_what_is_known(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    paths = [str(tmp_path / "a.jpg")]
    scan_files(paths, cache=tmp_path / "known.sqlite")
    assert scan_files(paths, cache=tmp_path / "known.sqlite", pixel_limit=100)["issue"].tolist() == [""]  # known already; clean.files applies the limit
    small = tmp_path / "small.sqlite"
    assert [scan_files(paths, cache=small, pixel_limit=limit)["issue"][0] for limit in (100, 5000, 100)] == ["too large", "", ""]


def test_a_check_from_before_the_column_of_other_photos_can_be_reviewed():
    from snakecls.clean.check_folder import _read_others

    paths = ["/data/a b/1.jpg", "/data/a b/11.jpg", "/data/a b/1.jpg (2).jpg"]
    reasons = ["like /data/a b/11.jpg (train); /data/a b/1.jpg (2).jpg and 2 more", "like /data/a b/1.jpg (2).jpg (test)", "no path, and not x/data/a b/1.jpg"]
    assert _read_others(pd.DataFrame({"path": paths, "reason": reasons})) == [paths[1:], paths[2:], []]
