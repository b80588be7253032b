"""How many processes read photos: measured, without any effect on what is read."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from PIL import Image

from snakecls.data import datablocks
from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls


def table_of(folder: Path, n: int = 12) -> pd.DataFrame:
    rows = []
    for number in range(n):
        Image.effect_noise((60, 50), 5 + number).convert("RGB").save(folder / f"{number}.jpg")
        rows.append({"path": str(folder / f"{number}.jpg"), "label": "ab"[number % 2], "split": "train" if number < n - 4 else "valid"})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("photo_s", "start_s", "expected"), [(0.001, 0.5, 0), (0.1, 0.5, 0), (0.2, 0.5, 3), (10, 30, 3), (5, 30, 0)])
def test_processes_read_where_they_save_time(tmp_path, monkeypatch, photo_s, start_s, expected):
    monkeypatch.setattr(datablocks, "_default_workers", lambda: 3)
    monkeypatch.setattr(datablocks, "_photo_seconds", lambda dl: photo_s)
    monkeypatch.setattr(datablocks, "_start_seconds", lambda: start_s)
    table, plain = table_of(tmp_path), Augment(backend="none")
    dls = photo_dls(table, 32, bs=4, augment=plain)
    assert dls.train.fake_l.num_workers == expected and dls.train.n_threads == 0
    dls = photo_dls(table, 32, bs=4)
    assert dls.train.fake_l.num_workers == 0 and dls.train.n_threads >= 3  # in threads, which start in no time
    dls = photo_dls(table, 32, bs=4, num_workers=2)
    assert dls.train.fake_l.num_workers == 2 and dls.train.n_threads == 0  # what is asked for is not measured


def test_a_photo_that_is_gone_is_not_measured(tmp_path):
    table = table_of(tmp_path)
    dls = photo_dls(table, 32, bs=4)
    for path in table["path"][:8]:
        Path(path).unlink()
    assert datablocks._photo_seconds(dls.train) == 0 and datablocks._photo_seconds(dls.valid) > 0
    assert not dls.lost.flags.any()


def test_batches_are_the_same_whoever_reads(tmp_path):
    table, batches = table_of(tmp_path), []
    for workers in (None, 0, 1, 3):
        dls = photo_dls(table, 32, bs=4, num_workers=workers, seed=5)
        batches.append(np.concatenate([batch[0].cpu().numpy() for _ in range(2) for batch in dls.train]))
    assert all(np.array_equal(batches[0], other) for other in batches[1:])


def test_few_photos_are_read_without_starting_processes_that_import_torch(tmp_path):
    table_of(tmp_path).to_csv(tmp_path / "photos.csv")
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys, pandas as pd\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    from snakecls.data import datablocks\n"
        "    datablocks._start_seconds = lambda: sys.exit('a process was started')\n"
        "    dls = datablocks.photo_dls(pd.read_csv(sys.argv[1]), 32, bs=4)\n"
        "    print(len(list(dls.train)), dls.train.fake_l.num_workers, dls.valid.fake_l.num_workers)\n")
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "photos.csv")], cwd=REPO, env=None, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["2", "0", "0"], done.stderr
