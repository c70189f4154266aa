"""Every command of the preparation takes the data root from the same place."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import data_prep.fgvc.__main__ as fgvc
import data_prep.status as status
import data_prep.vtab.__main__ as vtab
from data_prep.commands import DEFAULT_ROOT, data_root
from gift_vit.config.compose import conf_dir

Told = pytest.CaptureFixture[str]
WORDS = {fgvc: ["cub"], status: [], vtab: ["dtd"]}


MESSAGE = "the data root is empty: give root=<folder>, or unset the environment variable GIFT_VIT_DATA"
EMPTY: dict[str, tuple[str, list[str]]] = {"variable": ("", []), "argument": ("data", ["root="])}


@pytest.mark.parametrize("module", WORDS, ids=lambda module: module.__name__)
@pytest.mark.parametrize("empty", EMPTY)
def test_an_empty_root_is_one_line_and_nothing_is_written(
    module: ModuleType, empty: str, command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    variable, words = EMPTY[empty]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIFT_VIT_DATA", variable)
    assert command(module, *WORDS[module], *words) == 2
    assert capsys.readouterr().err == f"error: {MESSAGE}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_that_of_training() -> None:
    assert f"data_root: {DEFAULT_ROOT}\n" in (conf_dir() / "paths" / "default.yaml").read_text()
    assert {module.Arguments.__dataclass_fields__["root"].default for module in WORDS} == {DEFAULT_ROOT}


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_root("~/data") == Path("/home/someone/data")
