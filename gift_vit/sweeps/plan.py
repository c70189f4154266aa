"""What sweeps were asked for: what is missing is known only to the sweep."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from gift_vit.common.errors import ConfigError
from gift_vit.common.files import write_json
from gift_vit.config.compose import baseline_of, compose_job
from gift_vit.config.loader import load_config
from gift_vit.runs.run import Run

SWEEPS = "sweeps"  # folder below the output root


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        overrides: Its words, without those that choose a sweep file and its grid.
        folder: The run's folder; None where its configuration is refused.
        problem: Why it is refused.
    """

    overrides: tuple[str, ...]
    folder: str | None
    problem: str | None = None

    @property
    def cell(self) -> tuple[str, ...] | None:
        """Phase, dataset and method: ``<output root>/<phase>/<dataset>/<method>/<backbone>/<run name>``; None if refused."""
        return Path(self.folder).parts[-5:-2] if self.folder else None


@dataclass(frozen=True)
class Sweep:
    """The jobs of one sweep command; ``command`` is the line that starts it, and goes on with what is missing."""

    command: str
    started_at: str
    jobs: tuple[Job, ...]


def plan_job(overrides: Sequence[str]) -> Job:
    """The job of these words, while Hydra is set up: what it would be named, or why it would be refused."""
    own = tuple(word for word in overrides if not word.startswith(("sweep=", "grid=", "hydra")))
    cfg, hydra_cfg = compose_job(overrides)
    try:
        return Job(own, str(load_config(cfg, lambda: baseline_of(hydra_cfg)).folder))
    except ConfigError as error:
        return Job(own, None, str(error))


def write_sweep(output_root: Path, sweep: Sweep) -> Path:
    """Record a sweep under ``<output root>/sweeps``; the same command has one record, however often it is started."""
    words = re.sub(r"[^a-z0-9]+", "-", sweep.command.partition("gift_vit.train")[2].lower()).strip("-")[:80]
    path = output_root / SWEEPS / f"{words}-{sha256(sweep.command.encode()).hexdigest()[:8]}.json"
    write_json(path, asdict(sweep))
    return path


def read_sweeps(output_root: Path) -> list[Sweep]:
    """The recorded sweeps, oldest first.

    Raises:
        ConfigError: If a record cannot be read.
    """
    return sorted(map(_read_sweep, (output_root / SWEEPS).glob("*.json")), key=lambda sweep: sweep.started_at)


def _read_sweep(path: Path) -> Sweep:
    try:
        record = json.loads(path.read_text())
        jobs = tuple(Job(tuple(job["overrides"]), job["folder"], job["problem"]) for job in record["jobs"])
        return Sweep(record["command"], record["started_at"], jobs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no readable record of a sweep ({error}); delete it") from error


def unfinished(sweeps: Sequence[Sweep], dataset: str, method: str) -> int:
    """Search runs that sweeps asked for on one dataset with one method and that are neither done nor pruned."""
    jobs = [job for sweep in sweeps for job in sweep.jobs]
    folders = {Path(job.folder) for job in jobs if job.folder and job.cell == ("search", dataset, method)}
    return sum(Run.open(folder).state not in ("done", "pruned") for folder in folders)
