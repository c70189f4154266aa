"""The original route against TFDS with TensorFlow: what TFDS prepares from the same files, by nothing but its own code."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.vtab.original import open_original
from data_prep.vtab.tasks import BUILDERS, TASKS
from data_prep.vtab.tfds_origin import open_tfds
from tests.data_prep.original_files import WRITERS, accept_small_files, picture, write_tar
from tests.data_prep.tfds_examples import LocalFiles, builder_of

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


@pytest.fixture(autouse=True)
def _tensorflow() -> None:
    pytest.importorskip("tensorflow")


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_what_tfds_prepares(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, their order, pixels and labels of all examples; only TFDS's downloads are replaced, by local files."""
    accept_small_files(monkeypatch)
    files = tmp_path / "files"
    files.mkdir()
    WRITERS[name](files)
    builder = builder_of(name, tmp_path / "tfds")
    split_generators = type(builder)._split_generators
    local = LocalFiles(files, tmp_path / "scratch")
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, _: split_generators(self, local))
    builder.download_and_prepare(file_format="array_record")
    theirs = open_tfds(BUILDERS[name], tmp_path / "tfds", None, prepare=False)
    ours = open_original(BUILDERS[name], files, tmp_path / "downloads")
    assert ours.class_names == theirs.class_names
    for split in BUILDERS[name].counts:
        assert ours.keys(split) == theirs.keys(split)
        everything = range(len(ours.keys(split)))
        for our, their in zip(ours.records(split, everything), theirs.records(split, everything), strict=True):
            assert our.key == their.key
            for task in (task for task in TASKS.values() if task.builder.name == name):
                np.testing.assert_array_equal(pixels(task.image(our.image)), pixels(task.image(their.image)))
                assert task.label(our.features) == task.label(their.features)


def test_the_pets_files_that_tfds_re_encodes_keep_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG named .jpg: TFDS 4.0.0 stores it as a JPEG of the same image, this route as it is."""
    accept_small_files(monkeypatch)
    image, mask = picture(0, "PNG", (40, 60, 3)), picture(1, "PNG", (40, 60))
    write_tar(tmp_path / "images.tar.gz", {"images/Egyptian_Mau_14.jpg": image})
    lists = {f"annotations/{name}.txt": b"Egyptian_Mau_14 12 1 1\n" for name in ("trainval", "test")}
    write_tar(tmp_path / "annotations.tar.gz", {**lists, "annotations/trimaps/Egyptian_Mau_14.png": mask})
    builder = builder_of("oxford_iiit_pet", tmp_path / "none")
    generators = builder._split_generators(LocalFiles(tmp_path, tmp_path / "scratch"))
    key, theirs = next(iter(builder._generate_examples(**generators[0].gen_kwargs)))
    (ours,) = open_original(BUILDERS["oxford_iiit_pet"], tmp_path, tmp_path).records("train", range(1))
    assert ours.key == key
    assert ours.image == image
    assert theirs["image"].getvalue()[:2] == b"\xff\xd8"
