"""The registry of fine-tuning methods and the contract their ``apply`` functions keep.

``apply(model, cfg)`` changes ``model`` in place. On entry every parameter is frozen; on exit exactly the parameters the
method tunes are trainable, and the outputs are unchanged unless the spec says ``identity_at_init=False``. It touches neither
the head nor any random state beyond initialising its own parameters; :func:`gift_vit.methods.apply_method` makes the head
trainable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gift_vit.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class MethodSpec:
    """One kind of method: its config class and what can be done with it.

    ``merge`` folds a trained adapter into the backbone and leaves a plain timm model; None: cannot be merged, and
    ``unmergeable`` says why.
    """

    kind: str
    config_cls: type[Any]
    apply: Callable[[nn.Module, Any], None]
    merge: Callable[[nn.Module, Any], None] | None
    identity_at_init: bool
    unmergeable: str = ""


METHODS: dict[str, MethodSpec] = {}


def register_method(
    kind: str,
    config_cls: type[Any],
    merge: Callable[[nn.Module, Any], None] | None,
    identity_at_init: bool = True,
    unmergeable: str = "",
) -> Callable[[Callable[[nn.Module, Any], None]], Callable[[nn.Module, Any], None]]:
    """Register the decorated apply function under ``kind``; a kind or a config class is registered once."""

    def register(apply: Callable[[nn.Module, Any], None]) -> Callable[[nn.Module, Any], None]:
        if kind in METHODS or any(spec.config_cls is config_cls for spec in METHODS.values()):
            raise ValueError(f"method {kind!r} or its {config_cls.__name__} is registered already")
        METHODS[kind] = MethodSpec(kind, config_cls, apply, merge, identity_at_init, unmergeable)
        return apply

    return register


def get_method(kind: str) -> MethodSpec:
    """The spec of a kind; an unknown one is an error that lists the known kinds."""
    if kind not in METHODS:
        hint = did_you_mean(kind, METHODS)
        raise ConfigError(f"unknown method kind {kind!r}{hint} (known: {', '.join(sorted(METHODS))})")
    return METHODS[kind]


def spec_of(cfg: object) -> MethodSpec:
    """The spec whose config class ``cfg`` is an instance of."""
    for spec in METHODS.values():
        if type(cfg) is spec.config_cls:
            return spec
    known = ", ".join(sorted(spec.config_cls.__name__ for spec in METHODS.values()))
    raise ConfigError(f"{type(cfg).__name__} is not a method config (known: {known})")
