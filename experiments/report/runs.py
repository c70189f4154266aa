"""What lies in the folders of runs: finished ones, failed ones, and those that are running or were interrupted."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gift_vit.errors import ConfigError
from gift_vit.keys import flatten, identifying
from gift_vit.layout import CONFIG, FAILED, IMPORTED, LOG, METRICS, PRUNED
from gift_vit.results.collect import collect_results, plain_text
from gift_vit.results.names import DATASET_NAMES, METHOD_NAMES
from gift_vit.results.schema import FILE_NAME, Result

State = Literal["finished", "failed", "unfinished"]
Point = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's folder.

    Attributes:
        method: The method's label; :func:`name_variants` adds what tells the variants of one method apart.
        config: The resolved configuration; empty where a run failed before it was written.
        result: The record of a finished run.
        reason: Why a run failed, or how far an unfinished one has come.
        changed: When the folder was last written to, in UTC; of a finished run, when it started.
    """

    folder: Path
    state: State
    phase: str
    dataset: str
    benchmark: str
    method: str
    backbone: str
    protocol: str
    seed: int | None
    config: Mapping[str, Any]
    result: Result | None = None
    reason: str = ""
    changed: str = ""

    @property
    def val_top1(self) -> float | None:
        """In percent; None where the run is not finished or had no val split."""
        return self.result.metrics["val_top1"] if self.result else None

    @property
    def test_top1(self) -> float | None:
        """In percent; None but for finished final runs."""
        return self.result.metrics["test_top1"] if self.result else None

    def setting(self, key: str) -> Any:
        """The configuration's value of a dotted key; None where there is none."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def collect_runs(roots: Sequence[str], benchmark: str | None = None) -> list[Run]:
    """Every run below the folders, by path.

    Args:
        roots: Folders; links to other folders are not followed. What lies below two of them counts once.
        benchmark: Keep the runs of this one only; runs that failed before their configuration was written count to any.

    Raises:
        ConfigError: If a folder is absent, a ``result.json`` cannot be read, or no run remains.
    """
    runs = [_finished(result) for result in collect_results(*roots)]
    folders = sorted({Path(folder) for root in roots for folder, _, files in os.walk(root) if _is_open(files)})
    runs += [_not_finished(folder) for folder in folders]
    where = ", ".join(roots)
    if not runs:
        raise ConfigError(
            f"no run below {where}; start one with `python -m gift_vit.train`, or pass root=<folder with the runs>"
        )
    known = sorted({run.benchmark for run in runs if run.benchmark})
    if benchmark is not None and benchmark not in known:
        raise ConfigError(f"no run of benchmark {benchmark!r} below {where} (there: {', '.join(known)})")
    kept = [run for run in runs if benchmark in (None, run.benchmark) or not run.benchmark]
    return name_variants(sorted(kept, key=lambda run: run.folder))


def name_variants(runs: Iterable[Run]) -> list[Run]:
    """The runs, with the method's own settings added to its label where final runs on one dataset differ in them.

    The runs of an ablation, as over ``method.rank``, then have rows, points and curves of their own. Settings that differ
    from dataset to dataset only, as chosen ones do, leave the label as it is.
    """
    runs = list(runs)
    cells: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for run in runs:
        if run.phase == "final":
            cells[run.method, run.dataset, run.backbone, run.protocol].append(_method_settings(run))
    varying: dict[str, dict[str, None]] = defaultdict(dict)
    for (method, *_), settings in cells.items():
        for key in dict.fromkeys(key for values in settings for key in values):
            if len({values.get(key) for values in settings}) > 1:
                varying[method][key] = None
    return [_named(run, list(varying[run.method])) for run in runs]


def read_curve(folder: Path) -> tuple[list[Point], bool]:
    """The epochs of ``metrics.jsonl``, numbers only, and whether the whole file could be read.

    A line that is being written, and a number that is not finite, are left out.
    """
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return [], True
    except (OSError, UnicodeDecodeError):
        return [], False
    points = [_point(line) for line in lines]
    return [point for point in points if "epoch" in point], all(points)


def _point(line: str) -> Point:
    """The finite numbers of a line; none where it is no record."""
    try:
        return {key: float(value) for key, value in json.loads(line).items() if math.isfinite(value)}
    except (ValueError, TypeError, AttributeError):
        return {}


def _is_open(files: Sequence[str]) -> bool:
    """Whether a folder with these files is a run's that is not finished; an imported adapter was never a run here."""
    return FILE_NAME not in files and IMPORTED not in files and (FAILED in files or {CONFIG, LOG} <= set(files))


