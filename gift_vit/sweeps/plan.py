"""What sweeps were asked for: what is missing is known only to the sweep."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gift_vit.common.errors import ConfigError, RunError
from gift_vit.common.files import write_json
from gift_vit.config.compose import compose_job
from gift_vit.config.loader import load_job
from gift_vit.config.run_config import RunConfig
from gift_vit.runs.job import check_ready
from gift_vit.runs.run import Run, path_labels

log = logging.getLogger(__name__)

SWEEPS = "sweeps"  # folder below the output root


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        overrides: Its words, without those that choose a sweep file and its grid.
        folder: The run's folder; None where its configuration is refused.
        problem: Why it is refused.
        protocol: The run's; None where it is refused, or the record is of before it was kept.
    """

    overrides: tuple[str, ...]
    folder: str | None
    problem: str | None = None
    protocol: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Phase, dataset, method and backbone; empty if it is refused, or its folder lies elsewhere."""
        return path_labels(Path(self.folder)) if self.folder else {}


@dataclass(frozen=True)
class Plan:
    """A job that may be started.

    Attributes:
        words: All its words.
        job: What is recorded of it.
        run: Its configuration; None where it is refused.
        hindrance: What keeps it from starting now: why it is refused, or data or a place that is not there.
    """

    words: tuple[str, ...]
    job: Job
    run: RunConfig | None
    hindrance: str | None = None


@dataclass(frozen=True)
class Sweep:
    """The jobs of one sweep command; ``command`` is the line that starts it, and goes on with what is missing."""

    command: str
    started_at: str
    jobs: tuple[Job, ...]


def plan_start(overrides: Sequence[str]) -> Plan:
    """The plan of the job of these words, while Hydra is set up: what it would be named, or why it would be refused."""
    own = tuple(word for word in overrides if not word.startswith(("sweep=", "grid=", "hydra")))
    try:
        cfg, hydra_cfg = compose_job(overrides)
        run = load_job(cfg, hydra_cfg)
    except ConfigError as error:
        return Plan(tuple(overrides), Job(own, None, str(error)), None, str(error))
    hindrance = None
    try:
        check_ready(run)
    except (ConfigError, RunError) as error:
        hindrance = str(error)
    return Plan(tuple(overrides), Job(own, str(run.folder), protocol=run.protocol.name), run, hindrance)


def cell_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Dataset, method, backbone and protocol of a flat configuration: only runs that agree in them can be compared."""
    return tuple(str(config[f"{section}.name"]) for section in ("dataset", "method", "backbone", "protocol"))


def write_sweep(output_root: Path, sweep: Sweep) -> Path:
    """Record a sweep under ``<output root>/sweeps``; the same command has one record, however often it is started.

    Folders are recorded as seen from the output root, which may be moved.
    """
    words = re.sub(r"[^a-z0-9]+", "-", sweep.command.partition("gift_vit.train")[2].lower()).strip("-")[:80]
    path = output_root / SWEEPS / f"{words}-{sha256(sweep.command.encode()).hexdigest()[:8]}.json"
    record = asdict(sweep)
    for job in record["jobs"]:
        job["folder"] = job["folder"] and os.path.relpath(job["folder"], output_root)
    write_json(path, record)
    return path


def read_sweeps(output_root: Path) -> list[Sweep]:
    """The recorded sweeps, oldest first; a record that cannot be read is left out, with a warning."""
    found = filter(None, (_read_sweep(path, output_root) for path in sorted((output_root / SWEEPS).glob("*.json"))))
    return sorted(found, key=lambda sweep: sweep.started_at)


def _read_sweep(path: Path, output_root: Path) -> Sweep | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        jobs = tuple(_read_job(output_root, **job) for job in record["jobs"])
        return Sweep(str(record["command"]), str(record["started_at"]), jobs)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is no readable record of a sweep (%r), and is left out; delete it", path, error)
        return None


def _read_job(
    output_root: Path, overrides: list[str], folder: str | None, problem: str | None, protocol: str | None = None
) -> Job:
    return Job(tuple(map(str, overrides)), None if folder is None else str(output_root / folder), problem, protocol)


def unfinished(sweeps: Sequence[Sweep], dataset: str, method: str, backbone: str, protocol: str) -> int:
    """Search runs that sweeps asked for of one dataset, method, backbone and protocol and that are neither done nor pruned."""
    asked = {"phase": "search", "dataset": dataset, "method": method, "backbone": backbone}
    jobs = [job for sweep in sweeps for job in sweep.jobs]
    own = [job for job in jobs if job.labels == asked and (job.protocol or _word(job, "protocol")) in (None, protocol)]
    folders = {Path(job.folder) for job in own if job.folder}
    return sum(Run.open(folder).state not in ("done", "pruned") for folder in folders)


def _word(job: Job, key: str) -> str | None:
    """The value that a job's words give to a key; None: they do not say."""
    return next((word.partition("=")[2] for word in job.overrides if word.startswith(f"{key}=")), None)
