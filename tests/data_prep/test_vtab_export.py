import errno
import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vtab_origins import FakeOrigin, colour_of, number_of, png, small_origin

from data_prep.vtab.export import export
from data_prep.vtab.records import Key, Record
from data_prep.vtab.task_folder import read_meta
from data_prep.vtab.tasks import TASKS
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.config import RunConfig, compose_config, load_config
from gift_vit.data.base import build_dataset
from gift_vit.data.kinds.parquet import read_table
from gift_vit.runs.train import Call, train_run
from tests.warm import Process

SPLITS = ["train800", "val200", "test"]


def write(name: str, out: Path, origin: FakeOrigin | None = None) -> dict[str, Any]:
    return export(TASKS[name], origin or small_origin(TASKS[name]), out, official=False)


@pytest.mark.parametrize("name", TASKS)
def test_the_files_hold_the_rows_of_the_origin_and_are_read_so(name: str, tmp_path: Path) -> None:
    task, out = TASKS[name], tmp_path / "vtab1k" / name
    origin = small_origin(task)
    meta = export(task, origin, out, official=False)
    left = ["meta.json", "croissant.json", *(f"{s}.parquet" for s in SPLITS), name]
    assert sorted(path.name for path in out.parent.rglob("*")) == sorted(left)
    data = build_dataset(load_config(compose_config([f"dataset=vtab_{name}", f"paths.data_root={tmp_path}"])).dataset)
    assert (data.num_classes, data.source) == (task.num_classes, "original")
    for (split, cut), read in zip(task.cuts.items(), ("train", "val", "test"), strict=True):
        rows = pq.read_table(out / f"{split}.parquet").to_pylist()
        stored = origin.keys(cut.split)
        positions = list(cut.positions(len(stored)))
        assert [row["index"] for row in rows] == positions
        assert [row["id"] for row in rows] == [stored[position] for position in positions]
        for row in rows:
            assert row["image"] == task.image(origin.image(cut.split, row["id"]))
            assert row["label"] == task.label(origin.features(cut.split, row["id"]))
        assert meta["splits"][split]["images"] == len(rows) == {"train800": 800, "val200": 200}.get(split, len(rows))
        assert data.splits[read].labels.tolist() == [row["label"] for row in rows]
        last = rows[-1]["id"]
        colour = (255 * (number_of(last) % 2),) * 3 if task.builder.name == "dsprites" else colour_of(last)
        assert np.asarray(data.splits[read][len(rows) - 1][0])[0, 0].tolist() == list(colour)


def test_meta_and_files_tell_everything(tmp_path: Path) -> None:
    out, names = tmp_path / "root" / "vtab1k" / "pets", [f"breed {number}" for number in range(37)]
    written = write("pets", out, small_origin(TASKS["pets"], names))
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

    file = pq.ParquetFile(out / "train800.parquet")
    fields = [("image", pa.binary()), ("label", pa.int16()), ("id", pa.string()), ("index", pa.int64())]
    assert [(field.name, field.type) for field in file.schema_arrow] == fields
    assert [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)] == [500, 300]
    assert {file.metadata.row_group(0).column(column).compression for column in range(4)} == {"UNCOMPRESSED"}
    assert read_table([out / "train800.parquet"]).class_names == names
    content = bytearray((out / "test.parquet").read_bytes())
    content[300] ^= 1
    (out / "test.parquet").write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(out / "test.parquet", page_checksum_verification=True)


def test_class_names_of_the_builder_are_not_those_of_another_label(tmp_path: Path) -> None:
    meta = write("smallnorb_azimuth", tmp_path / "a", small_origin(TASKS["smallnorb_azimuth"], ["a"] * 5))
    assert meta["class_names"] is None
    assert read_table([tmp_path / "a" / "test.parquet"]).class_names is None


def official_origin(name: str, image: bytes, named: bool = True) -> FakeOrigin:
    """The builder in full size, with the same image for all keys, rows or ``named``; labels run through the classes."""
    task = TASKS[name]
    counts = task.builder.counts.items()
    keys: dict[str, list[Key]] = {split: [f"{split}{i}.jpg" if named else i for i in range(size)] for split, size in counts}
    labels = {key: number % task.num_classes for stored in keys.values() for number, key in enumerate(stored)}
    return FakeOrigin(keys, lambda *_: image, lambda _, key: {"label": labels[key]})


