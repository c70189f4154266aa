"""Which column of a table is which: by the name a person gives, or by one of the usual names."""

import logging
from collections.abc import Callable, Sequence

from gift_vit.common.errors import ConfigError, did_you_mean
from gift_vit.data.layout import split_named

log = logging.getLogger(__name__)

_IMAGES = ("image", "images", "img", "imgs", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values")
_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path")
# two columns of texts that belong together, as GLUE's tasks name them
_PAIRS = (
    *((f"{text}1", f"{text}2") for text in ("text", "sentence", "question")),
    *(("premise", "hypothesis"), ("question", "sentence"), ("text", "text_pair"), ("sentence", "sentence_pair")),
)
_SHOWN = 40  # characters of a column's name: without a line of names it is a text
_SECOND = (*(second for _, second in _PAIRS), "text_b", "answer", "context")
USUAL_NAMES = {
    "image": (*_IMAGES, *_PATHS, *(f"{image}_{part}" for image in ("image", "img") for part in ("path", "file", "name"))),
    "text": ("text", "sentence", "content", "document", "review", "tweet", "message", "comment", "utterance", "query"),
    "label": ("label", "labels", "fine_label", "target", "targets", "class", "category", "cls", "y"),
    "split": ("split", "set", "subset", "partition"),
}


def find_column(
    role: str, names: Sequence[str], given: str | None, place: str, fits: Callable[[str], bool] = lambda _: True
) -> str:
    """The name of the column of a role: ``image``, ``text``, ``pair``, ``label`` or ``split``.

    Args:
        role: What it is for.
        names: All columns.
        given: What ``dataset.columns`` says; None: the one with a usual name, in any case.
        place: The file, for errors.
        fits: Whether a column may be it, where several have usual names.

    Raises:
        ConfigError: If it is not there, or there are several.
    """
    setting = f"dataset.columns.{role}"
    if given is not None and given not in names:
        raise ConfigError(f"{setting}={given}: {place} has the columns {', '.join(names)}{did_you_mean(given, names)}")
    usual = [given] if given is not None else [name for name in dict.fromkeys(names) if _is_usual(role, name)]
    fitting = [name for name in usual if fits(name)] or usual
    if not fitting:
        hint = "; if there is none, leave the file out: dataset.files.train=[…] names those to read" * (role == "label")
        if role == "image" and any(_is_usual("text", name) for name in names):
            hint = "; for texts train with dataset=text"
        shown, usual_names = ", ".join(map(_shortened, names)), ", ".join(USUAL_NAMES[role])
        raise ConfigError(
            f"{place} has the columns {shown}; none has a usual name of {role}s ({usual_names}): "
            f"rename the right one to {role}, or give {setting}=<its name>{hint}"
        )
    if len(fitting) > 1:
        raise ConfigError(
            f"{place} has the columns {' and '.join(fitting)}, which may all be the {role}s; rename all but one, or give "
            f"{setting}=<one>{' and dataset.columns.pair=<another>' * (role == 'text')}"
        )
    if names.count(fitting[0]) > 1:
        raise ConfigError(f"{place} has {names.count(fitting[0])} columns named {fitting[0]}; rename all but one of them")
    return fitting[0]


def find_texts(names: Sequence[str], text: str | None, pair: str | None, place: str) -> tuple[str, str | None]:
    """The names of the column of texts, and of the second texts where there are any.

    Args:
        names: All columns.
        text: What ``dataset.columns.text`` says; None: a pair of usual names, or one usual name.
        pair: What ``dataset.columns.pair`` says.
        place: The file, for errors.

    Raises:
        ConfigError: As :func:`find_column` does, and if both are one column.
    """
    known = {name.strip().casefold(): name for name in names}
    if text is None and pair is None:
        for first, second in _PAIRS:
            if first in known and second in known:
                text, pair = known[first], known[second]
                break
    if pair is not None:
        find_column("pair", names, pair, place)
    if text is not None and text == pair:
        raise ConfigError(f"dataset.columns names {text} for both texts; name two columns, or leave pair out")
    text = find_column("text", [name for name in names if name != pair], text, place)
    for name in names if pair is None else ():
        if name != text and name.strip().casefold() in (*_SECOND, *USUAL_NAMES["text"]):
            log.warning("%s: column %s is not read; if it shall, dataset.columns.pair=%s", place, name, name)
    return text, pair


def find_split_column(
    names: Sequence[str], given: str | None, place: str, values: Callable[[str], Sequence[object]], unread: Sequence[str]
) -> str | None:
    """The column that names the split of each row; None: there is none.

    It is what ``dataset.columns`` says, or the one named ``split``, or one of another usual name that holds nothing but splits.
    One that holds something else beside splits is it too, and refused when it is read; one that holds no split is not read.
    Of the columns that are ``unread``, one that holds several splits and nothing else is told of.
    """

    def split_of(value: object) -> str | None:
        return split_named(str(value))

    def names_splits(name: str) -> bool:
        found = set(map(split_of, values(name)))
        return None not in found and len(found) > 1

    fitting: list[str] = []
    if given is None:
        usual = [name for name in names if _is_usual("split", name)]
        whole = [name for name in usual if name.casefold() == "split" or all(map(split_of, values(name)))]
        fitting = whole or [name for name in usual if any(map(split_of, values(name)))]
        if not fitting:
            for name in usual:
                log.warning("%s: column %s is not read, for it names no split; write train, val, test if it shall", place, name)
            for name in (name for name in unread if name not in usual and names_splits(name)):
                log.warning(
                    "%s: column %s names splits and is not read; if it shall, dataset.columns.split=%s", place, name, name
                )
            return None
    return find_column("split", names, given, place, fitting.__contains__)


def _shortened(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"


def _is_usual(role: str, name: str) -> bool:
    return name.strip().casefold() in USUAL_NAMES[role]
