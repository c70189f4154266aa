"""Files appear whole or not at all, with the umask's mode, in the same bytes; what the system refuses is one line."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gift_vit.common.cli import report
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import atomic_path, check_readable, clear, locked, remove_leftovers, write_json, write_text
from gift_vit.common.tensors import write_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int64)}
METADATA = {name: f'"{name} ü"' for name in ("version", "method", "backbone", "format", "dataset", "class_names")}


def by_safetensors(path: Path) -> None:
    with atomic_path(path) as partial:
        save_file(TENSORS, partial)


def by_torch(path: Path) -> None:
    with atomic_path(path) as partial:
        torch.save(TENSORS, partial)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "text"),
    "json": lambda path: write_json(path, {"a": 1}),
    "tensors": lambda path: write_tensors(path, TENSORS, METADATA),
    "safetensors": by_safetensors,
    "torch": by_torch,
}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_has_the_umask_s_mode(tmp_path: Path, name: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[name](tmp_path / "file")
        WRITERS[name](tmp_path / "file")  # in place of the first
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_equal_tensors_and_metadata_are_equal_bytes_that_the_library_reads(tmp_path: Path) -> None:
    for index in range(8):
        shuffled = dict(list(METADATA.items())[index % 6 :] + list(METADATA.items())[: index % 6])
        write_tensors(tmp_path / str(index), TENSORS, shuffled)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == METADATA
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(tmp_path / "0").items())
    save_file(TENSORS, tmp_path / "plain")
    write_tensors(tmp_path / "own", TENSORS, {})
    assert (tmp_path / "own").read_bytes() == (tmp_path / "plain").read_bytes()


REFUSALS = [
    (errno.ENOSPC, RunError, "no space left on the device while writing {}; free some and start the same command again"),
    (errno.EDQUOT, RunError, "no space left on the device while writing {}; free some and start the same command again"),
    (errno.EACCES, ConfigError, "cannot write {} (Permission denied); choose another folder or change its permissions"),
    (errno.EROFS, ConfigError, "cannot write {} (Read-only file system); choose another folder or change its permissions"),
    (errno.ENOLCK, ConfigError, "cannot write {} (No locks available); choose another folder or change its permissions"),
]


@pytest.mark.parametrize(("number", "kind", "message"), REFUSALS)
@pytest.mark.parametrize("name", ["text", "tensors"])
def test_what_the_system_refuses_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, kind: type[Exception], message: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind) as raised:
        WRITERS[name](path)
    assert str(raised.value) == message.format(path)
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("old", 1)


@pytest.mark.parametrize(("number", "code", "said"), [(errno.EACCES, 2, "cannot read"), (errno.ENOSPC, 1, "no space")])
def test_what_nobody_has_explained_is_one_line_too(
    capsys: pytest.CaptureFixture[str], number: int, code: int, said: str
) -> None:
    assert report(OSError(number, os.strerror(number), "x/y")) == code
    told = capsys.readouterr().err
    assert told.startswith(f"error: {said}")
    assert ("x/y" in told, "Error" in told, told.count("\n")) == (True, False, 1)


@pytest.fixture(params=[errno.ENOSPC, errno.EDQUOT])
def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk, or a person's share of it, that takes no file more."""

    def refuse(**_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("gift_vit.common.files.TemporaryFile", refuse)


def test_a_full_disk_is_seen_where_a_library_hides_it(tmp_path: Path, full: None) -> None:
    with pytest.raises(RunError, match="no space left on the device while writing"), atomic_path(tmp_path / "file"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def test_what_a_library_says_stays_where_there_is_room(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="failed writing"), atomic_path(tmp_path / "file"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def test_a_mistake_while_writing_stays_that_mistake(tmp_path: Path, full: None) -> None:
    with pytest.raises(ConfigError, match=r"^mine$"), atomic_path(tmp_path / "file"):
        raise ConfigError("mine")


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    write = "from pathlib import Path; from gift_vit.common.files import write_text; write_text(Path('text'), '\\u2013 \\xe4')"
    own = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", write], cwd=tmp_path, env={**os.environ, **own, "PYTHONPATH": os.getcwd()}, check=True
    )
    assert (tmp_path / "text").read_bytes() == "– ä".encode()


def test_a_lock_that_cannot_be_taken_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("gift_vit.common.files.FileLock.acquire", refuse)
    with pytest.raises(ConfigError, match=r"cannot write .*run \(Permission denied\)"), locked(tmp_path / "run"):
        pass


def test_a_file_that_may_not_be_read_is_said_to_be_just_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"cannot read .*a \(Permission denied\); change its permissions"):
        check_readable(tmp_path / "a")


def test_leftovers_of_killed_processes_go_and_what_is_held_stays(tmp_path: Path) -> None:
    left = {".ab.13.partial", ".a.b.14.partial", ".b.lock", ".a.b.lock", "a", "a.partial"}
    for name in (".a.12.partial", ".a.lock", *left):
        (tmp_path / name).touch()
    (tmp_path / ".a.15.partial").mkdir()
    (tmp_path / ".a.15.partial" / "inside").touch()
    clear(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == left
    with locked(tmp_path / "a.b"):
        clear(tmp_path / "a.b")
        assert (tmp_path / ".a.b.14.partial").exists(), "whoever holds the lock may be writing it"
    with locked(tmp_path / "c"):
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"a", "a.partial", ".c.lock"}
