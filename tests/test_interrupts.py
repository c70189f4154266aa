"""Ctrl-C before a command has begun. A package that waits when it is imported stands in for one that takes its time."""

import os
import signal
import sys
from pathlib import Path

import pytest

from gift_vit.common import starting
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
