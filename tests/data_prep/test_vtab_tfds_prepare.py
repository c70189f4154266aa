"""Having TFDS prepare a builder, by code of its own as far as that runs without TensorFlow."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds

from data_prep.vtab import tfds_prepare
from data_prep.vtab.records import tfds_order
from data_prep.vtab.tasks import BUILDERS
from data_prep.vtab.tfds_origin import open_tfds
from gift_vit.common.errors import ConfigError, RunError
from tests.data_prep.original_files import picture
from tests.data_prep.tiny_tfds import TinyDataset

MANUAL = {
    "resisc45": "NWPU-RESISC45/airplane/airplane_001.jpg",
    "diabetic_retinopathy_detection": "trainLabels.csv",
    "sun397": "SUN397.tar.gz and Partitions.zip into ",
    "kitti": "data_object_image_2.zip",
}


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS needs none for the tiny datasets."""
    monkeypatch.setattr(tfds_prepare, "_has_tensorflow", lambda: True)


@pytest.mark.parametrize("name", BUILDERS)
def test_without_tensorflow_the_steps_are_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_prepare, "_has_tensorflow", lambda: False)
    with pytest.raises(ConfigError) as caught:
        open_tfds(BUILDERS[name], tmp_path, tmp_path / "by hand")
    message = str(caught.value)
    assert f"no prepared {name} found below {tmp_path}" in message
    assert "pip install 'gift-vit[vtab]'" in message
    assert "\n" not in message
    assert MANUAL.get(name, "") in message
    assert (str(tmp_path / "by hand") in message) == (name in {*MANUAL, "eurosat"})
    assert list(tmp_path.iterdir()) == []


def test_tfds_prepares_array_records_once(
    tensorflow: None, tiny_dataset: TinyDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = tiny_dataset("eurosat").examples["train"]
    calls = []

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        calls.append(dl_manager._manual_dir)
        return {"train": iter(examples)}

    monkeypatch.setattr(tfds.builder_cls("eurosat"), "_split_generators", split_generators)
    for _ in range(2):
        origin = open_tfds(BUILDERS["eurosat"], tmp_path / "new", tmp_path / "by hand")
        assert origin.keys("train") == tfds_order("train", [key for key, _ in examples])
        assert origin.describe()["file_format"] == "array_record"
    assert [str(call) for call in calls] == [str(tmp_path / "by hand")]
    assert (tmp_path / "new/eurosat/rgb/2.0.0/dataset_info.json").is_file()


@pytest.mark.parametrize("content", [None, "NWPU-RESISC45/NWPU-RESISC45/airplane"])
def test_what_tfds_says_is_one_line_with_the_steps(content: str | None, tensorflow: None, tmp_path: Path) -> None:
    if content:
        (tmp_path / "by hand" / content).mkdir(parents=True)
    with pytest.raises(RunError, match=r"TFDS could not prepare resisc45: .*unpack NWPU-RESISC45\.rar so that ") as caught:
        open_tfds(BUILDERS["resisc45"], tmp_path, tmp_path / "by hand")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "resisc45/3.0.0").exists()


def test_a_broken_folder_is_not_taken_for_prepared(tensorflow: None, tmp_path: Path) -> None:
    (tmp_path / "dtd/3.0.1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no prepared dtd found: .*dtd/3\.0\.1/dataset_info\.json does not exist; .*remove"):
        open_tfds(BUILDERS["dtd"], tmp_path, None)


def test_caltech_is_split_in_the_order_of_names(tensorflow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS's own code draws from folders whose listings come in two orders; the result is known from numpy alone."""
    folders = {name: [f"image_{index:04d}.jpg" for index in range(1, 41)] for name in ("Faces", "ant", "bass")}
    for folder, files in folders.items():
        (tmp_path / "archive/101_ObjectCategories" / folder).mkdir(parents=True)
        for file in files:
            (tmp_path / "archive/101_ObjectCategories" / folder / file).write_bytes(picture(0))

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
        sources = {"train": True, "test": False}
        return {
            split: self._generate_examples(str(tmp_path / "archive"), is_train_split=flag) for split, flag in sources.items()
        }

    monkeypatch.setattr(tfds.builder_cls("caltech101"), "_split_generators", split_generators)
    drawn = np.random.RandomState(1234)
    expected = {f"{folder}/{file}" for folder, files in folders.items() for file in drawn.choice(files, 30, replace=False)}
    for order in (False, True):
        listed_by_tensorflow(monkeypatch, reverse=order)
        origin = open_tfds(BUILDERS["caltech101"], tmp_path / str(order), None)
        assert set(origin.keys("train")) == expected
        assert len(origin.keys("test")) == 3 * 40 - 3 * 30


def test_listings_are_sorted_only_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    listed_by_tensorflow(monkeypatch, reverse=True)
    before = vars(tfds_prepare._gfile()).copy()
    with suppress(KeyError), tfds_prepare.sorted_listings():
        assert vars(tfds_prepare._gfile()) != before
        raise KeyError
    assert vars(tfds_prepare._gfile()) == before


def listed_by_tensorflow(monkeypatch: pytest.MonkeyPatch, reverse: bool) -> None:
    """As much of tf.io.gfile as Caltech-101's builder uses, with listings by name or the other way round."""
    gfile = SimpleNamespace(listdir=lambda path: sorted(os.listdir(path), reverse=reverse), isdir=os.path.isdir)
    gfile.walk = lambda top, listdir=gfile.listdir: iter([(top, [], listdir(top))])
    monkeypatch.setattr(tfds_prepare, "_gfile", lambda: gfile)
    module = sys.modules[tfds.builder_cls("caltech101").__module__]
    monkeypatch.setattr(module, "tf", SimpleNamespace(io=SimpleNamespace(gfile=gfile)))
