"""Standardised tables against the closed form, and the way back."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lvkam.standardisation import LARGEST, Standardisation


def table(rows: int = 500, seed: int = 0) -> np.ndarray:
    """Columns of very different means and spreads."""
    z = np.random.default_rng(seed).standard_normal((rows, 4))
    return z @ np.array([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, -2], [0, 0, 0, 1]]) * [1, 1e-6, 1e6, 30] + [
        5, 1e-5, -1e6, 0,
    ]  # fmt: skip


COLUMNS = ("a", "b", "c", "d")


def test_training_rows_have_mean_0_and_standard_deviation_1() -> None:
    x = table()
    of = Standardisation.of(x, COLUMNS)
    assert of.columns == COLUMNS
    # by Python's own exact sums
    for column, mean, std in zip(x.T.tolist(), of.mean, of.std, strict=True):
        exact = math.fsum(column) / len(column)
        assert mean == pytest.approx(exact, rel=1e-12)
        assert std == pytest.approx(math.sqrt(math.fsum((v - exact) ** 2 for v in column) / len(column)), rel=1e-12)
    u = of.apply(x)
    assert u.dtype == np.float32
    np.testing.assert_allclose(u.mean(0, dtype=float), 0, atol=1e-6)
    np.testing.assert_allclose(u.std(0, dtype=float), 1, atol=1e-6)


def test_other_rows_are_brought_by_the_training_rows_transform() -> None:
    of = Standardisation.of(table(), COLUMNS)
    other = table(50, seed=1) * 3 + 1
    np.testing.assert_allclose(of.apply(other), (other - table().mean(0)) / table().std(0), rtol=1e-6)


def test_restoring_is_the_inverse() -> None:
    x = table()
    of = Standardisation.of(x, COLUMNS)
    restored = of.restore(of.apply(x))
    assert restored.dtype == np.float64
    # a rounding of u in float32, and of x
    tolerance = np.finfo(np.float32).eps * np.abs(x - of.mean) + 4 * np.finfo(np.float64).eps * np.abs(x)
    assert (np.abs(restored - x) <= tolerance).all()


def test_the_volume_is_that_of_the_change_of_variables() -> None:
    x = table()
    of = Standardisation.of(x, COLUMNS)
    jacobian = np.diag(1 / of.std)
    assert of.log_volume == pytest.approx(-np.linalg.slogdet(jacobian)[1])
    # of a normal density of independent columns, in closed form
    u = (x - of.mean) / of.std

    def log_normal(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        return (-0.5 * ((values - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi)).sum(1)

    one = np.ones(4)
    np.testing.assert_allclose(log_normal(x, of.mean, of.std), log_normal(u, 0 * one, one) - of.log_volume)


@pytest.mark.parametrize("factor", [1e-3, 2.0, 1e5])
def test_units_do_not_matter_but_for_the_volume(factor: float) -> None:
    one, other = Standardisation.of(table(), COLUMNS), Standardisation.of(factor * table(), COLUMNS)
    np.testing.assert_allclose(other.apply(factor * table()), one.apply(table()), atol=1e-5)
    assert other.log_volume - one.log_volume == pytest.approx(4 * math.log(factor))


@pytest.mark.parametrize("value", [0.0, 0.1, -7.25, 1e30, 1 / 3])
@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_a_constant_column_is_told_by_its_name(value: float, rows: int) -> None:
    x = table(rows)
    x[:, 2] = value
    if rows > 1:
        with pytest.raises(ValueError, match=re.escape(f"the column c is constant ({value:g} in all {rows} rows)")):
            Standardisation.of(x, COLUMNS)
    else:
        with pytest.raises(ValueError, match=r"\Athe column a is constant \(\S+ in all 1 rows\)\Z"):
            Standardisation.of(x, COLUMNS)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e300, "the column b holds numbers too large for single precision: change its unit"),
        (1e200, "the column b holds numbers too large for single precision: change its unit"),
        (1e37, "the column b holds numbers too large for single precision: change its unit"),
        (1e-37, "the column b holds numbers too small for single precision: change its unit"),
        (1e-200, "the column b holds numbers too small for single precision: change its unit"),
    ],
)
def test_what_single_precision_cannot_hold_is_told(scale: float, message: str) -> None:
    x = np.random.default_rng(0).standard_normal((50, 2))
    x[:, 1] *= scale
    with pytest.raises(ValueError, match=message):
        Standardisation.of(x, ("a", "b"))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_what_is_drawn_is_finite_in_single_precision(scale: float) -> None:
    assert 1 / LARGEST < scale < LARGEST
    x = scale * np.random.default_rng(0).standard_normal((50, 2))
    of = Standardisation.of(x, ("a", "b"))
    drawn = of.restore(np.array([[-9, 9], [0.5, 1e-3]], np.float32))
    assert np.isfinite(drawn).all()
    assert (drawn != 0).all()
