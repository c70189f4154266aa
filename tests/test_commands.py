"""What every command answers to --help and to a mistake: at once, that is without importing torch, and in few lines.

All are asked in forks of one fresh process, which takes about 10 s.
"""

import re
from pathlib import Path

import pytest

from tests.cold import ROOT, Answer, answers

FOLDERS = ("gift_vit", "data_prep", "experiments")
COMMANDS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*.py")
    if 'if __name__ == "__main__"' in file.read_text()
)
TRAIN = "gift_vit.train"
SMOKE = [TRAIN, "debug=smoke"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "dataset": ([TRAIN, "dataset=cubb"], "unknown dataset 'cubb'; did you mean cub?"),
    "key": ([TRAIN, "optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
    "null group": ([TRAIN, "dataset=null"], "dataset=null: a group cannot be null"),
    "type": ([TRAIN, "trainer.epochs=two"], "trainer.epochs: Value 'two' of type 'str' could not be converted to Integer"),
    "lr": ([TRAIN, "optim.lr=-1"], "optim.lr=-1.0: expected a number above 0"),
    "betas": ([TRAIN, "optim.betas=[0.9,1]"], "optim.betas=[0.9, 1.0]: expected two numbers in [0, 1)"),
    "epochs": ([TRAIN, "trainer.epochs=0"], "trainer.epochs=0: expected 1 or more"),
    "workers": ([TRAIN, "trainer.workers=-1"], "trainer.workers=-1: expected 0 or more"),
    "drop path": ([TRAIN, "trainer.drop_path_rate=1"], "trainer.drop_path_rate=1.0: expected a number in [0, 1)"),
    "rank": ([TRAIN, "method.rank=0"], "method.rank=0: expected a whole number from 1"),
    "lora's rank": ([TRAIN, "method=lora", "method.rank=0"], "method.rank=0"),
    "seed": ([TRAIN, "seed=-1"], "seed=-1: expected a whole number of 0 or more"),
    "schema": ([TRAIN, "method.schema=paca"], "unknown method.schema 'paca'"),
    "precision": ([TRAIN, "trainer.precision=fp8"], "unknown trainer.precision 'fp8'"),
    "tracker": ([TRAIN, "tracker.kind=mlflow"], "unknown tracker.kind 'mlflow'"),
    "project": ([TRAIN, "tracker=wandb", "tracker.project=a/b"], "expected a W&B name: not empty"),
    "sweep": ([TRAIN, "sweep=cubb"], "unknown sweep 'cubb'; did you mean cub?"),
    "sweeps": ([TRAIN, "-m", "sweep=cub,dogs"], "sweep=cub,dogs: the axes of several sweep files would be lost"),
    "missing data": (
        [*SMOKE, "dataset=tiny_mammals"],
        "type: python -m gift_vit.train dataset=tiny_mammals dataset.root=<folder that holds tiny_imagenet/",
    ),
    "missing folder": ([*SMOKE, "dataset=folder", "dataset.root=nowhere"], "nowhere"),
    "missing weights": ([TRAIN, "backbone.weights=nowhere.pth"], "nowhere.pth"),
    "split of a search run": (["gift_vit.evaluate", "run=nowhere", "split=test"], "nowhere is no run folder"),
    "run to merge": (
        ["gift_vit.merge", "run=nowhere", "out=a.pth"],
        "nowhere is no run folder: it holds no config.yaml; give run=",
    ),
    "suffix": (["gift_vit.merge", "run=nowhere", "out=a.bin"], "out=a.bin: expected a name that ends in .safetensors or .pth"),
    "required": (["gift_vit.merge", "run=nowhere"], "out=… is required; --help explains"),
    "checkpoint": (["gift_vit.import_gift", "none.pth.tar", "dataset=cub", "out=run"], "no checkpoint none.pth.tar"),
    "released": (
        ["gift_vit.import_gift", "a", "dataset=flower", "out=b"],
        "dataset=flower has no released checkpoints; did you",
    ),
    "run to verify": (["gift_vit.verify", "run=nowhere"], "nowhere is no run folder"),
    "runs to verify": (["gift_vit.verify", "runs=nowhere"], "runs=nowhere: there is no finished run below it"),
    "what to verify": (["gift_vit.verify"], "give run=<a run's folder> or runs=<a folder with runs>, one of them"),
    "split to keep": (["gift_vit.evaluate", "run=a", "split=val", "keep_predictions=true"], "drop split="),
    "run to predict with": (["gift_vit.predict", "run=nowhere", "images=a"], "nowhere is no run folder"),
    "what to write": (["gift_vit.predict", "run=nowhere", "images=a", "out=a.txt"], "out=a.txt: expected a name that ends in"),
    "run to explain": (["gift_vit.explain", "run=nowhere"], "nowhere is no run folder"),
    "basis": (["gift_vit.explain", "run=nowhere", "basis=train"], "unknown basis 'train'; did you mean trained?"),
    "run to score": (["gift_vit.explain.score", "run=nowhere"], "nowhere is no run folder"),
    "alpha": (["gift_vit.explain.score", "run=nowhere", "alpha=0"], "alpha=0.0: expected a number above 0"),
    "faithfulness": (["gift_vit.explain.faithfulness", "run=nowhere", "steps=0"], "steps=0: expected 1 or more"),
    "one run": (["gift_vit.explain.stability", "runs=[a]"], "runs=[a]: give at least two folders, each once"),
    "runs": (["gift_vit.explain.stability", "runs=[a,b]"], "a is no run folder"),
    "tables": (["experiments.tables", "root=nowhere"], "nowhere"),
    "format": (["experiments.tables", "format=html"], "unknown format 'html'"),
    "columns": (["experiments.tables", "columns=[top6]"], "unknown score top6 (known: top1, top5, "),
    "one member": (["experiments.ensemble", "runs=[a]"], "runs=[a]: give at least two folders, each once"),
    "members": (["experiments.ensemble", "runs=[a,b]"], "a is no run folder"),
    "select": (["experiments.select", "root=nowhere"], "nowhere"),
    "status": (["experiments.status", "root=nowhere"], "no folder nowhere; pass root=<the output folder of the sweeps>"),
    "report": (["experiments.report", "root=nowhere"], "nowhere"),
    "demo": (["experiments.demo", "images=11"], "images=11: expected 1 to 10, one for each digit"),
    "fgvc": (["data_prep.fgvc", "cup"], "unknown dataset 'cup'; did you mean cub?"),
    "vtab": (["data_prep.vtab", "natral"], "there is no task 'natral'"),
}
TRACED = [[TRAIN, "dataset=cubb"], [TRAIN, "optim.lr=-1"], ["gift_vit.evaluate", "run=nowhere"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def helps(place: Path) -> dict[str, Answer]:
    asked = [[command, word] for command in COMMANDS for word in ("--help", "nonsense=1")]
    asked += [words for words, _ in MISTAKES.values()]
    return {" ".join(words): answer for words, answer in zip(asked, answers(asked, place), strict=True)}


def test_the_commands_are_found() -> None:
    assert {TRAIN, "gift_vit.explain", "data_prep.vtab", "experiments.tables"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable(helps: dict[str, Answer], command: str) -> None:
    answer = helps[f"{command} --help"]
    assert (answer.returncode, answer.imported, answer.stderr) == (0, [], "")
    assert f"python -m {command}" in answer.stdout
    # Hydra puts all choices of a group on one line
    lines = [line for line in answer.stdout.splitlines() if not re.match(r"(dataset|method|sweep): ", line)]
    assert max(map(len, lines)) <= 140
    assert len(lines) <= 90
    assert not re.search(r"^    \w+( +\((required|default: .*)\))?$", answer.stdout, re.MULTILINE), "one that is not explained"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_word_is_one_line(helps: dict[str, Answer], command: str) -> None:
    answer = helps[f"{command} nonsense=1"]
    assert (answer.returncode, answer.imported, answer.stdout) == (2, [], "")
    expected = "unknown key nonsense" if command == TRAIN else "unexpected argument 'nonsense=1': expected "
    assert answer.stderr.startswith(f"error: {expected}")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_needs_no_torch(helps: dict[str, Answer], place: Path, name: str) -> None:
    words, message = MISTAKES[name]
    answer = helps[" ".join(words)]
    assert (answer.returncode, answer.imported, answer.stdout) == (2, [], ""), answer.stderr
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert list(place.iterdir()) == []


def test_a_traceback_is_shown_where_it_is_asked_for(place: Path) -> None:
    for answer in answers(TRACED, place, GIFT_VIT_TRACEBACK="1"):
        assert answer.returncode == 2
        assert "Traceback" in answer.stderr
        assert "error: " in answer.stderr
