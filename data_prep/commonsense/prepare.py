"""From the files at their source, or in a folder, to one folder with ``prepared.json``: all of it or nothing."""

import json
import shlex
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.commands import training_words
from data_prep.commonsense.facts import PARTS, TESTS, TRAIN, FileFacts
from data_prep.complete import check_own, complete_folder, preparing
from data_prep.croissant import CROISSANT, file_object, split_records, write_croissant
from data_prep.download import RemoteFile, fetch, mismatch
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import sha256_of, write_json
from gift_vit.data.kinds.commonsense import read_questions

FORMAT = 1
RECORD = "prepared.json"


def prepare(root: Path, source: str, folder: Path | None) -> str:
    """Prepare ``root/commonsense``, unless it is ready; returns what there is, for a person.

    Args:
        root: The data root; downloads lie in ``root/downloads/commonsense``.
        source: The address that the files lie below.
        folder: Holds the files, as at the source or as they are kept here; None: they are downloaded. What it lacks is left
            out, and said.

    Raises:
        ConfigError: If the folder has no training questions or no test set, a file does not hold what it should, or
            ``root/commonsense`` holds others.
        RunError: If a download fails, or the disk is full.
    """
    out = root / "commonsense"
    with preparing(out):
        record = read_record(out)
        if record is not None:
            return f"ready already, nothing to do\n{describe(record, root)}"
        own = (RECORD, CROISSANT, *(facts.name for facts in (TRAIN, *PARTS.values(), *TESTS.values())))
        check_own(out, own)
        found = _fetched(source, root / "downloads" / "commonsense") if folder is None else _in_folder(folder)
        counts = {facts.name: _checked(facts, file) for facts, file in found}
        with complete_folder(out, own) as stage:
            for facts, file in found:
                (stage / facts.name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, stage / facts.name)
            record = {
                "format": FORMAT,
                "source": source if folder is None else str(folder.absolute()),
                "files": {name: {"rows": rows, "sha256": sha256_of(stage / name)} for name, rows in counts.items()},
            }
            write_json(stage / RECORD, record)
            _write_croissant(stage, counts)
        return describe(record, root)


def read_record(out: Path) -> dict[str, Any] | None:
    """What ``prepared.json`` says, if every file is as it says; else None."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        same = all(sha256_of(out / name) == file["sha256"] for name, file in record["files"].items())
        if record["format"] == FORMAT and same and record["files"]:
            return record
    return None


def train_words(record: Mapping[str, Any], root: Path) -> list[str]:
    """The words of the command that trains on what was prepared."""
    train, sets = _train_and_sets(record)
    words = training_words("commonsense", root)
    if train != [TRAIN.name]:
        words.append(f"dataset.train=[{','.join(train)}]")
    if len(sets) < len(TESTS):
        words.append(f"dataset.sets=[{','.join(sets)}]")
    return [*words, "backbone=llama3_8b", "method=gift_qkvud", "protocol=commonsense_gift"]


def _train_and_sets(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The files of training questions, and the names of the test sets, that are there."""
    train = [name for name in record["files"] if not name.endswith("/test.json")]
    return train, [name for name, facts in TESTS.items() if facts.name in record["files"]]


def describe(record: Mapping[str, Any], root: Path) -> str:
    """What was prepared, in a few lines, the last of which is the command to type next."""
    rows = {name: file["rows"] for name, file in record["files"].items()}
    train, sets = _train_and_sets(record)
    absent = [facts.name for facts in (TRAIN, *TESTS.values()) if facts.name not in rows]
    lines = [
        f"commonsense: ready in {root / 'commonsense'}",
        f"  train       {sum(rows[name] for name in train):,} questions: {', '.join(train)}",
        f"  test        {sum(rows[TESTS[name].name] for name in sets):,} questions of {len(sets)} sets: {', '.join(sets)}",
        *([f"  not there   {', '.join(absent)}"] if absent else []),
        f"  train with  {shlex.join(train_words(record, root))}",
    ]
    return "\n".join(lines)


def _fetched(source: str, downloads: Path) -> list[tuple[FileFacts, Path]]:
    """Every file; those of one name are kept apart by their sets."""
    found = []
    for facts in (TRAIN, *TESTS.values()):
        remote = RemoteFile(f"{source.rstrip('/')}/{facts.source}", facts.name.replace("/", "_"), sha256=facts.sha256)
        found.append((facts, fetch(remote, downloads)))
    return found


def _in_folder(folder: Path) -> list[tuple[FileFacts, Path]]:
    train = _present(folder, [TRAIN]) or _present(folder, PARTS.values())
    tests = _present(folder, TESTS.values())
    if not train or not tests:
        lacking = "no training questions" if tests else "no test set"
        expected = f"{TRAIN.name} or <set>/train.json" if tests else "<set>/test.json, such as boolq/test.json"
        raise ConfigError(f"folder={folder} holds {lacking}: expected {expected}, there or below dataset/ and ft-training_set/")
    return [*train, *tests]


def _present(folder: Path, wanted: Iterable[FileFacts]) -> list[tuple[FileFacts, Path]]:
    there = [(facts, folder / place) for facts in wanted for place in facts.places if (folder / place).is_file()]
    return list({facts: (facts, file) for facts, file in reversed(there)}.values())[::-1]


def _checked(facts: FileFacts, file: Path) -> int:
    """How many questions a file holds, each with an answer among its options; as many as there should be."""
    of_set = facts.name.partition("/")[0] if "/" in facts.name else ""
    rows = len(read_questions({file: of_set}))
    problem = mismatch(file, None, facts.sha256)
    if rows != facts.rows:
        problem = f"it has {rows:,} questions, expected {facts.rows:,}"
    if problem is not None:
        raise ConfigError(f"{file} is another file than {facts.source}: {problem}; delete it and get it again")
    return rows


def _write_croissant(stage: Path, counts: Mapping[str, int]) -> None:
    by_split = {"train" if name == TRAIN.name else name.removesuffix(".json"): rows for name, rows in counts.items()}
    write_croissant(
        stage,
        "commonsense",
        f"Commonsense170k: {sum(counts.values()):,} questions with options, as LLM-Adapters has them.",
        [file_object(stage, name) for name in counts],
        [split_records(by_split)],
    )
