"""What the page shows of a run: its labels and settings, and what tells the variants of one method apart."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from gift_vit.common.errors import ConfigError
from gift_vit.config.compose import flatten
from gift_vit.config.keys import identifying
from gift_vit.data.config import score_name
from gift_vit.results.collect import plain_text, runs_below
from gift_vit.results.names import DATASET_NAMES, METHOD_NAMES
from gift_vit.results.render import DASH
from gift_vit.runs.result import Result, thing_of
from gift_vit.runs.run import Run, State, path_labels

_LABELS = {
    **{"phase": "phase", "dataset": "dataset.name", "benchmark": "dataset.benchmark"},
    **{"method": "method.name", "backbone": "backbone.name", "protocol": "protocol.name"},
}  # and the keys of the configuration that hold them
_ORDERS = list(DATASET_NAMES), list(METHOD_NAMES)


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A run on the page.

    Attributes:
        state: Its state when the page was made; failed where its record cannot be read.
        result: The record of a finished run.
        settings: The flat configuration; empty where the run failed before it was written.
        method: The method's label; :func:`name_variants` adds what tells the variants of one method apart.
    """

    run: Run
    state: State
    result: Result | None
    settings: Mapping[str, Any]
    phase: str
    dataset: str
    benchmark: str
    method: str
    backbone: str
    protocol: str
    unreadable: str = ""  # why its record cannot be read

    @property
    def val_top1(self) -> float | None:
        """In percent; None where the run is not finished or had no val split."""
        return self.result.metrics["val_top1"] if self.result else None

    @property
    def test_top1(self) -> float | None:
        """In percent; None but for finished final runs."""
        return self.result.metrics["test_top1"] if self.result else None

    @property
    def score_name(self) -> str:
        """What its scores are, in a sentence."""
        if self.result:
            return self.result.score_name
        thing = thing_of(self.settings.get("backbone.kind"))
        return score_name(self.settings.get("dataset.metric", "accuracy" if thing == "image" else "score"), thing)

    def text(self, key: str) -> str:
        """The configuration's value of a dotted key; a dash where it has none."""
        return plain_text(self.settings[key]) if key in self.settings else DASH

    def changed(self) -> str:
        """When the folder was last written to, in UTC; of a finished run, when it started."""
        if self.result:
            return self.result.run.started_at[:16].replace("T", " ")
        folder = self.run.folder
        newest = max((file.stat().st_mtime for file in folder.iterdir() if file.is_file()), default=folder.stat().st_mtime)
        return datetime.fromtimestamp(newest, timezone.utc).strftime("%Y-%m-%d %H:%M")

    def reason(self) -> str:
        """Why the run failed or was stopped, or how far it has come."""
        told = self.unreadable or self.run.reason
        return told or f"{len(self.run.curve())} of {self.settings.get('trainer.epochs', 'unknown')} epochs done"


def collect_runs(roots: Sequence[str], benchmark: str | None = None) -> list[ShownRun]:
    """Every run below the folders, by path.

    Args:
        roots: Folders, as :func:`gift_vit.runs.run.find_runs` looks into them.
        benchmark: Keep the runs of this one only; runs that failed before their configuration was written count to any.

    Raises:
        ConfigError: If a folder is absent, or no run remains.
    """
    runs = [_shown(run) for run in runs_below(*roots)]
    where = ", ".join(roots)
    if not runs:
        raise ConfigError(
            f"no run below {where}; start one with `python -m gift_vit.train`, or pass root=<folder with the runs>"
        )
    known = sorted({run.benchmark for run in runs if run.benchmark})
    if benchmark is not None and benchmark not in known:
        raise ConfigError(f"no run of benchmark {benchmark!r} below {where} (there: {', '.join(known)})")
    return name_variants([run for run in runs if benchmark in (None, run.benchmark) or not run.benchmark])


def _shown(run: Run) -> ShownRun:
    result, state, unreadable = None, run.state, ""
    try:
        result = run.result
    except ConfigError as error:
        state, unreadable = "failed", str(error)
    settings = dict(flatten(result.run.config if result else run.values))
    path = path_labels(run.folder)  # of a run that failed before its configuration was written
    told = {name: settings.get(key, path.get(name, "")) for name, key in _LABELS.items()}
    labels = {name: str(getattr(result.run, name) if result else told[name]) for name in _LABELS}
    return ShownRun(run=run, state=state, result=result, settings=settings, unreadable=unreadable, **labels)


def name_variants(runs: Sequence[ShownRun]) -> list[ShownRun]:
    """The runs, with the method's own settings added to its label where final runs on one dataset differ in them.

    The runs of an ablation, as over ``method.rank``, then have rows, points and curves of their own. Settings that differ
    from dataset to dataset only, as chosen ones do, leave the label as it is.
    """
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


def _method_settings(run: ShownRun) -> dict[str, str]:
    own = {key.removeprefix("method."): plain_text(value) for key, value in run.settings.items() if key.startswith("method.")}
    return {key: value for key, value in own.items() if key not in {"name", "kind"}}


def _named(run: ShownRun, keys: Sequence[str]) -> ShownRun:
    settings = _method_settings(run)
    # a search has one label for all it compares: its own axes are shown as such
    listed = ", ".join(f"{key}={settings[key]}" for key in keys if key in settings) if run.phase == "final" else ""
    return replace(run, method=f"{run.method} ({listed})") if listed else run


def varying_keys(runs: Iterable[ShownRun]) -> list[str]:
    """Keys in which the configurations of runs differ, those that place or watch a run aside, of protocols the name alone."""
    flat = [identifying(run.settings) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config if key == "protocol.name" or not key.startswith("protocol."))
    return [key for key in keys if len({json.dumps(config.get(key), sort_keys=True) for config in flat}) > 1]


def display_order(key: Sequence[str]) -> tuple[object, ...]:
    """Sorts tuples that begin with the labels of dataset and method as tables have them, other labels after the known ones."""
    ranks = [known.index(label) if label in known else len(known) for label, known in zip(key, _ORDERS, strict=False)]
    return tuple(part for ranked in zip(ranks, key, strict=False) for part in ranked) + tuple(key[2:])
