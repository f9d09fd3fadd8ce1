"""Bases against scipy, fits against known curves, knots against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from lvkam.splines import (
    BASES,
    MIN_UPDATE_RATIO,
    adaptive_knots,
    b_spline_basis,
    evaluate_spline,
    extend_grid,
    fit_coefficients,
    rbf_basis,
    rswaf_basis,
    uniform_knots,
)
from tests.conftest import stream

DEGREES = [1, 2, 3, 4, 5]


def knots_of(kind: str, num_inputs: int, grid_size: int) -> Tensor:
    if kind == "uniform":
        return uniform_knots(num_inputs, grid_size, (-1.0, 2.0))
    # gaps over two orders of magnitude, as an adaptive grid may have
    gaps = 10 ** (-2 * torch.rand(num_inputs, grid_size, dtype=torch.float64, generator=stream(3)))
    knots = torch.cat((torch.zeros(num_inputs, 1, dtype=torch.float64), gaps.cumsum(1)), 1)
    return -1 + 3 * knots / knots[:, -1:]


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("kind", ["uniform", "non-uniform"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 3e-6)])
def test_b_splines_are_scipys(degree: int, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    grid = extend_grid(knots_of(kind, 4, 12), degree).to(dtype)
    inside = torch.rand(500, 4, dtype=torch.float64, generator=stream(0)) * 3 - 1
    inside[0], inside[1:13] = -1.0, grid[:, degree + 1 : degree + 13].T.double()
    first, last = grid[:, degree].double(), grid[:, -degree - 1].double()
    x = torch.minimum(torch.maximum(inside, first), last).to(dtype)
    basis = b_spline_basis(x, grid, degree)
    assert basis.shape == (500, 4, 12 + degree)
    for i in range(4):
        expected = BSpline.design_matrix(x[:, i].double().numpy(), grid[i].double().numpy(), degree).toarray()
        np.testing.assert_allclose(basis[:, i].double().numpy(), expected, atol=tolerance, rtol=0)
    np.testing.assert_allclose(basis.sum(-1).double().numpy(), 1, atol=tolerance)


@pytest.mark.parametrize("degree", DEGREES)
def test_b_splines_fade_to_zero_outside(degree: int) -> None:
    grid = extend_grid(knots_of("non-uniform", 2, 6), degree)
    x = torch.stack((grid[:, 0] - 1e-9, grid[:, 0] - 5, grid[:, -1], grid[:, -1] + 1e-9, grid[:, -1] + 1e6))
    assert torch.equal(b_spline_basis(x, grid, degree), torch.zeros(5, 2, 6 + degree, dtype=torch.float64))
    steps = torch.linspace(0, 1, 200, dtype=torch.float64)[:, None]
    fading = b_spline_basis(grid[:, -degree - 1] + steps * (grid[:, -1] - grid[:, -degree - 1]), grid, degree)
    assert (fading.sum(-1).diff(dim=0) <= 1e-12).all()


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", sorted(BASES))
def test_bases_pass_gradcheck(name: str, degree: int) -> None:
    grid = extend_grid(knots_of("non-uniform", 3, 5), degree)
    x = torch.rand(20, 3, dtype=torch.float64, generator=stream(1)).mul(4).sub(1.5).requires_grad_()
    bandwidth = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: BASES[name].evaluate(x, grid, degree, None), x)
    if BASES[name].has_bandwidth:
        assert torch.autograd.gradcheck(lambda x, h: BASES[name].evaluate(x, grid, degree, h), (x, bandwidth))
    if degree > 1:  # the second derivative of a broken line has jumps
        assert torch.autograd.gradgradcheck(lambda x: BASES[name].evaluate(x, grid, degree, None), x)


def test_bumps_are_their_formulas() -> None:
    grid = extend_grid(knots_of("non-uniform", 2, 5), 3)
    x = torch.rand(7, 2, dtype=torch.float64, generator=stream(2))
    spacing = (grid[:, -1] - grid[:, 0]) / (grid.shape[1] - 1)
    distance = ((x[:, :, None] - grid) / (spacing[:, None] * 0.7)).numpy()
    h = torch.tensor(0.7, dtype=torch.float64)
    np.testing.assert_allclose(rbf_basis(x, grid, 3, h).numpy(), np.exp(-(distance**2) / 2), atol=1e-14)
    np.testing.assert_allclose(rswaf_basis(x, grid, 3, h).numpy(), 1 / np.cosh(distance) ** 2, atol=1e-14)


@pytest.mark.parametrize("name", sorted(BASES))
@pytest.mark.parametrize("kind", ["uniform", "non-uniform"])
def test_fit_recovers_a_representable_curve(name: str, kind: str) -> None:
    grid = extend_grid(knots_of(kind, 3, 8), 3)
    x = torch.rand(400, 3, dtype=torch.float64, generator=stream(4)) * 3 - 1
    basis = BASES[name].evaluate(x, grid, 3, None)
    coef = torch.randn(3, basis.shape[2], 2, dtype=torch.float64, generator=stream(5))
    values = evaluate_spline(basis, coef)
    fitted = fit_coefficients(basis, values)
    np.testing.assert_allclose(evaluate_spline(basis, fitted).numpy(), values.numpy(), atol=1e-6)
    if name == "B-spline" and kind == "uniform":
        np.testing.assert_allclose(fitted.numpy(), coef.numpy(), atol=1e-8)


def test_evaluate_spline_is_its_sum() -> None:
    basis = torch.randn(6, 3, 5, generator=stream(6))
    coef = torch.randn(3, 5, 4, generator=stream(7))
    expected = np.einsum("nik,iko->nio", basis.numpy(), coef.numpy())
    np.testing.assert_allclose(evaluate_spline(basis, coef).numpy(), expected, atol=1e-6)


def test_rswaf_at_its_default_bandwidth_is_well_posed() -> None:
    """The reference's form, not scaled by the spacing, has rank 7 of 19 here."""
    grid = extend_grid(uniform_knots(1, 12, (0.0, 1.0)), 3)
    x = torch.linspace(0, 1, 200, dtype=torch.float64)[:, None]
    basis = rswaf_basis(x, grid, 3, torch.tensor(1.0, dtype=torch.float64))
    unscaled = 1 - torch.tanh(x.unsqueeze(-1) - grid).square()
    assert int(torch.linalg.matrix_rank(unscaled[:, 0], rtol=1e-7)) < 10
    values = torch.sin(6 * x).unsqueeze(-1)
    coef = fit_coefficients(basis, values)
    assert coef.abs().max() < 100
    # 3e-3 is what bumps of this width can do here: with every singular value kept the fit is no closer
    np.testing.assert_allclose(evaluate_spline(basis, coef.float().double()).numpy(), values.numpy(), atol=4e-3)


