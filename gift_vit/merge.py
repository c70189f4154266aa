"""Merge a finished run's adapter into its backbone: a plain timm checkpoint."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common import cli, files
from gift_vit.common.checks import Options, expect, writable_stem
from gift_vit.runs.run import Run, no_runs_file

SUFFIXES = (".safetensors", ".pth")
_A_FILE, _A_FOLDER = f"a name that ends in {' or '.join(SUFFIXES)}", "a new folder for a model of texts"


@dataclass
class Arguments(Options):
    """Merge a finished run's adapter into its backbone and write a plain timm checkpoint.

        python -m gift_vit.merge run=<folder> out=<file>

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or hf://user/name
        out: the file to write: .safetensors or .pth; for a model of texts the folder

    timm.create_model(<name>, num_classes=<classes>, checkpoint_path=<file>) loads it; it predicts the same as the run's model,
    of images prepared as its metadata say. A model of texts becomes a folder for transformers.
    """

    run: str = MISSING
    out: Annotated[str, writable_stem, no_runs_file] = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        suffix = Path(self.out).suffix
        expect(suffix in SUFFIXES or not suffix[1:].isalpha(), "out", self.out, f"{_A_FILE}, or {_A_FOLDER}")


def merge_run(arguments: Arguments) -> None:
    """Merge, write, and say how the file is loaded."""
    run, out = Run.open(arguments.run), files.expanded(arguments.out)
    run.check_finished()
    if run.config.backbone.is_text:
        expect(out.suffix not in SUFFIXES and not out.exists(), "out", arguments.out, _A_FOLDER)
    else:
        expect(out.suffix in SUFFIXES and not out.is_dir(), "out", arguments.out, f"{_A_FILE}, and no folder")
    from gift_vit.runs.finished import write_merged  # torch: what is missing is told without it

    print(write_merged(run, out))


def main() -> None:
    """Entry point."""
    cli.main(Arguments, merge_run)


if __name__ == "__main__":
    main()
