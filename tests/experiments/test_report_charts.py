"""The charts of the report: scales, Pareto front, thinning, colours; against formulas written down here."""

import itertools
import math
import random
import re

import pytest

from experiments.report import charts
from experiments.report.charts import Axis, Entry, curve_plot, pareto_front, place_labels, scatter_plot, thinned
from experiments.report.sweeps import _colours


def entry(name: str, parameters: float, top1: float, std: float | None = None) -> Entry:
    return Entry(name, parameters, top1, std, 3)


def test_log_axis_maps_decades_to_equal_steps() -> None:
    axis = Axis([300.0, 70_000.0], (0, 300), log=True)
    assert axis.ticks() == [(0.0, "100"), (100.0, "1k"), (200.0, "10k"), (300.0, "100k")]
    assert axis(1000 * math.sqrt(10)) == 150.0


def test_log_axis_of_one_value_and_of_many_decades() -> None:
    assert [text for _, text in Axis([1000.0], (0, 1), log=True).ticks()] == ["1k", "10k"]
    wide = [text for _, text in Axis([1e-7, 3e6], (0, 1), log=True).ticks()]
    assert wide == ["1e-07", "0.0001", "0.1", "100", "100k", "100M"]


def test_linear_axis_ends_on_ticks_and_percent_stops_at_100() -> None:
    axis = Axis([89.0, 99.9], (400, 0))
    values = [float(text) for _, text in axis.ticks()]
    assert values[0] <= 89.0 < 99.9 <= values[-1]
    assert (axis(values[0]), axis(values[-1])) == (400, 0)
    assert max(float(text) for _, text in Axis([89.0, 101.0], (0, 1)).ticks(percent=True)) <= 100


def test_epochs_have_whole_ticks() -> None:
    for last in (1, 2, 3, 7):
        assert all("." not in text for _, text in Axis([1, last], (0, 1), whole=True).ticks()), last


def test_pareto_front_against_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(50):
        entries = [entry(str(i), draw.choice([0, 1, 10, 100]), draw.choice([50.0, 60.0, 70.0])) for i in range(6)]
        expected = set()
        for one in entries:
            better = [
                e
                for e in entries
                if (e.parameters < one.parameters and e.top1 >= one.top1)
                or (e.parameters <= one.parameters and e.top1 > one.top1)
            ]
            if not better:
                expected.add(one.name)
        assert {e.name for e in pareto_front(entries)} == expected


def test_scatter_marks_the_front_and_cuts_the_axis_at_zero() -> None:
    chart = scatter_plot("Digits", [entry("linear", 0, 60), entry("lora", 10_000, 70, 1.0), entry("ssf", 100_000, 65)])
    linear, lora, ssf = chart.marks
    assert [mark.on_front for mark in chart.marks] == [True, True, False]
    assert chart.break_x is not None
    assert linear.x < chart.break_x <= lora.x < ssf.x
    assert linear.y > ssf.y > lora.y  # SVG counts downwards
    assert lora.bar is not None
    assert lora.bar[0] > lora.y > lora.bar[1]
    assert linear.bar is None
    assert chart.front == f"M{linear.x:g},{linear.y:g}H{lora.x:g}V{lora.y:g}H{chart.frame.x[1]}"


@pytest.mark.parametrize("parameters", [[0.0, 0.0], [5.0, 500.0]])
def test_scatter_of_only_zeros_or_no_zero(parameters: list[float]) -> None:
    chart = scatter_plot("x", [entry(str(i), n, 50.0) for i, n in enumerate(parameters)])
    assert (chart.break_x is None) == (0 not in parameters)
    assert all(chart.frame.x[0] <= mark.x <= chart.frame.x[1] for mark in chart.marks)


def test_labels_keep_apart_and_inside() -> None:
    points = [(600.0, 100.0), (604.0, 103.0), (606.0, 97.0)]
    labels = place_labels(["Full fine-tuning", "AdaptFormer", "GIFT"], points, charts.SCATTER)
    boxes = [charts._box(name, *label) for name, label in zip(["Full fine-tuning", "AdaptFormer", "GIFT"], labels, strict=True)]
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(box[2] <= charts.SCATTER.width for box in boxes)


@pytest.mark.parametrize("count", [1, 59, 60, 61, 1000])
def test_thinning_keeps_both_ends(count: int) -> None:
    points = [(float(i), 0.0) for i in range(count)]
    kept = thinned(points)
    assert len(kept) == min(count, 60)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert len(set(kept)) == len(kept)


def test_curves_are_drawn_where_they_should_be() -> None:
    plot = curve_plot("loss", [[(1, 0.0), (3, 1.0)], [], [(2, 0.5)]])
    (left, right), (bottom, top) = charts.CURVE.x, charts.CURVE.y
    first, single = plot.lines
    assert (first.run, first.points, first.dot) == (0, f"{left},{bottom} {right},{top}", None)
    assert (single.run, single.dot) == (2, ((left + right) / 2, (bottom + top) / 2))
    assert curve_plot("empty", [[], []]).lines == ()


def test_text_on_every_colour_of_the_heat_map_can_be_read() -> None:
    def luminance(colour: str) -> float:
        parts = re.findall("..", colour[1:]) if len(colour) == 7 else [c * 2 for c in colour[1:]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(p, 16) / 255 for p in parts)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for step in range(101):
        low, high = sorted(luminance(colour) for colour in _colours(step / 100))
        assert (high + 0.05) / (low + 0.05) >= 4.5, step
