"""Check the other Pythons that setup.py promises: everything compiles, what needs no PyTorch is imported, and its tests run; exit code 1 names what fails.

A second PyTorch is too large for this, so what imports it is compiled alone. An interpreter that is not here is told, and skipped:
pyenv's, the system's and uv's are looked for; uv can fetch one where its downloads are in reach (`uv python install 3.12`).
"""
import argparse
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12")
LARGE = ("fastai", "torch", "torchvision", "timm", "cleanlab", "albumentations", "gradio", "wandb", "efficientnet", "fasttransform", "plum")
TESTS = ("test_sources.py", "test_tables.py", "test_splits.py", "test_stats.py")

IMPORT_ALL = """
import importlib, pkgutil, sys, snakecls
done, without = [], []
for module in pkgutil.walk_packages(snakecls.__path__, "snakecls."):
    if module.name.endswith(("__main__", "_modidx")): continue
    try: importlib.import_module(module.name); done.append(module.name)
    except ModuleNotFoundError as e:
        if e.name.split(".")[0] not in sys.argv[1:]: raise
        without.append(module.name)
print(f"{len(done)} modules imported, {len(without)} need what is not installed here")
assert {"snakecls.cli", "snakecls.experiment.file", "snakecls.data.tables"} <= set(done), without
"""


def find_python(version: str) -> Path | None:
    "Look for an interpreter of a version: on the PATH, pyenv's, uv's."
    places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), *Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python")]
    for place in filter(None, places):
        said = subprocess.run([str(place), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True)
        if said.stdout.strip() == version:  # pyenv's shim is there for versions that are not chosen, too
            return Path(place)
    return None


def small_requirements() -> list[str]:
    "The project's requirements without the large ones and what comes with them, and what its tests need."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lines = [line.strip() for key in ("requirements", "test_requirements") for line in config["DEFAULT"][key].splitlines() if line.strip()]
    return [line for line in lines if not line.startswith((*LARGE, "playwright", "tensorboard"))]


def check(python: Path, folder: Path) -> None:
    "Compile, import and test with an interpreter; raises `CalledProcessError`."
    def run(*command: str | Path, **options) -> None:
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, **options)

    own = folder / "venv" / "bin" / "python"
    run(python, "-m", "venv", folder / "venv")
    run(own, "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check", *small_requirements())
    run(own, "-m", "compileall", "-q", "-f", *("snakecls", "tests", "tools", "benchmarks", "app.py"), env={"PYTHONPYCACHEPREFIX": str(folder / "compiled")})
    run(own, "-c", IMPORT_ALL, *LARGE)
    run(own, "-m", "snakecls", "--help", stdout=subprocess.DEVNULL)
    run(own, "-m", "pytest", "-p", "no:cacheprovider", "--disable-warnings", "-n", "2", "-k", "not in_loaders", *(f"tests/{name}" for name in TESTS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", help="those that setup.py promises, but for the running one, if none is given")
    args = parser.parse_args()
    failed, running = [], ".".join(map(str, sys.version_info[:2]))
    for version in args.versions or [version for version in VERSIONS if version != running]:
        if (python := find_python(version)) is None:
            print(f"Python {version} is not here: skipped", flush=True)
            continue
        print(f"Python {version}: {python}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(python, Path(folder))
            except subprocess.CalledProcessError as e:
                failed.append(version)
                print(f"Python {version} failed: {' '.join(e.cmd)[:200]}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