def cifar100(image: bytes) -> FakeOrigin:
    """CIFAR-100 in full size, with 90 classes in val200."""
    origin = official_origin("cifar100", image, named=False)
    positions = {key: number for number, key in enumerate(origin.stored["train"])}
    origin.features = lambda split, key: {"label": int(key) % 100 if split == "test" else positions[key] % 90}
    return origin


def test_official_data_passes_all_checks_or_leaves_nothing(tmp_path: Path) -> None:
    origin, out = cifar100(png(size=(32, 32))), tmp_path / "cifar100"
    meta = export(TASKS["cifar100"], origin, out)
    assert [split["images"] for split in meta["splits"].values()] == [800, 200, 10000]
    assert pq.read_table(out / "val200.parquet")["id"].to_pylist()[:3] == ["13431", "9237", "17462"]
    assert meta["splits"]["val200"]["cut"] == "train[45000:45200]"
    features = origin.features
    origin.features = lambda split, key: {"label": features(split, key)["label"] % 89}
    with pytest.raises(ConfigError, match="cifar100: the highest label in test is 88, expected 99"):
        export(TASKS["cifar100"], origin, tmp_path / "new" / "cifar100")
    assert not list((tmp_path / "new").iterdir())


def test_what_only_real_data_passes_is_checked_of_official_data_only(tmp_path: Path) -> None:
    task = TASKS["resisc45"]
    with pytest.raises(ConfigError, match=r"^resisc45: resisc45's split train holds 1500 images, expected 31500"):
        export(task, small_origin(task), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"^resisc45: image train\d+\.jpg is 4×4 pixels, expected 256×256"):
        export(task, official_origin("resisc45", png()), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_local_split_of_caltech101_is_a_recorded_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin = official_origin("caltech101", png())
    meta = export(TASKS["caltech101"], origin, tmp_path / "caltech101")
    (warning,) = meta["warnings"]
    assert "local" in warning
    assert f"caltech101: {warning}" in caplog.messages
    origin.description = {"num_bytes_train": "44481158", "num_bytes_test": "94837659"}
    with pytest.raises(ConfigError, match=r"caltech101: .* classes occur in val200, expected 86"):
        export(TASKS["caltech101"], origin, tmp_path / "caltech101")
    assert read_meta(tmp_path / "caltech101", "caltech101") == meta


Change: TypeAlias = Callable[[list[Record]], Iterable[Record]]


def with_one(**changes: Any) -> Change:
    """The records, the twentieth changed."""
    return lambda records: [*records[:20], replace(records[20], **changes), *records[21:]]


def cannot_read(records: list[Record]) -> Iterator[Record]:
    yield records[0]
    raise ConfigError("cannot read some.tar: unexpected end")


def validation(change: Change) -> Callable[[FakeOrigin], None]:
    """Changes an origin's validation records."""

    def spoil(origin: FakeOrigin) -> None:
        read, changes = origin.records, {"validation": change}
        origin.records = lambda split, positions: iter(changes.get(split, list)(list(read(split, positions))))

    return spoil


NO_LABEL = r"image validation_\d+.png has the label 47, expected 0 to 46"
OTHER = r"validation gave image 'validation_\d+.png' at position 20, expected 'val"
TOO_FEW = r"the cut train\[0:800\] needs more examples than the split's 700$"
ORDER = "dtd's split validation is not in the order .* position 0 holds 'validation_"
Spoil: TypeAlias = Callable[[FakeOrigin], object]
FAULTS: list[tuple[Spoil, type[Exception], str]] = [
    (validation(lambda records: records[:150]), RunError, "val200 ended after 150 images, expected 200"),
    (validation(lambda records: records[:20] + records[21:]), RunError, OTHER),
    (validation(with_one(image=png()[:30])), ConfigError, r"cannot decode image valid"),
    (validation(with_one(features={"label": 47})), ConfigError, NO_LABEL),
    (validation(cannot_read), ConfigError, "cannot read some.tar: unexpected end$"),
    (lambda origin: origin.stored["validation"].reverse(), ConfigError, ORDER),
    (lambda origin: origin.stored["train"].__delitem__(slice(700, None)), ConfigError, TOO_FEW),
    (lambda origin: setattr(origin, "class_names", ["a"] * 46), ConfigError, "the data names 46 classes, expected 47"),
]


@pytest.mark.parametrize(("spoil", "kind", "message"), FAULTS)
def test_a_fault_is_told_and_leaves_what_was_there(spoil: Spoil, kind: type[Exception], message: str, tmp_path: Path) -> None:
    before = write("dtd", tmp_path / "dtd")
    origin = small_origin(TASKS["dtd"])
    spoil(origin)
    with pytest.raises(kind, match=f"^dtd: {message}") as error:
        write("dtd", tmp_path / "dtd", origin)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]
    assert read_meta(tmp_path / "dtd", "dtd") == before


