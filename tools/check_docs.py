"""Process every notebook as nbdev does before Quarto draws the site (nbdev_proc_nbs without Quarto, which it would install); exit code 1 names what fails."""
import argparse
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def process_notebook(notebook: Path) -> str:  # what is wrong with it; empty where nothing is
    "Run nbdev's processors on a notebook: its exported cells and imports are executed, as `show_doc` needs them."
    from execnb.nbio import read_nb
    from nbdev.processors import FilterDefaults

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            FilterDefaults()(read_nb(notebook))
        except Exception as e:  # noqa: BLE001  (whatever it is, the other notebooks are looked at too)
            return f"{notebook}: {e} ({type(e.__cause__ or e).__name__}: {e.__cause__ or e})"
    mixed = [str(warning.message) for warning in told if "imports and other code" in str(warning.message)]
    return f"{notebook}: {mixed[0].strip()}" if mixed else ""


def main() -> int:
    from check_docs import process_notebook  # by the module's name: a notebook's shell takes the name __main__

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, nargs="*", help="all in nbs/ if none is given")
    args = parser.parse_args()
    notebooks = args.notebooks or sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        problems = [problem for problem in pool.map(process_notebook, notebooks) if problem]
    print("\n\n".join(problems) or f"{len(notebooks)} notebooks are ready for the documentation")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
