"""A cache gives the pixels that decoding gives, is built once, and is never taken for ready half-written."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.data import cache
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.cache import CachedImages, PixelSource, PreparedImages, open_pixels
from gift_vit.data.config import CacheSettings, FolderConfig, TransformConfig
from gift_vit.data.loaders import EvalLoader, TrainLoader
from gift_vit.data.transforms import ImageTransform, InputStatistics, build_eval_transform, build_train_transform
from tests.data.conftest import encode, together

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
    assert found.labels.tolist() == expected.labels.tolist()
    for index in range(len(expected)):
        np.testing.assert_equal(found[index], expected[index])


CASES = [(CROP, "ram", 0), (SQUASH, "auto", 0), (TF1, "disk", 0), (TF1, "auto", 0), (CROP, "disk", 2), (SQUASH, "ram", 2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].resize}_{case[1]}_{case[2]}")
def test_the_pixels_are_those_of_the_uncached_path(tmp_path: Path, data: VisionDataset, case: Any) -> None:
    cfg, mode, workers = case
    transform = build_train_transform(cfg, STATS)
    cached = open_pixels(data, "trainval", transform, settings(tmp_path, mode, workers))
    uncached = decoded(data, "trainval", transform)
    assert_same_pixels(cached, uncached)
    loaders = [TrainLoader(source, transform, 16, workers, seed=3) for source in (cached, uncached)]
    for epoch in (0, 1):
        first, second = (together(loader.epoch(epoch)) for loader in loaders)
        assert all(map(torch.equal, first, second))
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
        np.testing.assert_equal([again[index][0] for index in range(70)], expected)


def test_training_and_evaluation_share_a_file_and_other_resizes_do_not(tmp_path: Path, data: VisionDataset) -> None:
    def files() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    for build in (build_train_transform, build_eval_transform):
        open_pixels(data, "train", build(CROP, STATS), settings(tmp_path))
        assert files() == 1
    others = [(replace(CROP, resize="bicubic"), STATS), (CROP, replace(STATS, input_size=16)), (SQUASH, STATS), (TF1, STATS)]
    calls = [(data, "train", *other) for other in others]
    calls += [(replace(data, decoder="another 1.0"), "train", TF1, STATS), (data, "val", TF1, STATS)]
    for number, (images, split, cfg, stats) in enumerate(calls, 2):
        open_pixels(images, split, build_eval_transform(cfg, stats), settings(tmp_path))
        assert files() == number


def test_a_changed_image_of_the_same_size(tmp_path: Path, data: VisionDataset, make_config: Callable[..., Any]) -> None:
    transform = build_eval_transform(CROP, STATS)
    before = open_pixels(data, "train", transform, settings(tmp_path))[1][0].copy()
    file = Path(data.splits["train"].where(1))
    with Image.open(file) as image:
        mirrored = image.transpose(Image.Transpose.ROTATE_180)
    content, size = encode(mirrored, "JPEG", quality=80), file.stat().st_size
    assert len(content) < size
    file.write_bytes(content.ljust(size, b"\0"))  # what follows a JPEG's end is not read
    changed = build_dataset(make_config(FolderConfig, root=tmp_path / "images"))
    assert changed.fingerprint == data.fingerprint  # it knows paths and sizes alone
    assert changed.sample == data.sample, "the image is none of it: its time alone tells"
    after = open_pixels(changed, "train", transform, settings(tmp_path))
    assert_same_pixels(after, decoded(changed, "train", transform))
    assert not np.array_equal(after[1][0], before)


def test_changed_images_of_the_same_size_and_time(tmp_path: Path, data: VisionDataset, make_config: Callable[..., Any]) -> None:
    """As an archive restores them, or of two folders of one name."""
    transform = build_eval_transform(CROP, STATS)
    for folder, shade in (("images", 10), ("other/images", 200)):
        for split in ("train", "val"):
            for index in range(6):
                file = tmp_path / folder / split / f"class{index % 3}" / f"{index}.bmp"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (30, 30), (shade, index, 0)).save(file)
                os.utime(file, (10**9, 10**9))
    for file in (tmp_path / "images").rglob("*.jpg"):
        file.unlink()
    one, other = (build_dataset(make_config(FolderConfig, root=tmp_path / name)) for name in ("images", "other/images"))
    assert (one.name, one.fingerprint) == (other.name, other.fingerprint)
    for images in (one, other):
        assert_same_pixels(open_pixels(images, "train", transform, settings(tmp_path)), decoded(images, "train", transform))


def test_auto_keeps_little_in_memory(tmp_path: Path, data: VisionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_cache_that_cannot_be_written(tmp_path: Path, data: VisionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    with pytest.raises(RunError, match="no space left on the device while writing"):
        open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path))
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match=r"cannot write the cache folder .*set paths\.cache_root or dataset\.cache=off"):
        open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path))


def test_an_unreadable_image_is_one_line_and_leaves_no_file(tmp_path: Path, data: VisionDataset) -> None:
    broken = tmp_path / "images/train/class1/1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    for workers in (0, 2):
        with pytest.raises(ConfigError, match=f"cannot decode image {broken}: "):
            open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path, workers=workers))
    assert not (tmp_path / "cache").exists()


def test_a_damaged_file_is_built_anew(tmp_path: Path, data: VisionDataset, caplog: pytest.LogCaptureFixture) -> None:
    transform = build_train_transform(CROP, STATS)
    open_pixels(data, "train", transform, settings(tmp_path))
    file = next((tmp_path / "cache").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-100])
    assert_same_pixels(open_pixels(data, "train", transform, settings(tmp_path)), decoded(data, "train", transform))
    assert f"building {file} anew" in caplog.text


def test_building_draws_nothing_and_no_worker_outlives_it(tmp_path: Path, data: VisionDataset) -> None:
    before = torch.get_rng_state()
    open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_workers_that_are_not_forked_map_the_file(tmp_path: Path, data: VisionDataset) -> None:
    found = open_pixels(data, "train", build_train_transform(CROP, STATS), settings(tmp_path))
    sent = pickle.dumps(found)
    assert len(sent) < 3000
    assert_same_pixels(pickle.loads(sent), found)


def build(data: VisionDataset, folder: Path, delay: float, reports: "Connection[object, object]") -> None:
    """Open a cache, decoding slowly; report each image that is decoded and, at the end, the sum of all pixels."""
    decode = PreparedImages.__getitem__

    def slow(self: PreparedImages, index: int) -> Any:
        reports.send("decoding")
        time.sleep(delay)
        return decode(self, index)

    PreparedImages.__getitem__ = slow
    pixels = open_pixels(data, "train", build_eval_transform(CROP, STATS), CacheSettings("disk", folder, 0))
    reports.send(sum(int(pixels[index][0].sum()) for index in range(len(pixels))))


def build_elsewhere(data: VisionDataset, folder: Path, delay: float) -> "tuple[ForkProcess, Connection[object, object]]":
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=build, args=(data, folder, delay, sender))
    process.start()
    sender.close()
    return process, receiver


def received(reports: "Connection[object, object]") -> Iterator[Any]:
    """All reports until the other end is closed."""
    with suppress(EOFError):
        while True:
            yield reports.recv()


def test_two_processes_build_once_and_a_killed_one_leaves_nothing_that_counts(tmp_path: Path, data: VisionDataset) -> None:
    folder = tmp_path / "cache"
    killed, reports = build_elsewhere(data, folder, delay=0.05)
    assert [reports.recv() for _ in range(20)] == ["decoding"] * 20
    killed.kill()
    killed.join()
    assert list(folder.glob(".*.partial"))
    assert not list(folder.glob("*.arrow"))
    both = [build_elsewhere(data, folder, delay=0.01) for _ in range(2)]
    said = [list(received(reports)) for _, reports in both]
    assert all(process.join() is None and process.exitcode == 0 for process, _ in both)
    counts = sorted(reports.count("decoding") for reports in said)
    assert counts[0] in (0, 8)  # the one that waited decoded nothing, or what estimates the size
    assert counts[1] >= 70
    expected = decoded(data, "train", build_eval_transform(CROP, STATS))
    assert {reports[-1] for reports in said} == {sum(int(expected[index][0].sum()) for index in range(70))}
    assert not list(folder.glob(".*.partial"))
