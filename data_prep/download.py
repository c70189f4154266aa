"""Downloading archives: resumable, retried, verified, and complete under their name or not there at all.

A file's SHA-256 is computed once and then remembered.
"""

import json
import logging
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from rich.filesize import decimal

from data_prep.progress import transfer
from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import clear, locked, sha256_of, write_json, writing

logger = logging.getLogger(__name__)

DELAYS_S = (1.0, 4.0, 16.0)  # before each further try, counted from the last one that brought something new
CONNECT_TIMEOUT_S = 20.0
STALL_TIMEOUT_S = 60.0
CHUNK = 128 * 1024
_TRY_AGAIN = {408, 425, 429}
_LARGE = 100 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server: where, under which name it is kept, and its size in bytes and SHA-256 where they are known."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


class _TransientError(Exception):
    """A failure that another try may not meet."""


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Return ``folder/name``, downloaded if it is not there, and verified.

    What has arrived is kept in ``<name>.part`` when the transfer breaks off, and the next call goes on from there. Two
    processes may fetch the same file: the second waits for the first.

    Raises:
        RunError: If the server does not give the file, or gives another one; or if the disk is full.
        ConfigError: If a file of that name is there but is not the right one, or the folder cannot be written to.
    """
    target = folder / file.name
    clear_leftovers(target)
    if not os.path.lexists(target):
        with writing(target):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(target):
                if not os.path.lexists(target):
                    _download(file, target)
                    return target
    verify(target, file)
    return target


def writable(folder: Path, downloads: Path) -> Path:
    """A folder of archives that may be shared; that of ``downloads`` where nothing can be written into it."""
    return downloads if folder.is_dir() and not os.access(folder, os.W_OK) else folder


def clear_leftovers(target: Path) -> None:
    """Remove what killed processes have left of fetching a file; what has arrived of it stays."""
    clear(target, _note(target), _Part(target).note)


def verify(path: Path, file: RemoteFile) -> None:
    """Check the size and the SHA-256 of a file that is there; one found right is not hashed again until it changes.

    Raises:
        ConfigError: If it is missing, unreadable or another file; the file is left as it is.
    """
    if not path.is_file():
        state = "is not a file" if os.path.lexists(path) else "is not there"
        raise ConfigError(f"{path} {state}; put the file of {file.url} at that place")
    try:
        if file.sha256 is not None and is_known(path, file.sha256) and file.size in {None, path.stat().st_size}:
            return
        problem = mismatch(path, file.size, file.sha256)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; change its permissions or fetch it again") from error
    if problem is not None:
        remedy = f"move it away and start the same command again, or put the file of {file.url} there"
        raise ConfigError(f"{path} is damaged, incomplete or another file: {problem}; {remedy}")
    if file.sha256 is not None:
        remember(path, file.sha256)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in lower-case hexadecimal."""
    size = path.stat().st_size
    if size > _LARGE:
        logger.info("computing the SHA-256 of %s (%s)", path, decimal(size))
    with transfer(f"checking {path.name}", size) as show:
        return sha256_of(path, show=show)


def mismatch(path: Path, size: int | None, digest: str | None) -> str | None:
    """What is wrong with a file: what it has and what was expected; None if nothing is. What is None is not checked."""
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        return f"it has {found_size} bytes, expected {size}"
    if digest is None or (found := sha256(path)) == digest:
        return None
    return f"it has {found_size} bytes and the SHA-256 {found}, expected {found_size if size else 'any number of'} and {digest}"


def is_right(path: Path, file: RemoteFile) -> bool:
    """Whether a file is there and what it should be; hashed once, as :func:`verify` does."""
    with suppress(ConfigError):
        verify(path, file)
        return True
    return False


def remember(path: Path, digest: str) -> None:
    """Note in ``<name>.verified`` that the file has this SHA-256; nothing is noted where the folder is read-only."""
    try:
        write_json(_note(path), identity(path, sha256=digest))
    except (ConfigError, RunError, OSError) as error:
        logger.info("%s will be hashed again next time: %s", path, error)


def is_known(path: Path, digest: str) -> bool:
    """Whether that SHA-256 was noted for the file, and its size and time of modification are still the same."""
    with suppress(OSError, ValueError):
        return json.loads(_note(path).read_bytes()) == identity(path, sha256=digest)
    return False


def identity(path: Path, **known: str) -> dict[str, Any]:
    """What is known of a file, with what tells whether it is still the same."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, **known}


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


class _Part:
    """What has arrived of a file, with a note of where it came from and the version (ETag or date) the server named."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, url: str) -> str | None:
        """The version the server named for what has arrived; None if it named none, or if it came from another URL."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self.note.read_bytes())
            return known["version"] if known["url"] == url else None
        return None

    def usable(self, file: RemoteFile) -> int:
        """How many bytes can be built upon: none if neither a version nor a checksum would tell another file's apart."""
        size = self.size
        if file.size is not None and size > file.size:
            return 0
        return size if file.sha256 is not None or self.version(file.url) is not None else 0

    def begin(self, url: str, version: str | None) -> None:
        """Empty it; only then note the version, lest bytes of an older one pass for this one's."""
        self.path.write_bytes(b"")
        write_json(self.note, {"url": url, "version": version})

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _download(file: RemoteFile, target: Path) -> None:
    """Fetch and check; what was put together from two transfers, or may have been cut, is fetched once more in one piece."""
    part = _Part(target)
    doubtful = _receive_patiently(file, part, target)
    problem = mismatch(part.path, file.size, file.sha256)
    if problem is not None and doubtful:
        logger.warning("%s: %s; fetching it once more from the start", part.path, problem)
        part.discard()
        _receive_patiently(file, part, target)
        problem = mismatch(part.path, file.size, file.sha256)
    if problem is not None:
        part.discard()
        raise RunError(_failed(file, target, f"the server gave another file: {problem}"))
    part.path.replace(target)
    part.discard()
    if file.sha256 is not None:
        remember(target, file.sha256)
    logger.info("fetched %s (%s)", target, decimal(target.stat().st_size))


