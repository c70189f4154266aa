"""Tables of texts: which files and columns are read, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_vit.common.errors import ConfigError
from gift_vit.data.base import VisionDataset, build_dataset
from gift_vit.data.config import TextColumnsConfig, TextConfig
from tests.text_models import rows, write


def read(root: Path, **options: Any) -> VisionDataset:
    return build_dataset(TextConfig(name="text", root=str(root), **options))


def texts(data: VisionDataset, split: str) -> list[tuple[Any, int]]:
    return [data.splits[split][index] for index in range(len(data.splits[split]))]


@pytest.mark.parametrize("ending", ["tsv", "csv", "json", "jsonl", "parquet"])
def test_every_form_gives_the_same_texts_and_classes(tmp_path: Path, ending: str) -> None:
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.{ending}", rows(12))
    data = read(tmp_path)
    assert data.class_names == ["no", "yes"]
    assert (data.decoder, data.thing) == ("none", "text")
    expected = [((row["sentence"],), int(row["label"] == "yes")) for row in rows(12)]
    assert [texts(data, split) for split in ("train", "val", "test")] == [expected] * 3


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (("sentence1", "sentence2", "label"), {}, ("a", "b")),
        (("question", "sentence", "label"), {}, ("a", "b")),
        (("Premise", "hypothesis", "label"), {}, ("a", "b")),
        (("text", "other", "label"), {}, ("a",)),
        (("text", "other", "label"), {"pair": "other"}, ("a", "b")),
        (("x", "text", "z"), {"text": "x", "label": "z"}, ("a",)),
    ],
)
def test_columns_are_known_by_usual_names_or_by_those_given(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, str], expected: tuple[str, ...]
) -> None:
    write(tmp_path / "train.csv", [dict(zip(names, ("a", "b", index % 2), strict=True)) for index in range(20)])
    data = read(tmp_path, columns=TextColumnsConfig(**options))
    assert texts(data, "train")[0][0] == expected
    assert (data.num_classes, data.class_names) == (2, None)  # whole numbers are the numbers of classes


def test_a_second_text_that_is_not_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train.csv", [{"sentence": "a", "hypothesis": "b", "id": n, "label": n % 2} for n in range(20)])
    assert texts(read(tmp_path), "train")[0][0] == ("a",)
    assert [m.rpartition("/")[2] for m in caplog.messages] == [
        "train.csv: column hypothesis is not read; if it shall, dataset.columns.pair=hypothesis"
    ]
    read(tmp_path, columns=TextColumnsConfig(text="sentence", pair="hypothesis"))
    assert len(caplog.messages) == 1


def test_names_of_integer_classes_are_read_of_parquet(tmp_path: Path) -> None:
    def put(file: str, names: list[str] | None) -> None:
        table = pa.table({"text": [f"{file} {index}" for index in range(8)], "label": [1, 0] * 4})
        info = {"features": {"text": {"dtype": "string"}, "label": {"names": names, "_type": "ClassLabel"}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": info})}), tmp_path / file)

    put("train.parquet", None)
    put("test.parquet", None)
    without = read(tmp_path)
    put("train.parquet", ["pos", "neg"])
    data = read(tmp_path)
    assert (without.class_names, data.class_names, data.num_classes) == (None, ["pos", "neg"], 2)
    assert data.fingerprint == without.fingerprint, "the numbers stay"
    assert read(tmp_path, metric="pearson").class_names is None
    put("test.parquet", ["neg", "pos"])
    with pytest.raises(ConfigError, match=r"the class names of \S*train\.parquet and \S*test\.parquet differ"):
        read(tmp_path)


def test_files_with_one_text_and_with_two_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence1\tsentence2\tlabel\n" + "a\tb\t0\nc\td\t1\n" * 5)
    (tmp_path / "test.tsv").write_text("sentence\tlabel\na\t0\n")
    with pytest.raises(ConfigError, match=r"test\.tsv has one column of texts and .*train\.tsv has two; name them"):
        read(tmp_path)


def test_long_texts_and_separators_within_quotation_marks_are_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    (tmp_path / "train.csv").write_text(f'"good; fine; nice",1\n{long},0\n' * 5)
    data = read(tmp_path, columns=TextColumnsConfig(text="1", label="2"))
    assert {text for text, _ in texts(data, "train")} == {("good; fine; nice",), (long,)}


def test_numbers_are_split_off_by_drawing(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"text": "a", "label": str(index / 7)} for index in range(20)])
    assert read(tmp_path, metric="pearson").origins["val"].drawn == "split off train: 4 of 20, drawn, seed 0"


def test_a_carriage_return_within_a_line_of_tsv_is_the_texts_own(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"text\tlabel\r\n" + b"so\rsaid\t0\r\nthen\t1\r\n" * 9)
    assert {text for text, _ in texts(read(tmp_path), "train")} == {("so\rsaid",), ("then",)}


def test_a_quotation_mark_in_tsv_is_a_character_and_in_csv_encloses(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + '"so\t0\nsaid\t1\n' * 9)
    (tmp_path / "train.csv").write_text("text,label\n" + '"""so",0\nsaid,1\n' * 9)
    for name in ("train.tsv", "train.csv"):
        assert {text for text, _ in texts(read(tmp_path / name), "train")} == {('"so',), ("said",)}


