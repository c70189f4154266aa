"""Which invariances of its pretrained model a fine-tuned one keeps, and what it forgets. Imports torch when it is used.

After Merlin, Nanda, Rawal, Toneva, arXiv 2307.06006. See ``docs/invariance.md``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gift_vit.invariance.inversion import invert
    from gift_vit.invariance.sharing import stir
    from gift_vit.invariance.similarity import cka

__all__ = ["cka", "invert", "stir"]
_HOMES = {"cka": "similarity", "invert": "inversion", "stir": "sharing"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