def _finished(result: Result) -> Run:
    run = result.run
    assert result.path is not None, "it was read from a file"
    return Run(
        folder=result.path.parent,
        state="finished",
        phase=run.phase,
        dataset=run.dataset,
        benchmark=run.benchmark,
        method=run.method,
        backbone=run.backbone,
        protocol=run.protocol,
        seed=run.seed,
        config=run.config,
        result=result,
        changed=run.started_at[:16].replace("T", " "),
    )


def _not_finished(folder: Path) -> Run:
    config = _read_config(folder / CONFIG)
    failed = (folder / FAILED).is_file()

    def name(section: str, key: str = "name") -> str:
        values = config.get(section)
        return str(values.get(key, "")) if isinstance(values, Mapping) else ""

    seed = config.get("seed")
    return Run(
        folder=folder,
        state="failed" if failed else "unfinished",
        phase=str(config.get("phase", "")),
        dataset=name("dataset"),
        benchmark=name("dataset", "benchmark"),
        method=name("method"),
        backbone=name("backbone"),
        protocol=name("protocol"),
        seed=seed if isinstance(seed, int) else None,
        config=config,
        reason=_why_failed(folder / FAILED) if failed else _progress(folder, config),
        changed=_last_change(folder),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration, or nothing where it is absent or was damaged: the run is listed all the same."""
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException):
        return {}
    return values if isinstance(values, dict) else {}


def _why_failed(path: Path) -> str:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"{record['error']}: {record['message']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{FAILED} cannot be read"


def _progress(folder: Path, config: Mapping[str, Any]) -> str:
    if (folder / PRUNED).is_file():
        return str(json.loads((folder / PRUNED).read_text(encoding="utf-8"))["message"])
    trainer = config.get("trainer")
    epochs = trainer.get("epochs") if isinstance(trainer, Mapping) else None
    return f"{len(read_curve(folder)[0])} of {epochs or 'unknown'} epochs done; running, or interrupted and resumable"


def _last_change(folder: Path) -> str:
    newest = max((file.stat().st_mtime for file in folder.iterdir() if file.is_file()), default=folder.stat().st_mtime)
    return datetime.fromtimestamp(newest, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _method_settings(run: Run) -> dict[str, str]:
    section = run.config.get("method")
    settings = identifying(section) if isinstance(section, Mapping) else {}
    return {key: plain_text(value) for key, value in settings.items() if key not in {"name", "kind"}}


def _named(run: Run, keys: Sequence[str]) -> Run:
    settings = _method_settings(run)
    # a search has one label for all it compares: its own axes are shown as such
    listed = ", ".join(f"{key}={settings[key]}" for key in keys if key in settings) if run.phase == "final" else ""
    return replace(run, method=f"{run.method} ({listed})") if listed else run


def display_order(key: Sequence[str]) -> tuple[object, ...]:
    """Sorts tuples that begin with the labels of dataset and method as tables have them, other labels after the known ones."""
    dataset, method, *others = key
    ranks = [
        names.index(label) if label in names else len(names) for label, names in ((dataset, _DATASETS), (method, _METHODS))
    ]
    return ranks[0], dataset, ranks[1], method, *others


_DATASETS, _METHODS = list(DATASET_NAMES), list(METHOD_NAMES)


def varying_keys(runs: Iterable[Run]) -> list[str]:
    """Keys in which the configurations of runs of one protocol differ, those that place or watch a run aside."""
    flat = [dict(identifying(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config if not key.startswith("protocol."))
    return [key for key in keys if len({json.dumps(config.get(key), sort_keys=True) for config in flat}) > 1]


def flat_value(config: Mapping[str, Any], key: str) -> str:
    """A value of a configuration by its dotted key, as text; a dash where it has none."""
    values = dict(flatten(config))
    return plain_text(values[key]) if key in values else "–"
