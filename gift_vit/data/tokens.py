"""Texts as a model of transformers takes them: tokens, cut to a length, and stacked into batches of one length."""

import logging
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import LabelledSource

log = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What the second axis of a batch (B, 3, L) holds, by transformers' names."""


class Tokens:
    """The tokens of all texts of a split, (3, L) each, and their labels.

    Args:
        source: Gives tuples of one or two texts.
        tokenizer: Of transformers.
        max_length: Longer ones are cut to it, of two texts the longer one first; the log says how many.
        name: Of the split, for the log.
        end: The id of a token by which the model finds where a text ends; None: of none.

    Raises:
        ConfigError: If that token stands in a text, or nothing of a text would be left.
    """

    def __init__(self, source: LabelledSource[Any], tokenizer: Any, max_length: int, name: str, end: int | None = None) -> None:
        self.labels: NDArray[Any] = source.labels
        texts = [source[index][0] for index in range(len(source))]
        columns = [list(column) for column in zip(*texts, strict=True)]
        added = tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
        if max_length <= added + len(columns) - 1:
            raise ConfigError(
                f"dataset.max_length={max_length} leaves nothing of a text: the tokenizer adds {added} tokens; raise it"
            )
        options = {"return_attention_mask": False, "return_token_type_ids": True, "verbose": False}
        encoded = tokenizer(*columns, **options)
        self.tokens = [as_tokens(*both) for both in zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)]
        longer = [index for index, tokens in enumerate(self.tokens) if tokens.shape[1] > max_length]
        for index in longer:
            cut = tokenizer(*texts[index], truncation=True, max_length=max_length, **options)
            self.tokens[index] = as_tokens(cut["input_ids"], cut["token_type_ids"])
        if longer:
            count, percent = f"{len(longer):,} of {len(texts):,}", 100 * len(longer) / len(texts)
            log.warning("%s: %s texts (%.1f %%) are longer than %d tokens and were cut", name, count, percent, max_length)
        ends = [0 if end is None else int((tokens[0] == end).sum()) for tokens in self.tokens]
        if min(ends) < max(ends):
            text, token = " / ".join(texts[ends.index(max(ends))]), tokenizer.convert_ids_to_tokens(end)
            raise ConfigError(
                f"{name}: the text {shorten(text, 80, placeholder=' …')!r} holds {token}, by which the model finds where texts "
                "end; take it out"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], Any]:
        return self.tokens[index], self.labels[index].item()


def as_tokens(ids: list[int], types: list[int]) -> NDArray[np.int64]:
    """One text's tokens, (3, L)."""
    return np.asarray([ids, [1] * len(ids), types], np.int64)


class TokenTransform:
    """What loaders ask of a transform; nothing is drawn.

    Args:
        pad_id: The token that fills up what is shorter than the longest text of a batch.
        in_front: Whether it does so in front of the text, and not behind it.
    """

    def __init__(self, pad_id: int, in_front: bool = False) -> None:
        self._fill, self._in_front = torch.tensor([pad_id, 0, 0]), in_front

    def finish(self, tokens: NDArray[np.int64], generator: torch.Generator | None = None) -> Tensor:
        """The tokens (3, L)."""
        del generator
        return torch.from_numpy(tokens)

    def stack(self, items: list[Tensor]) -> Tensor:
        """A batch (B, 3, L) of the longest one's length."""
        longest = max(tokens.shape[1] for tokens in items)
        batch = self._fill[None, :, None].repeat(len(items), 1, longest)
        for row, tokens in zip(batch, items, strict=True):
            start = longest - tokens.shape[1] if self._in_front else 0
            row[:, start : start + tokens.shape[1]] = tokens
        return batch

    def normalise(self, batch: Tensor) -> Tensor:
        """The batch as it is."""
        return batch
