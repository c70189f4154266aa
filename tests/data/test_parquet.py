"""Parquet datasets: small files, with everything that can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import build_dataset
from gift_vit.data.config import ColumnsConfig, ParquetConfig
from gift_vit.data.decode import OWN_DATA
from gift_vit.data.kinds.parquet import read_table

Png = Callable[[int], bytes]
Write = Callable[..., Path]
Make = Callable[..., Any]


def test_shards_are_read_in_order(tmp_path: Path, png: Png, write_parquet: Write, make_config: Make) -> None:
    images, labels = [png(seed) for seed in range(10)], [0, 1] * 5
    write_parquet(tmp_path / "all.parquet", images, labels)
    write_parquet(tmp_path / "train-00001.parquet", images[4:], labels[4:])
    write_parquet(tmp_path / "train-00000.parquet", images[:4], labels[:4])
    whole = read_table([tmp_path / "all.parquet"])
    shards = read_table([tmp_path / "train-00000.parquet", tmp_path / "train-00001.parquet"])
    assert whole.encoded.to_pylist() == shards.encoded.to_pylist() == images
    assert whole.labels.tolist() == shards.labels.tolist() == labels
    assert whole.labels.dtype == np.int64
    assert np.asarray(OWN_DATA(shards.content(6))).tolist() == np.asarray(shards[6][0]).tolist()
    one = build_dataset(make_config(ParquetConfig, root=tmp_path, files={"train": ["all.parquet"]}))
    many = build_dataset(make_config(ParquetConfig, root=tmp_path, files={"train": ["train-*.parquet", "train-00000.parquet"]}))
    assert one.fingerprint == many.fingerprint
    assert list(many.splits) == ["train", "val"]
    assert [len(source) for source in many.splits.values()] == [8, 2]


def test_plain_binary_images_and_small_labels(tmp_path: Path, png: Png, make_config: Make) -> None:
    """The columns data_prep writes for VTAB-1k."""
    images, labels = pa.array([png(seed) for seed in range(4)], pa.binary()), pa.array([0, 1, 0, 2], pa.int16())
    pq.write_table(pa.table({"image": images, "label": labels, "id": ["a", "b", "c", "d"]}), tmp_path / "t.parquet")
    files = {"train": ["t.parquet"], "val": ["t.parquet"]}
    dataset = build_dataset(make_config(ParquetConfig, root=tmp_path, files=files))
    assert (dataset.num_classes, dataset.class_names) == (3, None)
    assert dataset.split("trainval").labels.tolist() == [0, 1, 0, 2] * 2
    np.testing.assert_array_equal(np.asarray(dataset.split("train")[2][0]), np.asarray(OWN_DATA(png(2))))


def test_class_names_from_either_metadata(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}
    hub = write_parquet(tmp_path / "hub.parquet", [png(0)], [1], huggingface=json.dumps({"info": {"features": features}}))
    own = write_parquet(tmp_path / "own.parquet", [png(0)], [1], class_names="ant|bee")
    none = write_parquet(tmp_path / "none.parquet", [png(0)], [1], huggingface=json.dumps({"info": {}}))
    assert read_table([hub]).class_names == read_table([own]).class_names == ["ant", "bee"]
    assert read_table([none]).class_names is None
    assert read_table([none, own]).class_names == ["ant", "bee"]
    other = write_parquet(tmp_path / "other.parquet", [png(0)], [1], class_names="bee|ant")
    with pytest.raises(ConfigError, match=r"class names of .*own\.parquet and .*other\.parquet differ"):
        read_table([own, other])


def test_classes_agree_over_splits(tmp_path: Path, png: Png, write_parquet: Write, make_config: Make) -> None:
    write_parquet(tmp_path / "train.parquet", [png(0), png(1)], [0, 1], class_names="ant|bee")
    write_parquet(tmp_path / "val.parquet", [png(2)], [1], class_names="bee|ant")
    files = {"train": ["train.parquet"], "val": ["val.parquet"]}
    with pytest.raises(ConfigError, match="class names of some's train files and some's val files differ"):
        build_dataset(make_config(ParquetConfig, root=tmp_path, files=files))
    files = {"train": ["train.parquet"], "val": ["train.parquet"]}
    with pytest.raises(ConfigError, match="num_classes=3, but the data names 2 classes"):
        build_dataset(make_config(ParquetConfig, root=tmp_path, files=files, num_classes=3))
    write_parquet(tmp_path / "train.parquet", [png(seed) for seed in range(10)], [0, 1] * 5)
    write_parquet(tmp_path / "test.parquet", [png(11), png(12)], [1, 2])
    files = {"train": ["train.parquet"], "test": ["test.parquet"]}
    with pytest.raises(ConfigError, match=r"test \(.*test\.parquet\) has the class 2, which train has not \(such images: 1\)"):
        build_dataset(make_config(ParquetConfig, root=tmp_path, files=files))


def test_patterns_may_match_nothing_names_not(tmp_path: Path, png: Png, write_parquet: Write, make_config: Make) -> None:
    write_parquet(tmp_path / "train.parquet", [png(seed) for seed in range(10)], [0, 1] * 5)
    files: Any = {split: [f"{split}*.parquet"] for split in ("train", "val", "test")}
    dataset = build_dataset(make_config(ParquetConfig, root=tmp_path, files=files))
    assert list(dataset.splits) == ["train", "val"]
    with pytest.raises(ConfigError, match=r"has no test split \(it has train, val\)"):
        dataset.split("test")
    for split, pattern in (("test", "test.parquet"), ("val", "val.parquet"), ("train", "t?.parquet")):
        cfg = make_config(ParquetConfig, root=tmp_path, files={**files, split: [pattern]})
        with pytest.raises(ConfigError) as caught:
            build_dataset(cfg)
        assert str(caught.value) == f"dataset some: there is no file {tmp_path / pattern} for {split}; ask the author"
    with pytest.raises(ConfigError, match=f"dataset some: there is no folder {tmp_path / 'gone'}; ask the author"):
        build_dataset(make_config(ParquetConfig, root=tmp_path / "gone"))
    with pytest.raises(ConfigError, match=f"dataset some: there is no file {tmp_path}/gone.Parquet; ask the author"):
        build_dataset(make_config(ParquetConfig, root=tmp_path / "gone.Parquet"))


def test_files_are_of_the_three_splits_and_name_train(make_config: Make) -> None:
    for files, named in (
        ({}, "nothing"),
        ({"train": []}, "train"),
        ({"train": ["a"], "validation": ["b"]}, "train, validation"),
    ):
        with pytest.raises(ConfigError, match=f"dataset.files names {named}: name train, and if there are any val and test"):
            make_config(ParquetConfig, root=".", files=files)


def test_wrong_files_are_named(tmp_path: Path, png: Png) -> None:
    file = tmp_path / "t.parquet"
    file.write_bytes(b"PNG and certainly nothing else")
    with pytest.raises(ConfigError, match=r"cannot read .*t\.parquet as Parquet: [^\n]*$"):
        read_table([file])
    image, label = [png(0)], [0]
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"foto": image, "label": label},
            r"has the columns foto, label; none has a usual name of images \(.*dataset.columns.image=",
        ),
        ({"image": image, "id": label}, r"none has a usual name of labels .* one to label, or give dataset.columns.label="),
        (
            {"image": image, "img": image, "label": label},
            "the columns image and img, which may all be the images; rename all but",
        ),
        ({"image": image, "label": label, "labels": label}, "the columns label and labels, which may all be the labels"),
        ({"image": image, "label": ["cat"]}, "its labels are text; expected integers"),
        ({"image": image, "label": [0.5]}, "column label is double; expected integers, text"),
        ({"image": image, "label": pa.array([2**63], pa.uint64())}, f"cannot read .*: .*{2**63}"),
        ({"image": image, "label": pa.array([b"\xff"], pa.binary()).cast(pa.string(), safe=False)}, "cannot read .*UTF8"),
        ({"image": image, "label": pa.nulls(1)}, "column label is null; expected integers"),
        ({"image": ["a.png"], "label": label}, "column image is string; expected encoded images"),
        ({"image": [{"path": "a.png"}], "label": label}, "column image is struct<path: string>; expected encoded images"),
        ({"image": [png(0), None], "label": [0, 1]}, "row 1 has no image bytes"),
        ({"image": [png(0), png(1)], "label": [0, None]}, "row 1 has no label"),
        ({"image": [{"bytes": png(0), "path": b"\xff"}], "label": label}, "cannot read .*UTF8"),
    ]
    for columns, message in wrong:
        pq.write_table(pa.table(columns), file)
        with pytest.raises(ConfigError, match=message):
            read_table([file])
    twice = pa.Table.from_arrays([pa.array(image), pa.array(image), pa.array(label)], ["image", "image", "label"])
    pq.write_table(twice, file)
    with pytest.raises(ConfigError, match="has 2 columns named image; rename all but one"):
        read_table([file])
    with pytest.raises(ConfigError, match="no Parquet files to read"):
        read_table([])


@pytest.mark.parametrize(
    "metadata",
    [
        {b"class_names": b"\xff\xfe"},
        {b"class_names": b"ant|ant"},
        {b"huggingface": b"\xff"},
        {b"huggingface": b"{"},
        {b"huggingface": b"[" * 100_000},
        {b"huggingface": b"[]"},
        {b"huggingface": b'{"info": 1}'},
        {b"huggingface": b'{"info": {"features": []}}'},
        {b"huggingface": b'{"info": {"features": {"label": "int"}}}'},
        {b"huggingface": b'{"info": {"features": {"label": {"names": {"a": 1}}}}}'},
        {b"huggingface": b'{"info": {"features": {"label": {"names": [1]}}}}'},
    ],
)
def test_metadata_of_another_shape_is_one_line(tmp_path: Path, png: Png, metadata: dict[bytes, bytes]) -> None:
    table = pa.table({"image": [png(0)], "label": [0]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"^[^\n]*t\.parquet: its metadata has no class names that can be read \([^\n]*$"):
        read_table([tmp_path / "t.parquet"])


BOOL, CATEGORY = pa.array([True, False, True]), pa.array(["b", "a", "b"]).dictionary_encode()


@pytest.mark.parametrize(
    ("columns", "given", "names", "labels"),
    [
        ({"img": 0, "fine_label": [1, 0, 1], "coarse_label": [0, 0, 0]}, {}, None, [1, 0, 1]),
        ({"IMAGE": 0, "Labels": [1, 0, 1], "path": ["x", "y", "z"]}, {}, None, [1, 0, 1]),
        ({"jpg": 0, "target": ["b", "a", "b"]}, {}, ["a", "b"], [1, 0, 1]),
        ({"jpg": 0, "target": pa.array(["b", "a", "b"], pa.string_view())}, {}, ["a", "b"], [1, 0, 1]),
        ({"pixel_values": 0, "class": BOOL}, {}, ["false", "true"], [1, 0, 1]),
        ({"image": 0, "label": CATEGORY}, {}, ["a", "b"], [1, 0, 1]),
        ({"image": 0, "label": pa.array([2, 0, 2]).dictionary_encode()}, {}, None, [2, 0, 2]),
        ({"foto": 0, "art": ["b", "a", "b"]}, {"image": "foto", "label": "art"}, ["a", "b"], [1, 0, 1]),
        ({"image": 0, "img": 0, "label": [1, 0, 1], "y": [0, 0, 0]}, {"image": "img", "label": "label"}, None, [1, 0, 1]),
        ({"image": 0, "label": ["caf\u00e9", "a", "cafe\u0301"]}, {}, ["a", "caf\u00e9"], [1, 0, 1]),
        ({"image": 0, "label": ["cat ", "ant", "cat"]}, {}, ["ant", "cat"], [1, 0, 1]),
    ],
)
def test_columns_and_labels_as_people_have_them(
    tmp_path: Path, png: Png, make_config: Make, columns: Any, given: Any, names: Any, labels: list[int]
) -> None:
    images = [png(seed) for seed in range(3)]
    table = pa.table({name: images if value == 0 else value for name, value in columns.items()})
    for split in ("train", "val"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    cfg = make_config(ParquetConfig, root=tmp_path, files={}.fromkeys(("train", "val", "test")), columns=ColumnsConfig(**given))
    dataset = build_dataset(cfg)
    assert dataset.class_names == names
    assert dataset.split("trainval").labels.tolist() == labels * 2
    assert dataset.splits["val"].stored(2) == images[2]


def test_a_column_names_the_splits_in_every_shard(tmp_path: Path, png: Png, make_config: Make) -> None:
    images, splits = [png(seed) for seed in range(10)], ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    table = pa.table({"image": images, "label": [0, 1, 1, 0, 0, 1, 1, 0, 1, 1], "subset": splits})

    def read() -> Any:
        pq.write_table(table.slice(0, 4), tmp_path / "all-00000-of-00002.parquet")
        return build_dataset(make_config(ParquetConfig, root=tmp_path, files={}.fromkeys(("train", "val", "test"))))

    pq.write_table(table.slice(4), tmp_path / "all-00001-of-00002.parquet")
    dataset = read()
    assert {split: source.content(1) for split, source in dataset.splits.items()} == {
        "train": images[1], "val": images[7], "test": images[9],
    }  # fmt: skip
    assert [source.labels.tolist() for source in dataset.splits.values()] == [[0, 1, 1, 0, 0, 1], [1, 0], [1, 1]]
    table = table.drop_columns("subset")
    with pytest.raises(ConfigError, match=r"all-00000-of-00002\.parquet …: some of the files have a column of the split"):
        read()


def test_a_column_names_the_splits_in_a_file_named_train(tmp_path: Path, png: Png, make_config: Make) -> None:
    images, splits = [png(seed) for seed in range(10)], ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    table = pa.table({"image": images, "label": [0, 1] * 5, "split": splits})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")

    def read() -> Any:
        return build_dataset(make_config(ParquetConfig, root=tmp_path, files={}.fromkeys(("train", "val", "test"))))

    assert {split: len(source) for split, source in read().splits.items()} == {"train": 6, "val": 2, "test": 2}
    pq.write_table(table.slice(0, 2), tmp_path / "test.parquet")
    told = r"train-00000-of-00001\.parquet: rows are of test by the column of the split, and there are files of test, too; keep"
    with pytest.raises(ConfigError, match=told):
        read()


def test_an_empty_label_is_named(tmp_path: Path, png: Png, make_config: Make) -> None:
    pq.write_table(pa.table({"image": [png(0), png(1)], "label": ["cat", " "]}), tmp_path / "all.parquet")
    with pytest.raises(ConfigError, match=r"all\.parquet row 1 has an empty label; write it into the file, or leave the row"):
        build_dataset(make_config(ParquetConfig, root=tmp_path, files={"train": ["all.parquet"]}))


def test_an_undecodable_image_is_named(tmp_path: Path, png: Png, write_parquet: Write) -> None:
    write_parquet(tmp_path / "a.parquet", [png(0)] * 4, [0] * 4)
    write_parquet(tmp_path / "b.parquet", [png(0), b"no image", b"", png(1)[:200]], [0] * 4)
    table = read_table([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert table[4][0].mode == "RGB"
    for row, reason in ((1, "no known image format"), (2, "no known image format"), (3, "trunc")):
        message = rf"^cannot decode image in .*b\.parquet, row {row} \(photo_{row}\.png\): .*{reason}"
        with pytest.raises(ConfigError, match=message):
            table[4 + row]
