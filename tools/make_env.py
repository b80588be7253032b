"""Make a virtual environment and install the project into it; standard library only, Python 3.10 to 3.12."""
import argparse
import subprocess
import sys
import venv
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="the environment's folder")
parser.add_argument("--dev", action="store_true", help="with the `dev` extra")
parser.add_argument("--wheel", action="store_true", help="install a built wheel instead of this folder, as a user would")
args = parser.parse_args()

if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"snakecls needs Python 3.10 to 3.12, this is {sys.version.split()[0]}; run make PYTHON=python3.11 …")

root, folder = Path(__file__).parent.parent, Path(args.folder)
if not (folder / "bin" / "python").exists():
    print(f"Making the environment {folder} …", flush=True)
    venv.create(folder, with_pip=True)
pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]


def run(*command: str, quiet: str = "--quiet") -> None:
    "Run pip; leave with its exit code where it fails."
    result = subprocess.run([*pip, *command, quiet] if quiet else [*pip, *command])
    if result.returncode:
        sys.exit(f"pip {command[0]} failed (see above); is a package index in reach?")


run("install", "--upgrade", "pip", "setuptools", "wheel")
print("Installing snakecls and what it needs (PyTorch is large: a few minutes the first time) …", flush=True)
if args.wheel:
    run("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "wheels"), str(root))
    wheel = max((folder / "wheels").glob("snakecls-*.whl"), key=lambda path: path.stat().st_mtime)
    run("install", "--force-reinstall", "--no-deps", str(wheel))
    run("install", str(wheel))
else:
    run("install", "--no-build-isolation", "--editable", f"{root}[dev]" if args.dev else str(root))
