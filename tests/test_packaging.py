"""The wheel, as an installer would unpack it. Its commands are real starts of Python, each of some seconds."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.test_commands import COMMANDS
from tests.warm import Ended, clean_environment, run_module

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
    for name in (
        "py.typed",
        *(f"backbones/weights/{n}{e}" for n in ("vit_mini", "vit_mini_v2") for e in (".safetensors", ".md")),
    ):
        assert (installed / "gift_vit" / name).is_file(), name
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"gift_vit", "hydra_plugins"}, "no name that another package may have"
    assert not list(installed.rglob("*.pyc"))
    published = "experiments/published.csv"
    assert (installed / "gift_vit/installed" / published).read_bytes() == (ROOT / published).read_bytes()


# what an installer makes commands of, each in a fork of one process that has imported what all of them do
SCRIPTS = """
import os, sys
from importlib.metadata import distribution
import gift_vit.config, gift_vit.runs.run, gift_vit.sweeps.plan
scripts = {script.name: script for script in distribution("gift_vit").entry_points}
for name, words in SPOKEN or [(name, ["--help"]) for name in scripts]:
    print(f"<{name}>", flush=True)
    if os.fork() == 0:
        sys.argv = [name, *words]
        sys.exit(scripts[name].load()())
    os.wait()
"""


def scripts(installed: Path, folder: Path, spoken: dict[str, list[str]]) -> dict[str, str]:
    """What console scripts say to their words; of all to --help, where there are none."""
    done = subprocess.run(
        [sys.executable, "-c", f"SPOKEN = {[*spoken.items()]}\n{SCRIPTS}"],
        cwd=folder,
        env=clean_environment(PYTHONPATH=str(installed)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    parts = re.split(r"^<(gift-vit-[\w-]+)>$", done.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


OF_CHECKOUTS = {"bench", "bench-end-to-end", "bench-data", "demo", "demo-text", "pretrain-mini"}


def test_every_command_has_a_script_that_helps(installed: Path, tmp_path: Path) -> None:
    """Some thirty commands, each in a process of its own, and the wheel's building: over ten seconds."""
    names = {re.sub("[._]", "-", re.sub(r"^(gift_vit|experiments)\.", "", name)) for name in COMMANDS}
    told = scripts(installed, tmp_path, {})
    assert set(told) == {f"gift-vit-{name}" for name in names - OF_CHECKOUTS}
    for name, text in told.items():
        assert re.search(rf"{name}|python -m gift_vit\.", text), text
        assert not re.search(r"Traceback|python -m (?!gift_vit\.)", text), text


def test_scripts_advise_what_can_be_typed(installed: Path, tmp_path: Path) -> None:
    old = ROOT / "tests/runs/old_run"
    spoken = {
        "gift-vit-data-prep-status": [],
        "gift-vit-data-prep-fgvc": ["nabirds"],
        "gift-vit-train": ["dataset=vtab_dtd", "phase=final"],
        "gift-vit-tables": [f"root={old}"],
        "gift-vit-report": [f"root={old}"],
        "gift-vit-select": [f"root={old}", "out=recipe"],
    }
    told = scripts(installed, tmp_path, spoken)
    assert "gift-vit-data-prep-vtab dtd" in told["gift-vit-data-prep-status"]
    assert told["gift-vit-data-prep-fgvc"].count("type: gift-vit-data-prep-fgvc nabirds") == 2
    assert "choose one with gift-vit-select" in told["gift-vit-train"]
    assert "type: gift-vit-data-prep-vtab dtd" in told["gift-vit-train"]
    assert "| GIFT |" in told["gift-vit-tables"]
    assert "outputs/report.html: 2 runs done" in told["gift-vit-report"]
    assert "# Chosen by gift-vit-select for lora" in (tmp_path / "recipe/digits_lora.yaml").read_text()


def test_the_wheel_trains_from_an_empty_directory_and_imports_what_it_uses(installed: Path, tmp_path: Path) -> None:
    done = command(installed, tmp_path, "gift_vit.train", "debug=smoke", PYTHONPROFILEIMPORTTIME="1")
    [result] = tmp_path.rglob("result.json")
    assert '"git_sha": null' in result.read_text(), "the wheel was used, not the checkout"
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    packages = {name.partition(".")[0] for name in modules if "." in name}  # an import that is refused has no parts
    assert "torch" in packages
    assert not UNUSED & packages