def _receive_patiently(file: RemoteFile, part: _Part, target: Path) -> bool:
    """Receive with further tries; returns what :func:`_receive` does."""
    furthest, failures = part.size, 0
    while True:
        if failures:
            time.sleep(DELAYS_S[failures - 1])
        try:
            return _receive(file, part, target)
        except requests.exceptions.SSLError as error:
            raise RunError(_failed(file, target, f"no secure connection ({_reason(error)})")) from error
        except (_TransientError, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            failures = 0 if part.size > furthest else failures
            furthest = max(furthest, part.size)
            if failures == len(DELAYS_S):
                kept = f" to go on from the {part.size} bytes that are here" if part.size else ""
                again = f"start the same command again{kept}, or put it at {target}"
                raise RunError(f"cannot download {file.url}: {_reason(error)}; {again}") from error
            logger.warning("%s: %s; trying again in %g s", file.url, _reason(error), DELAYS_S[failures])
            failures += 1
        except requests.RequestException as error:
            raise RunError(_failed(file, target, str(error))) from error


def _receive(file: RemoteFile, part: _Part, target: Path) -> bool:
    """Bring the part to its full length by one request.

    Returns whether a wrong checksum may be mended by starting over: the bytes come from two transfers, or nobody said how many
    there would be.
    """
    offset, version = part.usable(file), part.version(file.url)
    if offset and offset == file.size:
        return True
    # not compressed on the way: some servers call .tgz a compressed .tar, and would have it unpacked on arrival
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", **({"If-Range": version} if version else {})}
    with requests.get(file.url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, STALL_TIMEOUT_S)) as response:
        start, total = _announced(response)
        if offset and response.status_code == 416 and total == offset:
            return True
        if offset and (response.status_code == 416 or start is None or _is_other(response, start, offset, version)):
            part.discard()
            raise _TransientError("the server has another version of the file than the part that is here")
        _check_answer(file, target, response, total)
        if not start:
            part.begin(file.url, _version(response))
        total = total if total is not None else file.size
        needed, free = (total or 0) - (start or 0), shutil.disk_usage(target.parent).free
        if needed > free:  # better told before an hour's download than after it
            lacking = f"{file.name} needs {decimal(needed)} more in {target.parent}, {decimal(free)} are free"
            raise RunError(f"no space left on the device: {lacking}; free some and start the same command again")
        _write(response, part, total)
    if total is not None and part.size < total:
        raise _TransientError(f"the connection was closed after {part.size} of {total} bytes")
    return bool(start) or total is None


def _write(response: requests.Response, part: _Part, total: int | None) -> None:
    """Append the body to the part as it comes, and see that it is on the disk."""
    response.raw.enforce_content_length = False  # a short body is counted, and said more plainly, by the caller
    with part.path.open("ab") as out, transfer(part.path.stem, total) as show:
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            out.write(chunk)
            show(out.tell())
        out.flush()
        os.fsync(out.fileno())


def _announced(response: requests.Response) -> tuple[int | None, int | None]:
    """The offset at which the body begins in the file, and the file's size; each None if the server does not tell it."""
    if response.status_code in {206, 416}:
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        start, size = found.groups() if found else (None, "*")
        return None if start is None else int(start), None if size == "*" else int(size)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _is_other(response: requests.Response, start: int, offset: int, version: str | None) -> bool:
    """Whether an answer to a request for the rest does not continue the part (one that begins anew does no harm)."""
    return start > 0 and (start != offset or (version is not None and _version(response) not in {None, version}))


def _version(response: requests.Response) -> str | None:
    """What ``If-Range`` accepts: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _check_answer(file: RemoteFile, target: Path, response: requests.Response, total: int | None) -> None:
    code = response.status_code
    what = f"the server answered {code} {response.reason}"
    if code in _TRY_AGAIN or code >= 500:
        raise _TransientError(what)
    if code not in {200, 206}:
        raise RunError(_failed(file, target, what))
    if response.headers.get("Content-Type", "").startswith("text/html"):  # no file is one, and what has arrived is to stay
        raise RunError(_failed(file, target, "the server answered with a web page, such as one to log in"))
    if file.size is not None and total not in {None, file.size}:
        raise RunError(_failed(file, target, f"the server offers {total} bytes, expected {file.size}"))


def _failed(file: RemoteFile, target: Path, what: str) -> str:
    return f"cannot download {file.url}: {what}; get {file.name} in another way and put it at {target}"


def _reason(error: BaseException) -> str:
    """The system's own words, which libraries wrap several times."""
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"nothing came for {STALL_TIMEOUT_S:g} s"
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
