"""The wheel, as an installer would unpack it. Its commands are real starts of Python, each of some seconds."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.warm import Ended, run_module

ROOT = Path(__file__).parent.parent
# what a run on digits has no use for; timm and scikit-learn would like to import some of it
UNUSED = {"wandb", "peft", "transformers", "sklearn", "scipy", "matplotlib", "optuna", "pandas"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents; building it takes some seconds."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("gift_vit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def command(installed: Path, folder: Path, *words: str, **env: Any) -> Ended:
    done = run_module(*words, cwd=folder, fresh=True, PYTHONPATH=str(installed), **env)
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_holds_configuration_types_and_weights(installed: Path) -> None:
    shipped = {
        path.relative_to(installed / "gift_vit/conf").as_posix() for path in (installed / "gift_vit/conf").rglob("*.yaml")
    }
    assert shipped == {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    for name in ("py.typed", "backbones/weights/vit_mini.safetensors", "backbones/weights/vit_mini.md"):
        assert (installed / "gift_vit" / name).is_file(), name
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"gift_vit", "data_prep", "hydra_plugins"}


def test_the_wheel_helps_and_prepares_data(installed: Path, tmp_path: Path) -> None:
    assert "\ndataset: cars, cifar10_1k, cub" in command(installed, tmp_path, "gift_vit.train", "--help").stdout
    assert "0 of 24 datasets are ready" in command(installed, tmp_path, "data_prep.status").stdout


def test_the_wheel_trains_from_an_empty_directory_and_imports_what_it_uses(installed: Path, tmp_path: Path) -> None:
    done = command(installed, tmp_path, "gift_vit.train", "debug=smoke", PYTHONPROFILEIMPORTTIME="1")
    [result] = tmp_path.rglob("result.json")
    assert '"git_sha": null' in result.read_text(), "the wheel was used, not the checkout"
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    packages = {name.partition(".")[0] for name in modules if "." in name}  # an import that is refused has no parts
    assert "torch" in packages
    assert not UNUSED & packages
