"""Unpacking: the tree that comes out, one process at a time, and that nothing is left of what failed."""

import bz2
import gzip
import logging
import os
import signal
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import progress
from data_prep.archives import gunzip, gunzipped_from, open_zip, reading, unpack
from gift_vit.common.cli import log_to_stderr, run_command
from gift_vit.common.errors import ConfigError, RunError
from tests.data_prep.archive_trees import MODES, TREE, Change, assert_nothing_left, cut, files, flip, make, member, zip_of
from tests.warm import Process, until


@pytest.mark.parametrize("suffix", [*MODES, ".zip"])
def test_the_tree_is_what_was_packed(tmp_path: Path, suffix: str) -> None:
    archive = make(tmp_path / f"a{suffix}")
    unpack(archive, tmp_path / "new/folders/set")
    assert files(tmp_path / "new/folders/set") == TREE
    assert_nothing_left(tmp_path / "new/folders", tmp_path / "new/folders/set")


def test_the_kind_is_told_by_the_content(tmp_path: Path) -> None:
    inner = make(tmp_path / "in.zip")
    for name, archive in {
        "zip": make(tmp_path / "a.zip").rename(tmp_path / "zip.tgz"),
        "tar": make(tmp_path / "a.tar", {**TREE, "last.zip": inner.read_bytes()}).rename(tmp_path / "tar.zip"),
    }.items():
        unpack(archive, tmp_path / name)
        assert files(tmp_path / name).items() >= TREE.items()


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_only_the_wanted_members(tmp_path: Path, suffix: str) -> None:
    tree = {f"./{name}": body for name, body in TREE.items()} if suffix == ".tar" else TREE
    archive = make(tmp_path / f"a{suffix}", tree)
    unpack(archive, tmp_path / "out", members=lambda name: name.startswith("set/images/"))
    assert files(tmp_path / "out") == {name: body for name, body in TREE.items() if name.startswith("set/images/")}


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_an_archive_without_what_is_wanted(tmp_path: Path, suffix: str) -> None:
    archive = make(tmp_path / f"a{suffix}")
    found = r"holds none of the files that are needed \(at its top: readme, set\); is it the right archive\?"
    with pytest.raises(ConfigError, match=rf"{archive} {found}"):
        unpack(archive, tmp_path / "out", members=lambda name: name.endswith(".png"))
    with pytest.raises(ConfigError, match="holds none of the files"):
        unpack(make(tmp_path / f"empty{suffix}", {}), tmp_path / "out")
    assert_nothing_left(tmp_path, archive, tmp_path / f"empty{suffix}")


def test_links_that_stay_inside_are_kept_and_files_are_readable_and_nobody_s(tmp_path: Path) -> None:
    links = {"set/link.jpg": "images/a.jpg", "set/images/up": "../../readme", "set/hard.jpg": "set/images/b.jpg"}
    kinds = [tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]
    others = [member(name, type=kind, linkname=to) for (name, to), kind in zip(links.items(), kinds, strict=True)]
    secret = member("set/secret", mode=0o4000, uid=12345, gid=12345)
    unpack(make(tmp_path / "a.tar", TREE, *others, secret), tmp_path / "out")
    assert (tmp_path / "out/set/link.jpg").is_symlink()
    ends = {"set/link.jpg": "set/images/a.jpg", "set/images/up": "readme", "set/hard.jpg": "set/images/b.jpg"}
    assert {name: (tmp_path / "out" / name).read_bytes() for name in links} == {name: TREE[end] for name, end in ends.items()}
    status = (tmp_path / "out/set/secret").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, os.geteuid(), os.getegid())


