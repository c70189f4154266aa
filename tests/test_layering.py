"""Which room may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gift_vit"
# room → rooms of gift_vit it must not import
FORBIDDEN = {
    "engine": {"acceleration", "parallel", "methods", "data", "tracking", "results", "backbones", "config", "run"},
    "methods": {"acceleration", "engine", "data", "tracking", "results", "backbones", "config", "run"},
    "data": {"engine", "methods", "tracking", "results", "backbones", "config", "run"},
    "tracking": {"engine", "methods", "data", "results", "backbones", "config", "run"},
    "backbones": {"engine", "methods", "tracking", "results", "config", "run"},
    "results": {"engine", "methods", "data", "tracking", "backbones", "config", "run"},
    "acceleration": {"data", "tracking", "results", "backbones", "explain", "parallel", "config", "run"},
    "parallel": {"explain", "results"},
    "explain": {"engine", "tracking", "results", "backbones", "config", "run"},
}


def imported(file: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_in_one_direction(room: str) -> None:
    # a room's commands are entry points, as train.py is
    files = [file for file in (PACKAGE / room).glob("*.py") if '__name__ == "__main__"' not in file.read_text()]
    assert len(files) >= 2
    for file in files:
        wrong = {name for name in imported(file) if any(name.startswith(f"gift_vit.{other}") for other in FORBIDDEN[room])}
        assert not wrong, f"{file.name} imports {wrong}"


def test_every_room_is_covered() -> None:
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms == set(FORBIDDEN)


def test_the_package_does_not_import_its_drivers() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for file in files:
        assert not {name for name in imported(file) if name.split(".")[0] in {"experiments", "data_prep", "tests"}}, file


def test_importing_the_package_alone_loads_nothing_heavy() -> None:
    assert imported(PACKAGE / "__init__.py") == set()
