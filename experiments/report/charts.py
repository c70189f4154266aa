"""Where points, lines, ticks and labels of the charts lie, in pixels of their SVG; the template draws them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

MAX_POINTS = 60  # of one curve: more are not to be told apart at the width of a chart
COLOURS, DASHES = 7, 4  # of the style sheet; no common divisor, so that 28 lines look different
_CHARACTER, _LINE = 6.4, 13.0  # width and height of a label's character

Box = tuple[float, float, float, float]
Tick = tuple[float, str]


@dataclass(frozen=True)
class Frame:
    """The size of a chart and of the margins around what is drawn."""

    width: int
    height: int
    left: int = 52
    right: int = 16
    top: int = 12
    bottom: int = 46

    @property
    def x(self) -> tuple[int, int]:
        """Left and right end of the plot."""
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[int, int]:
        """Lower and upper end of the plot: SVG counts downwards."""
        return self.height - self.bottom, self.top


SCATTER = Frame(640, 400, right=24, top=30)
CURVE = Frame(400, 260)


class Axis:
    """Maps values to pixels, over a range that ends on ticks."""

    def __init__(self, values: Iterable[float], pixels: tuple[float, float], log: bool = False, whole: bool = False) -> None:
        """Take the range from ``values``, which are positive if ``log``; ``whole`` keeps ticks on whole numbers."""
        low, high = min(values := list(values)), max(values)
        self.log, self.pixels = log, pixels
        if log:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            last = max(last, first + 1)
            step = math.ceil((last - first) / 6)
            last = first + math.ceil((last - first) / step) * step
            self.values = [10.0**power for power in range(first, last + 1, step)]
        else:
            self.values = [float(tick) for tick in MaxNLocator(5, integer=whole).tick_values(low, high)]
        self.low, self.high = (self._scaled(self.values[index]) for index in (0, -1))

    def __call__(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        start, end = self.pixels
        return round(start + (self._scaled(value) - self.low) / (self.high - self.low) * (end - start), 1)

    def ticks(self, percent: bool = False) -> list[Tick]:
        """Position and text of every tick; ``percent`` leaves out those above 100."""
        values = [value for value in self.values if not percent or value <= 100]
        return [(self(value), _short(value) if self.log else f"{value:.6g}") for value in values]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class Entry:
    """What one point of the scatter plot stands for: adapter parameters, mean top-1 in percent, its deviation over n seeds."""

    name: str
    parameters: float
    top1: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Mark:
    """A drawn entry: the point, the ends of its error bar, and where its label stands."""

    entry: Entry
    on_front: bool
    x: float
    y: float
    bar: tuple[float, float] | None
    label: tuple[float, float, str]


@dataclass(frozen=True)
class Scatter:
    """Test top-1 against adapter parameters; ``break_x`` is where the axis is cut between 0 and its logarithmic part."""

    title: str
    marks: Sequence[Mark]
    front: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    break_x: float | None
    frame: Frame = SCATTER


@dataclass(frozen=True)
class Line:
    """One run's curve: which run of the panel it belongs to, and its points as SVG wants them; ``dot`` if there is but one."""

    run: int
    points: str
    dot: tuple[float, float] | None


@dataclass(frozen=True)
class Plot:
    """Curves of several runs over the epochs."""

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    frame: Frame = CURVE


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


