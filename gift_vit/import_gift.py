"""Turn a checkpoint that the authors of GIFT released into a folder with an adapter of this project."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common import cli
from gift_vit.common.checks import Options, readable_file, writable_folder
from gift_vit.common.files import expanded
from gift_vit.runs.released import check_dataset, read_released


@dataclass
class Arguments(Options):
    """Turn a checkpoint that the authors of GIFT released into a folder that evaluate and merge take for run=.

        python -m gift_vit.import_gift <last.pth.tar> dataset=cub out=<folder>

    Attributes:
        file: the checkpoint, artifacts/<dataset>/gift/final/final/last.pth.tar of https://github.com/savadikarc/gift
        dataset: what it was trained on: cub, nabirds, flowers, cars or dogs
        out: the folder to write, such as outputs/final/cub/gift/vit_b16_in21k/released
        weights: a local file with the backbone's pretrained weights (default: timm's source, the hub)

    Nothing in a checkpoint is run. The folder holds adapter.safetensors, config.yaml (the authors' protocol) and imported.json.
    """

    file: str = MISSING
    dataset: str = MISSING
    out: Annotated[str, writable_folder] = MISSING
    weights: Annotated[str | None, readable_file] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dataset(self.dataset)


def import_file(arguments: Arguments) -> None:
    """Read the checkpoint, write the folder, and say what can be done with it."""
    released, folder = read_released(expanded(arguments.file), arguments.dataset), expanded(arguments.out)
    from gift_vit.runs.imported import import_checkpoint  # timm: an unsafe or broken file is refused without it

    counts = import_checkpoint(released, folder, arguments.weights)
    run = cli.run_word(folder)
    print(
        f"wrote {folder}: {counts.adapter:,} adapter parameters and a head of {released.num_classes} classes; "
        f"its authors report {released.split} top-1 {released.top1:.2f} %\n    python -m gift_vit.evaluate {run}\n"
        f"    python -m gift_vit.merge {run} out={released.dataset}.safetensors"
    )


def main() -> None:
    """Entry point."""
    cli.main(Arguments, import_file, positional="file")


if __name__ == "__main__":
    main()
