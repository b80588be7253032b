"""Does a self-supervised start on photos without labels help? SimCLR (Chen et al. 2020) by `lightly`, all arms in turn within each division.

Usage: pip install lightly; python benchmarks/self_supervised.py [--sets butterflies snakes_ph] [--seeds N] [--quick]
A division: a quarter of the photos is the test, copies of a photo on one side; the rest are the photos without labels, of which 5 or 20 of each
class have labels, or all. Two starts: `tf_efficientnet_lite0` with ImageNet's weights at 96 px, whose last features a logistic regression reads (C = 1 on
standardised features), with and without epochs of SimCLR before; and the five-block `cnn` from random weights at 64 px, fitted with the labels there are for as
many steps in both arms. Temperature, projection head and views are those of lightly's SimCLR example, the views without blur; epochs and rate were not tuned.
`--quick` is one division and an epoch, and writes no rows."""
import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from common import first_environment, record
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Dataset

REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
LABELS = {"5 a class": 5, "20 a class": 20, "all": None}
STEPS, BS = 300, 64


class Views(Dataset):
    "Two views of each photo."

    def __init__(self, photos: list[Image.Image], size: int, mean, std):
        from lightly.transforms import SimCLRTransform

        self.photos, self.transform = photos, SimCLRTransform(input_size=size, gaussian_blur=0.0, normalize={"mean": mean, "std": std})

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        one, two = self.transform(self.photos[i])
        return one, two


def read_set(name: str) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:  # photos of 128 px, y, groups
    "Read the photos of a folder of classes."
    from snakecls.clean.duplicates import photo_groups
    from snakecls.clean.scan import scan_files
    from snakecls.data.photos import open_photo
    from snakecls.data.tables import load_table

    table = load_table(REAL / name).reset_index(drop=True)
    photos = [open_photo(path).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR) for path in table["path"]]
    return photos, table["label"].astype("category").cat.codes.to_numpy(np.int64), photo_groups(table, scan_files(table, n_workers=1))


def pixels(photos: list[Image.Image], size: int, mean, std) -> torch.Tensor:  # (n, 3, size, size)
    "Give photos as a network reads them."
    stack = np.stack([np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR)) for photo in photos])
    return (torch.from_numpy(stack).permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def simclr(body: nn.Module, width: int, photos: list, size: int, mean, std, *, epochs: int, lr: float) -> float:  # seconds
    "Train a body on photos without labels."
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    start, head, loss_func = time.perf_counter(), SimCLRProjectionHead(width, width, 128), NTXentLoss(temperature=0.5)
    opt = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=lr, weight_decay=1e-4)
    loader = DataLoader(Views(photos, size, mean, std), batch_size=BS, shuffle=True, drop_last=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=epochs * len(loader))
    body.train()
    for epoch in range(epochs):
        total = 0.0
        for one, two in loader:
            opt.zero_grad()
            both = head(body(torch.cat([one, two])))
            loss = loss_func(both[: len(one)], both[len(one):])
            loss.backward()
            opt.step()
            schedule.step()
            total += float(loss.detach())
        print(f"  SimCLR epoch {epoch + 1}: loss {total / len(loader):.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return time.perf_counter() - start


def features(body: nn.Module, x: torch.Tensor) -> np.ndarray:
    "Read the features of photos."
    body.eval()
    with torch.inference_mode():
        return torch.cat([body(part) for part in x.split(BS)]).numpy()


def few(y: np.ndarray, rows: np.ndarray, n: int | None, rng: np.random.Generator) -> np.ndarray:  # rows
    "Choose the photos whose labels are known."
    return rows if n is None else np.concatenate([rng.permutation(rows[y[rows] == label])[:n] for label in np.unique(y)])


def fit_cnn(body: nn.Module, width: int, x: torch.Tensor, y: np.ndarray, n_classes: int) -> nn.Module:
    "Fit a body and a linear head for STEPS steps, with mirrored photos."
    model = nn.Sequential(body, nn.Linear(width, n_classes)).train()
    opt, truth = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01), torch.from_numpy(y)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BS,))
        batch = torch.where(torch.rand(BS, 1, 1, 1) < 0.5, x[rows], x[rows].flip(-1))
        opt.zero_grad()
        nn.functional.cross_entropy(model(batch), truth[rows]).backward()
        opt.step()
        schedule.step()
    return model.eval()


