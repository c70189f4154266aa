"""CSV files of images and labels, as people have them; and what is refused, with the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.config import ColumnsConfig, CsvConfig, FolderConfig
from gift_vit.data.layout import kind_of

Make = Callable[..., Any]
CLASSES = {"a": "ant", "b": "bee"}


@pytest.fixture
def root(tmp_path: Path, make_tree: Make) -> Path:
    """Twelve images: ``pics/a/0.png`` … ``pics/b/5.png``."""
    return make_tree(tmp_path, {"pics/a": 6, "pics/b": 6})


@pytest.fixture
def read(root: Path, make_config: Make) -> Callable[..., VisionDataset]:
    """``read(text, **columns)``: the dataset of one file with that content."""

    def one(text: str | bytes, **columns: str) -> VisionDataset:
        (root / "list.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return build_dataset(make_config(CsvConfig, root=root / "list.csv", columns=ColumnsConfig(**columns)))

    return one


def rows(form: str, **more: Any) -> str:
    """A line for each image, in ``form`` with ``{path}``, ``{label}``, ``{number}`` and ``{index}``."""
    return "\n".join(
        form.format(path=f"pics/{folder}/{index}.png", label=label, number=number, index=index, **more)
        for number, (folder, label) in enumerate(CLASSES.items())
        for index in range(6)
    )


@pytest.mark.parametrize(
    ("text", "columns", "names"),
    [
        ("image,label\n" + rows("{path},{label}"), {}, ["ant", "bee"]),
        ("\ufeffImage;Class\r\n" + rows("{path};{label}\r"), {}, ["ant", "bee"]),
        ("file_name\tid\ttarget\n" + rows("{path}\t{index}\t{label}"), {}, ["ant", "bee"]),
        (rows("{path},{label}"), {}, ["ant", "bee"]),
        (rows("{label};{path}"), {}, ["ant", "bee"]),
        (rows("{index},{label},{path}"), {"image": "3", "label": "2"}, ["ant", "bee"]),
        ("foto,art\n" + rows("{path},{label}"), {"image": "foto", "label": "art"}, ["ant", "bee"]),
        ("image,label\n" + rows("{path},{number}"), {}, None),
        ('label,image\n"x, ""y""",pics/a/0.png\n' * 1 + rows('"x, ""y""",{path}'), {}, ['x, "y"']),
        ("image,label\n\n" + rows(" {path} , {label} ") + "\n\n", {}, ["ant", "bee"]),
        ("image,label\n" + rows("{path},{label}").replace("/", "\\"), {}, ["ant", "bee"]),
        ("image,label\n" + rows("./pics/../{path},{label}"), {}, ["ant", "bee"]),
        ("image,label\n" + rows("{path},0{number}"), {}, ["00", "01"]),
        ("sep=;\r\nimage;label\r\n" + rows("{path};{label}\r"), {}, ["ant", "bee"]),  # for Excel
        ("label,file.name,image\n" + rows("{label},{index},{path}"), {}, ["ant", "bee"]),
    ],
)
def test_files_as_people_have_them(read: Callable[..., VisionDataset], text: str, columns: Any, names: Any) -> None:
    dataset = read(text, **columns)
    assert dataset.class_names == names
    labels = {
        Path(source.where(index)).relative_to(Path(source.where(index)).parents[2]).as_posix(): int(source.labels[index])
        for source in dataset.splits.values()
        for index in range(len(source))
    }
    expected = {f"pics/{folder}/{index}.png": number for number, folder in enumerate("ab") for index in range(6)}
    assert labels == (expected if len(names or "ab") == 2 else dict.fromkeys(expected, 0))


def test_columns_by_their_places_where_names_have_no_ending(root: Path, read: Callable[..., VisionDataset]) -> None:
    for file in root.glob("pics/*/*.png"):
        file.rename(file.with_suffix(""))
    text = rows("{path},{label}").replace(".png", "")
    dataset = read(text, image="1", label="2")
    assert (dataset.class_names, sum(map(len, dataset.splits.values()))) == (["ant", "bee"], 12)
    with pytest.raises(ConfigError, match=r"dataset\.columns\.image=3: .*list\.csv has the columns pics/a/0, ant"):
        read(text, image="3", label="2")


def test_a_column_names_the_splits(read: Callable[..., VisionDataset]) -> None:
    splits = ("train", "Training", "TRAIN", "valid", "test", "test")
    text = "\n".join(f"pics/{folder}/{index}.png,{folder},{splits[index]}" for folder in "ab" for index in range(6))
    for name in ("split", "Set", "subset"):
        dataset = read(f"image,label,{name}\n{text}")
        assert {split: source.labels.tolist() for split, source in dataset.splits.items()} == {
            "train": [0, 0, 0, 1, 1, 1], "val": [0, 1], "test": [0, 0, 1, 1],
        }  # fmt: skip
        assert dataset.origins["val"].drawn is None
    assert read(f"image,label,part\n{text}", split="part").fingerprint == dataset.fingerprint
    assert read(f"image,label,part\n{text}").origins["val"].drawn is not None
    for unknown in ("holdout", ""):
        for name in ("split", "subset"):
            with pytest.raises(ConfigError, match=rf"list\.csv: '{unknown}' in the column of the split is of no known one"):
                read(f"image,label,{name}\n{text.replace('valid', unknown)}")
    with pytest.raises(ConfigError, match="no row is of train"):
        read("image,label,split\n" + rows("{path},{label},test"))


