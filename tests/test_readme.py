"""What README.md and docs/ say: their commands are understood, their numbers and links hold, and the README stays short."""

import re
import subprocess
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf
from PIL import Image

from gift_vit.common import cli
from gift_vit.config.compose import compose_config, compose_job, conf_dir, flatten, hydra_set_up
from gift_vit.config.loader import load_config
from gift_vit.sweeps.plan import plan_start
from tests.methods.test_counts import LABELS, SCHEMAS, own_methods
from tests.pages import BLOCKS, COMMANDS, NOTES, PAGES, ROOT, Command, code_spans, commands_of_target, prose

PROGRAMS = {"source", "wandb", "find", "cp", "grep", "mkdir", "tar"}  # of others: not checked
FEWER = {  # of what is treated alike
    "mini-chain": ["MINI=digits", "METHODS=linear_exact gift"],
    "mini-ablation": ["SETTINGS=rank1:method.rank=1 all:method.target_modules=[attn.qkv,attn.proj,mlp.fc1,mlp.fc2]"],
}
HYDRAS_FLAGS = ("-m", "--resolve")
MAKE = [command for command in COMMANDS if command.words[0] == "make"]
TRAINING = [command for command in COMMANDS if command.module == "gift_vit.train"]
OTHERS = [command for command in COMMANDS if command.module and command.module != "gift_vit.train"]


# ---------------------------------------------------------------------------------------------- commands


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    assert [str(c) for c in COMMANDS if not (c.module or c.words[0] == "make" or c.words[0] in PROGRAMS)] == []
    assert {command.page for command in COMMANDS} >= {"README.md", "docs/sweeps.md", "experiments/mini/README.md"}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the YAML that the pages show, where their first lines say."""
    folder = tmp_path_factory.mktemp("pages")
    write_yaml(folder)
    return folder


def write_yaml(folder: Path) -> None:
    """The YAML blocks as files; a line ``# my_conf/…`` names each."""
    for block in BLOCKS:
        if block.language == "yaml":
            [name] = re.findall(r"^# (my_conf/.*\.yaml)$", block.text, re.MULTILINE)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.text)


@cache
def check_training(words: tuple[str, ...], folder: Path) -> set[str]:
    """Compose what ``python -m gift_vit.train`` is told; the folders of the first and the last of its runs.

    Args:
        words: Its words.
        folder: Where folders of configurations are looked for, before the checkout.
    """
    overrides, config_dir, multirun = [], None, "-m" in words
    left = iter(word for word in words if word not in HYDRAS_FLAGS)
    for word in left:
        if word in ("--cfg", "--config-dir"):
            value = next(left)
            if word == "--config-dir":
                config_dir = next(place / value for place in (folder, ROOT) if (place / value).is_dir())
        else:
            overrides.append(word)
    axes: list[str] = []
    with hydra_set_up(config_dir):
        parse = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides
        fixed = [override.input_line or "" for override in parse(overrides) if not override.is_sweep_override()]
        if any(word.startswith("sweep=") for word in words):
            _, hydra_cfg = compose_job(fixed)
            axes = [f"{key}={value}" for key, value in hydra_cfg.sweeper.params.items()]
            multirun = hydra_cfg.mode is RunMode.MULTIRUN
        assert multirun or len(fixed) == len(overrides), "several values need -m or sweep="
        jobs = BasicSweeper.split_arguments(parse([*axes, *overrides]), None)[0] if multirun else [overrides]
        planned = [plan_start(job).job for job in {tuple(jobs[0]), tuple(jobs[-1])}]
    assert {job.problem for job in planned} == {None}
    return {str(job.folder) for job in planned}


@pytest.mark.parametrize("command", TRAINING, ids=str)
def test_training_commands_compose(command: Command, configs: Path) -> None:
    check_training(command.arguments, configs)


class Understood(BaseException):
    """In place of what a command does, after it has read its words."""


