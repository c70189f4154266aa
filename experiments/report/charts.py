"""The charts of the page: drawn by matplotlib, embedded as SVG that takes its colours and its font from the style sheet."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import Affine2D

from gift_vit.results.names import titled

MAX_POINTS = 60  # of one curve: more are not to be told apart at the width of a chart
COLOURS = ("#0072b2", "#c24e00", "#00795a", "#9b4a86", "#806500", "#4a4f55", "#5b3fb0")
DASHES = ((), (7, 5), (1, 5), (9, 5, 1, 5))  # no common divisor with the colours, so that 28 lines look different
TEXT, MINOR, FAINT, GROUND = "#1b1f23", "#57606a", "#e8ebee", "#ffffff"
VARIABLES = {TEXT: "text", MINOR: "minor", FAINT: "faint", GROUND: "bg", **{c: f"c{i}" for i, c in enumerate(COLOURS)}}
SCATTER, CURVE = (640, 400), (400, 260)  # width and height in pixels
_LEFT, _RIGHT, _BOTTOM = 52, 24, 46  # margins around what is drawn
_CHARACTER, _LINE = 6.4, 13.0  # width and height of a label's character
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "gift-vit", "text.parse_math": False,  # text as text, the same every time
    "font.family": "DejaVu Sans", "font.size": 12, "text.color": TEXT, "axes.labelcolor": MINOR,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False, "axes.edgecolor": MINOR,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 1,
    "xtick.bottom": False, "xtick.color": MINOR, "ytick.left": False, "ytick.color": MINOR,
    "lines.linewidth": 1.8, "lines.scale_dashes": False, "lines.solid_capstyle": "round", "lines.dash_capstyle": "round",
}  # fmt: skip

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Entry:
    """What one point of the scatter plot stands for: adapter parameters, mean score in percent, its deviation over n seeds."""

    name: str
    parameters: float
    top1: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Point:
    """What one point of the plot of forgetting stands for: means and deviations over n seeds; None: there is one seed.

    ``top1`` is in percent, ``forgetting`` in points of it.
    """

    name: str
    forgetting: float
    forgetting_std: float | None
    top1: float
    top1_std: float | None
    n: int


@dataclass(frozen=True)
class Chart:
    """A drawing: its size in pixels, how many points or lines it has, and what stands inside its ``<svg>``."""

    title: str
    size: tuple[int, int]
    marks: int
    drawing: Markup


def scatter_chart(title: str, entries: Sequence[Entry], score: str = "test top-1") -> Chart:
    """A score against adapter parameters."""
    names = [f"{entry.name}: {entry.top1:.2f} %, {entry.parameters:,.0f} adapter parameters" for entry in entries]
    return Chart(title, SCATTER, len(entries), embed(scatter_figure(entries, score), names))


def forgetting_chart(title: str, points: Sequence[Point]) -> Chart:
    """Test top-1 against forgetting."""
    names = [f"{point.name}: {point.top1:.2f} %, forgetting {point.forgetting:.2f} points" for point in points]
    return Chart(title, SCATTER, len(points), embed(forgetting_figure(points), names))


def curve_chart(
    title: str, curves: Sequence[Sequence[tuple[float, float]]], names: Sequence[str], log: bool = False, percent: bool = False
) -> Chart:
    """Curves of (epoch, value), one per run; a run without points draws nothing."""
    drawn = sum(map(bool, curves))
    return Chart(title, CURVE, drawn, embed(curve_figure(curves, log, percent), names) if drawn else Markup())


def pareto_front(entries: Sequence[Entry]) -> list[Entry]:
    """Entries that none beats in one of parameters and top-1 without losing in the other; by parameters."""

    def beaten(entry: Entry) -> bool:
        return any(
            other.parameters <= entry.parameters
            and other.top1 >= entry.top1
            and (other.parameters, other.top1) != (entry.parameters, entry.top1)
            for other in entries
        )

    return sorted((entry for entry in entries if not beaten(entry)), key=lambda entry: entry.parameters)


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most ``MAX_POINTS`` of the points, evenly spread, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[round(index * last / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


@rc_context(_STYLE)
def scatter_figure(entries: Sequence[Entry], score: str = "test top-1") -> Figure:
    """Points with bars of one standard deviation and their names, and the front as stairs; 0 parameters have a place too."""
    figure, axes = _axes(SCATTER, top=30)
    sizes = [entry.parameters for entry in entries if entry.parameters > 0] or [1.0]
    first = math.floor(math.log10(min(sizes)))
    decades = [10.0**power for power in range(first, max(math.ceil(math.log10(max(sizes))), first + 1) + 1)]
    if all(entry.parameters > 0 for entry in entries):
        axes.set_xscale("log")
        axes.set(xticks=decades, xlim=(decades[0], decades[-1]))
    else:
        axes.set_xscale("symlog", linthresh=decades[0], linscale=0.5)
        axes.set(xticks=[0, *decades], xlim=(-decades[0] / 3, decades[-1]))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _set_levels(axes, [entry.top1 + sign * (entry.std or 0.0) for entry in entries for sign in (-1, 1)], percent=True)
    front = pareto_front(entries)
    stairs = [*((entry.parameters, entry.top1) for entry in front), (decades[-1], front[-1].top1)]
    axes.step(*zip(*stairs, strict=True), where="post", color=COLOURS[0], linewidth=1.5, alpha=0.6)
    points = axes.transData.transform([(entry.parameters, entry.top1) for entry in entries])
    labels = place_labels([entry.name for entry in entries], points.tolist(), axes.bbox.extents)
    for index, (entry, (x, y, side)) in enumerate(zip(entries, labels, strict=True)):
        best = entry in front
        colour, edge, weight = (COLOURS[0], GROUND, "bold") if best else (MINOR, MINOR, "normal")
        if entry.std:
            axes.vlines(entry.parameters, entry.top1 - entry.std, entry.top1 + entry.std, color=colour, linewidth=1)
        face, gid = colour if best else GROUND, f"mark-{index}"
        axes.plot(entry.parameters, entry.top1, "o", markersize=9, color=face, markeredgecolor=edge, gid=gid)
        axes.text(x, y, entry.name, transform=None, horizontalalignment=side, fontweight=weight)
    axes.set_xlabel("Adapter parameters (head not counted), log scale")
    axes.set_title(titled(score), loc="left", fontsize=12, fontweight="bold")
    return figure


@rc_context(_STYLE)
def forgetting_figure(points: Sequence[Point]) -> Figure:
    """Points with bars of one standard deviation in both directions, and their names; at least one."""
    figure, axes = _axes(SCATTER, top=30)
    ticks = _ticks([p.forgetting + sign * (p.forgetting_std or 0.0) for p in points for sign in (-1, 1)])
    margin = (ticks[-1] - ticks[0]) / 40  # a probe's 0 is often the first tick, and its point is not cut
    axes.set(xticks=ticks, xlim=(ticks[0] - margin, ticks[-1] + margin))
    axes.set_xlabel("Forgetting (points of accuracy on what the pretrained model knew)")
    axes.xaxis.set_major_formatter("{x:.6g}")
    _set_levels(axes, [p.top1 + sign * (p.top1_std or 0.0) for p in points for sign in (-1, 1)], percent=True)
    pixels = Affine2D().scale(1 / 72) + figure.dpi_scale_trans  # of the page, at any resolution of a file
    places = axes.transData.transform([(p.forgetting, p.top1) for p in points])
    labels = place_labels([p.name for p in points], places.tolist(), axes.bbox.extents)
    for index, (point, (x, y, side)) in enumerate(zip(points, labels, strict=True)):
        colour, along, across = COLOURS[0], point.forgetting_std, point.top1_std
        if along:
            axes.hlines(point.top1, point.forgetting - along, point.forgetting + along, color=colour, linewidth=1)
        if across:
            axes.vlines(point.forgetting, point.top1 - across, point.top1 + across, color=colour, linewidth=1)
        axes.plot(point.forgetting, point.top1, "o", markersize=9, color=colour, markeredgecolor=GROUND, gid=f"mark-{index}")
        axes.text(x, y, point.name, transform=pixels, horizontalalignment=side)
    axes.set_title("Test top-1 (%)", loc="left", fontsize=12, fontweight="bold")
    return figure


@rc_context(_STYLE)
def curve_figure(curves: Sequence[Sequence[tuple[float, float]]], log: bool = False, percent: bool = False) -> Figure:
    """Lines of their runs' colours and dashes over the epochs; at least one has a point, and a single one is a dot."""
    figure, axes = _axes(CURVE, top=12)
    epochs, values = zip(*(point for curve in curves for point in curve), strict=True)
    ticks = _ticks(epochs, whole=True)
    axes.set(xticks=ticks, xlim=(ticks[0], ticks[-1]), xlabel="Epoch")
    if log:
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        _set_levels(axes, values, percent)
    for index, curve in enumerate(curves):
        if curve:
            dashes = DASHES[index % len(DASHES)]
            (line,) = axes.plot(*zip(*thinned(curve), strict=True), color=COLOURS[index % len(COLOURS)], gid=f"mark-{index}")
            line.set(linestyle=(0, dashes) if dashes else "-", marker="o" if len(curve) == 1 else "")
    return figure


