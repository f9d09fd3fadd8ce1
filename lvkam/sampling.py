"""Samplers and resamplers as pure tensor functions: uniform numbers in, samples out.

Univariate densities are given by their logarithm l at nodes x_0 < ... < x_(n-1) and interpolated linearly in
between, so that a cell's mass and the inverse of its CDF are closed forms: with s = l_(c+1) - l_c,

    mass_c = (x_(c+1) - x_c) (exp(l_(c+1)) - exp(l_c)) / s
    z      = x_c + (x_(c+1) - x_c) log(1 + r (exp(s) - 1)) / s,   r uniform in [0, 1]

Letters: n nodes, Q latent coordinates, P mixture components, N draws, B images, S samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LAST_UNIFORM = 1 - 2.0**-32
"""Uniform numbers stop here: the next row of a table begins at 1."""

_GENTLE = 0.25
"""Where |s| is below, a series stands in for the closed form, which divides a small difference by s."""

_FLATTEST = 1e-30
"""|s| of a flat cell: small enough to make no difference, and not zero."""


class CellTable(NamedTuple):
    """Q x P piecewise log-linear densities, integrated."""

    nodes: Tensor
    """(Q, n), non-decreasing."""
    log_density: Tensor
    """(Q, P, n), not normalised."""
    log_normaliser: Tensor
    """log of the integral, (Q, P)."""
    node_share: Tensor
    """Derivative of `log_normaliser` with respect to `log_density`, (Q, P, n); sums to one over n."""
    cdf: Tensor
    """(Q*P, n), float64; row r goes from r to r+1, so that the rows laid end to end increase."""


def tabulate(nodes: Tensor, log_density: Tensor) -> CellTable:
    """Integrate each density, once for all its draws; without gradient.

    Args:
        nodes: (Q, n), non-decreasing.
        log_density: (Q, P, n), finite.
    """
    log_density = log_density.detach()
    peak = log_density.amax(-1, keepdim=True)
    density = torch.exp(log_density - peak)
    slope = log_density.diff(dim=-1)  # s, (Q, P, n-1)
    # Seen from its higher end a cell falls by the factor e^-a, a = |s|: no exponential can overflow. The tables
    # are large: intermediate results are overwritten, and branches, which a CPU mispredicts, are arithmetic.
    a = slope.abs().clamp_(min=_FLATTEST)
    mean = torch.expm1(-a).neg_().div_(a)  # mean density, the higher end being 1: (1 - e^-a) / a
    # what of it leans to the higher end: the mean of (t - 1/2) e^(-a (1 - t)), or (1 - mean) / a - mean / 2
    small = a.clamp(max=_GENTLE)
    series = small * (1 / 12 - small * (1 / 24 - small * (1 / 80 - small * (1 / 360))))
    lean = torch.lerp((1 - mean).div_(a).sub_(mean, alpha=0.5), series, (a < _GENTLE).to(a.dtype))

    width = nodes.diff(dim=-1).unsqueeze(1)  # (Q, 1, n-1)
    scale = torch.maximum(density[..., :-1], density[..., 1:]).mul_(width)
    mass = mean.mul_(scale)
    lean = lean.mul_(scale).copysign_(slope)  # to the right end
    total = mass.sum(-1, keepdim=True)
    share = torch.empty_like(density)
    share[..., 0] = 0
    torch.add(lean, mass, alpha=0.5, out=share[..., 1:])
    share[..., :-1] += torch.sub(mass, lean, alpha=2).mul_(0.5)
    return CellTable(
        nodes,
        log_density,
        (peak + total.log()).squeeze(-1),
        share.div_(total),
        _stacked_cdf(mass.flatten(0, 1)),
    )


def _stacked_cdf(mass: Tensor) -> Tensor:
    """Normalised cumulative sums, row r from r to exactly r+1: (R, n) -> (R, n+1), float64."""
    rows, length = mass.shape
    cdf = mass.new_empty(rows, length + 1, dtype=torch.float64)
    cdf[:, 0] = 0
    torch.cumsum(mass, -1, dtype=torch.float64, out=cdf[:, 1:])
    row = torch.arange(rows, dtype=torch.float64, device=mass.device).unsqueeze(1)
    return cdf.div_(cdf[:, -1:].clone()).add_(row)


def _search_rows(cdf: Tensor, row: Tensor, uniform: Tensor) -> Tensor:
    """The cell of the given row in which a uniform number falls; never one without mass.

    Args:
        cdf: from `_stacked_cdf`, (R, n+1).
        row: (...), int64.
        uniform: (...), float64, in [0, 1].

    Returns:
        (...), int64, from 0 to n-1.
    """
    place = row + uniform.clamp(0, _LAST_UNIFORM)
    found = torch.searchsorted(cdf.flatten(), place, right=True) - 1
    return (found - row * cdf.shape[1]).clamp(0, cdf.shape[1] - 2)


def choose_components(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw a mixture component for each coordinate by inverting its cumulative weights.

    Args:
        weights: (Q, P), non-negative; each row is normalised here, so that rounding cannot point past its end.
        uniform: (N, Q), float64, in [0, 1].

    Returns:
        (N, Q), int64, in 0..P-1.
    """
    rows = torch.arange(weights.shape[0], device=weights.device)
    return _search_rows(_stacked_cdf(weights), rows.expand_as(uniform), uniform)


