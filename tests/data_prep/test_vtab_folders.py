from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from vtab_origins import png

from data_prep.complete import complete_folder, preparing
from data_prep.vtab.folders import FOLDERS, LOSSY, export_folder
from data_prep.vtab.task_folder import read_meta
from data_prep.vtab.tasks import TASKS
from gift_vit.common.errors import ConfigError

SIZES = {"train800": 8, "val200": 4, "test": 6}


def write_folder(folder: Path, num_classes: int, sizes: dict[str, int] = SIZES) -> Path:
    """A task's folder as the community's scripts write it; images differ by split and number."""
    for split, size in sizes.items():
        (folder / "images" / split).mkdir(parents=True)
        lines = []
        for number in range(size):
            path = f"images/{split}/{number:06d}.jpg"
            (folder / path).write_bytes(png(colour=(number % 256, number // 256, len(split))))
            lines.append(f"{path} {number % num_classes}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize(("name", "folder"), [(name, folder) for name, folders in FOLDERS.items() for folder in folders])
def test_each_task_is_found_under_each_of_its_names(name: str, folder: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "vtab" / folder, 2)
    meta = export_folder(TASKS[name], tmp_path / "vtab", tmp_path / name, official=False)
    assert meta["origin"] == {"folder": str(tmp_path / "vtab" / folder)}
    assert meta == read_meta(tmp_path / name, name)


def test_every_task_has_names_of_its_own() -> None:
    assert set(FOLDERS) == set(TASKS)
    names = [folder for folders in FOLDERS.values() for folder in folders]
    assert len(set(names)) == len(names)


def test_images_ids_labels_and_line_numbers_are_the_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the loss is told and recorded."""
    folder = write_folder(tmp_path / "vtab" / "cifar", 100)
    images = [(folder / "images" / "test" / f"{number:06d}.jpg").read_bytes() for number in range(6)]
    meta = export_folder(TASKS["cifar100"], tmp_path / "vtab", tmp_path / "out", official=False)
    ids, numbers = [f"images/test/{number:06d}.jpg" for number in range(6)], [0, 1, 2, 3, 4, 5]
    columns = {"image": images, "label": numbers, "id": ids, "index": numbers}
    assert pq.read_table(tmp_path / "out" / "test.parquet").to_pydict() == columns
    assert (meta["source"], meta["class_names"], meta["warnings"]) == ("folder", None, [LOSSY])
    cuts = {name: (split["cut"], split["images"]) for name, split in meta["splits"].items()}
    assert cuts == {name: (f"{name}.txt", size) for name, size in SIZES.items()}
    assert "JPEG re-encodings: results on them are not comparable" in LOSSY
    assert ("WARNING", f"cifar100: {LOSSY}") in [(record.levelname, record.message) for record in caplog.records]


def test_blank_lines_do_not_count_and_paths_may_hold_spaces(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dtd", 47)
    (folder / "images" / "val200" / "000001.jpg").rename(folder / "images" / "val200" / "a picture.jpg")
    lines = (folder / "val200.txt").read_text().splitlines()
    (folder / "train800.txt").write_text((folder / "train800.txt").read_text(), encoding="utf-8-sig")
    (folder / "val200.txt").write_text(f"\n{lines[0]}\r\n  \nimages/val200/a picture.jpg\t 1\n{lines[2]}\n{lines[3]}\n\n")
    export_folder(TASKS["dtd"], tmp_path, tmp_path / "out", official=False)
    rows = pq.read_table(tmp_path / "out" / "val200.parquet", columns=["id", "label", "index"]).to_pylist()
    names = [f"images/val200/{name}.jpg" for name in ("000000", "a picture", "000002", "000003")]
    assert [tuple(row.values()) for row in rows] == list(zip(names, range(4), (1, 3, 4, 5), strict=True))


def test_the_list_of_all_thousand_must_hold_both(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dtd", 47)
    lines = [f"images/train800val200/{number:06d}.jpg 0\n" for number in range(12)]
    (folder / "train800val200.txt").write_text("".join(lines))
    export_folder(TASKS["dtd"], tmp_path, tmp_path / "out", official=False)
    (folder / "train800val200.txt").write_text("".join(lines[1:]))
    wrong = r"dtd: .*train800val200\.txt lists 11 images, expected the 12 of train800\.txt and val200"
    with pytest.raises(ConfigError, match=wrong):
        export_folder(TASKS["dtd"], tmp_path, tmp_path / "other", official=False)


def third_line(line: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        lines = (folder / "val200.txt").read_text().splitlines()
        (folder / "val200.txt").write_text("\n".join([*lines[:2], line, *lines[3:]]))

    return spoil


IMAGE = "images/val200/000002.jpg"
NO_LABEL = [IMAGE, f"{IMAGE} cat", f"{IMAGE} -1"]
NO_FOLDER = "there is no folder oxford_iiit_pet or oxford_pet or pets in .*; folder=… names the folder that holds"
NO_LIST = r"cannot read the list .*oxford_pet/test\.txt \(.*No such file.*\); each split needs one"
NO_IMAGE = rf"cannot read .*{IMAGE} \(No such file or directory\), which .*oxford_pet/val200\.txt line 3 names"
FAULTS = [
    (lambda folder: folder.rename(folder.with_name("other")), NO_FOLDER),
    (lambda folder: (folder / "test.txt").unlink(), NO_LIST),
    (lambda folder: (folder / IMAGE).unlink(), NO_IMAGE),
    (lambda folder: (folder / IMAGE).write_bytes(b"\xff\xd8"), f"cannot decode image {IMAGE}"),
    *((third_line(line), f"val200.txt line 3 is '{line}', expected '<path> <label>'") for line in NO_LABEL),
    (third_line(f"{IMAGE} 37"), r"image in .*val200\.txt line 3 has the label 37, expected 0 to 36"),
    (third_line("images/val200/000001.jpg 1"), "line 3 names images/val200/000001.jpg again, expected every image once"),
    (third_line("images/test/000001.jpg 1"), r"/test\.txt names images/test/000001\.jpg, which val200\.txt names too"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS)
def test_bad_input_is_one_line_and_writes_nothing(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    spoil(write_folder(tmp_path / "vtab" / "oxford_pet", 37))
    with pytest.raises(ConfigError, match=f"^pets: .*{message}") as error:
        export_folder(TASKS["pets"], tmp_path / "vtab", tmp_path / "root" / "pets", official=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "root").exists() or not list((tmp_path / "root").iterdir())


def test_official_folders_have_the_official_numbers_and_classes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "vtab" / "kitti", 4, {"train800": 800, "val200": 200, "test": 711})
    assert export_folder(TASKS["kitti_distance"], tmp_path / "vtab", tmp_path / "out")["splits"]["test"]["images"] == 711
    whole = (folder / "test.txt").read_text()
    (folder / "test.txt").write_text("\n".join(whole.splitlines()[1:]))
    with pytest.raises(ConfigError, match=r"kitti_distance: .*kitti/test\.txt lists 710 images, expected 711"):
        export_folder(TASKS["kitti_distance"], tmp_path / "vtab", tmp_path / "other")
    (folder / "test.txt").write_text(whole)
    for split in ("train800", "val200", "test"):
        text = (folder / f"{split}.txt").read_text()
        (folder / f"{split}.txt").write_text(text.replace(".jpg 3\n", ".jpg 2\n"))
    with pytest.raises(ConfigError, match="kitti_distance: the highest label in all is 2, expected 3"):
        export_folder(TASKS["kitti_distance"], tmp_path / "vtab", tmp_path / "other")


def test_what_a_killed_export_leaves_beside_a_complete_folder_goes(tmp_path: Path) -> None:
    for name in ("task", ".task.partial", ".task.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".task.lock").touch()
    with preparing(tmp_path / "task"):
        assert [path.name for path in sorted(tmp_path.iterdir())] == [".task.lock", "task"]
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def test_what_a_person_puts_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").touch()
    refused = pytest.raises(ConfigError, match="task holds files that are not this command's, such as notes; move it away")
    with refused, complete_folder(tmp_path / "task", ["file"]):
        (tmp_path / "mine").rename(tmp_path / "task")
    assert [path.name for path in tmp_path.rglob("*")] == ["task", "notes"]


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    out, there = tmp_path / "data/task", tmp_path / "big/task"
    out.parent.mkdir()
    out.symlink_to(there)
    (tmp_path / "big/.task.replaced").parent.mkdir()
    (tmp_path / "big/.task.replaced").symlink_to(tmp_path)
    for text in ("first", "second"):
        with preparing(out), complete_folder(out, ["file"]) as stage:
            (stage / "file").write_text(text)
        assert (there / "file").read_text() == text
        assert [path.is_symlink() for path in out.parent.iterdir()] == [True]
        assert [path.name for path in there.parent.iterdir()] == ["task"]
