"""Bases of univariate functions on one grid per input, and their least-squares fit.

    s_io(x) = sum_m coef[i, m, o] B_m(x; grid_i)

    B-spline   B_m = w_m B_m^(k-1) + (1 - w_(m+1)) B_(m+1)^(k-1),   w_m(x) = (x - t_m) / (t_(m+k) - t_m)
               on equally spaced knots sum_j (-1)^j binomial(k+1, j) max(0, (k+1)/2 - j - |u|)^k / k!,
               u being the distance from the middle of its support, in knots, and j < (k+1)/2
    RBF        exp(-((x - t_m) / (h eta))^2 / 2)
    RSWAF      1 - tanh^2((x - t_m) / (h eta))

Letters: N points, I inputs, O outputs, G grid intervals, k spline degree, t the M = G + 1 + 2k extended
knots of an input, h their mean spacing, eta the bandwidth, K basis functions (G + k B-splines; M otherwise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_UPDATE_RATIO = 0.01
"""Share of equally spaced knots below which an adaptive grid never goes, so that every gap is at least
this share of the mean gap, however often an input repeats."""

MIN_SPAN, MIN_GAP = 1e-3, 1e-6
"""Smallest width of an adaptive grid and of its narrowest gap, relative to max(1, |x|): several float32 steps."""

EVEN = 2e-6
"""Knots whose gaps differ by less, relative to the mean gap, are equally spaced: B-splines change by as little."""

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

    >>> extend_grid(torch.tensor([[0.0, 1.0, 4.0]]), degree=2).tolist()
    [[-4.0, -2.0, 0.0, 1.0, 4.0, 6.0, 8.0]]
    """
    spacing = (knots[:, -1:] - knots[:, :1]) / (knots.shape[1] - 1)
    steps = spacing * torch.arange(1, degree + 1, dtype=knots.dtype, device=knots.device)  # (I, k)
    return torch.cat((knots[:, :1] - steps.flip(1), knots, knots[:, -1:] + steps), dim=1)


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
    spans = tuple(1 / (grid[:, d:] - grid[:, :-d]) for d in range(1, degree + 1))
    return _recursion(x, grid, spans)[-1].permute(1, 2, 0)


def _recursion(x: Tensor, grid: Tensor, inverse_spans: Sequence[Tensor]) -> list[Tensor]:
    """B_m^(d) of the degrees d = 0, ..., k, the basis index first, so that each step runs over contiguous memory.

    Args:
        x: (N, I).
        grid: (I, M).
        inverse_spans: 1 / (t_(m+d) - t_m) for d = 1, ..., k, (I, M-d) each.

    Returns:
        (M-1-d, N, I) each.
    """
    distance = x - grid.T.unsqueeze(1)  # (M, N, I)
    not_left = (distance >= 0).to(x.dtype)
    levels = [not_left[:-1] - not_left[1:]]
    for d, inverse_span in enumerate(inverse_spans, start=1):
        weight, lower = distance[:-d] * inverse_span.T.unsqueeze(1), levels[-1]
        levels.append(torch.addcmul(weight[:-1] * lower[:-1] + lower[1:], weight[1:], lower[1:], value=-1))
    return levels


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
    return _rbf_with_slope(x, prepare_knots(grid, degree), bandwidth)[0][..., :-1]


def rswaf_basis(x: Tensor, grid: Tensor, degree: int, bandwidth: Tensor | None = None) -> Tensor:
    """Reflectional switch bumps 1 - tanh^2((x - t_m) / (h eta)), one at each extended knot.

    Arguments and result are those of `rbf_basis`.
    """
    return _rswaf_with_slope(x, prepare_knots(grid, degree), bandwidth)[0][..., :-1]


