"""Execute the pages that make their tables from the code (commands, experiment file, measurements, plan of the house) and write what they show now."""
import subprocess
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("commands", "experiment_file", "measured", "where")


def shown(notebook: nbformat.NotebookNode) -> list[str]:  # one text an output
    "Give what a notebook's cells show."
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["text"] if "text" in output else output["data"].get("text/markdown", output["data"]["text/plain"]) for output in outputs]


def make_page(name: str, *, root: Path = ROOT) -> tuple[nbformat.NotebookNode, bool]:  # the page, executed; whether it shows what it showed before
    "Execute a page."
    before, page = (nbformat.read(root / "nbs" / f"{name}.ipynb", as_version=4) for _ in range(2))
    ExecutePreprocessor(kernel_name="python3").preprocess(page, {"metadata": {"path": str(root / "nbs")}})
    for cell in page.cells:
        cell.metadata.pop("execution", None)  # times
    return page, shown(before) == shown(page)


if __name__ == "__main__":
    for name in PAGES:
        page, same = make_page(name)
        if not same:
            path = ROOT / "nbs" / f"{name}.ipynb"
            nbformat.write(page, path)
            subprocess.run([Path(sys.executable).parent / "nbdev_clean", "--fname", path], check=True)
            print(f"written: nbs/{name}.ipynb")
