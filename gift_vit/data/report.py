"""What every run says of its data before it trains: sizes, where the images come from, and what stands in two places."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from gift_vit.common.errors import ConfigError, a_few
from gift_vit.data.base import ImageSource, Origin, VisionDataset
from gift_vit.data.decode import UNREADABLE
from gift_vit.data.layout import LINKED, OF_THE_SYSTEM, REPEATED, said

log = logging.getLogger(__name__)

_NAMED_FILES = 4
_MANY = 50_000  # examples, of which looking at each takes a minute or so
_AT_A_TIME = 64  # pictures that a process decodes at a time
_UNKNOWN = {"nan", "na", "n/a", "<na>", "null", "?"}
_HARMLESS = {OF_THE_SYSTEM, LINKED, REPEATED}


@dataclass(frozen=True)
class SplitReport:
    """One split: how many images of how many classes, and :class:`gift_vit.data.base.Origin` of them.

    Attributes:
        remarks: How many images decoding changes in a way that a person may not expect, by what it does.
    """

    images: int
    classes: int
    files: tuple[str, ...]
    skipped: Mapping[str, int]
    drawn: str | None
    remarks: Mapping[str, int]


@dataclass(frozen=True)
class Duplicates:
    """Pictures, by their exact bytes, that are there more than once.

    Attributes:
        shared: How many stand in both of two splits, such as ``train, test``; only where there are any.
        within: How many stand more than once in one split; only where there are any.
        mislabelled: How many have more than one label.
        examples: For each of these, two places of one picture.
    """

    shared: dict[str, int] = field(default_factory=dict)
    within: dict[str, int] = field(default_factory=dict)
    mislabelled: int = 0
    examples: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataReport:
    """What is known of a dataset before it is trained on; ``duplicates`` is None where nobody looked."""

    name: str
    classes: str
    splits: dict[str, SplitReport]
    duplicates: Duplicates | None
    warnings: list[str]
    thing: str = "image"
    kinds: str = "classes"

    def lines(self) -> Iterator[str]:
        """The report for a person, but for the warnings."""
        yield f"data {self.name}: {self.classes}"
        for split, report in self.splits.items():
            place = f", from {a_few(report.files, _NAMED_FILES)}" if report.files else ""
            drawn = f"; {split} is {report.drawn}" if report.drawn else ""
            harmless = {what: count for what, count in report.skipped.items() if what in _HARMLESS}
            left_out = f"; left out: {said(harmless)}" if harmless else ""
            yield f"  {split}: {report.images:,} {self.thing}s of {report.classes:,} {self.kinds}{place}{drawn}{left_out}"
            if report.remarks:
                yield f"  {split}: {said(report.remarks)}"
        if self.duplicates is None:
            yield f"  {_picture(self.thing)}s that stand in two splits: not looked for (dataset.check_duplicates=false)"
        elif not self.duplicates.shared:
            yield f"  no {_picture(self.thing)} stands in two splits"
        if self.duplicates is not None:
            for split, count in self.duplicates.within.items():
                yield f"  {split}: {_are(count, self.thing)} there more than once, such as {self.duplicates.examples[split]}"

    def log(self) -> None:
        """Write it into the log."""
        for line in self.lines():
            log.info("%s", line)
        for warning in self.warnings:
            log.warning("%s: %s", self.name, warning)

    def record(self) -> dict[str, Any]:
        """The same as JSON's types, for ``result.json``."""
        splits = {
            split: {
                **vars(report),
                "files": list(report.files),
                "skipped": dict(report.skipped),
                "remarks": dict(report.remarks),
            }
            for split, report in self.splits.items()
        }
        duplicates = None if self.duplicates is None else dict(vars(self.duplicates))
        return {"splits": splits, "duplicates": duplicates, "warnings": self.warnings}


