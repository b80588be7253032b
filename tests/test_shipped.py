"`snakecls export --to` and `snakecls bench`: what is written, what is refused, and what is kept by force."
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import snakecls.workflow.shipped as shipped
from snakecls.core import UserError
from snakecls.deploy.quantised import read_description
from warm import run_command

LABELS = ["Micrurus fulvius", "Natrix natrix"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("judged"), np.random.default_rng(0)
    for i in range(16):
        file = folder / LABELS[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(file)
    return folder


def test_forms_by_the_command(tiny_bundle, photos, tmp_path) -> None:
    for to, name in (("timm", "t"), ("onnx", "whole.onnx"), ("int8", "small.onnx"), ("int8-dynamic", "dynamic.onnx")):
        done = run_command("export", tiny_bundle, name, "--to", to, "--data", photos, "--force", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "t" / "config.json").exists()
    sizes = {name: (tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "small", "dynamic")}
    assert max(sizes["small"], sizes["dynamic"]) < 0.5 * sizes["whole"]
    assert read_description((tmp_path / "small.onnx").read_bytes())["form"] == "int8"
    done = run_command("export", tiny_bundle, "no", "--to", "int8", cwd=tmp_path)
    assert done.returncode == 2 and "ends in .onnx" in done.stderr and not (tmp_path / "no").exists()
    done = run_command("export", tiny_bundle, "x.onnx", "--to", "int4", cwd=tmp_path)
    assert done.returncode == 2 and "int8" in done.stderr


def test_bench_by_the_command(tiny_bundle, photos, tmp_path) -> None:
    done = run_command("bench", tiny_bundle, "--data", photos, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["form"] for row in rows] == ["torch", "onnx", "int8", "int8-dynamic"] == pd.read_csv(tmp_path / "bench/bench.csv")["form"].tolist()
    assert json.loads((tmp_path / "bench/bench.json").read_text()) == rows and rows[0]["n"] == 8
    assert (tmp_path / "bench/bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_is_refused_unless_forced(tiny_bundle, photos, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shipped, "say_lost", lambda row: "macro F1 is lower by 0.2 (0.1 to 0.3) on 8 photos" if row["form"] == "int8" else "")
    with pytest.raises(UserError, match="not kept: macro F1 is lower by 0.2.*--force"):
        shipped.ship_model(tiny_bundle, tmp_path / "a.onnx", "int8", data=photos)
    assert not list(tmp_path.iterdir())
    written, told = shipped.ship_model(tiny_bundle, tmp_path / "a.onnx", "int8", data=photos, force=True)
    assert written.exists() and "Kept by --force, though macro F1" in told
