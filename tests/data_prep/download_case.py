"""What the tests of downloads share: the bytes, a file of them, and a process that fetches it."""

import hashlib
import os
import random
import sys
from pathlib import Path

from data_prep.download import RemoteFile, fetch
from gift_vit.common.cli import log_to_stderr, run_command
from tests.warm import Process

BODY = random.Random(0).randbytes(1_000_003)
OTHER = random.Random(1).randbytes(len(BODY))
HALF = 500_000
ETAG, DATE = '"v1"', "Wed, 21 Oct 2015 07:28:00 GMT"


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def full(url: str, body: bytes = BODY) -> RemoteFile:
    return RemoteFile(url, "a.tgz", len(body), sha(body))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def keep(folder: Path, body: bytes, name: str = "a.tgz.part") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(body)
    return folder / name


def start(url: str, folder: Path, log: bool = False, as_nobody: bool = False) -> Process:
    """A process that fetches BODY."""

    def action() -> None:
        if as_nobody and os.geteuid() == 0:
            os.setuid(65534)
        if log:
            log_to_stderr()
        sys.exit(run_command(lambda: print(fetch(full(url), folder))))

    return Process(action)