def describe(data: VisionDataset, check_duplicates: bool = True, look: bool = True) -> DataReport:
    """Count, look for pictures that are there twice, and with ``look`` into the header of each for what decoding changes.

    Raises:
        ConfigError: If a picture is empty, or with ``look`` of no known format, or without a range of values that is known.
    """
    count = sum(map(len, data.splits.values()))
    if count > _MANY and (check_duplicates or look):
        log.info(
            "data %s: looking at %s %ss first (dataset.check_duplicates=false compares none)",
            data.name,
            f"{count:,}",
            data.thing,
        )
    duplicates = find_duplicates(data.splits) if check_duplicates else None
    splits = {split: _of_split(source, data.origins.get(split, Origin()), look) for split, source in data.splits.items()}
    warnings = [*_class_warnings(data), *_skipped(splits), *_leaks(duplicates, data.thing)]
    kinds = "values" if data.is_regression else "classes"
    return DataReport(data.name, _labels(data), splits, duplicates, warnings, data.thing, kinds)


def _labels(data: VisionDataset) -> str:
    if data.is_regression:
        lowest, highest = (end(end(source.labels) for source in data.splits.values()) for end in (min, max))
        return f"labels are numbers, from {lowest:g} to {highest:g}"
    names = f": {_shortened(data.class_names)}" if data.class_names else ""
    return f"{data.num_classes:,} classes in the order of {data.class_order}{names}"


def find_duplicates(splits: Mapping[str, ImageSource]) -> Duplicates:
    """Pictures that are stored in the same bytes. Only those of equal size are read and hashed."""
    sizes = np.concatenate([source.sizes for source in splits.values()])
    _, kind, repeats = np.unique(sizes, return_inverse=True, return_counts=True)
    repeated = np.split(repeats[kind] > 1, np.cumsum([len(source) for source in splits.values()])[:-1])
    places: defaultdict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for (split, source), candidates in zip(splits.items(), repeated, strict=True):
        for index in np.flatnonzero(candidates).tolist():
            places[hashlib.sha256(source.stored(index)).digest()].append((split, index))
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}

    def count(key: str, *two: tuple[str, int]) -> None:
        counts[key] += 1
        if key not in examples:
            examples[key] = " and ".join(splits[split].where(index) for split, index in two)

    for several in (several for several in places.values() if len(several) > 1):
        first = {split: (split, index) for split, index in reversed(several)}
        for one, other in combinations([split for split in splits if split in first], 2):
            count(f"{one}, {other}", first[one], first[other])
        for split in first:
            again = [place for place in several if place[0] == split]
            if len(again) > 1:
                count(split, *again[:2])
        other = next((place for place in several if _label(splits, place) != _label(splits, several[0])), None)
        if other is not None:
            count("labels", several[0], other)
    return Duplicates(
        shared={
            f"{one}, {other}": counts[f"{one}, {other}"]
            for one, other in combinations(splits, 2)
            if f"{one}, {other}" in counts
        },
        within={split: counts[split] for split in splits if split in counts},
        mislabelled=counts["labels"],
        examples=examples,
    )


def _label(splits: Mapping[str, ImageSource], place: tuple[str, int]) -> float:
    return splits[place[0]].labels[place[1]].item()


def _of_split(source: ImageSource, origin: Origin, look: bool) -> SplitReport:
    found = [source.remarks(index) for index in range(len(source))] if look else []
    suspects = [index for index, remarks in enumerate(found) if UNREADABLE in remarks]
    _refuse(problem_of(source, index) for index in suspects or np.flatnonzero(source.sizes == 0).tolist())
    remarks = Counter(remark for remarks in found for remark in remarks if remark != UNREADABLE)
    return SplitReport(len(source), len(np.unique(source.labels)), origin.files, origin.skipped, origin.drawn, remarks)


def check_decodable(source: ImageSource, workers: int) -> None:
    """Decode every picture, in ``workers`` processes: one that is cut short is else found where it is first needed.

    Raises:
        ConfigError: Names the first that cannot be decoded, and counts them.
    """
    from gift_vit.data.loaders import in_lists  # torch, which the report alone does without

    told = in_lists(partial(_problems, source), len(source), _AT_A_TIME, workers)
    _refuse(error for errors in told for error in errors)


def _problems(source: ImageSource, indices: Sequence[int]) -> list[str | None]:
    return [problem_of(source, index) for index in indices]


