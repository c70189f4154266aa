"""Truncated, damaged, incomplete folders of TFDS: one line each that names the file."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tensorflow_datasets")


from data_prep.vtab import tfrecord
from gift_vit.errors import ConfigError
from tests.data_prep.tiny_tfds import (
    Tiny,
    TinyDataset,
    crc32c,
    edit_info,
    everything,
    opened,
    prepare,
    prepare_random,
    random_examples,
)


@pytest.fixture
def copied(tiny_dataset: TinyDataset, tmp_path: Path) -> Tiny:
    """A copy of the tiny DTD to damage."""
    tiny = tiny_dataset("dtd")
    shutil.copytree(tiny.data_dir / "dtd", tmp_path / "dtd")
    return Tiny(tmp_path, tiny.examples)


class TestDamage:
    def shard(self, data_dir: Path) -> Path:
        (path,) = (data_dir / "dtd/3.0.1").glob("dtd-train.*-of-00001")
        return path

    def read(self, data_dir: Path) -> None:
        everything(opened("dtd", data_dir), "train")

    @pytest.mark.parametrize("keep", [0, 0.5, 0.999])
    def test_a_truncated_array_record(self, keep: float, copied: Tiny) -> None:
        path = self.shard(copied.data_dir)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        with pytest.raises(
            ConfigError, match=r"cannot read .*dtd-train\.array_record-00000-of-00001: .*copy it again"
        ) as caught:
            self.read(copied.data_dir)
        assert "\n" not in str(caught.value)

    def test_a_damaged_array_record(self, copied: Tiny) -> None:
        path = self.shard(copied.data_dir)
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"cannot read .*dtd-train.*(hash mismatch|Corrupted)"):
            self.read(copied.data_dir)

    def test_a_missing_shard(self, copied: Tiny) -> None:
        self.shard(copied.data_dir).unlink()
        with pytest.raises(ConfigError, match=r"cannot read .*dtd-train.*No such file"):
            self.read(copied.data_dir)

    @pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
    @pytest.mark.parametrize("recorded", [19, 21])
    def test_a_shard_with_more_or_fewer_records_than_recorded(self, file_format: str, recorded: int, tmp_path: Path) -> None:
        folder = prepare("dtd", random_examples("dtd", {"train": 20}), tmp_path, file_format)
        edit_info(folder, lambda info: info["splits"][0].update(shardLengths=[str(recorded)]))
        expected = {"array_record": f"holds 20 records, expected {recorded}"}
        expected["tfrecord"] = "bytes follow the last of its 19 records" if recorded < 20 else "ends before record 20"
        with pytest.raises(ConfigError, match=expected[file_format]):
            self.read(tmp_path)

    @pytest.mark.parametrize(
        ("cut", "expected"), [(1, "within record 19"), (-1, "1 bytes follow"), (10**9, "ends before record 0")]
    )
    def test_a_tfrecord_with_the_wrong_end(self, cut: int, expected: str, tmp_path: Path) -> None:
        prepare("dtd", random_examples("dtd", {"train": 20}), tmp_path, "tfrecord")
        path = self.shard(tmp_path)
        data = path.read_bytes()
        path.write_bytes(data + b"x" if cut < 0 else data[: max(len(data) - cut, 0)])
        with pytest.raises(ConfigError, match=rf"cannot read .*dtd-train\.tfrecord.*{expected}"):
            self.read(tmp_path)

    def test_a_tfrecord_whose_length_is_nonsense(self, tmp_path: Path) -> None:
        prepare("dtd", random_examples("dtd", {"train": 20}), tmp_path, "tfrecord")
        path = self.shard(tmp_path)
        path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
        with pytest.raises(ConfigError, match=r"cannot read .*dtd-train\.tfrecord.*(within record 0|checksum of record 0)"):
            self.read(tmp_path)

    def test_a_record_that_is_no_example(self, tmp_path: Path) -> None:
        prepare("dtd", random_examples("dtd", {"train": 20}), tmp_path, "tfrecord")
        path = self.shard(tmp_path)
        data = bytearray(path.read_bytes())
        data[12:60] = b"\xff" * 48
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"cannot read .*dtd-train\.tfrecord") as caught:
            self.read(tmp_path)
        assert "\n" not in str(caught.value)

    def test_an_unreadable_description(self, copied: Tiny) -> None:
        (copied.data_dir / "dtd/3.0.1/dataset_info.json").write_text('{"name": "dtd", ')
        with pytest.raises(ConfigError, match=r"cannot read .*dtd/3\.0\.1: .*copy it again"):
            self.read(copied.data_dir)

    def test_missing_features(self, copied: Tiny) -> None:
        (copied.data_dir / "dtd/3.0.1/features.json").unlink()
        with pytest.raises(ConfigError, match=r"cannot read .*dtd/3\.0\.1: .*copy it again"):
            self.read(copied.data_dir)

    def test_a_missing_split(self, tmp_path: Path) -> None:
        prepare_random("dtd", {"train": 5}, tmp_path)
        with pytest.raises(ConfigError, match=r"dtd/3\.0\.1 has no split test, but train; prepare it again"):
            opened("dtd", tmp_path).keys("test")


class TestChecksums:
    @pytest.fixture(autouse=True)
    def with_google_crc32c(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The library's one function, by the tests' own computation (it need not be installed)."""
        monkeypatch.setitem(sys.modules, "google_crc32c", SimpleNamespace(value=crc32c))
        tfrecord._crc32c.cache_clear()
        yield
        tfrecord._crc32c.cache_clear()

    def test_the_tests_own_computation(self) -> None:
        assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C's definition

    @pytest.mark.parametrize("offset", [3, 9, 200, -2])
    def test_one_changed_bit_is_found(self, offset: int, tmp_path: Path) -> None:
        prepare("dtd", random_examples("dtd", {"train": 3}), tmp_path, "tfrecord")
        assert len(everything(opened("dtd", tmp_path), "train")) == 3
        path = tmp_path / "dtd/3.0.1/dtd-train.tfrecord-00000-of-00001"
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=rf"checksum of record {2 if offset < 0 else 0} differs"):
            everything(opened("dtd", tmp_path), "train")
