"""What the tests of downloads share: the bytes, a file of them, and a process that fetches it."""

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.download import RemoteFile

BODY = random.Random(0).randbytes(1_000_003)
OTHER = random.Random(1).randbytes(len(BODY))
HALF = 500_000
ETAG, DATE = '"v1"', "Wed, 21 Oct 2015 07:28:00 GMT"
SCRIPT = """
import os, sys
from pathlib import Path
from data_prep.download import RemoteFile, fetch
from gift_vit.cli import log_to_stderr, run_command
url, folder, size, sha256 = sys.argv[1:5]
if "drop" in sys.argv and os.geteuid() == 0:
    os.setuid(65534)
if "log" in sys.argv:
    log_to_stderr()
sys.exit(run_command(lambda: print(fetch(RemoteFile(url, "a.tgz", int(size), sha256), Path(folder)))))
"""


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def full(url: str, body: bytes = BODY) -> RemoteFile:
    return RemoteFile(url, "a.tgz", len(body), sha(body))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def keep_part(folder: Path, body: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.tgz.part").write_bytes(body)
    return folder / "a.tgz.part"


def start(url: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    """A process that fetches BODY."""
    command = [sys.executable, "-c", SCRIPT, url, str(folder), str(len(BODY)), sha(BODY), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.01)