def test_quotation_marks_around_the_cells_of_tsv_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + '"so ""good"""\t1\n"so bad"\t0\n' * 8)
    read(tmp_path)
    assert (
        "train.tsv: cells are in quotation marks, which are read as a part of them; in TSV a quotation mark is" in caplog.text
    )
    (tmp_path / "train.tsv").write_text('text\tlabel\n"two\nlines"\t1\n')
    with pytest.raises(ConfigError, match=r"line 2 has not the 2 columns of the first; .* save it as \.csv"):
        read(tmp_path)


@pytest.mark.parametrize(("label", "told"), [("3.14", True), ("3,05", True), ("0.0", False), ("v1.2", False)])
def test_numbers_that_are_taken_for_classes_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, label: str, told: bool
) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + f"good\t{label}\nbad\t1\n" * 8)
    assert read(tmp_path).num_classes == 2
    said = f"{label} is taken for the name of a class; of numbers give dataset.metric=pearson"
    assert (said in caplog.text) == told


def test_columns_without_names_are_given_by_number(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tThe sailors rode.\ncj99\t0\t*\tAs you eat the most.\n" * 5)
    data = read(tmp_path, columns=TextColumnsConfig(text="4", label="2"))
    assert sum(len(split) for split in data.splits.values()) == 10
    assert (("The sailors rode.",), 1) in texts(data, "train")


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("train.csv", "sentnce,label\na,1\n", {}, r"none has a usual name of texts.*dataset.columns.text"),
        ("train.csv", "text,lbel\na,1\n", {}, r"none has a usual name of labels"),
        ("train.csv", "text,label\na,1\n", {"text": "txt"}, r"dataset.columns.text=txt: .* has the columns text, label"),
        ("train.csv", "text,label\na,1\n", {"pair": "b"}, r"dataset.columns.pair=b: .* has the columns text, label"),
        ("train.csv", "text,label\na,1\n", {"text": "text", "pair": "text"}, "names text for both texts"),
        ("train.csv", "text1,text1,text2,label\na,b,c,1\n", {}, "has 2 columns named text1; rename all but one of them"),
        ("train.csv", "text1,text2,text2,label\na,b,c,1\n", {}, "has 2 columns named text2"),
        ("train.csv", "text,label\n", {}, "holds no texts"),
        ("train.csv", "text,label\n,1\n", {}, r"line 2: column text holds nothing, expected text"),
        ("train.csv", "text,label\na,\n", {}, r"line 2: column label holds nothing"),
        ("train.tsv", "text\tlabel\na\n", {}, r"line 2 has not the 2 columns"),
        ("train.json", "[1]", {}, "row 1 is no object"),
        ("train.json", "[{", {}, "cannot be read as JSON"),
        ("train.jsonl", '{"text": "a", "label": 0.5}', {}, r"line 1: column label holds 0.5, expected the name or the number"),
        ("train.jsonl", '{"text": 3, "label": 0}', {}, r"line 1: column text holds 3, expected text"),
        ("train.jsonl", '{"text": "a \\ud83d", "label": 0}', {}, r"line 1: column text holds .ud83d, half of a character"),
        ("train.parquet", "no", {}, "cannot read .* as Parquet"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: str, options: dict[str, str], said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, columns=TextColumnsConfig(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "options", "said"),
    [
        ("maybe", {}, "has the class 'maybe', which .* has not"),
        ("-1", {"num_classes": 2}, "if it stands for texts that are not labelled, leave them out"),
    ],
)
def test_a_label_outside_the_task_is_refused(tmp_path: Path, label: str, options: dict[str, Any], said: str) -> None:
    known = ("yes", "no") if label == "maybe" else ("0", "1")
    write(tmp_path / "train.csv", [{"text": "a", "label": known[index % 2]} for index in range(10)])
    write(tmp_path / "test.csv", [{"text": "a", "label": label}])
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, **options)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(8))
    write(tmp_path / "train.jsonl", rows(8))
    with pytest.raises(ConfigError, match="have one name; keep one of them"):
        read(tmp_path)
