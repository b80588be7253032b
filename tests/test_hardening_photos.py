"""Photos that unfold, photos that no memory holds, photos with nothing on them, damaged photos of every format."""
import csv
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO, need
from PIL import Image
from test_faults_folders import SMALL, command, draw

from snakecls.data import photos as module
from snakecls.clean.files import check_files
from snakecls.data.photos import TURNS, PhotoError, PhotoSpec, PlainPhotoError, open_photo, prepare_photo

WIDTH, HEIGHT = 6_000, 5_000  # 30 megapixels: 90 MB in 8 bits, so that 308 MB are allowed


# Memory

PEAK = """
import re, resource, sys, warnings
warnings.simplefilter("ignore")
import pillow_heif
from snakecls.data.photos import PhotoError, open_photo, known_formats
known_formats()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
try:
    photo = open_photo(sys.argv[1], max_pixels=50_000_000)
    print(peak() - before, photo.width * photo.height, photo.mode)
except PhotoError as e:
    print(peak() - before, 0, e)
"""


def peak_of(path: Path) -> tuple[int, int, str]:  # bytes beyond what the process had, pixels, mode or what was said
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    used, pixels, said = done.stdout.strip().split(" ", 2)
    return int(used), int(pixels), said


def deep_png(channels: int, kind: int) -> bytes:
    "A PNG of 16 bits for each value; Pillow does not write these."
    packer, row = zlib.compressobj(1), b"\0" + b"\x90\x11" * channels * WIDTH
    data = b"".join(packer.compress(row) for _ in range(HEIGHT)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks)


