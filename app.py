"""Start the app: drop a photo, see the three most likely answers. Everything else is in `snakecls.deploy.serving`.

    python app.py                                  the model beside this file, or of the newest run
    SNAKECLS_BUNDLE=runs/…/best python app.py      a certain bundle
    SNAKECLS_BUNDLE=export.pkl SNAKECLS_TRUST_PICKLE=1 python app.py
"""
import sys
from pathlib import Path

from snakecls.core import UserError
from snakecls.deploy.app import find_bundle, load_predictor
from snakecls.deploy.service import end_at_once
from snakecls.deploy.serving import launch_service


def main() -> int:
    "Find a model, load it, serve it; a mistake of the user's is one sentence and exit code 2."
    try:
        path = find_bundle(beside=Path(__file__).resolve().parent)
        print(f"Serving {path}", flush=True)
        launch_service(load_predictor(path))
        end_at_once()
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
