"""From a table of photos to a classifier you can trust and serve.

`from snakecls import *` gives the names below. `import snakecls` loads none of them: each comes when it is first used.
"""
import sys

# as a type checker reads it; the module typing, and whatever else takes time, is not loaded before Ctrl-C is looked after (`start`)
TYPE_CHECKING = False
__version__ = "0.1.0"

FRONT = {  # name -> its module
    "load_table": "data.tables",
    "split_table": "data.splits",
    "make_demo": "data.demo.draw",
    "Augment": "data.augmentation",
    "photo_dls": "data.datablocks",
    "create_backbone": "models.backbones",
    "photo_learner": "train.learner",
    "Stage": "train.stages",
    "progressive_stages": "train.stages",
    "progressive_fit": "train.schedules",
    "SaveBestF1": "train.monitoring",
    "Predictor": "deploy.predict",
    "check_source": "workflow.check",
    "run_experiment": "workflow.run",
    "record_run": "workflow.record",
    "save_bundle": "workflow.saving",
}
__all__ = [*FRONT]

if TYPE_CHECKING:  # the same once more, for editors and type checkers
    # ruff: noqa: F401
    from .data.augmentation import Augment
    from .data.datablocks import photo_dls
    from .data.demo.draw import make_demo
    from .data.splits import split_table
    from .data.tables import load_table
    from .deploy.predict import Predictor
    from .models.backbones import create_backbone
    from .train.learner import photo_learner
    from .train.monitoring import SaveBestF1
    from .train.schedules import progressive_fit
    from .train.stages import Stage, progressive_stages
    from .workflow.check import check_source
    from .workflow.record import record_run
    from .workflow.run import run_experiment
    from .workflow.saving import save_bundle
if TYPE_CHECKING:  # what the annotations below name
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def __getattr__(name: str) -> "Any":
    "Load a name of the front door (PEP 562)."
    from importlib import import_module

    if name not in FRONT:
        raise AttributeError(f"module 'snakecls' has no attribute '{name}'; at its front door are {', '.join(FRONT)}.")
    found = globals()[name] = getattr(import_module(f"snakecls.{FRONT[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *FRONT})


MOVED = {"snakecls.data.augment": "snakecls.data.transforms", "snakecls.train.targets": "snakecls.train.multi_target"}


class _Moved:
    "Find modules under the names that an export.pkl of version 0.1 knows them by."

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        return type(__spec__)(name, self) if name in MOVED else None  # type: ignore[arg-type]  # a loader without its base class

    def create_module(self, spec: "ModuleSpec") -> None:
        "Leave it to Python: a plain module."

    def exec_module(self, module: "ModuleType") -> None:
        from importlib import import_module

        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


sys.meta_path.append(_Moved())
