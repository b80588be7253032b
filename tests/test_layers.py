"""A layer imports those to its left, never one to its right, and there is no circle within a layer (DESIGN.md)."""
import ast
import json
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import need_sources

need_sources()
ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "snakecls"
LAYERS = ["core", "strict", "disk", "workers", "stats", "page", "charts", "settings", "arguments", "progress", "data", "models", "clean", "train", "evaluate", "deploy", "experiment", "workflow", "cli", "start"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py", "_modidx.py")}


def imported(name: str) -> set[str]:
    "The package's modules that a module imports, inside functions too."
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            found |= {target} | {f"{target}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_every_import_names_a_module_that_is_there():
    "Those within functions too, which no other test may reach."
    known = {*MODULES, *(module_name(path.parent) for path in PACKAGE.rglob("__init__.py"))}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("snakecls")):
                base = name.split(".")[: -node.level] if node.level else []
                assert ".".join([*base, *([node.module] if node.module else [])]) in known, f"{name}, line {node.lineno}"


def layer(name: str) -> int:
    return LAYERS.index(name.split(".")[1])


def test_every_module_has_a_layer():
    assert {name.split(".")[1] for name in MODULES} <= set(LAYERS)
    assert len(MODULES) > 20


def test_imports_go_to_the_left():
    wrong = [f"{name} imports {other}" for name in MODULES for other in imported(name) if layer(other) > layer(name)]
    assert not wrong


def test_no_circles():
    TopologicalSorter({name: imported(name) for name in MODULES}).prepare()  # raises CycleError


def test_a_notebook_imports_only_smaller_numbers():
    "A folder reads from top to bottom (DESIGN.md); the number of a module is its notebook's."
    number = {f"snakecls.{name}": path for name, path in notebooks().items()}
    wrong = [f"{number[name].name} imports {number[other].name}" for name in MODULES for other in imported(name)
             if number[name].parent == number[other].parent and number[other].name[:2] >= number[name].name[:2]]
    assert not wrong


def notebooks() -> dict[str, Path]:
    "The notebook of each module."
    found = {}
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if ".ipynb_checkpoints" not in path.parts else []
        found |= {name[1]: path for cell in cells if (name := re.match(r"#\|\s*default_exp\s+(\S+)", "".join(cell["source"])))}
    return found


def test_numbers_of_notebooks_start_at_one_and_leave_none_out():
    for folder in {path.parent for path in notebooks().values()} - {ROOT / "nbs"}:
        assert sorted(int(path.name[:2]) for path in folder.glob("*.ipynb")) == list(range(1, len(list(folder.glob("*.ipynb"))) + 1)), folder


def test_the_check_would_notice():
    assert "snakecls.train.stages" in imported("snakecls.experiment.plan")
    assert "snakecls.workflow.run" in imported("snakecls.cli")  # inside a function


def test_nothing_imports_nbdev_and_only_tests_use_fastcore_test():
    for name, path in MODULES.items():
        text = path.read_text()
        assert "import nbdev" not in text and "from nbdev" not in text, name
        assert "fastcore.test" not in text, name


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}).stdout


def test_slow_imports_wait():
    heavy = {"torch", "fastai", "timm", "gradio", "wandb", "pandas", "sklearn", "albumentations", "matplotlib"}
    loaded = run_python("import sys, snakecls.cli; print(*sys.modules)").split()
    assert not heavy & set(loaded)
    loaded = run_python("import sys, snakecls.deploy.predict, snakecls.models.bundle, snakecls.data.photos; print(*sys.modules)").split()
    assert not {"torch", "pandas", "sklearn", "scipy", "fastai"} & set(loaded)  # a photo can be answered without them
    assert {name for name in loaded if name.startswith("snakecls.train.")} <= {"snakecls.train.snakeclef"}  # the costs, which need NumPy alone


def test_settings_are_declared_without_torch():
    "A file is checked, and a key explained, before anything slow is loaded."
    loaded = run_python("import sys, snakecls.experiment.schema, snakecls.train.stages, snakecls.data.augmentation; print(*sys.modules)").split()
    assert not {"torch", "fastai", "pandas", "numpy", "timm"} & set(loaded)