def check_parsed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, parse = find_spec(command.module), cli.parse_arguments
    assert spec, command

    def only_parse(*args: Any, **options: Any) -> None:
        parse(*args, **options)
        raise Understood

    with monkeypatch.context() as patch:
        patch.setattr(cli, "parse_arguments", only_parse)
        for effect in ("log_to_stderr", "interrupt_on_sigterm"):
            patch.setattr(cli, effect, lambda: None)
        patch.setattr("sys.argv", ["command", *command.arguments])
        with pytest.raises(Understood):
            import_module(f"{spec.name}.__main__" if spec.submodule_search_locations else spec.name).main()


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_other_commands_are_understood(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check_parsed(command, monkeypatch)


@pytest.mark.parametrize("command", MAKE, ids=str)
def test_targets_of_make(command: Command, configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything they would start, after ``make mini-chain``, which takes seconds: it composes some forty configurations."""
    for dataset in ("digits", "tiny_mammals", "tiny_insects", "tiny_vehicles", "cifar10_1k"):
        for seed in (0, 1):
            (configs / f"outputs/chain/final/{dataset}/gift/vit_mini/clean_seed{seed}_some").mkdir(parents=True, exist_ok=True)
    target, *words = command.words[1:]
    if target == "setup":
        assert "\nsetup: " in (ROOT / "Makefile").read_text()
        return
    words += FEWER.get(target, [])
    commands = commands_of_target(target, configs, "DATA=data", *words)
    assert commands
    for started in dict.fromkeys(commands):
        if started.module == "experiments.select":  # writes the recipes that those after it use
            recipes = next(word.removeprefix("out=") for word in started.arguments if word.startswith("out="))
            (configs / recipes).mkdir(parents=True, exist_ok=True)
        if started.module == "gift_vit.train":
            check_training(started.arguments, configs)
        else:
            check_parsed(started, monkeypatch)


def test_the_run_that_the_readme_evaluates_is_the_one_that_it_has_trained(configs: Path) -> None:
    evaluated = 0
    for page in PAGES:
        commands = [command for command in COMMANDS if command.page == page]
        trained = [folder for c in commands if c in TRAINING for folder in check_training(c.arguments, configs)]
        for command in commands:
            if command.module == "gift_vit.evaluate" and "released" not in str(command):
                evaluated += 1
                run = command.arguments[0].removeprefix("run=")
                assert str(Path(run).absolute()) in trained, command
    assert evaluated


def test_targets_modules_and_extras_that_the_text_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = (ROOT / "pyproject.toml").read_text()
    for page, text in (PAGES | NOTES).items():
        for span in code_spans(text):
            if target := re.match(r"make ([\w-]+)", span):
                assert f"\n{target[1]}: " in makefile, (page, span)
            if module := re.match(r"python -m ([\w.]+)", span):
                assert find_spec(module[1]), (page, span)
            if extra := re.search(r"'\.\[(\w+)\]'", span):
                assert f"\n{extra[1]} = [" in extras, (page, span)


def test_keys_that_the_text_names() -> None:
    """``trainer.memory=lean`` between backquotes is a key of some configuration."""
    choices = (
        ["dataset=folder", "dataset.root=some"],
        ["dataset=csv", "dataset.root=some"],
        ["dataset=vtab_dtd", "tracker=wandb", "method=gift"],
        ["dataset=text", "dataset.root=some", "backbone=hf", "backbone.model=some", "method=gift_qv"],
        ["dataset=glue_rte", "method=gift_qv", "backbone=roberta_base"],
        ["dataset=cub", "method=knn"],
        ["method=linear_exact"],
        ["dataset=digits", "method=fact_tk"],
        ["dataset=digits", "method=toast"],
    )
    plain: list[Any] = [OmegaConf.to_container(compose_config(words)) for words in choices]
    known = {key for values in plain for key, _ in flatten(values)}
    named = {span for text in PAGES.values() for span in code_spans(text) if re.match(r"[a-z]+\.[a-z_.]+=[^$]+$", span)}
    assert named
    assert {span for span in named for key in span.split() if key.partition("=")[0] not in known} == set()


# ------------------------------------------------------------------------------------- text, links and tables


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].encode()) <= 10_240


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit_a_screen(page: str) -> None:
    lines = [line for line in PAGES[page].splitlines() if not line.startswith(("|", "python -m gift_vit.evaluate"))]
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES | NOTES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose((PAGES | NOTES)[page])):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    """The headings of a page as they stand in links."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def test_the_readme_leads_to_every_page() -> None:
    assert {f"({page})" for page in PAGES if page != "README.md"} <= set(re.findall(r"\(docs/\w+\.md\)", PAGES["README.md"]))


def test_the_picture_is_small_and_shown_with_the_command_that_makes_it() -> None:
    picture = ROOT / "docs/cluster_maps.png"
    assert picture.stat().st_size <= 150_000
    with Image.open(picture) as image:
        assert image.width > 1000
    assert "(docs/cluster_maps.png)" in PAGES["README.md"]
    assert {"make demo ARGS=images=3", "cp outputs/demo/cluster_maps.png docs/cluster_maps.png"} <= {
        " ".join(command.words) for command in COMMANDS if command.page == "docs/explain.md"
    }


@pytest.mark.parametrize(
    ("file", "page", "lines"),
    [
        ("bench/cpu_close.md", "docs/speed.md", 12),
        ("bench/data.md", "docs/data.md", 8),
    ],
)
def test_tables_are_those_made_from_result_files_and_measurements(file: str, page: str, lines: int) -> None:
    table = [line for line in (ROOT / "experiments" / file).read_text().splitlines() if line.startswith("|")]
    assert len(table) == lines
    assert "\n".join(table) in PAGES[page]


def test_tables_that_a_command_shows_are_what_it_prints() -> None:
    shown = re.findall(r"^```bash\n(grep .*)\n```\n\n((?:\|.*\n)+)", "".join(PAGES.values()), re.MULTILINE)
    assert len(shown) == sum(command.words[0] == "grep" for command in COMMANDS) > 0
    for command, table in shown:
        assert subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout == table


@pytest.mark.parametrize(
    ("page", "start", "end", "files"),
    [
        ("docs/forgetting.md", "", "", ["forgetting", "forgetting_rates"]),
        (
            "docs/results.md",
            "### Five tasks",
            "## On real text",
            ["chain/table", "chain/ablation", "cifar10_rates", "other_seeds"],
        ),
    ],
)
def test_numbers_in_the_text_are_those_of_the_tables(page: str, start: str, end: str, files: list[str]) -> None:
    tables = "".join((ROOT / f"experiments/mini/{name}.md").read_text() for name in files)
    text = PAGES[page].partition(start)[2] if start else PAGES[page]
    told = re.findall(r"\d+\.\d+", prose(text.partition(end)[0] if end else text))
    assert told
    assert [number for number in told if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", tables)] == []


WORDS = {"three": 3, "five": 5, "seven": 7, "fifteen": 15}


def test_rounds_are_those_of_the_files() -> None:
    told = re.findall(r"^\| `(\w+)\.md`.*?(\w+) rounds", NOTES["experiments/bench/README.md"], re.MULTILINE)
    assert len(told) == 5
    for name, word in told:
        [rounds] = re.findall(r"(\d+) rounds\.", (ROOT / f"experiments/bench/{name}.md").read_text())
        assert int(rounds) == WORDS[word], name


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_text_names_are_there(page: str) -> None:
    named = {
        span for span in code_spans(PAGES[page]) if re.match(r"(gift_vit|conf|experiments|tests|hydra_plugins|docs)/", span)
    }
    assert {path for path in named if not list(ROOT.glob(path)) and path != "conf/recipe/cub_gift.yaml"} == set()


def test_the_walk_names_each_file_of_a_run_once() -> None:
    walk = re.findall(r"`([\w/]+\.(?:py|yaml))`", PAGES["docs/architecture.md"])
    assert sorted(walk) == sorted(set(walk))
    assert [path for path in walk if not (ROOT / path).is_file()] == []
    rooms = ("common", "config", "engine", "acceleration", "tracking", "data", "backbones")
    entered = {str(file.relative_to(ROOT)) for room in rooms for file in (ROOT / "gift_vit" / room).glob("*.py")}
    assert {path for path in entered - set(walk) if not path.endswith("__init__.py")} == set()


# -------------------------------------------------------------------------------------------------- methods


def test_the_parameters_of_the_methods() -> None:
    counts, listed = LABELS | {f"gift_{schema}": LABELS["gift"] + more for schema, (more, *_) in SCHEMAS.items()}, set()
    for row in (row for page in ("README.md", "docs/methods.md") for row in method_rows(page)):
        names, _, told = row.strip("| ").split("|")[:3] if "`dora`" not in row else ("", "", "")
        labels = re.findall(r"`(\w+)`", names)
        counted = [counts[label] for label in labels]
        numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", told)]
        assert numbers == ([min(counted), max(counted)] if " to " in told else counted), labels
        listed |= set(labels)
    assert listed - {"lora_rs"} == own_methods()  # which is peft's


def method_rows(page: str) -> list[str]:
    table = PAGES[page].partition("| `method=` |")[2].partition("\n\n")[0]
    return [row for row in table.splitlines() if row.startswith("| `")]


def test_every_method_and_every_backbone_is_named() -> None:
    methods, named = sorted((conf_dir() / "method").glob("*.yaml")), code_spans(PAGES["docs/methods.md"])
    named |= code_spans(PAGES["docs/language.md"])
    assert {file.stem for file in methods} <= named
    assert {file.stem for file in (conf_dir() / "backbone").glob("*.yaml")} - {"test_vit"} <= named
    of_peft = sum("\nkind: peft\n" in file.read_text() for file in methods)
    assert f"{of_peft} layers of Hugging Face peft" in PAGES["README.md"]
    assert len(method_rows("README.md")) == 11


# ------------------------------------------------------------------------------------------------ extending


def test_the_yaml_that_the_pages_show(configs: Path) -> None:
    for word in ("dataset=leaves", "backbone=vit_t16", "experiment=short", "method=my_dora"):
        group, _, name = word.partition("=")
        assert (configs / "my_conf" / group / f"{name}.yaml").is_file()
        [folder] = check_training(("--config-dir", "my_conf", word), configs)
        assert name in folder or group == "experiment"
    assert load_config(compose_config(["backbone=vit_mini"])).backbone.name == "vit_mini"
