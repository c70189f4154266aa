"""Classify a person's own pictures with a finished run."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common import cli
from gift_vit.common.checks import Options, device_name, writable_file
from gift_vit.common.errors import RunError
from gift_vit.common.files import expanded
from gift_vit.runs.predict import check_question, find_pictures, told, write_predicted
from gift_vit.runs.run import Run, no_runs_file


@dataclass
class Arguments(Options):
    """Classify pictures with a finished run, prepared as in its training.

        python -m gift_vit.predict run=<folder> images=<file, folder or pattern> [topk=5] [out=<file>]

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or hf://user/name
        images: an image file, a folder of them, or a pattern in quotation marks, such as 'photos/**/*.jpg'
        topk: how many classes to name, the most probable ones (default: 5, or all if there are fewer)
        out: also write them to this file: .csv, .json or .parquet; pictures that cannot be read stand in .json alone
        device: auto, cpu, cuda, cuda:1 …

    Prints a line for each picture. One that cannot be read is named on stderr, the rest is done, and the exit code is 1.
    """

    run: str = MISSING
    images: str = MISSING
    topk: int | None = None
    out: Annotated[str | None, writable_file, no_runs_file] = None
    device: Annotated[str, device_name] = "auto"


def predict(arguments: Arguments) -> None:
    """Classify, print and write."""
    run, out = Run.open(arguments.run), expanded(arguments.out) if arguments.out else None
    topk = check_question(run, arguments.topk, out)
    files = find_pictures(arguments.images)
    from gift_vit.runs.classify import classify_files  # torch: a mistake is told without it

    predictions = [told(found, out is not None) for found in classify_files(run, files, topk, arguments.device)]
    if out is not None:
        write_predicted(out, predictions)
    if unread := sum(prediction.error is not None for prediction in predictions):
        raise RunError(f"{unread} of {len(predictions)} pictures could not be read")


def main() -> None:
    """Entry point."""
    cli.main(Arguments, predict)


if __name__ == "__main__":
    main()