def place_labels(
    names: Sequence[str], points: Sequence[tuple[float, float]], plot: Sequence[float]
) -> list[tuple[float, float, str]]:
    """Position and alignment of a label beside each point, where it covers least of the others.

    Points and ``plot``, the edges of what is drawn (left, bottom, right, top), are in pixels, counted upwards.
    """
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    labels = []
    for name, (x, y) in zip(names, points, strict=True):
        around = [(x + side * 8, y + 5 - row * 7, align) for row in _ROWS for side, align in _SIDES]
        best = min(around, key=lambda place: _cost(label_box(name, *place), taken, plot))  # the first of equal ones
        taken.append(label_box(name, *best))
        labels.append(best)
    return labels


_SIDES = ((1, "left"), (-1, "right"), (0, "center"))
_ROWS = (0, 3, 1, -2, 5, -4)  # the first ones keep clear of the front's level lines


def label_box(name: str, x: float, y: float, align: str) -> Box:
    """What a label covers: left, bottom, right, top in pixels."""
    width = len(name) * _CHARACTER
    left = x - {"left": 0.0, "center": 0.5, "right": 1.0}[align] * width
    return left, y - 3, left + width, y + _LINE - 2


def _cost(box: Box, taken: Sequence[Box], plot: Sequence[float]) -> float:
    """The area that a label covers of others and, weighing more, how far it leaves the plot."""
    covered = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0])) * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    outside = max(0.0, plot[0] - box[0]) + max(0.0, box[2] - plot[2] - _RIGHT)
    return covered + 100 * (outside + max(0.0, plot[1] - box[1]) + max(0.0, box[3] - plot[3]))


