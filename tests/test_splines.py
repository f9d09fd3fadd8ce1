"""Bases against scipy, fits against known curves, knots against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor

from lvkam.splines import (
    BASES,
    MIN_UPDATE_RATIO,
    SMALLEST_BUMP,
    adaptive_knots,
    b_spline_basis,
    evaluate_spline,
    extend_grid,
    features,
    features_backward,
    fit_coefficients,
    prepare_knots,
    rbf_basis,
    rswaf_basis,
    uniform_knots,
)
from lvkam.univariate import FunctionFamily
from tests.conftest import require_compiler, stream

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
    gaussian = np.exp(-(distance**2) / 2)
    assert SMALLEST_BUMP == 1e-12
    assert (gaussian < 1e-12).any()
    # a bump ends at 1e-12 of its height: beyond float32, and the denormal numbers that would follow are slow
    gaussian[gaussian < 1e-12] = 0
    np.testing.assert_allclose(rbf_basis(x, grid, 3, h).numpy(), gaussian, atol=1e-14)
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


def nasty_inputs() -> Tensor:
    """200 inputs a column, float64, out of which a grid update may have to make knots: (200, 14)."""
    u = torch.rand(14, 200, dtype=torch.float64, generator=stream(30))
    cauchy = torch.tan(math.pi * (u - 0.5))
    columns = [
        torch.zeros(200), torch.full((200,), 0.37), torch.full((200,), -500.0),  # constant
        (3 * u[0]).floor() / 4, torch.cat((1e-3 * u[1, 1:], torch.tensor([1e4]))),  # three values; an outlier
        torch.randn(200, generator=stream(31)), cauchy[2], cauchy[3] ** 3,  # heavy and heavier tails
        torch.where(u[4] < 0.5, 1e-4 * u[5] - 3, 2 + 1e-5 * u[6]),  # two clusters
        1000 + 0.01 * (2 * u[7] - 1), -1000 + 0.01 * (2 * u[8] - 1), 1 - 1e-5 * u[9] ** 4,  # far from the origin
        1e-6 * u[10], 1e6 * (u[11] - 0.5),
    ]  # fmt: skip
    return torch.stack([column.double() for column in columns], 1)


def telling_points(grid: Tensor) -> Tensor:
    """Where kernels may go wrong: at the knots and a float beside, within each cell, outside: (I, M) -> (N, I)."""
    place = torch.rand(3, 60, dtype=torch.float64, generator=stream(32))
    knots = grid.double()
    wide = knots[:, :1] + (knots[:, -1:] - knots[:, :1]) * (1.2 * place[0] - 0.1)
    cell = (place[1] * (grid.shape[1] - 1)).long()
    within = torch.lerp(knots[:, cell], knots[:, cell + 1], place[2].expand(len(grid), -1))
    beside = [torch.nextafter(grid, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    return torch.cat((grid, *beside, wide.float(), within.float()), 1).T.contiguous()


def values_and_slopes(
    name: str, x: NDArray[np.float64], grid: NDArray[np.float64], degree: int, eta: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """B_m and dB_m/dx of one input, in float64, without lvkam: (N, K) each."""
    if name == "B-spline":
        # scipy wants end conditions: more knots on both sides, whose basis functions are left out
        outer = (grid[-1] - grid[0]) * (1 + np.arange(degree + 1))
        knots = np.concatenate((grid[0] - outer[::-1], grid, grid[-1] + outer))
        splines = BSpline(knots, np.eye(len(knots) - degree - 1), degree)
        x = np.clip(x, knots[degree], knots[-degree - 1])
        design = BSpline.design_matrix(x, knots, degree).toarray()
        return design[:, degree + 1 : -degree - 1], splines.derivative()(x)[:, degree + 1 : -degree - 1]
    width = eta * (grid[-1] - grid[0]) / (len(grid) - 1)
    distance = (x[:, None] - grid) / width
    if name == "RBF":
        bump = np.exp(-(distance**2) / 2)
        return bump, -distance * bump / width
    bump = 1 / np.cosh(distance) ** 2
    return bump, -2 * np.tanh(distance) * bump / width


def check_kernels(name: str, degree: int, grid_size: int, ratio: float, *, compile: bool) -> None:
    grid = extend_grid(adaptive_knots(nasty_inputs(), grid_size, ratio), degree).float()
    check_kernels_on(grid, name, degree, grid_size, compile)


def check_kernels_on(grid: Tensor, name: str, degree: int, grid_size: int, compile: bool) -> None:
    x, basis, knots = telling_points(grid), BASES[name], prepare_knots(grid, degree)
    base, lanes = torch.sin(x), basis.size(grid_size, degree) + 1
    bandwidth = torch.tensor(0.7) if basis.has_bandwidth else None
    backward = FunctionFamily(compiled=compile).kernel(features_backward)
    expected = [
        values_and_slopes(name, x[:, i].double().numpy(), grid[i].double().numpy(), degree, 0.7)
        for i in range(len(grid))
    ]
    values, slopes = (np.stack(parts, 1) for parts in zip(*expected, strict=True))  # (N, I, K)
    largest = np.abs(slopes).max((0, 2))[:, None]  # of each input

    def gradients_of(lane: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Of one feature at a time."""
        grad = torch.zeros(*x.shape, lanes)
        grad[..., lane] = 1
        return backward(x, base, knots, bandwidth, basis, grad)

    found, grad_x, grad_base, grad_bandwidth = gradients_of(-1)  # the base activation's, in which x does not appear
    assert torch.equal(found[..., -1], base)
    np.testing.assert_allclose(found[..., :-1].double().numpy(), values, atol=3e-6, rtol=0)
    assert (grad_x == 0).all()
    assert (grad_base == 1).all()
    assert bandwidth is None or grad_bandwidth == 0
    for lane in range(lanes - 1):
        again, grad_x, grad_base, grad_bandwidth = gradients_of(lane)
        assert torch.equal(again, found)
        assert (grad_base == 0).all()
        slope = slopes[..., lane]
        np.testing.assert_allclose(grad_x.T.double().numpy() / largest, slope.T / largest, atol=3e-6, rtol=0)
        assert (grad_bandwidth is None) == (bandwidth is None)
        if grad_bandwidth is not None:
            terms = -slope * (x.double() - grid[:, lane].double()).numpy() / 0.7
            # a compiled sum takes its thousands of terms one after another: a few times the rounding of torch's
            assert abs(float(grad_bandwidth) - terms.sum()) < (1e-5 if compile else 3e-6) * np.abs(terms).sum()
    if not compile:
        assert torch.equal(features(x, base, knots, bandwidth, basis, torch.float32), found)
        assert torch.equal(features(x, base, knots, bandwidth, basis, torch.bfloat16), found.bfloat16())