def bomb(mode: str, format: str, path: Path) -> None:
    "Write a large photo that packs well."
    picture = Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 60))
    picture.paste((10, 200, 10), (0, 0, WIDTH // 2, HEIGHT // 3))
    options = {"PNG": {"compress_level": 1}, "TIFF": {"compression": "tiff_adobe_deflate"}, "JPEG": {"quality": 50}}.get(format, {})
    if mode == "deep RGBA":
        path.write_bytes(deep_png(4, 6))
        return
    if mode == "I;16":
        picture = Image.frombytes("I;16", picture.size, b"\x11\x90" * (WIDTH * HEIGHT))
    elif mode == "P clear":
        picture, options["transparency"] = picture.convert("P"), 3
    elif mode != "RGB":
        picture = picture.convert("L").convert(mode) if mode in ("F", "I", "LA", "1") else picture.convert(mode)
    picture.save(path, format, **options)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("mode, format", [("F", "TIFF"), ("I;16", "PNG"), ("deep RGBA", "PNG"), ("LA", "PNG"), ("P clear", "PNG"), ("CMYK", "TIFF")])
def test_a_photo_unfolds_to_no_more_than_its_size(tmp_path, mode, format):
    bomb(mode, format, tmp_path / "bomb")
    used, pixels, said = peak_of(tmp_path / "bomb")
    assert (pixels, said) == (WIDTH * HEIGHT, "RGB")
    assert used <= 1.2 * 3 * pixels + 200e6, f"{used / 1e6:.0f} MB"


@pytest.mark.parametrize("format, options", [("WEBP", {"lossless": True, "method": 0}), ("JPEG", {"progressive": True, "subsampling": 0}), ("JPEG2000", {"quality_mode": "rates", "quality_layers": [500]}), ("TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 2**31 - 1})])
def test_what_its_decoder_unfolds_is_refused_before(format, options, monkeypatch):
    image = Image.new("RGB", (4_000, 3_000)) if format != "TIFF" else Image.new("F", (4_000, 3_000))
    stream = io.BytesIO()
    image.save(stream, format, **options)
    assert open_photo(stream.getvalue()).size == (4_000, 3_000)  # 12 megapixels, as telephones take them
    with monkeypatch.context() as patch:
        patch.setattr(module, "_peak_bytes", lambda n: 4.5 * 12e6)  # as much as the image itself takes
        patch.setattr(Image.core, "new", lambda *args: (_ for _ in ()).throw(AssertionError("it was decoded")))
        with pytest.raises(PhotoError, match=rf"decoding its 4000 x 3000 pixels \({format}, .*\) takes \d+ MB, and 54 MB are allowed"):
            open_photo(stream.getvalue())
    with pytest.raises(PhotoError, match="more than the 1,000 allowed"):
        open_photo(stream.getvalue(), max_pixels=1_000)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16", "F"])
def test_a_photo_in_strips_is_the_photo_as_a_whole(mode, monkeypatch):
    generator = np.random.default_rng(0)
    if mode == "F":
        values = (generator.random((37, 53)) * 300).astype(np.float32)
        values[5, 7] = np.nan
        image = Image.fromarray(values)
    else:
        colours = Image.fromarray(generator.integers(0, 256, (37, 53, 4), dtype=np.uint8), "RGBA")
        image = Image.frombytes("I;16", (53, 37), generator.bytes(53 * 37 * 2)) if mode == "I;16" else colours.convert("RGB").quantize(16) if mode == "P" else colours.convert(mode) if mode in ("LA", "RGBA") else colours.convert("RGB").convert(mode)
    for orientation in (1, *TURNS):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        image.save(stream, "TIFF" if mode in ("F", "CMYK") else "PNG", exif=exif.tobytes())
        whole = open_photo(stream.getvalue())
        with monkeypatch.context() as patch:
            patch.setattr("snakecls.data.pixels.STRIP_PIXELS", 200)
            assert open_photo(stream.getvalue()) == whole
            patch.setattr(module, "_peak_bytes", lambda n: 10**9 if n > 10**6 else 0)  # too large to stand in memory twice
            assert open_photo(stream.getvalue()) == whole
            patch.setattr(module.tempfile, "TemporaryFile", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert open_photo(stream.getvalue()) == whole


def test_the_limit_holds_for_arrays_and_images_too():
    for source in (np.zeros((100, 100), np.float64), np.zeros((100, 100, 3), np.uint8), Image.new("RGB", (100, 100))):
        with pytest.raises(PhotoError, match="100 x 100 pixels are more than the 9,999 allowed"):
            open_photo(source, max_pixels=9_999)
        assert open_photo(source, max_pixels=10_000).size == (100, 100)
    image = Image.new("RGB", (30, 30), "red")
    open_photo(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (255, 0, 0)  # the caller's own is not touched


def test_no_memory_is_one_sentence(tmp_path, monkeypatch, tiny_bundle):
    for i in range(6):
        for place, label in enumerate(("Natrix natrix", "Micrurus fulvius")):
            draw(tmp_path / f"photos/{label}/{i}.jpg", place)
    full, decode, resize = "3.jpg", module.decode, module.resize_photo

    def fails(image, *rest, **more):
        if full in str(getattr(image, "filename", "") or getattr(getattr(image, "fp", None), "name", "")):
            raise MemoryError
        return decode(image, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", fails)
        patch.setattr("snakecls.clean.photo_facts.decode", fails)
        with pytest.raises(PhotoError, match="3.jpg cannot be read as a photo: it does not fit into the memory that is free"):
            open_photo(tmp_path / "photos/Natrix natrix/3.jpg")
        issues = check_files([tmp_path / "photos/Natrix natrix/3.jpg"], n_workers=1)
        assert issues["issue"].tolist() == ["not looked at"] and "memory" in issues["reason"][0]
        code, out, err = command("predict", "photos/Natrix natrix", "--model", tiny_bundle, "--json", cwd=tmp_path)
        assert code == 2 and err.count("\n") == err.strip().count("\n") + 1 and "Traceback" not in err
        assert ["memory" in row.get("error", "") for row in json.loads(out)] == [i == 3 for i in range(6)]
        code, _, err = command("evaluate", "--model", tiny_bundle, "--data", "photos", cwd=tmp_path)
        assert "3.jpg cannot be read as a photo: it does not fit into the memory" in err and "Traceback" not in err, (code, err)
        code, _, err = command("check", "photos", "--files-only", cwd=tmp_path)
        assert code == 0 and "Traceback" not in err
        code, _, err = command("train", "--data", "photos", *SMALL, cwd=tmp_path)
        assert code == 0 and "Traceback" not in err, err
        (run,) = tmp_path.glob("runs/*")
        assert pd.read_parquet(run / "issues.parquet")["reason"].str.contains("memory").sum() == 2
    monkeypatch.setattr(module, "resize_photo", lambda photo, spec: (_ for _ in ()).throw(MemoryError()) if photo.size == (40, 32) else resize(photo, spec))
    with pytest.raises(PhotoError, match="does not fit into the memory"):
        prepare_photo(tmp_path / "photos/Natrix natrix/0.jpg", PhotoSpec(32))
    monkeypatch.setattr("snakecls.deploy.predict.PhotoPredictor.probs_all", lambda *args, **more: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr(module, "resize_photo", resize)
    code, _, err = command("predict", "photos/Natrix natrix", "--model", tiny_bundle, cwd=tmp_path)
    assert code == 1 and "there is not enough memory" in err and "train.bs" not in err and "Traceback" not in err.split("The traceback")[0]


# Nothing to see


def nothing(folder: Path) -> dict[str, Path]:
    "Photos with nothing on them."
    dark = np.clip(np.random.default_rng(0).normal(4, 6, (480, 640, 3)), 0, 255).astype(np.uint8)
    images = {"pixel.png": Image.new("RGB", (1, 1), "red"), "line.png": Image.effect_noise((300, 2), 90), "white.jpg": Image.new("RGB", (640, 480), "white"), "cap.jpg": Image.fromarray(dark), "clear.png": Image.new("RGBA", (64, 64), (1, 2, 3, 0))}
    for name, image in images.items():
        image.save(folder / name)
    return {name: folder / name for name in images}


def test_a_photo_with_nothing_on_it_gets_no_answer(tmp_path, tiny_bundle, photo):
    from snakecls.deploy.app import show_answer
    from snakecls.deploy.predict import EnsemblePredictor, Predictor

    predictor, files = Predictor(tiny_bundle), nothing(tmp_path)
    for served in (predictor, EnsemblePredictor([tiny_bundle, tiny_bundle])):
        for path in files.values():
            for source in (path, path.read_bytes(), Image.open(path)):
                for ask in (served.predict, served.predict_all, lambda given, served=served: served.probs([photo, given])):
                    with pytest.raises(PlainPhotoError, match="nothing to see"):
                        ask(source)
            page = show_answer(served, str(path))
            assert "There is nothing to see on this photo" in page and "does not mean that nothing venomous is there" in page and "sc-row" not in page
    assert len(predictor.predict(photo)) == 3
    gr = need("gradio")
    from snakecls.deploy.app import answer_json

    with pytest.raises(gr.Error, match="nothing to see.*does not mean that nothing venomous"):
        answer_json(predictor, str(files["white.jpg"]))
    code, out, err = command("predict", *files.values(), photo, "--model", tiny_bundle, "--json", "--csv", "answers.csv", cwd=tmp_path)
    rows = json.loads(out)
    assert code == 2 and "5 of 6 photos got no answer" in err
    assert all(set(row) == {"path", "error"} and "nothing to see" in row["error"] and "nothing venomous" in row["error"] for row in rows[:5]) and len(rows[5]["top"]) == 3
    with open(tmp_path / "answers.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in table] == [True] * 5 + [False] and not any(row["rank1"] for row in table[:5])
    code, out, _ = command("predict", files["white.jpg"], "--model", tiny_bundle, cwd=tmp_path)
    assert code == 2 and "nothing to see" in out and "%" not in out


def test_evaluation_scores_it_and_the_check_lists_it(tmp_path, tiny_bundle):
    for i in range(3):
        draw(tmp_path / f"photos/Natrix natrix/{i}.jpg", i, (80, 70))
    Image.new("RGB", (80, 70), "white").save(tmp_path / "photos/Natrix natrix/plain.jpg")
    code, out, err = command("evaluate", "--model", tiny_bundle, "--data", "photos", "--json", cwd=tmp_path)
    assert code == 0 and json.loads(out)["scores"]["n"] == 4, err
    issues = check_files(sorted((tmp_path / "photos").rglob("*.jpg")), n_workers=1)
    assert {Path(path).name for path in issues.loc[issues["issue"] == "one colour", "path"]} == {"plain.jpg"}


def test_an_exported_learner_sees_nothing_either(tmp_path):
    import timm
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageDataLoaders

    from snakecls.deploy.export import LearnerPredictor, export_learner

    for i in range(8):
        draw(tmp_path / f"photos/{('train', 'valid')[i // 4]}/{'ab'[i % 2]}/{i}.jpg", i)
    dls = ImageDataLoaders.from_folder(tmp_path / "photos", item_tfms=Resize(32), bs=2, num_workers=0)
    learn = Learner(dls, timm.create_model("test_resnet", num_classes=2), loss_func=CrossEntropyLossFlat())
    export_learner(learn, tmp_path / "export.pkl")
    predictor = LearnerPredictor(tmp_path / "export.pkl", True)
    assert predictor.predict(tmp_path / "photos/train/a/0.jpg")
    with pytest.raises(PlainPhotoError):
        predictor.predict(Image.new("RGB", (64, 64), "black"))


@pytest.mark.parametrize("resize, crop_pct", [("crop", 1.0), ("crop", 0.9), ("squash", 1.0), ("squash", 0.5), ("pad", 1.0)])
def test_what_the_model_sees_is_judged(resize, crop_pct, tmp_path, tiny_bundle):
    from snakecls.data.photos import PhotoSpec, prepare_photo, prepare_shown

    spec, noise = PhotoSpec(64, resize=resize, crop_pct=crop_pct), np.random.default_rng(0)
    plain = [Image.new("RGB", (400, 120), "white"), Image.fromarray(noise.normal(235, 4, (120, 400, 3)).clip(0, 255).astype(np.uint8))]
    for whole in plain:
        with pytest.raises(PlainPhotoError, match="it is of one colour; take another"):
            prepare_shown(whole, spec)
        left = whole.copy()
        left.paste(Image.effect_noise((90, 120), 90).convert("RGB").resize((12, 16)).resize((90, 120)), (0, 0))
        left.save(tmp_path / "left.jpg", quality=60)
        if resize == "crop" or crop_pct < 0.6:
            with pytest.raises(PlainPhotoError, match="its middle, which is all that the model looks at, is of one colour .crop the photo so that the subject is in its middle"):
                prepare_shown(tmp_path / "left.jpg", spec)
        else:
            assert np.array_equal(prepare_shown(tmp_path / "left.jpg", spec), prepare_photo(tmp_path / "left.jpg", spec))
    if (resize, crop_pct) == ("crop", 1.0):  # as the page and the command say it
        from snakecls.deploy.app import show_answer
        from snakecls.deploy.predict import Predictor

        page = show_answer(Predictor(tiny_bundle), str(tmp_path / "left.jpg"))
        assert "middle" in page and "sc-row" not in page
        code, out, _ = command("predict", tmp_path / "left.jpg", "--model", tiny_bundle, cwd=tmp_path)
        assert code == 2 and "subject is in its middle" in out and "%" not in out


def test_a_photo_that_uses_few_of_its_16_bits_is_told(tmp_path, tiny_bundle):
    from snakecls.deploy.predict import Predictor

    values = np.random.default_rng(0).integers(0, 200, (6, 8)).repeat(16, 0).repeat(16, 1).astype(np.uint16)
    for name in ("a.tif", "a.png"):
        Image.fromarray(values).save(tmp_path / name)
        for source in (tmp_path / name, (tmp_path / name).read_bytes(), str(tmp_path / name)):
            with pytest.raises(PlainPhotoError, match="its values reach 19. of 65,535, so that it is nearly black as stored"):
                Predictor(tiny_bundle).predict(source)
    Image.fromarray(values * 300).save(tmp_path / "b.tif")
    assert Predictor(tiny_bundle).predict(tmp_path / "b.tif")


@pytest.mark.real
def test_no_real_photo_is_called_plain():
    from test_files import real

    from snakecls.data.photos import _why_plain

    for name in ("snakes_ph/val", "butterflies/valid", "checkboxes"):
        files = [path for path in sorted(real(name).rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
        assert files and not [path for path in files if _why_plain(open_photo(path))]


# Damage

FUZZ = """
import io, json, resource, signal, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, "tests")
from mutate import mutated_files
from test_hardening_photos import whole_photos
from snakecls.data.photos import PhotoError, open_photo
whole = whole_photos()
for data in whole.values():
    open_photo(data)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 4 << 30
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30),) * 2)
done = {}
for place, (name, data) in enumerate(whole.items()):
    refused = 0
    for changed in mutated_files(data, seed=place):
        signal.alarm(10)
        try:
            photo = open_photo(changed, max_pixels=10**6)
            assert photo.mode == "RGB" and 0 < photo.width * photo.height <= 10**6
        except PhotoError as e:
            assert str(e).endswith(".") and "\\n" not in str(e) and "_decoding_bytes" not in str(e), str(e)
            refused += 1
        signal.alarm(0)
    done[name] = refused
print(json.dumps(done))
"""


def whole_photos() -> dict[str, bytes]:
    "A photo of every format and depth that is read."
    import pillow_heif

    pillow_heif.register_heif_opener()
    generator, photos = np.random.default_rng(0), {}
    picture = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((64, 48))
    deep = Image.fromarray(generator.integers(0, 65535, (48, 64), dtype=np.uint16))
    bright = Image.fromarray(generator.random((48, 64), dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, format, options in (
        ("JPEG", picture, "JPEG", {"exif": exif}), ("progressive", picture, "JPEG", {"progressive": True}), ("CMYK", picture.convert("CMYK"), "JPEG", {}), ("PNG", picture.convert("RGBA"), "PNG", {}), ("deep PNG", deep, "PNG", {}), ("palette", picture.quantize(16), "PNG", {"transparency": 3}),
        ("WebP", picture, "WEBP", {}), ("GIF", picture.quantize(64), "GIF", {}), ("TIFF", picture, "TIFF", {"compression": "tiff_lzw"}), ("deep TIFF", deep, "TIFF", {"compression": "tiff_adobe_deflate"}), ("float TIFF", bright, "TIFF", {}),
        ("BMP", picture, "BMP", {}), ("JPEG 2000", picture, "JPEG2000", {}), ("AVIF", picture, "AVIF", {}), ("HEIC", picture, "HEIF", {}), ("PPM", picture, "PPM", {})):
        stream = io.BytesIO()
        image.save(stream, format, **options)
        photos[name] = stream.getvalue()
    return photos


def test_300_mutations_of_every_format_are_photos_or_refused():
    done = subprocess.run([sys.executable, "-c", FUZZ], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = json.loads(done.stdout.splitlines()[-1])
    assert set(refused) == set(whole_photos()) and all(30 < n <= 300 for n in refused.values()), refused
