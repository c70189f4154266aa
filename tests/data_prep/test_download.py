"""Downloads from a server on this machine: every byte is compared, and what is sent again is counted."""

import io
import logging
import re
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep import download, progress
from data_prep.download import RemoteFile, fetch
from gift_vit.common.cli import run_command
from gift_vit.common.errors import RunError
from tests.data_prep.download_case import BODY, DATE, ETAG, HALF, OTHER, full, keep, names, sha, start
from tests.data_prep.http_server import Fault, FileServer
from tests.warm import until


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=waited.append))
    return waited


SIZE, SHA, REST = {"size": len(BODY)}, {"sha256": sha(BODY)}, len(BODY) - HALF
CUT = Fault(after=HALF, then="close")
# what the server does, what has come before, what is known of the file; how many bytes each answer sends, and from where on
TRANSFERS: dict[str, tuple[dict[str, Any], bytes | None, dict[str, Any], list[int], list[int | None]]] = {
    "whole": ({}, None, SIZE | SHA, [len(BODY)], [None]),
    "of unknown size and checksum": ({}, None, {}, [len(BODY)], [None]),
    "of unknown checksum": ({}, None, SIZE, [len(BODY)], [None]),
    "of unknown size": ({}, None, SHA, [len(BODY)], [None]),
    "called compressed on the way": ({"encoding": "x-gzip"}, None, SIZE | SHA, [len(BODY)], [None]),
    "cut and continued": ({"etag": ETAG, "faults": [CUT]}, None, SIZE | SHA, [HALF, REST], [None, HALF]),
    "cut without notice, known": ({"length": False, "faults": [CUT]}, None, SIZE | SHA, [HALF, REST], [None, HALF]),
    "cut without notice, of known size": ({"length": False, "faults": [CUT]}, None, SIZE, [HALF, len(BODY)], [None, None]),
    "cut without notice, of known sum": ({"length": False, "faults": [CUT]}, None, SHA, [HALF, len(BODY)], [None, None]),
    "from one that ignores ranges": ({"ranges": False, "faults": [CUT]}, None, SIZE | SHA, [HALF, len(BODY)], [None, HALF]),
    "complete but for its name": ({}, BODY, SIZE | SHA, [], []),
    "complete, as the server says": ({}, BODY, SHA, [0], [len(BODY)]),
    "too long": ({}, BODY + b"more", SIZE | SHA, [len(BODY)], [None]),
    "too long, as the server says": ({}, BODY + b"more", SHA, [0, len(BODY)], [len(BODY) + 4, None]),
    "begun with other bytes": ({}, OTHER[:HALF], SIZE | SHA, [REST, len(BODY)], [HALF, None]),
    "begun with bytes that nothing vouches for": ({}, OTHER[:HALF], SIZE, [len(BODY)], [None]),
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_no_byte_is_sent_without_need(server: FileServer, folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    how, part, known, sent, starts = TRANSFERS[name]
    file = RemoteFile(server.serve("a.tgz", BODY, **how), "a.tgz", **known)
    if part is not None:
        keep(folder, part)
    for _ in range(2):
        assert fetch(file, folder) == folder / "a.tgz"
        assert (folder / "a.tgz").read_bytes() == BODY
    assert server.sent() == sent
    asked = [exchange.range and int(exchange.range.removeprefix("bytes=").removesuffix("-")) for exchange in server.log]
    assert asked == starts
    assert names(folder) == {"a.tgz", *(["a.tgz.verified"] if "sha256" in known else [])}
    assert name != "begun with other bytes" or "fetching it once more from the start" in caplog.text


def test_a_connection_that_breaks_off_is_continued(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", BODY, faults=[Fault(after=HALF, then="reset")])
    assert fetch(full(url), folder).read_bytes() == BODY
    assert [exchange.status for exchange in server.log][1:] in ([206], [200])  # 200 where nothing was read before the reset


def test_a_stalled_connection_is_continued(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_TIMEOUT_S", 0.3)
    url = server.serve("a.tgz", BODY, faults=[Fault(after=HALF, then="stall")])
    assert fetch(full(url), folder).read_bytes() == BODY
    offset = int(re.findall(r"\d+", server.log[1].range or "")[0])
    assert HALF - download.CHUNK < offset <= HALF
    assert server.log[1].sent == len(BODY) - offset


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_is_continued(server: FileServer, folder: Path, how: signal.Signals) -> None:
    url = server.serve("a.tgz", BODY, etag=ETAG, faults=[Fault(after=HALF, then="stall")])
    part = folder / "a.tgz.part"
    with start(url, folder) as process:
        process.until(lambda: part.exists() and part.stat().st_size > HALF - download.CHUNK)
        process.send_signal(how)
        ended = process.wait()
    assert (ended.returncode, ended.stderr) == (130 if how == signal.SIGINT else -how, "")
    assert not (folder / "a.tgz").exists()
    kept = part.read_bytes()
    assert kept == BODY[: len(kept)]
    assert fetch(full(url), folder).read_bytes() == BODY
    assert server.log[1].range == f"bytes={len(kept)}-"
    assert server.log[1].sent == len(BODY) - len(kept)
    assert names(folder) == {"a.tgz", "a.tgz.verified"}


def test_two_processes_fetch_a_file_once(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", BODY, faults=[Fault(after=HALF, then="stall")])
    with start(url, folder, log=True) as first, start(url, folder, log=True) as second:
        assert server.stalled.wait(60)
        until(lambda: "another process holds" in first.stderr + second.stderr)
        server.released.set()
        for process in (first, second):
            ended = process.wait()
            assert (ended.returncode, ended.stdout.strip()) == (0, str(folder / "a.tgz")), ended.stderr
    assert server.sent() == [len(BODY)]
    assert (folder / "a.tgz").read_bytes() == BODY
    assert names(folder) == {"a.tgz", "a.tgz.verified"}


@pytest.mark.parametrize("said", [{"etag": ETAG}, {"last_modified": DATE}, {"etag": 'W/"v1"', "last_modified": DATE}])
def test_a_file_that_changed_on_the_server_starts_from_zero(
    server: FileServer, folder: Path, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DELAYS_S", ())
    url = server.serve("a.tgz", BODY, **said, faults=[Fault(after=HALF, then="close")])
    with pytest.raises(RunError, match=rf"closed after {HALF} of {len(BODY)} bytes; start the same .* the {HALF} bytes"):
        fetch(RemoteFile(url, "a.tgz"), folder)
    server.serve("a.tgz", OTHER, etag='"v2"', last_modified="Thu, 22 Oct 2015 07:28:00 GMT")
    assert fetch(RemoteFile(url, "a.tgz"), folder).read_bytes() == OTHER
    assert server.log[1].range == f"bytes={HALF}-"
    assert server.log[1].if_range == (DATE if "last_modified" in said else ETAG)
    assert server.sent() == [HALF, len(OTHER)]


def test_a_server_that_ignores_if_range(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.serve("a.tgz", BODY, etag=ETAG, faults=[Fault(after=HALF, then="close")])
    served = server.files["a.tgz"]

    def change(delay: float) -> None:
        served.body, served.etag, served.if_range = OTHER, '"v2"', False

    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=change))
    assert fetch(RemoteFile(url, "a.tgz"), folder).read_bytes() == OTHER
    assert [exchange.status for exchange in server.log] == [200, 206, 200]


def test_a_server_that_does_not_say_where_the_rest_begins(server: FileServer, folder: Path) -> None:
    keep(folder, BODY[:HALF])
    assert fetch(full(server.serve("a.tgz", BODY, says_where=False)), folder).read_bytes() == BODY
    assert [exchange.status for exchange in server.log] == [206, 200]


def test_a_part_from_another_url_is_continued_without_its_version(server: FileServer, folder: Path) -> None:
    mirror = server.serve("mirror.tgz", BODY, etag=ETAG, faults=[Fault(after=HALF, then="close"), *[Fault(status=404)] * 9])
    with pytest.raises(RunError, match="404"):
        fetch(full(mirror), folder)
    url = server.serve("a.tgz", BODY, etag='"another server\'s"')
    assert fetch(full(url), folder).read_bytes() == BODY
    assert (server.log[-1].status, server.log[-1].if_range, server.log[-1].sent) == (206, None, len(BODY) - HALF)


REFUSED = r"the server answered {} .*; get a.tgz in another way and put it at .*/a.tgz"
AGAIN, PART = r"; start the same command again{}, or put it at .*/a.tgz$", {"a.tgz.part"}
PAGE = {"body": b"<html>please log in</html>", "ranges": False}
LOGIN = {**PAGE, "kind": "text/html; charset=utf-8", "length": False}
SILENT, TROUBLED = ({"faults": [fault] * 9, "ranges": False} for fault in (Fault(then="stall"), Fault(status=500)))
# what the server does, what has come before; what is said, how many answers there are, and what is left
FAILURES: dict[str, tuple[dict[str, Any], bytes | None, str, int, set[str]]] = {
    "another file": ({"body": OTHER}, None, rf"{sha(OTHER)}.*{sha(BODY)}.*put it at .*/a.tgz", 1, set()),
    "another file, twice": ({"body": OTHER}, OTHER[:HALF], "the server gave another file", 2, set()),
    "a page of another size": (PAGE, BODY[:HALF], "offers 26 bytes, expected 1000003; get a.tgz in", 1, PART),
    "a page to log in": (LOGIN, BODY[:HALF], "answered with a web page, such as one to log in; get a.tgz in", 1, PART),
    "always silence": (SILENT, None, "nothing came for 0.2 s" + AGAIN.format(""), 4, PART | {"a.tgz.part.json"}),
    "lasting trouble": (TROUBLED, BODY[:HALF], AGAIN.format(f" to go on from the {HALF} bytes that are here"), 4, PART),
    **{
        f"{code}": ({"faults": [Fault(status=code)]}, None, REFUSED.format(code), 1, set())
        for code in (401, 403, 404, 410, 416)
    },
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    how, part, message, answers, left = FAILURES[name]
    monkeypatch.setattr(download, "STALL_TIMEOUT_S", 0.2)
    if part is not None:
        keep(folder, part)
    url = server.serve("a.tgz", **{"body": BODY, **how})
    with pytest.raises(RunError, match=f"cannot download {re.escape(url)}: .*{message}") as caught:
        fetch(full(url), folder)
    assert "\n" not in str(caught.value)
    assert len(server.log) == answers
    assert names(folder) == left
    assert part is None or not left or (folder / "a.tgz.part").read_bytes() == part


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_tried_again(server: FileServer, folder: Path, status: int, waits: list[float]) -> None:
    url = server.serve("a.tgz", BODY, faults=[Fault(status=status)] * 2)
    assert fetch(full(url), folder).read_bytes() == BODY
    assert waits == list(download.DELAYS_S[:2])
    assert waits == sorted(waits)


def test_tries_are_counted_from_the_last_progress(server: FileServer, folder: Path) -> None:
    cuts = [Fault(after=100_000, then="close"), Fault(status=500), Fault(status=500)]
    url = server.serve("a.tgz", BODY, etag=ETAG, faults=[*cuts] * 9)
    assert fetch(full(url), folder).read_bytes() == BODY
    assert sum(server.sent()) - 18 * 35 == len(BODY)  # each byte once, and the 18 pages that say 500


def test_no_server_or_a_malformed_url_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"cannot download htp://127.0.0.1/a.tgz: No connection adapters"):
        fetch(full("htp://127.0.0.1/a.tgz"), folder)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tgz"
        assert run_command(lambda: print(fetch(full(url), folder))) == 1
    line = capsys.readouterr().err
    assert re.fullmatch(rf"error: cannot download {url}: Connection refused; start .*, or put it at {folder}/a.tgz\n", line)


def test_progress_without_a_terminal_is_a_line_now_and_then(
    server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep(folder, BODY[:HALF])
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    fetch(full(server.serve("a.tgz", BODY)), folder)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1] == f"fetched {folder / 'a.tgz'} (1.0 MB)"
    assert "a.tgz: 1.0 MB of 1.0 MB, 100%" in lines
    percents = [int(line[:-1].split()[-1]) for line in lines if line.startswith("a.tgz: ")]
    assert percents[0] > 50
    assert percents == sorted(percents)


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.transfer("CUB [1].tgz", 2_000_000) as show:
        show(1_000_000)
    assert re.search(r"CUB \[1\].tgz.*1.0/2.0 MB", terminal.getvalue())