def inverse_transform(table: CellTable, component: Tensor, uniform: Tensor) -> Tensor:
    """Draw from the chosen component of each coordinate: z = CDF^-1(u), exact for the table's density.

    Args:
        table: tabulated densities of Q coordinates and P components.
        component: (N, Q), int64.
        uniform: (N, Q), float64, in [0, 1].

    Returns:
        (N, Q), of the dtype of the nodes, inside their range.
    """
    num_components, length = table.log_density.shape[1:]
    q = torch.arange(table.nodes.shape[0], device=table.nodes.device)
    row = q * num_components + component
    cell = _search_rows(table.cdf, row, uniform)
    below, above = table.cdf[row, cell], table.cdf[row, cell + 1]
    log_density = table.log_density.view(-1, length)
    slope = (log_density[row, cell + 1] - log_density[row, cell]).double()
    r = ((row + uniform - below) / (above - below)).clamp(0, 1)
    # an upward slope is drawn as its mirror image, so that no exponential can overflow
    up = slope > 0
    steepness = slope.abs()
    r = torch.where(up, 1 - r, r)
    flat = steepness < 1e-9
    position = -torch.log1p(r * torch.expm1(-steepness)) / torch.where(flat, 1.0, steepness)
    # past what log1p can resolve at r = 1 it gives infinity: the far end of the cell
    position = torch.where(flat, r, position).clamp(0, 1)
    position = torch.where(up, 1 - position, position)
    left, right = table.nodes[q, cell], table.nodes[q, cell + 1]
    z = torch.lerp(left.double(), right.double(), position).to(table.nodes.dtype)
    return torch.minimum(torch.maximum(z, left), right)


def importance_weights(log_likelihood: Tensor) -> Tensor:
    """Self-normalised weights of shared prior samples: softmax over s of l_bs, (B, S) -> (B, S)."""
    return torch.softmax(log_likelihood, dim=-1)


def effective_sample_size(weights: Tensor) -> Tensor:
    """1 / sum_s w_bs^2: how many equally weighted samples the weights are worth, (B, S) -> (B,)."""
    return 1 / weights.square().sum(-1)


def stratified_resample(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw n indices of each row, one from each of n equal strata of its cumulative weights.

    Unbiased: index s is drawn n * w_s times on average, and never off by 2 or more (Douc and Cappe 2005).

    Args:
        weights: (B, S), non-negative, each row with a positive sum, which need not be 1.
        uniform: (B, n), float64, in [0, 1].

    Returns:
        (B, n), int64, in 0..S-1, non-decreasing along each row.
    """
    strata = torch.arange(uniform.shape[1], device=uniform.device)
    rows = torch.arange(weights.shape[0], device=weights.device).unsqueeze(1)
    return _search_rows(_stacked_cdf(weights), rows, (strata + uniform) / uniform.shape[1])


def systematic_resample(weights: Tensor, uniform: Tensor, num_draws: int) -> Tensor:
    """As `stratified_resample`, with one uniform number (B, 1) for all strata of a row."""
    return stratified_resample(weights, uniform.expand(-1, num_draws))


def residual_resample(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw index s floor(n w_s) times for certain, and the remaining draws by the remainders.

    Arguments and result are those of `stratified_resample`; the certain draws come first.
    """
    num_draws = uniform.shape[1]
    expected = weights.double() * (num_draws / weights.double().sum(-1, keepdim=True))
    # an expectation that rounding left just under a whole number is that number
    certain = torch.floor(expected + 1e-9)
    remainder = (expected - certain).clamp(min=0)
    remainder = torch.where(remainder.sum(-1, keepdim=True) > 0, remainder, weights.double())
    rows = torch.arange(weights.shape[0], device=weights.device).unsqueeze(1)
    drawn = _search_rows(_stacked_cdf(remainder), rows, uniform)
    position = torch.arange(num_draws, dtype=torch.float64, device=weights.device).expand_as(uniform)
    copies = torch.searchsorted(certain.cumsum(-1), position.contiguous(), right=True)
    return torch.where(copies < weights.shape[1], copies, drawn)