def scatter_plot(title: str, entries: Sequence[Entry]) -> Scatter:
    """Lay out a scatter plot; methods without adapter parameters stand left of a break in the axis."""
    frame = SCATTER
    with_adapter = [entry.parameters for entry in entries if entry.parameters > 0]
    cut = frame.x[0] + 72 if len(with_adapter) < len(entries) else None
    x_axis = Axis(with_adapter or [1.0], (cut or frame.x[0], frame.x[1]), log=True)
    y_axis = Axis([edge for entry in entries for edge in _edges(entry)], frame.y)
    front = pareto_front(entries)
    zero_x = frame.x[0] + 24.0
    placed = [(x_axis(e.parameters) if e.parameters > 0 else zero_x, y_axis(e.top1)) for e in entries]
    labels = place_labels([entry.name for entry in entries], placed, frame)
    marks = [
        Mark(entry, entry in front, x, y, (y_axis(_edges(entry)[0]), y_axis(_edges(entry)[1])) if entry.std else None, label)
        for entry, (x, y), label in zip(entries, placed, labels, strict=True)
    ]
    position = {id(entry): point for entry, point in zip(entries, placed, strict=True)}
    steps = _stairs([position[id(entry)] for entry in front], frame.x[1])
    x_ticks = [(zero_x, "0")] * (cut is not None) + (x_axis.ticks() if with_adapter else [])
    return Scatter(title, marks, steps, x_ticks, y_axis.ticks(percent=True), cut)


def curve_plot(title: str, curves: Sequence[Sequence[tuple[float, float]]], log: bool = False, percent: bool = False) -> Plot:
    """Lay out curves of (epoch, value), one per run; a run without points draws nothing."""
    drawn = [point for curve in curves for point in curve]
    if not drawn:
        return Plot(title, (), (), ())
    x_axis = Axis([x for x, _ in drawn], CURVE.x, whole=True)
    y_axis = Axis([y for _, y in drawn], CURVE.y, log=log)
    lines = []
    for run, curve in enumerate(curves):
        if places := [(x_axis(x), y_axis(y)) for x, y in thinned(curve)]:
            points = " ".join(f"{x:g},{y:g}" for x, y in places)
            lines.append(Line(run, points, places[0] if len(places) == 1 else None))
    return Plot(title, lines, x_axis.ticks(), y_axis.ticks(percent))


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most ``MAX_POINTS`` of the points, evenly spread, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[round(index * last / (MAX_POINTS - 1))] for index in range(MAX_POINTS)]


def place_labels(names: Sequence[str], points: Sequence[tuple[float, float]], frame: Frame) -> list[tuple[float, float, str]]:
    """Position and SVG's text-anchor of a label beside each point, where it covers least of the others."""
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    labels = []
    for name, (x, y) in zip(names, points, strict=True):
        around = [(x + side * 8, y - 5 + row * 7, anchor) for row in _ROWS for side, anchor in _SIDES]
        best = min(around, key=lambda place: _cost(_box(name, *place), taken, frame))  # the first of equal ones
        taken.append(_box(name, *best))
        labels.append((round(best[0], 1), round(best[1], 1), best[2]))
    return labels


_SIDES = ((1, "start"), (-1, "end"), (0, "middle"))
_ROWS = (0, 3, 1, -2, 5, -4)  # the first ones keep clear of the front's level lines


def _box(name: str, x: float, y: float, anchor: str) -> Box:
    width = len(name) * _CHARACTER
    left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
    return left, y - _LINE + 2, left + width, y + 3


def _cost(box: Box, taken: Sequence[Box], frame: Frame) -> float:
    """The area that a label covers of others and, weighing more, how far it leaves the plot."""
    covered = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0])) * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    outside = max(0.0, frame.x[0] - box[0]) + max(0.0, box[2] - frame.width)
    outside += max(0.0, frame.y[1] - box[1]) + max(0.0, box[3] - frame.y[0])
    return covered + 100 * outside


def _stairs(points: Sequence[tuple[float, float]], right: float) -> str:
    """The front as SVG path: level until the next point's parameters are reached."""
    (x, y), *others = points
    return f"M{x:g},{y:g}" + "".join(f"H{x:g}V{y:g}" for x, y in others) + f"H{right:g}"


def _edges(entry: Entry) -> tuple[float, float]:
    spread = entry.std or 0.0
    return entry.top1 - spread, entry.top1 + spread


def _short(value: float) -> str:
    """A power of ten in few characters: 1k, 100k, 1M, 0.01, 1e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
