"""How options are checked: types by OmegaConf when a dataclass is built, values by what a field's annotation says.

    @dataclass
    class OptimConfig(Options, section="optim"):
        lr: Annotated[float, positive]
        schedule: Annotated[str, one_of(SCHEDULES)]

What fields must fulfil together is checked in ``__post_init__``, with :func:`expect`. Every mistake is a ConfigError that says
what was given and what was expected.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.common.files import check_readable, check_writable, expanded

_BEYOND = 2**63

Check: TypeAlias = Callable[[str, Any], None]
"""Takes the key and its value."""


class Options:
    """Base of a dataclass of options, checked when it is made; None is always taken where the type allows it.

    Every number in it, alone or in a list or mapping, is one that a computer can reckon with, see :func:`check_number`.
    """

    _prefix: ClassVar[str] = ""

    def __init_subclass__(cls, section: str | None = None) -> None:
        if section is not None:
            cls._prefix = f"{section}."

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if name in vars(self):
                _check_list(self._key(name), getattr(self, name), hint)
                check_number(self._key(name), getattr(self, name))
        for name, checks in _checks(type(self)).items():
            value = getattr(self, name)
            for check in checks if value is not None else ():
                check(self._key(name), value)

    def _check_read(self, name: str, switch: str, *readers: str) -> None:
        """Refuse an option that is not at its default where the option ``switch`` is none of the words that read it."""
        value, chosen = getattr(self, name), getattr(self, switch)
        if chosen not in readers and value != getattr(type(self), name):
            no_effect = f"{self._key(name)}={value} has no effect with {self._key(switch)}={chosen}"
            raise ConfigError(f"{no_effect}; it belongs to {', '.join(readers)}")

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name.rstrip('_')}"


@cache
def _checks(cls: type[Options]) -> dict[str, tuple[Check, ...]]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: checks for name, hint in hints.items() if (checks := getattr(hint, "__metadata__", ()))}


def _check_list(key: str, value: Any, hint: Any) -> None:
    """Refuse a text where a list is expected, which would be gone through letter by letter."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, str) and any(get_origin(kind) is list for kind in kinds) and str not in kinds:
        raise ConfigError(f"{key} is a list, not the string {value!r}: write [{value}]")


def check_number(key: str, value: Any) -> None:
    """Refuse NaN, infinities, and whole numbers of more than 64 bits, alone or in a list or mapping."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_number(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_number(key, item)
    elif isinstance(value, float):
        expect(math.isfinite(value), key, value, "a finite number")
    elif isinstance(value, int):
        expect(abs(value) < _BEYOND, key, value, "a number below 2^63")


def expect(fits: bool, key: str, value: Any, expected: str) -> None:
    """``value`` is what ``expected`` says in words."""
    if not fits:
        raise ConfigError(f"{key}={value}: expected {expected}")


def of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; an integer may stand for a float, a boolean never for a number."""
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(of_type(value, choice) for choice in args)
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if hint is Any or not isinstance(origin, type):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    of_items = origin in (list, dict) and args
    return isinstance(value, origin) and (not of_items or all(of_type(item, args[-1]) for item in items))


def fulfils(condition: Callable[[Any], bool], expected: str) -> Check:
    """Values for which a condition holds, which ``expected`` says in words; a value of another type fulfils none."""

    def check(key: str, value: Any) -> None:
        try:
            fits = condition(value)
        except TypeError:
            fits = False
        expect(fits, key, value, expected)

    return check


def at_least(lowest: float) -> Check:
    """``lowest`` or more."""
    return fulfils(lambda value: value >= lowest, f"{lowest} or more")


fraction = fulfils(lambda value: 0 <= value < 1, "a number in [0, 1)")
two_fractions = fulfils(lambda pair: len(pair) == 2 and all(0 <= value < 1 for value in pair), "two numbers in [0, 1)")
split_off = fulfils(lambda part: 0 < part < 1, "a number between 0 and 1, the part that is split off")
random_seed = fulfils(lambda seed: 0 <= seed < 2**32, f"a whole number from 0 to {2**32 - 1}")
"""Of NumPy's generators, which draw splits."""


def matches(pattern: str, expected: str) -> Check:
    """Text that a regular expression matches as a whole."""
    return fulfils(lambda text: re.fullmatch(pattern, text) is not None, expected)


positive: Check = fulfils(lambda value: value > 0, "a number above 0")
one_or_several: Check = fulfils(
    lambda value: (
        bool(value) and all(isinstance(one, str | int | float) for one in (value if isinstance(value, list) else [value]))
    ),
    "one, or several as [a,b]",
)
# no path, nothing hidden, and short enough that a file system takes it with what is added
folder_name: Check = matches(
    r"[^\W_][\w.+-]{0,149}", "a name of at most 150 letters, digits and . _ + -, a letter or digit first, for it names a folder"
)
device_name: Check = matches(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:<index>")


def readable_file(key: str, value: str) -> None:  # noqa: ARG001 - a check
    """A file that is there, and may be read."""
    check_readable(expanded(value))


def writable_folder(key: str, value: str) -> None:
    """A folder that can be made, or written to."""
    expect(value != "", key, value, "a folder")
    check_writable(expanded(value))


def writable_file(key: str, value: str) -> None:
    """A file that can be written; no folder."""
    expect(value != "" and not expanded(value).is_dir(), key, value, "a file to write, no folder")
    writable_stem(key, value)


def writable_stem(key: str, value: str) -> None:  # noqa: ARG001 - a check
    """The beginning of the names of files that can be written."""
    path = expanded(value)
    check_writable(path.parent, path.name)


def one_of(known: Collection[str]) -> Check:
    """One of a few words, or a list of such words."""

    def check(key: str, value: Any) -> None:
        for word in value if isinstance(value, list) else [value]:
            if word not in known:
                raise ConfigError(f"unknown {key} {word!r}{did_you_mean(str(word), known)} (known: {', '.join(known)})")

    return check
