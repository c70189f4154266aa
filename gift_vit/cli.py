"""What all commands share: exit codes, one-line errors, ``key=value`` arguments."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gift_vit.errors import ConfigError, RunError, SweepError

TRACEBACK_VARIABLE = "GIFT_VIT_TRACEBACK"
SUCCESS, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

T = TypeVar("T")


def report(error: BaseException) -> int:
    """Print an error as one line on stderr and return the exit code it stands for.

    The traceback is printed too where the environment variable ``GIFT_VIT_TRACEBACK`` is 1.
    """
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    message = " ".join(str(error).split())
    if isinstance(error, ConfigError | RunError):
        print(f"error: {message}", file=sys.stderr)
    else:
        print(f"error: {type(error).__name__}: {message} ({TRACEBACK_VARIABLE}=1 shows where)", file=sys.stderr)
    if isinstance(error, SweepError):
        return error.exit_code
    return USER_ERROR if isinstance(error, ConfigError) else FAILURE


def run_command(action: Callable[[], None]) -> int:
    """Run a command's body; returns its exit code."""
    try:
        action()
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return SUCCESS


def parse_arguments(cls: type[T], usage: str, positional: str | None = None) -> T:
    """Read ``key=value`` words of the command line into a dataclass; ``--help`` prints ``usage`` and exits.

    ``--key value``, ``--key=value`` and, for what is true or false, ``--key`` mean the same. The first word without '=' is the
    value of the field ``positional``, if one is named. A field that ends in an underscore is typed without it: ``class_`` is
    ``class=…``, which Python could not name.

    Raises:
        ConfigError: For an unknown key, a word without '=', or a value of the wrong type.
    """
    words = _without_dashes(sys.argv[1:], {key for key, kind in get_type_hints(cls).items() if kind is bool})
    if positional is not None:
        named = next((index for index, word in enumerate(words) if "=" not in word and not word.startswith("-")), None)
        if named is not None:
            words[named] = f"{positional}={words[named]}"
    if {"-h", "--help"} & set(words):
        print(usage.strip())
        raise SystemExit(SUCCESS)
    arguments = OmegaConf.structured(cls)
    known = {str(name).rstrip("_"): str(name) for name in arguments}
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"unexpected argument {word!r}: expected {', '.join(f'{name}=…' for name in known)}")
        try:
            arguments = OmegaConf.merge(arguments, OmegaConf.from_dotlist([known[key] + word[len(key) :]]))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from error
    missing = sorted(OmegaConf.missing_keys(arguments))
    if missing:
        raise ConfigError(f"{'a name' if missing[0] == positional else missing[0] + '=…'} is required; --help explains")
    return OmegaConf.to_object(arguments)  # pyright: ignore[reportReturnType]


def _without_dashes(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """``--key value`` and ``--key=value`` as ``key=value``, ``--flag`` as ``flag=true``."""
    plain, rest = [], iter(words)
    for word in rest:
        key = word.removeprefix("--")
        if word in (key, "--help"):
            plain.append(word)
        elif "=" in key:
            plain.append(key)
        else:
            value = "true" if key in flags else next(rest, None)
            plain.append(word if value is None else f"{key}={value}")
    return plain


def interrupt_on_sigterm() -> None:
    """Let a scheduler's SIGTERM end a run as Ctrl-C does: resumable, and logged."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def log_to_stderr() -> None:
    """Plain log lines on stderr, for the commands that Hydra does not set up."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("timm").setLevel(logging.WARNING)  # its notes on loading weights repeat what a run says
