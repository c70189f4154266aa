"""Whole runs and epochs on a GPU: bits of repeats and resumes, torchrun, what is done with a finished run, the table."""

import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from gift_vit.backbones.vit_mini import WEIGHTS_FILE
from gift_vit.data.base import VisionDataset
from gift_vit.data.config import TransformConfig
from gift_vit.data.loaders import EvalLoader, TrainLoader
from gift_vit.data.table import TableEvalBatches, TableTrainBatches, open_table
from gift_vit.data.transforms import build_eval_transform, build_train_transform
from gift_vit.engine.fit import _train_epoch
from gift_vit.engine.observer import Observer
from gift_vit.engine.state import Precision, Schedule, build_optimizer
from gift_vit.engine.step import build_step
from gift_vit.tracking.progress import Progress
from tests.data.conftest import make_config
from tests.data.test_cache import CROP, STATS, TF1, data
from tests.data.test_table import assert_same, cached
from tests.engine.test_fit import optim, trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
__all__ = ["data", "make_config"]  # fixtures

WORDS = ("experiment=demo", "method=gift", "phase=final", "optim.lr=1e-2", "trainer.device=cuda", "trainer.precision=bf16")
WORDS += ("trainer.drop_path_rate=0.1", "run_name=run")
Command = list[str]


def command(out: Path, *words: str) -> Command:
    return [sys.executable, "-m", "gift_vit.train", *WORDS, f"paths.output_root={out}", *words]


def call(words: Command) -> str:
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def folder_of(out: Path) -> Path:
    return out / "final/digits/gift/vit_mini/run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a deterministic run of 40 epochs."""
    out = tmp_path_factory.mktemp("finished")
    call(command(out, "trainer.deterministic=true", "trainer.epochs=40"))
    return folder_of(out)


def test_what_was_used_is_in_the_record(finished: Path) -> None:
    record = json.loads((finished / "result.json").read_text())
    used = record["env"]["acceleration"]
    assert used["step_graph"]
    assert used["deterministic"]
    assert used["data_on_device"]
    assert used["frozen_in_bf16"]
    assert used["patches_by_product"]
    assert record["metrics"]["test_top1"] > 85


def test_repeated_and_killed_and_resumed_it_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    words = command(tmp_path, "trainer.deterministic=true", "trainer.epochs=40")
    folder, deadline = folder_of(tmp_path), time.monotonic() + 100
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "metrics.jsonl").is_file() or len((folder / "metrics.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "result.json").exists()
    call(words)
    assert "resumed after" in (folder / "train.log").read_text()
    found, expected = (load_file(own / "adapter.safetensors") for own in (folder, finished))
    for name, tensor in expected.items():  # the files differ in the order of their metadata
        assert torch.equal(found[name], tensor), name
    losses = [
        [json.loads(line)["train_loss"] for line in (own / "metrics.jsonl").read_text().splitlines()]
        for own in (folder, finished)
    ]
    assert losses[0] == losses[1]


def test_under_torchrun_with_one_process(tmp_path: Path) -> None:
    python, *rest = command(tmp_path, "trainer.epochs=2")
    call([python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", *rest])
    assert (folder_of(tmp_path) / "result.json").is_file()


OF_ONE = """
import torch
from gift_vit.common import distributed

with distributed._joined():
    device = distributed.own_device(torch.device("cuda"))
    sums = torch.ones(3, device=device)
    distributed.sum_over_processes(sums)
    print(device, sums.tolist(), distributed.gather("a"))
"""


def test_a_group_of_one_process_sums_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one process has no group: what several call is called here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    assert call([sys.executable, "-c", OF_ONE]).strip() == "cuda:0 [1.0, 1.0, 1.0] ['a']"


def test_evaluate_merge_and_explain(finished: Path, tmp_path: Path) -> None:
    top1 = json.loads((finished / "result.json").read_text())["metrics"]["test_top1"]
    said = call([sys.executable, "-m", "gift_vit.evaluate", f"run={finished}", "device=cuda"])
    assert float(said.split("top-1 ")[1].split(" ")[0]) == pytest.approx(top1, abs=0.3)
    merged = tmp_path / "merged.safetensors"
    call([sys.executable, "-m", "gift_vit.merge", f"run={finished}", f"out={merged}"])
    found, backbone = load_file(merged), load_file(WEIGHTS_FILE)
    for name in ("blocks.0.attn.qkv.weight", "blocks.5.mlp.fc1.weight", "blocks.5.mlp.fc2.bias"):
        assert torch.equal(found[name], backbone[name].float()), "what was not adapted is the file's, to the bit"
    assert not torch.equal(found["blocks.5.attn.proj.weight"], backbone["blocks.5.attn.proj.weight"].float())
    call([sys.executable, "-m", "gift_vit.explain", f"run={finished}", f"out={tmp_path / 'maps'}"])
    assert list((tmp_path / "maps").glob("*.png"))


class Unasked(Observer):
    """From the first update of an epoch to its last, what waits for the GPU is an error."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0

    def step_done(self, loss: Tensor | None, lr: float, images: int) -> None:
        self.done += 1
        torch.cuda.set_sync_debug_mode("default" if self.done % self.steps == 0 else "error")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_an_epoch_asks_the_gpu_for_nothing(data: VisionDataset, tmp_path: Path) -> None:
    """Neither pixels, learning rate and step nor the bar, which shows a loss as soon as one is known."""
    gpu = torch.device("cuda", 0)
    table = open_table(cached(data, "trainval", CROP, tmp_path), gpu)
    assert table is not None
    batches = TableTrainBatches(table, build_train_transform(CROP, STATS), 1, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * STATS.input_size**2, data.num_classes)).to(gpu)
    optimizer = build_optimizer(model, optim())
    step, _ = build_step(model, optimizer, Precision("fp32", gpu), trainer(batch_size=1))
    schedule, watched = Schedule(optimizer, optim(), 2, len(batches)), Unasked(len(batches))
    try:
        with Progress(Console(file=io.StringIO(), force_terminal=True), itertools.count().__next__) as progress:
            for epoch in range(2):
                progress.epoch_started(epoch, 2, batches.num_images)
                _, _, steps = _train_epoch(step, batches, epoch, schedule, 1, [watched, progress])
                assert steps == 75, "more than two windows of losses"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.captured


@pytest.mark.parametrize("cfg", [CROP, TF1])
def test_a_table_gives_the_pixels_of_the_loader(data: VisionDataset, tmp_path: Path, cfg: TransformConfig) -> None:
    gpu = torch.device("cuda", 0)
    source, transform = cached(data, "trainval", cfg, tmp_path), build_train_transform(cfg, STATS)
    table = open_table(source, gpu)
    assert table is not None
    batches, loader = TableTrainBatches(table, transform, 16, 3), TrainLoader(source, transform, 16, 0, 3, gpu)
    assert assert_same(batches.epoch(1), loader.epoch(1)) == 5
    looking = build_eval_transform(cfg, STATS)
    assert assert_same(TableEvalBatches(table, looking, 32), EvalLoader(source, looking, 32, 0, gpu)) == 3
