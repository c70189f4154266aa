"""Small datasets that tests make: Parquet files, image trees, and a valid config of each kind."""

import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from gift_vit.data.config import ParquetConfig, SplitListsConfig, TransformConfig

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def together(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All of an epoch."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def encode(pixels: Any, form: str = "PNG", **options: Any) -> bytes:
    """An image file of an array's uint8 pixels, or of a Pillow image."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, form, **options)
    return buffer.getvalue()


def _noise(seed: int, size: tuple[int, int] = (12, 9)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture
def noise() -> Callable[..., Image.Image]:
    """``noise(seed, size=(width, height))``: an RGB image that no other seed gives."""
    return _noise


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """``png(seed)``: the noise image of a seed, encoded without loss."""
    return lambda seed: encode(_noise(seed))


@pytest.fixture
def make_config() -> Callable[..., Any]:
    """``make_config(cls, **values)``: a config of the kind; what is not given is a valid value."""
    transform_config = TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0, resize=None)
    common = {"name": "some", "benchmark": "own", "transform": transform_config, "num_classes": None, "cache": "off"}
    own: dict[type, dict[str, Any]] = {
        ParquetConfig: {"files": {"train": ["train.parquet"]}},
        SplitListsConfig: {"image_root": "images", "splits_dir": "."},
    }

    def make(cls: type, **values: Any) -> Any:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        return cls(**{**common, "prepare": "ask the author", **own.get(cls, {}), **given})

    return make


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """``write_parquet(path, images, labels, **metadata)``: as Hugging Face ``datasets`` writes it."""

    def write(path: Path, images: list[bytes], labels: list[int], **metadata: str) -> Path:
        rows = [{"bytes": data, "path": f"photo_{index}.png"} for index, data in enumerate(images)]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(rows, struct), "label": pa.array(labels, pa.int64())})
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=3)
        return path

    return write


@pytest.fixture
def make_tree() -> Callable[..., Path]:
    """``make_tree(root, {"train/cat": 3, …}, extension="png")``: that many noise images per folder, no two alike."""

    def make(root: Path, folders: dict[str, int], extension: str = "png") -> Path:
        seeds = itertools.count()
        for folder, count in folders.items():
            (root / folder).mkdir(parents=True)
            for index in range(count):
                _noise(next(seeds)).save(root / folder / f"{index}.{extension}")
        return root

    return make


@pytest.fixture
def shared_data() -> Path:
    """The folder of data that is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data")
    return SHARED
