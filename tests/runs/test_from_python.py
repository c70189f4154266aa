"""``Run.train``: a run from Python or a notebook, which leaves this process as it was."""

import asyncio
import logging
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.runs import Run, job

WORDS = ["debug=smoke", "run_name=smoke", "phase=final", "method.rank=2", "trainer.precision=tf32"]
FOLDER = Path("outputs/final/digits/gift/test_vit/smoke")


def state() -> tuple[object, ...]:
    ours = logging.getLogger("gift_vit")
    logged = [(tuple(logger.handlers), logger.level) for logger in (logging.root, ours)]
    hydra = GlobalHydra.instance().is_initialized()
    products = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    drawn = torch.get_rng_state().tolist(), random.getstate()
    return list(sys.argv), dict(os.environ), logged, hydra, drawn, os.getcwd(), products


def test_a_run_is_trained_and_opened_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a running event loop, as a notebook has one; the second time it is finished already."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()

    async def cell() -> list[Run]:
        return [Run.train(WORDS), Run.train(WORDS)]

    monkeypatch.setattr(logging.getLogger("gift_vit"), "level", logging.WARNING)
    before = state()
    first, second = asyncio.run(cell())
    assert state() == before
    first.data().split("test")[0][0].save("a.png")
    drawn = first.model(), first.predict("a.png")
    assert state() == before
    assert len(drawn[1]) == 1
    for wrong in (first.data().split("test")[0][0], [torch.zeros(3)]):
        with pytest.raises(ConfigError, match=r"images=(Image|Tensor): expected names of files; tensors are for model\(\)"):
            first.predict(wrong)  # pyright: ignore[reportArgumentType]
    assert (first.folder, second.folder) == (tmp_path / FOLDER, tmp_path / FOLDER)
    assert (first.state, second.state) == ("done", "done")
    assert first.result is not None
    assert first.result.run.overrides == WORDS
    assert first.result.run.command == f"python -m gift_vit.train {' '.join(WORDS)}"
    assert first.result == second.result
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "outputs"}


def test_a_folder_of_one_s_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_conf/method").mkdir(parents=True)
    (tmp_path / "my_conf/method/small.yaml").write_text("defaults: [gift]\nname: small\nrank: 1\n")
    run = Run.train(["debug=smoke", "--config-dir", "my_conf", "method=small", "trainer.epochs=1"])
    assert (run.config.method_name, run.config.method.rank) == ("small", 1)
    assert "rank" not in run.folder.name, "measured against this method, not against its base"
    assert run.result is not None
    assert run.result.run.command.startswith("python -m gift_vit.train debug=smoke --config-dir my_conf method=small")


MISTAKES = {
    "folder": (["debug=smoke", "--config-dir=nowhere"], "--config-dir nowhere: there is no such folder"),
    "no folder": (["debug=smoke", "--config-dir"], "--config-dir: expected a folder, as --config-dir my_conf"),
    "search path": (["debug=smoke", "hydra.searchpath=[file:///proc]"], "give the folder as --config-dir <folder>"),
    "value": (["debug=smoke", "optim.lr=-1"], r"optim\.lr=-1\.0: expected a number above 0"),
    "word": (["lr=1"], r"unknown key lr; did you mean optim\.lr\?"),
    "comma": (["optim.lr=0,01"], r"decimal comma; write optim\.lr=0\.01"),
    "sweep": (["sweep=digits"], r"sweep=digits is a sweep of many runs; start it with python -m gift_vit\.train"),
    "several": (["debug=smoke", "seed=0,1"], "several values are a sweep"),
    "flag": (["debug=smoke", "-m"], "unexpected word '-m'"),
    "text": ("debug=smoke", "expected a list of words"),
    "number": (["debug=smoke", 1], "expected a list of words"),
    "choice": (["dataset=cubb"], "unknown dataset 'cubb'; did you mean cub"),
    "late": (["debug=smoke", "method.rank=99"], "method.rank=99 is larger than the target's d_in=64"),
    "place": (["debug=smoke", "paths.output_root=/proc/x"], "cannot write /proc/x/search"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_exception_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    before = state()
    with pytest.raises(ConfigError, match=message):
        Run.train(words)
    assert state() == before
    assert list(tmp_path.iterdir()) == []


def test_of_several_threads_one_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra, the log and random states are the process's."""
    monkeypatch.chdir(tmp_path)
    told: list[str] = []

    def told_config(*_: object) -> None:
        with pytest.raises(ConfigError) as raised:
            Run.train(WORDS)
        told.append(str(raised.value))
        raise ConfigError("enough")

    monkeypatch.setattr(job, "told_config", told_config)
    for _ in range(2):
        with pytest.raises(ConfigError, match="enough"):
            Run.train(WORDS)
    assert told == ["a run is being trained in this process, whose logging and random state it has; use another process"] * 2


def test_a_failure_is_an_exception_and_stays_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="the loss became"):
        Run.train([*WORDS, "optim.lr=1e30", "trainer.epochs=3"])
    assert Run.open(FOLDER).state == "failed"
