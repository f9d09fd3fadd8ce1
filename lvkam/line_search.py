"""Line searches: how far to go along a direction of descent.

    phi(t) = f(x + t d),   phi'(0) < 0,   t > 0

A step is acceptable when it meets the conditions of its search, 0 < c_1 < c_2 < 1:

    Armijo              phi(t) <= phi(0) + c_1 t phi'(0)                           backtrack
    Wolfe               Armijo, and phi'(t) >= c_2 phi'(0)
    strong Wolfe        Armijo, and |phi'(t)| <= c_2 |phi'(0)|                     strongwolfe, morethuente
    approximate Wolfe   (2 c_1 - 1) phi'(0) >= phi'(t) >= c_2 phi'(0) and
                        phi(t) <= phi(0) + eps |phi(0)|, with c_1 < 1/2            hagerzhang: this, or Wolfe

Nocedal and Wright 2006, equations 3.4, 3.6 and 3.7; More and Thuente 1994; Hager and Zhang 2005, section 4: near a
minimum rounding errors hide whether phi decreases, but not yet the sign of its slope.

Letters: t step, phi value, phi' slope along the direction.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
import scipy  # as in lvkam.descent

LONGEST = 1e5
"""Times the first trial: no step is longer. What falls for longer than that along a line has no minimum there."""

NARROWEST = 1e-12
"""Brackets narrower than this share of their upper end are not divided."""

MOST_TRIALS = 100
"""Of backtracking or of Hager and Zhang's method, and how often a search may begin again."""

RESTARTS = 5
"""Of scipy's search for a strong Wolfe step."""

ROUNDING = 1e-6
"""eps of the approximate Wolfe conditions, Hager and Zhang's; some rounding errors of a sum in float32."""

BISECTION, EXPANSION, ENOUGH = 0.5, 5.0, 0.66
"""Hager and Zhang's theta, rho and gamma: where an interval is divided, by how much a trial step grows, and the share
of its length that an interval must lose."""

Phi = Callable[[float], tuple[float, float]]
"""t -> phi(t), phi'(t); numbers that are not finite mean that t is too far."""


class Constants(NamedTuple):
    """[LINE_SEARCH]; the defaults are the INI file's."""

    c_1: float = 1e-4
    c_2: float = 0.9
    rho: float = 0.5
    """How much of a step that is too long backtracking keeps."""


class Found(NamedTuple):
    """Where a search ends."""

    step: float
    """The lowest point that was seen, if no step is acceptable: 0 if that is where the search began."""
    value: float
    evaluations: int
    """Of phi, the one at 0 left out."""
    is_acceptable: bool


class _TooFarError(Exception):
    def __init__(self, step: float):
        self.step = step


class _Line:
    """phi, each step evaluated once."""

    def __init__(self, phi: Phi, value: float, slope: float):
        self.phi, self.points = phi, {0.0: (value, slope)}
        self.evaluations = 0

    def __call__(self, step: float) -> tuple[float, float]:
        step = float(step)
        if step not in self.points:
            self.evaluations += 1
            value, slope = self.phi(step)
            if not (math.isfinite(value) and math.isfinite(slope)):
                raise _TooFarError(step)
            self.points[step] = value, slope
        return self.points[step]

    def value(self, step: float) -> float:
        return self(step)[0]

    def slope(self, step: float) -> float:
        return self(step)[1]

    def lowest(self) -> float:
        """The step of the lowest value so far."""
        return min(self.points, key=self.value)

    def likeliest(self) -> float:
        """Where the slopes beside the lowest value say that a minimum is; the shortest step if 0 is the lowest."""
        low = self.lowest()
        falls = self.slope(low) < 0
        across = [t for t in self.points if (t > low if falls else t < low) and (self.slope(t) < 0) != falls]
        if across:
            guess = _secant(self, low, (min if falls else max)(across))
            return guess if guess > 0 else low
        return low or min(self.points.keys() - {0.0})

    def is_low(self, step: float, c_1: float) -> bool:
        """Armijo's condition; a decrease that rounding leaves nothing of is none."""
        value, slope = self.points[0.0]
        return value > self.value(step) <= value + c_1 * step * slope


def _backtrack(line: _Line, first: float, longest: float, constants: Constants) -> float | None:
    """The first of first, rho first, rho^2 first, ... that is low enough (Nocedal and Wright, algorithm 3.1)."""
    trials = (first * constants.rho**k for k in range(MOST_TRIALS))
    return next((t for t in trials if line.is_low(t, constants.c_1)), None)


def _strong_wolfe(line: _Line, first: float, longest: float, constants: Constants) -> float | None:
    """Nocedal and Wright, algorithms 3.5 and 3.6, as scipy has them, begun again where its divisions do not suffice."""
    with warnings.catch_warnings():
        # a search that fails is told by what it returns
        warnings.filterwarnings("ignore", "The line search algorithm|Rounding errors", RuntimeWarning)
        for _ in range(RESTARTS):
            # in units of the first trial, since scipy's is 1
            step, *_, slope = scipy.optimize.line_search(
                lambda t: line.value(t.item()), lambda t: np.array([line.slope(t.item())]),
                np.zeros(1), np.array([first]), old_fval=line.value(0.0), c1=constants.c_1, c2=constants.c_2,
                amax=longest / first, maxiter=math.ceil(math.log2(longest / first)) + 1,
            )  # fmt: skip
            if step is not None and slope is not None:  # without a slope it has failed, whatever the step
                step = float(step) * first
                return step if line.is_low(step, constants.c_1) else None  # as for More and Thuente's
            first = line.likeliest()
    return None


