"""Ctrl-C before a command has begun. A package that waits when it is imported stands in for one that takes its time."""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.plugins import Plugins

from gift_vit.common import starting
from gift_vit.runs import job
from tests.warm import start

ROOT = Path(__file__).parents[1]
MOMENTS = [
    ("gift_vit.train", "hydra"),
    ("gift_vit.evaluate", "omegaconf"),
    ("gift_vit.merge", "omegaconf"),
    ("gift_vit.explain", "omegaconf"),
    ("experiments.select", "omegaconf"),
    ("data_prep.fgvc", "omegaconf"),
    ("gift_vit.train", "timm"),  # after the configuration is composed
]


@pytest.mark.parametrize(("module", "package"), MOMENTS)
def test_ctrl_c_during_imports_is_one_line(tmp_path: Path, module: str, package: str) -> None:
    waits = f"import pathlib, time; pathlib.Path('{tmp_path}/waiting').touch(); time.sleep(60)"
    (tmp_path / f"{package}.py").write_text(waits)
    words = ["debug=smoke"] if module == "gift_vit.train" else []
    with start(module, *words, cwd=tmp_path, fresh=True, PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        process.until((tmp_path / "waiting").exists)
        process.send_signal(signal.SIGINT)
        ended = process.wait(30)
    lines = ended.stderr.splitlines()
    assert (ended.returncode, len(lines), "interrupted" in ended.stderr) == (130, 1, True), ended.stderr


@pytest.mark.parametrize("words", [["run_name=a"], ["-m", "seed=0,1"]])
def test_ctrl_c_is_an_exception_from_the_first_thing_on_that_is_written(
    tmp_path: Path, train_here: Callable[..., int], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """While Hydra composes it ends the process: what came out of it was an error of Hydra's now and then."""
    Plugins.instance()  # imports the sweepers, as they are looked for
    gift_vit_sweepers = import_module("hydra_plugins.gift_vit_sweepers")
    composing, writing = list[object](), list[object]()
    load, check, write = ConfigLoaderImpl.load_configuration, job.check_ready, gift_vit_sweepers.write_sweep

    def noted(noted: list[object], function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: noted.append(signal.getsignal(signal.SIGINT)) or function(*args, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", noted(composing, load))
    monkeypatch.setattr(job, "check_ready", noted(writing, check))
    monkeypatch.setattr(gift_vit_sweepers, "write_sweep", noted(writing, write))
    monkeypatch.setattr("gift_vit.runs.train.train_run", lambda *_: None)
    before = signal.signal(signal.SIGINT, starting._leave)
    try:
        assert train_here("debug=smoke", f"paths.output_root={tmp_path}", *words) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert composing[: len(words)] == [starting._leave] * len(words), "the run, or each run of the sweep"
    assert writing == [signal.default_int_handler]


def test_who_imports_a_command_as_a_library_keeps_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for words in (["python", "-m", "pytest", "gift_vit"], ["python", "notebook.py"], ["python"]):
            monkeypatch.setattr(sys, "orig_argv", words)
            monkeypatch.setattr(sys, "argv", words[-1:])
            starting._end_on_ctrl_c()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.setattr(sys, "orig_argv", ["python", os.fspath("/usr/bin/gift-vit-train"), "debug=smoke"])
        monkeypatch.setattr(sys, "argv", ["/usr/bin/gift-vit-train", "debug=smoke"])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts a background job
        starting._end_on_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        starting._end_on_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is starting._leave
        starting.interruptible()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
