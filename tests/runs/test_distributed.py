"""One run on two processes gives one process's numbers, and ends on all of them when it ends on one.

The processes are forks of this one that join as torchrun's do; torchrun itself is started once, in the slow suite. Tests of
several runs on two processes take over 3 s.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import gift_vit.engine.fit as fit_module
import gift_vit.engine.step as step_module
from gift_vit.common import cli, distributed
from gift_vit.common.errors import ConfigError
from gift_vit.common.files import write_text
from gift_vit.config import RunConfig
from gift_vit.runs.build import resolve_device
from gift_vit.runs.result import read_result
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from tests.runs.conftest import history
from tests.warm import Process, act_as, clean_environment

CALL = Call("python -m gift_vit.train", ["debug=smoke"])
SMALL = ["trainer.epochs=2"]
SECONDS = 120.0  # far more than any of these takes, far less than the patience of a process that waits for another

Configure = Callable[..., RunConfig]
Sabotage = Callable[[int], None]


def two_processes(action: Callable[[int], object]) -> tuple[list[int], list[str]]:
    """Run ``action(rank)`` in two processes; their exit codes (−9 for SIGKILL) and what each wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def act(rank: int) -> None:
        cli.quiet_other_processes()
        action(rank)

    with ExitStack() as stack:
        processes = []
        for rank in range(2):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = clean_environment(**{name: str(value) for name, value in names.items()})
            processes.append(stack.enter_context(Process(lambda rank=rank: act(rank), env=env)))
        ended = [process.wait(SECONDS) for process in processes]
    return [end.returncode for end in ended], [end.stderr for end in ended]


def run_on_two(cfg: RunConfig, sabotage: Sabotage | None = None) -> tuple[list[int], list[str]]:
    def action(rank: int) -> None:
        if sabotage is not None:
            sabotage(rank)
        sys.exit(cli.run_command(lambda: distributed.together(lambda: train_run(cfg, CALL) and None)))

    return two_processes(action)


def in_step(step: int, rank: int, act: Callable[[], None]) -> Sabotage:
    """Lets a process act before its update ``step``, counted from 0 over all epochs; the other one goes on."""

    def sabotage(own: int) -> None:
        original, calls = step_module._sum_over_processes, []

        def patched(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
            if len(calls) == step and own == rank:
                act()
            calls.append(1)
            original(loss, optimizer)

        setattr(step_module, "_sum_over_processes", patched)  # noqa: B010 - in a fork, that ends with it

    return sabotage


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def assert_same_numbers(mine: RunConfig, theirs: RunConfig) -> None:
    """To rounding, top-1 exactly."""
    first, second = (read_result(cfg.folder / "result.json").metrics for cfg in (mine, theirs))
    assert first.keys() == second.keys()
    for name, value in first.items():
        exact = value is None or "top1" in name
        assert value == (second[name] if exact else pytest.approx(second[name], rel=1e-5)), name
    for one, other in zip(history(mine), history(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    if mine.phase == "final":
        own, other = (Run.open(cfg.folder).predictions() for cfg in (mine, theirs))
        assert own.images == other.images
        np.testing.assert_array_equal(own.predicted, other.predicted)
        np.testing.assert_allclose(own.logits, other.logits, atol=1e-2)
    tensors, reference = (load_file(cfg.folder / "adapter.safetensors") for cfg in (mine, theirs))
    assert tensors.keys() == reference.keys()
    for name, tensor in reference.items():
        # Adam divides by the gradient's size: where that is rounding error, the update differs by up to one learning rate
        assert (tensors[name] - tensor).abs().max() < 2e-4 + 1e-3 * tensor.abs().max(), name


METHODS = {
    "gift": ["phase=final", "trainer.batch_size=111"],  # 9 × 111 + 1: the last batch has no image for the second process
    "gift_v1": ["trainer.batch_size=267", "trainer.grad_accumulation=2"],
    "lora": ["trainer.batch_size=267", "trainer.epochs=1", "trainer.precision=bf16"],
    "vpt_deep": ["trainer.batch_size=267", "trainer.workers=1"],
    "bitfit": ["trainer.batch_size=267"],
    "ssf": ["trainer.batch_size=267"],
}
UNLIKE = ("gift", "gift_v1", "lora", "vpt_deep")  # in what concerns processes; the others go through the same lines


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[] if method in UNLIKE else [pytest.mark.slow]) for method in METHODS]
)
def test_two_processes_give_the_numbers_of_one(configure: Configure, method: str) -> None:
    words = [*SMALL, f"method={method}", *METHODS[method]]
    alone, pair = configure(*words, "run_name=alone"), configure(*words, "run_name=pair")
    train_run(alone, CALL)
    assert run_on_two(pair)[0] == [0, 0]
    if "bf16" in METHODS[method][-1]:  # rounds coarsely, and products of other shapes otherwise
        assert history(pair)[-1]["train_loss"] == pytest.approx(history(alone)[-1]["train_loss"], rel=5e-3)
        return
    assert_same_numbers(pair, alone)
    result, reference = (read_result(cfg.folder / "result.json") for cfg in (pair, alone))
    assert (result.env["processes"], reference.env["processes"]) == (2, 1)
    assert result.params == reference.params
    assert {path.name for path in pair.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}


