import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("gift_vit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_configuration_types_and_weights(installed: Path) -> None:
    shipped = {
        path.relative_to(installed / "gift_vit/conf").as_posix() for path in (installed / "gift_vit/conf").rglob("*.yaml")
    }
    assert shipped == {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    for name in ("py.typed", "backbones/weights/vit_mini.safetensors", "backbones/weights/vit_mini.md"):
        assert (installed / "gift_vit" / name).is_file(), name
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"gift_vit", "data_prep", "hydra_plugins"}


def test_the_wheel_prepares_data(installed: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "data_prep.status"]
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=True)
    assert "0 of 24 datasets are ready" in done.stdout


def test_the_wheel_trains_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gift_vit.train", "debug=smoke"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    [result] = tmp_path.rglob("result.json")
    assert '"git_sha": null' in result.read_text(), "the wheel was used, not the checkout"
