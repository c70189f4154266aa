"""Weights & Biases: config, one point per epoch, final numbers, and by choice the adapter; never a reason for a run to stop."""

import hashlib
import logging
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from gift_vit.engine.observer import EpochRecord, Observer, StopTraining
from gift_vit.tracking.config import TrackerConfig
from gift_vit.tracking.fields import summary_fields

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 180.0  # W&B's own default waits for a lost server for ever
_LONGEST = 64  # letters of an id, and of a tag
_LONGEST_NAME = 128  # of a name, and of a group
_FLUSH_S = 1.0  # after which an offline record is on the disk; W&B's own 15 lose the last epochs of a process that is killed
_STARTED = "????????_??????"  # date and time in the name of a record's folder, before the run's id


@dataclass
class RunDescription:
    """What a tracker records about a run before it starts.

    Attributes:
        name: Shown to people.
        folder: The run's own folder; the tracker's files go there.
        config: What :func:`gift_vit.tracking.fields.config_fields` makes of the resolved configuration.
        group: ``<dataset>/<method>``.
        job_type: The phase.
        tags: Protocol, benchmark, backbone, seed.
        run_id: The same for every start of the same run, so that a resumed run continues its curves.
    """

    name: str
    folder: Path
    config: dict[str, object]
    group: str
    job_type: str
    tags: list[str]
    run_id: str


