"""Heat maps of a search: the score on val over learning rate × weight decay, one map per value of every other axis."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from matplotlib import colormaps

from experiments.report.runs import ShownRun, display_order, shared_score, varying_keys
from gift_vit.config.keys import identifying, score_order, tie_order

LR, WEIGHT_DECAY = "optim.lr", "optim.weight_decay"
_COLOURS = colormaps["cividis"]  # told apart by colour-blind readers and in grey


@dataclass(frozen=True)
class HeatCell:
    """One combination of values.

    Attributes:
        state: That of the run; ``missing`` where there is none, ``several`` where there are two.
        top1: The score on val, in percent, of a finished run.
        colours: Background and text, as CSS; None where there is no number to show.
        best: It is the sweep's best; of equal ones the one that the choice takes.
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
    """The search of one method on one dataset; its maps share one scale of colours, from its lowest to its highest value."""

    dataset: str
    method: str
    setting: str
    maps: Sequence[HeatMap]
    missing: int
    best: str
    score: str


def build_sweeps(runs: Iterable[ShownRun]) -> list[Sweep]:
    """One sweep per dataset, method, backbone and protocol that has search runs whose configuration is known."""
    groups: dict[tuple[str, str, str], list[ShownRun]] = defaultdict(list)
    for run in runs:
        if run.phase == "search" and all(isinstance(run.settings.get(key), int | float) for key in (LR, WEIGHT_DECAY)):
            groups[run.dataset, run.method, f"{run.backbone}, {run.protocol}"].append(run)
    return [_build_sweep(*key, groups[key]) for key in sorted(groups, key=display_order)]


def _build_sweep(dataset: str, method: str, setting: str, runs: Sequence[ShownRun]) -> Sweep:
    others = [key for key in varying_keys(runs) if key not in (LR, WEIGHT_DECAY)]
    lrs, decays = (sorted({float(run.settings[key]) for run in runs}) for key in (LR, WEIGHT_DECAY))
    finished = [(run.val_top1, run) for run in runs if run.val_top1 is not None]
    low, high = (end((top1 for top1, _ in finished), default=None) for end in (min, max))
    best = min(
        (run for _, run in finished),
        key=lambda run: (score_order(run.val_top1 or 0), tie_order(identifying(run.settings))),
        default=None,
    )
    maps: dict[tuple[str, ...], dict[tuple[object, object], list[ShownRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        cells = maps[tuple(run.text(key) for key in others)]
        cells[run.settings[WEIGHT_DECAY], run.settings[LR]].append(run)
    drawn = [
        HeatMap(
            ", ".join(f"{key.removeprefix('method.')} {value}" for key, value in zip(others, values, strict=True)),
            [f"{lr:g}" for lr in lrs],
            [(f"{wd:g}", [_cell(cells.get((wd, lr), ()), (low, high), best) for lr in lrs]) for wd in decays],
        )
        for values, cells in sorted(maps.items(), key=lambda item: [_order(value) for value in item[0]])
    ]
    missing = sum((wd, lr) not in cells for cells in maps.values() for wd, lr in product(decays, lrs))
    return Sweep(dataset, method, setting, drawn, missing, _in_words(best, others), shared_score(runs))


def _cell(runs: Sequence[ShownRun], span: tuple[float | None, float | None], best: ShownRun | None) -> HeatCell:
    if len(runs) != 1:
        return HeatCell("several" if runs else "missing")
    (run,), (low, high) = runs, span
    if run.val_top1 is None or low is None or high is None:
        return HeatCell(run.state)
    share = (run.val_top1 - low) / (high - low) if high > low else 1.0
    return HeatCell(run.state, run.val_top1, _colours(share), run is best)


def _colours(share: float) -> tuple[str, str]:
    """Background and text of a value that lies at this share, 0–1, of the sweep's range; contrast at least 4.5."""
    red, green, blue = _COLOURS(share)[:3]
    luminance = sum(
        weight * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for weight, c in ((0.2126, red), (0.7152, green), (0.0722, blue))
    )  # WCAG 2.1, relative luminance
    text = "#000" if luminance > 0.179 else "#fff"
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}", text


def _in_words(run: ShownRun | None, others: Sequence[str]) -> str:
    """A run's score on val and where in the sweep it stands."""
    if run is None:
        return ""
    words = [f"lr {run.settings[LR]:g}", f"wd {run.settings[WEIGHT_DECAY]:g}"]
    words += [f"{key.removeprefix('method.')} {run.text(key)}" for key in others]
    return f"{run.val_top1:.2f} % at {', '.join(words)}"


def _order(value: str) -> tuple[float, str]:
    """Numbers by size, texts after them."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
