"""A bundle is served by what serving needs: no fastai, no training code."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from conftest import REPO


def test_predictor_imports_neither_fastai_nor_training_code(tiny_bundle, snake_photos):
    code = ("import json, sys; from snakecls.deploy.predict import Predictor; "
            f"predictions = Predictor({str(tiny_bundle)!r}).predict({str(snake_photos[0])!r}); "
            "print(json.dumps({'labels': [p.label for p in predictions], 'modules': sorted(sys.modules)}))")
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["labels"]) == 3
    tops = {name.split(".")[0] for name in answer["modules"]}
    assert not tops & {"fastai", "fastcore", "fasttransform", "albumentations", "gradio", "matplotlib", "pandas", "nbdev"}  # timm itself imports wandb where it is installed
    ours = {".".join(name.split(".")[:2]) for name in answer["modules"] if name.startswith("snakecls.")}
    assert ours == {"snakecls.arguments", "snakecls.core", "snakecls.strict", "snakecls.stats", "snakecls.disk", "snakecls.progress", "snakecls.workers", "snakecls.data", "snakecls.models", "snakecls.deploy", "snakecls.evaluate"}
    evaluate = {name.removeprefix("snakecls.evaluate.") for name in answer["modules"] if name.startswith("snakecls.evaluate.")}
    assert evaluate == {"conformal", "prior", "taxonomy", "risk", "decide", "rejection"}  # what is said of one photo, with numpy alone


def test_opening_photos_imports_pil_and_numpy_only():
    code = "import sys; import snakecls.data.photos; print(sorted({name.split('.')[0] for name in sys.modules}))"
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    assert not set(eval(done.stdout)) & {"torch", "torchvision", "timm", "pandas", "fastai", "scipy", "rich"}


def test_predictions_are_the_networks_own(tiny_bundle, snake_photos):
    import torch
    from safetensors.torch import load_file
    from timm import create_model

    from snakecls.data.photos import PhotoSpec, prepare_photo
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(tiny_bundle)
    model = create_model("test_resnet", num_classes=5).eval()
    model.load_state_dict(load_file(tiny_bundle / "weights.safetensors"))
    batch = torch.from_numpy(np.stack([prepare_photo(path, PhotoSpec(64, mean=(0.5,) * 3, std=(0.5,) * 3)) for path in snake_photos]))
    with torch.no_grad():
        expected = ((model(batch) / 0.5).softmax(-1) + (model(batch.flip(-1)) / 0.5).softmax(-1)) / 2
    for bs in (1, 2, 16):
        np.testing.assert_allclose(predictor.probs(snake_photos, bs=bs), expected.numpy(), atol=1e-5)
    for photo, row in zip(snake_photos, expected.numpy()):
        first, *_ = predictor.predict(photo)
        assert first.label == predictor.labels[row.argmax()] and first.prob == pytest.approx(row.max(), abs=1e-5)
        assert first.facts == predictor.info.label_facts[first.label]


def test_one_unreadable_photo_stops_the_batch_with_its_path(tiny_bundle, snake_photos, broken_photo):
    from snakecls.data.photos import PhotoError
    from snakecls.deploy.predict import Predictor

    with pytest.raises(PhotoError, match="broken.jpg cannot be read as a photo"):
        Predictor(tiny_bundle).probs([snake_photos[0], broken_photo])
