import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from vtab_origins import FakeOrigin, small_origin

import data_prep.vtab.__main__ as vtab
from data_prep.vtab import export as export_module
from data_prep.vtab import original, tfds_origin
from data_prep.vtab.records import Origin
from data_prep.vtab.task_folder import read_meta
from data_prep.vtab.tasks import GROUPS, TASKS, Builder
from gift_vit.common.errors import ConfigError, RunError
from tests.warm import Process, act_as

Run = Callable[..., int]
Told = pytest.CaptureFixture[str]


class Opened:
    """Stands in for the two ways to open a builder, and notes what was asked of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, BaseException] = {}

    def original(self, builder: Builder, folder: Path | None, downloads: Path) -> Origin:
        self.calls.append(("original", builder.name, folder, downloads))
        return self._origin(builder, "original")

    def tfds(self, builder: Builder, tfds_dir: Path, manual_dir: Path | None) -> Origin:
        self.calls.append(("tfds", builder.name, tfds_dir, manual_dir))
        return self._origin(builder, "tfds")

    def _origin(self, builder: Builder, source: str) -> Origin:
        if builder.name in self.errors:
            raise self.errors[builder.name]
        return small_origin(next(task for task in TASKS.values() if task.builder is builder), source=source)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opened:
    """Small made-up origins instead of real ones, checked as far as they can pass; the working folder is ``tmp_path``."""
    stand_in = Opened()
    monkeypatch.setattr(original, "open_original", stand_in.original)
    monkeypatch.setattr(tfds_origin, "open_tfds", stand_in.tfds)
    monkeypatch.setattr(export_module, "export", partial(export_module.export, official=False))
    monkeypatch.setattr(vtab.cli, "interrupt_on_sigterm", lambda: None)
    for variable in ("GIFT_VIT_DATA", "TFDS_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return stand_in


@pytest.fixture
def run(command: Run) -> Run:
    """Takes words of the command; its exit code."""
    return partial(command, vtab)


def test_original_files_come_first_then_tfds(opened: Opened, run: Run, capsys: Told, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert run("dtd") == 0
    assert run("caltech101") == 0
    assert opened.calls == [
        ("original", "dtd", None, Path("data/downloads")),
        ("tfds", "caltech101", Path("~/tensorflow_datasets").expanduser(), None),
    ]
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["dtd", "ready: 800 + 200 + 30 images from source=original in data/vtab1k/dtd"],
        ["caltech101", "ready: 800 + 200 + 30 images from source=tfds in data/vtab1k/caltech101"],
    ]
    assert any(message.startswith("dtd: source=original") for message in caplog.messages)
    assert any(message.startswith("caltech101: source=tfds, since ") for message in caplog.messages)


def test_folders_come_from_the_words_and_the_environment(opened: Opened, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    assert run("dtd", "source=original", "root=here", "folder=mine") == 0
    assert run("svhn", "root=here", "archives=mine") == 0
    assert run("caltech101", "root=here", "archives=mine") == 0
    assert run("pets", "source=tfds", "root=here", "tfds_dir=prepared", "manual_dir=by_hand") == 0
    monkeypatch.setenv("GIFT_VIT_DATA", "from_environment")
    monkeypatch.setenv("TFDS_DATA_DIR", "tfds_from_environment")
    assert run("pets", "source=tfds") == 0
    assert opened.calls == [
        ("original", "dtd", Path("mine"), Path("here/downloads")),
        ("original", "svhn_cropped", Path("mine"), Path("here/downloads")),
        ("tfds", "caltech101", Path("~/tensorflow_datasets").expanduser(), Path("mine")),
        ("tfds", "oxford_iiit_pet", Path("prepared"), Path("by_hand")),
        ("tfds", "oxford_iiit_pet", Path("tfds_from_environment"), None),
    ]
    assert sorted(path.name for path in Path("here/vtab1k").iterdir()) == ["caltech101", "dtd", "pets", "svhn"]
    assert [path.name for path in Path("from_environment/vtab1k").iterdir()] == ["pets"]


def test_what_is_ready_is_left_alone_and_what_is_not_complete_prepared_again(opened: Opened, run: Run, capsys: Told) -> None:
    assert run("dtd") == 0
    before = {path: path.stat().st_mtime_ns for path in Path("data/vtab1k/dtd").iterdir()}
    assert run("dtd") == run("dtd", "source=original") == 0
    assert len(opened.calls) == 1
    assert {path: path.stat().st_mtime_ns for path in Path("data/vtab1k/dtd").iterdir()} == before
    assert capsys.readouterr().out.count("ready already, nothing to do: 800 + 200 + 30 images from source=original") == 2
    assert run("dtd", "source=tfds") == 2
    told = capsys.readouterr().err
    assert "error: dtd: data/vtab1k/dtd is ready from source=original; remove it to prepare it from source=tfds" in told
    file = Path("data/vtab1k/dtd/test.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert run("dtd") == 0
    assert file.read_bytes() == whole
    assert [path.name for path in Path("data/vtab1k").iterdir()] == ["dtd"]
    assert len(opened.calls) == 2


@pytest.mark.usefixtures("opened")
def test_what_is_ready_in_a_read_only_root(run: Run, small_disk: Callable[[str], Path], capsys: Told) -> None:
    root = small_disk("4m")
    assert run("dtd", f"root={root}") == 0
    assert os.system(f"mount -o remount,ro {root}") == 0
    assert run("dtd", f"root={root}") == 0
    assert "ready already, nothing to do: 800 + 200 + 30 images from source=original" in capsys.readouterr().out
    assert run("svhn", f"root={root}") == 2
    [line] = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: svhn: cannot write {root}/vtab1k/svhn (Read-only file system); choose another folder")


@pytest.mark.usefixtures("opened")
def test_what_was_found_unpacked_is_said(run: Run, capsys: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeOrigin, "describe", lambda _: {"files": "dtd/ (unpacked)"})
    assert run("dtd") == run("dtd") == 0
    found = "from source=original, which was found unpacked and not compared with the archive in data/vtab1k/dtd\n"
    assert capsys.readouterr().out.count(found) == 2


@pytest.mark.usefixtures("opened")
def test_a_second_process_finds_ready_what_it_waited_for(second: Callable[[Callable[[], str], Path], str]) -> None:
    def prepare() -> str:
        return vtab.Preparation(vtab.Arguments("dtd", root="data")).prepare(TASKS["dtd"])

    assert prepare().startswith("ready: ")
    assert second(prepare, Path("data/vtab1k/dtd").absolute()).startswith("ready already, nothing to do: 800 + 200 + 30 images")


def test_all_tasks_open_each_builder_once(opened: Opened, run: Run, capsys: Told) -> None:
    assert run("all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)
    assert all(line.split()[1] == "ready:" for line in lines)
    assert len(opened.calls) == len({name for _, name, *_ in opened.calls}) == 16
    assert {name for source, name, *_ in opened.calls if source == "tfds"} == set(original.UNAVAILABLE)
    assert all(read_meta(Path("data/vtab1k") / name, name) is not None for name in TASKS)


STALLED, UNFORESEEN = RunError("the download stalled"), ValueError("unforeseen")


MISSING = ModuleNotFoundError("No module named 'h5py'", name="h5py")
LACKING = "needs a package that is not there (No module named 'h5py'); type: pip install 'gift-vit[vtab]'"


@pytest.mark.parametrize(
    ("errors", "code", "told"),
    [
        ({"resisc45": STALLED}, 1, {"resisc45": "the download stalled"}),
        ({"eurosat": ConfigError("no zip"), "resisc45": STALLED}, 2, {"eurosat": "no zip", "resisc45": "the download stalled"}),
        ({"resisc45": UNFORESEEN}, 1, {"ValueError": "unforeseen (GIFT_VIT_TRACEBACK=1 shows where)"}),
        ({"patch_camelyon": MISSING}, 2, {"patch_camelyon": LACKING}),
    ],
)
def test_one_that_fails_does_not_stop_the_others(
    errors: dict[str, Exception], code: int, told: dict[str, str], opened: Opened, run: Run, capsys: Told
) -> None:
    opened.errors = {**errors}
    assert run("specialized") == code
    printed = capsys.readouterr()
    outcomes = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
    assert list(outcomes) == GROUPS["specialized"]
    for name, outcome in outcomes.items():
        assert outcome.startswith(f"failed: {told.get(name, 'unforeseen')}" if name in errors else "ready: ")
        assert (Path("data/vtab1k") / name).exists() == (name not in errors)
    shown = [f"error: {what}: {line}" for what, line in told.items()]
    assert [line for line in printed.err.splitlines() if line.startswith("error: ")] == shown


def test_an_interrupt_stops_and_says_how_far_it_came(opened: Opened, run: Run, capsys: Told) -> None:
    opened.errors = {"eurosat": KeyboardInterrupt()}
    assert run("specialized") == 130
    outcomes = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert outcomes[0].startswith("ready: ")
    assert outcomes[1:] == ["not prepared: interrupted"] * 3
    assert [path.name for path in Path("data/vtab1k").iterdir()] == ["patch_camelyon"]


MISTAKES = [
    ([], "task=…, or its value alone, is required"),
    (["kitti_distanse"], "no task 'kitti_distanse': give a task (cifar100, .*) or one of .*; did you mean kitti_distance?"),
    (["natral"], "did you mean natural?"),
    (["dtd", "source=tdfs"], "unknown source 'tdfs'; did you mean tfds? (known: auto, original, tfds, folder)"),
    (["dtd", "out=x"], "unexpected argument 'out=x': expected task=…, source=…, root=…"),
    (["dtd", "source=folder"], "source=folder needs folder=…"),
    (["dtd", "folder=absent"], "folder=absent is no folder"),
    (["dtd", "folder=.", "archives=."], "folder=… and archives=… mean the same"),
    (["dtd", "source=tfds", "folder=."], "source=tfds does not read folder=."),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_are_one_line(words: list[str], message: str, opened: Opened, run: Run, capsys: Told) -> None:
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for part in message.split(".*"):
        assert part in line
    assert not Path("data").exists()
    assert not opened.calls


def test_image_folders_are_read_and_marked(opened: Opened, run: Run, capsys: Told, tmp_path: Path) -> None:
    from test_vtab_folders import write_folder

    write_folder(tmp_path / "community" / "kitti", 4, {"train800": 800, "val200": 200, "test": 711})
    assert run("kitti_distance", "source=folder", "folder=community") == 0
    ready = "800 + 200 + 711 images from source=folder in data/vtab1k/kitti_distance (with a warning)\n"
    assert capsys.readouterr().out.endswith(ready)
    assert not opened.calls
    assert run("dtd", "source=folder", "folder=community") == 2
    assert "error: dtd: there is no folder dtd in community" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["folder", "original", "tfds"])
def test_files_of_a_persons_own_are_never_replaced(source: str, opened: Opened, run: Run, capsys: Told, tmp_path: Path) -> None:
    from test_vtab_folders import write_folder

    given = write_folder(tmp_path / "data/vtab1k/dtd", 2)
    (given / "meta.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert run("dtd", f"source={source}", *(["folder=data/vtab1k"] if source == "folder" else [])) == 2
    told = "error: dtd: data/vtab1k/dtd holds files that are not this command's, such as images/test/000000.jpg; move it away"
    assert told in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert not opened.calls
    shutil.rmtree(given / "images")
    for file in given.glob("*.txt"):
        file.unlink()
    assert run("dtd", "source=original") == 0, "a broken folder of the command's is"
    (given / "meta.json").unlink()
    assert run("dtd", "source=original") == 2, "one that nothing tells from a person's is not"


def without_packages(module: str, *words: str, cwd: Path) -> Process:
    """A process that knows none of the packages of the extra vtab."""

    def action() -> None:
        for package in ("tensorflow", "tensorflow_datasets", "array_record", "h5py", "scipy", "cv2"):
            for known in [name for name in sys.modules if name.split(".")[0] == package]:
                del sys.modules[known]
            sys.modules[package] = None  # pyright: ignore[reportArgumentType]
        act_as(module, words)

    return Process(action, cwd)


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--help"], 0, "python -m data_prep.vtab <what>", ""),
        (["nothing"], 2, "", "there is no task 'nothing'"),
        (["caltech101", "tfds_dir=absent"], 2, "caltech101 ", "pip install 'gift-vit[vtab]'"),
    ],
)
def test_help_and_errors_need_no_extra_package(words: list[str], code: int, out: str, err: str, tmp_path: Path) -> None:
    with without_packages("data_prep.vtab", *words, cwd=tmp_path) as process:
        ended = process.wait()
    assert ended.returncode == code
    assert out in ended.stdout
    assert err in ended.stderr
    assert "Traceback" not in ended.stderr
