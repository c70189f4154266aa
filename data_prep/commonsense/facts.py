"""What Commonsense170k holds, and where it lies.

The GIFT authors take the files from the fork aryamanarora/LLM-Adapters; here they come from the repository that it was made of,
at one commit. Counts: that repository, and the paper of LLM-Adapters (arXiv 2304.01933).
"""

from dataclasses import dataclass

SOURCE = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/816657208af4db747803f87ba40a4c71383fed7a"


@dataclass(frozen=True)
class FileFacts:
    """A file: where it is kept, where it lies at the source, its questions, and its SHA-256 where that is known."""

    name: str
    source: str
    rows: int
    sha256: str | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Where it may lie in a folder: as at the source, or as it is kept."""
        return (self.source, self.name)


def _test(name: str, rows: int, sha256: str | None = None) -> FileFacts:
    return FileFacts(f"{name}/test.json", f"dataset/{name}/test.json", rows, sha256)


def _train(name: str, rows: int) -> FileFacts:
    return FileFacts(f"{name}/train.json", f"dataset/{name}/train.json", rows)


TRAIN = FileFacts("commonsense_170k.json", "ft-training_set/commonsense_170k.json", 170_420)
TESTS = {
    "boolq": _test("boolq", 3270, "89df2397cbca81dc31adcc6f7f5b635821aa0565aafde46725b2b4bd39b4dfa9"),
    "piqa": _test("piqa", 1838, "3860d11b9b42e590b6b4bbc1643214d373ed0b0d4ac62fcc7bdceb8e044ad141"),
    "social_i_qa": _test("social_i_qa", 1954, "71543f41127451945379d106ffedaef502f1c8770dff6d2f543aca85e3080b1d"),
    "hellaswag": _test("hellaswag", 10_042),
    "winogrande": _test("winogrande", 1267, "6946f5209e7114c65c6d04f8f644c5a061af20d730b1cfe158fff3dc44076fb9"),
    "ARC-Easy": _test("ARC-Easy", 2376, "3f32a84716ca6d57d38728bf80cc8117aecd17445c2cf29a68b571b810eb82dc"),
    "ARC-Challenge": _test("ARC-Challenge", 1172, "4a89ce368ae01a71d268d9851686738b2a0a1d84271116bab49a1dd2b48ecad7"),
    "openbookqa": _test("openbookqa", 500, "8479930f7b8a26052c78250280b5465a4016ca7fc806af440d0f37e243f3099e"),
}
# what the training questions were put together from: in a folder without them, their part of it
PARTS = {
    "boolq": _train("boolq", 9427),
    "piqa": _train("piqa", 16_113),
    "social_i_qa": _train("social_i_qa", 33_410),
    "hellaswag": _train("hellaswag", 39_905),
    "winogrande": _train("winogrande", 63_238),
    "ARC-Easy": _train("ARC-Easy", 2251),
    "ARC-Challenge": _train("ARC-Challenge", 1119),
    "openbookqa": _train("openbookqa", 4957),
}
