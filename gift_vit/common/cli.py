"""What all commands share: exit codes, one-line errors, ``key=value`` arguments."""

import ctypes
import inspect
import logging
import os
import re
import select
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING as REQUIRED
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gift_vit.common import distributed
from gift_vit.common.cores import wait_asleep
from gift_vit.common.errors import ConfigError, RunError, SweepError, out_of_memory
from gift_vit.common.files import explained
from gift_vit.common.programs import as_typed
from gift_vit.common.starting import interruptible

TRACEBACK_VARIABLE = "GIFT_VIT_TRACEBACK"
_HELP_COLUMNS = 120
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
SUCCESS, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

T = TypeVar("T")


def report(error: BaseException) -> int:
    """Print an error as one line on stderr and return the exit code it stands for.

    Nothing is printed of an interruption, see :func:`told_of_interruption`, nor where nobody reads. The traceback is printed
    too where the environment variable ``GIFT_VIT_TRACEBACK`` is 1.
    """
    if nobody_reads(error):
        return FAILURE  # as Python's own documentation has it
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which most commands do not import
        error = out_of_memory(error, "a smaller batch_size=, where the command knows it, or device=cpu needs less")
    error = (isinstance(error, Exception) and explained(error)) or error
    message = as_typed(" ".join(str(error).split()))
    if isinstance(error, ConfigError | RunError):
        print(f"error: {message}", file=sys.stderr)
    else:
        print(f"error: {type(error).__name__}: {message} ({TRACEBACK_VARIABLE}=1 shows where)", file=sys.stderr)
    if isinstance(error, SweepError):
        return error.exit_code
    return USER_ERROR if isinstance(error, ConfigError) else FAILURE


def nobody_reads(error: BaseException) -> bool:
    """Whether an error says that what is printed is read no more, as after ``| head -1``; then what is printed goes nowhere."""
    if not isinstance(error, BrokenPipeError):
        return False
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)  # asks for no event: that nobody reads is always told
    unread = [descriptor for descriptor, event in outputs.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    with open(os.devnull, "w") as nowhere:
        for descriptor in unread:
            os.dup2(nowhere.fileno(), descriptor)
    return bool(unread)


def run_command(action: Callable[[], None]) -> int:
    """Run a command's body; returns its exit code."""
    wait_asleep()
    try:
        interruptible()
        action()
        print(end="", flush=True)
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return SUCCESS


@contextmanager
def told_of_interruption() -> Iterator[None]:
    """Say of an interruption that there was one; of one that says what it interrupted, whoever raised it has told already."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not error.args:
            print("interrupted", file=sys.stderr)
        raise KeyboardInterrupt("the command") from error


def main(cls: type[T], action: Callable[[T], None], positional: str | None = None, section: str | None = None) -> None:
    """A whole command: read the words of the command line into ``cls``, do ``action``, exit with the code that fits."""

    @told_of_interruption()
    def command() -> None:
        action(parse_arguments(cls, positional, section))

    log_to_stderr()
    raise SystemExit(run_command(command))


def parse_arguments(cls: type[T], positional: str | None = None, section: str | None = None) -> T:
    """Read ``key=value`` words of the command line into a dataclass; ``--help`` prints what its docstring says, and exits.

    ``--key value``, ``--key=value`` and, for what is true or false, ``--key`` mean the same. The first word without '=' is the
    value of the field ``positional``, if one is named. A field that ends in an underscore is typed without it: ``class_`` is
    ``class=…``, which Python could not name. Words ``<section>.<key>=<value>`` are listed in the field ``section`` as they are.

    Raises:
        ConfigError: For an unknown key, a word without '=', or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    words = _typed(hints, positional)
    if {"-h", "--help"} & set(words):
        print(help_text(cls), flush=True)
        raise SystemExit(SUCCESS)
    arguments = OmegaConf.structured(cls)
    known = {f"{name}.<key>" if name == section else name.rstrip("_"): name for name in map(str, arguments)}
    for word in words:
        key, equals, _ = word.partition("=")
        if section and key.startswith(f"{section}."):
            OmegaConf.select(arguments, section).append(word.replace("${", r"\${"))
            continue
        if not equals or key not in known:
            raise ConfigError(f"unexpected argument {word!r}: expected {', '.join(f'{name}=…' for name in known)}")
        try:
            arguments = OmegaConf.merge(arguments, {known[key]: _value(word, hints[known[key]])})
        except ConfigError:
            raise
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from error
    missing = sorted(OmegaConf.missing_keys(arguments))
    if missing:
        alone = ", or its value alone," if missing[0] == positional else ""
        raise ConfigError(f"{missing[0]}=…{alone} is required; --help explains")
    try:
        return OmegaConf.to_object(arguments)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None)}: {str(error).splitlines()[0]}") from error


