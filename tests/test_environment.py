"""What a run says of the checkout that it was made in."""

import subprocess
from pathlib import Path

import pytest

from gift_vit.common import environment


def git(folder: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_recipes_and_results_are_no_uncommitted_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = tmp_path / "conf/recipe"
    recipes.mkdir(parents=True)
    (recipes / "none.yaml").write_text("a: 1")
    (tmp_path / "gift.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "all")
    monkeypatch.setattr(environment, "_CHECKOUT", tmp_path)
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert environment.git_state() == (sha, False)
    (recipes / "cub_gift.yaml").write_text("chosen: 1")
    (recipes / "none.yaml").write_text("a: 2")
    chain = tmp_path / "experiments/mini/chain"
    chain.mkdir(parents=True)
    (chain / "table.md").write_text("made")
    (tmp_path / "my_images").mkdir()
    (tmp_path / "my_images/cat.jpg").write_text("a person's own")
    assert environment.git_state() == (sha, False)
    for other in (
        tmp_path / "conf/recipes.yaml",
        tmp_path / "gift.py",
        tmp_path / "sub/conf/recipe/x.yaml",
        tmp_path / "own.py",
    ):
        before = other.read_text() if other.exists() else None
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("changed")
        assert environment.git_state() == (sha, True), other
        other.unlink() if before is None else other.write_text(before)
    assert environment.git_state() == (sha, False)
