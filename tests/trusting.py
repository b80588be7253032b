"""A bundle of a tiny network that decides: country prior, tree of names, costs, promised sets, made of drawn answers."""
from pathlib import Path

import numpy as np

from conftest import FACTS

LABELS = list(FACTS)
COUNTRIES = ["United States", "Mexico", "Canada", "France", "Germany"]


def fitted_trust() -> dict:
    "Fit what a bundle is trusted for on drawn answers: each species mostly in a country of its own."
    from snakecls.evaluate.conformal import fit_conformal
    from snakecls.evaluate.prior import fit_prior
    from snakecls.evaluate.risk import fit_risk
    from snakecls.evaluate.taxonomy import fit_taxonomy

    rng, k = np.random.default_rng(0), len(LABELS)
    targets = rng.integers(0, k, 600)
    probs = np.exp(rng.normal(0, 1, (600, k)) + 2 * np.eye(k)[targets])
    probs /= probs.sum(1, keepdims=True)
    places = np.where(rng.random(600) < 0.9, np.array(COUNTRIES)[targets], "Mexico")
    return {
        "conformal": {"binomial": fit_conformal(probs, targets, coverage=0.9)}, "prior": fit_prior(probs, targets, places.tolist()),
        "taxonomy": fit_taxonomy(probs, targets, {"genus": ["Micrurus", "Micrurus", "Crotalus", "Crotalus", "Natrix"]}),
        "risk": fit_risk(probs, targets, [FACTS[label]["venomous"] for label in LABELS]),
    }


def write_trusting(folder: Path) -> Path:
    "Write the bundle."
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    torch.manual_seed(0)
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(LABELS)}}, "labels": LABELS, "photo": {"size": 64},
            "target": "binomial", "subject": "snake", "label_facts": FACTS, "notice": "Random weights: for tests only.", "trust": fitted_trust()}
    return write_bundle(folder, timm.create_model("test_resnet", num_classes=len(LABELS)), info)


# An app whose answer is told by the photo's colour, so that a test can have any answer it wants.
SCRIPT = '''
import sys
sys.path[:0] = {paths!r}
import numpy as np
from PIL import Image
from snakecls.deploy.app import launch_app
from snakecls.deploy.predict import Predictor

ANSWERS = {answers!r}  # the strongest colour -> probabilities
class Colours(Predictor):
    def _answers(self, photos, bs):
        rows = []
        for one in photos:
            image = one if isinstance(one, Image.Image) else Image.open(one)
            rows.append(ANSWERS["rgb"[int(np.asarray(image.convert("RGB"), float).mean((0, 1)).argmax())]])
        return [np.array(rows, np.float32)]
    def probs_known(self, photos, *, bs=16):
        darks = [np.asarray(Image.open(one).convert("L")).mean() < 40 for one in photos]
        return self.probs_all(photos), [{{"score": 0.5 if dark else 2.0, "threshold": 1.0, "like": bool(not dark)}} for dark in darks]

predictor = Colours({bundle!r})
launch_app(predictor)
'''
ANSWERS = {"r": [0.9, 0.06, 0.02, 0.01, 0.01], "g": [0.004, 0.005, 0.001, 0.988, 0.002], "b": [0.3, 0.6, 0.02, 0.05, 0.03]}


def draw_colour(colour: str, file: Path, *, dark: bool = False) -> Path:
    "Draw a noisy photo in which one colour is the strongest."
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40 if dark else 150, (90, 120, 3))
    pixels[..., "rgb".index(colour)] += 15 if dark else 90
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file
