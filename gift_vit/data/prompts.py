"""Questions and answers as a language model takes them: tokens, filled up in front, so that all answers end together."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gift_vit.data.base import LabelledSource
from gift_vit.data.questions import TRIGGER

log = logging.getLogger(__name__)


class PromptTokenizer:
    """Makes a prompt of a question and a target of its answer, as tokens.

    A prompt is the question and a line break; a target is :data:`TRIGGER`, the answer and the end token. Both are tokenised
    together, so that training sees the tokens that decoding gives out.

    Args:
        tokenizer: Of transformers, with an end token.
        max_length: The most tokens of both. The beginning of a longer question is cut off, never the answer.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def prompts(self, questions: Sequence[str], name: str, room: int) -> list[list[int]]:
        """The prompts' tokens, with ``room`` for more; the log says how many of the split ``name`` are cut."""
        prompts = self._encoded([f"{question}\n" for question in questions])
        return self._cut(prompts, [room] * len(prompts), name)

    def pairs(self, questions: Sequence[str], answers: Sequence[str], name: str) -> list[tuple[list[int], list[int]]]:
        """Prompts and targets; the log says how many of the split ``name`` are cut."""
        prompts = self._encoded([f"{question}\n" for question in questions])
        spoken = [f"{TRIGGER}{answer}" for answer in answers]
        wholes = self._encoded([f"{question}\n{answer}" for question, answer in zip(questions, spoken, strict=True)])
        targets = []
        for prompt, whole, answer in zip(prompts, wholes, spoken, strict=True):
            fits = whole[: len(prompt)] == prompt  # else a token reaches over the line break
            target = whole[len(prompt) :] if fits else self.tokenizer(answer, add_special_tokens=False)["input_ids"]
            targets.append([*target, self.tokenizer.eos_token_id])
        return list(zip(self._cut(prompts, [len(target) for target in targets], name), targets, strict=True))

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        end = self.tokenizer.eos_token_id  # some tokenizers put it at the end themselves
        encoded = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        return [tokens[:-1] if tokens and tokens[-1] == end else tokens for tokens in encoded]

    def _cut(self, prompts: list[list[int]], rooms: list[int], name: str) -> list[list[int]]:
        start = self.tokenizer.bos_token_id
        cut, count = [], 0
        for prompt, room in zip(prompts, rooms, strict=True):
            most = max(1, self.max_length - room)
            if len(prompt) > most:
                count += 1
                kept = [start] if prompt[0] == start and most > 1 else []
                prompt = [*kept, *prompt[len(prompt) - most + len(kept) :]]
            cut.append(prompt)
        if count:
            share = f"{count:,} of {len(prompts):,} questions ({100 * count / len(prompts):.1f} %)"
            log.warning(
                "%s: %s are longer than %d tokens with their answer; their beginning was cut", name, share, self.max_length
            )
        return cut


class Prompts:
    """The questions of a split with their answers, each ``(3, L)`` and what is to be said, ``(A,)``.

    The rows are the tokens of prompt and target, ones for the attention mask, and where the target stands.
    """

    def __init__(self, source: LabelledSource[Any], tokenizer: PromptTokenizer, name: str) -> None:
        self.labels: NDArray[np.int64] = source.labels
        texts: list[tuple[str, str]] = [source[index][0] for index in range(len(source))]
        self._pairs = tokenizer.pairs([question for question, _ in texts], [answer for _, answer in texts], name)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], Tensor]:
        prompt, target = self._pairs[index]
        where = [0] * len(prompt) + [1] * len(target)
        return np.asarray([[*prompt, *target], [1] * len(where), where], np.int64), torch.tensor(target)
