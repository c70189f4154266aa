"""Check that finished runs are what their records say."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from dataclasses import dataclass
from typing import Annotated

from gift_vit.common import cli
from gift_vit.common.checks import Options, device_name
from gift_vit.common.errors import ConfigError
from gift_vit.runs.run import Run
from gift_vit.runs.verify import verify_run, verify_runs


@dataclass
class Arguments(Options):
    """Check that a finished run is what its record says: hashes, counts, epochs, and every score by the kept predictions.

        python -m gift_vit.verify run=<folder> [score=false]
        python -m gift_vit.verify runs=<root> [score=false]

    Attributes:
        run: a run's folder; prints a line for each check, and stops at the first untruth
        runs: a folder with runs; prints a line for each finished one
        score: score the adapter again where the data is there, and count the images that are predicted otherwise
        dataset_root: the dataset.root of now, if the data is not where it was during training
        device: auto, cpu, cuda, cuda:1 …

    Exit code 1: something is not what the record says. Needs neither a GPU nor, with score=false, the data.
    """

    run: str | None = None
    runs: str | None = None
    score: bool = True
    dataset_root: str | None = None
    device: Annotated[str, device_name] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.run is None) == (self.runs is None):
            raise ConfigError("give run=<a run's folder> or runs=<a folder with runs>, one of them")


def verify(arguments: Arguments) -> None:
    """Check, and print."""
    if arguments.runs is not None:
        lines = verify_runs(arguments.runs, arguments.dataset_root, arguments.score, arguments.device)
    else:
        lines = verify_run(Run.open(str(arguments.run), arguments.dataset_root), arguments.score, arguments.device)
    for line in lines:
        print(line, flush=True)


def main() -> None:
    """Entry point."""
    cli.main(Arguments, verify)


if __name__ == "__main__":
    main()
