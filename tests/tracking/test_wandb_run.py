import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wandb

from gift_vit.engine.observer import EpochRecord, StopTraining
from gift_vit.tracking import wandb_run as module
from gift_vit.tracking.config import TrackerConfig
from gift_vit.tracking.wandb_run import RunDescription, WandbTracker, _wandb_id, run_id_of
from tests.tracking.offline_run import recorded, without_account
from tests.warm import until

__all__ = ["without_account"]  # a fixture
Log = pytest.LogCaptureFixture
Patch = pytest.MonkeyPatch
OFFLINE, ONLINE = (TrackerConfig("wandb", "p", None, mode, log_adapter=False) for mode in ("offline", "online"))
SPEED: Any = {"steps": 4, "seconds": 2.0, "images_per_s": 5.0}
RECORDS = [
    EpochRecord(epoch=0, train_loss=0.5, lr=1e-3, **SPEED),
    EpochRecord(epoch=1, train_loss=0.25, lr=5e-4, **SPEED, val_top1=81.25),
    EpochRecord(epoch=2, train_loss=0.125, lr=0.0, **SPEED, val_top1=83.5),
]
SUMMARY = {"test_top1": 84.5, "params": {"adapter": 24576, "head": 153800}, "protocol": "clean"}


def description(folder: Path, run_id: str = "cub-gift-0") -> RunDescription:
    config = {"seed": 0, "optim": {"lr": 1e-3, "betas": [0.9, 0.999]}, "experiment": None}
    return RunDescription("lr1e-3_seed0", folder, config, "cub/gift", "final", ["clean", "seed0"], run_id)


@pytest.fixture
def log(caplog: Log) -> Log:
    caplog.set_level(logging.INFO, logger="gift_vit.tracking")
    return caplog


def lines(log: Log, level: int = logging.WARNING) -> list[str]:
    """What reaches the run's log: W&B keeps its own logger's records from the root logger, but pytest captures them."""
    assert not logging.getLogger("wandb").propagate
    records = [record for record in log.records if record.levelno >= level and not record.name.startswith("wandb")]
    assert not any("\n" in record.getMessage() for record in records)
    return [record.getMessage() for record in records]


def follow(tracker: WandbTracker, adapter: Path | None = None) -> None:
    """A whole run, as the training command makes it."""
    with tracker:
        tracker.resumed([])
        for record in RECORDS:
            tracker.epoch_started(record["epoch"], 3, 10)
            tracker.epoch_done(record)
        tracker.finish(SUMMARY, adapter)


