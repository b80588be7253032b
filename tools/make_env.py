"""Make a virtual environment and install the project into it; standard library only, Python 3.10 to 3.12."""
import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_venv(folder: Path) -> Path:  # its Python
    "Make an environment with pip in it; one that was left half made, without pip, is made anew."
    python = folder / "bin" / "python"
    if has_pip(python):
        return python
    print(f"Making the environment {folder} …", flush=True)
    anew = (folder / "pyvenv.cfg").exists()  # nothing else is ever emptied
    try:
        venv.create(folder, with_pip=True, clear=anew, symlinks=True)
    except (subprocess.CalledProcessError, SystemExit):  # Debian without python3-venv has no ensurepip: let the pip outside install one
        venv.create(folder, with_pip=False, clear=True, symlinks=True)
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "pip"])
    if not has_pip(python):
        sys.exit(f"there is no pip in {folder}; install Python's venv module (on Debian: apt install python3-venv) and try again")
    return python


def has_pip(python: Path) -> bool:
    "Say whether a Python is there and has pip."
    return python.exists() and subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0


def link_pytorch(python: Path, other: Path) -> None:
    "Hard-link PyTorch and the libraries that come with it from another environment of the same Python: they are most of 7 GB; pip then finds them installed."
    folder, source = (next((env / "lib").glob("python3.*/site-packages")) for env in (python.parent.parent, other))
    for record in source.glob("*.dist-info/RECORD"):
        if not record.parent.name.startswith(("torch-", "torchvision-", "triton-", "nvidia_", "cuda_")):
            continue
        for name, *_ in csv.reader(record.read_text().splitlines()):
            if not name.startswith("..") and (source / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(source / name, folder / name)


def copy_sources(folder: Path, *, root: Path = ROOT) -> Path:  # `folder`
    "Copy what the wheel is built from, and nothing that an earlier build has left."
    folder.mkdir(parents=True)
    for file in root.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    shutil.copytree(root / "snakecls", folder / "snakecls", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def install(python: Path, *, extra: str, wheel: bool) -> None:
    "Install the project with an extra: editable, or as the wheel that a user would get."
    wanted = f"[{extra}]" if extra else ""

    def pip(*command: str) -> None:
        if subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", *command, "--quiet", "--quiet"]).returncode:
            sys.exit(f"pip {command[0]} failed (see above); is a package index in reach?")

    pip("install", "--upgrade", "pip", "setuptools", "wheel")
    print("Installing snakecls and what it needs (PyTorch is large: a few minutes the first time) …", flush=True)
    if not wheel:
        return pip("install", "--no-build-isolation", "--editable", f"{ROOT}{wanted}")
    with tempfile.TemporaryDirectory() as temporary:
        sources = copy_sources(Path(temporary) / "sources")
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", temporary, str(sources))
        (built,) = Path(temporary).glob("snakecls-*.whl")
        pip("install", "--force-reinstall", "--no-deps", str(built))
        pip("install", f"{built}{wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the environment's folder")
    parser.add_argument("--dev", dest="extra", action="store_const", const="dev", default="", help="with the `dev` extra")
    parser.add_argument("--test", dest="extra", action="store_const", const="test", help="with the `test` extra: what the tests need beside the project, and no nbdev")
    parser.add_argument("--wheel", action="store_true", help="install a built wheel instead of this folder, as a user would")
    parser.add_argument("--pytorch-of", type=Path, metavar="ENV", help="hard-link PyTorch from this environment instead of installing it again")
    args = parser.parse_args()
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(f"snakecls needs Python 3.10 to 3.12, this is {sys.version.split()[0]}; run make PYTHON=python3.11 …")
    python = make_venv(args.folder)
    if args.pytorch_of:
        try:
            link_pytorch(python, args.pytorch_of)
        except OSError as e:  # another file system, or there already
            print(f"PyTorch cannot be linked from {args.pytorch_of} ({e.strerror}); pip installs what is missing", flush=True)
    install(python, extra=args.extra, wheel=args.wheel)


if __name__ == "__main__":
    main()
