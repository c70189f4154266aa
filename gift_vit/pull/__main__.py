"""Get a run from the Hugging Face Hub as a folder."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common import cli
from gift_vit.common.checks import Options, writable_folder
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded, new_folder
from gift_vit.common.hub import PUSHED, repo_and_revision
from gift_vit.runs.run import Run


@dataclass
class Arguments(Options):
    """Get a run that gift_vit.push put on the Hugging Face Hub, as a folder for every command that takes run=.

        python -m gift_vit.pull repo=<user>/<name> [out=<folder>]

    Attributes:
        repo: the repository, as <user>/<name>; behind an @ may stand a revision
        out: the folder to write, which must not be there (default: <name>, in this folder)
        revision: a branch, tag or commit (default: the newest)

    The data is not part of it: give dataset_root=<folder> to the commands that read it.
    """

    repo: str = MISSING
    out: Annotated[str | None, writable_folder] = None
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.repo, revision = repo_and_revision(self.repo.removeprefix("hf://"))
        if revision is not None and self.revision not in (None, revision):
            raise ConfigError(f"repo={self.repo}@{revision} and revision={self.revision} contradict each other; drop one")
        self.revision = revision or self.revision
        if self.folder.exists():
            raise ConfigError(f"{self.folder} is there already; give out=<another folder>")

    @property
    def folder(self) -> Path:
        """The folder to write."""
        return expanded(self.out or self.repo.partition("/")[2])


def pull(arguments: Arguments) -> None:
    """Download into the Hub's cache, check what came, and copy it."""
    run = Run.open(f"hf://{arguments.repo}" + (f"@{arguments.revision}" if arguments.revision else ""))
    run.check_finished()
    out = arguments.folder
    with new_folder(out) as stage:
        for name in PUSHED:
            if (run.folder / name).is_file():
                (stage / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(run.folder / name, stage / name)
    backbone = run.config.backbone
    of_texts = "merge {} out=<new folder>" if backbone.pooling == "model" else "evaluate {} dataset_root=<folder>"
    use = of_texts if backbone.is_text else "predict {} images=…"
    print(
        f"{out}: {run.config.method_name} on {run.config.dataset.name}; try python -m gift_vit.{use.format(cli.run_word(out))}"
    )


def main() -> None:
    """Entry point."""
    cli.main(Arguments, pull)


if __name__ == "__main__":
    main()
