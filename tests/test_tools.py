"""What makes the environment: sources without leftovers, an environment that was left half made, and git's hooks."""
import subprocess
import sys
import venv

import pytest
from check_versions import LARGE, TESTS
from conftest import REPO, need_sources
from install_hooks import install_hooks
from make_env import copy_sources, has_pip, link_pytorch, make_venv

need_sources()

WITHOUT = """
import sys
end = sys.argv.index("--")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:end]: raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[end + 1:]]))
"""


def test_the_wheel_is_built_from_sources_alone(tmp_path):
    for name in ("setup.py", "snakecls/core.py", "snakecls/__pycache__/gone.pyc", "build/lib/snakecls/deleted.py", "snakecls.egg-info/SOURCES.txt", ".venv/bin/python"):
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text("")
    copy = copy_sources(tmp_path / "copy", root=tmp_path / "project")
    assert sorted(str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()) == ["setup.py", "snakecls/core.py"]


def test_the_sources_are_enough_to_build(tmp_path):
    copy = copy_sources(tmp_path / "copy")
    subprocess.run([sys.executable, "setup.py", "--quiet", "build", "--build-base", str(tmp_path / "built")], cwd=copy, check=True, capture_output=True)
    built = tmp_path / "built" / "lib" / "snakecls"
    assert {file.relative_to(built) for file in built.rglob("*.py")} == {file.relative_to(REPO / "snakecls") for file in (REPO / "snakecls").rglob("*.py")}


def test_an_environment_without_pip_is_made_anew(tmp_path, monkeypatch):
    made = []

    def create(folder, **options):
        made.append(options)
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "python").unlink(missing_ok=True)
        (folder / "bin" / "python").write_text("#!/bin/sh\nexit 0\n")  # whatever it is asked to run, pip too, is there
        (folder / "bin" / "python").chmod(0o755)

    venv.create(tmp_path / "env", with_pip=False)
    assert not has_pip(tmp_path / "env" / "bin" / "python")
    monkeypatch.setattr(venv, "create", create)
    assert has_pip(make_venv(tmp_path / "env"))
    assert make_venv(tmp_path / "env") == tmp_path / "env" / "bin" / "python"
    assert [(options["with_pip"], options["clear"]) for options in made] == [(True, True)]


def test_pytorch_is_linked_and_nothing_else(tmp_path):
    first, second = (tmp_path / name / "lib" / "python3.11" / "site-packages" for name in ("first", "second"))
    for distribution, files in {"torch-2.14.1": ["torch/__init__.py", "torch/lib/big.so"], "nvidia_cublas-13.1": ["nvidia/cu13/lib/big.so"], "pandas-3.0": ["pandas/__init__.py"]}.items():
        recorded = [*files, f"{distribution}.dist-info/RECORD", "../../../bin/torchrun"]
        for name in recorded[:-1]:
            (first / name).parent.mkdir(parents=True, exist_ok=True)
            (first / name).write_text("\n".join(f"{file},sha256=x,1" for file in recorded) if name.endswith("RECORD") else name)
    second.mkdir(parents=True)
    link_pytorch(tmp_path / "second" / "bin" / "python", tmp_path / "first")
    linked = [file for file in second.rglob("*") if file.is_file()]
    assert {str(file.relative_to(second)) for file in linked} == {"torch/__init__.py", "torch/lib/big.so", "torch-2.14.1.dist-info/RECORD", "nvidia/cu13/lib/big.so", "nvidia_cublas-13.1.dist-info/RECORD"}
    assert all(file.samefile(first / file.relative_to(second)) for file in linked)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A repository with two branches that change the same line of a notebook, and a home of its own."
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for variable in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    for folder in ("home", "clone"):
        (tmp_path / folder).mkdir()

    def commit(text):
        (tmp_path / "clone" / "a.ipynb").write_text(text)
        git(tmp_path / "clone", "add", ".")
        git(tmp_path / "clone", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", text.strip())

    git(tmp_path / "clone", "init", "-q", "-b", "main")
    (tmp_path / "clone" / ".gitattributes").write_text((REPO / ".gitattributes").read_text())
    commit("base\n")
    git(tmp_path / "clone", "checkout", "-qb", "other")
    commit("theirs\n")
    git(tmp_path / "clone", "checkout", "-q", "main")
    commit("ours\n")
    return tmp_path / "clone"


def git(folder, *words, check=True):
    return subprocess.run(["git", *words], cwd=folder, check=check, capture_output=True, text=True)


def test_git_merges_notebooks_with_nbdev(clone, tmp_path):
    program = tmp_path / "my env" / "nbdev_merge"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "merged $4" > "$2"\n')  # git gives base, ours, theirs and the path
    program.chmod(0o755)
    for _ in range(2):  # a second time changes nothing
        assert "nbdev_merge" in install_hooks(clone, program=program)
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b", "merge", "other", "-qm", "both")
    assert (clone / "a.ipynb").read_text() == "merged a.ipynb\n"
    assert not list((tmp_path / "home").iterdir()) and git(clone, "config", "--global", "--list", check=False).stdout == ""


def test_a_conflict_is_marked_where_the_environment_is_gone(clone, tmp_path):
    install_hooks(clone, program=tmp_path / "gone" / "nbdev_merge")
    assert git(clone, "-c", "user.name=a", "-c", "user.email=a@b", "merge", "other", check=False).returncode == 1
    assert "<<<<<<< ours\nours\n" in (clone / "a.ipynb").read_text()


def test_a_folder_that_is_no_clone_gets_no_hooks(clone, tmp_path):
    before = (clone / ".git" / "config").read_text()
    (clone / "unpacked").mkdir()  # an archive in another repository
    for folder in (clone / "unpacked", tmp_path / "home"):
        assert "not a clone" in install_hooks(folder)
    assert (clone / ".git" / "config").read_text() == before


def test_what_the_other_pythons_run_needs_nothing_large():
    "CI comes to them last, after 40 minutes."
    found = subprocess.run([sys.executable, "-c", WITHOUT, *LARGE, "--", *(f"tests/{name}" for name in TESTS)], cwd=REPO, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
