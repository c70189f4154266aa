"""Parquet files of encoded images and labels, as Hugging Face ``datasets`` writes them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

@dataclass
class ImageTable:
    images: list
    labels: np.ndarray
    class_names: list[str] | None


def read_table(files: list[Path]) -> ImageTable:
    images, labels, names = [], [], None
    for f in files:
        t = pq.read_table(f)
        images += t["image"].combine_chunks().field("bytes").to_pylist()
        labels.append(t["label"].to_numpy())
    return ImageTable(images, np.concatenate(labels), names)


def decode_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
