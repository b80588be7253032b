"""Take out of the notebooks' outputs what other libraries warned of: its paths are true on one machine alone."""
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent


def tidy(path: Path) -> bool:  # whether anything was taken out
    "Remove the lines that a library wrote to standard error, from a notebook."
    notebook, before = nbformat.read(path, as_version=4), 0
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        kept = [output for output in outputs if not (output.get("name") == "stderr" and "site-packages" in output.get("text", ""))]
        before += len(outputs) - len(kept)
        if len(kept) < len(outputs):
            cell.outputs = kept
    if before:
        nbformat.write(notebook, path)
    return bool(before)


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts and tidy(path):
            print(f"tidied {path.relative_to(root)}")
