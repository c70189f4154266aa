"""Average the probabilities of finished runs, and score the average: ``python -m experiments.ensemble``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError
from gift_vit.data.config import DatasetConfig
from gift_vit.results.scores import score_title
from gift_vit.runs.predictions import Predictions
from gift_vit.runs.run import Run
from gift_vit.runs.scores import compute_scores, log_probabilities, task_scores


@dataclass
class Arguments:
    """Average the probabilities that finished runs gave the same images or texts, and score the average.

        python -m experiments.ensemble runs=[<folder>,<folder>,…] [split=test]

    Attributes:
        runs: folders of two or more runs of one dataset, each with its predictions.parquet
        split: test or val (default: the one that the runs are scored on)

    Prints a line for each run and one for the ensemble. Nothing is computed anew: what counts are the kept predictions.
    """

    runs: list[str] = field(default_factory=list)
    split: str | None = None

    def __post_init__(self) -> None:
        if len({Path(run).resolve() for run in self.runs}) < max(2, len(self.runs)):
            raise ConfigError(f"runs=[{','.join(self.runs)}]: give at least two folders, each once")


def average(members: Sequence[Predictions]) -> NDArray[np.float64]:
    """Logarithms of the mean probabilities, (N, C): logits of the ensemble."""
    return np.logaddexp.reduce([log_probabilities(member.logits) for member in members]) - np.log(len(members))


def check_same(folders: Sequence[str], members: Sequence[Predictions], things: str) -> None:
    """Refuse predictions of other classes, or of other images (``things``) than the first ones'.

    Raises:
        ConfigError: Names both folders.
    """
    first = members[0]
    for folder, other in zip(folders[1:], members[1:], strict=True):
        pair = f"{folders[0]} and {folder}"
        if other.logits.shape[1] != first.logits.shape[1] or other.class_names != first.class_names:
            raise ConfigError(f"{pair} have other lists of classes; give runs of one dataset")
        if other.images != first.images or not np.array_equal(other.labels, first.labels):
            splits = f"{first.split} and {other.split}" if first.split != other.split else first.split
            raise ConfigError(f"{pair} predicted other {things} of {splits}, or in another order; give runs of one dataset")


def print_ensemble(arguments: Arguments) -> None:
    """Read, check, average, print."""
    runs = [Run.open(folder) for folder in arguments.runs]
    members = [run.predictions(arguments.split) for run in runs]
    dataset = runs[0].config.dataset
    if len({run.record().data.fingerprint for run in runs}) > 1:
        told = f"the data of the runs differ: their {dataset.thing}s have the same names, and may be others"
        print(f"warning: {told}", file=sys.stderr)
    check_same(arguments.runs, members, f"{dataset.thing}s")
    labels = members[0].labels
    for folder, member in zip(arguments.runs, members, strict=True):
        print(f"{folder}: {_scores(member.logits, labels, dataset)}")
    scores = _scores(average(members), labels, dataset)
    print(f"ensemble of {len(members)} over {len(labels):,} {dataset.thing}s of {members[0].split}: {scores}")


def _scores(logits: NDArray[np.floating], labels: NDArray[np.int64], dataset: DatasetConfig) -> str:
    """The dataset's own score, where it is not accuracy, and what probabilities say."""
    own = dataset.scores[0]
    first = {} if own == "accuracy" else {f"{dataset.score_name} (%)": task_scores(logits, labels, [own])[own]}
    others = {score_title(name, dataset.thing): value for name, value in compute_scores(logits, labels).items()}
    return ", ".join(f"{name} {value:.4f}" for name, value in (first | others).items() if value is not None)


def main() -> None:
    cli.main(Arguments, print_ensemble)


if __name__ == "__main__":
    main()