def _typed(hints: Mapping[str, Any], positional: str | None) -> list[str]:
    """The words of the command line as ``key=value``, whichever way they were typed."""
    words = without_dashes(sys.argv[1:], {key for key, kind in hints.items() if kind is bool})
    if positional is not None:
        named = next((index for index, word in enumerate(words) if "=" not in word and not word.startswith("-")), None)
        if named is not None:
            words[named] = f"{positional}={words[named]}"
    return words


def _value(word: str, hint: Any) -> Any:
    """What is typed after '=': text as it is where a field is or may be text, as 1.10 and 2026_12_01; else YAML."""
    key, _, text = word.partition("=")
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if (list[str] in kinds and text.startswith("[")) or (Any in kinds and text.lower() not in ("", "true", "false", "null")):
        return yaml.load(text.replace("${", r"\${"), yaml.BaseLoader) if text.startswith("[") else text
    if str not in kinds:
        value = OmegaConf.from_dotlist([f"{key}={text}"])[key]
        if (
            value is not None
            and not OmegaConf.is_list(value)
            and {get_origin(kind) or kind for kind in kinds} <= {list, NoneType}
        ):
            raise ConfigError(f"{word}: expected a list, as {key}=[{text}]")
        return value
    return None if NoneType in kinds and text in ("", "null") else text.replace("${", r"\${")


def help_text(cls: type[Any]) -> str:
    """What ``--help`` prints: the docstring of a dataclass of arguments, its attributes as a table with their defaults."""
    before, _, rest = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    after = rest.partition("\n\n")[2].strip()
    told = {name: text for base in reversed(cls.__mro__) for name, text in _attributes(base).items()}
    names = {field.name: field.name.rstrip("_") for field in fields(cls)}
    width = max(map(len, names.values()))
    rows = [
        textwrap.fill(
            f"{names[field.name]:{width}}   {_with_default(told.get(field.name, ''), field)}",
            _HELP_COLUMNS,
            initial_indent="    ",
            subsequent_indent=" " * (width + 7),
            break_on_hyphens=False,
            break_long_words=False,
        )
        for field in fields(cls)
    ]
    return as_typed("\n\n".join(filter(None, [before.strip(), "\n".join(rows), after])))


def _attributes(cls: type[Any]) -> dict[str, str]:
    """What a dataclass's own docstring says of its attributes."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
    told: dict[str, str] = {}
    for line in section.splitlines():
        if entry := re.match(r"    (\w+): (.*)", line):
            told[entry[1]] = entry[2]
        elif told:
            told[list(told)[-1]] += f" {line.strip()}"
    return told


def _with_default(text: str, field: Field[Any]) -> str:
    """The text of an attribute, and its default where that is a value and the text does not tell it."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is None or value == [] or "(default: " in text:
        return text
    if value == REQUIRED:
        return f"{text} (required)"
    shown = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return f"{text} (default: {shown.lower() if isinstance(value, bool) else shown})"


def without_dashes(words: Sequence[str], flags: Collection[str]) -> list[str]:
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


def run_word(folder: Path | str) -> str:
    """``run=<folder>`` as it is typed in a shell."""
    return shlex.quote(f"run={folder}")


def quiet_other_processes() -> None:
    """Of several processes let the main one alone write to stderr, unless tracebacks are asked for."""
    if distributed.launched() and int(os.environ["RANK"]) > 0 and os.environ.get(TRACEBACK_VARIABLE) != "1":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process


def interrupt_on_sigterm() -> None:
    """Let a scheduler's SIGTERM end a run as Ctrl-C does: resumable, and logged."""

    def interrupt(*_: object) -> None:
        distributed.let_workers_end()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def end_with_parent(parent: int) -> None:
    """Let this process get SIGTERM when its parent, the process ``parent``, ends, however it ends; on Linux.

    Raises:
        KeyboardInterrupt: If it has ended.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise KeyboardInterrupt


def log_to_stderr() -> None:
    """Plain log lines on stderr, for the commands that Hydra does not set up."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("timm").setLevel(logging.WARNING)  # its notes on loading weights repeat what a run says
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # every request of the Hub's client
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # tells of a CUDA toolkit where there is no GPU
