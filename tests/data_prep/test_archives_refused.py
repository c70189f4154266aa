"""Archives that are refused: members that would escape, and damage; nothing is left of either."""

import gzip
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.archives import gunzip, unpack
from gift_vit.common.errors import ConfigError
from tests.data_prep.archive_trees import TREE, assert_nothing_left, cut, files, flip, make, make_tar, make_zip, member

HOSTILE: dict[str, list[tarfile.TarInfo]] = {
    "../evil": [member("../evil")],
    "set/../../evil": [member("set/../../evil")],
    "/tmp/evil": [member("/tmp/evil")],
    "absolute link": [member("absolute link", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
    "set/link": [member("set/link", type=tarfile.SYMTYPE, linkname="../../evil")],
    "hard": [member("hard", type=tarfile.LNKTYPE, linkname="../evil")],
    "hard absolute": [member("hard absolute", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "hard to nothing": [member("hard to nothing", type=tarfile.LNKTYPE, linkname="absent")],
    "device": [member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "block": [member("block", type=tarfile.BLKTYPE)],
    ".": [member(".")],
    "n" * 256: [member("n" * 256)],
    "pipe": [member("pipe", type=tarfile.FIFOTYPE)],
    "inner/evil": [member("inner", type=tarfile.SYMTYPE, linkname="set"), member("inner/evil")],
    "inner": [member("inner", type=tarfile.SYMTYPE, linkname="readme"), member("inner")],
    "hard/evil": [
        member("links", type=tarfile.SYMTYPE, linkname="set"),
        member("hard/evil", type=tarfile.LNKTYPE, linkname="links/empty.txt"),
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tar_that_would_escape_is_refused(tmp_path: Path, name: str) -> None:
    """``evil`` would be beside the target; whatever came before it is taken back."""
    home = tmp_path / "home"
    home.mkdir()
    archive = make_tar(home / "a.tar", TREE, *HOSTILE[name])
    with pytest.raises(ConfigError) as caught:
        unpack(archive, home / "out")
    message = str(caught.value)
    assert message.startswith(f"{archive} is refused because of its member {name!r}: ")
    assert message.endswith("; get the archive from its official source")
    assert_nothing_left(home, archive)
    assert_nothing_left(tmp_path, home)
    assert not Path("/tmp/evil").exists()


NAMES = {
    **dict.fromkeys(("../evil", "set/../../evil", "/tmp/evil"), "its path would leave"),
    ".": "it has no name",
    "ü" * 128: "no file can have its name",
}


@pytest.mark.parametrize(("name", "why"), NAMES.items())
def test_a_zip_that_would_escape_is_refused(tmp_path: Path, name: str, why: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {**TREE, name: b"evil"})
    with pytest.raises(ConfigError, match=re.escape(f"{archive} is refused because of its member {name!r}: {why}")):
        unpack(archive, tmp_path / "out")
    assert_nothing_left(tmp_path, archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_zip_with_links_or_devices_is_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ConfigError, match="member 'link': it is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert_nothing_left(tmp_path, tmp_path / "a.zip")


def test_an_empty_gz_is_one_line(tmp_path: Path) -> None:
    for content in (b"", gzip.compress(b"")):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.gz is damaged, incomplete or no archive of its kind \(it is empty\)"):
            gunzip(tmp_path / "a.gz", tmp_path / "a")
        assert_nothing_left(tmp_path, tmp_path / "a.gz")


def test_a_hostile_member_that_is_not_wanted_does_no_harm(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", TREE, member("../evil"), member("device", type=tarfile.CHRTYPE))
    unpack(archive, tmp_path / "out", members=TREE.__contains__)
    assert files(tmp_path / "out") == TREE
    assert_nothing_left(tmp_path, archive, tmp_path / "out")


def header_lost(body: bytes) -> bytes:
    """A tar in which the second member's header is overwritten, which tarfile takes for the end."""
    second = 512 + -(-len(TREE["set/images/a.jpg"]) // 512) * 512
    assert body[second : second + 14] == b"set/images/b.jpg"[:14]
    return body[:second] + b"x" * 512 + body[second + 512 :]


def cut_between_members(body: bytes) -> bytes:
    return body[: 512 + -(-len(TREE["set/images/a.jpg"]) // 512) * 512]


DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    *[(suffix, cut(share)) for suffix in (".tar", ".tgz", ".tar.bz2", ".tar.xz", ".zip") for share in (0.0, 0.0001, 0.3, 0.9)],
    *[(suffix, flip(0.5)) for suffix in (".tgz", ".tar.bz2", ".tar.xz", ".zip")],
    (".tgz", lambda body: body[:-1]),
    (".tgz", flip(0.999999)),
    (".zip", lambda body: body[:-1]),
    (".tar", header_lost),
    (".tar", cut_between_members),
    *[(suffix, lambda _: b"<html>please log in</html>" * 100) for suffix in (".tar", ".tgz", ".zip")],
]


@pytest.mark.parametrize(("suffix", "damage"), DAMAGE)
def test_a_damaged_archive_is_one_line(tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    archive = make(tmp_path / f"a{suffix}")
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ConfigError) as caught:
        unpack(archive, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"{archive} is damaged, incomplete or no archive of its kind (")
    assert message.endswith("); delete it and fetch it again")
    assert "\n" not in message
    assert_nothing_left(tmp_path, archive)


def test_bytes_after_the_end_are_overlooked(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.tgz")
    archive.write_bytes(archive.read_bytes() + b"left by an old mirror" * 99)
    unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == TREE


def test_an_encrypted_zip_is_one_line(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"secret.txt": b"text"})
    body = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", body, body.index(signature) + flags, 1)
    archive.write_bytes(body)
    with pytest.raises(ConfigError, match=rf"{archive} is encrypted \(secret.txt\)"):
        unpack(archive, tmp_path / "out")