def test_a_broken_image_that_is_re_encoded_is_named(tmp_path: Path) -> None:
    origin = small_origin(TASKS["dsprites_location"])
    origin.image = lambda *_: b"no image"
    with pytest.raises(ConfigError, match=r"^dsprites_location: cannot decode image train_\d+\.png: it is broken"):
        write("dsprites_location", tmp_path / "dsprites", origin)
    assert not list(tmp_path.iterdir())


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
    write("eurosat", tmp_path / "eurosat", origin)
    assert 500 <= alive[1] <= 510


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq.ParquetWriter, "write_table", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RunError, match=r"dtd: no space left on the device while writing .*train800\.parquet"):
        write("dtd", tmp_path / "dtd")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "vtab1k").write_text("a file")
    with pytest.raises(ConfigError, match=r"dtd: cannot write .*vtab1k/dtd \((File|Not a).*\); choose another folder"):
        write("dtd", tmp_path / "vtab1k" / "dtd")
    assert (tmp_path / "vtab1k").read_text() == "a file"


def test_a_killed_export_leaves_nothing_that_is_taken_for_ready(tmp_path: Path) -> None:
    origin = small_origin(TASKS["dtd"])

    def slow(split: str, positions: range, records: Any = origin.records) -> Iterator[Record]:
        if split == "test":
            print("writing", flush=True)
            time.sleep(60)
        yield from records(split, positions)

    origin.records = slow
    with Process(lambda: write("dtd", tmp_path / "dtd", origin)) as process:
        process.until(lambda: process.stdout == "writing\n")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "dtd").exists()
    assert read_meta(tmp_path / "dtd", "dtd") is None
    assert (tmp_path / ".dtd.partial" / "val200.parquet").is_file()
    write("dtd", tmp_path / "dtd")  # nobody waits for the dead
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]


def with_meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    return lambda folder: (folder / "meta.json").write_text(json.dumps(change(json.loads((folder / "meta.json").read_text()))))


INCOMPLETE: list[Callable[[Path], object]] = [
    lambda folder: (folder / "test.parquet").write_bytes((folder / "test.parquet").read_bytes()[:-1]),
    lambda folder: (folder / "val200.parquet").unlink(),
    lambda folder: (folder / "meta.json").write_text("{"),
    with_meta(lambda _: []),
    with_meta(lambda meta: {**meta, "format": 2}),
    with_meta(lambda meta: {**meta, "splits": {split: meta["splits"][split] for split in ("train800", "val200")}}),
]


def test_a_folder_that_is_not_complete_is_not_ready(tmp_path: Path) -> None:
    write("dtd", tmp_path / "dtd")
    assert read_meta(tmp_path / "dtd", "pets") is None
    for number, spoil in enumerate(INCOMPLETE):
        copy = shutil.copytree(tmp_path / "dtd", tmp_path / str(number) / "dtd")
        assert read_meta(copy, "dtd") is not None
        spoil(copy)
        assert read_meta(copy, "dtd") is None


def test_the_same_origin_gives_the_same_files(tmp_path: Path) -> None:
    for copy in ("a", "b"):
        write("clevr_distance", tmp_path / copy)
    for split in SPLITS:
        assert (tmp_path / "a" / f"{split}.parquet").read_bytes() == (tmp_path / "b" / f"{split}.parquet").read_bytes()
    labels = pq.read_table(tmp_path / "a" / "train800.parquet")["label"].to_numpy()
    assert len(np.unique(labels)) > 3


def test_a_run_on_an_exported_task(tmp_path: Path, configure: Callable[..., RunConfig]) -> None:
    origin = small_origin(TASKS["eurosat"])
    origin.image = lambda _, key: png(size=(9, 7), colour=(len(str(key)) * 11, 3, 7))
    write("eurosat", tmp_path / "data/vtab1k/eurosat", origin)
    words = ["dataset=vtab_eurosat", f"paths.data_root={tmp_path / 'data'}", "dataset.cache=disk", "phase=final"]
    data = train_run(configure(*words, "trainer.epochs=1"), Call("python", [])).data
    assert (data.source, data.train_split, data.train_images, data.test_images) == ("original", "trainval", 1000, 300)
    assert data.decoder is not None
    # train, val and test: on disk even what is read once, since other runs will read it too
    assert len(list((tmp_path / "data/cache").glob("vtab_eurosat-*.arrow"))) == 3
