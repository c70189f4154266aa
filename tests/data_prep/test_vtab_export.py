import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vtab_origins import FakeOrigin, png, small_origin

from data_prep.vtab.export import export
from data_prep.vtab.records import Key, Record
from data_prep.vtab.task_folder import read_meta
from data_prep.vtab.tasks import TASKS
from gift_vit.data.parquet import read_table
from gift_vit.errors import ConfigError, RunError

SPLITS = ["train800", "val200", "test"]


@pytest.mark.parametrize("name", TASKS)
def test_the_files_hold_the_rows_of_the_origin(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    origin = small_origin(task)
    meta = export(task, origin, tmp_path / name, official=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["meta.json", *(f"{s}.parquet" for s in SPLITS), name])
    for split, cut in task.cuts.items():
        rows = pq.read_table(tmp_path / name / f"{split}.parquet").to_pylist()
        stored = origin.keys(cut.split)
        positions = list(cut.positions(len(stored)))
        assert [row["index"] for row in rows] == positions
        assert [row["id"] for row in rows] == [stored[position] for position in positions]
        for row in rows:
            assert row["image"] == task.image(origin.image(cut.split, row["id"]))
            assert row["label"] == task.label(origin.features(cut.split, row["id"]))
        assert meta["splits"][split]["images"] == len(rows) == {"train800": 800, "val200": 200}.get(split, len(rows))


def test_meta_tells_source_cuts_hashes_and_sizes(tmp_path: Path) -> None:
    task, out = TASKS["pets"], tmp_path / "root" / "vtab1k" / "pets"
    names = [f"breed {number}" for number in range(37)]
    origin = small_origin(task, names)
    written = export(task, origin, out, official=False)
    meta = json.loads((out / "meta.json").read_text())
    assert meta == written == read_meta(out, "pets")
    assert set(meta) == {"format", "task", "source", "origin", "num_classes", "class_names", "splits", "warnings"}
    assert (meta["format"], meta["task"], meta["source"], meta["num_classes"]) == (1, "pets", "original", 37)
    assert (meta["origin"], meta["class_names"], meta["warnings"]) == ({"builder": "fake"}, names, [])
    assert [split["cut"] for split in meta["splits"].values()] == ["train[:800]", "train[800:]", "test"]
    for split, facts in meta["splits"].items():
        table = pq.read_table(out / f"{split}.parquet").to_pydict()
        framed = b"".join(len(image).to_bytes(8, "little") + image for image in table["image"])
        assert facts["images_sha256"] == hashlib.sha256(framed).hexdigest()
        assert facts["ids_sha256"] == hashlib.sha256("\n".join(table["id"]).encode()).hexdigest()
        labels = b"".join(label.to_bytes(8, "little", signed=True) for label in table["label"])
        assert facts["labels_sha256"] == hashlib.sha256(labels).hexdigest()
        assert facts["bytes"] == (out / f"{split}.parquet").stat().st_size


def test_files_are_uncompressed_row_groups_of_500_that_the_reader_reads(tmp_path: Path) -> None:
    names = [f"breed {number}" for number in range(37)]
    export(TASKS["pets"], small_origin(TASKS["pets"], names), tmp_path / "pets", official=False)
    file = pq.ParquetFile(tmp_path / "pets" / "train800.parquet")
    fields = [("image", pa.binary()), ("label", pa.int16()), ("id", pa.string()), ("index", pa.int64())]
    assert [(field.name, field.type) for field in file.schema_arrow] == fields
    assert [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)] == [500, 300]
    assert {file.metadata.row_group(0).column(column).compression for column in range(4)} == {"UNCOMPRESSED"}
    table = read_table([tmp_path / "pets" / "train800.parquet"])
    assert table.class_names == names
    assert len(table) == 800


