"""How options are checked: types by OmegaConf when a dataclass is built, values by what a field's annotation says.

    @dataclass
    class OptimConfig(Options, section="optim"):
        lr: Annotated[float, positive]
        schedule: Annotated[str, one_of(SCHEDULES)]

What fields must fulfil together is checked in ``__post_init__``, with :func:`expect`. Every mistake is a ConfigError that says
what was given and what was expected.
"""

import re
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, ClassVar, TypeAlias, get_type_hints

from gift_vit.common.errors import ConfigError, did_you_mean

Check: TypeAlias = Callable[[str, Any], None]
"""Takes the key and its value."""


class Options:
    """Base of a dataclass of options, checked when it is made; None is always taken where the type allows it."""

    _prefix: ClassVar[str] = ""

    def __init_subclass__(cls, section: str | None = None) -> None:
        if section is not None:
            cls._prefix = f"{section}."

    def __post_init__(self) -> None:
        for name, checks in _checks(type(self)).items():
            value = getattr(self, name)
            for check in checks if value is not None else ():
                check(f"{self._prefix}{name.rstrip('_')}", value)


@cache
def _checks(cls: type[Options]) -> dict[str, tuple[Check, ...]]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: checks for name, hint in hints.items() if (checks := getattr(hint, "__metadata__", ()))}


def expect(fits: bool, key: str, value: Any, expected: str) -> None:
    """``value`` is what ``expected`` says in words."""
    if not fits:
        raise ConfigError(f"{key}={value}: expected {expected}")


def fulfils(condition: Callable[[Any], bool], expected: str) -> Check:
    """Values for which a condition holds, which ``expected`` says in words."""
    return lambda key, value: expect(condition(value), key, value, expected)


def at_least(lowest: float) -> Check:
    """``lowest`` or more."""
    return fulfils(lambda value: value >= lowest, f"{lowest} or more")


def between(lowest: float, highest: float) -> Check:
    """At least ``lowest`` and below ``highest``."""
    return fulfils(lambda value: lowest <= value < highest, f"a number in [{lowest}, {highest})")


def pair(lowest: float, highest: float) -> Check:
    """Two numbers, each at least ``lowest`` and below ``highest``."""
    return fulfils(
        lambda pair: len(pair) == 2 and all(lowest <= value < highest for value in pair),
        f"two numbers in [{lowest}, {highest})",
    )


def matches(pattern: str, expected: str) -> Check:
    """Text that a regular expression matches as a whole."""
    return fulfils(lambda text: re.fullmatch(pattern, text) is not None, expected)


positive: Check = fulfils(lambda value: value > 0, "a number above 0")


def one_of(known: Collection[str]) -> Check:
    """One of a few words, or a list of such words."""

    def check(key: str, value: Any) -> None:
        for word in value if isinstance(value, list) else [value]:
            if word not in known:
                raise ConfigError(f"unknown {key} {word!r}{did_you_mean(str(word), known)} (known: {', '.join(known)})")

    return check
