"""Cores, threads that wait on them, and the line that says why a run is slow."""

import logging
import os
import sys

import joblib
import pytest
import torch

from gift_vit.common import cli
from gift_vit.common.cores import cores, share_quota
from gift_vit.config.compose import compose_config
from gift_vit.runs.job import run_hydra
from gift_vit.tracking.load import LoadNote

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Of a person who has set nothing."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["gift-vit-train"])
    monkeypatch.setattr(cli, "interrupt_on_sigterm", lambda: None)
    return monkeypatch


def seen() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in VARIABLES}


@pytest.mark.parametrize("start", [cli.run_command, run_hydra])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("1000", None)),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, (None, "ACTIVE")),
        ({"GOMP_SPINCOUNT": "INFINITE"}, ("INFINITE", None)),
        ({"OMP_WAIT_POLICY": ""}, (None, "")),
    ],
)
def test_every_command_lets_threads_sleep_unless_a_person_says_how_they_wait(
    start: object, given: dict[str, str], expected: tuple[str | None, str | None], environment: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        environment.setenv(name, value)
    found: list[dict[str, str | None]] = []
    start(lambda: found.append(seen()))  # pyright: ignore[reportCallIssue]
    assert found == [dict(zip(VARIABLES, expected, strict=True))]


def test_cores_are_those_of_the_process() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("quota", "set_by_hand", "threads"), [(3, None, 3), (64, None, 8), (3, "8", 8)], ids=["less", "more", "a person's own"]
)
def test_threads_keep_to_the_quota(quota: int, set_by_hand: str | None, threads: int, environment: pytest.MonkeyPatch) -> None:
    environment.setattr(joblib, "cpu_count", lambda: quota)
    environment.setattr(torch, "get_num_threads", lambda: 8)
    environment.setattr(torch, "set_num_threads", lambda count: found.append(count))
    environment.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_hand:
        environment.setenv("OMP_NUM_THREADS", set_by_hand)
    found = [8]
    share_quota()
    assert found[-1] == threads


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_no_more_workers_than_cores(count: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: count)
    assert compose_config([]).trainer.workers == workers
    assert compose_config(["trainer.workers=8"]).trainer.workers == 8, "a person's own number stays"


@pytest.mark.parametrize(("load", "own", "said"), [(2.4, 0, False), (2.6, 0, True), (4.4, 2, False), (9.1, 2, True)])
def test_a_run_that_others_slow_down_says_so_once(
    load: float, own: int, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    note = LoadNote(own)
    with caplog.at_level(logging.INFO):
        for epoch in range(3):
            note.epoch_started(epoch, 3, 100)
    expected = [f"this run is slowed down by other processes: load {load} on 2 cores"]
    assert [record.getMessage() for record in caplog.records] == expected * said
