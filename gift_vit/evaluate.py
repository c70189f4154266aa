"""Score a finished run's model on one split."""

import gift_vit.common.starting  # noqa: F401, I001 - first: from here on Ctrl-C is one line
from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING

from gift_vit.common import cli, hub
from gift_vit.common.checks import Options, device_name, expect
from gift_vit.runs.run import Run


@dataclass
class Arguments(Options):
    """Score a finished run's model.

        python -m gift_vit.evaluate run=<folder> [split=test | keep_predictions=true]

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or hf://user/name
        split: train, val, trainval or test (default: test; val for a run of the search phase, which has no test score)
        dataset_root: the dataset.root of now, if the data is not where it was during training
        device: auto, cpu, cuda, cuda:1 …
        keep_predictions: write predictions.parquet into the folder of a run that has none, and what it says into result.json
    """

    run: str = MISSING
    split: str | None = None
    dataset_root: str | None = None
    device: Annotated[str, device_name] = "auto"
    keep_predictions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(not (self.keep_predictions and self.split), "split", self.split, "none with keep_predictions=true; drop split=")
        expect(not (self.keep_predictions and hub.is_reference(self.run)), "run", self.run, "the folder it was trained in")


def evaluate_run(arguments: Arguments) -> None:
    """Score, and print."""
    run = Run.open(arguments.run, arguments.dataset_root)
    split = run.split(arguments.split)
    (run.check_keeps_predictions if arguments.keep_predictions else run.check_present)()
    from gift_vit.runs.finished import evaluate_split, make_predictions  # torch: a mistake is told without it

    data, where = run.config.dataset, arguments.device
    scores = make_predictions(run, where) if arguments.keep_predictions else evaluate_split(run, split, where)
    print(f"{data.name} {split}: {data.score_name} {scores.top1:.2f} %, loss {scores.loss:.4f}, {scores.images} {data.thing}s")
    if run.imported is not None:
        print("imported from {file}, reported {reported[split]} top-1 {reported[top1]:.2f} %".format(**run.imported))


def main() -> None:
    """Entry point."""
    cli.main(Arguments, evaluate_run)


if __name__ == "__main__":
    main()
