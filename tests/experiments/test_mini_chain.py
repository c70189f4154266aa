"""``make mini-chain``: what is packed of a method on a task, and what is made again."""

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.pages import ROOT, start_make

CELL = "outputs/mini/runs/tiny_mammals/vpt_deep.tar.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout's folder with two runs of one cell."""
    for phase in ("search", "final"):
        run = tmp_path / f"outputs/chain/{phase}/tiny_mammals/vpt_deep/vit_mini/clean_seed0"
        run.mkdir(parents=True)
        for name in ("result.json", "config.yaml", "metrics.jsonl", "train.log"):
            (run / name).write_text(f"data_root: {tmp_path}/data\n")
        (run / "predictions.parquet").write_bytes(f"\0{tmp_path}/".encode())  # binary: left as it is
        (run / "adapter.safetensors").write_bytes(bytes(1000))
        (run.parent / ".clean_seed0.lock").touch()
    return tmp_path


def make(folder: Path, *words: str, failing: str = "nothing") -> list[str]:
    """Start make; the modules that it has started."""
    return [line.split()[1] for line in start_make(folder, "DATA=data", *words, failing=failing)]


def test_a_cell_is_packed_without_paths_logs_and_the_weights_of_searches(folder: Path) -> None:
    assert make(folder, CELL) == ["gift_vit.train", "experiments.select", "gift_vit.train", "gift_vit.verify"]
    with tarfile.open(folder / CELL) as packed:
        files = {member.name: packed.extractfile(member) for member in packed if member.isfile()}
        texts = {name: file.read() for name, file in files.items() if file is not None}
    run = "tiny_mammals/vpt_deep/vit_mini/clean_seed0"
    kept = ("result.json", "config.yaml", "metrics.jsonl", "predictions.parquet")
    assert set(texts) == {f"{phase}/{run}/{name}" for phase in ("search", "final") for name in kept} | {
        f"final/{run}/adapter.safetensors"
    }
    assert not (folder / "outputs/chain/cell/tiny_mammals/vpt_deep").exists()
    for name, text in texts.items():
        if "predictions" not in name and "adapter" not in name:
            assert text == b"data_root: data\n", name


def test_weights_of_full_fine_tuning_are_not_packed(folder: Path) -> None:
    (folder / "outputs/chain/final/tiny_mammals/vpt_deep/vit_mini/clean_seed0/adapter.safetensors").write_bytes(bytes(2 << 20))
    make(folder, CELL)
    with tarfile.open(folder / CELL) as packed:
        assert not [name for name in packed.getnames() if name.endswith(".safetensors")]


def test_a_packed_cell_is_not_made_again(folder: Path) -> None:
    make(folder, CELL)
    words = ("METHODS=vpt_deep", "MINI=tiny_mammals")
    assert make(folder, "mini-chain", *words) == ["experiments.tables"] * 3 + ["experiments.report"]
    assert not (folder / "outputs/packed").exists()  # or `root=outputs` would find its runs twice
    (folder / CELL).unlink()
    assert "gift_vit.train" in make(folder, "mini-chain", *words)


def test_a_cell_that_does_not_verify_is_not_packed(folder: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        make(folder, CELL, failing="gift_vit.verify")
    assert not (folder / CELL).exists()


def test_the_ablation_is_made_of_cells_too(folder: Path) -> None:
    for name in ("rank1", "all"):
        for phase in ("search", "final"):
            run = folder / f"outputs/ablation/{name}/{phase}/tiny_vehicles/gift/vit_mini/clean_seed0"
            run.mkdir(parents=True)
            (run / "result.json").write_text("{}")
    settings = "SETTINGS=rank1:method.rank=1 all:method.target_modules=[attn.qkv,attn.proj]"
    cell = ["gift_vit.train", "experiments.select", "gift_vit.train", "gift_vit.verify"]
    assert make(folder, "mini-ablation", settings) == 2 * cell + ["experiments.tables"]
    assert make(folder, "mini-ablation", settings) == ["experiments.tables"]


@pytest.mark.parametrize(("variable", "group"), [("METHODS", "method"), ("MINI", "dataset")])
def test_methods_and_tasks_are_known(variable: str, group: str) -> None:
    [names] = re.findall(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(names.split()) >= 5
    assert [name for name in names.split() if not (ROOT / f"conf/{group}/{name}.yaml").is_file()] == []
