"""Questions with options, and whether a text answers one. Imports no torch.

Source: AGI-Edgerunners/LLM-Adapters @ 81665720 (the sets, and the expressions of ``regex``); savadikarc/gift @ f0cb80cb
(``exact``).
"""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from gift_vit.common.errors import ConfigError
from gift_vit.data.config import COMMONSENSE_SETS
from gift_vit.data.texts import TextSource, check_unicode

WAYS = ("exact", "regex")  # of scoring an answer
TRIGGER = "the correct answer is "
_FIVE = tuple(f"answer{number}" for number in range(1, 6))
OPTIONS = {
    **dict.fromkeys(COMMONSENSE_SETS, _FIVE),
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "hellaswag": tuple(f"ending{number}" for number in range(1, 5)),
    "winogrande": ("option1", "option2"),
}
"""What an answer to a question of each set may be."""
ANSWERS = sorted({option for options in OPTIONS.values() for option in options})
"""Every answer there is: the classes of the questions."""
_FORMAT = re.compile(r"Answer format: (\S+)\s*$")


class QuestionSource(TextSource):
    """Questions, their answers, and which set each is of; an empty name where it is of no test set.

    Args:
        questions: N texts.
        answers: N of :data:`ANSWERS`.
        places: Where each stands, for a person.
        sets: The set of each.
    """

    def __init__(self, questions: Sequence[str], answers: Sequence[str], places: Sequence[str], sets: Sequence[str]) -> None:
        numbers = {answer: number for number, answer in enumerate(ANSWERS)}
        labels = np.asarray([numbers[answer] for answer in answers], np.int64)
        super().__init__([(question, answer) for question, answer in zip(questions, answers, strict=True)], labels, places)
        self.sets = list(sets)


def options_of(question: str, of_set: str = "") -> tuple[str, ...]:
    """What may be answered: what the question itself offers at its end, else what questions of its set do."""
    offered = _FORMAT.search(question)
    return tuple(offered[1].split("/")) if offered else OPTIONS.get(of_set, tuple(ANSWERS))


def check_question(question: object, answer: object, of_set: str, place: str) -> tuple[str, str]:
    """A question and its answer, of which there is no doubt.

    Raises:
        ConfigError: If one of them is no text, or the answer is none of the options.
    """
    for name, text in (("instruction", question), ("answer", answer)):
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{place}: {name} is {text!r}, expected text; prepare the data again, or remove the row")
        check_unicode(text, name, place)
    assert isinstance(question, str)
    assert isinstance(answer, str)
    options = options_of(question, of_set)
    if answer not in options or answer not in ANSWERS:
        raise ConfigError(
            f"{place}: the answer {answer!r} is not among the question's options ({', '.join(options)}); correct it, or remove "
            "the row"
        )
    return question, answer


def right_by(text: str, answer: str, of_set: str) -> dict[str, bool]:
    """Whether a text is right, by each way of scoring it."""
    return {"exact": is_exact(text, answer), "regex": is_found(text, answer, of_set)}


def set_scores(right: Mapping[str, Sequence[Mapping[str, bool]]]) -> dict[str, float]:
    """In percent: by each way of scoring the mean over the sets, and that of each set, as ``exact_boolq``.

    Args:
        right: By set, what :func:`right_by` says of each question.
    """
    by_set = {name: {way: 100 * fmean(marks[way] for marks in rows) for way in WAYS} for name, rows in right.items()}
    means = {way: fmean(scores[way] for scores in by_set.values()) for way in WAYS}
    return means | {f"{way}_{name}": scores[way] for name, scores in by_set.items() for way in WAYS}


def is_exact(text: str, answer: str) -> bool:
    """Whether what a text says after the first :data:`TRIGGER` is the answer and nothing else; without it nothing is right."""
    _, trigger, said = text.partition(TRIGGER)
    return bool(trigger) and said.strip() == answer


def is_found(text: str, answer: str, of_set: str) -> bool:
    """Whether the first of the set's possible answers that a text names is the answer."""
    found = re.search("|".join(OPTIONS[of_set]), text)
    return found is not None and found[0] == answer
