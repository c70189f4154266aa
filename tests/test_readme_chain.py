"""The blocks of README.md and docs/ that are marked as tests, run as they stand with words appended that make them short."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import gift_vit.methods
from gift_vit.data.kinds import digits
from gift_vit.methods import METHODS, apply_method, count_parameters, merge_method
from gift_vit.methods.adapter import method_config
from gift_vit.methods.config import CONFIGS
from tests.pages import BLOCKS, COMMANDS, PAGES, Block, Command, commands_of_target
from tests.test_readme import write_yaml
from tests.warm import SECONDS, Ended, run_module

SHORT = ("debug=smoke", "backbone=vit_mini", "trainer.batch_size=4", "dataset.num_classes=null")
GRID = 'method.grid.fgvc={optim.lr:"1e-3,1e-2",optim.weight_decay:"0"}'
DEAD_PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
TESTED = [command for command in COMMANDS if command.tested]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a small CUB in its original layout, a person's own images, and the YAML that the pages show."""
    folder = tmp_path_factory.mktemp("readme")
    names = {"001": "001.Black_footed_Albatross", "002": "002.Laysan_Albatross"}
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        listed = {}
        for number, name in names.items():
            for index in range(count):
                image = folder / "data/cub/CUB_200_2011/images" / name / f"{split}_{index}.jpg"
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (60, 40), (int(number) * 100, 10 * index, 0)).save(image)
                listed[f"{name}/{image.name}"] = number
        (folder / "data/cub/splits/paper").mkdir(parents=True, exist_ok=True)
        (folder / "data/cub/splits/paper" / f"{split}.json").write_text(json.dumps(listed))
    for label in ("cat", "dog"):
        (folder / "my_images/train" / label).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (40, 60), (20 * index, 0, 0)).save(folder / "my_images/train" / label / f"{index}.jpg")
    write_yaml(folder)
    return folder


@pytest.fixture(scope="module")
def demo(workplace: Path) -> Ended:
    """What ``make demo`` starts, with one epoch and a sixth of the images."""
    [started] = commands_of_target("demo", workplace)
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch, workplace)
        return run(started, workplace, "epochs=1")


