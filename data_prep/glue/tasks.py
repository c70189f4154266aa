"""The facts of GLUE's tasks: columns, classes, how many examples, and the forms in which their files are passed on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # of nyu-mll/glue
SPLITS = ("train", "dev", "test")
Column = str | int


@dataclass(frozen=True)
class Table:
    """Where a split stands in tab-separated files without quotation marks.

    Attributes:
        files: One after the other.
        texts: The columns of the texts, by name or, in files without a line of names, by place from 0.
        label: That of the label; None: there are none.
    """

    files: tuple[str, ...]
    texts: tuple[Column, ...]
    label: Column | None


Form = Mapping[str, Table]
"""The splits that files of one form have; what lacks test is ready without it."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: As at the hub.
        folders: What its folder is called where its files are passed on, beside its name.
        texts: The columns of the texts at the hub.
        classes: By their numbers; none where labels are numbers.
        counts: Examples of train, dev and test.
        hub: Names of the splits at the hub where they are not train, validation and test.
        forms: In which its files are passed on.
        has_broken: Rows of GLUE's own files are broken, and left out, as TFDS and the hub do.
    """

    name: str
    folders: tuple[str, ...]
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    counts: tuple[int, int, int]
    hub: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"})
    forms: tuple[Form, ...] = ()
    has_broken: bool = False

    def url(self, split: str, server: str) -> str:
        """The address of a split's Parquet file."""
        return f"{server}/datasets/nyu-mll/glue/resolve/{REVISION}/{self.name}/{self.hub[split]}-00000-of-00001.parquet"


def _published(texts: tuple[Column, ...], label: Column, dev: str = "dev", test: str = "test") -> Form:
    """GLUE's own files, all with a line of names."""
    return {
        "train": Table(("train.tsv",), texts, label),
        "dev": Table((f"{dev}.tsv",), texts, label),
        "test": Table((f"{test}.tsv",), texts, None),
    }


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_COLA = {
    "train": Table(("train.tsv",), (3,), 1),
    "dev": Table(("dev.tsv",), (3,), 1),
    "test": Table(("test.tsv",), ("sentence",), None),
}
_COLA_RAW = {
    "train": Table(("in_domain_train.tsv",), (3,), 1),
    "dev": Table(("in_domain_dev.tsv", "out_of_domain_dev.tsv"), (3,), 1),
}
_SST2_PARTS = {
    "train": Table(("train_60614.tsv", "train_6735.tsv"), ("sentence",), "label"),
    "dev": Table(("dev_872.tsv",), ("sentence",), "label"),
}
_STSB_RAW = {"train": Table(("sts-train.csv",), (5, 6), 4), "dev": Table(("sts-dev.csv",), (5, 6), 4)}
_MNLI = {"train": "train", "dev": "validation_matched", "test": "test_matched"}

TASKS = {
    task.name: task
    for task in (
        Task(
            *("cola", ("CoLA",), ("sentence",), ("unacceptable", "acceptable"), (8_551, 1_043, 1_063)), forms=(_COLA, _COLA_RAW)
        ),
        Task(
            *("mrpc", ("MRPC",), _PAIR, ("not_equivalent", "equivalent"), (3_668, 408, 1_725)),
            forms=(_published(("#1 String", "#2 String"), "Quality"),),
        ),
        Task(
            *("qnli", ("QNLI",), ("question", "sentence"), _ENTAILMENT, (104_743, 5_463, 5_463)),
            forms=(_published(("question", "sentence"), "label"),),
        ),
        Task("rte", ("RTE",), _PAIR, _ENTAILMENT, (2_490, 277, 3_000), forms=(_published(_PAIR, "label"),)),
        Task(
            *("sst2", ("SST-2",), ("sentence",), ("negative", "positive"), (67_349, 872, 1_821)),
            forms=(_published(("sentence",), "label"), _SST2_PARTS),
        ),
        Task("stsb", ("STS-B",), _PAIR, (), (5_749, 1_500, 1_379), forms=(_published(_PAIR, "score"), _STSB_RAW)),
        Task(
            *("qqp", ("QQP",), ("question1", "question2"), ("not_duplicate", "duplicate"), (363_846, 40_430, 390_965)),
            forms=(_published(("question1", "question2"), "is_duplicate"),),
            has_broken=True,
        ),
        Task(
            *(
                "mnli",
                ("MNLI",),
                ("premise", "hypothesis"),
                ("entailment", "neutral", "contradiction"),
                (392_702, 9_815, 9_796),
            ),
            hub=_MNLI,
            forms=(_published(_PAIR, "gold_label", "dev_matched", "test_matched"),),
        ),
    )
}
