"""Check that what is generated is in step: package and notebooks, clean notebooks, README and index.ipynb; exit code 1 names what is not."""
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path) -> None:
    "Run a tool of the environment, quietly."
    subprocess.run([str(BIN / command[0]), *command[1:]], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def changed(kind: str, pattern: str, copy: Path) -> list[str]:
    "Name the files that differ between the project and its regenerated copy."
    names = sorted({str(path.relative_to(base)) for base in (ROOT, copy) for path in base.glob(pattern) if not {".ipynb_checkpoints", "__pycache__"} & set(path.parts)})
    return [f"{kind}: {name}" for name in names if not ((ROOT / name).exists() and (copy / name).exists() and filecmp.cmp(ROOT / name, copy / name, shallow=False))]


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv*", ".git", "runs", "snakecls-demo", "__pycache__", "*.egg-info", "wandb"))
        run("nbdev_clean", cwd=copy)
        problems = changed("notebook is not clean, run nbdev_clean", "nbs/**/*.ipynb", copy)
        run("python", "tools/tidy_outputs.py", cwd=copy)
        problems += changed("notebook holds warnings of other libraries, run tools/tidy_outputs.py", "nbs/**/*.ipynb", copy) if not problems else []
        run("nbdev_export", cwd=copy)
        problems += changed("module is not what the notebooks export, run nbdev_export", "snakecls/**/*.py", copy)
        run("nbdev_update", cwd=copy)
        problems += changed("nbdev_update changes a notebook of a clean copy, so an edit in snakecls/ would not come back as it was", "nbs/**/*.ipynb", copy)
        run("python", "tools/make_readme.py", cwd=copy)
        problems += changed("README is not what nbs/index.ipynb gives, run tools/make_readme.py", "README.md", copy)
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if path.stat().st_size > 200_000:
            problems.append(f"notebook is over 200 KB: {path.relative_to(ROOT)}")
    print("\n".join(problems) or "package, notebooks and README are in step")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
