"""The input pipeline's benchmark: ``python -m experiments.bench_data``."""

from dataclasses import dataclass
from typing import Annotated

from gift_vit.common import cli
from gift_vit.common.checks import Options, at_least, writable_file
from gift_vit.common.files import expanded, write_text


@dataclass
class Arguments(Options):
    """How fast images reach the model, as ratios measured side by side in one run on one core.

        python -m experiments.bench_data [images=128] [rounds=5] [out=<file>.md]

    Makes JPEG files of realistic size (500×375, about 100 KB) in a temporary folder and reads them through

    - torchvision's ImageFolder with Resize 256, RandomCrop 224, flip, ToTensor, Normalize, decoded by Pillow (the yardstick),
    - gift_vit without a cache, the same transform,
    - gift_vit from the second epoch on, with the cache on disk and in memory,
    - the same for VTAB-1k's transform (squash by tf1_bilinear, no augmentation).

    All give float32 batches of 32. The variants take turns in every round; printed is the median of a round's ratios.

    Attributes:
        images: how many files
        rounds: how often each variant has its turn
        out: also write the table to this file
    """

    images: Annotated[int, at_least(1)] = 128
    rounds: Annotated[int, at_least(1)] = 5
    out: Annotated[str | None, writable_file] = None


def measure(arguments: Arguments) -> None:
    """Measure, print, and where asked write."""
    from experiments.bench.loading import run_benchmark  # torch

    text = run_benchmark(arguments.images, arguments.rounds)
    print(text, end="")
    if arguments.out:
        write_text(expanded(arguments.out), text)


def main() -> None:
    cli.main(Arguments, measure)


if __name__ == "__main__":
    main()
