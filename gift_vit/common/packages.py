"""Packages that only some commands need."""

import importlib.util
from contextlib import suppress

from gift_vit.common.errors import ConfigError


def require(what: str, *names: str, install: str) -> None:
    """Refuse to go on without packages; imports none of them.

    Args:
        what: Needs them, as a person typed it.
        names: As they are imported.
        install: What pip installs to bring them.

    Raises:
        ConfigError: Names those that are missing, and the line that installs them.
    """
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ConfigError(f"{what} needs {', '.join(missing)}, which {are} not installed; type: pip install '{install}'")


def _is_installed(name: str) -> bool:
    with suppress(ValueError):  # of a module that is blocked
        return importlib.util.find_spec(name) is not None
    return False