def test_offline_run_records_everything_and_says_how_to_upload_it(tmp_path: Path, log: Log, capfd: Any) -> None:
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes(b"0123456789")
    follow(WandbTracker(TrackerConfig("wandb", "my-project", "my-team", "offline", True), description(tmp_path)), adapter)
    recorded(tmp_path)  # ends the service, which writes to the end
    assert capfd.readouterr() == ("", ""), "W&B writes to the console"
    (line,) = lines(log, logging.INFO)
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert line == f"W&B recorded this run offline; to upload it: wandb sync {record.parent}"
    words = [sys.executable, "-m", *shlex.split(line.partition("to upload it: ")[2]), "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "Would sync 1 run(s)" in done.stderr
    assert str(record) in done.stderr

    found = recorded(tmp_path)
    run = found.run
    assert (run.run_id, run.display_name, run.project, run.entity) == ("cub-gift-0", "lr1e-3_seed0", "my-project", "my-team")
    assert (run.run_group, run.job_type, list(run.tags), run.resume) == ("cub/gift", "final", ["clean", "seed0"], True)
    assert found.config == {"_wandb": {}} | description(tmp_path).config
    curves = [{name: value for name, value in point.items() if name in RECORDS[2]} for point in found.history]
    assert curves == RECORDS
    assert [point["_step"] for point in found.history] == [0, 1, 2]
    assert ("*", "epoch") in {(metric.glob_name, metric.step_metric) for metric in found.of("metric")}
    final = {"test_top1": 84.5, "params/adapter": 24576, "params/head": 153800, "protocol": "clean"}
    assert {name: found.summary[name] for name in final} == final
    assert found.summary["val_top1"] == 83.5
    assert found.exit_codes == [0]
    (artifact,) = found.artifacts
    assert (artifact.name, artifact.type) == ("adapter-cub-gift-0", "adapter")
    (content,) = artifact.manifest.contents
    assert (content.path, content.size, content.local_path) == ("adapter.safetensors", 10, str(adapter))


def test_a_long_tag_is_cut(tmp_path: Path, log: Log) -> None:
    follow(WandbTracker(OFFLINE, replace(description(tmp_path), tags=["a" * 64, "b" * 65])))
    assert lines(log) == []
    assert list(recorded(tmp_path).run.tags) == ["a" * 64, "b" * 64]


def test_offline_run_contacts_nobody(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from gift_vit.tracking.config import TrackerConfig
from gift_vit.tracking.wandb_run import RunDescription, WandbTracker
cfg = TrackerConfig("wandb", "p", None, "offline", False)
with WandbTracker(cfg, RunDescription("n", Path({str(tmp_path)!r}), {{}}, "g", "j", [], "i")) as tracker:
    tracker.epoch_done({{"epoch": 0, "train_loss": 1.0}})
    tracker.finish({{}}, None)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = os.environ | {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (done.stdout, done.stderr) == ("", "")
    assert [point["train_loss"] for point in recorded(tmp_path).history] == [1.0]


def test_a_persons_own_run_and_settings_stay(tmp_path: Path, log: Log) -> None:
    mine = wandb.init(project="mine", mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True))
    before = wandb.setup().settings.model_copy()
    follow(WandbTracker(OFFLINE, description(tmp_path / "run")))
    mine.log({"loss": 7.0})
    mine.finish()
    after = wandb.setup().settings
    assert lines(log) == []
    assert (before.mode, before.silent, before.quiet) == (after.mode, after.silent, after.quiet) == ("online", False, False)
    assert [record["train_loss"] for record in recorded(tmp_path / "run").history] == [0.5, 0.25, 0.125]
    [own] = recorded(tmp_path).history
    assert own["loss"] == 7.0


@pytest.mark.parametrize("sent", [False, True])
def test_a_resumed_run_has_all_epochs_in_its_last_record_unless_one_was_sent(tmp_path: Path, log: Log, sent: bool) -> None:
    """A killed process leaves a record that lacks the last epochs, or has some that are trained again."""
    with WandbTracker(OFFLINE, description(tmp_path)) as tracker:
        tracker.epoch_done(RECORDS[0])
    recorded(tmp_path)
    (first,) = tmp_path.glob("wandb/offline-run-*")
    first = first.rename(first.with_name("offline-run-20260101_000000-cub-gift-0"))
    if sent:
        (first / "run-cub-gift-0.wandb.synced").touch()
    with WandbTracker(OFFLINE, description(tmp_path)) as tracker:
        tracker.resumed(RECORDS[:2])
        tracker.epoch_done(RECORDS[2])
        tracker.finish(SUMMARY, None)
    assert first.exists() == sent
    if sent:
        shutil.rmtree(first)
    assert [point["_step"] for point in recorded(tmp_path).history] == ([2] if sent else [0, 1, 2])
    assert lines(log) == []


def test_a_run_that_goes_on_online_sends_what_the_server_lacks(tmp_path: Path, monkeypatch: Patch) -> None:
    sent: list[int] = []

    class Server(FailingRun):
        offline, starting_step, sync_dir = False, 1, str(tmp_path / "wandb/run-20260102_000000-x")

        def log(self, record: EpochRecord, step: int, commit: bool) -> None:
            assert step == record["epoch"]
            sent.append(step)

    monkeypatch.setattr(wandb, "init", lambda **_: Server("nothing"))
    (tmp_path / "wandb/offline-run-20260101_000000-x").mkdir(parents=True)
    with WandbTracker(OFFLINE, description(tmp_path)) as tracker:
        tracker.resumed(RECORDS[:2])
        tracker.epoch_done(RECORDS[2])
    assert sent == [1, 2]
    assert not list((tmp_path / "wandb").iterdir()), "what was recorded without a server is with it now"


def test_earlier_records_stay_where_the_epochs_cannot_be_logged_again(tmp_path: Path, log: Log, monkeypatch: Patch) -> None:
    run = FailingRun("log")
    run.sync_dir = str(tmp_path / "wandb/offline-run-20260102_000000-x")
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    (tmp_path / "wandb/offline-run-20260101_000000-x").mkdir(parents=True)
    with WandbTracker(OFFLINE, description(tmp_path)) as tracker:
        tracker.resumed(RECORDS[:2])
    assert (tmp_path / "wandb/offline-run-20260101_000000-x").is_dir()
    assert len(lines(log)) == 1


def test_what_is_logged_is_on_the_disk_within_seconds(tmp_path: Path) -> None:
    """Of a process that is killed nothing is written any more: it waits for W&B's service, over 1 s."""
    with WandbTracker(OFFLINE, description(tmp_path)) as tracker:
        for record in RECORDS:
            tracker.epoch_done(record)
        until(lambda: any(b"val_top1" in file.read_bytes() for file in tmp_path.glob("wandb/*/*.wandb")), 10)


def test_the_id_of_a_resumed_run_is_its_last_record_s_wherever_it_lies(tmp_path: Path) -> None:
    first, second = (run_id_of(tmp_path, "lr1e-3", is_resumed=False) for _ in range(2))
    assert first != second
    for name in ("offline-run-20260101_000000-old", f"run-20260102_000000-{first}", "offline-run-20260101_000001-older"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert run_id_of(tmp_path, "lr1e-3", is_resumed=True) == first
    assert run_id_of(tmp_path, "lr1e-3", is_resumed=False) not in (first, "old", "older")
    assert run_id_of(tmp_path / "none", "lr1e-3", is_resumed=True).startswith("lr1e-3-")


def test_a_run_that_a_sweep_stops_has_not_failed(tmp_path: Path) -> None:
    def stopped() -> None:
        with WandbTracker(OFFLINE, replace(description(tmp_path), name="x" * 160)) as tracker:
            tracker.epoch_done(RECORDS[0])
            raise StopTraining("behind other settings'")

    with pytest.raises(StopTraining):
        stopped()
    run = recorded(tmp_path)
    assert (run.exit_codes, run.summary["pruned"], run.run.display_name) == ([0], "behind other settings'", "x" * 128)
    assert "failure" not in run.summary


def test_interrupted_run_says_why_and_continues_under_the_same_id(tmp_path: Path, log: Log) -> None:
    def interrupted() -> None:
        with WandbTracker(OFFLINE, description(tmp_path / "first", run_id="final/cub/gift/seed0")) as tracker:
            tracker.epoch_done(RECORDS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with WandbTracker(OFFLINE, description(tmp_path / "second", run_id="final/cub/gift/seed0")) as tracker:
        tracker.epoch_done(RECORDS[1])
        tracker.finish(SUMMARY, tmp_path / "not_logged.safetensors")
    first, second = recorded(tmp_path / "first"), recorded(tmp_path / "second")
    assert (first.exit_codes, second.exit_codes) == ([1], [0])
    assert first.summary["failure"] == "interrupted"
    assert "failure" not in second.summary
    assert first.run.run_id == second.run.run_id == _wandb_id("final/cub/gift/seed0")
    assert [point["_step"] for point in first.history + second.history] == [0, 1]
    assert second.artifacts == []
    assert lines(log) == []


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({}, r"PermissionError: no login found"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "CommError: .*(connection refused|imeout).*"),
    ],
)
def test_online_without_login_or_server_is_recorded_offline_without_asking(
    tmp_path: Path, log: Log, monkeypatch: Patch, env: dict[str, str], reason: str
) -> None:
    wandb.teardown()  # W&B reads its environment once per session
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "INIT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("W&B asks for a key"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    follow(WandbTracker(ONLINE, description(tmp_path)))
    (warning,) = lines(log)
    assert re.match(rf"W&B is not online \({reason}\); this run is recorded offline; .* set tracker.mode=offline", warning)
    assert ("`wandb login`" in warning) == (not env), "whoever has a key needs no advice to log in"
    assert len(recorded(tmp_path).history) == 3


def test_failing_init(tmp_path: Path, log: Log, monkeypatch: Patch) -> None:
    def init(**_: object) -> None:
        raise OSError("disk\n full")

    goes_on = "the run keeps its own records"
    monkeypatch.setattr(wandb, "init", init)
    follow(WandbTracker(OFFLINE, description(tmp_path)))
    assert lines(log) == [f"W&B could not start (OSError: disk full); {goes_on}; to do without W&B: tracker=none"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    follow(WandbTracker(OFFLINE, description(tmp_path)))
    assert re.match(r"W&B could not start \(ModuleNotFoundError.*install wandb or set tracker=none", lines(log)[1])


class FailingRun:
    """A run with one broken method, that notes what is called; its summary and its settings are itself."""

    id, offline, sync_dir = "x", True, "somewhere"

    def __init__(self, broken: str) -> None:
        self.broken = broken
        self.calls: list[str] = []
        self.summary = self.settings = self

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, name)

    def _call(self, name: str, *_: object, **__: object) -> None:
        self.calls.append(name)
        if name == self.broken:
            raise ConnectionError("the server is lost")


ACTIONS = {"define_metric": "start", "log": "log an epoch"}


@pytest.mark.parametrize("broken", ["define_metric", "log", "update", "log_artifact", "finish"])
def test_failing_call_costs_one_warning_and_nothing_more_is_recorded(
    broken: str, tmp_path: Path, log: Log, monkeypatch: Patch
) -> None:
    run = FailingRun(broken)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes(b"1")
    follow(WandbTracker(replace(OFFLINE, log_adapter=True), description(tmp_path)), adapter)
    (warning,) = lines(log)
    action = ACTIONS.get(broken, "record the result")
    assert f"W&B could not {action} (ConnectionError: the server is lost); the run keeps its own records" in warning
    assert broken == "define_metric" or warning.endswith("to upload what W&B has: wandb sync somewhere")
    assert run.calls.count(broken) == 1
    assert run.calls.count("finish") == (0 if broken == "define_metric" else 1)


def test_a_failing_tracker_does_not_hide_the_error_of_the_run(tmp_path: Path, log: Log, monkeypatch: Patch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: FailingRun("update"))
    with pytest.raises(FloatingPointError, match="loss is NaN"), WandbTracker(OFFLINE, description(tmp_path)):
        raise FloatingPointError("loss is NaN")
    assert len(lines(log)) == 1


def test_ids_are_valid_stable_and_distinct() -> None:
    ids = ["cub-gift_0", "a/b", "a:b", "a b", "x" * 65, "ü"]
    made = [_wandb_id(run_id) for run_id in ids]
    assert made[0] == "cub-gift_0"
    assert len(set(made)) == len(ids)
    assert made == [_wandb_id(run_id) for run_id in ids]
    assert all(1 <= len(run_id) <= 64 and not set(run_id) & set("/\\#?%: ") for run_id in made)
