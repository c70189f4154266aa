"""What ``trainer.speed=auto`` settles on, by machine."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from gift_vit.acceleration import speed
from gift_vit.acceleration.speed import Work, settle_speed
from gift_vit.common import environment
from gift_vit.engine.config import TrainerConfig
from tests.acceleration.settings import configs

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


LONG = Work(images=5_994 * 100, gflop=34.0, cached=False)  # a ViT-B on CUB


def settled(device: torch.device, work: Work = LONG, **values: Any) -> TrainerConfig:
    return settle_speed(*configs(**values), device, work)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("avx512_bf16", "bf16"), ("amx_bf16 avx512f", "bf16"), ("asimd bf16", "bf16"), ("avx512f", "fp32"), ("", "fp32")],
)
def test_a_cpu_computes_in_bf16_where_it_has_the_units(flags: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "cpu_flags", lambda: set(flags.split()))
    trainer = settled(CPU, speed="auto")
    assert (trainer.precision, trainer.compile) == (precision, False)
    assert settled(CPU, speed="auto", compile=True).compile


@pytest.mark.parametrize(
    ("capability", "compiler", "expected"),
    [((9, 0), "/usr/bin/gcc", ("bf16", True)), ((8, 0), None, ("bf16", False)), ((7, 5), "/usr/bin/gcc", ("tf32", True))],
)
def test_a_gpu(capability: tuple[int, int], compiler: str | None, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(speed.shutil, "which", lambda _: compiler)
    trainer = settled(GPU, speed="auto", precision="tf32")
    assert (trainer.precision, trainer.compile) == expected


@pytest.mark.parametrize(
    ("images", "gflop", "cached", "compiles"),
    [
        (5_994 * 100, 34.0, False, True),
        (5_994 * 25, 34.0, False, False),
        (1_000 * 100, 34.0, False, False),
        (1_000 * 100, 34.0, True, True),  # the compiler has a cache
        (100 * 100, 34.0, True, False),
        (5_994 * 100, 0.1, False, False),  # small models have little to save
    ],
)
def test_a_gpu_compiles_where_the_images_repay_it(
    images: int, gflop: float, cached: bool, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(speed.shutil, "which", lambda _: "/usr/bin/gcc")
    work = Work(images, gflop, cached)
    assert settled(GPU, work, speed="auto").compile == compiles
    assert not settled(GPU, work, speed="auto", deterministic=True).compile


def test_the_work_of_a_forward_pass(tmp_path: Path) -> None:
    with torch.device("meta"):
        base = timm.create_model("vit_base_patch16_224")
    assert Work.of(base, 1, tmp_path).gflop == pytest.approx(34, abs=0.5)


def test_exact_leaves_what_is_given() -> None:
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        given, _ = configs(precision=precision, compile=True)
        assert settled(CPU, precision=precision, compile=True, speed="exact") == given


@pytest.mark.parametrize(
    ("cpuinfo", "name", "flags"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx512_bf16\n", "AMD EPYC", {"fpu", "avx512_bf16"}),
        ("processor : 0\nFeatures : fp asimd bf16\n", "", {"fp", "asimd", "bf16"}),
        ("", "", set()),
    ],
)
def test_what_linux_tells_of_the_processor(cpuinfo: str, name: str, flags: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.Path, "read_text", lambda _: cpuinfo)
    assert environment.cpu_flags() == flags
    assert environment.cpu_name() == name or not name


def test_another_system_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(environment.Path, "read_text", absent)
    assert environment.cpu_flags() == set()
    assert environment.cpu_name()