def test_a_flipped_bit_in_a_file_is_found(tmp_path: Path) -> None:
    export(TASKS["pets"], small_origin(TASKS["pets"]), tmp_path / "pets", official=False)
    file = tmp_path / "pets" / "test.parquet"
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(file, page_checksum_verification=True)


def test_class_names_of_the_builder_are_not_those_of_another_label(tmp_path: Path) -> None:
    meta = export(
        TASKS["smallnorb_azimuth"], small_origin(TASKS["smallnorb_azimuth"], ["a"] * 5), tmp_path / "a", official=False
    )
    assert meta["class_names"] is None
    assert read_table([tmp_path / "a" / "test.parquet"]).class_names is None


def official_origin(name: str, image: bytes, keys: dict[str, list[Key]] | None = None) -> FakeOrigin:
    """The builder in full size, with the same image for all keys; labels run through the classes."""
    task = TASKS[name]
    keys = keys or {split: list(range(size)) for split, size in task.builder.counts.items()}
    labels = {key: number % task.num_classes for stored in keys.values() for number, key in enumerate(stored)}
    return FakeOrigin(keys, lambda *_: image, lambda _, key: {"label": labels[key]})


def cifar100(image: bytes) -> FakeOrigin:
    """CIFAR-100 in full size, with 90 classes in val200."""
    origin = official_origin("cifar100", image)
    positions = {key: number for number, key in enumerate(origin.stored["train"])}

    def features(split: str, key: Key) -> dict[str, Any]:
        return {"label": int(key) % 100 if split == "test" else positions[key] % 90}

    origin.features = features
    return origin


def test_official_data_passes_all_checks(tmp_path: Path) -> None:
    meta = export(TASKS["cifar100"], cifar100(png(size=(32, 32))), tmp_path / "cifar100")
    assert [split["images"] for split in meta["splits"].values()] == [800, 200, 10000]
    assert pq.read_table(tmp_path / "cifar100" / "val200.parquet", columns=["id"])["id"].to_pylist()[:3] == [
        "13431",
        "9237",
        "17462",
    ]
    assert meta["splits"]["val200"]["cut"] == "train[45000:45200]"


def test_official_data_that_fails_the_last_check_leaves_nothing(tmp_path: Path) -> None:
    origin = cifar100(png(size=(32, 32)))
    features = origin.features
    origin.features = lambda split, key: {"label": features(split, key)["label"] % 89}
    with pytest.raises(ConfigError, match="cifar100: the highest label in test is 88, expected 99"):
        export(TASKS["cifar100"], origin, tmp_path / "cifar100")
    assert not list(tmp_path.iterdir())


