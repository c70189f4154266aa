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


def use_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), missing: str = "") -> None:
    """A GPU of a compute capability, and a C compiler, Python's headers and Triton but for what is missing."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(speed.shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    monkeypatch.setattr(speed, "find_spec", lambda name: None if name == missing else object())
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: is_file(path) if path.suffix != ".h" else path.name != missing)


LONG = Work(images=5_994 * 100, gflop=34.0, cached=False)  # a ViT-B on CUB


def settled(device: torch.device, work: Work = LONG, **values: Any) -> TrainerConfig:
    return settle_speed(*configs(**values), device, work)[0]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize(("device", "speed"), [(CPU, "auto"), (CPU, "exact"), (GPU, "exact")])
def test_what_is_given_stays_on_a_cpu_and_where_it_is_asked_for(device: torch.device, speed: str, precision: str) -> None:
    for compiled in (True, False):
        given, _ = configs(precision=precision, compile=compiled)
        trainer, compute = settle_speed(*configs(precision=precision, compile=compiled, speed=speed), device, LONG)
        assert (trainer, compute.speed) == (given, "exact")


@pytest.mark.parametrize(
    ("capability", "missing", "precision", "expected"),
    [
        ((9, 0), "", "tf32", ("bf16", True)),
        ((9, 0), "", "fp16", ("fp16", True)),  # chosen by a person
        ((8, 0), "gcc", "fp32", ("bf16", False)),
        ((8, 0), "triton", "fp32", ("bf16", False)),
        ((8, 0), "Python.h", "fp32", ("bf16", False)),
        ((7, 5), "", "tf32", ("tf32", True)),
        ((6, 1), "", "fp32", ("fp32", False)),
    ],
)
def test_a_gpu(
    capability: tuple[int, int], missing: str, precision: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpu(monkeypatch, capability, missing)
    trainer = settled(GPU, speed="auto", precision=precision)
    assert (trainer.precision, trainer.compile) == expected
    assert settled(GPU, speed="auto", precision=precision, compile=True).compile


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
    use_gpu(monkeypatch)
    work = Work(images, gflop, cached)
    assert settled(GPU, work, speed="auto").compile == compiles
    assert not settled(GPU, work, speed="auto", deterministic=True).compile


def test_the_work_of_a_forward_pass(tmp_path: Path) -> None:
    with torch.device("meta"):
        bases = [timm.create_model(f"{name}_224") for name in ("vit_base_patch16", "beit_base_patch16")]
        rotary = timm.create_model("vit_base_patch16_dinov3", img_size=224)
    assert [Work.of(base, 1, tmp_path).gflop for base in (*bases, rotary)] == pytest.approx([34, 34, 34], abs=1)
    assert Work.of(torch.nn.Linear(2, 2), 1, tmp_path).gflop == 0


@pytest.mark.parametrize(
    ("cpuinfo", "name", "vendor"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n", "AMD EPYC", "AuthenticAMD"),
        ("processor : 0\nFeatures : fp asimd bf16\n", None, ""),
    ],
)
def test_what_linux_tells_of_the_processor(
    cpuinfo: str, name: str | None, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.Path, "read_text", lambda _: cpuinfo)
    assert (environment.cpu_name() == name) if name else environment.cpu_name()
    assert environment.cpu_vendor() == vendor


def test_another_system_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(environment.Path, "read_text", absent)
    assert environment.cpu_vendor() == ""
    assert environment.cpu_name()