def test_a_column_that_could_name_splits_and_names_none_is_said(
    read: Callable[..., VisionDataset], caplog: pytest.LogCaptureFixture
) -> None:
    assert read("image,label,partition\n" + rows("{path},{label},{number}")).origins["test"].drawn is not None
    [message] = caplog.messages
    assert message.endswith("list.csv: column partition is not read, for it names no split; write train, val, test if it shall")
    read("image,label,split,set\n" + rows("{path},{label},train,0"))
    assert len(caplog.messages) == 1, "another one does"
    fold = ["train", "Valid", "test"] * 4
    text = "\n".join(f"{row},{split}" for row, split in zip(rows("{path},{label},train").splitlines(), fold, strict=True))
    assert read(f"image,label,from,fold\n{text}").origins["test"].drawn is not None
    assert [message.partition(": ")[2] for message in caplog.messages[1:]] == [
        "column fold names splits and is not read; if it shall, dataset.columns.split=fold"
    ]
    assert read(f"image,label,from,fold\n{text}", split="fold").origins["test"].drawn is None
    assert len(caplog.messages) == 2


def test_a_file_for_each_split_and_paths_relative_to_it(root: Path, make_tree: Make, make_config: Make) -> None:
    make_tree(root / "more", {"x": 2})
    (root / "Train.csv").write_text("image,label\n" + rows("{path},{label}"))
    (root / "validation.tsv").write_text(f"image\tlabel\n{root}/more/x/0.png\tant\nmore/x/1.png\tbee")
    dataset = build_dataset(make_config(CsvConfig, root=root))
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 12, "val": 2}
    assert dataset.splits["val"].content(0).startswith(b"more/x/0.png\0"), "the same data when it has moved"
    assert dataset.origins["val"].files == ("validation.tsv",)
    (root / "more/x/Train.csv").write_text("image,label\n0.png,ant\n1.png,bee\n../../pics/a/0.png,ant\n../../pics/b/0.png,bee")
    cfg = make_config(CsvConfig, root=root, files={"train": ["Train.csv", "more/x/Train.csv"], "val": ["validation.tsv"]})
    assert len(build_dataset(cfg).splits["train"]) == 16


