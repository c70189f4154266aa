"""A cache gives the pixels that decoding gives, is built once, and is never taken for ready half-written."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gift_vit.data import (
    CacheSettings,
    EvalLoader,
    FolderConfig,
    ImageTransform,
    InputStatistics,
    PixelSource,
    PreparedImages,
    TrainLoader,
    TransformConfig,
    VisionDataset,
    build_dataset,
    build_eval_transform,
    build_train_transform,
    cache,
    open_pixels,
)
from gift_vit.data.cache import CachedImages
from gift_vit.errors import ConfigError, RunError

STATS = InputStatistics(24, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bilinear")
CROP = TransformConfig(crop_ratio=0.875, random_crop=True, hflip=0.5, resize="bilinear")
SQUASH = TransformConfig(crop_ratio=None, random_crop=False, hflip=0.0, resize="bicubic")
TF1 = replace(SQUASH, resize="tf1_bilinear", hflip=0.5)


@pytest.fixture
def data(tmp_path: Path, make_config: Callable[..., Any]) -> VisionDataset:
    """70 JPEG files of many sizes in train, 5 in val."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 70), ("val", 5)):
        for index in range(count):
            folder = tmp_path / "images" / split / f"class{index % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            size = (*rng.integers(20, 70, 2), 3)
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{index}.jpg", quality=90)
    return build_dataset(make_config(FolderConfig, root=tmp_path / "images"))


def settings(folder: Path, mode: str = "disk", workers: int = 0) -> CacheSettings:
    return CacheSettings(mode, folder / "cache", workers)


def decoded(data: VisionDataset, split: str, transform: ImageTransform) -> PixelSource:
    return open_pixels(data, split, transform, CacheSettings("off", Path("nowhere"), 0))


def assert_same_pixels(found: PixelSource, expected: PixelSource) -> None:
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.labels, expected.labels)
    for index in range(len(expected)):
        (pixels, label), (other, other_label) = found[index], expected[index]
        assert label == other_label
        np.testing.assert_array_equal(pixels, other)


def together(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("cfg", [CROP, SQUASH, TF1], ids=["crop", "squash", "tf1_bilinear"])
@pytest.mark.parametrize("mode", ["ram", "disk", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_pixels_are_those_of_the_uncached_path(
    tmp_path: Path, data: VisionDataset, cfg: TransformConfig, mode: str, workers: int
) -> None:
    transform = build_train_transform(cfg, STATS)
    cached = open_pixels(data, "trainval", transform, settings(tmp_path, mode, workers))
    uncached = decoded(data, "trainval", transform)
    assert_same_pixels(cached, uncached)
    loaders = [TrainLoader(source, transform, 16, workers, seed=3) for source in (cached, uncached)]
    for epoch in (0, 1):
        first, second = (together(loader.epoch(epoch)) for loader in loaders)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    evaluation = build_eval_transform(cfg, STATS)
    scored = [together(EvalLoader(source, evaluation, 16, workers))[0] for source in (cached, uncached)]
    assert torch.equal(*scored)


def test_what_is_kept_is_of_its_final_size_and_uint8_if_rounded(tmp_path: Path, data: VisionDataset) -> None:
    for cfg, shape, dtype in ((CROP, 27, np.uint8), (SQUASH, 24, np.uint8), (TF1, 24, np.float32)):  # 24 / 0.875 = 27.4
        pixels, _ = open_pixels(data, "train", build_train_transform(cfg, STATS), settings(tmp_path))[4]
        assert pixels.dtype == dtype
        assert min(pixels.shape[1:]) == shape
        assert not pixels.flags.owndata  # a view of the file
        assert not pixels.flags.writeable


def test_the_second_opening_decodes_nothing(tmp_path: Path, data: VisionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = build_train_transform(CROP, STATS)
    expected = [open_pixels(data, "train", transform, settings(tmp_path))[index][0].copy() for index in range(70)]
    monkeypatch.setattr(PreparedImages, "__getitem__", lambda *_: pytest.fail("decoded again"))
    for mode in ("disk", "auto"):
        again = open_pixels(data, "train", transform, settings(tmp_path, mode), reread=False)
        for index in range(70):
            np.testing.assert_array_equal(again[index][0], expected[index])


def test_training_and_evaluation_share_a_file_and_other_resizes_do_not(tmp_path: Path, data: VisionDataset) -> None:
    def files() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    for build in (build_train_transform, build_eval_transform):
        open_pixels(data, "train", build(CROP, STATS), settings(tmp_path))
        assert files() == 1
    for number, (cfg, stats) in enumerate(
        [(replace(CROP, resize="bicubic"), STATS), (CROP, replace(STATS, input_size=16)), (SQUASH, STATS), (TF1, STATS)], 2
    ):
        open_pixels(data, "train", build_eval_transform(cfg, stats), settings(tmp_path))
        assert files() == number
    open_pixels(replace(data, decoder="another 1.0"), "train", build_eval_transform(TF1, STATS), settings(tmp_path))
    assert files() == 6
    open_pixels(data, "val", build_eval_transform(TF1, STATS), settings(tmp_path))
    assert files() == 7


def test_a_changed_image_of_the_same_size_is_decoded_anew(
    tmp_path: Path, data: VisionDataset, make_config: Callable[..., Any]
) -> None:
    transform = build_eval_transform(CROP, STATS)
    before = open_pixels(data, "train", transform, settings(tmp_path))[0][0].copy()
    file = tmp_path / "images/train/class0/0.jpg"
    with Image.open(file) as image:
        mirrored = image.transpose(Image.Transpose.ROTATE_180)
    buffer = io.BytesIO()
    mirrored.save(buffer, "JPEG", quality=80)
    size = file.stat().st_size
    assert len(buffer.getvalue()) < size
    file.write_bytes(buffer.getvalue().ljust(size, b"\0"))  # what follows a JPEG's end is not read
    changed = build_dataset(make_config(FolderConfig, root=tmp_path / "images"))
    assert changed.fingerprint == data.fingerprint  # it knows paths and sizes alone
    after = open_pixels(changed, "train", transform, settings(tmp_path))
    assert_same_pixels(after, decoded(changed, "train", transform))
    assert not np.array_equal(after[0][0], before)


def test_auto_keeps_little_in_memory_and_much_on_disk(
    tmp_path: Path, data: VisionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = build_train_transform(CROP, STATS)
    assert isinstance(open_pixels(data, "train", transform, settings(tmp_path, "auto"), reread=False), PreparedImages)
    open_pixels(data, "train", transform, settings(tmp_path, "auto"))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(cache, "SMALL_BYTES", 1000)
    found = open_pixels(data, "train", transform, settings(tmp_path, "auto"))
    assert isinstance(found, CachedImages)
    assert found.file == next((tmp_path / "cache").glob("some-*.arrow"))


def test_without_room_auto_goes_on_without_and_disk_says_so(
    tmp_path: Path, data: VisionDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transform = build_train_transform(CROP, STATS)
    monkeypatch.setattr(cache, "SMALL_BYTES", 0)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100_000})())
    message = r"a cache of about 0\.0 GB needs twice that free in .*cache, which has 0\.0 GB; .*paths\.cache_root"
    with pytest.raises(ConfigError, match=message):
        open_pixels(data, "train", transform, settings(tmp_path, "disk"))
    assert isinstance(open_pixels(data, "train", transform, settings(tmp_path, "auto")), PreparedImages)
    assert "decoding the images of some anew in each epoch" in caplog.text
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_a_disk_that_fills_while_it_is_written(tmp_path: Path, data: VisionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    with pytest.raises(RunError, match="no space left on the device while writing"):
        open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path))
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path, data: VisionDataset) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match=r"cannot write the cache folder .*set paths\.cache_root or dataset\.cache=off"):
        open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path))