def interrupted_on_two(cfg: RunConfig) -> None:
    """In the second epoch, by a signal to one of them."""
    codes, (stderr, _) = run_on_two(cfg, in_step(4, rank=1, act=signalled(signal.SIGTERM)))
    assert (codes, "error" in stderr) == ([130, 130], False)
    assert {path.name for path in cfg.folder.iterdir()} == {"config.yaml", "last.ckpt", "metrics.jsonl", "train.log"}


def test_an_interrupted_run_goes_on_with_as_many_processes(configure: Configure) -> None:
    """With the same bits, and random numbers."""
    words = [*SMALL, "trainer.batch_size=267", "trainer.drop_path_rate=0.3"]
    whole, cut = (configure(*words, f"run_name={name}") for name in ("whole", "cut"))
    assert run_on_two(whole)[0] == [0, 0]
    interrupted_on_two(cut)
    assert run_on_two(cut)[0] == [0, 0]
    assert history(cut) == history(whole)
    tensors, reference = (load_file(cfg.folder / "adapter.safetensors") for cfg in (cut, whole))
    assert all(torch.equal(tensors[name], reference[name]) for name in reference)


def test_an_interrupted_run_goes_on_with_fewer_or_more_processes(configure: Configure) -> None:
    """Each draws random numbers of its own, so that there may be none."""
    words = [*SMALL, "trainer.batch_size=267", "trainer.drop_path_rate=0"]
    whole, fewer, more = (configure(*words, f"run_name={name}") for name in ("whole", "fewer", "more"))
    train_run(whole, CALL)
    interrupted_on_two(fewer)
    train_run(fewer, CALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "is_scored", lambda epoch, *_: signalled(signal.SIGINT)() if epoch == 1 else True)
        with pytest.raises(KeyboardInterrupt):
            train_run(more, CALL)
    assert run_on_two(more)[0] == [0, 0]
    assert_same_numbers(fewer, whole)
    assert_same_numbers(more, whole)


def test_processes_draw_different_masks(configure: Configure, tmp_path: Path) -> None:
    """Each time the same, and one process alone draws what it always has."""
    cfg = configure(*SMALL, "trainer.batch_size=800", "trainer.epochs=1")

    def note(rank: int) -> None:
        original = step_module._sum_over_processes

        def patched(*arguments: Any) -> None:
            write_text(tmp_path / f"draw{rank}", str(torch.initial_seed()))
            original(*arguments)

        setattr(step_module, "_sum_over_processes", patched)  # noqa: B010

    assert run_on_two(cfg, note)[0] == [0, 0]
    seeds = [int((tmp_path / f"draw{rank}").read_text()) for rank in (0, 1)]
    assert seeds[0] == cfg.seed
    assert seeds[1] not in {0, cfg.seed}


def one_line(codes: list[int], stderrs: list[str], code: int) -> str:
    """The only error line of two processes, written by the first."""
    assert codes == [code, code], stderrs
    lines = [line for line in stderrs[0].splitlines() if line.startswith("error")]
    assert (len(lines), stderrs[1]) == (1, ""), stderrs
    return lines[0]


def failure(cfg: RunConfig) -> dict[str, str]:
    return json.loads((cfg.folder / "failed.json").read_text())