def few_digits(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the digits be the first 300."""
    few = folder / "few.csv"
    if not few.is_file():
        np.savetxt(few, np.loadtxt(digits._digits_file(), delimiter=",")[:300], delimiter=",")
    patch.setattr(digits, "_digits_file", lambda: few)
    patch.setattr(digits, "TEST_SIZE", 100)
    patch.setattr(digits, "VAL_SIZE", 100)


def run(command: Command, folder: Path, *more: str, code: int = 0, **env: str) -> Ended:
    """A command with further words in a folder."""
    settings: dict[str, Any] = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", **env}
    done = run_module(command.module, *command.arguments, *more, cwd=folder, timeout=SECONDS, **settings)
    assert done.returncode == code, f"{command}: {done.stderr}"
    return done


def appended(command: Command, folder: Path) -> list[str]:
    """What makes a command of a page short, and keeps it in its folder."""
    given = dict(word.split("=", 1) for word in command.arguments if "=" in word)
    if command.module == "gift_vit.train":
        words = [*SHORT, f"dataset={given.get('dataset') or given['sweep']}"]  # not the one of debug=smoke
        if given.get("sweep") == "final":
            words += ["--config-dir", "my_conf"]  # for the recipe
        elif "sweep" in given:
            words += [GRID]
        return words
    if command.module == "experiments.select":
        return ["out=my_conf/recipe"]
    if command.module == "gift_vit.evaluate":  # the run of the page's training command, wherever that landed
        [trained] = (folder / "outputs/final/cub/gift/vit_mini").glob("gift_paper_*")
        return [f"run={trained}"]
    return []


def run_page(page: str, folder: Path) -> dict[str, Ended]:
    """The marked commands of a page one after the other, but those of other tests; how each ended, by its line."""
    commands = [c for c in TESTED if c.page == page and c.module and not c.module.startswith("data_prep.")]
    return {" ".join(command.words): run(command, folder, *appended(command, folder)) for command in commands}


# ------------------------------------------------------------------------------------------------- commands


def test_every_marked_command_is_run_by_a_test() -> None:
    assert {command.words for command in TESTED if not command.module} == {("make", "demo")}
    assert {command.page for command in TESTED} == {"README.md", "docs/data.md", "docs/extending.md"}


def test_make_demo(workplace: Path, demo: Ended) -> None:
    """The runs and the picture are there."""
    for header in ("method", "trainable parameters", "adapter bytes", "test top-1 %", "seconds", "linear", "gift"):
        assert header in demo.stdout
    assert sizes(demo.stdout) == sizes(PAGES["README.md"]), "parameters and bytes are as the README shows them"
    files = {"config.yaml", "metrics.jsonl", "train.log", "adapter.safetensors", "predictions.parquet", "result.json"}
    for method in ("linear", "gift"):
        folder = workplace / "outputs/demo/final/digits" / method / "vit_mini/demo"
        assert {path.name for path in folder.iterdir()} == files
    verified, predicted = demo.stdout.partition("Verified:")[2].split("Predicted:")
    assert "scored again: 0 of 100 images are predicted otherwise" in verified
    assert [line.split(":")[0].strip() for line in predicted.splitlines()[1:]] == [
        f"outputs/demo/digits/{n}.png" for n in range(6)
    ]
    with Image.open(workplace / "outputs/demo/cluster_maps.png") as picture:
        assert min(picture.size) > 500


@pytest.mark.slow
def test_the_scores_of_the_demo(tmp_path: Path) -> None:
    """The whole demo, two minutes: what the README shows, but for what another processor rounds otherwise."""
    [started] = commands_of_target("demo", tmp_path)
    told = run(started, tmp_path).stdout
    assert sizes(told) == sizes(PAGES["README.md"])
    assert scores(told) == pytest.approx(scores(PAGES["README.md"]), abs=1.0)


def test_the_readme_shows_one_score() -> None:
    [score] = re.findall(r"# done (\d+\.\d+)", PAGES["README.md"])
    assert float(score) == scores(PAGES["README.md"])[1]


def scores(text: str) -> list[float]:
    """Test top-1 in percent of linear probing and of GIFT, in the demo's table."""
    return [float(row.split("│")[5]) for row in re.findall(r"^│ (?:linear|gift) .*$", text, re.MULTILINE)]


def sizes(text: str) -> list[list[str]]:
    """Method, trainable parameters, those of the adapter, and its bytes, in the demo's table."""
    return [[cell.strip() for cell in row.split("│")[1:5]] for row in re.findall(r"^│ (?:linear|gift) .*$", text, re.MULTILINE)]


def test_the_commands_of_the_readme(workplace: Path) -> None:
    """Ten seconds: eight runs, five of them in sweeps."""
    ended = run_page("README.md", workplace)
    told = {line: done.stdout + done.stderr for line, done in ended.items()}
    for line in (line for line in told if "gift_vit.train" in line):
        assert told[line].count("\nfinished: ") + told[line].startswith("finished: ") == runs_of(line), told[line]
    [final] = [line for line in told if "sweep=final" in line]
    assert "no recipe" not in told[final]
    [chosen] = [ended[line].stdout for line in ended if "experiments.select" in line]
    assert chosen.startswith("my_conf/recipe/cub_gift.yaml: optim.lr=0.")
    [scored] = [ended[line].stdout for line in ended if "gift_vit.evaluate" in line]
    assert "top-1" in scored
    [table] = [ended[line].stdout for line in ended if "experiments.tables" in line]
    [row] = [line for line in table.splitlines() if line.startswith("| GIFT |")]
    assert "±" in row.split("|")[4], "CUB, over three seeds"
    assert row.count("–") == 6, "no device memory, four datasets without a run, no mean"


def runs_of(line: str) -> int:
    return 3 if "sweep=final" in line else 2 if "sweep=" in line else 1


def test_the_commands_of_the_page_on_extending(workplace: Path) -> None:
    [done] = run_page("docs/extending.md", workplace).values()
    assert "outputs/search/folder_my_images/my_dora/" in done.stderr


def test_the_status_of_the_data(tmp_path: Path) -> None:
    [command] = [command for command in TESTED if command.module == "data_prep.status"]
    told = run(command, tmp_path).stdout
    assert "0 of 33 datasets are ready" in told
    prepared = {" ".join(c.words) for c in TESTED if c.module in ("data_prep.fgvc", "data_prep.vtab")}
    assert len(prepared) == 2
    assert all(line in told for line in prepared), "they are among the next steps"


@pytest.mark.parametrize(
    ("module", "url"),
    [("data_prep.fgvc", "https://data.caltech.edu/"), ("data_prep.vtab", "https://www.cs.toronto.edu/~kriz/cifar-100-binary")],
)
def test_preparing_commands_without_a_network(tmp_path: Path, module: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get as far as the first download, and say in one line what to do."""
    [command] = {command.words: command for command in TESTED if command.module == module}.values()
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
    told = run(command, tmp_path, code=1, **DEAD_PROXY).stderr
    [line] = [line for line in told.splitlines() if line.startswith("error: ")]
    assert url in line
    assert str(Path("data/downloads")) in line


# -------------------------------------------------------------------------------------------------- Python

PYTHON = [block for block in BLOCKS if block.language == "python" and block.tested]


def first_line(block: Block) -> str:
    return f"{block.page}: {block.text.splitlines()[0]}"


@pytest.mark.parametrize("block", [block for block in PYTHON if "register_method" not in block.text], ids=first_line)
def test_python_blocks(
    block: Block,
    workplace: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With random weights, since tests have no network; what a ``print`` shows is said in its comment.

    Two ViT-B take four seconds to draw, and a run three.
    """
    if "outputs/demo" in block.text:
        request.getfixturevalue("demo")
        few_digits(monkeypatch, workplace)
    monkeypatch.chdir(workplace)
    text = block.text.replace("pretrained=True", "pretrained=False").replace("\nfresh =", "\ntorch.manual_seed(0)\nfresh =")
    text = text.replace("\nvit = timm", "\nimport torch\ntorch.manual_seed(0)\nvit = timm")  # the same weights twice
    exec(compile(text, block.page, "exec"), {"__name__": "some"})
    shown = capsys.readouterr().out
    for told in re.findall(r"^print\(.*\)(?:\n|  )# (done|\w+\(.*\)|\[.*\])", block.text, re.MULTILINE):
        assert told in shown


def test_blocks_say_what_they_print() -> None:
    told = [comment for block in PYTHON for comment in re.findall(r"# (done|ParameterCount|\['gift)", block.text)]
    assert sorted(told) == ["ParameterCount", "['gift", "done", "done"]


def test_the_method_of_one_s_own(workplace: Path, tiny_vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in ``gift_vit/methods/`` and a YAML are all that is needed."""
    [code] = [block.text for block in PYTHON if "register_method" in block.text]
    (workplace / "methods").mkdir()
    (workplace / "methods/norms.py").write_text(code)
    monkeypatch.setattr(gift_vit.methods, "__path__", [*gift_vit.methods.__path__, str(workplace / "methods")])
    values: Any = OmegaConf.to_container(OmegaConf.load(workplace / "my_conf/method/norms.yaml"))
    assert values.pop("name") == "norms"
    try:
        plain = {name: tensor.clone() for name, tensor in tiny_vit.state_dict().items()}
        apply_method(tiny_vit, method_config(values))
        trainable = {name for name, parameter in tiny_vit.named_parameters() if parameter.requires_grad}
        norms = {name for name in plain if "norm" in name}
        assert trainable == norms | {"head.weight", "head.bias"}
        assert count_parameters(tiny_vit).adapter == (2 * 6 + 1) * 2 * 64
        merge_method(tiny_vit)
        assert all(torch.equal(plain[name], tensor) for name, tensor in tiny_vit.state_dict().items())
    finally:
        for known in (CONFIGS, METHODS):
            known.pop("norms", None)
        sys.modules.pop("gift_vit.methods.norms", None)