def test_a_target_that_is_there_is_not_touched(tmp_path: Path) -> None:
    """Not even read is the archive: another process may have unpacked it a moment ago."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for target in ("out", "gone"):
        unpack(tmp_path / "absent.tgz", tmp_path / target)
        gunzip(tmp_path / "absent.gz", tmp_path / target)
    assert files(tmp_path) == {"out/mine": b"mine"}
    assert_nothing_left(tmp_path, tmp_path / "out", tmp_path / "gone")


def test_an_archive_that_cannot_be_read_or_a_target_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent.tar \(No such file or directory\); put the archive there"):
        unpack(tmp_path / "absent.tar", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"cannot read .*absent.zip \(No such file or directory\)"):
        open_zip(tmp_path / "absent.zip")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*folder.tar \(Is a directory\)"):
        unpack(tmp_path / "folder.tar", tmp_path / "out")
    assert_nothing_left(tmp_path, tmp_path / "folder.tar")
    archive = make(tmp_path / "a.tgz")
    with pytest.raises(ConfigError, match=r"cannot write .*a.tgz/out \(Not a directory\)|cannot write .*\(File exists\)"):
        unpack(archive, archive / "out")


def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("150k")
    (tmp_path / "a.gz").write_bytes(gzip.compress(TREE["set/images/a.jpg"]))
    for act, archive in ((unpack, make(tmp_path / "a.tgz")), (unpack, make(tmp_path / "a.zip")), (gunzip, tmp_path / "a.gz")):
        with pytest.raises(RunError, match=rf"no space left on the device while writing {disk}/out; free some and start"):
            act(archive, disk / "out")
        assert_nothing_left(disk)


def begin(archive: Path, target: Path) -> Process:
    """A process that stops in the middle of TREE until there is a file ``go``."""

    def slowly(name: str) -> bool:
        if name == "set/empty.txt":
            until((archive.parent / "go").exists)
        return True

    def action() -> None:
        log_to_stderr()
        sys.exit(run_command(lambda: unpack(archive, target, members=slowly)))

    return Process(action)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_no_target(tmp_path: Path, how: signal.Signals) -> None:
    archive, out = make(tmp_path / "a.tgz"), tmp_path / "data" / "out"
    with begin(archive, out) as process:
        process.until(lambda: list(tmp_path.glob("data/.out.*.partial/set/images/b.jpg")))
        process.send_signal(how)
        ended = process.wait()
    assert (ended.returncode, ended.stderr) == (130 if how == signal.SIGINT else -how, "")
    assert not out.exists()
    assert any(out.parent.glob(".out.*.partial")) == (how == signal.SIGKILL)
    unpack(archive, out)
    assert files(out) == TREE
    assert_nothing_left(out.parent, out)


def test_two_processes_unpack_once(tmp_path: Path) -> None:
    archive, out = make(tmp_path / "a.tgz"), tmp_path / "out"
    with begin(archive, out) as first:
        first.until(lambda: list(tmp_path.glob(".out.*.partial/set/images/b.jpg")))
        with begin(archive, out) as second:
            second.until(lambda: "another process holds" in second.stderr)
            assert len(list(tmp_path.glob(".out.*.partial"))) == 1
            (tmp_path / "go").touch()
            assert (first.wait().returncode, second.wait().returncode) == (0, 0)
    assert files(out) == TREE
    assert_nothing_left(tmp_path, archive, out, tmp_path / "go")


def test_leftovers_of_other_targets_stay(tmp_path: Path) -> None:
    mine, other = tmp_path / ".out[1].999999999.partial", tmp_path / ".out2.999999999.partial"
    for leftover in (mine, other):
        (leftover / "set").mkdir(parents=True)
    unpack(make(tmp_path / "a.tgz"), tmp_path / "out[1]")
    assert not mine.exists()
    assert other.exists()


def test_a_python_that_cannot_unpack_safely_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(ConfigError, match=r"Python 3.* cannot unpack safely; use 3.10.12, 3.11.4, 3.12 or newer"):
        unpack(make(tmp_path / "a.tar"), tmp_path / "out")
    assert_nothing_left(tmp_path, tmp_path / "a.tar")


def test_what_a_file_was_decompressed_from_is_known_until_it_changes(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"content"))
    assert gunzipped_from(tmp_path / "a") is None
    gunzip(tmp_path / "a.gz", tmp_path / "a", "12ab")
    assert gunzipped_from(tmp_path / "a") == "12ab"
    (tmp_path / "a").write_bytes(b"another")
    assert gunzipped_from(tmp_path / "a") is None


def test_gunzip(tmp_path: Path) -> None:
    body = TREE["set/images/a.jpg"] * 20
    (tmp_path / "a.mat.gz").write_bytes(gzip.compress(body))
    gunzip(tmp_path / "a.mat.gz", tmp_path / "new/a.mat")
    assert (tmp_path / "new/a.mat").read_bytes() == body
    assert_nothing_left(tmp_path / "new", tmp_path / "new/a.mat")


@pytest.mark.parametrize("damage", [cut(0.5), flip(0.5), flip(0.999999), lambda _: b"<html>", lambda body: body[:-1]])
def test_gunzip_of_damaged_bytes(tmp_path: Path, damage: Change) -> None:
    archive = tmp_path / "a.gz"
    archive.write_bytes(damage(gzip.compress(TREE["set/images/a.jpg"])))
    with pytest.raises(ConfigError, match=rf"{archive} is damaged, incomplete or no archive of its kind"):
        gunzip(archive, tmp_path / "a")
    assert_nothing_left(tmp_path, archive)


def test_open_zip(tmp_path: Path) -> None:
    path, body = tmp_path / "a.zip", zip_of(TREE, zipfile.ZIP_STORED)
    path.write_bytes(body)
    with open_zip(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == TREE
    path.write_bytes(body.replace(TREE["set/images/a.jpg"][:10], bytes(10)))
    with open_zip(path) as archive, pytest.raises(ConfigError, match=r"a.zip is damaged.*Bad CRC-32"), reading(path):
        archive.read("set/images/a.jpg")
    path.write_bytes(body[:-1000])
    with pytest.raises(ConfigError, match=r"a.zip is damaged, incomplete or no archive of its kind \(File is not a zip file\)"):
        open_zip(path)


def test_the_system_s_own_errors_are_not_called_damage(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), reading(tmp_path / "a.tar"):
        raise OSError(5, "Input/output error")
    with pytest.raises(ConfigError, match="Invalid data stream"), reading(tmp_path / "a.tar"):
        bz2.decompress(b"no bzip2" * 9)


def test_progress_counts_packed_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    for suffix in (".tar", ".tgz", ".zip"):
        unpack(make(tmp_path / f"a{suffix}"), tmp_path / suffix)
        lines = [line for line in caplog.messages if line.startswith(f"unpacking a{suffix}: ")]
        percents = [int(line[:-1].split()[-1]) for line in lines]
        assert len(percents) == len(TREE)
        assert percents == sorted(percents)
        assert 50 < percents[0] <= percents[-1] <= 100