class Knots(NamedTuple):
    """A grid prepared for the kernels: what changes only when the grid does.

    One more knot gives the kernels K + 1 lanes: the last one is where the base activation goes.
    """

    grid: Tensor
    """(I, M+1)."""
    inverse_spans: tuple[Tensor, ...]
    """1 / (t_(m+d) - t_m) for d = 1, ..., k, (I, M+1-d) each."""
    inverse_spacing: Tensor
    """1 / h, (I, 1)."""
    middles: Tensor | None
    """Of the supports of B-splines, (I, K+1), where all knots are equally spaced and k >= 2; else None."""


def prepare_knots(grid: Tensor, degree: int) -> Knots:
    """Extended grids, (I, M), prepared."""
    spacing = (grid[:, -1:] - grid[:, :1]) / (grid.shape[1] - 1)
    uneven = (grid.diff(dim=1) - spacing).abs() > EVEN * spacing
    is_even = degree >= 2 and not uneven.any()
    grid = torch.cat((grid, grid[:, -1:] + spacing), dim=1)
    spans = tuple(1 / (grid[:, d:] - grid[:, :-d]) for d in range(1, degree + 1))
    middles = grid[:, : -degree - 1] + spacing * (degree + 1) / 2 if is_even else None
    return Knots(grid, spans, 1 / spacing, middles)


def _b_spline_with_slope(x: Tensor, knots: Knots, bandwidth: Tensor | None) -> tuple[Tensor, Tensor]:
    """dB_m/dx = k (B_m^(k-1) / (t_(m+k) - t_m) - B_(m+1)^(k-1) / (t_(m+k+1) - t_(m+1)))."""
    grid, spans, inverse_spacing, middles = knots
    degree = len(spans)
    if middles is not None:
        basis, slope = _cardinal_with_slope((x.unsqueeze(-1) - middles) * inverse_spacing, degree)
        return basis, slope * inverse_spacing
    if not torch.compiler.is_compiling():
        *_, lower, basis = _recursion(x, grid, spans)
        slope = lower * (degree * spans[-1].T.unsqueeze(1))
        return basis.permute(1, 2, 0), (slope[:-1] - slope[1:]).permute(1, 2, 0)
    # The same recursion in lists of (N, I, K+1), an entry for each shift of the knots: compiled, each lane goes
    # through all degrees by itself and nothing leaves the registers.
    lanes = grid.shape[1] - 1 - degree

    def shifted(tensor: Tensor, count: int) -> list[Tensor]:
        return [tensor[:, j : j + lanes] for j in range(count)]

    distance = [x.unsqueeze(-1) - t for t in shifted(grid, degree + 2)]
    lower, basis = [], [((a >= 0) & (b < 0)).to(x.dtype) for a, b in pairwise(distance)]
    for d, span in enumerate(spans):
        weight = [d * s for d, s in zip(distance, shifted(span, len(basis)), strict=False)]
        lower = basis
        if d == 0:  # hats take fewer operations than two indicators with their weights
            basis = [torch.minimum(w, 1 - v).clamp(min=0) for w, v in pairwise(weight)]
        else:
            basis = [w * a + (1 - v) * b for (w, v), (a, b) in zip(pairwise(weight), pairwise(lower), strict=True)]
    left, right = shifted(spans[-1], 2)
    return basis[0], degree * (lower[0] * left - lower[1] * right)


