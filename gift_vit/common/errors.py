"""The kinds of error a person sees as one line, without a traceback."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

_LISTED = 3


class ConfigError(ValueError):
    """A user's mistake: what was given, what was expected, what to do. Commands exit with code 2."""


class RunError(RuntimeError):
    """A run that failed through no fault of its configuration (NaN loss, full disk). Commands exit with code 1."""


class SweepError(RunError):
    """Runs of a sweep failed, each with a message of its own; ``exit_code`` is the first one's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def out_of_memory(error: BaseException, remedy: str) -> RunError:
    """The beginning of what torch says of a GPU whose memory is short, which goes on about allocators, and what needs less."""
    return RunError(f"the GPU's memory is too small ({' '.join(str(error).split()[:12])} …); {remedy}")


def a_few(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``; did you mean <nearest>?`` for the end of a message about an unknown name; empty where nothing is near."""
    return _hint(get_close_matches(given, list(known), 1))


def unknown_key(key: str, known: Sequence[str], groups: Collection[str] = ()) -> str:
    """The message for a dotted key that does not exist.

    The nearest one is looked for among its siblings and ``groups``, then by its last part in other sections. Where its section
    does not exist, the one around it takes its place.
    """
    section, _, last = key.rpartition(".")
    while section and not any(name.startswith(f"{section}.") for name in known):
        section = section.rpartition(".")[0]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    inside = sorted({name.partition(".")[0] for name in known} | set(groups))
    named = siblings if section else {**siblings, **{name: name for name in inside}}
    parts = defaultdict(list)
    for name in known:
        parts[name.rpartition(".")[2]].append(name)
    same = parts.get(last, [])
    hint = (
        _hint([named[name] for name in get_close_matches(last, named, 1)])
        or _hint(same if len(same) <= _LISTED else [])
        or (did_you_mean(key, known) if last == key else "")
        or _hint([name for part in get_close_matches(last, parts, 1) for name in parts[part]][:_LISTED])
    )
    listed = ", ".join(siblings if section and siblings else inside)
    return f"unknown key {key}{hint} (known: {listed})"


def _hint(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""
