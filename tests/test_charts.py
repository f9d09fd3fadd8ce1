"""Charts: places follow values, ticks are round, nothing that is not finite reaches the page."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lvkam.charts import Series, intervals, line_chart, nice_ticks

NUMBER = r"-?\d+(?:\.\d+)?"


def points(path: str) -> np.ndarray:
    assert re.fullmatch(rf"(?:[ML]{NUMBER},{NUMBER})*", path)
    return np.array([[float(v) for v in pair.split(",")] for pair in re.split("[ML]", path)[1:]]).reshape(-1, 2)


def test_places_are_linear_in_the_values_and_within_the_plot() -> None:
    x, y = np.linspace(-3, 7, 30), np.random.default_rng(0).normal(size=30) * 1e3
    chart = line_chart("t", [Series("a", x, y)])
    places = points(chart.curves[0][1])
    for axis, values, where in ((chart.x, x, places[:, 0]), (chart.y, y, places[:, 1])):
        back = axis.low + (where - axis.start) / (axis.end - axis.start) * (axis.high - axis.low)
        np.testing.assert_allclose(back, values, atol=0.006 * (axis.high - axis.low) / abs(axis.end - axis.start))
        assert min(axis.start, axis.end) <= where.min() <= where.max() <= max(axis.start, axis.end)
    assert places[y.argmax(), 1] == places[:, 1].min()  # upwards is less, on a screen


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    chart = line_chart("t", [Series("a", np.arange(4), np.array([1.0, 10, 100, 1000]))], log_y=True)
    np.testing.assert_allclose(np.diff(points(chart.curves[0][1])[:, 1], n=2), 0, atol=0.02)
    assert [tick.label for tick in chart.y.ticks] == ["1", "10", "100", "1000"]


@pytest.mark.parametrize(
    "y",
    [[2.0] * 5, [0.0] * 5, [math.nan] * 5, [1, math.nan, 3, math.inf, -math.inf], [1e-300] * 5, [1e30, -1e30, 0, 1, 2]],
)
@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_constant_and_missing_values_are_drawn_as_far_as_they_are_there(
    y: list[float], log_y: bool, small: bool
) -> None:
    chart = line_chart("t", [Series("a", np.arange(5.0), np.array(y))], log_y=log_y, small=small, marks=[1.0])
    path = chart.curves[0][1]
    drawn = np.isfinite(y) & ((np.array(y) > 0) | (not log_y))
    assert len({tuple(point) for point in points(path).tolist()}) == drawn.sum()
    lines = path.split("M")[1:]
    assert len(lines) == (np.diff(np.r_[0, drawn.astype(int)]) == 1).sum()
    assert all("L" in line for line in lines)
    assert all(math.isfinite(tick.place) for axis in (chart.x, chart.y) for tick in axis.ticks)
    assert "nan" not in path
    assert "inf" not in path


@pytest.mark.parametrize("x", [[], [3.0]])
def test_one_point_or_none(x: list[float]) -> None:
    _, path, style = line_chart("t", [Series("a", np.array(x), np.array(x))]).curves[0]
    assert line_chart("t", [Series("a", np.array(x), 13.4 * np.array(x))], log_y=True).y.ticks
    assert len(points(path)) == 2 * len(x)  # a line from the point to itself, which is drawn, and large
    assert ("dot" in style) == bool(x)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-7.2, 9.9, ["−5", "0", "5"]),
        (0.00012, 0.00031, ["0.00015", "0.0002", "0.00025", "0.0003"]),
        (41.9, 45.3, ["42", "43", "44", "45"]),
        (1e7, 2e7, ["1e+07", "1.2e+07", "1.4e+07", "1.6e+07", "1.8e+07", "2e+07"]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, labels: list[str]) -> None:
    ticks = nice_ticks(low, high)
    assert [label for _, label in ticks] == labels
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in ticks)


def test_a_legend_tells_curves_apart_where_there_are_several() -> None:
    x = np.arange(3)
    one, two = Series("a", x, x), Series("b", x, x, "c1 dashed")
    faint = Series("component", x, x, "c2 faint")
    assert line_chart("t", [one, faint]).legend == []
    assert line_chart("t", [one, two, faint]).legend == [("a", "c0"), ("b", "c1 dashed")]
    assert line_chart("t", [one, two], small=True).legend == []


def test_knots_and_the_distribution_of_data_stand_on_the_axis() -> None:
    x = np.linspace(0, 10, 5)
    data = np.r_[np.full(30, 2.5), np.full(10, 7.5), math.nan]
    chart = line_chart("t", [Series("a", x, x)], knots=x, data=data)
    base = chart.y.start
    assert [float(v) for v in re.findall(rf"M({NUMBER}),{base:g}v-6", chart.knots)] == chart.x.places(x).round(
        2
    ).tolist()
    assert re.fullmatch(rf"M{NUMBER},{base:g}(?:V{NUMBER}H{NUMBER})+V{base:g}Z", chart.data)
    heights = base - np.array([float(v) for v in re.findall(rf"V({NUMBER})H", chart.data)])
    assert sorted(heights)[-2:] == pytest.approx([heights.max() / 3, heights.max()], abs=0.1)
    assert np.count_nonzero(heights) == 2


def test_intervals_share_a_scale() -> None:
    rows = intervals([(0.0, 5.0, 10.0), (None, 2.5, None), (None, None, None), (math.nan, 7.5, 8.0)])
    assert rows[0][1] - rows[1][1] == pytest.approx(rows[3][1] - rows[0][1], abs=0.02)
    assert rows[1] == (rows[1][1],) * 3
    assert rows[2] == ()
    assert rows[3][0] == rows[3][1] < rows[3][2]
    assert all(0 <= place <= 100 for row in rows for place in row)
    with_outlier = intervals([(0.0, 5.0, 10.0), (990.0, 1000.0, 1010.0)], outliers=[1])
    assert with_outlier[0] == intervals([(0.0, 5.0, 10.0)])[0]
    assert with_outlier[1] == (100, 100, 100)
