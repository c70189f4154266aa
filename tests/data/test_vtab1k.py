"""Reading a prepared VTAB-1k task, and refusing one that is not what its meta.json says."""

import io
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from data_prep.vtab import task_folder
from gift_vit.common.errors import ConfigError
from gift_vit.data.base import build_dataset
from gift_vit.data.config import Vtab1kConfig
from gift_vit.data.decode import Decoder
from gift_vit.data.kinds import vtab1k
from tests.data.conftest import encode

Noise = Callable[..., Image.Image]
Make = Callable[..., Vtab1kConfig]
SIZES = {"train800": 11, "val200": 4, "test": 9}


@pytest.fixture
def task(tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared task of three classes; every third image is a PNG, the others are JPEG; row groups of four."""
    monkeypatch.setattr(task_folder, "ROWS_PER_GROUP", 4)
    root, splits = tmp_path / "cubes", {}
    root.mkdir()
    for number, (split, size) in enumerate(SIZES.items()):
        with task_folder.SplitWriter(root / f"{split}.parquet", None) as writer:
            for i in range(size):
                image = encode(noise(100 * number + i, (40, 30)), "PNG" if i % 3 == 0 else "JPEG")
                writer.add(task_folder.Row(image, i % 3, f"{split}_{i}.jpg", i))
        splits[split] = {"cut": "train[:]", **writer.summary()}
    meta = {"format": 1, "task": "cubes", "source": "original", "origin": {}, "num_classes": 3, "class_names": None}
    (root / "meta.json").write_text(json.dumps({**meta, "splits": splits, "warnings": []}))
    return root


@pytest.fixture
def config(task: Path, make_config: Callable[..., Any]) -> Callable[..., Vtab1kConfig]:
    return lambda **values: make_config(Vtab1kConfig, **{"root": task, "jpeg_decoder": "pillow", **values})


def edit_meta(task: Path, /, **values: Any) -> None:
    file = task / "meta.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **values}))


def edit_val(task: Path, **values: Any) -> None:
    splits = json.loads((task / "meta.json").read_bytes())["splits"]
    edit_meta(task, splits={**splits, "val200": {**splits["val200"], **values}})


def test_images_labels_and_splits(config: Make, noise: Noise) -> None:
    data = build_dataset(config())
    assert {split: len(source) for split, source in data.splits.items()} == {"train": 11, "val": 4, "test": 9}
    assert (data.num_classes, data.class_names, data.source) == (3, None, "original")
    assert data.decoder.startswith("Pillow ")
    assert data.split("trainval").labels.tolist() == [*(i % 3 for i in range(11)), *(i % 3 for i in range(4))]
    test = data.split("test")
    for index in (8, 0, 5, 3, 4, 7, 1):  # back and forth between the row groups
        image, label = test[index]
        assert label == index % 3
        original = noise(200 + index, (40, 30))
        if index % 3:
            original = Image.open(io.BytesIO(encode(original, "JPEG")))
        np.testing.assert_array_equal(np.asarray(image), np.asarray(original))
    train = data.parts("train")[0]
    assert isinstance(train, vtab1k.TaskSplit)
    for index in range(11):
        train[index]
    assert list(train._groups) == [1, 2], "few row groups stay in memory"


def test_the_fingerprint_follows_images_labels_and_ids(task: Path, config: Make) -> None:
    first = build_dataset(config()).fingerprint
    assert build_dataset(config(jpeg_decoder="auto")).fingerprint == first
    edit_val(task, images_sha256="0" * 64)
    assert build_dataset(config()).fingerprint != first


def test_simplejpeg_decodes_jpeg_and_says_so(config: Make, noise: Noise) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    for choice in ("simplejpeg", "auto"):
        data = build_dataset(config(jpeg_decoder=choice))
        assert data.decoder.startswith("simplejpeg ")
        image, _ = data.split("test")[1]
        expected = simplejpeg.decode_jpeg(encode(noise(201, (40, 30)), "JPEG"), "RGB", fastdct=True, fastupsample=False)
        np.testing.assert_array_equal(np.asarray(image), expected)
        png, _ = data.split("test")[0]
        np.testing.assert_array_equal(np.asarray(png), np.asarray(noise(200, (40, 30))))


def test_without_simplejpeg(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    assert build_dataset(config(jpeg_decoder="auto")).decoder.startswith("Pillow ")
    with pytest.raises(ConfigError, match=r"jpeg_decoder=simplejpeg: it is not installed; pip install simplejpeg"):
        build_dataset(config(jpeg_decoder="simplejpeg"))


@pytest.mark.parametrize("choice", ["pillow", "auto"])
def test_grey_and_truncated_jpeg(task: Path, config: Make, noise: Noise, choice: str) -> None:
    if choice == "auto":
        pytest.importorskip("simplejpeg")
    grey, whole = encode(noise(0, (40, 30)).convert("L"), "JPEG"), encode(noise(1, (400, 300)), "JPEG")
    images = [grey, whole[: len(whole) // 3], whole, whole]
    table = pq.read_table(task / "val200.parquet").set_column(0, "image", pa.array(images, pa.binary()))
    pq.write_table(table, task / "val200.parquet", write_page_checksum=True)
    edit_val(task, bytes=(task / "val200.parquet").stat().st_size)
    val = build_dataset(config(jpeg_decoder=choice)).split("val")
    pixels = np.asarray(val[0][0])
    assert pixels.shape == (30, 40, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    with pytest.raises(ConfigError, match=r"cannot decode image in .*val200\.parquet, row 1 \(val200_1\.jpg\): "):
        val[1]


def test_a_jpeg_with_recoverable_damage_is_decoded_as_libjpeg_does(noise: Noise) -> None:
    """Two images of the Pets have stray bytes before their end."""
    pytest.importorskip("simplejpeg")
    decode = Decoder(upright=False, ground=None, jpeg="simplejpeg")
    whole = encode(noise(0, (80, 60)), "JPEG")
    stray = whole[:-2] + bytes(40) + whole[-2:]
    np.testing.assert_array_equal(np.asarray(decode(stray)), np.asarray(decode(whole)))
    cmyk = encode(noise(0, (80, 60)).convert("CMYK"), "JPEG")
    assert np.asarray(decode(cmyk)).shape == (60, 80, 3)
    with pytest.raises(OSError, match="truncated"):
        decode(whole[: len(whole) // 2])


def test_warnings_are_passed_on(task: Path, config: Make, caplog: pytest.LogCaptureFixture) -> None:
    edit_meta(task, source="folder", warnings=["lossy copies"])
    assert build_dataset(config()).source == "folder"
    assert "lossy copies" in caplog.text


def test_the_folder_of_another_task_is_refused(task: Path, config: Make) -> None:
    edit_meta(task, task="dsprites_orientation")
    right = "type dataset=vtab_dsprites_orientation, or give the folder of this task"
    with pytest.raises(ConfigError) as caught:
        build_dataset(config(name="vtab_dsprites_location"))
    told = f"dataset vtab_dsprites_location: {task} holds another task, dsprites_orientation; {right}"
    assert str(caught.value) == told
    edit_meta(task, task="pets")
    for name in ("vtab_pets", "vtab_pets_small", "my_animals"):
        assert build_dataset(config(name=name)).name == name


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda task: (task / "meta.json").unlink(), r"some: there is no file .*meta\.json; ask the author"),
        (lambda task: (task / "meta.json").write_text("{"), r"meta\.json is damaged .*delete its folder"),
        (lambda task: edit_meta(task, format=2), r"meta\.json is of another form than this version reads; ask"),
        (lambda task: (task / "test.parquet").unlink(), r"cannot read .*test\.parquet"),
        (lambda task: (task / "test.parquet").write_bytes(b"PAR1"), r"cannot read .*test\.parquet: .*; delete its folder"),
        (
            lambda task: shutil.copy(task / "val200.parquet", task / "test.parquet"),
            r"test\.parquet: images is 4, where meta\.json beside it says 9; delete its folder and prepare the task again",
        ),
        (lambda task: edit_meta(task, num_classes=2), r"label 2 of image 2 in its train split is outside 0\.\.1"),
    ],
)
def test_what_is_not_as_prepared(task: Path, config: Make, break_it: Callable[[Path], object], message: str) -> None:
    break_it(task)
    with pytest.raises(ConfigError, match=message) as caught:
        build_dataset(config())
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_an_image_is_noticed(task: Path, config: Make) -> None:
    file = task / "test.parquet"
    image = pq.read_table(file)["image"][3].as_py()
    content = bytearray(file.read_bytes())
    content[content.find(image) + len(image) // 2] ^= 1
    file.write_bytes(content)
    test = build_dataset(config()).split("test")
    with pytest.raises(ConfigError, match=r"cannot read .*test\.parquet: .*CRC"):
        test[3]


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize(("subsampling", "mode", "progressive"), [*product([0, 1, 2], ["RGB", "L"], [False, True])])
def test_jpeg_decoding_is_tensorflows(
    noise: Noise, monkeypatch: pytest.MonkeyPatch, subsampling: int, mode: str, progressive: bool
) -> None:
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**20)  # Pillow's room for one progressive image, too small for noise
    decode = Decoder(upright=False, ground=None, jpeg="simplejpeg")
    for seed, size in enumerate([(64, 64), (101, 57), (300, 200)]):
        smooth = noise(seed, (12, 9)).resize(size, Image.Resampling.BICUBIC).convert(mode)
        for image in (smooth, noise(seed, size).convert(mode)):
            jpeg = encode(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
            np.testing.assert_array_equal(np.asarray(decode(jpeg)), tf.io.decode_jpeg(jpeg, channels=3).numpy())
