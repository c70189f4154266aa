"""Calling a command of ``gift_vit.explain`` in this process, as its words on the command line do."""

import sys
from types import ModuleType

import pytest


def call_command(command: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a command module with these words, on the CPU."""
    monkeypatch.setattr(sys, "argv", [command.__name__, *words, "device=cpu"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code
