"""The words of the training command as a person types them, put into the form that Hydra reads."""

import os
import re
from argparse import OPTIONAL, Action, ArgumentParser
from collections.abc import Sequence
from dataclasses import fields

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from gift_vit.common.cli import without_dashes
from gift_vit.common.errors import ConfigError
from gift_vit.config.compose import PATHS, REQUIRED_GROUPS, choices, config_dir_of, elsewhere, existing
from gift_vit.data.config import ColumnsConfig, TextColumnsConfig

if hasattr(ArgumentParser, "_check_help"):  # Python 3.14 looks into each help text at once, and one of Hydra's is no text
    ArgumentParser._check_help = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]

_DECIMAL_COMMA = re.compile(r"(-?\d+),(0\d*)")  # no list of a sweep has a number that begins with 0, but for 0 itself
# one that is there is no list of values and no number, whatever its name, and none is made by a function
_PATHS = {f"{section}.{key}" for section, key in PATHS}
_COLUMNS = {field.name for columns in (ColumnsConfig, TextColumnsConfig) for field in fields(columns)}
_TEXTS = {*_PATHS, "run_name", *(f"dataset.columns.{name}" for name in _COLUMNS)}


def hydra_words(typed: Sequence[str]) -> list[str]:
    """Hydra's flags, wherever they stand, and then the overrides, see :func:`overrides_of`.

    Raises:
        ConfigError: For a flag without its value, a folder of ``--config-dir`` that is not there, and as :func:`overrides_of`.
    """
    config_dir, typed = config_dir_of(typed)
    actions = {flag: action for action in get_args_parser()._actions for flag in action.option_strings}
    flags = [] if config_dir is None else ["--config-dir", str(existing(config_dir))]
    words: list[str] = []
    rest = iter(typed)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag not in actions:
            words.append(word)
        elif equals or actions[flag].nargs == 0:
            flags.append(word)
        else:
            value = next(rest, None)
            if actions[flag].nargs == OPTIONAL and (value is None or "=" in value):  # an override, which flags go before
                words += [value] if value else []
                value = actions[flag].const
            flags += [flag, _checked_value(actions[flag], flag, value)]
    return [*flags, *_for_every_choice(overrides_of(without_dashes(words, ())))]


def overrides_of(words: Sequence[str]) -> list[str]:
    """``key=value`` words as Hydra reads them: a value outside of its grammar, as a path with ``~`` or umlauts, is text.

    Raises:
        ConfigError: For a word without '=', a decimal comma, a choice that is no name, or a group that cannot be left out.
    """
    parser = OverridesParser.create()
    return [_checked(word, parser) for word in words]


def _for_every_choice(words: list[str]) -> list[str]:
    """Keys of a group that is swept over, as what may be added: Hydra first composes the default choice, which may lack them.

    Whether each choice has them is checked when its run is read.
    """
    overrides = OverridesParser.create().parse_overrides(words)
    axes = [override for override in overrides if override.is_sweep_override()]
    swept = {axis.key_or_group for axis in axes}.intersection(choices())

    def may_be_added(override: Override) -> bool:
        group, dot, _ = override.key_or_group.partition(".")
        return bool(dot) and group in swept and override.type == OverrideType.CHANGE and override not in axes

    return [f"++{word}" if may_be_added(override) else word for word, override in zip(words, overrides, strict=True)]


def _checked_value(action: Action, flag: str, value: str | None) -> str:
    known = ", ".join(action.choices or ())
    if value is None:
        raise ConfigError(f"{flag} needs a value{f' ({known})' if known else ''}")
    if action.choices and value not in action.choices:
        raise ConfigError(f"unknown {flag} {value!r} (known: {known})")
    return value


def _checked(word: str, parser: OverridesParser) -> str:
    key, equals, value = word.partition("=")
    if word.startswith("~"):
        if key[1:] in REQUIRED_GROUPS:
            raise ConfigError(f"{word}: {key[1:]} cannot be left out; drop the word, or choose another with {key[1:]}=<name>")
        return word
    if not equals or not key:
        raise ConfigError(f"unexpected word {word!r}: expected <key>=<value>{elsewhere(word)}")
    if comma := _DECIMAL_COMMA.fullmatch(value):
        raise ConfigError(f"{word} has a decimal comma; write {key}={comma[1]}.{comma[2]}")
    word, override = _parsed(word, parser)
    _check_choice(word, override)
    return word


def _parsed(word: str, parser: OverridesParser) -> tuple[str, Override]:
    """The word in a form that Hydra can parse, and what it says; a name or path such as 2026_12_01 is no number."""
    key, _, value = word.partition("=")
    try:
        override = parser.parse_override(word)
        read = None if override.is_sweep_override() else override.value()
        is_respelt = isinstance(read, int | float) and str(read) != value and key.lstrip("+") in _TEXTS
        if isinstance(read, str) or not (is_respelt or (key.lstrip("+") in _PATHS and _is_there(value))):
            return word, override
    except HydraException as error:
        if key.lstrip("+") not in _PATHS and re.match(r"\w+\(", value):  # a function of Hydra's: the reason is told
            raise ConfigError(f"{word}: {hydra_reason(error)}") from error
    parts = value.split(",")
    several = not _is_there(value) and all(map(_is_there, parts))
    text = f"{key}={','.join(map(_quoted, parts if several else [value]))}"
    try:
        return text, parser.parse_override(text)
    except HydraException as error:
        raise ConfigError(f"unexpected word {word!r}: expected <key>=<value>") from error


def _is_there(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _quoted(path: str) -> str:
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), path)
    return f"'{escaped}'"


def hydra_reason(error: Exception) -> str:
    """What Hydra says of a word, without the word itself and where its grammar is explained."""
    lines = [line for line in str(error).splitlines() if not line.startswith(("See https:", "Error parsing override"))]
    return " ".join(" ".join(lines).split())


def _check_choice(word: str, override: Override) -> None:
    """Of a group a file is chosen, by name."""
    group = override.key_or_group
    if group not in choices() or override.package or override.is_sweep_override():
        return
    value = override.value()
    names = value if group == "experiment" and isinstance(value, list) else [value]  # deltas, one after the other
    if value is not None and not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{word}: expected one of {', '.join(choices()[group])}; single values are {group}.<key>=<value>")
