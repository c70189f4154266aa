"""Texts as a split holds them. Imports no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gift_vit.common.errors import ConfigError


class TextSource:
    """One or two texts each, with labels (N,); it stands where images do, and is asked what they are.

    Args:
        texts: N tuples of one or two texts.
        labels: Their classes int64, or numbers float32.
        places: Where each stands, for a person.
    """

    def __init__(self, texts: Sequence[tuple[str, ...]], labels: NDArray[Any], places: Sequence[str]) -> None:
        self.texts, self.labels, self.places = texts, np.asarray(labels), places

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[tuple[str, ...], Any]:
        return self.texts[index], self.labels[index].item()

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each, (N,)."""
        return np.asarray([len(self.content(index)) for index in range(len(self))], np.int64)

    def content(self, index: int) -> bytes:
        """The texts themselves."""
        return "\0".join(self.texts[index]).encode("utf-8", "surrogatepass")

    version = stored = content

    def where(self, index: int) -> str:
        """File and row."""
        return self.places[index]

    def remarks(self, index: int) -> list[str]:
        """Nothing is changed in reading."""
        del index
        return []


def check_unicode(text: str, column: str, place: str) -> None:
    """Refuse half of a surrogate pair, which JSON can hold and no tokenizer takes.

    Raises:
        ConfigError: Names the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise ConfigError(f"{place}: column {column} holds {half}, half of a character; remove it from the text") from error