def test_an_unreadable_image_is_one_line_and_leaves_no_file(tmp_path: Path, data: VisionDataset) -> None:
    broken = tmp_path / "images/train/class1/1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    for workers in (0, 2):
        with pytest.raises(ConfigError, match=f"cannot decode image {broken}: "):
            open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path, workers=workers))
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_file_is_built_anew(tmp_path: Path, data: VisionDataset, caplog: pytest.LogCaptureFixture) -> None:
    transform = build_train_transform(CROP, STATS)
    open_pixels(data, "train", transform, settings(tmp_path))
    file = next((tmp_path / "cache").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-100])
    assert_same_pixels(open_pixels(data, "train", transform, settings(tmp_path)), decoded(data, "train", transform))
    assert f"building {file} anew" in caplog.text


def test_building_draws_nothing_from_the_global_generator(tmp_path: Path, data: VisionDataset) -> None:
    before = torch.get_rng_state()
    open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path, workers=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_that_are_not_forked_map_the_file(tmp_path: Path, data: VisionDataset) -> None:
    import pickle

    found = open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path))
    sent = pickle.dumps(found)
    assert len(sent) < 3000
    assert_same_pixels(pickle.loads(sent), found)


_BUILD = """
import sys, time
from pathlib import Path
from gift_vit.compose import compose_config
from gift_vit.config import load_config
from gift_vit.data import CacheSettings, InputStatistics, PreparedImages, build_dataset, build_eval_transform, open_pixels
root, folder, delay = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
data = build_dataset(load_config(compose_config(["dataset=folder", f"dataset.root={root}"])).dataset)
cfg = load_config(compose_config(["dataset=folder", f"dataset.root={root}", "protocol=gift_paper"])).dataset.transform
decode = PreparedImages.__getitem__
count = 0
def slow(self, index):
    global count
    count += 1
    print("decoding", flush=True)
    time.sleep(delay)
    return decode(self, index)
PreparedImages.__getitem__ = slow
stats = InputStatistics(24, (0.5,) * 3, (0.5,) * 3, "bilinear")
pixels = open_pixels(data, "train", build_eval_transform(cfg, stats), CacheSettings("disk", folder, 0))
print("decoded", count, "sum", sum(int(pixels[i][0].sum()) for i in range(len(pixels))), flush=True)
"""


def build_elsewhere(root: Path, folder: Path, delay: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _BUILD, str(root), str(folder), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_two_processes_build_once_and_a_killed_one_leaves_nothing_that_counts(tmp_path: Path, data: VisionDataset) -> None:
    root, folder = tmp_path / "images", tmp_path / "cache"
    killed = build_elsewhere(root, folder, delay=0.05)
    assert killed.stdout is not None
    for _ in range(20):
        assert killed.stdout.readline() == "decoding\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert list(folder.glob(".*.partial"))
    assert not list(folder.glob("*.arrow"))
    both = [build_elsewhere(root, folder, delay=0.02) for _ in range(2)]
    lines = [process.communicate()[0].splitlines()[-1].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    counts = sorted(int(line[1]) for line in lines)
    assert counts[0] in (0, 8)  # the one that waited decoded nothing, or what estimates the size
    assert counts[1] >= 70
    transform = build_eval_transform(CROP, replace(STATS, mean=(0.5,) * 3))
    expected = decoded(data, "train", transform)
    total = sum(int(expected[index][0].sum()) for index in range(70))
    assert {int(line[3]) for line in lines} == {total}
    assert not list(folder.glob(".*.partial"))


def test_no_worker_outlives_the_building(tmp_path: Path, data: VisionDataset) -> None:
    open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path, workers=2))
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
