"""What a language model answers to the questions of test sets, set by set: greedy decoding, and two ways of scoring it.

The answers to a set are written into the run's folder, ``answers/<set>.jsonl``, as soon as all of them are there: a row for
each question with ``id`` (its place in the set), ``text`` (what was said), ``answer``, and whether that is right by ``exact``
and by ``regex`` (:mod:`gift_vit.data.questions`). A run that is interrupted goes on with the next set.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from gift_vit.backbones.language import LanguageModel
from gift_vit.common import distributed
from gift_vit.common.files import read_json_lines, write_json, write_text
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import VisionDataset
from gift_vit.data.config import CommonsenseConfig
from gift_vit.data.prompts import PromptTokenizer
from gift_vit.data.questions import WAYS, QuestionSource, right_by, set_scores
from gift_vit.data.tokens import TokenTransform
from gift_vit.engine.fit import Evaluation
from gift_vit.engine.state import Precision
from gift_vit.methods.adapter import adapter_state_dict
from gift_vit.runs.result import ANSWERS

log = logging.getLogger(__name__)

_OF = "model.json"  # says whose answers lie beside it


@dataclass(frozen=True)
class Decoding:
    """How a run decodes.

    Attributes:
        model: Is asked.
        dataset: Names the sets, and the lengths.
        batch_size: Questions at a time.
        precision: The number format.
        device: Where the model is.
    """

    model: LanguageModel
    dataset: CommonsenseConfig
    batch_size: int
    precision: Precision
    device: torch.device

    def answers(self, questions: Sequence[str], name: str) -> list[str]:
        """What the model says to each question. Of several processes each is asked its share, and all get all answers."""
        tokenizer, room = self.model.tokenizer, self.dataset.max_new_tokens
        prompts = PromptTokenizer(tokenizer, self.dataset.length_for(self.model.max_tokens)).prompts(questions, name, room)
        longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        own = longest_first[distributed.rank() :: distributed.world_size()]
        said: dict[int, str] = {}
        at_a_time = self.batch_size
        while left := own[len(said) :]:
            asked = left[:at_a_time]
            try:
                said |= zip(asked, self._said([prompts[index] for index in asked]), strict=True)
            except torch.OutOfMemoryError:
                if len(asked) == 1:
                    raise
                at_a_time = len(asked) // 2
                log.warning("no memory for %d questions at a time: %d from here on", len(asked), at_a_time)
        everywhere: dict[int, str] = {}
        for part in distributed.gather(said):
            everywhere |= part
        return [everywhere[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _said(self, prompts: list[list[int]]) -> list[str]:
        tokenizer = self.model.tokenizer
        items = [torch.from_numpy(np.asarray([prompt, [1] * len(prompt), [0] * len(prompt)])) for prompt in prompts]
        batch = TokenTransform(tokenizer.pad_token_id, in_front=True).stack(items).to(self.device)
        with self.precision.autocast():
            made = self.model.continued(batch[:, 0], batch[:, 1], self.dataset.max_new_tokens)
        return tokenizer.batch_decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def score_answers(
    cfg: RunConfig, model: nn.Module, data: VisionDataset, device: torch.device, folder: Path | None
) -> dict[str, float]:
    """The model's scores in percent: the means over the test sets by ``exact`` and ``regex``, and those of each set.

    Args:
        cfg: The run's configuration, of a dataset with test sets.
        model: A :class:`LanguageModel`, with its method applied.
        data: The run's data.
        device: Where the model is.
        folder: The run's folder, whose answers are kept and gone on with; None: nothing is.
    """
    assert isinstance(cfg.dataset, CommonsenseConfig)
    was_training = model.training
    model.eval()
    precision = Precision(cfg.trainer.precision, device)
    decoding = Decoding(cast("LanguageModel", model), cfg.dataset, cfg.loading.eval_batch_size, precision, device)
    test = cast("QuestionSource", data.splits["test"])
    kept = None if folder is None else folder / ANSWERS
    if kept is not None and distributed.is_main():
        _drop_those_of_another(kept, model, data)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in cfg.dataset.sets:
        own = [test.texts[index] for index, of_set in enumerate(test.sets) if of_set == name]
        rows[name] = _rows_of(decoding, own, name, kept)
        scores = set_scores({name: rows[name]})
        log.info("%s: %d questions, exact %.2f %%, regex %.2f %%", name, len(rows[name]), *(scores[way] for way in WAYS))
    model.train(was_training)
    if kept is not None and cfg.trainer.keep_predictions == "off" and distributed.is_main():
        shutil.rmtree(kept)
    return set_scores(rows)


def with_answers(scores: dict[str, float], told: Evaluation) -> Evaluation:
    """The evaluation whose score is the mean by ``exact``; the loss is that of the right answers, which the model was told."""
    return replace(told, top1=scores["exact"], further={name: score for name, score in scores.items() if name != "exact"})


def _rows_of(decoding: Decoding, own: Sequence[tuple[str, ...]], name: str, kept: Path | None) -> list[dict[str, Any]]:
    """The rows of a set: those that are kept, or new ones, which are then kept."""
    file = None if kept is None else kept / f"{name}.jsonl"
    rows = distributed.gather(None if file is None or not distributed.is_main() else _read(file, own))[0]
    if rows is not None:
        log.info("%s is answered already", name)
        return rows
    said = decoding.answers([question for question, _ in own], name)
    rows = [
        {"id": index, "text": text, "answer": answer, **right_by(text, answer, name)}
        for index, ((_, answer), text) in enumerate(zip(own, said, strict=True))
    ]
    if file is not None and distributed.is_main():
        write_text(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return rows


def _read(file: Path, own: Sequence[tuple[str, ...]]) -> list[dict[str, Any]] | None:
    """The kept rows; None where there are none, or not to these questions."""
    try:
        rows = read_json_lines(file)
        same = [row["answer"] for row in rows] == [answer for _, answer in own] and all(set(row) >= {*WAYS} for row in rows)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return rows if same else None


def _drop_those_of_another(kept: Path, model: nn.Module, data: VisionDataset) -> None:
    """Remove answers that were not given by this model to these questions; what is left may be gone on with."""
    digest = sha256(data.fingerprint.encode())
    for name, tensor in adapter_state_dict(model).items():
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    told = {"sha256": digest.hexdigest()}
    try:
        same = json.loads((kept / _OF).read_text(encoding="utf-8")) == told
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        write_json(kept / _OF, told)
