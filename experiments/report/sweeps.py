"""Heat maps of a search: the score on val over learning rate × weight decay, one map per value of every other axis."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from matplotlib import colormaps
from matplotlib.colors import to_hex

from experiments.report.runs import ShownRun, display_order, varying_keys
from gift_vit.config.keys import best_of, identifying
from gift_vit.runs.result import score_of

LR, WEIGHT_DECAY = "optim.lr", "optim.weight_decay"
_COLOURS = colormaps["cividis"]  # told apart by colour-blind readers and in grey, as its luminance grows steadily


@dataclass(frozen=True)
class HeatCell:
    """One combination of values.

    Attributes:
        state: That of its runs; ``missing`` where there is none, ``several`` where two are of one seed.
        top1: The score on val, in percent; the mean over the seeds that are finished.
        colours: Background and text, as CSS; None where there is no number to show.
        best: It is the sweep's best, which ``experiments.select`` chooses.
    """

    state: str
    top1: float | None = None
    colours: tuple[str, str] | None = None
    best: bool = False


@dataclass(frozen=True)
class HeatMap:
    """Weight decays × learning rates; ``axes`` says which values of the other axes it holds for."""

    axes: str
    lrs: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell]]]


@dataclass(frozen=True)
class Sweep:
    """The search of one method on one dataset; its maps share one scale of colours, from its lowest to its highest value.

    ``setting`` names the backbone, the protocol and, where several occur, the data.
    """

    dataset: str
    method: str
    setting: str
    maps: Sequence[HeatMap]
    missing: int
    best: str
    score: str


def build_sweeps(runs: Iterable[ShownRun]) -> list[Sweep]:
    """One sweep per dataset, method, backbone, protocol and data that has search runs whose configuration is known."""
    groups: dict[tuple[str, str, str], list[ShownRun]] = defaultdict(list)
    for run in runs:
        if run.phase == "search" and all(isinstance(run.settings.get(key), int | float) for key in (LR, WEIGHT_DECAY)):
            groups[run.dataset, run.method, f"{run.backbone}, {run.protocol}"].append(run)
    return [
        _build_sweep(dataset, method, setting, members)
        for dataset, method, whole in sorted(groups, key=display_order)
        for setting, members in sorted(_by_data(whole, groups[dataset, method, whole]).items())
    ]


def _by_data(setting: str, runs: Sequence[ShownRun]) -> dict[str, list[ShownRun]]:
    """The runs by a setting that names their data where it differs; a run without a result does not tell its own."""
    told = [run.result.data.fingerprint[:12] if run.result else "unknown" for run in runs]
    several = len(set(told) - {"unknown"}) > 1
    groups: dict[str, list[ShownRun]] = defaultdict(list)
    for run, data in zip(runs, told, strict=True):
        groups[f"{setting}, data {data}" if several else setting].append(run)
    return groups


def _build_sweep(dataset: str, method: str, setting: str, runs: Sequence[ShownRun]) -> Sweep:
    others = [key for key in varying_keys(runs) if key not in (LR, WEIGHT_DECAY, "seed")]
    lrs, decays = (sorted({float(run.settings[key]) for run in runs}) for key in (LR, WEIGHT_DECAY))
    maps: dict[tuple[str, ...], dict[tuple[object, object], list[ShownRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        cells = maps[tuple(run.text(key) for key in others)]
        cells[run.settings[WEIGHT_DECAY], run.settings[LR]].append(run)
    tried = [cell for cells in maps.values() for cell in cells.values()]
    twice = any(map(_claims_twice, tried))  # then experiments.select refuses to choose
    finished = [cell for cell in tried if _by_seed(cell) and not _claims_twice(cell)]
    means = [fmean(_by_seed(cell).values()) for cell in finished]
    best = finished[best_of([identifying(cell[0].settings) for cell in finished], means)] if finished and not twice else []
    said = "none, for two runs of one setting claim one seed" if twice else _in_words(best, others)
    span = (min(means), max(means)) if means else (0.0, 0.0)
    drawn = [
        HeatMap(
            ", ".join(f"{key.removeprefix('method.')} {value}" for key, value in zip(others, values, strict=True)),
            [f"{lr:g}" for lr in lrs],
            [(f"{wd:g}", [_cell(cells.get((wd, lr), ()), span, best) for lr in lrs]) for wd in decays],
        )
        for values, cells in sorted(maps.items(), key=lambda item: [_order(value) for value in item[0]])
    ]
    missing = sum((wd, lr) not in cells for cells in maps.values() for wd, lr in product(decays, lrs))
    return Sweep(dataset, method, setting, drawn, missing, said, score_of(run.score_name for run in runs))


def _by_seed(runs: Sequence[ShownRun]) -> dict[object, float]:
    """Scores on val of one setting's finished runs."""
    return {run.settings.get("seed"): run.val_top1 for run in runs if run.val_top1 is not None}


def _claims_twice(runs: Sequence[ShownRun]) -> bool:
    """Whether two runs of one setting are of one seed."""
    return len({run.settings.get("seed") for run in runs}) < len(runs)


def _cell(runs: Sequence[ShownRun], span: tuple[float, float], best: Sequence[ShownRun]) -> HeatCell:
    if _claims_twice(runs):
        return HeatCell("several")
    if not (scores := _by_seed(runs).values()):
        return HeatCell(runs[0].state if runs else "missing")
    (low, high), top1 = span, fmean(scores)
    share = (top1 - low) / (high - low) if high > low else 1.0
    return HeatCell("done", top1, _colours(share), runs is best)


def _colours(share: float) -> tuple[str, str]:
    """Background and text of a value that lies at this share, 0–1, of the sweep's range; contrast at least 4.5 (WCAG 2.1)."""
    return to_hex(_COLOURS(share)), "#000" if share > 0.468 else "#fff"


def _in_words(runs: Sequence[ShownRun], others: Sequence[str]) -> str:
    """The score on val of one setting's runs and where in the sweep they stand."""
    if not runs:
        return ""
    run, scores = runs[0], _by_seed(runs).values()
    words = [f"lr {run.settings[LR]:g}", f"wd {run.settings[WEIGHT_DECAY]:g}"]
    words += [f"{key.removeprefix('method.')} {run.text(key)}" for key in others]
    words += [f"mean of {len(scores)} seeds"] if len(scores) > 1 else []
    return f"{fmean(scores):.2f} % at {', '.join(words)}"


def _order(value: str) -> tuple[float, str]:
    """Numbers by size, texts after them."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
