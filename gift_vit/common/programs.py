"""The commands of ``data_prep/`` and ``experiments/`` where this package is installed: ``gift-vit-tables`` and so on.

A checkout has both at its top, and they are typed as ``python -m experiments.tables``. Names so common would be in everybody's
way in a folder of installed packages, so a wheel has them inside this one, in ``installed/``. There alone, in the process of
such a command, they can be imported.
"""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

INSTALLED = Path(__file__).resolve().parents[1] / "installed"  # of a wheel; pyproject.toml says what is in it


def as_typed(text: str) -> str:
    """A text with its commands as they are typed here: ``python -m experiments.select`` is ``gift-vit-select`` in a wheel."""
    if not INSTALLED.is_dir():
        return text
    text = re.sub(r"python -m experiments\.(\w+)", r"gift-vit-\1", text)
    return re.sub(r"python -m data_prep\.(\w+)", r"gift-vit-data-prep-\1", text)


def _program(module: str) -> Callable[[], None]:
    def run() -> None:
        if INSTALLED.is_dir():
            sys.path.insert(0, str(INSTALLED))
        import_module(module).main()

    return run


crate = _program("experiments.crate")
dashboard = _program("experiments.dashboard")
ensemble = _program("experiments.ensemble")
methods = _program("experiments.methods")
report = _program("experiments.report.__main__")
tables = _program("experiments.tables")
fgvc = _program("data_prep.fgvc.__main__")
vtab = _program("data_prep.vtab.__main__")
glue = _program("data_prep.glue.__main__")
commonsense = _program("data_prep.commonsense.__main__")
data_status = _program("data_prep.status")
