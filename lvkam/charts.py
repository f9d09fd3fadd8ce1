"""Charts of a report: where everything goes. `templates/charts.html` writes it as SVG, and `report.js` reads the values
back from the paths, so that they are in the page once.

    place = start + (value - low) / (high - low) * length,   of the logarithms on a logarithmic axis
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 30
"""Margins of the plot, in units of the picture; those of a small chart have room for the numbers below only."""
BINS, HISTOGRAM_HEIGHT = 60, 26
PADDING = 0.05
"""Of the range of y, above and below."""


class Series(NamedTuple):
    """A curve."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str = "c0"
    """Classes of the style sheet: c0 to c6, reference; faint, dashed, dot."""


class Tick(NamedTuple):
    """A number on an axis."""

    place: float
    label: str


class Axis(NamedTuple):
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    """Places of low and high."""
    is_log: bool = False
    label: str = ""

    def places(self, values: np.ndarray) -> np.ndarray:
        """Places of values; NaN where there is none."""
        values, low, high = np.asarray(values, np.float64), self.low, self.high
        if self.is_log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values, low, high = np.log10(values), math.log10(low), math.log10(high)
        places = self.start + (values - low) / (high - low) * (self.end - self.start)
        return np.where(np.isfinite(places), places, np.nan)

    @property
    def ticks(self) -> list[Tick]:
        """At round values."""
        values = _log_ticks(self.low, self.high) if self.is_log else nice_ticks(self.low, self.high)
        return [Tick(round(float(self.places(np.array(value))), 2), label) for value, label in values]


@dataclass(frozen=True)
class Chart:
    """A chart, all of it in the units of the picture."""

    title: str
    width: int
    height: int
    x: Axis
    y: Axis
    curves: list[tuple[str, str, str]]
    """Name, path and style of each."""
    legend: list[tuple[str, str]]
    """Name and style, where there is something to tell apart and room to say it."""
    marks: list[float]
    """Places of dotted lines."""
    knots: str
    """Path of ticks on the axis."""
    data: str
    """Path around a histogram above the axis."""


def nice_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """At most six multiples of 1, 2 or 5 times a power of ten within [low, high], and how they are written."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    is_plain = decimals <= 4 and max(abs(low), abs(high)) < 1e6
    values = [n * step for n in range(first, last + 1)]
    return [(v, _minus(f"{v:.{decimals}f}" if is_plain else f"{v:.6g}")) for v in values]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten, or the powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [(v, f"{v:g}") for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _range(arrays: Iterable[np.ndarray], padding: float, is_log: bool = False) -> tuple[float, float]:
    """Of all finite values (those greater than 0, on a logarithmic axis); never empty."""
    values = np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays] or [np.empty(0)])
    values = values[np.isfinite(values) & ((values > 0) | (not is_log))]
    if not len(values):
        return (1.0, 10.0) if is_log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if is_log:
        widening = 1.1 if high > 2.5 * low else 2.0  # there is a number on the axis in any case
        return low / widening, high * widening
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        widening = 0.5 * (abs(low) or 1)
        return low - widening, high + widening
    return low - padding * (high - low), high + padding * (high - low)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through places, broken where one is missing; to one alone it goes twice, or nothing would be drawn."""
    lines: list[list[str]] = [[]]
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            lines[-1].append(f"{round(a, 2):g},{round(b, 2):g}")
        else:
            lines.append([])
    return "".join("M" + "L".join(line * 2 if len(line) == 1 else line) for line in lines if line)


def _strokes(places: np.ndarray, y: float) -> str:
    return "".join(f"M{round(x, 2):g},{y:g}v-6" for x in places.tolist() if math.isfinite(x))


def _histogram(places: np.ndarray, x: Axis, y: float) -> str:
    counts, edges = np.histogram(places[np.isfinite(places)], BINS, (x.start, x.end))
    heights = HISTOGRAM_HEIGHT * counts / max(1, counts.max())
    steps = [f"V{round(y - h, 1):g}H{round(edge, 1):g}" for h, edge in zip(heights, edges[1:], strict=True)]
    return f"M{x.start:g},{y:g}{''.join(steps)}V{y:g}Z"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    log_y: bool = False,
    from_zero: bool = False,
    marks: Sequence[float] = (),
    knots: np.ndarray | None = None,
    data: np.ndarray | None = None,
    small: bool = False,
) -> Chart:
    """Curves on two axes; values that are not finite leave gaps.

    Args:
        title: for whoever cannot see it too.
        series: the curves, the last on top.
        x_label: of the x axis.
        log_y: whether the y axis is logarithmic.
        from_zero: whether the y axis begins at 0.
        marks: x of dotted lines.
        knots: x of ticks on the axis.
        data: x of data, of which the distribution is shown.
        small: a fourth of the size, without numbers on the y axis, and without a legend.
    """
    width, height, left, bottom = (200, 110, RIGHT, 18) if small else (360, 220, LEFT, BOTTOM)
    x_low, x_high = _range([one.x for one in series], 0)
    y_low, y_high = _range([one.y for one in series], PADDING, log_y)
    x = Axis(x_low, x_high, left, width - RIGHT, label=x_label)
    y = Axis(0.0 if from_zero else y_low, y_high, height - bottom, TOP, log_y)
    base = height - bottom
    names = {one.name: one.style for one in series if "faint" not in one.style}
    return Chart(
        title, width, height, x, y,
        curves=[
            (one.name, _path(x.places(one.x), y.places(one.y)), one.style + " dot" * (len(one.x) == 1))
            for one in series
        ],
        legend=list(names.items()) if len(names) > 1 and not small else [],
        marks=[round(float(place), 2) for place in x.places(np.asarray(marks, np.float64))],
        knots="" if knots is None else _strokes(x.places(knots), base),
        data="" if data is None else _histogram(x.places(data), x, base),
    )  # fmt: skip


def intervals(
    rows: Sequence[tuple[float | None, float | None, float | None]], outliers: Sequence[int] = ()
) -> list[tuple[float, ...]]:
    """Low end, value and high end of each row, in percent of the width that they share, from the least to the largest.

    An end that is not known is where the value is; a row without a value is empty. Outliers, by their numbers, do not
    count for the scale, and end where it does.
    """
    known = [
        tuple(value if v is None or not math.isfinite(v) else v for v in (low, value, high))
        if value is not None and math.isfinite(value)
        else ()
        for low, value, high in rows
    ]
    counted = [np.array(row) for n, row in enumerate(known) if n not in outliers]
    axis = Axis(*_range(counted, PADDING), 0.0, 100.0)
    return [tuple(round(float(p), 2) for p in axis.places(np.array(row)).clip(0, 100)) for row in known]
