"""Bases of univariate functions on one grid per input, and their least-squares fit.

    s_io(x) = sum_m coef[i, m, o] B_m(x; grid_i)

    B-spline   B_m = w_m B_m^(k-1) + (1 - w_(m+1)) B_(m+1)^(k-1),   w_m(x) = (x - t_m) / (t_(m+k) - t_m)
    RBF        exp(-((x - t_m) / (h eta))^2 / 2)
    RSWAF      1 - tanh^2((x - t_m) / (h eta))

Letters: N points, I inputs, O outputs, G grid intervals, k spline degree, t the M = G + 1 + 2k extended
knots of an input, h their mean spacing, eta the bandwidth, K basis functions (G + k B-splines; M otherwise).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MIN_UPDATE_RATIO = 0.01
"""Share of equally spaced knots below which an adaptive grid never goes, so that every gap is at least
this share of the mean gap, however often an input repeats."""

MIN_SPAN, MIN_GAP = 1e-3, 1e-6
"""Smallest width of an adaptive grid and of its narrowest gap, relative to max(1, |x|): several float32 steps."""

FIT_RCOND = 1e-6
"""Singular values of a design matrix under this share of the largest count as zero: what the points do
not determine is fitted with the smallest coefficients, which float32 can hold."""


def uniform_knots(num_inputs: int, grid_size: int, grid_range: tuple[float, float]) -> Tensor:
    """G + 1 equally spaced knots for each input.

    Returns:
        (I, G+1), float64.
    """
    return torch.linspace(*grid_range, grid_size + 1, dtype=torch.float64).repeat(num_inputs, 1)


def adaptive_knots(x: Tensor, grid_size: int, ratio: float) -> Tensor:
    """Knots at equal quantiles of the inputs, blended with equally spaced ones.

    The idea of pykan's grid update: ratio * uniform + (1 - ratio) * adaptive. Knots are strictly increasing
    for any finite inputs, constant and repeated ones included.

    Args:
        x: inputs, (N, I), N >= 1.
        grid_size: G.
        ratio: share of the equally spaced knots, in [0, 1]; at least `MIN_UPDATE_RATIO` is used.

    Returns:
        (I, G+1), float64.
    """
    x = x.double()
    steps = torch.linspace(0, 1, grid_size + 1, dtype=x.dtype, device=x.device)
    adaptive = torch.quantile(x, steps, dim=0)  # (G+1, I)
    low, high = adaptive[0], adaptive[-1]
    ratio = max(ratio, MIN_UPDATE_RATIO)
    min_span = max(MIN_SPAN, MIN_GAP * grid_size / ratio) * torch.maximum(low.abs(), high.abs()).clamp(min=1)
    widening = (min_span - (high - low)).clamp(min=0) / 2
    low, high = low - widening, high + widening
    adaptive = torch.cat((low[None], adaptive[1:-1], high[None]))
    uniform = low + steps[:, None] * (high - low)
    return torch.lerp(adaptive, uniform, ratio).T.contiguous()


def extend_grid(knots: Tensor, degree: int) -> Tensor:
    """Add k knots at both ends, at the mean spacing of each input's knots.

    Args:
        knots: (I, G+1), increasing.
        degree: k.

    Returns:
        (I, G+1+2k), of the dtype of `knots`.
    """
    spacing = (knots[:, -1:] - knots[:, :1]) / (knots.shape[1] - 1)
    steps = spacing * torch.arange(1, degree + 1, dtype=knots.dtype, device=knots.device)  # (I, k)
    return torch.cat((knots[:, :1] - steps.flip(1), knots, knots[:, -1:] + steps), dim=1)


class _BSplineBasis(torch.autograd.Function):
    """The Cox-de Boor recursion, whose backward keeps nothing but x.

    The derivative is itself made of splines one degree lower, so it is recomputed rather than stored, and can
    be differentiated again. The basis index comes first, (K, N, I): every step of the recursion then runs over
    contiguous memory.
    """

    @staticmethod
    def forward(ctx, x: Tensor, knots: Tensor, degree: int) -> Tensor:
        # x (N, I), knots (M, 1, I) -> (K, N, I)
        ctx.save_for_backward(x, knots)
        ctx.degree = degree
        not_left = (x >= knots).to(x.dtype)
        basis = not_left[:-1] - not_left[1:]
        for d in range(1, degree + 1):
            weight = (x - knots[:-d]) / (knots[d:] - knots[:-d])
            basis = torch.addcmul(weight[:-1] * basis[:-1] + basis[1:], weight[1:], basis[1:], value=-1)
        return basis

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        x, knots = ctx.saved_tensors
        k = ctx.degree
        if k == 0 or not ctx.needs_input_grad[0]:
            return None, None, None
        lower = _BSplineBasis.apply(x, knots, k - 1) * (k / (knots[k:] - knots[:-k]))  # (K+1, N, I)
        return (grad_outputs[0] * (lower[:-1] - lower[1:])).sum(0), None, None


def b_spline_basis(x: Tensor, grid: Tensor, degree: int, bandwidth: Tensor | None = None) -> Tensor:
    """B-splines of degree k on the extended grid of each input, zero outside their support.

    De Boor, A Practical Guide to Splines, chapter IX. Inside the grid they sum to one.

    Args:
        x: (N, I).
        grid: extended knots, (I, M), strictly increasing; no gradient flows into them.
        degree: k >= 0.
        bandwidth: has no meaning here; the three bases share one signature.

    Returns:
        (N, I, K), K = M - 1 - k.
    """
    return _BSplineBasis.apply(x, grid.T.unsqueeze(1), degree).permute(1, 2, 0)


def _scaled_distance(x: Tensor, grid: Tensor, bandwidth: Tensor | None) -> Tensor:
    """(x - t_m) / (h eta): (N, I, M)."""
    spacing = (grid[:, -1:] - grid[:, :1]) / (grid.shape[1] - 1)
    scale = spacing if bandwidth is None else spacing * bandwidth
    return (x.unsqueeze(-1) - grid) / scale


def rbf_basis(x: Tensor, grid: Tensor, degree: int, bandwidth: Tensor | None = None) -> Tensor:
    """Gaussian bumps exp(-((x - t_m) / (h eta))^2 / 2), one at each extended knot.

    Args:
        x: (N, I).
        grid: extended knots, (I, M).
        degree: acts only through the number of extended knots.
        bandwidth: eta > 0, scalar; 1 if None.

    Returns:
        (N, I, M).
    """
    return torch.exp(-0.5 * _scaled_distance(x, grid, bandwidth).square())


def rswaf_basis(x: Tensor, grid: Tensor, degree: int, bandwidth: Tensor | None = None) -> Tensor:
    """Reflectional switch bumps 1 - tanh^2((x - t_m) / (h eta)), one at each extended knot.

    Arguments and result are those of `rbf_basis`.
    """
    return 1 - torch.tanh(_scaled_distance(x, grid, bandwidth)).square()


class Basis(NamedTuple):
    """A family of basis functions."""

    evaluate: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
    """(x, grid, degree, bandwidth) -> (N, I, K)."""
    size: Callable[[int, int], int]
    """(G, k) -> K."""
    has_bandwidth: bool


BASES = {
    "B-spline": Basis(b_spline_basis, lambda grid_size, degree: grid_size + degree, has_bandwidth=False),
    "RBF": Basis(rbf_basis, lambda grid_size, degree: grid_size + 1 + 2 * degree, has_bandwidth=True),
    "RSWAF": Basis(rswaf_basis, lambda grid_size, degree: grid_size + 1 + 2 * degree, has_bandwidth=True),
}


def evaluate_spline(basis: Tensor, coef: Tensor) -> Tensor:
    """s_io(x_ni) = sum_m basis[n, i, m] coef[i, m, o].

    Args:
        basis: (N, I, K).
        coef: (I, K, O).

    Returns:
        (N, I, O), not summed over the inputs.
    """
    return torch.matmul(basis.transpose(0, 1), coef).transpose(0, 1)


def fit_coefficients(basis: Tensor, values: Tensor) -> Tensor:
    """Least squares: the coefficients whose splines pass closest to the given values.

    Solved in float64 by singular values, on the CPU, where the solver handles deficient rank. Directions that
    the points leave undetermined (`FIT_RCOND`) get the smallest coefficients.

    Args:
        basis: (N, I, K).
        values: (N, I, O).

    Returns:
        (I, K, O), float64, on the device of `basis`.

    Raises:
        FloatingPointError: a number is not finite.
    """
    design = basis.detach().double().cpu().transpose(0, 1)  # (I, N, K)
    target = values.detach().double().cpu().transpose(0, 1)  # (I, N, O)
    if not (design.isfinite().all() and target.isfinite().all()):
        raise FloatingPointError("spline fit: a basis function or a value is not finite")
    solution = torch.linalg.lstsq(design, target, rcond=FIT_RCOND, driver="gelsd").solution
    return solution.to(basis.device)
