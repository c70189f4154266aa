"""Ctrl-C while a command's imports are under way: one line, and the end. Imported by commands, before anything else.

Who imports a command's module as a library is left alone.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PACKAGES = ("gift_vit", "data_prep", "experiments")
_INTERRUPTED = 130


def _leave(*_: object) -> NoReturn:
    """End at once: an exception could come in the middle of a library's import, which turns it into another."""
    os.write(2, b"interrupted\n")
    os._exit(_INTERRUPTED)


def _end_on_ctrl_c() -> None:
    """Where this process is one of our commands, Ctrl-C ends it in one line until :func:`interruptible`."""
    words = sys.orig_argv  # while `python -m` looks for the module, sys.argv does not name it yet
    name = words[words.index("-m") + 1] if "-m" in words[:-1] else Path(sys.argv[0] if sys.argv else "").name
    is_ours = name.partition(".")[0].replace("-", "_").startswith(_PACKAGES)
    if is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        with suppress(ValueError):  # a thread cannot
            signal.signal(signal.SIGINT, _leave)


def interruptible() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, which somebody catches."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_end_on_ctrl_c()
