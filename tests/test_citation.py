"""CITATION.cff has what version 1.2.0 of the format requires, and says what the package says of itself."""

import re
from pathlib import Path

import yaml

from gift_vit import __version__

ROOT = Path(__file__).parents[1]


def test_the_citation_is_complete_and_true() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    assert (found["cff-version"], found["type"], found["title"]) == ("1.2.0", "software", "gift-vit")
    assert found["version"] == __version__
    assert f'license = "{found["license"]}"' in project
    paper = found["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    for author in (*found["authors"], *paper["authors"]):
        assert {"name"} <= author.keys() or {"family-names", "given-names"} <= author.keys()
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", paper["url"])
    assert isinstance(paper["year"], int)
    assert paper["url"] in (ROOT / "README.md").read_text()
