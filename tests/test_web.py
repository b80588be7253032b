"""The files that pages are made of: each is used, each that is named is there, and the wheel and a Space hold them."""
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import REPO

PACKAGE = Path(find_spec("snakecls").origin).parent  # the checkout's or the wheel's
WEB = PACKAGE / "web"
FILES = {path.relative_to(WEB).as_posix() for path in WEB.rglob("*.*")}


def named_files() -> dict[str, str]:
    "Every file of `web` that a template or a module names, and one that names it."
    found = {}
    for path in [*WEB.rglob("*.html"), *WEB.rglob("*.md"), *PACKAGE.rglob("*.py")]:
        code = r"(?:render|read_file|call_script|file)\(([^)]*)\)" if path.suffix == ".py" else r"\{%-? *(?:extends|include|import|from)\b([^%]*)%\}|file\(([^)]*)\)"
        for call in re.findall(code, path.read_text(encoding="utf-8")):
            found |= dict.fromkeys(re.findall(r"[\"']([\w/]+\.(?:html|css|js|md))[\"']", "".join(call)), path.name)
    return found


def test_every_file_is_used_and_every_name_is_there():
    named = named_files()
    assert set(named) - FILES == set() and FILES - set(named) == set(), named


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".html")))
def test_every_template_can_be_read(name):
    from snakecls.page import render

    assert "{%" not in render(name, **{key: [] for key in ("rows", "reasons", "others", "lines")}, percent=0.0, n_open=0, more=0)


def test_lines_are_short_enough_to_read():
    long = [f"{name}:{number}" for name in FILES for number, line in enumerate((WEB / name).read_text(encoding="utf-8").splitlines(), 1) if len(line) > 130]
    assert not long


def test_little_markup_is_written_in_python():
    "Nested strings of HTML are no page that one can read; house.py counts the same."
    markup = re.compile(r"<(div|span|style|script|table|section|details|button|svg)\b")
    lines = [f"{path.name}:{number}" for path in PACKAGE.rglob("*.py") for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if markup.search(line)]
    assert len(lines) <= 5, lines


@pytest.mark.skipif(not (REPO / "snakecls").is_dir(), reason="there is nothing to build from; FILES are the wheel's own here")
def test_the_wheel_holds_them(tmp_path):
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", tmp_path / "lib"], cwd=REPO, check=True)
    built = {path.relative_to(tmp_path / "lib/snakecls/web").as_posix() for path in (tmp_path / "lib/snakecls/web").rglob("*.*")}
    assert built == FILES


def test_a_space_holds_them(tmp_path):
    from snakecls.deploy.hub import _copy_package

    _copy_package(tmp_path / "snakecls")
    assert {path.relative_to(tmp_path / "snakecls/web").as_posix() for path in (tmp_path / "snakecls/web").rglob("*.*")} == FILES


def test_answering_a_photo_alone_loads_no_templates():
    code = "import sys, snakecls.deploy.predict, snakecls.deploy.answer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO).stdout.split()
    assert "snakecls.page" in loaded and "jinja2" not in loaded
