"""Archives for the tests: a tree of files, packed, and ways to damage it."""

import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

Tree = dict[str, bytes]

TREE: Tree = {
    "set/images/a.jpg": random.Random(0).randbytes(200_000),
    "set/images/b.jpg": random.Random(1).randbytes(70_001),
    "set/empty.txt": b"",
    "set/ümläut and space.txt": b"text",
    "readme": b"hello",
}
MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def make_tar(path: Path, tree: Tree, *others: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, body in tree.items():
            tar.addfile(member(name, size=len(body)), io.BytesIO(body))
        for other in others:
            tar.addfile(other)
    return path


def make_zip(path: Path, tree: Tree, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in tree.items():
            archive.writestr(name, body)
    return path


def make(path: Path, tree: Tree = TREE) -> Path:
    suffix = "".join(path.suffixes)
    return make_zip(path, tree) if suffix == ".zip" else make_tar(path, tree, mode=MODES[suffix])


def files(folder: Path) -> Tree:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_nothing_left(folder: Path, *archives: Path) -> None:
    """Not even a hidden file."""
    assert set(folder.iterdir()) == set(archives)


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda body: body[: int(len(body) * share)]


def flip(share: float) -> Callable[[bytes], bytes]:
    def damage(body: bytes) -> bytes:
        place = int(len(body) * share)
        return body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]

    return damage