def _axes(size: tuple[int, int], top: int) -> tuple[Figure, Axes]:
    """A figure and its axes with the page's margins; a pixel of the page is a point of the figure."""
    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False)
    axes = figure.add_axes((_LEFT / width, _BOTTOM / height, 1 - (_LEFT + _RIGHT) / width, 1 - (_BOTTOM + top) / height))
    axes.patch.set_visible(False)
    return figure, axes


def _set_levels(axes: Axes, values: Sequence[float], percent: bool) -> None:
    """Let the values' axis end on ticks; ``percent`` leaves out those above 100."""
    ticks = _ticks(values)
    axes.set(yticks=[tick for tick in ticks if not percent or tick <= 100], ylim=(ticks[0], ticks[-1]))
    axes.yaxis.set_major_formatter("{x:.6g}")


def _ticks(values: Sequence[float], whole: bool = False) -> Sequence[float]:
    """About five ticks, the values between the first and the last; ``whole`` keeps them on whole numbers."""
    low, high = min(values), max(values)
    around = 0.0 if low < high else 1.0 if whole else abs(low) / 20 or 1.0
    return [float(tick) for tick in MaxNLocator(5, integer=whole).tick_values(low - around, high + around)]


@rc_context(_STYLE)
def embed(figure: Figure, names: Sequence[str]) -> Markup:
    """What stands inside an ``<svg>`` of the page for a figure.

    The artist with the gid ``mark-<index>`` gets the class ``mark``, its index, and its name as a tooltip.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = re.sub(r">\s+<", "><", out.getvalue())
    drawn = text[text.index('<g id="figure') : text.rindex("</g>")] + "</g>"  # without a head and clipping of its own
    drawn = re.sub(r"<[^>]+>", lambda tag: _restyled(tag[0]), drawn)
    return Markup(re.sub(r'<g id="mark-(\d+)">', lambda mark: _mark(int(mark[1]), names), drawn))


def _restyled(tag: str) -> str:
    for pattern, text in _REPLACED:
        tag = re.sub(pattern, text, tag)
    return re.sub("#[0-9a-f]{6}", lambda colour: f"var(--{VARIABLES[colour[0]]})", tag)


_REPLACED = (
    (r' (clip-path|transform)="[^"]*"', ""),
    (r' id="(?!mark-|m[0-9a-f]{10})[^"]*"', ""),
    ("xlink:href", "href"),
    ('font-family: [^;"]*;? ?', ""),
    (r"(\d\.\d)\d+", r"\1"),
    (r"\s+", " "),
)


def _mark(index: int, names: Sequence[str]) -> str:
    return Markup('<g class="mark" data-run="{}"><title>{}</title>').format(index, names[index])
