"""The cores that this process may use, and how its threads and other processes share them. Imports no torch."""

import os
import sys

# Of GNU's OpenMP, which torch's wheels bring. Steps of vit_mini, batch 32, on two cores beside one busy process: 0.28 s, with
# OpenMP's own choice 1.15 s; alone 0.157 s with either.
_SPIN_COUNT = ("GOMP_SPINCOUNT", "1000")
_PEOPLES_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def cores() -> int:
    """How many cores this process may use: those of its affinity, and no more than its control group's quota."""
    import joblib  # brings numpy: --help does without

    return joblib.cpu_count()


def share_quota() -> None:
    """Let torch compute in no more threads than :func:`cores`: it does not know of a control group's quota.

    A container with the time of 2 of 64 cores would else start 64 threads, which wait for each other most of the time. What a
    person has set in the environment, or somebody has made fewer, stays.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and cores() < torch.get_num_threads():
        torch.set_num_threads(cores())


def worker_start(workers: int) -> str | None:
    """How the processes of a DataLoader begin, its ``multiprocessing_context``: on Linux as copies that share the memory.

    From Python 3.14 on they would begin empty otherwise: each is sent a data set of its own, and runs a script that has no
    guard for that from its start.
    """
    return "fork" if workers and sys.platform == "linux" else None


def wait_asleep() -> None:
    """Let OpenMP's threads fall asleep soon while they wait for each other; to be called before torch is imported.

    On their own they spin for milliseconds, and where another process has the core of the thread that they wait for, they keep
    it from running. Processes that are started inherit it. What a person has set in the environment stays.
    """
    if not any(name in os.environ for name in _PEOPLES_OWN):
        os.environ.setdefault(*_SPIN_COUNT)
