"""Files that are there already, put by hand or fetched before; and folders that cannot be written to."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from data_prep import download
from data_prep.download import RemoteFile, fetch, verify
from gift_vit.common.cli import run_command
from gift_vit.common.errors import ConfigError, RunError
from tests.data_prep.download_case import BODY, HALF, OTHER, full, keep, names, sha, start
from tests.data_prep.http_server import FileServer


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose SHA-256 was computed."""
    paths: list[Path] = []
    compute = download.sha256
    monkeypatch.setattr(download, "sha256", lambda path: paths.append(path) or compute(path))
    return paths


def test_a_file_fetched_or_put_there_by_hand_is_hashed_once(server: FileServer, folder: Path, hashed: list[Path]) -> None:
    for _ in range(2):
        fetch(full(server.serve("a.tgz", BODY)), folder)
    assert len(hashed) == 1
    hashed.clear()
    (folder / "a.tgz.verified").unlink()
    path = keep(folder, BODY, "a.tgz")
    file = full("http://127.0.0.1:1/a.tgz")
    for _ in range(3):
        assert fetch(file, folder) == path
    assert hashed == [path]
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    verify(path, file)
    assert hashed == [path] * 2


def test_a_broken_note_or_one_of_another_checksum_is_not_trusted(folder: Path, hashed: list[Path]) -> None:
    keep(folder, BODY, "a.tgz")
    notes = ["", "[]", '{"size": 1', '{"sha256": 3}', "null"]
    for note in notes:
        (folder / "a.tgz.verified").write_text(note)
        fetch(full(""), folder)
    assert len(hashed) == len(notes)
    with pytest.raises(ConfigError, match=sha(OTHER)):
        fetch(full("", OTHER), folder)
    with pytest.raises(ConfigError, match=f"it has {len(BODY)} bytes, expected 7;"):
        fetch(RemoteFile("", "a.tgz", 7, sha(BODY)), folder)


def test_a_wrong_file_is_named_and_left_alone(server: FileServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = keep(folder, OTHER, "a.tgz")
    file = full(server.serve("a.tgz", BODY))
    assert run_command(lambda: print(fetch(file, folder))) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for part in (str(path), sha(OTHER), sha(BODY), str(len(BODY)), "move it away", file.url):
        assert part in line
    assert path.read_bytes() == OTHER
    assert server.log == []
    assert names(folder) == {"a.tgz"}


def test_what_is_truncated_or_unreadable_is_named(folder: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, file = folder / "a.tgz", full("http://x/a.tgz")
    with pytest.raises(ConfigError, match=r"a.tgz is not there; put the file of http://x/a.tgz at that place"):
        verify(path, file)
    keep(folder, BODY[:HALF], "a.tgz")
    with pytest.raises(ConfigError, match=f"a.tgz is damaged, incomplete or another file: it has {HALF} bytes, expected"):
        fetch(file, folder)
    assert hashed == []
    path.write_bytes(BODY)
    monkeypatch.setattr(download, "sha256", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(ConfigError, match=r"cannot read .*a.tgz: Permission denied; change its permissions"):
        fetch(file, folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"a.tgz is not a file"):
        fetch(file, folder)


@pytest.mark.parametrize("there", [False, True])
def test_a_read_only_folder(server: FileServer, there: bool) -> None:
    """What is there is used; nothing can be fetched."""
    with tempfile.TemporaryDirectory() as name:  # any user can reach it
        sealed = Path(name)
        if there:
            keep(sealed, BODY, "a.tgz").chmod(0o444)
        sealed.chmod(0o555)
        with start(server.serve("a.tgz", BODY), sealed, as_nobody=True) as process:
            ended = process.wait()
        sealed.chmod(0o700)
        assert names(sealed) == ({"a.tgz"} if there else set())
    if there:
        assert (ended.returncode, ended.stdout.strip()) == (0, str(sealed / "a.tgz")), ended.stderr
    else:
        assert ended.returncode == 2
        told = rf"error: cannot write {sealed}/a.tgz \(Permission denied\); choose another folder .*\n"
        assert re.fullmatch(told, ended.stderr)
    assert server.log == []


def test_a_folder_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write .*file/x/a.tgz \(Not a directory\)"):
        fetch(full("http://127.0.0.1:1/a.tgz"), tmp_path / "file/x")


def test_a_full_disk_keeps_what_has_come(server: FileServer, small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("600k")
    file = RemoteFile(server.serve("a.tgz", BODY, length=False), "a.tgz", sha256=sha(BODY))
    with pytest.raises(RunError, match=r"no space left on the device while writing .*a.tgz; free some and start"):
        fetch(file, folder)
    kept = (folder / "a.tgz.part").read_bytes()
    assert len(kept) > 400_000
    assert kept == BODY[: len(kept)]
    assert os.system(f"mount -o remount,size=4m {folder}") == 0
    assert fetch(file, folder).read_bytes() == BODY
    assert server.log[1].range == f"bytes={len(kept)}-"


def test_a_file_that_will_not_fit_is_refused_at_once(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.serve("a.tgz", BODY)
    room = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=200_000))
    monkeypatch.setattr(download, "shutil", room)
    with pytest.raises(RunError, match=r"no space left on the device: a.tgz needs 1.0 MB more in .*downloads, 200.0 kB are"):
        fetch(full(url), folder)
    assert not (folder / "a.tgz").exists()
    keep(folder, BODY[:900_000])
    assert fetch(full(url), folder).read_bytes() == BODY
