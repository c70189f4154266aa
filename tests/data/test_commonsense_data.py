"""Commonsense170k's files: what is read, what is refused in one line, and when an answer is right."""

import json
from pathlib import Path
from typing import Any

import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.config import COMMONSENSE_SETS, CommonsenseConfig
from gift_vit.data.ids import image_ids
from gift_vit.data.questions import ANSWERS, OPTIONS, QuestionSource, is_exact, is_found, set_scores
from tests.data.conftest import SHARED
from tests.text_models import questions, write

REAL = SHARED / "text" / "commonsense"
COUNTS = {  # of ../shared/data/text/README.md
    **{"boolq": 3270, "piqa": 1838, "social_i_qa": 1954, "winogrande": 1267},
    **{"ARC-Easy": 2376, "ARC-Challenge": 1172, "openbookqa": 500},
}


def read(root: Path, **options: Any) -> VisionDataset:
    return build_dataset(CommonsenseConfig(name="commonsense", root=str(root), **options))


def test_questions_keep_their_set_and_val_is_drawn_from_train(tmp_path: Path) -> None:
    write(tmp_path / "a.json", questions("boolq", 40))
    write(tmp_path / "b.json", questions("piqa", 20))
    for name, count in (("piqa", 6), ("boolq", 4)):
        write(tmp_path / name / "test.json", questions(name, count))
    data = read(tmp_path, train=["a.json", "b.json"], sets=["piqa", "boolq"], val_fraction=0.2)
    sizes = {split: len(source) for split, source in data.splits.items()}
    assert (sizes, data.num_classes, data.thing) == ({"train": 48, "val": 12, "test": 10}, 15, "text")
    test = data.splits["test"]
    assert isinstance(test, QuestionSource)
    assert test.sets == ["piqa"] * 6 + ["boolq"] * 4
    expected = [(row["instruction"], row["answer"]) for row in [*questions("piqa", 6), *questions("boolq", 4)]]
    assert [test[index][0] for index in range(10)] == expected
    assert [ANSWERS[label] for label in test.labels] == [answer for _, answer in expected]
    drawn = {ANSWERS[label]: data.splits["val"].labels.tolist().count(label) for label in data.splits["val"].labels.tolist()}
    assert drawn == {"true": 4, "false": 4, "solution1": 2, "solution2": 2}
    assert image_ids(data, "test") == [str(number) for number in range(10)]


ROW = {"instruction": "Is it?\n\nAnswer format: true/false", "answer": "true"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "boolq/test.json cannot be read as JSON"),
        ("{}", "holds no list of questions; prepare it again"),
        ("[]", "holds no list of questions"),
        ("[1]", "row 1 is no object"),
        ([{**ROW, "answer": "maybe"}], r"row 1: the answer 'maybe' is not among the question's options \(true, false\)"),
        ([ROW, {**ROW, "answer": "solution1"}], r"row 2: the answer 'solution1' is not among the question's options"),
        ([{**ROW, "instruction": "Is it?", "answer": "answer1"}], r"is not among the question's options \(true, false\)"),
        ([{**ROW, "answer": None}], "row 1: answer is None, expected text"),
        ([{"answer": "true"}], "row 1: instruction is None, expected text"),
        ([{**ROW, "instruction": " "}], "row 1: instruction is ' ', expected text"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: Any, said: str) -> None:
    write(tmp_path / "commonsense_170k.json", questions("boolq", 40))
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "test.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, sets=["boolq"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["commonsense_170k.json", "boolq/test.json"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    for name in {"commonsense_170k.json", "boolq/test.json"} - {missing}:
        write(tmp_path / name, questions("boolq", 40))
    with pytest.raises(ConfigError, match=rf"there is no file {tmp_path}/{missing}"):
        read(tmp_path, sets=["boolq"])


@pytest.mark.parametrize(
    ("text", "answer", "of_set", "exact", "regex"),
    [
        ("the correct answer is true", "true", "boolq", True, True),
        ("the correct answer is true ", "true", "boolq", True, True),
        ("the correct answer is true.", "true", "boolq", False, True),
        ("true", "true", "boolq", False, True),
        ("The correct answer is true", "true", "boolq", False, True),
        ("the correct answer is not false but true", "true", "boolq", False, False),
        ("the correct answer is the correct answer is true", "true", "boolq", False, True),
        ("no. the correct answer is answer2", "answer2", "ARC-Easy", True, True),
        ("the correct answer is answer1 the correct answer is answer2", "answer2", "ARC-Easy", False, False),
        ("the correct answer is answer5", "answer5", "openbookqa", True, True),
        ("the correct answer is answer11", "answer1", "social_i_qa", False, True),  # as LLM-Adapters' expression has it
        ("the correct answer is solution1", "solution2", "piqa", False, False),
        ("the correct answer is ending4", "ending4", "hellaswag", True, True),
        ("the correct answer is option2", "option2", "winogrande", True, True),
        ("the correct answer is", "option2", "winogrande", False, False),
        ("", "option2", "winogrande", False, False),
    ],
)
def test_when_an_answer_is_right(text: str, answer: str, of_set: str, exact: bool, regex: bool) -> None:
    assert (is_exact(text, answer), is_found(text, answer, of_set)) == (exact, regex)


def test_every_set_counts_the_same_whatever_its_size() -> None:
    """One of one is right, and none of three, of which two name the answer."""
    none, named = {"exact": False, "regex": False}, {"exact": False, "regex": True}
    scores = set_scores({"boolq": [{"exact": True, "regex": True}], "piqa": [none, named, named]})
    own = {"exact_boolq": 100.0, "regex_boolq": 100.0, "exact_piqa": 0.0, "regex_piqa": 200 / 3}
    assert scores == pytest.approx({"exact": 50.0, "regex": 250 / 3, **own})


def test_every_set_has_its_options() -> None:
    assert tuple(OPTIONS) == COMMONSENSE_SETS
    assert len(ANSWERS) == 15


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/text/commonsense")
def test_the_real_sets_are_read_whole() -> None:
    """13,000 questions of other people: every one has an answer among its options."""
    data = read(REAL, train=["ARC-Easy/train.json", "openbookqa/train.json"], sets=list(COUNTS))
    test = data.splits["test"]
    assert isinstance(test, QuestionSource)
    assert {name: test.sets.count(name) for name in COUNTS} == COUNTS
    assert len(data.splits["train"]) + len(data.splits["val"]) == 2251 + 4957
    true = [label for label, name in zip(test.labels, test.sets, strict=True) if name == "boolq"].count(ANSWERS.index("true"))
    assert true == 2033
