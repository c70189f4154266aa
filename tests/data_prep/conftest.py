"""What the tests of preparing data share: a server, small FGVC datasets on it, tiny TFDS datasets."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gift_vit.common.cli import log_to_stderr
from gift_vit.common.files import locked
from tests.data_prep.fgvc_bench import Bench
from tests.data_prep.http_server import FileServer, serving
from tests.warm import Process, until

if TYPE_CHECKING:
    from tests.data_prep.tiny_tfds import TinyDataset


# The comparisons with TFDS and with the benchmark's known ids take a minute of CPU: `make test-all`, and CI when files changed.
LONG = ("test_vtab_original_", "test_vtab_tfds_", "test_vtab_verify")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name.startswith(LONG):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FileServer()) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


@pytest.fixture
def second(tmp_path: Path) -> Callable[[Callable[[], str], Path], str]:
    """Takes what prepares a folder, and the folder, prepared; what it says in a process that waited for another to do so."""

    def said(prepare: Callable[[], str], out: Path) -> str:
        def action() -> None:
            log_to_stderr()
            until((tmp_path / "go").exists)
            print(prepare())

        ready = out.rename(tmp_path / "ready")
        with Process(action) as process:
            with locked(out):
                (tmp_path / "go").touch()
                process.until(lambda: "another process holds" in process.stderr)
                ready.rename(out)
            return process.wait().stdout

    return said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Takes a size such as ``150k``; an empty file system of that size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size={size} none {disk} 2>/dev/null") != 0:
            pytest.skip("mounting a small file system needs root")
        return disk

    yield mount
    os.system(f"umount -l {disk} 2>/dev/null")


@pytest.fixture
def bench(tmp_path: Path, server: FileServer) -> Callable[..., Bench]:
    """Takes the name of an FGVC dataset; a small one on a server."""
    return lambda name, root="data": Bench(name, tmp_path / root, server)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; original files of VTAB-1k may have any size and hash."""
    from data_prep.vtab.original.files import FILES  # needs h5py, which not every test here does

    for name, known in FILES.items():
        monkeypatch.setitem(FILES, name, [replace(file, size=None, sha256=None) for file in known])
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> "TinyDataset":
    """Takes a builder's name; its original files, and the ArrayRecord dataset that TFDS makes of them."""
    pytest.importorskip("tensorflow_datasets")
    from tests.data_prep.tiny_tfds import make_tiny

    return cache(lambda name: make_tiny(name, tmp_path_factory.mktemp(name)))
