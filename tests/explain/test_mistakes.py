"""Mistakes in calling the commands: one line each, nothing written, and no torch where it is not needed to see them."""

from pathlib import Path

import pytest

from tests.cold import answers
from tests.explain.conftest import Command, Runs, write_table

DIGITS = "run={zero}"
# of a command's words, in braces the folders of runs, what begins the line
MISTAKES = [
    ("__main__", ["run={linear}"], "cluster maps explain GIFT; {linear} was trained with method=linear"),
    ("__main__", ["run={search}", "split=test"], "{search} is a search run, and test is for the final phase; train it with"),
    ("__main__", ["run={tmp}"], "{tmp} is no run folder: it holds no config.yaml; give run="),
    ("__main__", ["run={unfinished}"], "{unfinished} is not finished: it holds no result.json"),
    ("__main__", [DIGITS, "images={tmp}/none"], "images={tmp}/none: there is no such file or folder"),
    ("__main__", [DIGITS, "images={tmp}"], "images={tmp}: the folder holds no image; a pattern such as {tmp}"),
    ("__main__", [DIGITS, "images={tmp}/bad.txt", "class=3"], "images=… names files, which have no split or label; drop split"),
    ("__main__", [DIGITS, "colours=hot"], "unknown colours 'hot' (known: viridis, "),
    ("__main__", [DIGITS, "formats=[svg]"], "unknown formats 'svg' (known: png, pdf)"),
    ("__main__", [DIGITS, "response=both"], "unknown response 'both' (known: post, pre)"),
    ("__main__", [DIGITS, "basis=train"], "unknown basis 'train'; did you mean trained?"),
    ("__main__", [DIGITS, "layers=[1,1]"], "blocks=[1, 1]: give distinct values, at least one"),
    *(("__main__", [DIGITS, f"{key}=0"], f"{key}=0: expected 1 or more") for key in ("count", "show", "batch_size")),
    ("score", ["run={search}"], "{search} is a search run, and test is for the final phase; train it with phase=final"),
    ("score", [DIGITS, "truth=masks"], "unknown truth 'masks' (known: boxes, segmentations, parts)"),
    ("score", [DIGITS, "mask_threshold=1"], "mask_threshold=1.0: expected a number in [0, 1)"),
    ("score", [DIGITS, "alpha=0"], "alpha=0.0: expected a number above 0"),
    ("score", [DIGITS, "count=-1"], "count=-1: expected 1 or more"),
    ("faithfulness", ["run={search}"], "{search} is a search run, and test is for the final phase; train it with phase=final"),
    *(("faithfulness", [DIGITS, f"{key}=0"], f"{key}=0: expected 1 or more") for key in ("count", "val_count", "steps")),
    ("faithfulness", [DIGITS, "phase"], "unexpected argument 'phase'"),
    ("stability", ["runs=[{zero}]"], "runs=[{zero}]: give at least two folders, each once"),
    ("stability", ["runs=[{zero},{zero}]"], "runs=[{zero},{zero}]: give at least two folders, each once"),
    ("stability", ["runs=[{zero},{zero}/../zero]"], "runs=[{zero},{zero}/../zero]: give at least two folders, each once"),
    ("stability", ["runs=[{zero},{search}]"], "{search} is a search run, and test is for the final phase; train it with"),
    ("stability", ["runs=[{zero},{rank}]"], "{rank} has another method than {zero}; give runs that differ in their seed, say"),
    ("stability", ["runs=[{linear},{zero}]"], "cluster maps explain GIFT; {linear} was trained with method=linear"),
    ("stability", ["runs=[{zero},{tmp}]"], "{tmp} is no run folder: it holds no config.yaml"),
    ("stability", ["runs=[{zero},{one}]", "count=0"], "count=0: expected 1 or more"),
    ("stability", ["runs=[{zero},{one}]", "response=both"], "unknown response 'both' (known: post, pre)"),
]
NEED_TORCH = [
    (
        "__main__",
        [DIGITS, "images={tmp}/bad.txt"],
        "cannot decode image {tmp}/bad.txt: it is empty or of no known image format; replace or remove it",
    ),
    ("__main__", [DIGITS, "class=²"], "unknown class '²': give an index from 0 to 9 or a name (0, 1, 2, 3, 4, …)"),
    ("__main__", [DIGITS, "class=10"], "unknown class '10': give an index from 0 to 9 or a name (0, 1, 2, 3, 4, …)"),
    ("__main__", [DIGITS, "split=tset"], "dataset digits has no tset split (it has train, val, test)"),
    (
        "__main__",
        [DIGITS, "layers=[6]"],
        "block=6: target 'attn.proj' is not adapted there; adapted of the 6 blocks: 0, 1, 2, ",
    ),
    ("score", [DIGITS], "there are no boxes for dataset digits: its images are no files with a path"),
    ("score", [DIGITS, "annotations={tmp}"], "there are no boxes for dataset digits: its images are no files with a path"),
    ("score", [DIGITS, "annotations={tmp}/x"], "there are no boxes: {tmp}/x/boxes.parquet is not there; give annotations="),
    ("faithfulness", [DIGITS, "layers=[9]"], "block=9: target 'attn.proj' is not adapted there"),
    ("stability", ["runs=[{zero},{one}]", "layers=[9]"], "block=9: target 'attn.proj' is not adapted there"),
]


@pytest.fixture
def places(runs: Runs, tmp_path: Path) -> dict[str, Path]:
    """Folders by the names that the words have for them; ``tmp`` has a file that is no image, and boxes of other images."""
    (tmp_path / "bad.txt").write_text("no image")
    write_table(tmp_path / "boxes.parquet", "path x y width height", [("elsewhere", 1.0, 1.0, 1.0, 1.0)])
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text((runs["zero"] / "config.yaml").read_text())
    return {**runs, "tmp": tmp_path, "unfinished": tmp_path / "unfinished"}


def test_most_are_one_line_and_said_without_torch(places: dict[str, Path], tmp_path: Path) -> None:
    """In forks of one fresh process, whose start takes over 3 s."""
    spoken = [[f"gift_vit.explain.{command}", *(word.format(**places) for word in words)] for command, words, _ in MISTAKES]
    for answer, (_, _, message) in zip(answers(spoken, tmp_path), MISTAKES, strict=True):
        assert (answer.returncode, answer.imported, answer.stdout, answer.stderr.count("\n")) == (2, [], "", 1), answer.stderr
        assert answer.stderr.startswith(f"error: {message.format(**places)}")
    assert {file.name for file in tmp_path.iterdir()} == {"bad.txt", "boxes.parquet", "unfinished"}


@pytest.mark.parametrize(("name", "words", "message"), NEED_TORCH)
def test_the_others_are_one_line_too(
    places: dict[str, Path], tmp_path: Path, call: Command, name: str, words: list[str], message: str
) -> None:
    code, _, error = call(name, *(word.format(**places) for word in words), f"out={tmp_path / 'out'}")
    assert code == 2
    assert error.startswith(f"error: {message.format(**places)}")
    assert not list(tmp_path.glob("out*"))
