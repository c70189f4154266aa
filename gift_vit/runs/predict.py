"""What a finished run says of a person's own pictures: question and answer. Imports no torch."""

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gift_vit.common.cli import nobody_reads
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import atomic_path, write_json
from gift_vit.data.files import image_files

if TYPE_CHECKING:
    from gift_vit.runs.run import Run

DEFAULT_TOPK = 5
ENDINGS = (".csv", ".json", ".parquet")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Attributes:
        file: The picture.
        classes: The names of the most probable classes, the first one is the prediction; empty where it cannot be read.
        probabilities: Theirs, 0–1.
        error: Why the picture cannot be read; None: it was.
    """

    file: Path
    classes: list[str]
    probabilities: list[float]
    error: str | None = None

    def __str__(self) -> str:
        listed = (f"{name} {chance:.4f}" for name, chance in zip(self.classes, self.probabilities, strict=True))
        return f"{self.file}: {', '.join(listed)}"


def find_pictures(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """Image files by a file, a folder, a pattern, or several of them; raises as :func:`image_files` does."""
    several = [images] if isinstance(images, str | Path) or not isinstance(images, Iterable) else list(images)
    if wrong := [type(where).__name__ for where in several if not isinstance(where, str | Path)]:
        raise ConfigError(f"images={wrong[0]}: expected names of files; tensors are for model(), see docs/runs.md")
    return [file for where in several for file in image_files(where)]


def check_question(run: "Run", topk: int | None, out: Path | None = None) -> int:
    """How many classes to name (None: five, or all if there are fewer); refuses what cannot be answered.

    Raises:
        ConfigError: If the run is not finished, has fewer classes than ``topk``, or ``out`` ends otherwise.
    """
    if out is not None and out.suffix not in ENDINGS:
        raise ConfigError(f"out={out}: expected a name that ends in {', '.join(ENDINGS)}")
    run.check_takes_images("predictions of files")
    topk = min(DEFAULT_TOPK, run.num_classes) if topk is None else topk
    if not 1 <= topk <= run.num_classes:
        raise ConfigError(f"topk={topk}: expected 1 to {run.num_classes}, the classes of {run.folder}")
    return topk


def told(prediction: Prediction, is_written: bool) -> Prediction:
    """Print it, on stderr if the picture could not be read; where nobody reads that, one that is written to a file goes on."""
    try:
        print(prediction.error or prediction, file=sys.stderr if prediction.error else sys.stdout, flush=True)
    except BrokenPipeError as error:
        if not (is_written and nobody_reads(error)):
            raise
    return prediction


def write_predicted(out: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as the name's ending says: JSON has an object per picture, CSV and Parquet a row per class.

    Pictures that cannot be read stand in JSON alone, with the reason.
    """
    predictions = list(predictions)
    if out.suffix == ".json":
        write_json(out, [_as_object(prediction) for prediction in predictions])
        return
    columns = ("file", "rank", "class", "probability")
    rows = [
        (str(prediction.file), rank, name, probability)
        for prediction in predictions
        for rank, (name, probability) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True), 1)
    ]
    with atomic_path(out) as partial:
        if out.suffix == ".csv":
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(rows)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            schema = pa.schema(zip(columns, (pa.string(), pa.int32(), pa.string(), pa.float64()), strict=True))
            pq.write_table(pa.table(list(zip(*rows, strict=True)) or [[]] * len(columns), schema=schema), partial)


def _as_object(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"file": str(prediction.file), "error": prediction.error}
    listed = zip(prediction.classes, prediction.probabilities, strict=True)
    return {"file": str(prediction.file), "predictions": [{"class": name, "probability": chance} for name, chance in listed]}
