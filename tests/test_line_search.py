"""Line searches on the functions of More and Thuente (1994, section 5): each meets its own conditions, checked anew."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lvkam.line_search import LINE_SEARCHES, LONGEST, ROUNDING, Constants, Found, search_line

Function = Callable[[float], tuple[float, float]]


def rational(t: float) -> tuple[float, float]:
    return -t / (t**2 + 2), (t**2 - 2) / (t**2 + 2) ** 2


def quintic(t: float) -> tuple[float, float]:
    x = t + 0.004
    return x**5 - 2 * x**4, 5 * x**4 - 8 * x**3


def wavy(t: float) -> tuple[float, float]:
    beta, waves = 0.01, 39
    if abs(t - 1) < beta:
        value, slope = (t - 1) ** 2 / (2 * beta) + beta / 2, (t - 1) / beta
    else:
        value, slope = abs(t - 1), math.copysign(1, t - 1)
    wave = waves * math.pi / 2
    return value + (1 - beta) / wave * math.sin(wave * t), slope + (1 - beta) * math.cos(wave * t)


def yanai(beta_1: float, beta_2: float) -> Function:
    def gamma(beta: float) -> float:
        return math.sqrt(1 + beta**2) - beta

    def function(t: float) -> tuple[float, float]:
        far, near = math.hypot(1 - t, beta_2), math.hypot(t, beta_1)
        return (
            gamma(beta_1) * far + gamma(beta_2) * near,
            gamma(beta_1) * (t - 1) / far + gamma(beta_2) * t / near,
        )

    return function


FUNCTIONS = {
    "1": rational, "2": quintic, "3": wavy,
    "4": yanai(0.001, 0.001), "5": yanai(0.01, 0.001), "6": yanai(0.001, 0.01),
}  # fmt: skip
FIRST = (1e-3, 1e-1, 1e1, 1e3)
CONSTANTS = {"1": (1e-3, 0.1), "2": (0.1, 0.1), "3": (0.1, 0.1), **dict.fromkeys("456", (1e-3, 1e-3))}
"""More and Thuente's, of whom only their own search takes two equal ones."""
PUBLISHED = {
    "1": ((6, 1.4), (3, 1.4), (1, 10), (4, 37)),
    "2": ((12, 1.6), (8, 1.6), (8, 1.6), (11, 1.6)),
    "3": ((12, 1.0), (12, 1.0), (10, 1.0), (13, 1.0)),
    "4": ((4, 0.08), (1, 0.1), (3, 0.35), (4, 0.83)),
    "5": ((6, 0.075), (3, 0.078), (7, 0.073), (8, 0.076)),
    "6": ((13, 0.93), (11, 0.93), (8, 0.92), (11, 0.92)),
}
"""Evaluations and steps of their tables I to VI, for each first trial."""


def searched(name: str, function: Function, first: float, constants: Constants) -> tuple[Found, list[float]]:
    """What is found, and the steps that were evaluated."""
    steps: list[float] = []

    def phi(t: float) -> tuple[float, float]:
        steps.append(t)
        return function(t)

    found = search_line(name, phi, *function(0.0), first, constants)
    assert found.evaluations == len(steps) == len(set(steps))  # none twice
    assert found.value == function(found.step)[0]
    assert found.step in {0.0, *steps}
    return found, steps


def meets_its_conditions(name: str, function: Function, step: float, constants: Constants) -> bool:
    (start, descent), (value, slope) = function(0.0), function(step)
    c_1, c_2, _ = constants
    armijo = value <= start + c_1 * step * descent
    if name == "backtrack":
        return armijo
    if name == "hagerzhang":
        approximate = (2 * c_1 - 1) * descent >= slope and value <= start + ROUNDING * abs(start)
        return slope >= c_2 * descent and (armijo or approximate)
    return armijo and abs(slope) <= c_2 * abs(descent)


