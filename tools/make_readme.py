"""Write README.md from nbs/index.ipynb by nbconvert (nbdev_readme needs Quarto)."""
import os
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent


def make_readme() -> str:
    "Turn the index into Markdown: without hidden cells, with its outputs as text."
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not (cell.cell_type == "code" and cell.source.lstrip().startswith("#| hide"))]
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not {"text/html", "image/png"} & {*output.get("data", {})}]  # progress bars, and pictures, which would need files beside
            cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    body = re.sub(r"\n{3,}", "\n\n", body)
    body = re.sub(r"\]\((?!\w+:|#)([^)]+)\)", lambda link: f"]({os.path.normpath(f'nbs/{link[1]}')})", body)  # the README lies one folder up
    return "<!-- Written from nbs/index.ipynb by tools/make_readme.py; edit the notebook. -->\n\n" + body.strip() + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(make_readme(), encoding="utf-8")
