"""The charts of the report: what is drawn where, the Pareto front, thinning, colours; against formulas written down here."""

import itertools
import random
import re
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.report import charts
from experiments.report.charts import Entry, curve_chart, curve_figure, scatter_chart, scatter_figure
from experiments.report.sweeps import _colours

STYLES = Path(charts.__file__).parent / "assets" / "style.css"


def entry(name: str, parameters: float, top1: float, std: float | None = None) -> Entry:
    return Entry(name, parameters, top1, std, 3)


def drawn(figure: Figure) -> Any:
    (axes,) = figure.axes
    return axes


def marks(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """The points of every mark by its gid."""
    return {str(line.get_gid()): [tuple(p) for p in line.get_xydata().tolist()] for line in axes.lines if line.get_gid()}


def labels(axes: Any, axis: str) -> list[str]:
    """The texts of the ticks within an axis's limits."""
    low, high = getattr(axes, f"get_{axis}lim")()
    return [tick.get_text() for tick in getattr(axes, f"get_{axis}ticklabels")() if low <= getattr(tick, f"_{axis}") <= high]


def test_pareto_front_against_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(50):
        entries = [entry(str(i), draw.choice([0, 1, 10, 100]), draw.choice([50.0, 60.0, 70.0])) for i in range(6)]
        points = {(e.parameters, e.top1) for e in entries}
        beaten = {(n, top1) for n, top1 in points for m, other in points - {(n, top1)} if m <= n and other >= top1}
        assert {e.name for e in charts.pareto_front(entries)} == {
            e.name for e in entries if (e.parameters, e.top1) not in beaten
        }


def test_scatter_draws_the_values_the_bars_and_the_front_and_has_a_place_for_zero() -> None:
    axes = drawn(scatter_figure([entry("linear", 0, 60), entry("lora", 10_000, 70, 1.0), entry("ssf", 70_000, 65)]))
    assert marks(axes) == {"mark-0": [(0, 60)], "mark-1": [(10_000, 70)], "mark-2": [(70_000, 65)]}
    assert [line.get_markerfacecolor() for line in axes.lines if line.get_gid()] == [*[charts.COLOURS[0]] * 2, charts.GROUND]
    (bar,) = axes.collections
    assert [path.vertices.tolist() for path in bar.get_paths()] == [[[10_000, 69], [10_000, 71]]]
    (front,) = (line for line in axes.lines if not line.get_gid())
    assert front.get_drawstyle() == "steps-post"
    assert front.get_xydata().tolist() == [[0, 60], [10_000, 70], [100_000, 70]]
    assert labels(axes, "x") == ["0", "10k", "100k"]
    left, *places = (axes.transData.transform((x, 60))[0] for x in (0, 10_000, 100_000))
    assert axes.bbox.x0 < left < places[0] < places[1] == axes.bbox.x1
    assert {text.get_text() for text in axes.texts} == {"linear", "lora", "ssf"}


def test_axes_end_on_ticks() -> None:
    decades = {(0.0, 0.0): ["0", "1", "10"], (5.0, 500.0): ["1", "10", "100", "1k"], (1e3,): ["1k", "10k"]}
    for parameters, ticks in decades.items():
        axes = drawn(scatter_figure([entry(str(i), n, 50.0) for i, n in enumerate(parameters)]))
        assert (labels(axes, "x"), axes.get_xscale() == "log") == (ticks, 0 not in parameters)
    axes = drawn(scatter_figure([entry("a", 10, 89.0), entry("b", 20, 99.9, 1.0)]))
    values = [float(text) for text in labels(axes, "y")]
    assert axes.get_ylim()[0] == values[0] <= 88.9 < values[-1] == 100, "no tick above 100 percent"


def test_curves_are_drawn_where_they_should_be() -> None:
    axes = drawn(curve_figure([[(1, 0.0), (3, 1.0)], [], [(2, 0.5)]]))
    assert marks(axes) == {"mark-0": [(1, 0.0), (3, 1.0)], "mark-2": [(2, 0.5)]}
    assert [(line.get_color(), line.get_marker()) for line in axes.lines] == [(charts.COLOURS[0], ""), (charts.COLOURS[2], "o")]
    assert (axes.get_xlim(), axes.get_ylim()) == ((1, 3), (0, 1))
    for last in (1, 2, 3, 7):  # epochs have whole ticks
        axes = drawn(curve_figure([[(1, 0.5), (last, 0.1)]]))
        assert all(text.isdecimal() for text in labels(axes, "x")), last
    axes = drawn(curve_figure([[(1, 1e-3), (2, 0.1)]], log=True))
    assert (axes.get_yscale(), labels(axes, "y")) == ("log", ["0.001", "0.01", "0.1"])
    drawing = curve_chart("t", [[(1, float(i)), (2, 0.0)] for i in range(28)], [""] * 28).drawing
    assert len(set(re.findall(r'class="mark".*?style="([^"]*)"', drawing))) == 28, "all look different"


HOSTILE = '</g><script>alert("1")</script> $x^2 0.12345'


def test_the_drawing_is_escaped_and_the_same_every_time() -> None:
    curves = [[(1, 0.25), (2, 0.5)], [], [(1, 0.75)]]
    entries = [entry(HOSTILE, 10, 50.0, 1.0), entry("b", 100, 40.0)]
    for draw, name in (
        (partial(scatter_chart, "t", entries), f"{HOSTILE}: 50.00 %, 10 adapter parameters"),
        (partial(curve_chart, "t", curves, [HOSTILE, "", "c"]), HOSTILE),
    ):
        first, drawing = draw(), str(draw().drawing)
        assert drawing == first.drawing
        assert "<script" not in drawing
        titles = re.findall(r'<g class="mark" data-run="(\d)"><title>(.*?)</title>', drawing)
        assert (titles[0][0], unescape(titles[0][1]), len(titles)) == ("0", name, first.marks)
        tags = re.findall(r"<[^>]+>", drawing)
        assert len([tag for tag in tags if tag.startswith("<g")]) == tags.count("</g>")
        assert not re.search(r"#[0-9a-f]{6}|https?:|url\(|font-family|clip-path", "".join(tags)), "the style sheet's alone"
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= set(re.findall(r"--(\w+):", STYLES.read_text()))
    assert HOSTILE in unescape(str(scatter_chart("t", entries).drawing)).replace("\n", ""), "a name is no formula, no number"
    assert (empty := curve_chart("empty", [[], []], ["", ""])).marks == 0
    assert empty.drawing == ""


def test_labels_keep_apart_and_inside() -> None:
    names = ["Full fine-tuning", "AdaptFormer", "GIFT"]
    places = charts.place_labels(names, [(600.0, 300.0), (604.0, 297.0), (606.0, 303.0)], (52, 46, 616, 370))
    boxes = [charts.label_box(name, *place) for name, place in zip(names, places, strict=True)]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(box[2] <= 640 for box in boxes)


def test_thinning_keeps_both_ends() -> None:
    for count in (1, 59, 60, 61, 1000):
        points = [(float(i), 0.0) for i in range(count)]
        kept = charts.thinned(points)
        assert len(kept) == len(set(kept)) == min(count, 60)
        assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_text_on_every_colour_of_the_heat_map_can_be_read() -> None:
    def luminance(colour: str) -> float:
        parts = re.findall("..", colour[1:]) if len(colour) == 7 else [c * 2 for c in colour[1:]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(p, 16) / 255 for p in parts)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for step in range(101):
        low, high = sorted(luminance(colour) for colour in _colours(step / 100))
        assert (high + 0.05) / (low + 0.05) >= 4.5, step
