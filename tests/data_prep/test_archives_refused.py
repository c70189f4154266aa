"""Archives that are refused: members that would escape, and damage; nothing is left of either."""

import gzip
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.archives import gunzip, unpack
from gift_vit.common.errors import ConfigError
from tests.data_prep.archive_trees import TREE, Change, assert_nothing_left, cut, files, flip, make, member, tar_of, zip_of


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    return member(name, type=kind, linkname=to)


def zipped(name: str, kind: int = stat.S_IFREG) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return zip_of({**TREE, info: b"/etc/passwd"})


HARD = tarfile.LNKTYPE
HOSTILE: list[list[tarfile.TarInfo]] = [  # the last member is the one that is named
    *[[member(name)] for name in ("../evil", "set/../../evil", "/tmp/evil", ".", "n" * 256)],
    [link("absolute link", "/etc/passwd")],
    [link("set/link", "../../evil")],
    *[[link("hard", to, HARD)] for to in ("../evil", "/etc/passwd", "absent")],
    [member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    *[[member("block or pipe", type=kind)] for kind in (tarfile.BLKTYPE, tarfile.FIFOTYPE)],
    [link("inner", "set"), member("inner/evil")],
    [link("inner", "readme"), member("inner")],
    [link("links", "set"), link("hard/evil", "links/empty.txt", HARD)],
    *[[member(name)] for name in ("set", "readme/evil")],
]
ESCAPES, SPECIAL = "its path would leave the folder it is unpacked to", "it is a link or a device"
REFUSED = [
    *[(".tar", tar_of(TREE, "w", tuple(members)), members[-1].name, "") for members in HOSTILE],
    *[(".zip", zipped(name), name, ESCAPES) for name in ("../evil", "set/../../evil", "/tmp/evil")],
    *[(".zip", zipped(name), name, "another member makes a folder of this file") for name in ("set", "readme/evil")],
    (".zip", zipped("."), ".", "it has no name"),
    (".zip", zipped("ü" * 128), "ü" * 128, "no file can have its name"),
    *[(".zip", zipped("link", kind), "link", SPECIAL) for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO)],
]


@pytest.mark.parametrize(("suffix", "body", "name", "why"), REFUSED)
def test_what_would_escape_is_refused(tmp_path: Path, suffix: str, body: bytes, name: str, why: str) -> None:
    """``evil`` would be beside the target; whatever came before it is taken back."""
    home = tmp_path / "home"
    home.mkdir()
    archive = home / f"a{suffix}"
    archive.write_bytes(body)
    with pytest.raises(ConfigError) as caught:
        unpack(archive, home / "out")
    message = str(caught.value)
    assert message.startswith(f"{archive} is refused because of its member {name!r}: {why}")
    assert message.endswith("; get the archive from its official source")
    assert_nothing_left(home, archive)
    assert_nothing_left(tmp_path, home)
    assert not Path("/tmp/evil").exists()


def test_an_empty_gz_is_one_line(tmp_path: Path) -> None:
    for content in (b"", gzip.compress(b"")):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.gz is damaged, incomplete or no archive of its kind \(it is empty\)"):
            gunzip(tmp_path / "a.gz", tmp_path / "a")
        assert_nothing_left(tmp_path, tmp_path / "a.gz")


def test_a_hostile_member_that_is_not_wanted_does_no_harm(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.tar", TREE, member("../evil"), member("device", type=tarfile.CHRTYPE))
    unpack(archive, tmp_path / "out", members=TREE.__contains__)
    assert files(tmp_path / "out") == TREE
    assert_nothing_left(tmp_path, archive, tmp_path / "out")


SECOND = 512 + -(-len(TREE["set/images/a.jpg"]) // 512) * 512  # where the header of a tar's second member is


def header_lost(body: bytes) -> bytes:
    """A tar in which the second member's header is overwritten, which tarfile takes for the end."""
    assert body[SECOND : SECOND + 14] == b"set/images/b.jpg"[:14]
    return body[:SECOND] + b"x" * 512 + body[SECOND + 512 :]


DAMAGE: list[tuple[str, Change]] = [
    *[(suffix, cut(share)) for suffix in (".tar", ".tgz", ".tar.bz2", ".tar.xz", ".zip") for share in (0.0, 0.0001, 0.3, 0.9)],
    *[(suffix, flip(0.5)) for suffix in (".tgz", ".tar.bz2", ".tar.xz", ".zip")],
    (".tgz", lambda body: body[:-1]),
    (".tgz", flip(0.999999)),
    (".zip", lambda body: body[:-1]),
    (".tar", header_lost),
    (".tar", lambda body: body[:SECOND]),
    *[(suffix, lambda _: b"<html>please log in</html>" * 100) for suffix in (".tar", ".tgz", ".zip")],
]


@pytest.mark.parametrize(("suffix", "damage"), DAMAGE)
def test_a_damaged_archive_is_one_line(tmp_path: Path, suffix: str, damage: Change) -> None:
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
    archive = make(tmp_path / "a.zip", {"secret.txt": b"text"})
    body = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<H", body, body.index(signature) + flags, 1)
    archive.write_bytes(body)
    with pytest.raises(ConfigError, match=rf"{archive} is encrypted \(secret.txt\)"):
        unpack(archive, tmp_path / "out")