def test_knots_are_quantiles_blended_with_equal_ones() -> None:
    x = torch.randn(1000, 2, dtype=torch.float64, generator=stream(8))
    knots = adaptive_knots(x, 10, 0.3)
    for i in range(2):
        column = x[:, i].numpy()
        quantiles = np.quantile(column, np.linspace(0, 1, 11))
        equal = np.linspace(column.min(), column.max(), 11)
        np.testing.assert_allclose(knots[i].numpy(), 0.3 * equal + 0.7 * quantiles, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("grid_size", [1, 12, 200, 10000])
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(64, 1),
        torch.full((64, 1), 1e4),
        torch.full((64, 1), -3e-8),
        torch.tensor([0.0] * 63 + [1.0])[:, None],
        torch.tensor([0.5] * 32 + [0.5000001] * 32)[:, None],
        torch.tensor([[2.0]]),
        torch.randint(0, 3, (64, 1), generator=torch.Generator().manual_seed(0)).float(),
    ],
    ids=["zero", "large constant", "tiny constant", "one outlier", "two close values", "one input", "three values"],
)
def test_knots_increase_strictly_whatever_repeats(x: Tensor, ratio: float, grid_size: int) -> None:
    knots = adaptive_knots(x, grid_size, ratio)
    grid = extend_grid(knots, 3).float()
    gaps = grid.double().diff(dim=1)
    assert (gaps > 0).all()
    mean = (knots[:, -1] - knots[:, 0]) / grid_size
    assert (knots.diff(dim=1) >= 0.999 * MIN_UPDATE_RATIO * mean).all()
    assert (knots[:, 0] <= x.min()).all()
    assert (knots[:, -1] >= x.max()).all()
    assert torch.isfinite(b_spline_basis(x, grid, 3)).all()


def test_extension_has_the_mean_spacing() -> None:
    grid = extend_grid(torch.tensor([[0.0, 1.0, 4.0]], dtype=torch.float64), 2)
    np.testing.assert_allclose(grid.numpy(), [[-4, -2, 0, 1, 4, 6, 8]])
