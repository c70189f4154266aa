"""The predictions of a run: ``predictions.parquet`` in its folder, and what its record says of them. Imports no torch.

One row per image: ``split``, ``image`` (the id that the split uses), ``label``, and ``logits``, float16 in a list of as many as
there are classes. Rounding to float16 must not change which class is predicted: where another class would come to the height of
the predicted one, it is stored one float16 lower. So the first largest logit of a row is always the class that the model
predicted in its full precision.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gift_vit.common.cli import run_word
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path, sha256_of
from gift_vit.data.ids import image_ids
from gift_vit.runs.result import PREDICTIONS, PredictionRecord, Result
from gift_vit.runs.scores import compute_scores, top_confusions

if TYPE_CHECKING:
    from gift_vit.data.base import VisionDataset
    from gift_vit.engine.fit import Evaluation

FORMAT = 1
_COLUMNS = ("split", "image", "label", "logits")
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Predictions:
    """What a run predicted for the N images of a split, in the split's order.

    Attributes:
        images: N ids.
        labels: (N,) int64.
        logits: (N, C) float16; the first largest of a row is the predicted class.
        class_names: C names; None where they are not known.
    """

    split: str
    images: list[str]
    labels: NDArray[np.int64]
    logits: NDArray[np.float16]
    class_names: list[str] | None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The predicted classes, (N,)."""
        return self.logits.argmax(1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each is right, (N,)."""
        return self.predicted == self.labels


def keep_predictions(
    folder: Path, data: "VisionDataset", evaluated: "Mapping[str, Evaluation | None]"
) -> PredictionRecord | None:
    """Write the logits that evaluations of splits kept into a run's folder; what the record says of them, None without any.

    Where labels are numbers there are no logits, and nothing is kept.

    Raises:
        RunError: If a logit is not finite, or the disk is full.
    """
    kept = []
    for split, evaluation in evaluated.items():
        if evaluation is None or evaluation.logits is None or data.is_regression:
            continue
        if not np.isfinite(evaluation.logits).all():
            raise RunError(f"the model's outputs on {split} are not all finite; use trainer.precision=fp32 or a lower optim.lr")
        labels, logits = data.split(split).labels, to_float16(evaluation.logits)
        kept.append(Predictions(split, image_ids(data, split), labels, logits, data.class_names))
    if not kept:
        (folder / PREDICTIONS).unlink(missing_ok=True)  # of an earlier start
        return None
    return write_predictions(folder / PREDICTIONS, kept)


def to_float16(logits: NDArray[np.floating]) -> NDArray[np.float16]:
    """Logits (N, C) in float16, of which the first largest of each row is what it was before.

    A row that reaches beyond float16's range is shifted so that its largest is 0: probabilities stay what they are.
    """
    highest = logits.max(1, keepdims=True)
    shifted = np.where(np.abs(logits).max(1, keepdims=True) > _LARGEST, logits - highest, logits)
    rounded = np.clip(shifted, -_LARGEST, _LARGEST).astype(np.float16)
    predicted = logits.argmax(1)[:, None]
    top = np.take_along_axis(rounded, predicted, 1)
    level = (rounded >= top) & (np.arange(logits.shape[1]) != predicted)
    return np.where(level, np.nextafter(top, np.float16(-np.inf)), rounded)


def write_predictions(file: Path, kept: Sequence[Predictions]) -> PredictionRecord:
    """Write the predictions of one or more splits atomically; what the record says of them. The first split is the scored one.

    Raises:
        RunError: If the disk is full.
    """
    tables = []
    for predictions in kept:
        count, classes = predictions.logits.shape
        logits = pa.FixedSizeListArray.from_arrays(pa.array(predictions.logits.ravel()), classes)
        split = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([predictions.split]))
        arrays = [split, pa.array(predictions.images, pa.string()), pa.array(predictions.labels, pa.int64()), logits]
        tables.append(pa.table(dict(zip(_COLUMNS, arrays, strict=True))))
    metadata = {"format": str(FORMAT), "class_names": json.dumps(kept[0].class_names)}
    with atomic_path(file) as partial:
        pq.write_table(pa.concat_tables(tables).unify_dictionaries().replace_schema_metadata(metadata), partial)
    return describe(kept)


def describe(kept: Sequence[Predictions]) -> PredictionRecord:
    """What a record says of predictions: the first are scored, and val, where it is among the others, gives the temperature."""
    scored = kept[0]
    val = next(((other.logits, other.labels) for other in kept[1:] if other.split == "val"), None)
    return PredictionRecord(
        split=scored.split,
        images={predictions.split: len(predictions.images) for predictions in kept},
        scores=compute_scores(scored.logits, scored.labels, val),
        confusions=[asdict(confusion) for confusion in top_confusions(scored.logits, scored.labels)],
    )


def predictions_of(result: Result, split: str) -> Predictions | None:
    """The predictions that lie beside a record; None: it keeps none of the split, they are gone, or it is of no file.

    Raises:
        ConfigError: If they cannot be read, or are not those that the record was written with.
    """
    if result.path is None or result.predictions is None or split not in result.predictions.images:
        return None
    file = result.path.with_name(PREDICTIONS)
    if not file.is_file():
        return None
    remedy = f"restore it, or make it again with `python -m gift_vit.evaluate {run_word(file.parent)} keep_predictions=true`"
    known = (result.files or {}).get(PREDICTIONS)
    if known is not None and sha256_of(file) != known:
        raise ConfigError(f"{file} has another SHA-256 than {result.path.name} says: it is not the run's own; {remedy}")
    kept = read_predictions(file)
    if split not in kept:
        raise ConfigError(f"{file} is of {', '.join(kept)}, and {result.path.name} says that {split} is kept; {remedy}")
    return kept[split]


def read_predictions(file: Path) -> dict[str, Predictions]:
    """The predictions of a file by split, in the order in which they were written.

    Raises:
        ConfigError: If it cannot be read, or is of another form.
    """
    try:
        table = pq.read_table(file, columns=list(_COLUMNS))
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        if metadata.get(b"format") != b"%d" % FORMAT:
            raise ValueError(f"its metadata does not say format {FORMAT}")
        rows = table["logits"].combine_chunks()
        logits = rows.flatten().to_numpy().reshape(len(rows), rows.type.list_size)
        images, labels = table["image"].to_pylist(), table["label"].to_numpy()
        splits, names = np.asarray(table["split"].to_pylist(), dtype=object), json.loads(metadata[b"class_names"])
        _check(logits, labels)
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read as predictions: {reason}") from error
    found = {}
    for split in dict.fromkeys(splits.tolist()):
        own = np.flatnonzero(splits == split)
        found[split] = Predictions(split, [images[row] for row in own], labels[own], logits[own], names)
    return found


def _check(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> None:
    if logits.dtype != np.float16 or not len(logits):
        raise ValueError(f"it has {len(logits)} logits of type {logits.dtype}, expected float16")
    if not np.isfinite(logits).all() or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"a logit is not finite, or a label not one of its {logits.shape[1]} classes")