def test_what_only_real_data_passes_is_checked_of_official_data_only(tmp_path: Path) -> None:
    task = TASKS["resisc45"]
    with pytest.raises(ConfigError, match=r"^resisc45: resisc45's split train holds 1500 images, expected 31500"):
        export(task, small_origin(task), tmp_path / "a")
    keys: dict[str, list[Key]] = {"train": [f"{number}.jpg" for number in range(31500)]}
    with pytest.raises(ConfigError, match=r"^resisc45: image \d+\.jpg is 4×4 pixels, expected 256×256"):
        export(task, official_origin("resisc45", png(), keys), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_local_split_of_caltech101_is_a_recorded_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys: dict[str, list[Key]] = {
        split: [f"{split}/{number}.jpg" for number in range(size)] for split, size in TASKS["caltech101"].builder.counts.items()
    }
    origin = official_origin("caltech101", png(), keys)
    meta = export(TASKS["caltech101"], origin, tmp_path / "caltech101")
    (warning,) = meta["warnings"]
    assert "local" in warning
    assert f"caltech101: {warning}" in caplog.messages
    origin.description = {"num_bytes_train": "44481158", "num_bytes_test": "94837659"}
    with pytest.raises(ConfigError, match=r"caltech101: .* classes occur in val200, expected 86"):
        export(TASKS["caltech101"], origin, tmp_path / "caltech101")
    assert read_meta(tmp_path / "caltech101", "caltech101") == meta


def test_an_origin_in_another_order_is_an_error(tmp_path: Path) -> None:
    origin = small_origin(TASKS["dtd"])
    origin.stored["validation"].reverse()
    with pytest.raises(ConfigError, match=r"dtd: dtd's split validation is not in the order .* position 0 holds 'validation_"):
        export(TASKS["dtd"], origin, tmp_path / "dtd", official=False)


def test_a_split_that_is_too_small_names_the_task(tmp_path: Path) -> None:
    origin = small_origin(TASKS["dtd"])
    del origin.stored["train"][700:]
    with pytest.raises(ConfigError, match=r"^dtd: the cut train\[0:800\] needs more examples than the split's 700$"):
        export(TASKS["dtd"], origin, tmp_path / "dtd", official=False)


class Faulty(FakeOrigin):
    """An origin whose validation records go through ``spoil``."""

    def __init__(self, spoil: Any) -> None:
        self.__dict__.update(small_origin(TASKS["dtd"]).__dict__)
        self.spoil = spoil

    def records(self, split: str, positions: range) -> Iterator[Record]:
        records = super().records(split, positions)
        return self.spoil(records) if split == "validation" else records


def ends_early(records: Iterator[Record]) -> Iterator[Record]:
    return (record for number, record in enumerate(records) if number < 150)


def skips_one(records: Iterator[Record]) -> Iterator[Record]:
    return (record for number, record in enumerate(records) if number != 20)


def breaks_an_image(records: Iterator[Record]) -> Iterator[Record]:
    return (replace(record, image=record.image[:30]) if number == 20 else record for number, record in enumerate(records))


def labels_wrongly(records: Iterator[Record]) -> Iterator[Record]:
    return (replace(record, features={"label": 47}) if number == 20 else record for number, record in enumerate(records))


def cannot_read(records: Iterator[Record]) -> Iterator[Record]:
    yield next(records)
    raise ConfigError("cannot read some.tar: unexpected end")


FAULTS = [
    (ends_early, RunError, r"^dtd: val200 ended after 150 images, expected 200"),
    (skips_one, RunError, r"^dtd: validation gave image 'validation_\d+.png' at position 20, expected 'validation_\d+.png'"),
    (breaks_an_image, ConfigError, r"^dtd: cannot decode image validation_\d+.png"),
    (labels_wrongly, ConfigError, r"^dtd: image validation_\d+.png has the label 47, expected 0 to 46"),
    (cannot_read, ConfigError, r"^dtd: cannot read some.tar: unexpected end$"),
]


def test_there_are_five_faults() -> None:
    assert len(FAULTS) == 5


@pytest.mark.parametrize(("spoil", "kind", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_half_way_is_one_line_and_leaves_what_was_there(spoil: Any, kind: type, message: str, tmp_path: Path) -> None:
    before = export(TASKS["dtd"], small_origin(TASKS["dtd"]), tmp_path / "dtd", official=False)
    with pytest.raises(kind, match=message) as error:
        export(TASKS["dtd"], Faulty(spoil), tmp_path / "dtd", official=False)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]
    assert read_meta(tmp_path / "dtd", "dtd") == before


def test_a_broken_image_that_is_re_encoded_is_named(tmp_path: Path) -> None:
    origin = small_origin(TASKS["dsprites_location"])
    origin.image = lambda *_: b"no image"
    with pytest.raises(ConfigError, match=r"^dsprites_location: cannot decode image train_\d+\.png: it is broken"):
        export(TASKS["dsprites_location"], origin, tmp_path / "dsprites", official=False)
    assert not list(tmp_path.iterdir())


def test_the_wrong_number_of_class_names_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtd: the data names 46 classes, expected 47"):
        export(TASKS["dtd"], small_origin(TASKS["dtd"], ["name"] * 46), tmp_path / "dtd", official=False)


def test_images_are_not_held_longer_than_a_row_group(tmp_path: Path) -> None:
    alive: list[int] = [0, 0]  # now, at most

    class Image(bytes):
        def __new__(cls, content: bytes) -> "Image":
            alive[0] += 1
            alive[1] = max(alive)
            return super().__new__(cls, content)

        def __del__(self) -> None:
            alive[0] -= 1

    keys: dict[str, list[Key]] = {"train": list(map(str, range(6000)))}
    origin = FakeOrigin(keys, lambda *_: Image(png()), lambda *_: {"label": 0})
    export(TASKS["eurosat"], origin, tmp_path / "eurosat", official=False)
    assert 500 <= alive[1] <= 510


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(RunError, match=r"dtd: no space left on the device while writing .*train800\.parquet"):
        export(TASKS["dtd"], small_origin(TASKS["dtd"]), tmp_path / "dtd", official=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "vtab1k").write_text("a file")
    with pytest.raises(
        ConfigError, match=r"dtd: cannot write .*vtab1k/dtd \((File exists|Not a directory)\); choose another folder"
    ):
        export(TASKS["dtd"], small_origin(TASKS["dtd"]), tmp_path / "vtab1k" / "dtd", official=False)
    assert (tmp_path / "vtab1k").read_text() == "a file"


def test_what_was_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "train800.parquet").write_bytes(b"half")
    export(TASKS["dtd"], small_origin(TASKS["dtd"]), tmp_path / "dtd", official=False)
    assert read_meta(tmp_path / "dtd", "dtd") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from vtab_origins import small_origin
from data_prep.vtab.export import export
from data_prep.vtab.tasks import TASKS
origin = small_origin(TASKS["dtd"])
records = origin.records
def slow(split, positions):
    if split == "test":
        print("writing", flush=True)
        time.sleep(60)
    yield from records(split, positions)
origin.records = slow
export(TASKS["dtd"], origin, Path(sys.argv[1]) / "dtd", official=False)
"""


def test_a_killed_export_leaves_nothing_that_is_taken_for_ready(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "dtd").exists()
    assert read_meta(tmp_path / "dtd", "dtd") is None
    assert (tmp_path / ".dtd.partial" / "val200.parquet").is_file()
    started = time.monotonic()
    export(TASKS["dtd"], small_origin(TASKS["dtd"]), tmp_path / "dtd", official=False)
    assert time.monotonic() - started < 30  # nobody waits for the dead
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]


def cut_off(folder: Path) -> None:
    file = folder / "test.parquet"
    file.write_bytes(file.read_bytes()[:-1])


def remove_a_split(folder: Path) -> None:
    (folder / "val200.parquet").unlink()


def break_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def empty_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("[]")


def change_format(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 2}))


def forget_a_split(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    del meta["splits"]["test"]
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("spoil", [cut_off, remove_a_split, break_meta, empty_meta, change_format, forget_a_split])
def test_a_folder_that_is_not_complete_is_not_ready(spoil: Any, tmp_path: Path) -> None:
    export(TASKS["dtd"], small_origin(TASKS["dtd"]), tmp_path / "dtd", official=False)
    assert read_meta(tmp_path / "dtd", "pets") is None
    assert read_meta(tmp_path / "dtd", "dtd") is not None
    spoil(tmp_path / "dtd")
    assert read_meta(tmp_path / "dtd", "dtd") is None


def test_the_same_origin_gives_the_same_files(tmp_path: Path) -> None:
    for copy in ("a", "b"):
        export(TASKS["clevr_distance"], small_origin(TASKS["clevr_distance"]), tmp_path / copy, official=False)
    for split in SPLITS:
        assert (tmp_path / "a" / f"{split}.parquet").read_bytes() == (tmp_path / "b" / f"{split}.parquet").read_bytes()
    labels = pq.read_table(tmp_path / "a" / "train800.parquet")["label"].to_numpy()
    assert len(np.unique(labels)) > 3
