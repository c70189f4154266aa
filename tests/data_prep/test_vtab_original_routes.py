"""The original route against TFDS: its builders' own code on the same files, and the datasets it writes from them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.vtab.original import open_original
from data_prep.vtab.original.files import FILES
from data_prep.vtab.tasks import BUILDERS, TASKS
from data_prep.vtab.tfds_origin import open_tfds
from tests.data_prep.archive_trees import tar_of
from tests.data_prep.original_files import WRITERS, picture
from tests.data_prep.tiny_tfds import LocalFiles, TinyDataset, builder_of, everything
from tests.data_prep.vtab_origins import decode


def with_tensorflow(test: Any) -> Any:
    """What TFDS prepares from the same files, by nothing but its own code; only its downloads are replaced, by local files."""
    needed = pytest.mark.skipif(find_spec("tensorflow") is None, reason="no TensorFlow")
    return pytest.mark.slow(pytest.mark.tensorflow(needed(test)))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", WRITERS)
def test_examples_are_what_tfds_generates(name: str, tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    """No code of the TFDS route takes part: only TFDS's builder, run on these files (but for DMLab), and its hash."""
    tiny = tiny_dataset(name)
    tiny.check(open_original(BUILDERS[name], tiny.files, tmp_path / "downloads"), BUILDERS[name].counts)


def test_sizes_and_hashes_are_those_tfds_records(tmp_path: Path) -> None:
    """Except for where a file is served, the table says what TFDS's checksums say; EuroSAT has moved."""
    for name, files in FILES.items():
        recorded = builder_of(name, tmp_path).url_infos
        by_name = {url.rpartition("/")[2].removesuffix("?raw=true"): url for url in recorded}
        for file in files:
            url = by_name[file.name]
            assert (file.size, file.sha256) == (recorded[url].size, recorded[url].checksum)
            assert file.url == url or name == "eurosat"


@with_tensorflow
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_what_tfds_prepares(name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, their order, pixels and labels of all examples; only TFDS's downloads are replaced, by local files."""
    WRITERS[name](files)
    builder = builder_of(name, tmp_path / "tfds")
    split_generators = type(builder)._split_generators
    local = LocalFiles(files, tmp_path / "scratch")
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, _: split_generators(self, local))
    builder.download_and_prepare(file_format="array_record")
    theirs = open_tfds(BUILDERS[name], tmp_path / "tfds", None)
    ours = open_original(BUILDERS[name], files, tmp_path / "downloads")
    assert ours.class_names == theirs.class_names
    for split in BUILDERS[name].counts:
        assert ours.keys(split) == theirs.keys(split)
        for our, their in zip(everything(ours, split), everything(theirs, split), strict=True):
            assert our.key == their.key
            for task in (task for task in TASKS.values() if task.builder.name == name):
                np.testing.assert_array_equal(decode(task.image(our.image)), decode(task.image(their.image)))
                assert task.label(our.features) == task.label(their.features)


@with_tensorflow
def test_the_pets_files_that_tfds_re_encodes_keep_their_bytes(files: Path, tmp_path: Path) -> None:
    """A PNG named .jpg: TFDS 4.0.0 stores it as a JPEG of the same image, this route as it is."""
    image, mask = picture(0, "PNG", (40, 60, 3)), picture(1, "PNG", (40, 60))
    (files / "images.tar.gz").write_bytes(tar_of({"images/Egyptian_Mau_14.jpg": image}))
    lists = {f"annotations/{name}.txt": b"Egyptian_Mau_14 12 1 1\n" for name in ("trainval", "test")}
    (files / "annotations.tar.gz").write_bytes(tar_of({**lists, "annotations/trimaps/Egyptian_Mau_14.png": mask}))
    builder = builder_of("oxford_iiit_pet", tmp_path / "none")
    generators = builder._split_generators(LocalFiles(files, tmp_path / "scratch"))
    key, theirs = next(iter(builder._generate_examples(**generators[0].gen_kwargs)))
    (ours,) = open_original(BUILDERS["oxford_iiit_pet"], files, tmp_path).records("train", range(1))
    assert ours.key == key
    assert ours.image == image
    assert theirs["image"].getvalue()[:2] == b"\xff\xd8"
