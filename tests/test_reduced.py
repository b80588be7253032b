"""A JPEG that is far larger than the model sees is decoded smaller: for everyone alike, and for bundles from before not at all."""
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls
from snakecls.data.demo.drawing import draw_snake
from snakecls.data.photos import RESIZES, TURNS, PhotoError, PhotoSpec, PlainPhotoError, open_photo, photo_pixels, prepare_photo, prepare_shown, reduction
from snakecls.deploy.predict import Predictor
from snakecls.models.bundle_info import info_from_dict, info_to_dict

SIZE = (1600, 1200)


@pytest.fixture(scope="module")
def large() -> Image.Image:
    grain = np.random.default_rng(0).normal(0, 8, (SIZE[1], SIZE[0], 1))
    drawn = draw_snake("Vipera berus", seed=3, size_px=400).resize(SIZE, Image.Resampling.LANCZOS)
    return Image.fromarray(np.clip(np.asarray(drawn) + grain, 0, 255).astype(np.uint8))


def saved(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def full(spec: PhotoSpec) -> PhotoSpec:
    return replace(spec, reduced=False)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [64, 128, 224])
def test_the_model_sees_nearly_the_same(large, resize, size):
    jpeg, spec = saved(large, quality=90), PhotoSpec(size, resize=resize)
    assert reduction(SIZE, spec) == {64: 8, 128: 4, 224: 2}[size]
    assert min(open_photo(jpeg, seen=spec).size) >= (2 * size if resize != "pad" else 1.5 * size)
    difference = np.abs(photo_pixels(jpeg, spec).astype(int) - photo_pixels(jpeg, full(spec)))
    assert 0 < difference.mean() < 1 and np.percentile(difference, 99) <= 6


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 40}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_jpeg_comes_smaller_and_upright(large, mode, options):
    spec = PhotoSpec(96)
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        sensor = large.transpose(TURNS[{6: 8, 8: 6}.get(orientation, orientation)]).convert(mode)
        photo = open_photo(jpeg := saved(sensor, exif=exif, **options), seen=spec)
        assert (photo.mode, photo.size, photo.full_size) == ("RGB", (400, 300), SIZE)
        assert np.abs(np.asarray(photo.resize((96, 72)), int) - np.asarray(open_photo(jpeg).resize((96, 72)), int)).mean() < 1.5


def test_what_is_no_jpeg_or_no_file_of_ours_comes_whole(large):
    spec = PhotoSpec(96)
    for format in ("PNG", "TIFF", "WEBP"):
        assert open_photo(saved(large, format), seen=spec).size == SIZE
    lazy = Image.open(io.BytesIO(saved(large)))
    assert open_photo(lazy, seen=spec).size == lazy.size == SIZE
    assert open_photo(saved(large, "MPO", save_all=True, append_images=[large]), seen=spec).size == (400, 300)
    assert open_photo(saved(large.resize((190, 140))), seen=spec).size == (190, 140)


def test_what_is_refused_stays_refused(large, monkeypatch):
    spec, jpeg = PhotoSpec(96), saved(large, progressive=True)
    with pytest.raises(PhotoError, match="more than the 1,000 allowed"):
        open_photo(jpeg, max_pixels=1000, seen=spec)
    for cut in range(700, len(jpeg), len(jpeg) // 11):
        verdicts = []
        for seen in (None, spec):
            try:
                open_photo(jpeg[:cut], seen=seen)
                verdicts.append("")
            except PhotoError as e:
                verdicts.append(e.reason)
        assert bool(verdicts[0]) == bool(verdicts[1]), (cut, verdicts)
    with pytest.raises(PlainPhotoError, match="it is of one colour"):
        prepare_shown(saved(Image.new("RGB", SIZE, "white")), spec)
    with pytest.raises(PlainPhotoError, match="its middle"):
        canvas = Image.new("RGB", (4800, 1200), "white")
        canvas.paste(large, (0, 0))
        prepare_shown(saved(canvas.resize((3600, 900))), replace(spec, crop_pct=0.5))


def test_a_bundle_from_before_answers_as_before(large, tiny_bundle):
    spec = PhotoSpec(96)
    before = {key: value for key, value in spec.to_dict().items() if key != "reduced"}
    assert PhotoSpec.from_dict(before) == full(spec) and PhotoSpec.from_dict(spec.to_dict()) == spec
    info = info_to_dict(Predictor(tiny_bundle).info)
    assert info_from_dict(info | {"photo": before}).photo.reduced is False
    jpeg = saved(large)
    assert np.array_equal(prepare_photo(jpeg, full(spec)), prepare_photo(open_photo(jpeg), spec))


def table_of(folder: Path, jpeg: bytes) -> pd.DataFrame:
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    return pd.DataFrame({"path": [str(folder / f"{n}.jpg") for n in range(4)], "label": ["a", "b"] * 2, "split": ["train"] * 2 + ["valid"] * 2})


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("sizes", [(224, 96), (96, 224)])
def test_loader_and_answer_prepare_alike(large, tmp_path, resize, sizes):
    table, (size, valid_size) = table_of(tmp_path, saved(large)), sizes
    dls = photo_dls(table, size, valid_size=valid_size, spec=PhotoSpec(size, resize=resize), num_workers=0, bs=2)
    path = table["path"][2]
    same = prepare_photo(path, dls.spec)
    assert np.abs(dls.valid.one_batch()[0][0].cpu().numpy() - same).max() < 1e-5
    assert np.abs(dls.test_dl([path]).one_batch()[0][0].cpu().numpy() - same).max() < 1e-5
    assert dls.spec.reduced and np.abs(same - prepare_photo(path, full(dls.spec))).max() > 1e-3


def test_training_cuts_a_photo_that_was_decoded_smaller_at_the_same_place(large, tmp_path):
    table, batches = table_of(tmp_path, saved(large)), []
    for reduced in (True, False):
        dls = photo_dls(table, 64, spec=replace(PhotoSpec(64), reduced=reduced), augment=Augment(presize=80), num_workers=0, bs=2, seed=3)
        batches.append(dls.train.one_batch()[0].cpu().numpy())
    assert 0 < np.abs(batches[0] - batches[1]).mean() < 0.03
