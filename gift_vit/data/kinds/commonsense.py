"""Commonsense170k (Hu et al., LLM-Adapters, arXiv 2304.01933): training questions in one file, eight test sets."""

import json
import os
from pathlib import Path
from typing import Any

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import expanded
from gift_vit.data.base import ImageSource, Origin, VisionDataset, fingerprint, register_dataset
from gift_vit.data.config import CommonsenseConfig
from gift_vit.data.own import split_off
from gift_vit.data.questions import ANSWERS, QuestionSource, check_question


@register_dataset("commonsense", CommonsenseConfig)
def build_commonsense(cfg: CommonsenseConfig) -> VisionDataset:
    """Read all files; val is drawn from the training questions."""
    train: Any = read_questions(dict.fromkeys(cfg.train_files(), ""))  # it stands where images do
    test: Any = read_questions({file: name for name, file in cfg.test_files().items()})
    rest, val, drawn = split_off(cfg, "val", "train", train, cfg.val_fraction)
    splits: dict[str, ImageSource] = {"train": rest, "val": val, "test": test}
    root = expanded(cfg.root)
    files = {
        "train": tuple(os.path.relpath(file, root) for file in cfg.train_files()),
        "test": tuple(os.path.relpath(file, root) for file in cfg.test_files().values()),
    }
    origins = {split: Origin(names) for split, names in files.items()} | {"val": Origin(files["train"], drawn=drawn)}
    return VisionDataset(
        *(cfg.name, len(ANSWERS), ANSWERS, splits, fingerprint(splits)),
        decoder="none",
        class_order="their names",
        thing=cfg.thing,
        origins=origins,
    )


def read_questions(files: dict[Path, str]) -> QuestionSource:
    """The questions of several files, each with the name of its set.

    Raises:
        ConfigError: If a file is no list of questions, or the answer to one is none of its options; names the row.
    """
    found: list[tuple[str, str, str, str]] = []
    for file, name in files.items():
        for number, row in enumerate(_rows(file), 1):
            place = f"{file} row {number}"
            if not isinstance(row, dict):
                raise ConfigError(f'{place} is no object; expected one such as {{"instruction": "…", "answer": "true"}}')
            if row.get("input"):
                raise ConfigError(f"{place}: input is {row['input']!r}, which is not read; write it into instruction")
            found.append((*check_question(row.get("instruction"), row.get("answer"), name, place), place, name))
    return QuestionSource(*(list(column) for column in zip(*found, strict=True)))


def _rows(file: Path) -> list[Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as JSON ({error}); prepare it again") from error
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{file} holds no list of questions; prepare it again")
    return rows