def _more_thuente(line: _Line, first: float, longest: float, constants: Constants) -> float | None:
    # numbers of NumPy, which a division by zero makes infinite, and the search then fails
    value, slope = (lambda t: np.float64(line.value(t))), (lambda t: np.float64(line.slope(t)))
    # Private, the one such name here: no public function searches along a line by this method. It is as it was ported
    # to Python in scipy 1.12, and tests/test_line_search.py holds it to its conditions.
    search = scipy.optimize._dcsrch.DCSRCH(value, slope, constants.c_1, constants.c_2, 1e-14, 0.0, longest)
    with np.errstate(all="ignore"):
        step, *_ = search(first, value(0.0), slope(0.0))
    # of a step so short that its decrease is lost in rounding it would hold that it is low enough
    return float(step) if step is not None and line.is_low(float(step), constants.c_1) else None


def _hager_zhang(line: _Line, first: float, longest: float, constants: Constants) -> float | None:
    value, slope = line(0.0)
    c_1, c_2, _ = constants
    highest = value + ROUNDING * abs(value)

    def is_acceptable(t: float) -> bool:
        if line.slope(t) < c_2 * slope:
            return False
        return line.is_low(t, c_1) or (line.value(t) <= highest and line.slope(t) <= (2 * c_1 - 1) * slope)

    trials = itertools.islice(_hager_zhang_trials(line, first, longest, highest), MOST_TRIALS)
    return next(filter(is_acceptable, trials), None)


def _hager_zhang_trials(line: _Line, first: float, longest: float, highest: float) -> Iterator[float]:
    """The steps that the method looks at: it brackets a minimum, then narrows the bracket by secants and bisection.

    Brackets [a, b] have phi(a) <= highest, phi'(a) < 0 and phi'(b) >= 0.
    """
    a, b = 0.0, first  # B0 to B3
    while True:
        yield b
        if line.slope(b) >= 0:
            break
        if line.value(b) > highest:
            a, b = yield from _bisected(line, a, b, highest)
            break
        if b >= longest:
            return
        a, b = b, min(EXPANSION * b, longest)
    while b - a > NARROWEST * b:  # L1 to L3
        secant = _secant(line, a, b)
        low, high = yield from _updated(line, a, b, secant, highest)
        if secant in (low, high):  # S2 to S4
            second = _secant(line, b, high) if secant == high else _secant(line, a, low)
            low, high = yield from _updated(line, low, high, second, highest)
        if high - low > ENOUGH * (b - a):
            low, high = yield from _updated(line, low, high, (low + high) / 2, highest)
        a, b = low, high


_Bracketing = Generator[float, None, tuple[float, float]]
"""Steps that are looked at on the way to a bracket."""


def _secant(line: _Line, a: float, b: float) -> float:
    """Where the slope would be zero if it were linear; not a number if that is nowhere."""
    at_a, at_b = line.slope(a), line.slope(b)
    return math.nan if at_a == at_b else (a * at_b - b * at_a) / (at_b - at_a)


def _updated(line: _Line, a: float, b: float, c: float, highest: float) -> _Bracketing:
    """The narrower bracket that a step within the bracket leaves (U0 to U3)."""
    if not a < c < b:
        return a, b
    yield c
    if line.slope(c) >= 0:
        return a, c
    if line.value(c) <= highest:
        return c, b
    return (yield from _bisected(line, a, c, highest))


def _bisected(line: _Line, a: float, b: float, highest: float) -> _Bracketing:
    """A bracket in [a, b], where phi(b) is too high and still falls (U3)."""
    while b - a > NARROWEST * b:
        c = (1 - BISECTION) * a + BISECTION * b
        yield c
        if line.slope(c) >= 0:
            return a, c
        a, b = (c, b) if line.value(c) <= highest else (a, c)
    return a, b


LINE_SEARCHES: dict[str, Callable[[_Line, float, float, Constants], float | None]] = {
    "morethuente": _more_thuente,
    "strongwolfe": _strong_wolfe,
    "backtrack": _backtrack,
    "hagerzhang": _hager_zhang,
}
"""By their names in the INI file: (phi, first trial, longest step, constants) -> an acceptable step, or None."""


def search_line(name: str, phi: Phi, value: float, slope: float, first: float, constants: Constants) -> Found:
    """A step that meets the conditions of a line search, or the lowest one that it came by.

    Args:
        name: one of `LINE_SEARCHES`.
        phi: the function along the line.
        value: phi(0).
        slope: phi'(0) < 0.
        first: the first trial, positive.
        constants: c_1, c_2 and rho.
    """
    line, longest = _Line(phi, value, slope), LONGEST * first
    for _ in range(MOST_TRIALS):
        try:
            step = LINE_SEARCHES[name](line, first, longest, constants)
        except _TooFarError as error:
            # what is finite is known already: the search begins again, its steps shorter than this one
            finite = max((t for t in line.points if t < error.step), default=0.0)
            longest = finite + constants.rho * (error.step - finite)
            first = min(first, longest)
            continue
        if step is not None:
            return Found(step, line.value(step), line.evaluations, True)
        break
    return Found(line.lowest(), line.value(line.lowest()), line.evaluations, False)
