"""Whether a file is the one that is meant: its size and SHA-256, which is computed once and then remembered."""

import hashlib
import json
import logging
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal

from data_prep.progress import transfer
from gift_vit.errors import ConfigError, RunError
from gift_vit.files import write_json

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
_LARGE = 100 * CHUNK


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in lower-case hexadecimal."""
    found, done = hashlib.sha256(), 0
    size = path.stat().st_size
    if size > _LARGE:
        logger.info("computing the SHA-256 of %s (%s)", path, decimal(size))
    with path.open("rb") as file, transfer(f"checking {path.name}", size) as show:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            done += len(chunk)
            show(done)
    return found.hexdigest()


def mismatch(path: Path, size: int | None, digest: str | None) -> str | None:
    """What is wrong with a file: what it has and what was expected; None if nothing is. What is None is not checked."""
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        return f"it has {found_size} bytes, expected {size}"
    if digest is None or (found := sha256(path)) == digest:
        return None
    return f"it has {found_size} bytes and the SHA-256 {found}, expected {found_size if size else 'any number of'} and {digest}"


def remember(path: Path, digest: str) -> None:
    """Note in ``<name>.verified`` that the file has this SHA-256; nothing is noted where the folder is read-only."""
    try:
        write_json(_note(path), {**_identity(path), "sha256": digest})
    except (ConfigError, RunError, OSError) as error:
        logger.info("%s will be hashed again next time: %s", path, error)


def is_known(path: Path, digest: str) -> bool:
    """Whether that SHA-256 was noted for the file, and its size and time of modification are still the same."""
    with suppress(OSError, ValueError):
        return json.loads(_note(path).read_bytes()) == {**_identity(path), "sha256": digest}
    return False


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")
