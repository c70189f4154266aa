"""README.md, docs/ and the notes beside the experiments' results: their blocks, and the commands in them as words."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": (ROOT / "README.md").read_text()} | {
    str(file.relative_to(ROOT)): file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))
}
NOTES = {str(file.relative_to(ROOT)): file.read_text() for file in sorted((ROOT / "experiments").glob("*/README.md"))}

_FENCE = re.compile(r"^```(\w*)( test)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; those marked ``test`` are run."""

    page: str
    language: str
    tested: bool
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a shell block, with variables and ``<placeholders>`` filled in."""

    page: str
    words: tuple[str, ...]
    tested: bool

    @property
    def module(self) -> str:
        """What ``python -m`` or ``torchrun -m`` runs; empty for other programs."""
        return self.words[self.words.index("-m") + 1] if self.words[0] in ("python", "torchrun") else ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows the module."""
        return self.words[self.words.index("-m") + 2 :]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def prose(text: str) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", text)


def code_spans(text: str) -> set[str]:
    """Everything between single backquotes."""
    return set(re.findall(r"`([^`\n]+)`", prose(text)))


BLOCKS = [
    Block(page, language, bool(tested), block)
    for page, text in (PAGES | NOTES).items()
    for language, tested, block in _FENCE.findall(text)
]


def read_commands(block: Block) -> list[Command]:
    """The commands of a shell block."""
    variables: dict[str, str] = {}
    number = count()
    text = re.sub(r"<[^<>\n]*>", lambda _: f"some{next(number)}", block.text)
    text = re.sub(r"\$\(([^()]*)\)", lambda found: "one,two" if "paste" in found[1] else "some", text)
    commands, line = [], ""
    for piece in text.splitlines():
        line = f"{line}\n{piece}" if line else piece
        if line.endswith("\\"):
            line = line.removesuffix("\\")
            continue
        try:
            words = shlex.split(_expanded(line, variables), comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        line = ""
        assigned = dict(word.split("=", 1) for word in words if re.match(r"[A-Za-z_]+=", word))
        if words and words[0].partition("=")[0] in assigned:  # name=value, alone or before a command
            variables |= {words[0].partition("=")[0]: words[0].partition("=")[2]}
            words = words[1:]
        if words:
            commands.append(Command(block.page, tuple(words), block.tested))
    assert not line, f"{block.page}: {line} does not end"
    return commands


def _expanded(line: str, variables: dict[str, str]) -> str:
    for name, value in variables.items():
        line = re.sub(rf"\$({name}\b|{{{name}}})", lambda _, value=value: value, line)
    return line


COMMANDS = [command for block in BLOCKS if block.language == "bash" for command in read_commands(block)]


def commands_of_target(target: str, folder: Path, *words: str) -> list[Command]:
    """What ``make <target>`` would start, in this working directory, with the environment's Python, which is not started."""
    return [Command(f"make {target}", ("python", *line.split()), False) for line in start_make(folder, "-i", target, *words)]


def start_make(folder: Path, *words: str, failing: str = "nothing") -> list[str]:
    """Start make in a folder, with a Python that does nothing but leave its words, which are returned.

    Args:
        folder: The working directory.
        words: Those of make.
        failing: Of the modules, the one that fails.
    """
    python, record = folder / "python", folder / "started"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {record}\ncase "$2" in {failing}) exit 1;; esac\n')
    python.chmod(0o755)
    record.write_text("")
    command = ("make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", f"BIN={folder}", *words)
    subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True)
    return record.read_text().splitlines()
