"""Score a finished run's model on one split."""

from dataclasses import dataclass

from omegaconf import MISSING

from gift_vit.common import cli
from gift_vit.common.errors import ConfigError
from gift_vit.runs.run import Run


@dataclass
class Arguments:
    """Score a finished run's model.

        python -m gift_vit.evaluate run=<folder> [split=test | keep_predictions=true]

    Attributes:
        run: the run's folder, such as outputs/final/digits/gift/vit_mini/<run name>, or one of gift_vit.import_gift
        split: train, val, trainval or test (default: test; val for a run of the search phase, which has no test score)
        dataset_root: the dataset.root of now, if the data is not where it was during training
        device: auto, cpu, cuda, cuda:1 …
        keep_predictions: write predictions.parquet into the folder of a run that has none, and what it says into result.json

    Prints top-1 in percent and the mean cross entropy; writes nothing else.
    """

    run: str = MISSING
    split: str | None = None
    dataset_root: str | None = None
    device: str = "auto"
    keep_predictions: bool = False

    def __post_init__(self) -> None:
        if self.keep_predictions and self.split:
            raise ConfigError(
                f"split={self.split}: keep_predictions=true takes the split that the run is scored on; drop split="
            )


def evaluate_run(arguments: Arguments) -> None:
    """Score, and print."""
    run = Run.open(arguments.run, arguments.dataset_root)
    split = run.split(arguments.split)
    from gift_vit.runs.finished import evaluate_split, make_predictions  # torch: a wrong folder or split is told without it

    keep, device = arguments.keep_predictions, arguments.device
    scores = make_predictions(run, device) if keep else evaluate_split(run, split, device)
    print(f"{run.config.dataset.name} {split}: top-1 {scores.top1:.2f} %, loss {scores.loss:.4f}, {scores.images} images")
    if run.imported is not None:
        print("imported from {file}, reported {reported[split]} top-1 {reported[top1]:.2f} %".format(**run.imported))


def main() -> None:
    """Entry point."""
    cli.main(Arguments, evaluate_run)


if __name__ == "__main__":
    main()
