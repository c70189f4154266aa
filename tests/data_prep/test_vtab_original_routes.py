"""The original route against TFDS: its builders' own code on the same files, and the datasets it writes from them."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import hashing
from tensorflow_datasets.image_classification import diabetic_retinopathy_detection

from data_prep.vtab.original import names, open_original
from data_prep.vtab.original.files import FILES
from data_prep.vtab.original.retinopathy import prepare as prepare_eye
from data_prep.vtab.tasks import BUILDERS, TASKS
from data_prep.vtab.tfds_origin import open_tfds
from tests.data_prep.original_files import WRITERS, accept_small_files, dmlab, eye
from tests.data_prep.tfds_examples import builder_of, encoded, generate
from tests.data_prep.tiny_tfds import prepare

# DMLab's builder parses its records with TensorFlow
WITHOUT_TENSORFLOW = sorted(set(WRITERS) - {"dmlab"})


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


def tasks_of(name: str) -> list[Any]:
    return [task for task in TASKS.values() if task.builder.name == name]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accept_small_files(monkeypatch)
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_both_routes_give_the_same_examples(name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS's generator reads the files, TFDS writes a dataset of what it read, and both origins are read alike."""
    WRITERS[name](files)
    builder, examples = generate(name, files, tmp_path / "scratch", monkeypatch)
    images = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    stored = {
        split: [(key, example | {image: encoded(example[image]) for image in images}) for key, example in examples[split]]
        for split in BUILDERS[name].counts
    }
    label_names = {"label": builder.info.features["label"].names} if name == "cifar100" else None
    prepare(name, stored, tmp_path / "tfds", names=label_names)
    theirs = open_tfds(BUILDERS[name], tmp_path / "tfds", None, prepare=False)
    ours = open_original(BUILDERS[name], files, tmp_path / "downloads")
    assert ours.class_names == theirs.class_names
    compared = 0
    for split in BUILDERS[name].counts:
        assert ours.keys(split) == theirs.keys(split)
        everything = range(len(ours.keys(split)))
        for our, their in zip(ours.records(split, everything), theirs.records(split, everything), strict=True):
            assert our.key == their.key
            for task in tasks_of(name):
                np.testing.assert_array_equal(pixels(task.image(our.image)), pixels(task.image(their.image)))
                assert task.label(our.features) == task.label(their.features)
                compared += 1
    assert compared == len(tasks_of(name)) * sum(map(len, stored.values()))


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_keys_labels_and_order_are_what_tfds_generates_and_hashes(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code of the TFDS route takes part here, and no dataset is written: only TFDS's builder and its hash."""
    WRITERS[name](files)
    builder, examples = generate(name, files, tmp_path / "scratch", monkeypatch)
    ours = open_original(BUILDERS[name], files, tmp_path / "downloads")
    for split in BUILDERS[name].counts:
        hasher = hashing.Hasher(split)
        rows = sorted(examples[split], key=lambda row: hasher.hash_key(row[0]))
        records = list(ours.records(split, range(len(rows))))
        assert [record.key for record in records] == [key for key, _ in rows]
        for record, (_, example) in zip(records, rows, strict=True):
            np.testing.assert_array_equal(pixels(record.image), pixels(encoded(example["image"])))
            for feature in set(record.features) - {"objects"}:
                assert record.features[feature] == builder.info.features[feature].encode_example(example[feature])
            for part, values in record.features.get("objects", {}).items():
                kind = builder.info.features["objects"].feature[part]
                expected = [kind.encode_example(thing[part]) for thing in example["objects"]]
                np.testing.assert_array_equal(values, np.array(expected, kind.np_dtype).reshape(values.shape))


def test_dmlab_is_read_as_its_dataset(files: Path, tmp_path: Path) -> None:
    content = dmlab(files)
    rows = {
        split: [(key, {"image": image, "filename": key, **features}) for key, (image, features) in part.items()]
        for split, part in content.items()
    }
    prepare("dmlab", rows, tmp_path / "tfds")
    theirs = open_tfds(BUILDERS["dmlab"], tmp_path / "tfds", None, prepare=False)
    ours = open_original(BUILDERS["dmlab"], files, tmp_path / "downloads")
    for split, part in content.items():
        assert list(ours.records(split, range(len(part)))) == list(theirs.records(split, range(len(part))))


def test_class_names_are_tfds_own(tmp_path: Path) -> None:
    known = {
        "dtd": names.DTD,
        "eurosat": names.EUROSAT,
        "resisc45": names.RESISC45,
        "oxford_flowers102": names.FLOWERS102,
        "oxford_iiit_pet": names.PETS,
    }
    for name, expected in known.items():
        assert builder_of(name, tmp_path).info.features["label"].names == expected


def test_sizes_and_hashes_are_those_tfds_records(tmp_path: Path) -> None:
    """Except for where a file is served, the table says what TFDS's checksums say; EuroSAT has moved."""
    compared = 0
    for name, files in FILES.items():
        recorded = builder_of(name, tmp_path).url_infos
        by_name = {url.rpartition("/")[2].removesuffix("?raw=true"): url for url in recorded}
        for file in files:
            url = by_name[file.name]
            assert (file.size, file.sha256) == (recorded[url].size, recorded[url].checksum)
            assert file.url == url or name == "eurosat"
            compared += 1
    assert compared == 29


@pytest.mark.parametrize("number", range(5))
def test_retinopathy_images_are_prepared_as_tfds_does(number: int) -> None:
    data = eye(number)
    theirs = diabetic_retinopathy_detection._btgraham_processing(io.BytesIO(data), "eye", 300, crop_to_radius=True)
    assert prepare_eye(cv2, data) == theirs.getvalue()
