"""A finished final run with its predictions, a copy of it to be changed, an interrupt, what epochs recorded, and checks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gift_vit.config import RunConfig, compose_config, load_config
from gift_vit.engine.fit import TrainBatches
from gift_vit.engine.observer import EpochRecord, Observer
from gift_vit.runs.run import Run
from gift_vit.runs.train import Call, train_run

WORDS = (
    "debug=smoke",
    "backbone.img_size=32",
    "phase=final",
    "protocol.final_train.mini=train",
    "trainer.keep_predictions=all",
)
CALL = Call("python -m gift_vit.train", [])


class InterruptAfter(Observer):
    """Ctrl-C after an epoch, from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def epoch_done(self, record: EpochRecord) -> None:
        if record["epoch"] == self.epoch:
            raise KeyboardInterrupt


def history(cfg: RunConfig) -> list[dict[str, float]]:
    """A run's metrics file, without what differs from run to run."""
    records = [json.loads(line) for line in (cfg.folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in {"seconds", "images_per_s"}} for record in records]


def check_resumed(whole: RunConfig, cut: RunConfig) -> None:
    """Of two runs that are alike, the one that is interrupted after two epochs and started again has the other's adapter."""
    train_run(whole, CALL)
    with pytest.raises(KeyboardInterrupt):
        train_run(cut, CALL, [InterruptAfter(1)])
    train_run(cut, CALL)
    one, other = ((cfg.folder / "adapter.safetensors").read_bytes() for cfg in (whole, cut))
    assert one == other


def check_seeded(loader: Callable[[int], TrainBatches]) -> None:
    """Training batches that take a seed begin with other examples for another, and with the same ones for the same."""
    first, again, other = (next(loader(seed).epoch(0))[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.fixture(scope="session")
def final_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """GIFT on digits' train, tested; the predictions of test and of val are kept."""
    cfg = load_config(
        compose_config([*WORDS, "trainer.keep_predictions=all", f"paths.output_root={tmp_path_factory.mktemp('final')}"])
    )
    train_run(cfg, CALL)
    return Run.open(cfg.folder)


@pytest.fixture
def copied_run(final_run: Run, tmp_path: Path) -> Run:
    """A copy that may be changed."""
    return Run.open(shutil.copytree(final_run.folder, tmp_path / "run"))
