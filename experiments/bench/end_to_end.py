"""Whole runs on made-up JPEG files: ``python -m experiments.bench.end_to_end``."""

from dataclasses import dataclass, field
from typing import Annotated

from gift_vit.common import cli
from gift_vit.common.checks import Options, at_least, device_name, one_of, writable_file, writable_folder
from gift_vit.common.cores import cores

CONTENDERS = ("gift", "reference", "lora")


@dataclass
class Arguments(Options):
    """What a person waits for, from the command to the last line, beside two plain loops.

        python -m experiments.bench.end_to_end [images=5994] [classes=200] [epochs=100] [contenders=[gift,reference,lora]]
                                              [out=<file>.jsonl]

    Attributes:
        images: of the training split, as many as CUB-200-2011 has; VTAB-1k has 1000
        classes: of them
        side: longer side of an image in pixels
        epochs: of the project's run
        plain_epochs: of the others
        batch_size: images in a step
        squash: resize without a crop and a flip, as VTAB-1k
        model: a timm ViT; its weights are random, from a local file
        words: more words for the project's command, such as trainer.speed=exact
        workers: processes that decode; as many as there are cores, but no more than 8
        contenders: gift is python -m gift_vit.train, start-up included, from pixels that are cached; reference is GIFT as its
            authors compute it, in TF32, from torchvision's ImageFolder through a DataLoader; lora is Hugging Face peft's, the
            same way
        device: auto, cpu, cuda or cuda:1
        folder: where files are made and kept; without it, a temporary one
        out: also write the figures to this file, a line for each contender as it ends

    Prints a table: images/s from the second epoch on, and the whole time. Leave the machine alone meanwhile.
    """

    images: Annotated[int, at_least(1)] = 5994
    classes: Annotated[int, at_least(1)] = 200
    side: Annotated[int, at_least(1)] = 500
    epochs: Annotated[int, at_least(1)] = 100
    plain_epochs: Annotated[int, at_least(1)] = 2
    batch_size: Annotated[int, at_least(1)] = 32
    squash: bool = False
    model: str = "vit_base_patch16_224.augreg_in21k"
    words: list[str] = field(default_factory=list)
    workers: Annotated[int, at_least(0)] = field(default_factory=lambda: min(8, cores()))
    contenders: Annotated[list[str], one_of(CONTENDERS)] = field(default_factory=lambda: [*CONTENDERS])
    device: Annotated[str, device_name] = "auto"
    folder: Annotated[str | None, writable_folder] = None
    out: Annotated[str | None, writable_file] = None


def run_bench(arguments: Arguments) -> None:
    """Measure, and print."""
    from experiments.bench.whole_runs import bench  # torch: a mistake is told without it

    bench(arguments)


def main() -> None:
    cli.main(Arguments, run_bench)


if __name__ == "__main__":
    main()
