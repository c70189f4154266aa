"""All 19 tasks exported from datasets that TFDS wrote, compared with what TFDS's own data source reads for the same slices."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds

from data_prep.vtab.export import export
from data_prep.vtab.tasks import TASKS
from data_prep.vtab.tfds_origin import open_tfds
from tests.data_prep.tiny_tfds import TinyDataset

# The benchmark's cuts, worked out by hand for the sizes of the tiny datasets: val200 and test; train800 is train[:800].
_OWN, _REST, _DSPRITES = ("validation[:200]", "test"), ("train[1800:2000]", "test"), ("train[1600:1800]", "train[1800:]")
_SIXTY, _CLEVR, _NORB = ("train[900:1100]", "train[1200:]"), ("train[1800:2000]", "validation"), ("test[:200]", "test[210:]")
SLICES = {
    **dict.fromkeys(["cifar100", "caltech101", "svhn"], _REST),
    **dict.fromkeys(["dtd", "flowers102", "sun397", "patch_camelyon", "retinopathy", "dmlab", "kitti_distance"], _OWN),
    "pets": ("train[800:1000]", "test"),
    **dict.fromkeys(["eurosat", "resisc45"], _SIXTY),
    **dict.fromkeys(["clevr_count", "clevr_distance"], _CLEVR),
    **dict.fromkeys(["dsprites_location", "dsprites_orientation"], _DSPRITES),
    **dict.fromkeys(["smallnorb_azimuth", "smallnorb_elevation"], _NORB),
}


def clevr_distance(example: Mapping[str, Any]) -> int:
    """As the reference has it: the last threshold that is below the distance."""
    distance = min(coords[2] for coords in example["objects"]["pixel_coords"])
    return int(np.max(np.where(np.array([0, 8, 8.5, 9, 9.5, 10, 100]) - distance < 0)))


def kitti_distance(example: Mapping[str, Any]) -> int:
    """As the reference has it."""
    objects = example["objects"]
    vehicles = [place[2] for place, kind in zip(objects["location"], objects["type"], strict=True) if kind < 3]
    return int(np.max(np.where(np.array([-100, 8, 20, 999]) - min(vehicles, default=1000.0) < 0)))


LABELS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "clevr_count": lambda example: len(example["objects"]["shape"]) - 3,
    "clevr_distance": clevr_distance,
    "kitti_distance": kitti_distance,
    "dsprites_location": lambda example: int(np.floor(example["label_x_position"] / 2)),
    "dsprites_orientation": lambda example: int(np.floor(example["label_orientation"] / 2.5)),
    "smallnorb_azimuth": lambda example: example["label_azimuth"],
    "smallnorb_elevation": lambda example: example["label_elevation"],
}


@cache
def read_by_tfds(name: str, data_dir: Path, expression: str) -> list[dict[str, Any]]:
    """The examples of a slice through TFDS's own data source, images encoded."""
    builder = TASKS[name].builder
    full = f"{builder.name}/{builder.config}" if builder.config else builder.name
    source: Any = tfds.builder(f"{full}:{builder.version}", data_dir=str(data_dir))
    return list(source.as_data_source(split=expression, decoders={"image": tfds.decode.SkipDecoding()}))


@pytest.mark.parametrize("name", TASKS)
def test_export_holds_what_tfds_reads(name: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    task, tiny = TASKS[name], tiny_dataset(TASKS[name].builder.name)
    out = tmp_path / "vtab1k" / name
    meta = export(task, open_tfds(task.builder, tiny.data_dir, None, prepare=False), out, official=False)
    assert json.loads((out / "meta.json").read_text()) == meta
    assert (meta["source"], meta["origin"]["builder"], meta["num_classes"]) == ("tfds", task.builder.name, task.num_classes)
    for split, expression in zip(("train800", "val200", "test"), ("train[:800]", *SLICES[name]), strict=True):
        table = pq.read_table(out / f"{split}.parquet", page_checksum_verification=True)
        expected = read_by_tfds(name, tiny.data_dir, expression)
        assert table.num_rows == len(expected) == meta["splits"][split]["images"]
        check_rows(name, table.to_pylist(), expected, dict(tiny.examples[expression.partition("[")[0]]))
        ids = "\n".join(table["id"].to_pylist()).encode()
        assert meta["splits"][split]["ids_sha256"] == hashlib.sha256(ids).hexdigest()


def check_rows(
    name: str, rows: list[dict[str, Any]], expected: list[dict[str, Any]], put_in: Mapping[Any, dict[str, Any]]
) -> None:
    """Images and labels are those of TFDS's examples, in their order; ids lead to what TFDS was given."""
    label = LABELS.get(name, lambda example: example["label"])
    by_id = {str(key): example for key, example in put_in.items()}
    indices = [row["index"] for row in rows]
    assert indices == list(range(indices[0], indices[0] + len(rows)))
    for row, example in zip(rows, expected, strict=True):
        assert row["label"] == label(example)
        assert by_id[row["id"]]["image"] == example["image"]
        if name.startswith("dsprites"):
            written, stored = (np.asarray(Image.open(io.BytesIO(image))) for image in (row["image"], example["image"]))
            assert np.array_equal(written, np.where(stored == 1, 255, 0))
            assert set(np.unique(written)) == {0, 255}
        else:
            assert row["image"] == example["image"]


def test_labels_of_the_tiny_datasets_tell_the_rules_apart(tiny_dataset: TinyDataset) -> None:
    """All classes of the distance tasks occur, distances exactly on a bound among them, and images without objects."""
    clevr = read_by_tfds("clevr_distance", tiny_dataset("clevr").data_dir, "train[:800]")
    assert {clevr_distance(example) for example in clevr} == set(range(6))
    assert {8.0, 8.5, 9.0, 9.5, 10.0} <= {min(coords[2] for coords in example["objects"]["pixel_coords"]) for example in clevr}
    kitti = read_by_tfds("kitti_distance", tiny_dataset("kitti").data_dir, "train[:800]")
    assert {kitti_distance(example) for example in kitti} == set(range(4))
    assert {8.0, 20.0} <= {place[2] for example in kitti for place in example["objects"]["location"]}
    assert {0, 1, 2} <= {len(example["objects"]["type"]) for example in kitti}