def test_a_row_that_is_there_twice_counts_once_and_in_two_splits_twice(read: Callable[..., VisionDataset]) -> None:
    dataset = read("image,label\n" + rows("{path},{label}") + "\npics/a/0.png,ant\n./pics/a/0.png,ant")
    assert sum(len(source) for source in dataset.splits.values()) == 12
    assert dataset.origins["train"].skipped == {"rows that repeat another": 2}
    [whole] = {Path(source.where(0)).parents[2] for source in dataset.splits.values()}
    dataset = read("image,label\n" + rows("{path},{label}") + f"\n{whole}/pics/a/0.png,ant")
    assert dataset.origins["train"].skipped == {"rows that repeat another": 1}
    with pytest.raises(ConfigError, match=r"line 14: \S*/pics/a/0\.png has the label bee, and ant further up; keep one"):
        read("image,label\n" + rows("{path},{label}") + f"\n{whole}/pics/a/0.png,bee")
    dataset = read("image,label,split\n" + rows("{path},{label},train") + "\npics/a/0.png,ant,test\npics/b/0.png,bee,val")
    assert {split: len(source) for split, source in dataset.splits.items()} == {"train": 12, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list\.csv lists no images; expected a line of names, such as image,label"),
        ("image,label\n", r"list\.csv lists no images"),
        ("id,breed\n1,dog", r"has the columns id, breed; none has a usual name of images \(.*give dataset\.columns\.image="),
        ("image,breed\na.png,dog", "none has a usual name of labels"),
        ("image,path,label\na.png,b,c", "has the columns image and path, which may all be the images"),
        ("image,image,label\na.png,b,c", "has 2 columns named image"),
        ("image,label\na.png", r"line 2 has not the 2 columns of the first"),
        ("image,label\na.png,x,y", r"line 2 has not the 2 columns"),
        ("image,label\na.png,", r"line 2: a\.png has no label; give it one or remove the line"),
        ("image,label\n,cat", r"line 2 names no image"),
        ("image,label\nhttps://x.org/a.png,cat", r"line 2: https://x\.org/a\.png is an address; download the images"),
        ("image,label\ns3://x/a.png,cat", "is an address"),
        ("image,label\npics/a/0.png,x\npics/a/0.png,y", r"line 3: pics/a/0\.png has the label y, and x further up; keep one"),
        (
            "image,label,split\nno.png,x,train\nnor.png,x,train\npics/a/0.png,x,train",
            r"image \S*/no\.png is not there \(2 of 3 listed in \S*list\.csv are missing\); paths are relative to the list ",
        ),
        ("sep=,\nimage,label\na.png", r"line 3 has not the 2 columns of the first"),
        ('image,label\n"a.png,x', r"line 2 cannot be read as CSV: unexpected end of data"),
        ("image,label\na.png,\xe9".encode("latin-1"), r"list\.csv is no UTF-8 text"),
        ("image,label\n".encode("utf-16"), r"list\.csv is no UTF-8 text"),
        ("image,label\na.png,x\0", r"image \S*/a\.png is not there|line contains NUL"),  # Python 3.10 reads no NUL
        (f"image,label\npics/a/0.png,{2**63}", "labels beyond 64 bits; write them as words"),
        (f"image,label\npics/a/0.png,{'9' * 5000}", "labels beyond 64 bits; write them as words"),
        ("image,label\npics/a/0.png,-1\npics/a/1.png,0", r"list\.csv has the label -1; classes count from 0: .* not labelled"),
        ("image,label\npics/a/0.png,5000000\npics/a/1.png,0", "reach 5000000, which is too high for the number of a class"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(read: Callable[..., VisionDataset], text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_labels_that_are_numbers_in_one_file_and_text_in_another_are_text(root: Path, make_config: Make) -> None:
    (root / "train.csv").write_text("image,label\n" + rows("{path},{number}"))
    (root / "test.csv").write_text("image,label\npics/a/0.png,one")
    with pytest.raises(ConfigError, match=r"test \(\S*test\.csv\) has the class 'one', which train has not \(such images: 1\)"):
        build_dataset(make_config(CsvConfig, root=root))


def test_numbers_that_train_lacks_are_refused_as_names_are(root: Path, make_config: Make) -> None:
    (root / "train.csv").write_text("image,label\n" + rows("{path},{number}").replace(",1", ",3"))
    (root / "test.csv").write_text("image,label\npics/a/0.png,2\npics/a/1.png,2")
    with pytest.raises(ConfigError, match=r"test \(\S*test\.csv\) has the class 2, which train has not \(such images: 2\); "):
        build_dataset(make_config(CsvConfig, root=root))


def test_a_list_without_labels_is_left_out_by_naming_the_others(root: Path, make_config: Make) -> None:
    (root / "train.csv").write_text("image,label\n" + rows("{path},{label}"))
    (root / "test.csv").write_text("image\npics/a/0.png\n")
    with pytest.raises(ConfigError, match=r"leave the file out: dataset\.files\.train=\[…\] names those to read"):
        build_dataset(make_config(CsvConfig, root=root))
    named = make_config(CsvConfig, root=root, files={"train": ["train.csv"], "val": None, "test": None})
    assert list(build_dataset(named).splits) == ["train", "val"]


def test_lists_in_the_folders_of_splits(root: Path, make_config: Make) -> None:
    """As ``imagefolder`` of the Hugging Face Hub has them."""
    for split, folder in (("train", "a"), ("test", "b")):
        (root / "pics" / folder).rename(root / split)
        (root / split / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(6)))
    (root / "pics").rmdir()
    assert kind_of(root) == "csv"
    data = build_dataset(make_config(CsvConfig, root=root))
    assert {split: len(source) for split, source in data.splits.items()} == {"train": 4, "val": 2, "test": 6}
    with pytest.raises(ConfigError, match=r"train holds no class folders .*; for the list in it train with dataset=csv\Z"):
        build_dataset(make_config(FolderConfig, root=root))


def test_data_is_the_same_however_its_root_is_spelt(root: Path, make_config: Make) -> None:
    (root / "list.csv").write_text("image,label\n" + rows(f"{root}/{{path}},{{label}}"))
    (root.parent / "link").symlink_to(root)
    roots = (root / "list.csv", root / "pics/../list.csv", root.parent / "link/list.csv")
    assert len({build_dataset(make_config(CsvConfig, root=root)).fingerprint for root in roots}) == 1


def test_a_listed_name_is_found_in_the_unicode_form_of_the_disk(root: Path, make_tree: Make, make_config: Make) -> None:
    make_tree(root / "cafe\u0301", {"e\u0301": 6, "f": 6})
    lines = [f"caf\u00e9/{folder}/{index}.png,{folder}" for folder in ("\u00e9", "f") for index in range(6)]
    (root / "list.csv").write_text("\n".join(lines))
    dataset = build_dataset(make_config(CsvConfig, root=root / "list.csv"))
    assert dataset.class_names == ["f", "\u00e9"]
    assert len(dataset.splits["train"][0][0].getbands()) == 3