@pytest.mark.parametrize("grid_size", [1, 2, 12, 50])
@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("name", sorted(BASES))
def test_kernels_are_exact_on_every_grid_of_an_update(name: str, degree: int, grid_size: int) -> None:
    for ratio in (0.0, 0.05, 1.0):
        check_kernels(name, degree, grid_size, ratio, compile=False)


@pytest.mark.parametrize(
    ("name", "degree", "grid_size"),
    # kernels of degree 3 on 6 intervals serve other tests too; each of the others is compiled for this test alone
    [("B-spline", 3, 6), ("B-spline", 3, 1), ("RBF", 3, 6), ("RSWAF", 3, 6),
     *(pytest.param("B-spline", *sizes, marks=pytest.mark.slow) for sizes in ((1, 50), (2, 12), (4, 12), (5, 12)))],
)  # fmt: skip
def test_compiled_kernels_are_exact_on_every_grid_of_an_update(name: str, degree: int, grid_size: int) -> None:
    require_compiler()
    for ratio in (0.0, 0.05, 1.0):
        check_kernels(name, degree, grid_size, ratio, compile=True)


@pytest.mark.parametrize("degree", DEGREES)
def test_kernels_and_slow_path_are_the_same_function(degree: int) -> None:
    """In float64, where nothing is lost: the kernels, by autograd of the plain bases."""
    grid = extend_grid(adaptive_knots(nasty_inputs()[:, 3:9], 12, 0.05), degree)
    x = telling_points(grid.float()).double().requires_grad_()
    knots = prepare_knots(grid, degree)
    for basis in BASES.values():
        eta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True) if basis.has_bandwidth else None
        plain = basis.evaluate(x, grid, degree, eta)
        grad = torch.randn(*x.shape, plain.shape[2] + 1, dtype=torch.float64, generator=stream(33))
        found, grad_x, _, grad_bandwidth = features_backward(
            x.detach(), torch.zeros_like(x), knots, None if eta is None else eta.detach(), basis, grad
        )
        assert found is not None
        np.testing.assert_allclose(found[..., :-1].numpy(), plain.detach().numpy(), atol=1e-12)
        wanted = torch.autograd.grad((plain * grad[..., :-1]).sum(), [x] if eta is None else [x, eta])
        scale = wanted[0].abs().amax(0)
        np.testing.assert_allclose((grad_x / scale).numpy(), (wanted[0] / scale).numpy(), atol=1e-11)
        if eta is not None:
            np.testing.assert_allclose(np.asarray(grad_bandwidth), wanted[1].numpy(), rtol=1e-9)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_equally_spaced_knots_are_told_from_others(degree: int) -> None:
    """Of which kernels use closed forms; hats are shorter as they are."""
    grid = extend_grid(uniform_knots(3, 12, (-2.0, 2.0)), degree).float()
    middles = prepare_knots(grid, degree).middles
    assert (middles is None) == (degree == 1)
    if middles is not None:
        peaks = b_spline_basis(middles[:, : 12 + degree].T.double(), grid.double(), degree)
        assert (peaks.argmax(-1) == torch.arange(12 + degree)[:, None]).all()
    grid[1, 5] += 1e-5
    assert prepare_knots(grid, degree).middles is None


@pytest.mark.parametrize("degree", [2, 3, 4, 5])
@pytest.mark.parametrize("compile", [False, True])
def test_kernels_are_exact_on_equally_spaced_knots(degree: int, compile: bool) -> None:
    check_kernels_on(extend_grid(uniform_knots(2, 12, (-2.0, 2.0)), degree).float(), "B-spline", degree, 12, compile)


def test_prepared_knots_are_those_of_the_grid() -> None:
    grid = extend_grid(torch.tensor([[0.0, 1.0, 4.0], [1.0, 1.5, 2.0]]), 2)
    knots = prepare_knots(grid, 2)
    np.testing.assert_allclose(knots.grid.numpy(), [[-4, -2, 0, 1, 4, 6, 8, 10], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]])
    np.testing.assert_allclose(knots.inverse_spacing.numpy(), [[0.5], [2]])
    assert len(knots.inverse_spans) == 2
    for degree, spans in enumerate(knots.inverse_spans, start=1):
        expected = 1 / (knots.grid.numpy()[:, degree:] - knots.grid.numpy()[:, :-degree])
        np.testing.assert_allclose(spans.numpy(), expected)