def problem_of(source: ImageSource, index: int) -> str | None:
    """Why a picture cannot be decoded; None: it can. A text may be empty."""
    try:
        source[index]
    except ConfigError as error:
        return str(error)
    return None


def _refuse(errors: Iterable[str | None]) -> None:
    """Raise a :class:`ConfigError` of the first, with the number of the others."""
    if found := [error for error in errors if error is not None]:
        raise ConfigError(f"{found[0]} (and {len(found) - 1:,} more)" if len(found) > 1 else found[0])


def _class_warnings(data: VisionDataset) -> Iterator[str]:
    """Classes that no image teaches, and a single one."""
    if data.is_regression:
        return
    if data.num_classes == 1:
        yield "there is one class only: every prediction is right, and the score says nothing"
    if nested := data.origins.get("train", Origin()).nested:
        yield f"the images of {_shortened(nested)} lie in several folders inside; each is one class, unless you move them up"
    yield from _alike(data.class_names or ())
    counts = np.bincount(data.splits["train"].labels, minlength=data.num_classes)
    absent = np.flatnonzero(counts == 0).tolist()
    if absent == [0] and data.class_names is None:
        lacks = f"labels count from 1 to {data.num_classes - 1}, so that class 0 has no {data.thing}s"
        yield f"{lacks}; write them from 0, or as words, such as class_1"
    elif absent:
        never = {split: int(np.isin(source.labels, absent).sum()) for split, source in data.splits.items()}
        lost = said({f"{data.thing}s of {split}": count for split, count in never.items() if count})
        why = f"; so {lost} cannot be told right" if lost else ""
        yield f"{len(absent)} of {data.num_classes} classes have no {data.thing} in train: {_named(data, absent)}{why}"
    for split, origin in data.origins.items():
        if origin.drawn:
            lost = np.flatnonzero((counts > 0) & (np.bincount(data.splits[split].labels, minlength=len(counts)) == 0)).tolist()
            if lost:
                yield f"{split}, as it is drawn, has no {data.thing} of {len(lost)} classes: {_named(data, lost)}"


def _alike(class_names: Sequence[str]) -> Iterator[str]:
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in class_names:
        alike[_as_number(name) or name.strip().casefold()].append(repr(name))
    for names in alike.values():
        if len(names) > 1:
            yield f"classes {' and '.join(names)} look like one, differently written; if they are, give them one name"
    for name in class_names:
        if name.strip().casefold() in _UNKNOWN:
            yield f"the class {name!r} may stand for labels that are not known; if so, remove what has it"


def _as_number(text: str) -> str | None:
    """One form for 1, 01 and 1.0; None: it is no such number."""
    match = re.fullmatch(r"0*(\d+)(?:\.0*)?", text.strip())
    return match and match[1]


def _named(data: VisionDataset, classes: Sequence[int]) -> str:
    return _shortened([data.class_names[index] if data.class_names else str(index) for index in classes])


def _skipped(splits: Mapping[str, SplitReport]) -> Iterator[str]:
    """What may have been meant to be read."""
    for split, report in splits.items():
        lost = {what: count for what, count in report.skipped.items() if what not in _HARMLESS}
        if lost:
            yield f"not read in {', '.join(report.files)} ({split}): {said(lost)}"


def _leaks(duplicates: Duplicates | None, thing: str) -> Iterator[str]:
    if duplicates is None:
        return
    for pair, count in duplicates.shared.items():
        first, second = pair.split(", ")
        yield (
            f"{_are(count, thing)} both in {first} and in {second}, such as {duplicates.examples[pair]}: "
            f"the score on {second} is too good; remove them from one of the two"
        )
    if duplicates.mislabelled:
        yield f"{_are(duplicates.mislabelled, thing)} there under more than one label, such as {duplicates.examples['labels']}"


def _picture(thing: str) -> str:
    return "picture" if thing == "image" else thing


def _are(count: int, thing: str) -> str:
    return f"1 {_picture(thing)} is" if count == 1 else f"{count:,} {_picture(thing)}s are"


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", … ({len(names)})" if len(names) > 10 else "")