class WandbTracker(Observer):
    """Records a run in W&B; whatever goes wrong there costs one warning, and then nothing more is recorded.

    Online without a login, or with a server that does not answer, the run is recorded offline instead.
    """

    def __init__(self, cfg: TrackerConfig, run: RunDescription) -> None:
        self._cfg = cfg
        self._description = run
        self._run: wandb.Run | None = None
        self._upload: str | None = None
        self._before: dict[str, Any] = {}  # settings of this process, which are its own again at the end

    def __enter__(self) -> "WandbTracker":
        with self._guarded("start"):
            self._before = _process_settings()
            self._run = self._start()
            self._upload = f"wandb sync {shlex.quote(str(self._run.settings.sync_dir))}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, StopTraining):
            with self._guarded("record why it was stopped"):
                if self._run is not None:
                    self._run.summary.update({"pruned": str(error)})
        elif error is not None:
            self.fail("interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}")
        with self._guarded("end the run"):
            self._end(exit_code=0)
        with suppress(Exception):
            _set_up(self._before)

    def resumed(self, history: list[EpochRecord]) -> None:
        """Log what W&B lacks of the epochs that are done: of a process that was killed it may not have the last ones.

        An offline record then tells the whole run, and those of earlier starts go; with one that was sent they all stay.
        """
        with self._guarded("log the epochs that are done"):
            if self._run is None or not history:
                return
            own = Path(self._run.settings.sync_dir)
            earlier = [folder for folder in own.parent.glob(f"*run-{_STARTED}-{self._run.id}") if folder.name != own.name]
            unsent = [folder for folder in earlier if folder.name.startswith("offline") and not any(folder.glob("*.synced"))]
            if self._run.offline and unsent != earlier:
                return
            for record in history[0 if self._run.offline else self._run.starting_step :]:
                self.epoch_done(record)
            for folder in unsent if self._run is not None else ():  # else not all was logged
                shutil.rmtree(folder, ignore_errors=True)

    def epoch_done(self, record: EpochRecord) -> None:
        """Log one point of every curve; W&B's step is the epoch, so that a resumed run continues where it stopped."""
        with self._guarded("log an epoch"):
            if self._run is not None:
                self._run.log(dict(record), step=record["epoch"], commit=True)

    def finish(self, summary: Mapping[str, object], adapter: Path | None) -> None:
        """Record the final numbers, and the adapter where the configuration says so; then close the run."""
        with self._guarded("record the result"):
            if self._run is None:
                return
            ended_before = [key for key in ("failure", "pruned") if self._run.summary.get(key) is not None]
            self._run.summary.update({**dict.fromkeys(ended_before), **summary_fields(summary)})
            if adapter is not None and self._cfg.log_adapter:
                _log_adapter(self._run, adapter)
            self._end(exit_code=0)

    def fail(self, reason: str) -> None:
        """Record why the run ended and close it as failed; a later start with the same id continues it."""
        with self._guarded("record the failure"):
            if self._run is not None:
                self._run.summary.update({"failure": reason})
            self._end(exit_code=1)

    def _start(self) -> "wandb.Run":
        if self._cfg.mode == "online":
            try:
                return self._init("online")
            except Exception as error:
                log_in = "log in with `wandb login` or WANDB_API_KEY, or " if isinstance(error, PermissionError) else ""
                told = "W&B is not online (%s); this run is recorded offline; to be asked no more, %sset tracker.mode=offline"
                logger.warning(told, _one_line(error), log_in)
                _stop_service()
        return self._init("offline")

    def _init(self, mode: Literal["offline", "online"]) -> "wandb.Run":
        import wandb

        # the mode is set here too, since otherwise W&B sends its own usage statistics even from an offline run
        _set_up({"mode": mode, "silent": True, "quiet": True})
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise PermissionError("no login found")
        if mode == "online":
            logger.info("connecting to W&B, for at most %.0f s", INIT_TIMEOUT_S)
        description = self._description
        description.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            mode=mode,
            project=self._cfg.project,
            entity=self._cfg.entity,
            id=_wandb_id(description.run_id),
            resume="allow",
            reinit="create_new",  # beside a run that a notebook has of its own
            name=description.name[:_LONGEST_NAME],
            group=description.group[:_LONGEST_NAME],
            job_type=description.job_type,
            tags=[tag[:_LONGEST] for tag in description.tags],
            config=description.config,
            dir=description.folder.resolve(),
            settings=wandb.Settings(
                console="off",
                silent=True,
                quiet=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=_FLUSH_S,
            ),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run

    def _end(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        run.finish(exit_code=exit_code)
        if run.offline:
            logger.info("W&B recorded this run offline; to upload it: %s", self._upload)

    @contextmanager
    def _guarded(self, action: str) -> Iterator[None]:
        """Turn an exception into one warning and stop recording."""
        try:
            yield
        except Exception as error:
            run, self._run = self._run, None
            remedy = f"to upload what W&B has: {self._upload}" if self._upload else "to do without W&B: tracker=none"
            if isinstance(error, ImportError):
                remedy = "install wandb or set tracker=none"
            logger.warning("W&B could not %s (%s); the run keeps its own records; %s", action, _one_line(error), remedy)
            if run is not None:
                try:
                    run.finish(exit_code=1)
                except Exception:
                    _stop_service()


def run_id_of(folder: Path, name: str, is_resumed: bool) -> str:
    """An id that no other run has, or of one that is resumed that of its last record, wherever its folder lies now."""
    records = list((folder / "wandb").glob(f"*run-{_STARTED}-*")) if is_resumed else []
    newest = max((record.name.partition("run-")[2] for record in records), default=None)
    return f"{name}-{time.time_ns()}" if newest is None else newest[len(_STARTED) + 1 :]


def _process_settings() -> dict[str, Any]:
    """Those settings of W&B that a run changes for the whole process."""
    import wandb

    settings = wandb.setup().settings
    return {name: getattr(settings, name) for name in ("mode", "silent", "quiet")}


def _set_up(settings: Mapping[str, Any]) -> None:
    import wandb

    wandb.setup(wandb.Settings(**settings))


def _stop_service() -> None:
    """End W&B's service process, which still holds the id of a run that did not start, or which is the thing that broke."""
    import wandb

    with suppress(Exception):
        wandb.teardown(exit_code=1)


def _log_adapter(run: "wandb.Run", adapter: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"adapter-{run.id}", type="adapter")
    # immutable: uploaded from where it lies, without a copy in the home folder
    artifact.add_file(str(adapter.resolve()), policy="immutable")
    run.log_artifact(artifact)


def _wandb_id(run_id: str) -> str:
    """``run_id`` where W&B accepts it as an id, else a digest of it."""
    fits = len(run_id) <= _LONGEST and re.fullmatch(r"[A-Za-z0-9_-]+", run_id)
    return run_id if fits else hashlib.sha256(run_id.encode()).hexdigest()[:16]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
