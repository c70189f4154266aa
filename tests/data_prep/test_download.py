"""Downloads from a server on this machine: every byte is compared, and what is sent again is counted."""

import io
import logging
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep import download, progress
from data_prep.download import RemoteFile, fetch
from gift_vit.cli import run_command
from gift_vit.errors import RunError
from tests.data_prep.download_case import BODY, DATE, ETAG, HALF, OTHER, full, keep_part, names, sha, start, wait_for
from tests.data_prep.http_server import Fault, FileServer


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return waited


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer().running() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def test_a_file_is_fetched_once_and_nothing_else_is_left(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", BODY)
    for _ in range(2):
        assert fetch(full(url), folder) == folder / "a.tgz"
        assert (folder / "a.tgz").read_bytes() == BODY
    assert server.sent() == [len(BODY)]
    assert names(folder) == {"a.tgz", "a.tgz.verified"}


@pytest.mark.parametrize("known", [{}, {"size": len(BODY)}, {"sha256": sha(BODY)}], ids=["nothing", "size", "sha256"])
def test_a_file_of_which_less_is_known(server: FileServer, folder: Path, known: dict[str, Any]) -> None:
    url = server.serve("a.tgz", BODY)
    assert fetch(RemoteFile(url, "a.tgz", **known), folder).read_bytes() == BODY
    assert fetch(RemoteFile(url, "a.tgz", **known), folder).read_bytes() == BODY
    assert server.sent() == [len(BODY)]


def test_a_file_called_compressed_on_the_way_is_kept_as_it_is(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", BODY, encoding="x-gzip")
    assert fetch(full(url), folder).read_bytes() == BODY


def test_a_truncated_body_is_continued(server: FileServer, folder: Path, waits: list[float]) -> None:
    url = server.serve("a.tgz", BODY, etag=ETAG, faults=[Fault(after=HALF, then="close")])
    assert fetch(full(url), folder).read_bytes() == BODY
    assert server.sent() == [HALF, len(BODY) - HALF]
    assert (server.log[1].range, server.log[1].if_range, server.log[1].status) == (f"bytes={HALF}-", ETAG, 206)
    assert waits == [download.DELAYS_S[0]]


def test_a_connection_that_breaks_off_is_continued(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", BODY, faults=[Fault(after=HALF, then="reset")])
    assert fetch(full(url), folder).read_bytes() == BODY
    assert [exchange.status for exchange in server.log][1:] in ([206], [200])  # 200 where nothing was read before the reset


def test_a_stalled_connection_is_noticed_and_continued(
    server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_TIMEOUT_S", 0.3)
    url = server.serve("a.tgz", BODY, faults=[Fault(after=HALF, then="stall")])
    assert fetch(full(url), folder).read_bytes() == BODY
    offset = int(re.findall(r"\d+", server.log[1].range or "")[0])
    assert HALF - download.CHUNK < offset <= HALF
    assert server.log[1].sent == len(BODY) - offset


def test_a_server_that_always_stalls_is_given_up(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_TIMEOUT_S", 0.2)
    url = server.serve("a.tgz", BODY, faults=[Fault(then="stall")] * 9)
    with pytest.raises(RunError, match=r"cannot download http.*/a.tgz: nothing came for 0.2 s; start the same command again"):
        fetch(full(url), folder)
    assert len(server.log) == len(download.DELAYS_S) + 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_is_continued(server: FileServer, folder: Path, how: signal.Signals) -> None:
    url = server.serve("a.tgz", BODY, etag=ETAG, faults=[Fault(after=HALF, then="stall")])
    process, part = start(url, folder), folder / "a.tgz.part"
    wait_for(lambda: part.exists() and part.stat().st_size > HALF - download.CHUNK)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how), errors
    assert errors == ""
    assert not (folder / "a.tgz").exists()
    kept = part.read_bytes()
    assert kept == BODY[: len(kept)]

    assert fetch(full(url), folder).read_bytes() == BODY
    assert server.log[1].range == f"bytes={len(kept)}-"
    assert server.log[1].sent == len(BODY) - len(kept)
    assert names(folder) == {"a.tgz", "a.tgz.verified"}


def test_two_processes_fetch_a_file_once(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", BODY, faults=[Fault(after=HALF, then="stall")])
    first = start(url, folder)
    assert server.stalled.wait(60)
    second = start(url, folder, "log")
    assert second.stderr is not None
    assert "another process holds" in second.stderr.readline()
    server.released.set()
    for process in (first, second):
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, str(folder / "a.tgz")), errors
    assert server.sent() == [len(BODY)]
    assert (folder / "a.tgz").read_bytes() == BODY
    assert names(folder) == {"a.tgz", "a.tgz.verified"}


def test_a_complete_part_needs_no_request(server: FileServer, folder: Path) -> None:
    keep_part(folder, BODY)
    assert fetch(full(server.serve("a.tgz", BODY)), folder).read_bytes() == BODY
    assert server.log == []


def test_a_complete_part_of_unknown_size_needs_no_bytes(server: FileServer, folder: Path) -> None:
    keep_part(folder, BODY)
    file = RemoteFile(server.serve("a.tgz", BODY), "a.tgz", sha256=sha(BODY))
    assert fetch(file, folder).read_bytes() == BODY
    assert [(exchange.status, exchange.sent) for exchange in server.log] == [(416, 0)]


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_that_is_too_long_is_fetched_anew(server: FileServer, folder: Path, size: int | None) -> None:
    keep_part(folder, BODY + b"more")
    file = RemoteFile(server.serve("a.tgz", BODY), "a.tgz", size, sha(BODY))
    assert fetch(file, folder).read_bytes() == BODY
    assert server.log[-1].range is None


def test_a_server_that_ignores_ranges_starts_from_zero(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", BODY, ranges=False, faults=[Fault(after=HALF, then="close")])
    assert fetch(full(url), folder).read_bytes() == BODY
    assert server.log[1].range == f"bytes={HALF}-"
    assert server.sent() == [HALF, len(BODY)]


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


def test_a_server_that_ignores_if_range_is_seen_through(
    server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.serve("a.tgz", BODY, etag=ETAG, faults=[Fault(after=HALF, then="close")])
    served = server.files["a.tgz"]

    def change(delay: float) -> None:
        served.body, served.etag, served.if_range = OTHER, '"v2"', False

    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=change))
    assert fetch(RemoteFile(url, "a.tgz"), folder).read_bytes() == OTHER
    assert [exchange.status for exchange in server.log] == [200, 206, 200]


def test_a_changed_file_without_a_version_is_noticed_by_its_checksum(
    server: FileServer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_part(folder, OTHER[:HALF])
    assert fetch(full(server.serve("a.tgz", BODY)), folder).read_bytes() == BODY
    assert server.sent() == [len(BODY) - HALF, len(BODY)]
    assert "fetching it once more from the start" in caplog.text


def test_a_part_that_nothing_vouches_for_is_not_continued(server: FileServer, folder: Path) -> None:
    keep_part(folder, OTHER[:HALF])
    file = RemoteFile(server.serve("a.tgz", BODY), "a.tgz", size=len(BODY))
    assert fetch(file, folder).read_bytes() == BODY
    assert server.log[0].range is None


def test_a_part_from_another_url_is_continued_without_its_version(server: FileServer, folder: Path) -> None:
    mirror = server.serve("mirror.tgz", BODY, etag=ETAG, faults=[Fault(after=HALF, then="close"), *[Fault(status=404)] * 9])
    with pytest.raises(RunError, match="404"):
        fetch(full(mirror), folder)
    url = server.serve("a.tgz", BODY, etag='"another server\'s"')
    assert fetch(full(url), folder).read_bytes() == BODY
    assert (server.log[-1].status, server.log[-1].if_range, server.log[-1].sent) == (206, None, len(BODY) - HALF)


def test_a_wrong_checksum_is_an_error_and_nothing_stays(server: FileServer, folder: Path) -> None:
    url = server.serve("a.tgz", OTHER)
    with pytest.raises(RunError) as caught:
        fetch(full(url), folder)
    for part in (url, sha(OTHER), sha(BODY), str(len(BODY)), f"put it at {folder / 'a.tgz'}"):
        assert part in str(caught.value)
    assert server.sent() == [len(OTHER)]
    assert names(folder) == set()


def test_a_wrong_checksum_twice_is_an_error(server: FileServer, folder: Path) -> None:
    keep_part(folder, OTHER[:HALF])
    with pytest.raises(RunError, match="the server gave another file"):
        fetch(full(server.serve("a.tgz", OTHER)), folder)
    assert server.sent() == [len(BODY) - HALF, len(BODY)]


def test_another_size_is_refused_before_anything_is_lost(server: FileServer, folder: Path) -> None:
    part = keep_part(folder, BODY[:HALF])
    url = server.serve("a.tgz", b"<html>please log in</html>", ranges=False)
    with pytest.raises(RunError, match=f"the server offers 26 bytes, expected {len(BODY)}; get a.tgz in another way"):
        fetch(full(url), folder)
    assert part.read_bytes() == BODY[:HALF]


@pytest.mark.parametrize("known", [{"size": len(BODY)}, {"size": len(BODY), "sha256": sha(BODY)}, {"sha256": sha(BODY)}])
def test_a_truncated_body_of_unannounced_length(server: FileServer, folder: Path, known: dict[str, Any]) -> None:
    url = server.serve("a.tgz", BODY, length=False, faults=[Fault(after=HALF, then="close")])
    assert fetch(RemoteFile(url, "a.tgz", **known), folder).read_bytes() == BODY
    continued = len(known) == 2  # by the checksum it can be, and by the size it is seen that it must be
    assert server.sent() == [HALF, len(BODY) - HALF if continued else len(BODY)]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416])
def test_a_refusal_is_not_tried_again(server: FileServer, folder: Path, status: int) -> None:
    url = server.serve("a.tgz", BODY, faults=[Fault(status=status)])
    with pytest.raises(RunError, match=rf"{re.escape(url)}: the server answered {status} .*; get a.tgz .* put it at .*/a.tgz"):
        fetch(full(url), folder)
    assert len(server.log) == 1
    assert names(folder) == set()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_tried_again(server: FileServer, folder: Path, status: int, waits: list[float]) -> None:
    url = server.serve("a.tgz", BODY, faults=[Fault(status=status)] * 2)
    assert fetch(full(url), folder).read_bytes() == BODY
    assert waits == list(download.DELAYS_S[:2])
    assert waits == sorted(waits)


def test_a_server_in_lasting_trouble_is_given_up(server: FileServer, folder: Path) -> None:
    part = keep_part(folder, BODY[:HALF])
    url = server.serve("a.tgz", BODY, faults=[Fault(status=500)] * 9)
    with pytest.raises(RunError, match=f"answered 500 .*go on from the {HALF} bytes that are here, or put it at .*a.tgz"):
        fetch(full(url), folder)
    assert len(server.log) == len(download.DELAYS_S) + 1
    assert part.read_bytes() == BODY[:HALF]


def test_tries_are_counted_from_the_last_progress(server: FileServer, folder: Path) -> None:
    cuts = [Fault(after=100_000, then="close"), Fault(status=500), Fault(status=500)]
    url = server.serve("a.tgz", BODY, etag=ETAG, faults=[*cuts] * 9)
    assert fetch(full(url), folder).read_bytes() == BODY
    assert sum(server.sent()) - 18 * 35 == len(BODY)  # each byte once, and the 18 pages that say 500


def test_no_server_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tgz"
        assert run_command(lambda: print(fetch(full(url), folder))) == 1
    line = capsys.readouterr().err
    assert re.fullmatch(rf"error: cannot download {url}: Connection refused; start .*, or put it at {folder}/a.tgz\n", line)


def test_a_malformed_url_is_one_line(folder: Path) -> None:
    with pytest.raises(RunError, match=r"cannot download htp://127.0.0.1/a.tgz: No connection adapters"):
        fetch(full("htp://127.0.0.1/a.tgz"), folder)


def test_progress_without_a_terminal_is_a_line_now_and_then(
    server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep_part(folder, BODY[:HALF])
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
