"""One run on several processes: ``torchrun --nproc-per-node=2 -m gift_vit.train …``.

Each process holds the whole model and takes its share of every batch; gradients, losses and scores are summed, so that all of
them make the same update. The main one (rank 0) alone writes and speaks. Without torchrun there is one process, every function
here does nothing, and none of them imports torch.

No process may wait for one that is gone. Therefore whoever waits for the others first says how it fares (:func:`meet`): what
ends one process, an error or an interruption, is raised in all others at their next meeting. The last meeting is at the end of
:func:`together`, which a process reaches with whatever error it has, so that no other code needs to care.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gift_vit.common.errors import ConfigError, RunError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

# Long, since the others wait while the main process decodes a data set into the cache; a process that dies is noticed at once.
_PATIENCE = timedelta(days=2)
_WELL, _FAILED, _INTERRUPTED = 0, 1, 2

T = TypeVar("T")


class _Report(NamedTuple):
    """What the others are told of an error."""

    rank: int
    users_mistake: bool
    line: str
    trace: str


class _Processes:
    """This process among those of its run.

    Attributes:
        ended: All know how the run ends: nobody waits for anybody any more.
        alone: It ended because another process is gone.
        interrupted: Ctrl-C or SIGTERM arrived.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.ended = self.alone = self.interrupted = self._busy = False

    def interrupt(self, *_: object) -> None:
        """Signal handler. Torchrun passes on a signal that the terminal has sent to all already: only the first one counts."""
        if not (self.interrupted or self.ended):
            let_workers_end()
            self.interrupted = True
            if not self._busy:
                raise KeyboardInterrupt

    def meet(self, error: BaseException | None = None) -> None:
        """Tell the others of ``error``, if there is one; raise what ended any process."""
        with self._uninterrupted():
            self._meet(error)

    def sum(self, tensor: "Tensor") -> None:
        """Meet, and sum a tensor over the processes in place."""
        with self._uninterrupted():
            self._meet(None)
            with self._connected():
                self._dist.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """Meet, and exchange any value that can be pickled."""
        with self._uninterrupted():
            self._meet(None)
            return self._gather(value)

    def _meet(self, error: BaseException | None) -> None:
        import torch

        # On the CPU whatever trains: a GPU's queue is never waited for, nor filled with a sum that not all will take part in.
        status = torch.tensor(_status(error))
        with self._connected():
            self._dist.all_reduce(status, self._dist.ReduceOp.MAX)
        if status == _WELL:
            return
        if status == _INTERRUPTED:
            self.ended = True
            raise error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt
        reports = self._gather(None if error is None else _report(error, self.rank))
        self.ended = True
        first = next(report for report in reports if report is not None)
        raise error if error is not None and first.rank == self.rank else _error(first)

    def _gather(self, value: T) -> list[T]:
        values: list[T] = [value] * self.size
        with self._connected():
            self._dist.all_gather_object(values, value)
        return values

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Put an interruption off until the others have what they wait for."""
        before, self._busy = self.interrupted, True
        try:
            yield
        finally:
            self._busy = False
        if self.interrupted and not before:
            raise KeyboardInterrupt

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self.ended = self.alone = True
            reason = str(error).strip().splitlines()[0]
            raise RunError(
                f"another process of this run is gone without a word, killed or out of memory? ({reason}); "
                "start the same command again to resume"
            ) from error


_processes: _Processes | None = None


def launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process as one of several."""
    needed = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return needed <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def together(action: Callable[[], None]) -> None:
    """Do something on all processes of a run, which end alike; without torchrun just do it."""
    if not launched():
        action()
        return
    with _joined() as processes:
        try:
            action()
        except (Exception, KeyboardInterrupt) as error:
            if not processes.ended:
                processes.meet(error)
            raise
        processes.meet()


def world_size() -> int:
    """Number of processes."""
    return _processes.size if _processes else 1


def rank() -> int:
    """This process among them, from 0."""
    return _processes.rank if _processes else 0


def is_main() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process do something before the others, which then find what it made: a download, a cache, a file.

    All processes must pass here, and as often.
    """
    if _processes and not is_main():
        _processes.meet()
    yield
    if _processes and is_main():
        _processes.meet()


def sum_over_processes(tensor: "Tensor") -> None:
    """Replace a tensor by its sum over the processes, bit for bit the same in all."""
    if _processes:
        _processes.sum(tensor)


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    return _processes.gather(value) if _processes else [value]


def gather_rows(own: "NDArray[Any] | None") -> "NDArray[Any]":
    """Rows that the processes share out in turns (rank r has r, r + processes, …), in order; None: this one has none."""
    import numpy as np

    parts = [part for part in gather(own) if part is not None]
    rows = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for rank, part in enumerate(parts):
        rows[rank :: world_size()] = part
    return rows


def own_device(device: "torch.device") -> "torch.device":
    """The device of this process where a run was given ``device``: of the CUDA devices, each process of a machine has one.

    Raises:
        ConfigError: If ``device`` is one certain CUDA device, or there are too few.
    """
    if _processes is None or device.type != "cuda":
        return device
    import torch

    if device.index is not None:
        raise ConfigError(f"trainer.device={device} is one device for {_processes.size} processes; give trainer.device=cuda")
    count = torch.cuda.device_count()
    if _processes.local_rank >= count:
        raise ConfigError(f"this machine has {count} CUDA devices; start torchrun with --nproc-per-node={count} at most")
    torch.cuda.set_device(_processes.local_rank)
    return torch.device("cuda", _processes.local_rank)


def let_workers_end() -> None:
    """From an interruption on, a loader's worker that ends is no error: the signal may have been sent to all processes.

    PyTorch's handler of SIGCHLD would raise one, in the middle of what the process does before it exits. One that does nothing
    takes its place, and not the default: Python would tell of a signal that is on its way and has no handler any more.
    """
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, lambda *_: None)


@contextmanager
def _joined() -> Iterator[_Processes]:
    global _processes
    import torch
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    _processes = _Processes()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _processes.interrupt)
    try:
        yield _processes
    finally:
        # From here on the process only exits; torchrun, which ends the others when one has failed, shall not disturb that.
        alone, _processes.ended, _processes = _processes.alone, True, None
        if not alone:  # else there may be a sum on the GPU that waits for the one that is gone
            dist.destroy_process_group()


def _status(error: BaseException | None) -> int:
    if error is None:
        return _WELL
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _FAILED


def _report(error: BaseException, rank: int) -> _Report:
    line = str(error) if isinstance(error, ConfigError | RunError) else f"{type(error).__name__}: {error}"
    return _Report(rank, isinstance(error, ConfigError), line, "".join(traceback.format_exception(error)))


def _error(report: _Report) -> ConfigError | RunError:
    error = ConfigError(report.line) if report.users_mistake else RunError(report.line)
    error.__cause__ = RuntimeError(f"in process {report.rank}:\n{report.trace}")
    return error
