"""Commands in forks of a fresh process that has imported nothing heavy: answers, and their imports."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.plugins import Plugins

import gift_vit.config
import gift_vit.runs.run
import gift_vit.sweeps.plan  # noqa: F401 - what a run is told, its folder, and sweeps are light, and known to all forks
from tests.warm import Ended, Process, act_as, clean_environment

ROOT = Path(__file__).parents[1]
Plugins.instance()  # Hydra looks for its plugins once, not in each fork
HEAVY = ("torch", "timm", "peft", "transformers", "wandb", "sklearn")


@dataclass(frozen=True)
class Answer(Ended):
    """How a command ended, and which heavy packages it had imported by then."""

    imported: list[str]


def answers(commands: Sequence[Sequence[str]], cwd: Path, env: Mapping[str, str] | None = None) -> list[Answer]:
    """The answers to commands, each a module and its words, one after the other."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cold"],
        input=json.dumps(commands),
        cwd=cwd,
        env=clean_environment(PYTHONPATH=str(ROOT), **(env or {})),
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    return [Answer(**answer) for answer in json.loads(done.stdout)]


def imported() -> list[str]:
    """The heavy packages that this process has imported."""
    return [name for name in HEAVY if sys.modules.get(name)]


def _act_and_tell(module: str, *words: str) -> None:
    try:
        act_as(module, words)
    finally:
        print(json.dumps(imported()), file=sys.stderr)


def _answer(command: list[str]) -> dict[str, object]:
    with Process(lambda: _act_and_tell(*command)) as process:
        ended = process.wait()
    *lines, told = ended.stderr.splitlines(keepends=True)
    return asdict(Answer(ended.returncode, ended.stdout, "".join(lines), json.loads(told)))


if __name__ == "__main__":
    assert imported() == []
    print(json.dumps([_answer(command) for command in json.load(sys.stdin)]))
