"""The kinds of error a person sees as one line, without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A user's mistake: what was given, what was expected, what to do. Commands exit with code 2."""


class RunError(RuntimeError):
    """A run that failed through no fault of its configuration (NaN loss, full disk). Commands exit with code 1."""


class SweepError(RunError):
    """Runs of a sweep failed, each with a message of its own; ``exit_code`` is the first one's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``; did you mean <nearest>?`` for the end of a message about an unknown name; empty where nothing is near."""
    close = get_close_matches(given, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist."""
    hint = did_you_mean(key, known)
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    listed = ", ".join(name.rpartition(".")[2] for name in siblings or known)
    return f"unknown key {key}{hint} (known: {listed})"
