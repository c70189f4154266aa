"""What all kinds of a person's own data share: from labels as they stand there to classes, and splits that are not there."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.data.base import ImageSource, Origin, SubsetSource, VisionDataset, fingerprint
from gift_vit.data.config import CommonsenseConfig, OwnConfig
from gift_vit.data.decode import Decoder
from gift_vit.data.layout import ALL, KNOWN_NAMES, SPLITS, one_form, split_named
from gift_vit.data.splitting import stratified_split

Labels: TypeAlias = "list[str] | NDArray[np.int64] | NDArray[np.float32]"
"""As they stand in the data: text, integers, or with ``cfg.is_regression`` numbers."""
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Part:
    """A split as it was read, or everything where there are no splits.

    Attributes:
        labels: As they stand there.
        source: Makes its images of the labels as numbers, and of what decodes them.
        place: Where it was read, for errors.
        origin: The same for the record.
    """

    labels: Labels
    source: Callable[..., ImageSource]
    place: str
    origin: Origin


def own_dataset(cfg: OwnConfig, parts: Mapping[str, Part], names: list[str] | None = None) -> VisionDataset:
    """The dataset of the parts: train and perhaps val and test, or :data:`ALL`.

    Text becomes numbers in the order of ``names``, or of the sorted labels of train. Integers are numbers already.

    Raises:
        ConfigError: If val or test have classes that train has not, or labels cannot be numbers of classes.
    """
    place = f"dataset {cfg.name}"
    if cfg.is_regression:
        order, count = "no classes", 1
        labels = {split: np.asarray(part.labels) for split, part in parts.items()}
    elif isinstance(joined([part.labels for part in parts.values()], place), list):
        order = "the files' own list of names" if names else "their sorted names"
        names, labels = _numbered(place, parts, names, cfg.thing)
        count = len(names)
    else:
        order = "the files' own list of names" if names else "the integers in the files"
        labels = {split: np.asarray(part.labels, np.int64) for split, part in parts.items()}
        for split, part in parts.items():
            if labels[split].min(initial=0) < 0:
                raise ConfigError(
                    f"{place}: {part.place} has the label {labels[split].min()}; classes count from 0: if it stands for "
                    f"{cfg.thing}s that are not labelled, leave them out, else write other numbers or words"
                )
            if names is None:
                unknown = labels[split][~np.isin(labels[split], labels[_first(parts)])].tolist()
                _refuse_unknown(place, split, part, unknown, f"train has not (such {cfg.thing}s: {len(unknown)})")
        count = len(names) if names else 1 + int(labels[_first(parts)].max(initial=0))
    if count > _MOST_CLASSES and cfg.num_classes is None:
        raise ConfigError(
            f"{place}: its labels reach {count - 1}, which is too high for the number of a class; "
            "write them as words, such as class_1, which are numbered"
        )
    decode = Decoder.of_dataset(cfg)
    sources = {split: part.source(labels[split], decode=decode) for split, part in parts.items()}
    splits, origins = complete_splits(cfg, sources, {split: part.origin for split, part in parts.items()}, names)
    return VisionDataset(
        *(cfg.name, cfg.num_classes or count, names, splits, fingerprint(splits), decode.name),
        class_order=order,
        thing=cfg.thing,
        origins=origins,
    )


def rows_of_splits(
    split: str, columns: Sequence[Sequence[object]], count: int, place: str, with_files: Collection[str]
) -> dict[str, NDArray[np.intp]]:
    """The rows of each split of several files, by their columns that name it; where they have none all are of ``split``.

    Raises:
        ConfigError: If some files have no such column, a value is of no known split, none is train, or one is of a split
            that has files of its own, which are ``with_files``.
    """
    values = [value for column in columns for value in column]
    if not values:
        return {split: np.arange(count)}
    if len(values) < count:
        raise ConfigError(
            f"{place} …: some of the files have a column of the split, and some have none; write it into all of them"
        )
    splits = [split_named(str(value)) for value in values]
    if None in splits:
        value = values[splits.index(None)]
        raise ConfigError(
            f"{place}: {value!r} in the column of the split is of no known one (known names: {KNOWN_NAMES}); "
            "write one of these, or give the column another name"
        )
    if "train" not in splits:
        raise ConfigError(f"{place}: no row is of train in the column of the split; a model needs some to be trained on")
    twice = next((found for found in SPLITS if found != split and found in splits and found in with_files), None)
    if twice is not None:
        raise ConfigError(
            f"{place}: rows are of {twice} by the column of the split, and there are files of {twice}, too; keep one of them"
        )
    rows = {name: np.flatnonzero([found == name for found in splits]) for name in SPLITS}
    return {name: found for name, found in rows.items() if len(found)}


def complete_splits(
    cfg: OwnConfig, found: Mapping[str, ImageSource], origins: Mapping[str, Origin], names: Sequence[str] | None = None
) -> tuple[dict[str, ImageSource], dict[str, Origin]]:
    """The splits of a person's data, and where each comes from: test split off :data:`ALL`, val split off train.

    Raises:
        ConfigError: If a class is too small to stand in both.
    """
    splits, origins = dict(found), dict(origins)
    if ALL in splits:
        whole, origin = splits.pop(ALL), origins.pop(ALL)
        fraction = cfg.val_fraction if cfg.test_fraction is None else cfg.test_fraction
        splits["train"], splits["test"], drawn = split_off(cfg, "test", ALL, whole, fraction, names)
        origins |= {"train": origin, "test": Origin(origin.files, drawn=drawn)}
    if "val" not in splits:
        train = splits["train"]
        splits["train"], splits["val"], drawn = split_off(cfg, "val", "train", train, cfg.val_fraction, names)
        origins["val"] = Origin(origins["train"].files, drawn=drawn)
    return {split: splits[split] for split in SPLITS if split in splits}, origins


def split_off(
    cfg: OwnConfig | CommonsenseConfig,
    part: str,
    of: str,
    source: ImageSource,
    fraction: float,
    names: Sequence[str] | None = None,
) -> tuple[SubsetSource, SubsetSource, str]:
    """The rest and ``part`` out of the images ``of`` a split, and how that is said; the same for the same order of images.

    Args:
        cfg: Of the dataset; its ``split_seed`` draws.
        part: The split that is made.
        of: The split that it is taken from.
        source: The images of that.
        fraction: How many become ``part``.
        names: Of the classes, for errors.

    Raises:
        ConfigError: If a class is too small to stand in both.
    """
    strata = source.labels if source.labels.dtype.kind == "i" else np.zeros(len(source), np.int64)
    try:
        rest, drawn = stratified_split(strata, fraction, cfg.split_seed, names)
    except ValueError as error:
        images = f"{cfg.thing}s" if of == ALL else f"training {cfg.thing}s"
        raise ConfigError(
            f"dataset {cfg.name}: cannot split dataset.{part}_fraction={fraction} of its {len(source)} {images} off as {part}: "
            f"{error}, or give a {part} split"
        ) from error
    whole = f"all {cfg.thing}s" if of == ALL else of
    how = "drawn" if cfg.is_regression else "stratified"
    said = f"split off {whole}: {len(drawn):,} of {len(source):,}, {how}, seed {cfg.split_seed}"
    return SubsetSource(source, rest), SubsetSource(source, drawn), said


def _first(parts: Mapping[str, Part]) -> str:
    return ALL if ALL in parts else "train"


def joined(several: Sequence[Labels], place: str) -> Labels:
    """The labels of several files, one after the other.

    Raises:
        ConfigError: If some are text and some are integers.
    """
    texts, numbers = ([labels for labels in several if isinstance(labels, list) == text] for text in (True, False))
    if texts and numbers:
        raise ConfigError(f"{place}: some labels are text and some are integers; write all of them in one way")
    return [label for labels in texts for label in labels] if texts else np.concatenate(numbers)


def taken(labels: Labels, rows: NDArray[np.intp]) -> Labels:
    """The labels of some rows."""
    return [labels[row] for row in rows] if isinstance(labels, list) else labels[rows]


def _numbered(
    place: str, parts: Mapping[str, Part], names: list[str] | None, thing: str
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """The classes' names, and each label's place among them; names that look the same are the same."""
    texts = {split: [one_form(str(label)) for label in part.labels] for split, part in parts.items()}
    known = [one_form(name) for name in names] if names else sorted(set(texts[_first(parts)]))
    numbers = {name: number for number, name in enumerate(known)}
    for split, part in parts.items():
        unknown = [label for label in texts[split] if label not in numbers]
        of = "the files' list of names" if names else "train"
        hint = did_you_mean(unknown[0], known) if unknown else ""
        _refuse_unknown(place, split, part, unknown, f"{of} has not{hint} (such {thing}s: {len(unknown)})")
    return known, {split: np.asarray([numbers[label] for label in texts[split]], np.int64) for split in parts}


def _refuse_unknown(place: str, split: str, part: Part, unknown: Sequence[object], why: str) -> None:
    """Refuse classes that a split has and nothing teaches."""
    if unknown:
        raise ConfigError(
            f"{place}: {split} ({part.place}) has the class {unknown[0]!r}, which {why}; add to train or remove them"
        )