def test_a_nan_loss_ends_all_with_one_line(configure: Configure) -> None:
    cfg = configure(*SMALL, "optim.lr=1e30")
    assert re.search(r"the loss became (nan|inf) in epoch \d, step \d", one_line(*run_on_two(cfg), code=1))
    assert "the loss became" in failure(cfg)["message"]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_all_with_its_line(configure: Configure, rank: int) -> None:
    def fail() -> None:
        raise ValueError("no such luck")

    cfg = configure(*SMALL)
    line = one_line(*run_on_two(cfg, in_step(2, rank, fail)), code=1)
    assert "ValueError: no such luck" in line
    assert "no such luck" in failure(cfg)["message"]
    assert "in fail" in failure(cfg)["traceback"], "the record shows where, in whichever process"


def test_an_unreadable_image_and_a_mistake_are_one_line(configure: Configure, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "images/train" / label).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (20, 20), (index, 0, 0)).save(tmp_path / f"images/train/{label}/{index}.png")
    words = [
        *SMALL,
        "dataset=folder",
        f"dataset.root={tmp_path / 'images'}",
        "dataset.val_fraction=0.25",
        "trainer.batch_size=4",
    ]
    cfg = configure(*words, "dataset.cache=off")
    broken = tmp_path / "images/train/a/3.png"
    broken.write_bytes(broken.read_bytes()[:-30])  # its header can be read, its pixels cannot
    assert f"cannot decode image {broken}" in one_line(*run_on_two(cfg), code=2)
    cached = configure(*words, "dataset.cache=disk", f"paths.cache_root={tmp_path / 'cache'}", "run_name=cached")
    assert f"cannot decode image {broken}" in one_line(*run_on_two(cached), code=2)
    assert failure(cached)["error"] == "ConfigError"
    rank = configure(*SMALL, "method.rank=99", "run_name=rank")
    assert "method.rank=99 is larger" in one_line(*run_on_two(rank), code=2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_leaves_none_waiting(configure: Configure, rank: int) -> None:
    cfg = configure(*SMALL)
    codes, stderrs = run_on_two(cfg, in_step(2, rank, signalled(signal.SIGKILL)))
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1)
    if rank == 1:
        assert "error: another process of this run is gone" in stderrs[0]
        assert "another process of this run is gone" in failure(cfg)["message"]
    assert run_on_two(cfg)[0] == [0, 0]
    assert not (cfg.folder / "failed.json").exists()
    codes, stderrs = run_on_two(cfg)
    assert codes == [0, 0], "finished already"


def test_a_sweep_or_a_misspelt_key_under_torchrun_is_refused_in_one_line(tmp_path: Path) -> None:
    def command(*words: str) -> Callable[[int], None]:
        return lambda _: act_as("gift_vit.train", (*words, "debug=smoke", f"paths.output_root={tmp_path}"))

    line = one_line(*two_processes(command("-m", "optim.lr=1e-3,1e-2")), code=2)
    assert "torchrun trains one run on several processes, no sweep" in line
    assert "optim.lrr" in one_line(*two_processes(command("optim.lrr=1")), code=2)


def test_every_process_has_a_cuda_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    processes = object.__new__(distributed._Processes)
    processes.size, processes.local_rank = 3, 1
    monkeypatch.setattr(distributed, "_processes", processes)
    assert [str(resolve_device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert chosen == [1, 1]
    with pytest.raises(ConfigError, match=r"trainer.device=cuda:0 is one device for 3 processes; give trainer.device=cuda"):
        resolve_device("cuda:0")
    processes.local_rank = 2
    with pytest.raises(ConfigError, match=r"this machine has 2 CUDA devices; start torchrun with --nproc-per-node=2"):
        resolve_device("auto")


@pytest.mark.slow
def test_torchrun(configure: Configure, tmp_path: Path) -> None:
    words = ["debug=smoke", "backbone.img_size=32", *SMALL, f"paths.output_root={tmp_path / 'outputs'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "gift_vit.train", *words, "run_name=pair"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished:") == 1
    alone = configure(*SMALL, "run_name=alone")
    train_run(alone, CALL)
    assert_same_numbers(configure(*SMALL, "run_name=pair"), alone)