def _cardinal_with_slope(u: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """The B-spline of knots one apart around zero, of degree 2 or more, and its derivative: (...) -> (...).

    Schoenberg 1946: by the symmetry in u half of the truncated powers do; several times fewer operations than the
    recursion takes.
    """
    half, distance = (degree + 1) / 2, u.abs()
    values, slopes = [], []
    for j in range(math.ceil(half)):
        factor = (-1) ** j * math.comb(degree + 1, j) / math.factorial(degree)
        inside = (half - j - distance).clamp(min=0)
        power = math.prod([inside] * (degree - 2), start=inside)
        slopes.append((factor * -degree) * power)
        values.append(factor * (power * inside))
    return sum(values[1:], values[0]), sum(slopes[1:], slopes[0]) * u.sign()


def _scaled_distance(x: Tensor, knots: Knots, bandwidth: Tensor | None) -> tuple[Tensor, Tensor]:
    """(x - t_m) / (h eta), (N, I, M+1), and 1 / (h eta), (I, 1)."""
    inverse = knots.inverse_spacing if bandwidth is None else knots.inverse_spacing / bandwidth
    return (x.unsqueeze(-1) - knots.grid) * inverse, inverse


SMALLEST_BUMP = 1e-12
"""Bumps end where they are lower: no float32 sum tells it from zero beside their height of 1, and the denormal
numbers further out make a CPU many times slower."""


def _rbf_with_slope(x: Tensor, knots: Knots, bandwidth: Tensor | None) -> tuple[Tensor, Tensor]:
    """dB_m/dx = -(x - t_m) B_m / (h eta)^2."""
    distance, inverse = _scaled_distance(x, knots, bandwidth)
    basis = F.threshold(torch.exp(-0.5 * distance.square()), SMALLEST_BUMP, 0.0)
    return basis, -distance * basis * inverse


def _rswaf_with_slope(x: Tensor, knots: Knots, bandwidth: Tensor | None) -> tuple[Tensor, Tensor]:
    """dB_m/dx = -2 tanh((x - t_m) / (h eta)) B_m / (h eta)."""
    distance, inverse = _scaled_distance(x, knots, bandwidth)
    tanh = torch.tanh(distance)
    basis = 1 - tanh.square()
    return basis, -2 * tanh * basis * inverse


class Basis(NamedTuple):
    """A family of basis functions."""

    evaluate: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
    """(x, grid, degree, bandwidth) -> (N, I, K): plain, in any precision, differentiable as often as wanted."""
    with_slope: Callable[[Tensor, Knots, Tensor | None], tuple[Tensor, Tensor]]
    """(x, knots, bandwidth) -> B_m and dB_m/dx, (N, I, K+1) each, of which the last lane means nothing."""
    size: Callable[[int, int], int]
    """(G, k) -> K."""
    has_bandwidth: bool


def _num_knots(grid_size: int, degree: int) -> int:
    return grid_size + 1 + 2 * degree


BASES = {
    "B-spline": Basis(b_spline_basis, _b_spline_with_slope, lambda grid_size, degree: grid_size + degree, False),
    "RBF": Basis(rbf_basis, _rbf_with_slope, _num_knots, True),
    "RSWAF": Basis(rswaf_basis, _rswaf_with_slope, _num_knots, True),
}


def features(
    x: Tensor, base: Tensor, knots: Knots, bandwidth: Tensor | None, basis: Basis, dtype: torch.dtype
) -> Tensor:
    """(B_1, ..., B_K, b) of each input, without gradient: a kernel, as it is or compiled.

    Args:
        x: (N, I).
        base: b(x), (N, I).
        knots: of the I inputs.
        bandwidth: eta, scalar; 1 if None.
        basis: the family.
        dtype: of the result.

    Returns:
        (N, I, K+1).
    """
    values, _ = basis.with_slope(x, knots, bandwidth)
    values[..., -1] = base
    return values.to(dtype)


def features_backward(
    x: Tensor,
    base: Tensor,
    knots: Knots,
    bandwidth: Tensor | None,
    basis: Basis,
    grad: Tensor,
    again: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """What a gradient with respect to the features, (N, I, K+1), means for their arguments, and the features again.

    Returns:
        Features (N, I, K+1), of the dtype of `grad`, if wanted `again`; gradients of x and base, (N, I), and of the
        bandwidth, ().
    """
    values, slope = basis.with_slope(x, knots, bandwidth)
    values[..., -1] = base
    slope[..., -1] = 0
    product = grad * slope
    grad_bandwidth = None
    if bandwidth is not None:  # B depends on (x - t) / eta alone
        grad_bandwidth = -(product * (x.unsqueeze(-1) - knots.grid)).sum() / bandwidth
    return values.to(grad.dtype) if again else None, product.sum(-1), grad[..., -1].to(x.dtype), grad_bandwidth


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