def make_cnn() -> tuple[nn.Module, int]:
    "Give the body of the five-block network, and how many features it has."
    from snakecls.models.backbones import create_backbone

    body = create_backbone("cnn", 2, weights="none", filters=[16, 32, 64, 96, 128], batch_norm=True, dense_neurons=0, grid=1)
    body.head = nn.Identity()
    return body, body.num_features


def run_division(name: str, data: tuple, seed: int, epochs: tuple[int, int]) -> tuple[dict, dict]:  # scores and seconds
    "Score all arms of a division."
    from snakecls.models.backbones import create_backbone

    photos, y, groups = data
    rng, mean, std = np.random.default_rng(seed), [0.5] * 3, [0.5] * 3
    rest, test = next(StratifiedGroupKFold(4, shuffle=True, random_state=seed).split(y, y, groups))
    known, scores, seconds = {label: few(y, rest, n, rng) for label, n in LABELS.items()}, {}, {}
    waiting = [photos[i] for i in rest]
    x = pixels(photos, 96, mean, std)
    for arm in ("ImageNet", "ImageNet, SimCLR"):
        torch.manual_seed(seed)
        body = create_backbone("tf_efficientnet_lite0", 2)
        body.reset_classifier(0)
        if "SimCLR" in arm:
            seconds[arm] = simclr(body, 1280, waiting, 96, mean, std, epochs=epochs[0], lr=3e-4)
        seen = features(body, x)
        for label, rows in known.items():
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)).fit(seen[rows], y[rows])
            scores[f"{name}, {arm}, {label}"] = f1_score(y[test], probe.predict(seen[test]), average="macro")
    x = pixels(photos, 64, mean, std)
    for arm in ("cnn", "cnn, SimCLR"):
        torch.manual_seed(seed)
        body, width = make_cnn()
        if "SimCLR" in arm:
            seconds[arm] = simclr(body, width, waiting, 64, mean, std, epochs=epochs[1], lr=2e-3)
        state = {key: value.clone() for key, value in body.state_dict().items()}
        for label, rows in known.items():
            body.load_state_dict(state)
            torch.manual_seed(seed)
            model = fit_cnn(body, width, x[rows], y[rows], len(set(y)))
            with torch.inference_mode():
                answers = torch.cat([model(part).argmax(1) for part in x[test].split(BS)]).numpy()
            scores[f"{name}, {arm}, {label}"] = f1_score(y[test], answers, average="macro")
    return scores, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", default=["butterflies", "snakes_ph"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    first_environment()
    epochs = (1, 1) if args.quick else (5, 20)
    for name in args.sets:
        data, found, seconds = read_set(name), {}, {}
        print(f"{name}: {len(data[0])} photos, {len(set(data[1]))} classes", flush=True)
        for seed in range(1 if args.quick else args.seeds):
            scores, took = run_division(name, data, seed, epochs)
            for arm, score in scores.items():
                found.setdefault(arm, []).append(score)
            for arm, value in took.items():
                seconds.setdefault(arm, []).append(value)
            print({arm: [round(value, 3) for value in values] for arm, values in found.items()}, flush=True)
        if args.quick:
            continue
        for arm, values in found.items():
            before = found.get(arm.replace(", SimCLR", "")) if "SimCLR" in arm else None
            gain = "" if before is None else "; paired gain over the arm without it: " + ", ".join(f"{a - b:+.3f}" for a, b in zip(values, before))
            record("self_supervised", arm, values, unit="macro F1 on test photos", note=f"{epochs} epochs of SimCLR (pretrained, cnn){gain}")
        for arm, values in seconds.items():
            record("self_supervised", f"{name}, {arm}: SimCLR alone", values, unit="s")


if __name__ == "__main__":
    main()
