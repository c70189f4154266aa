"""Finished runs that the commands are called on, and the calls."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from gift_vit.backbones.build import input_statistics
from gift_vit.config.loader import load_config
from gift_vit.config.run_config import RunConfig
from gift_vit.data.base import VisionDataset
from gift_vit.data.config import TransformConfig
from gift_vit.data.transforms import ImageTransform, InputStatistics, build_eval_transform
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run
from tests.conf.files import composed

Runs = dict[str, Path]
PLACED = ["dataset.check_duplicates=false", "dataset.cache=off", "protocol.final_train.fgvc=train"]
ALTERED = {"rank": ["method.rank=3"], "linear": ["method=linear"], "search": ["phase=search"], "placed": PLACED}


class Ended(NamedTuple):
    """A command that ended: its exit code, what it printed, and the last line on stderr."""

    code: int
    printed: str
    error: str


Command = Callable[..., Ended]


@pytest.fixture
def call(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls a command of ``gift_vit.explain`` in this process, as its words on the command line do, on the CPU."""

    def started(name: str, *words: object) -> Ended:
        code = command(import_module(f"gift_vit.explain.{name}"), *map(str, words), "device=cpu")
        streams = capsys.readouterr()
        return Ended(code, streams.out, (streams.err.splitlines() or [""])[-1])

    return started


def compose(root: Path, *words: str) -> RunConfig:
    shared = ["debug=smoke", "phase=final", f"paths.output_root={root}", "trainer.epochs=1", "optim.warmup_epochs=0"]
    return load_config(composed(*shared, *words))


def train(root: Path, *words: str) -> Path:
    """The folder of a finished run of one epoch."""
    cfg = compose(root, *words)
    train_run(cfg, Call("python -m gift_vit.train", []))
    return cfg.folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two seeds and another schema on digits, a copy of each, and copies of the first that say they are something else."""
    root = tmp_path_factory.mktemp("outputs")
    words = {"zero": ["seed=0"], "one": ["seed=1"], "gelu": ["method=gift_gelu"]}
    folders = {name: train(root, f"run_name={name}", *own) for name, own in words.items()}
    for name in ("zero", "gelu"):
        folders[f"{name} again"] = Path(shutil.copytree(folders[name], root / f"{name}_again"))
    for name, own in ALTERED.items():
        folders[name] = Path(shutil.copytree(folders["zero"], root / name))
        values = compose(root, f"run_name={name}", *own).values
        (folders[name] / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    return folders


@cache
def opened(folder: Path) -> tuple[VisionDataset, nn.Module, ImageTransform]:
    """A run's data, its model and its evaluation transform."""
    run = Run.open(folder)
    model = run.model()
    return run.data(), model, build_eval_transform(run.config.dataset.transform, input_statistics(model))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_images(count: int = 2, size: int = 160) -> Tensor:
    """Images of ``tiny_vit``'s size, in float64."""
    return noise(count, 3, size, size, seed=1)


def watched(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into a layer and what comes out of it."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *hooked: seen.append((hooked[1][0], hooked[2])))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def write_table(file: Path, columns: str, rows: Iterable[Sequence[object]]) -> None:
    """A Parquet file of rows; the columns' names are words of one string."""
    values = zip(*rows, strict=True)
    pq.write_table(pa.table({name: list(own) for name, own in zip(columns.split(), values, strict=True)}), file)


def drawn(transform: ImageTransform, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """What a model sees of a white box (left, top, width, height) in a black picture (width, height), (64, 64)."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
    return transform.finish(transform.prepare(Image.fromarray(picture)))[0]


def eval_transform(crop_ratio: float | None, interpolation: str = "bilinear") -> ImageTransform:
    """Of evaluation, for a model of 64 × 64 pixels."""
    stats = InputStatistics(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation)
    return build_eval_transform(TransformConfig(crop_ratio, False, 0.0, None), stats)