@pytest.mark.parametrize("key", FUNCTIONS)
def test_the_functions_have_the_slopes_that_they_give(key: str) -> None:
    for t in (0.0, 0.3, 0.9999, 2.0):
        values = [FUNCTIONS[key](t + h)[0] for h in (1e-6, -1e-6)]
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(FUNCTIONS[key](t)[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("key", FUNCTIONS)
@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_a_search_meets_its_conditions(name: str, key: str, first: float) -> None:
    tight = CONSTANTS[key]
    if name != "morethuente":
        tight = tight[0] / 2, tight[1]
    for constants in (Constants(*tight), Constants()):
        found, _ = searched(name, FUNCTIONS[key], first, constants)
        assert found.is_acceptable
        assert found.step > 0
        assert meets_its_conditions(name, FUNCTIONS[key], found.step, constants)


@pytest.mark.parametrize("key", FUNCTIONS)
def test_more_and_thuentes_takes_the_steps_that_they_published(key: str) -> None:
    for first, (evaluations, step) in zip(FIRST, PUBLISHED[key], strict=True):
        found, _ = searched("morethuente", FUNCTIONS[key], first, Constants(*CONSTANTS[key]))
        assert found.evaluations == evaluations
        assert found.step == pytest.approx(step, rel=0.07)  # two digits


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("c_1", [1e-4, 0.3, 0.9])
def test_backtracking_takes_the_first_step_that_is_low_enough(c_1: float, rho: float) -> None:
    """On t^2 - t a step is low enough up to 1 - c_1."""
    found, steps = searched("backtrack", lambda t: (t**2 - t, 2 * t - 1), 7.0, Constants(c_1, 0.9, rho))
    shrinkages = math.ceil(math.log((1 - c_1) / 7) / math.log(rho))
    assert found.step == pytest.approx(7 * rho**shrinkages, rel=1e-12)
    np.testing.assert_allclose(steps, 7 * rho ** np.arange(shrinkages + 1), rtol=1e-12)
    found, steps = searched("backtrack", lambda t: (t**2 - t, 2 * t - 1), 0.05, Constants(c_1, 0.9, rho))
    assert steps == [found.step] == [0.05]  # never longer


@pytest.mark.parametrize("worst", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("first", [0.01, 0.7, 1.0, 30.0, 1e12])
@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_where_numbers_are_not_finite_is_too_far(name: str, first: float, worst: float) -> None:
    """-2 t - log(1 - t), whose minimum is at 1/2 and which ends at 1."""

    def barrier(t: float) -> tuple[float, float]:
        return (-2 * t - math.log1p(-t), -2 + 1 / (1 - t)) if t < 1 else (worst, math.nan)

    constants = Constants(1e-4, 0.1)
    seen: list[float] = []
    found = search_line(name, lambda t: (seen.append(t), barrier(t))[1], 0.0, -1.0, first, constants)
    assert found.is_acceptable
    assert 0 < found.step < 1
    assert meets_its_conditions(name, barrier, found.step, constants)
    bad = [t for t in seen if t >= 1]
    assert bad == sorted(bad, reverse=True)  # each is shorter than all that were too far
    assert len(seen) < 70


@pytest.mark.parametrize("name", [n for n in LINE_SEARCHES if n != "hagerzhang"])  # whose conditions a level meets
def test_a_step_whose_decrease_is_lost_in_rounding_is_not_acceptable(name: str) -> None:
    """All is level, but claims a slope at its beginning: c_1 t phi'(0) is lost beside 5 where t is small enough."""
    found = search_line(name, lambda t: (5.0, 0.0), 5.0, -0.01, 0.005, Constants())
    assert found[:2] == (0.0, 5.0)
    assert not found.is_acceptable


@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_without_any_decrease_the_step_is_zero(name: str) -> None:
    """As where rounding hides it, or the slope belongs to another function."""
    found = search_line(name, lambda t: (5 + t, 1.0), 5.0, -1.0, 1.0, Constants())
    assert found[:2] == (0.0, 5.0)
    assert not found.is_acceptable
    assert found.evaluations <= 110
    nowhere = search_line(name, lambda t: (math.nan, math.nan), 5.0, -1.0, 1.0, Constants())
    assert nowhere[:2] == (0.0, 5.0)
    assert not nowhere.is_acceptable


@pytest.mark.parametrize("name", [n for n in LINE_SEARCHES if n != "backtrack"])
def test_a_line_that_falls_for_ever_has_no_acceptable_step(name: str) -> None:
    found, steps = searched(name, lambda t: (-t, -1.0), 0.01, Constants())
    assert not found.is_acceptable
    assert found.step == max(steps) <= LONGEST * 0.01
    assert found.value == -found.step


@pytest.mark.parametrize(("name", "slope"), [("morethuente", 50.0), ("strongwolfe", 50.0), ("hagerzhang", -2.0)])
def test_a_failed_search_ends_at_the_lowest_step(name: str, slope: float) -> None:
    """The slopes at all steps but 0 belong to another function, and are never acceptable."""
    found, steps = searched(name, lambda t: ((t - 1) ** 2, slope if t else -2.0), 1.9, Constants(1e-4, 0.5))
    assert not found.is_acceptable
    assert found.step == min(steps, key=lambda t: (t - 1) ** 2)
    assert found.value < 1


def test_only_hager_and_zhangs_accepts_what_rounding_hides() -> None:
    """A parabola so flat beside its value that no decrease is left: its slopes tell where the minimum is."""

    def hidden(t: float) -> tuple[float, float]:
        return float(np.float32(1e4 + 1e-6 * (t - 1) ** 2)), 2e-6 * (t - 1)

    constants = Constants(0.1, 0.5)
    assert not searched("morethuente", hidden, 0.1, constants)[0].is_acceptable
    assert not searched("strongwolfe", hidden, 0.1, constants)[0].is_acceptable
    found, _ = searched("hagerzhang", hidden, 0.1, constants)
    assert found.is_acceptable
    assert abs(found.step - 1) <= 0.5 + 1e-9
