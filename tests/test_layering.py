"""Which room may import which, what is light, and that there is no circle. Imports inside functions count."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gift_vit.methods.config import CONFIGS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gift_vit"
DOORS = "the doors"  # the files at the top of the package
OF_DATA = "data's command"  # reads words as training does, and nothing imports it
# room → rooms that it may import; ``common`` all may
MAY_IMPORT = {
    DOORS: {"config", "runs", "sweeps"},
    OF_DATA: {"config", "data"},
    "common": set(),
    "engine": set(),
    "methods": {"hf"},
    "data": set(),
    "backbones": {"data"},
    "acceleration": {"engine"},
    "tracking": {"engine"},
    "config": {"acceleration", "backbones", "data", "engine", "methods", "tracking"},
    "runs": {"acceleration", "backbones", "config", "data", "engine", "methods", "tracking"},
    "results": {"config", "runs"},
    "sweeps": {"config", "results", "runs"},
    "hf": {"methods"},
    "push": {"config", "results", "runs"},
    "pull": {"runs"},
    "export": {"backbones", "data", "methods", "runs"},
    "explain": {"acceleration", "backbones", "config", "data", "methods", "results", "runs"},
    "invariance": {"acceleration", "backbones", "config", "data", "explain", "methods", "results", "runs", "tracking"},
}
# modules that are imported before anything heavy is needed, with all that they import
LIGHT = (
    *("gift_vit.config", "gift_vit.runs.run", "gift_vit.runs.job", "gift_vit.runs.verify"),
    *("gift_vit.sweeps.plan", "gift_vit.data.base", "gift_vit.push.__main__", "gift_vit.pull.__main__"),
)
HEAVY = ("torch", "torchvision", "timm", "peft", "transformers")
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in PACKAGE.rglob("*.py")
}
PLUGINS = {f"hydra_plugins.{file.stem}": file for file in (ROOT / "hydra_plugins").glob("*.py")}


def nodes(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """All nodes but those for type checkers; with ``at_import`` only those that are run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        yield from nodes(node, at_import)


@cache
def imported(name: str, at_import: bool = False) -> frozenset[str]:
    """Dotted names of what a module imports; of a package that it takes a module from, the module."""
    found = set()
    for node in nodes(ast.parse((MODULES | PLUGINS)[name].read_text()), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{name} has a relative import"
            found |= {full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return frozenset(found)


def with_packages(name: str) -> set[str]:
    """A module and the packages around it, which are imported with it."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def room(name: str) -> str:
    """The room of a module."""
    if name == "gift_vit.data.__main__":
        return OF_DATA
    inside = name.split(".")[1:2]
    return inside[0] if inside and (PACKAGE / inside[0]).is_dir() else DOORS


def reached(name: str, at_import: bool) -> set[str]:
    """What a module imports, itself or through others; the packages around it do not count as imported by it."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        for other in imported(module, at_import):
            for new in with_packages(other) - with_packages(module) - seen:
                seen.add(new)
                if new in MODULES:
                    waiting.append(new)
    return seen


def test_every_room_has_its_directions() -> None:
    assert {room(name) for name in MODULES} == set(MAY_IMPORT)
    assert not set(MAY_IMPORT["engine"]) & {"methods", "data", "tracking"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_in_one_direction(name: str) -> None:
    own = room(name)
    others = {other for other in imported(name) if other.startswith("gift_vit.")}
    wrong = {other for other in others if room(other) not in MAY_IMPORT[own] | {own, "common"}}
    assert not wrong, f"{own} may import {sorted(MAY_IMPORT[own] | {'common'})}"
    assert own != DOORS or not {other for other in others if room(other) == DOORS}, "a door opens no other"


def test_there_is_no_circle() -> None:
    circles = {name for name in MODULES if name in reached(name, at_import=False)}
    assert not circles
    assert not {name for name in MODULES if "gift_vit.data.__main__" in imported(name)}


@pytest.mark.parametrize("name", LIGHT)
def test_what_is_told_and_looked_up_is_light(name: str) -> None:
    heavy = {other for other in reached(name, at_import=True) if other.split(".")[0] in HEAVY}
    assert not heavy


@pytest.mark.parametrize("name", MODULES | PLUGINS)
def test_what_is_installed_does_not_import_its_drivers(name: str) -> None:
    assert not {other.split(".")[0] for other in imported(name)} & {"experiments", "data_prep", "tests"}
    assert not {other for other in imported(name) if other.startswith("hydra_plugins")} or name in PLUGINS


def test_the_top_holds_doors_without_logic() -> None:
    doors = [file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]
    assert len(doors) <= 8
    long = {file.name: lines for file in doors if (lines := len(file.read_text().splitlines())) > 60}
    assert not long
    assert imported("gift_vit") == frozenset(), "the package alone loads nothing"


def test_whoever_builds_a_backbone_has_registered_the_shipped_one() -> None:
    assert "gift_vit.backbones.vit_mini" in imported("gift_vit.backbones.build", at_import=True)


def test_acceleration_names_no_method() -> None:
    kinds = "|".join(kind for kind in CONFIGS if kind not in {"full", "linear"})  # which are words of torch too
    named = {
        file.name: found
        for file in (PACKAGE / "acceleration").glob("*.py")
        if (found := re.findall(rf"\b({kinds})", file.read_text().replace("gift_vit", ""), re.IGNORECASE))
    }
    assert not named
