"""Archives for the tests: a tree of files, packed, and ways to damage it."""

import io
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

Tree = Mapping[str, bytes]
Change = Callable[[bytes], bytes]

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


def tar_of(tree: Tree, mode: str = "w:gz", others: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, body in tree.items():
            tar.addfile(member(name, size=len(body)), io.BytesIO(body))
        for other in others:
            tar.addfile(other)
    return buffer.getvalue()


def zip_of(tree: Mapping[str | zipfile.ZipInfo, bytes] | Tree, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, body in tree.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def make(path: Path, tree: Tree = TREE, *others: tarfile.TarInfo) -> Path:
    """An archive of the kind that the path's suffix names."""
    suffix = "".join(path.suffixes)
    path.write_bytes(zip_of(tree) if suffix == ".zip" else tar_of(tree, MODES[suffix], others))
    return path


def files(folder: Path) -> Tree:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_nothing_left(folder: Path, *archives: Path) -> None:
    """Not even a hidden file."""
    assert set(folder.iterdir()) == set(archives)


def cut(share: float) -> Change:
    return lambda body: body[: int(len(body) * share)]


def flip(share: float) -> Change:
    def damage(body: bytes) -> bytes:
        place = int(len(body) * share)
        return body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]

    return damage
