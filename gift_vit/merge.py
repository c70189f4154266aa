"""Merge a finished run's adapter into its backbone: a plain timm checkpoint."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common import cli
from gift_vit.common.checks import Options, writable_file
from gift_vit.common.errors import ConfigError
from gift_vit.runs.run import Run

SUFFIXES = (".safetensors", ".pth")
_EXPECTED = f"a name that ends in {' or '.join(SUFFIXES)}, or for a model of texts a new folder"


@dataclass
class Arguments(Options):
    """Merge a finished run's adapter into its backbone and write a plain timm checkpoint.

        python -m gift_vit.merge run=<folder> out=<file>

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or hf://user/name
        out: the file to write: .safetensors or .pth; for a model of texts the folder

    timm.create_model(<name>, num_classes=<classes>, checkpoint_path=<file>) loads it; it predicts the same as the run's model.
    A model of texts becomes a folder for transformers.
    """

    run: str = MISSING
    out: Annotated[str, writable_file] = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix not in (*SUFFIXES, ""):
            raise ConfigError(f"out={self.out}: expected {_EXPECTED}")


def merge_run(arguments: Arguments) -> None:
    """Merge, write, and say how the file is loaded."""
    run = Run.open(arguments.run)
    run.check_finished()
    if run.config.backbone.is_text == bool(Path(arguments.out).suffix):
        raise ConfigError(f"out={arguments.out}: expected {_EXPECTED}")
    from gift_vit.runs.finished import write_merged  # torch: what is missing is told without it

    print(write_merged(run, Path(arguments.out)))


def main() -> None:
    """Entry point."""
    cli.main(Arguments, merge_run)


if __name__ == "__main__":
    main()
