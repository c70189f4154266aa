"""GLUE's tasks as they are read: which split dev is, what val is, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.config import GlueConfig, TextColumnsConfig
from tests.text_models import glue_task, write

PAIR = {"columns": TextColumnsConfig(text="sentence1", pair="sentence2", label="label"), "classes": ["no", "yes"]}
SCORES = {"columns": TextColumnsConfig(text="sentence1", pair="sentence2", label="label"), "metric": "pearson"}


def read(root: Path, **options: Any) -> VisionDataset:
    return build_dataset(GlueConfig(name="glue_rte", benchmark="glue", root=str(root), **{**PAIR, **options}))


@pytest.mark.parametrize(("train", "val"), [(300, 100), (1500, 150), (21000, 2000)])
def test_val_is_a_tenth_of_train_within_bounds_and_stratified(tmp_path: Path, train: int, val: int) -> None:
    data = read(glue_task(tmp_path / "rte", "rte", {"train": train, "dev": 40}))
    sizes = {split: len(source) for split, source in data.splits.items()}
    assert sizes == {"train": train - val, "val": val, "test": 40}
    assert data.splits["val"].labels.mean() == pytest.approx(0.5, abs=0.5 / val + 1e-9)
    assert data.origins["val"].drawn == f"split off train: {val:,} of {train:,}, stratified, seed 0"
    told = {data.splits[split].where(index) for split in ("train", "val") for index in range(sizes[split])}
    assert len(told) == train


def test_a_part_of_train_is_drawn_before_val(tmp_path: Path) -> None:
    data = read(glue_task(tmp_path / "rte", "rte", {"train": 1500, "dev": 40}), train_size=400)
    assert {split: len(source) for split, source in data.splits.items()} == {"train": 300, "val": 100, "test": 40}
    assert data.splits["train"].labels.mean() == 0.5
    assert data.origins["train"].drawn == "400 of 1,500, seed 0"


def test_dev_is_val_where_the_best_epoch_is_chosen_on_it(tmp_path: Path) -> None:
    root = glue_task(tmp_path / "rte", "rte", {"train": 300, "dev": 40, "test": 9})
    chosen = read(root, dev="val")
    assert {split: len(source) for split, source in chosen.splits.items()} == {"train": 300, "val": 40}
    assert chosen.unlabelled is not None
    assert len(chosen.unlabelled) == 9
    clean, other = read(root), read(root, split_seed=1)
    assert clean.unlabelled is not None
    assert clean.fingerprint != other.fingerprint


def test_labels_that_are_numbers_stay_what_they_are(tmp_path: Path) -> None:
    root = glue_task(tmp_path / "stsb", "stsb", {"train": 300, "dev": 40})
    data = read(root, **SCORES, classes=[])
    stated = pq.read_table(root / "dev.parquet")["label"].to_pylist()
    np.testing.assert_array_equal(data.splits["test"].labels, np.asarray(stated, np.float32))
    assert (data.num_classes, data.class_names, data.is_regression) == (1, None, True)


@pytest.mark.parametrize(
    ("task", "row", "options", "told"),
    [
        ("rte", {"label": 2}, {}, "row 1: label 2 is none of glue_rte, expected 0 (no), 1 (yes)"),
        ("rte", {"label": -1}, {}, "row 1: label -1 is none of glue_rte"),
        ("stsb", {"label": 5.5}, {**SCORES, "classes": []}, "row 1: label 5.5 is none of glue_rte, expected 0 to 5"),
        ("stsb", {"label": float("nan")}, {**SCORES, "classes": []}, "row 1: label nan is none of glue_rte"),
        ("rte", {}, {"columns": TextColumnsConfig(text="question", label="label")}, "cannot read question, label of"),
    ],
)
def test_what_is_no_such_task_is_told(
    tmp_path: Path, task: str, row: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    root = glue_task(tmp_path / task, task, {"train": 300, "dev": 40})
    table = pq.read_table(root / "dev.parquet").to_pylist()
    write(root / "dev.parquet", [{**table[0], **row}, *table[1:]])
    with pytest.raises(ConfigError) as caught:
        read(root, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_text_is_one(tmp_path: Path) -> None:
    """QQP has such questions."""
    root = glue_task(tmp_path / "rte", "rte", {"train": 300, "dev": 40})
    table = pq.read_table(root / "dev.parquet").to_pylist()
    write(root / "dev.parquet", [{**table[0], "sentence2": ""}, *table[1:]])
    assert read(root).splits["test"][0][0] == (table[0]["sentence1"], "")


def test_data_that_is_not_prepared_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*glue.json; type: it"):
        read(tmp_path, prepare="type: it")


@pytest.mark.parametrize("options", [{"classes": []}, {"metric": "pearson"}])
def test_classes_and_numbers_exclude_each_other(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"name the classes, and none where dataset.metric is of numbers"):
        read(tmp_path, **options)
