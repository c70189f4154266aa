"""Recipes are for the final runs that they were chosen for: no other command reads them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import demo
from gift_vit.config.compose import compose_config, conf_dir
from tests.conf.files import stems

RATE = 0.123


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes for every method on digits are in the configuration's own folder."""
    folder = shutil.copytree(conf_dir(), tmp_path / "conf")
    for method in stems("method"):
        where = f"dataset: digits, method: {method}, backbone: vit_mini, protocol: clean, changes: {{}}"
        text = f"# @package _global_\n# Chosen.\nrecipe: {{{where}}}\noptim: {{lr: {RATE}}}\n"
        (folder / "recipe" / f"digits_{method}.yaml").write_text(text)
    monkeypatch.setattr("gift_vit.config.compose.conf_dir", lambda: folder)


@pytest.mark.parametrize(
    ("line", "used"),
    [
        ("phase=final backbone=vit_mini", True),
        ("phase=final method=lora experiment=mini", True),
        ("sweep=final dataset=digits", True),
        ("sweep=final debug=smoke", True),
        ("recipe=digits_gift", True),
        ("phase=final recipe=none", False),
        ("sweep=final recipe=none", False),
        ("phase=final dataset=cub", False),
        ("dataset=digits method=lora", False),
        ("sweep=digits", False),
        ("sweep=digits phase=final", False),
        ("experiment=mini", False),
        ("experiment=demo phase=final", False),
        ("debug=smoke", False),
        ("debug=smoke phase=final", False),
    ],
)
@pytest.mark.usefixtures("chosen")
def test_a_recipe_is_for_final_runs_alone(line: str, used: bool) -> None:
    cfg: Any = compose_config(line.split())
    assert (cfg.optim.lr == RATE, cfg.recipe is not None) == (used, used)
    assert cfg.phase == ("final" if "final" in line else "search")


@pytest.mark.usefixtures("chosen")
def test_the_demo_uses_its_own_rates() -> None:
    runs = {method: demo._config(method, demo.Arguments()) for method in demo.LEARNING_RATES}
    assert {method: run.optim.lr for method, run in runs.items()} == demo.LEARNING_RATES


def test_these_tests_see_no_recipe_of_the_checkout() -> None:
    assert stems("recipe") == ["none"]
