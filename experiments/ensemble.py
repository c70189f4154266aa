"""Average the probabilities of finished runs, and score the average: ``python -m experiments.ensemble``."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError
from gift_vit.results.scores import TITLES
from gift_vit.runs.predictions import Predictions
from gift_vit.runs.run import Run
from gift_vit.runs.scores import compute_scores, log_probabilities


@dataclass
class Arguments:
    """Average the probabilities that finished runs gave the same images, and score the average.

        python -m experiments.ensemble runs=[<folder>,<folder>,…] [split=test]

    Attributes:
        runs: folders of two or more runs of one dataset, each with its predictions.parquet
        split: test or val (default: the one that the runs are scored on)

    Prints a line for each run and one for the ensemble. Nothing is computed anew: what counts are the kept predictions.
    """

    runs: list[str] = field(default_factory=list)
    split: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.runs)) < max(2, len(self.runs)):
            raise ConfigError(f"runs=[{','.join(self.runs)}]: give at least two folders, each once")


def average(members: Sequence[Predictions]) -> NDArray[np.float64]:
    """Logarithms of the mean probabilities, (N, C): logits of the ensemble."""
    return np.logaddexp.reduce([log_probabilities(member.logits) for member in members]) - np.log(len(members))


def check_same(folders: Sequence[str], members: Sequence[Predictions]) -> None:
    """Refuse predictions of other classes, or of other images than the first ones'.

    Raises:
        ConfigError: Names both folders.
    """
    first = members[0]
    for folder, other in zip(folders[1:], members[1:], strict=True):
        pair = f"{folders[0]} and {folder}"
        if other.logits.shape[1] != first.logits.shape[1] or other.class_names != first.class_names:
            raise ConfigError(f"{pair} have other lists of classes; give runs of one dataset")
        if other.images != first.images or not np.array_equal(other.labels, first.labels):
            raise ConfigError(f"{pair} predicted other images of {first.split} and {other.split}; give runs of one dataset")


def print_ensemble(arguments: Arguments) -> None:
    """Read, check, average, print."""
    members = [Run.open(folder).predictions(arguments.split) for folder in arguments.runs]
    check_same(arguments.runs, members)
    labels = members[0].labels
    for folder, member in zip(arguments.runs, members, strict=True):
        print(f"{folder}: {_listed(compute_scores(member.logits, labels))}")
    scores = compute_scores(average(members), labels)
    print(f"ensemble of {len(members)} over {len(labels):,} images of {members[0].split}: {_listed(scores)}")


def _listed(scores: dict[str, float | None]) -> str:
    return ", ".join(f"{TITLES[name]} {value:.4f}" for name, value in scores.items() if value is not None)


def main() -> None:
    cli.main(Arguments, print_ensemble)


if __name__ == "__main__":
    main()
