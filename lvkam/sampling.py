"""Samplers and resamplers as pure tensor functions: uniform numbers in, samples out.

Univariate densities are given by their logarithm l at nodes x_0 < ... < x_C and interpolated linearly in
between, so that a cell's mass and the inverse of its CDF are closed forms: with d = exp(l), s = l_(c+1) - l_c,

    mass_c = (x_(c+1) - x_c) (d_(c+1) - d_c) / s
    z      = x_c + (x_(c+1) - x_c) log(1 + r (exp(s) - 1)) / s,   r uniform in [0, 1]

Letters: n nodes, C cells, Q latent coordinates, P mixture components, N draws, B images, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LAST_UNIFORM = 1 - 2.0**-32
"""Uniform numbers stop here: the next row of a table begins at 1."""

BLOCK = 16
"""Cells whose masses are summed in a table; a draw finds its block, and then its cell there."""

_GENTLE = {torch.float32: 0.5, torch.float64: 0.05}
"""Where |s| is below, a series stands in for the closed form, which divides a small difference by s."""

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What makes the function that runs of the one that is written."""


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Not compiled."""
    return function


class CellTable(NamedTuple):
    """Q x P piecewise log-linear densities, integrated."""

    nodes: Tensor
    """(Q, n), non-decreasing; the first and the last are repeated, so that n - 1 = C is a multiple of `BLOCK`."""
    log_density: Tensor
    """(Q, P, n), not normalised."""
    log_normaliser: Tensor
    """log of the integral, (Q, P)."""
    cell_cdf: Tensor
    """Mass of each block's cells up to each of them, up to a factor for each density: (Q, P, C/BLOCK, BLOCK)."""
    node_mass: Tensor
    """Derivative of the integral with respect to `log_density`, but at the end nodes, where it is zero, up to a
    factor for each density: (Q, P, n-2)."""
    block_mass: Tensor
    """Of each block of cells, the whole density's being 1: (Q, P, C/BLOCK), float64."""


def repeat_ends(nodes: Tensor) -> Tensor:
    """Nodes as a table has them, cells without width being added at both ends: (..., n) -> (..., n')."""
    missing = -(nodes.shape[-1] + 1) % BLOCK
    last = nodes[..., -1:].expand(*nodes.shape[:-1], missing + 1)
    return torch.cat((nodes[..., :1], nodes, last), -1)


def tabulate(nodes: Tensor, log_density: Tensor, compiler: Compiler = as_written) -> CellTable:
    """Integrate each density, once for all its draws; without gradient.

    Args:
        nodes: (Q, n), as `repeat_ends` makes them.
        log_density: (Q, P, n), finite.
        compiler: for the kernel.
    """
    log_density = log_density.detach()
    peak, cell_mass, node_mass, block_mass = compiler(_integrate)(nodes, log_density)
    total = block_mass.sum(-1, keepdim=True, dtype=torch.float64)
    log_normaliser = peak + total.squeeze(-1).log().to(peak.dtype)
    cell_cdf = cell_mass.unflatten(-1, (-1, BLOCK)).cumsum(-1)
    return CellTable(nodes, log_density, log_normaliser, cell_cdf, node_mass, block_mass / total)


def log_integral(nodes: Tensor, log_density: Tensor) -> Tensor:
    """`log_normaliser` as `tabulate` has it, of the same arguments, but differentiable, as often as wanted: (Q, P)."""
    peak, _, _, block_mass = _integrate(nodes, log_density)
    return peak + block_mass.sum(-1).log()


def _integrate(nodes: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Highest log-density, (Q, P); by it masses of cells, (Q, P, C), inner nodes, (Q, P, n-2), and blocks."""
    peak = log_density.amax(-1, keepdim=True)
    mass, lean = _cells(nodes.unsqueeze(1), log_density, torch.exp(log_density - peak))
    node_mass = (mass / 2 + lean)[..., :-1] + (mass / 2 - lean)[..., 1:]
    return peak.squeeze(-1), mass, node_mass, mass.unflatten(-1, (-1, BLOCK)).sum(-1)


def _cells(nodes: Tensor, log_density: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Mass of each cell and its lean, what the right node has more of it than half: (..., n) -> (..., n-1)."""
    gentle = _GENTLE[nodes.dtype]
    slope, rise = log_density.diff(dim=-1), density.diff(dim=-1)
    middle = (density[..., :-1] + density[..., 1:]) / 2
    # mean density = middle tanh(s/2) / (s/2), lean = middle (1 - tanh(s/2) / (s/2)) / s, both by the series of the
    # tangent near s = 0
    is_gentle = slope.abs() < gentle
    small = slope.clamp(-gentle, gentle)
    square = small * small
    series = small * (1 / 12 - square * (1 / 120 - square * (17 / 20160 - square * (31 / 362880))))
    inverse = 1 / _choose(is_gentle, torch.ones_like(slope), slope)
    mean = _choose(is_gentle, middle * (1 - small * series), rise * inverse)
    lean = _choose(is_gentle, middle * series, (middle - mean) * inverse)
    width = nodes.diff(dim=-1)
    return mean * width, lean * width


def _choose(condition: Tensor, if_true: Tensor, if_false: Tensor) -> Tensor:
    """torch.where, by arithmetic where nothing is compiled: several times faster on a CPU."""
    if torch.compiler.is_compiling():
        return torch.where(condition, if_true, if_false)
    return torch.lerp(if_false, if_true, condition.to(if_true.dtype))


def component_means(table: CellTable, values: Tensor) -> Tensor:
    """Means of F functions, given at the nodes, under each density.

    They are the derivatives of `log_normaliser` with respect to the coefficients of a log-density that is a linear
    combination of the functions.

    Args:
        table: of n nodes.
        values: (Q, n, F).

    Returns:
        (Q, P, F).
    """
    return torch.bmm(table.node_mass, values[:, 1:-1]) / table.node_mass.sum(-1, keepdim=True)


def _search_rows(mass: Tensor, uniform: Tensor) -> Tensor:
    """Where in its row of masses each uniform number falls; never where there is no mass.

    Args:
        mass: (R, n), non-negative, each row with a positive sum.
        uniform: (R, m), float64, in [0, 1].

    Returns:
        (R, m), int64, from 0 to n-1.
    """
    rows, length = mass.shape
    row = torch.arange(rows, device=mass.device).unsqueeze(1)
    # cumulative sums, row r from r to exactly r+1: one search serves all rows
    cdf = mass.new_empty(rows, length + 1, dtype=torch.float64)
    cdf[:, 0] = 0
    torch.cumsum(mass, -1, dtype=torch.float64, out=cdf[:, 1:])
    cdf.div_(cdf[:, -1:].clone()).add_(row)
    found = torch.searchsorted(cdf.flatten(), row + uniform.clamp(0, _LAST_UNIFORM), right=True) - 1
    return (found - row * (length + 1)).clamp(0, length - 1)


def inverse_transform(
    table: CellTable,
    weights: Tensor,
    uniform: Tensor,
    compiler: Compiler = as_written,
    coordinates: Tensor | None = None,
) -> Tensor:
    """Draw from the mixture of each of m coordinates: a component by its weight, then z = CDF^-1(u) of its own, exact
    for its table.

    One uniform number serves for both: the blocks of all components of a coordinate stand in a row, each as wide as
    its mass in the mixture, and where in its block the number falls is uniform again.

    Args:
        table: tabulated densities of Q coordinates and P components.
        weights: (Q, P), non-negative; each row is normalised here.
        uniform: (N, m), float64, in [0, 1].
        compiler: for the kernel.
        coordinates: which ones, each draw's own, (N, m), in 0..Q-1; all Q in their order if None.

    Returns:
        (N, m), of the dtype of the nodes, inside their range.
    """
    if coordinates is None:
        coordinates = torch.arange(len(table.nodes), device=uniform.device).expand_as(uniform)
    mass = (weights.unsqueeze(-1) * table.block_mass).flatten(1)  # (Q, P C/BLOCK)
    block_cdf = mass.cumsum(-1)
    block_cdf = block_cdf / block_cdf[:, -1:]
    kernel, halvings = compiler(_draw), _halvings(block_cdf.shape[1])
    return kernel(table.nodes, table.log_density, table.cell_cdf, block_cdf, coordinates, uniform, halvings)


def _draw(
    nodes: Tensor,
    log_density: Tensor,
    cell_cdf: Tensor,
    block_cdf: Tensor,
    coordinates: Tensor,
    uniform: Tensor,
    halvings: int,
) -> Tensor:
    """Search for the block, then for the cell, then the place in it; elementwise, so that it is one loop if compiled.

    Args:
        nodes: (Q, n).
        log_density: (Q, P, n).
        cell_cdf: (Q, P, C/BLOCK, BLOCK).
        block_cdf: where blocks end, of all components together, increasing to 1: (Q, P C/BLOCK).
        coordinates: (...).
        uniform: (...).
        halvings: of the blocks; given, so that a kernel is compiled for them and for any number of blocks.
    """
    num_nodes, num_blocks = nodes.shape[1], cell_cdf.shape[2]
    row = block_cdf.shape[1] * coordinates  # where a coordinate's blocks begin
    block, share = _search(block_cdf.flatten(), row, block_cdf.shape[1], halvings, uniform.clamp(0, 1))
    cells = BLOCK * (row + block)
    aim = share.to(cell_cdf.dtype) * cell_cdf.flatten()[cells + BLOCK - 1]
    cell, r = _search(cell_cdf.flatten(), cells, BLOCK, _halvings(BLOCK), aim)

    component, left = block // num_blocks, BLOCK * (block % num_blocks) + cell
    x = num_nodes * coordinates + left
    density = num_nodes * (log_density.shape[1] * coordinates + component) + left
    start, end = nodes.flatten()[x], nodes.flatten()[x + 1]
    slope = (log_density.flatten()[density + 1] - log_density.flatten()[density]).double()
    # an upward slope is drawn as its mirror image, so that no exponential can overflow
    up = slope > 0
    steepness = slope.abs()
    r = torch.where(up, 1 - r.double(), r.double())
    flat = steepness < 1e-9
    position = -torch.log1p(r * torch.expm1(-steepness)) / torch.where(flat, 1.0, steepness)
    # past what log1p can resolve at r = 1 it gives infinity: the far end of the cell
    position = torch.where(flat, r, position).clamp(0, 1)
    position = torch.where(up, 1 - position, position)
    z = torch.lerp(start.double(), end.double(), position).to(start.dtype)
    return torch.minimum(torch.maximum(z, start), end)


def _halvings(length: int) -> int:
    """Steps of a bisection."""
    return (length - 1).bit_length()


def _search(cdf: Tensor, first: Tensor, length: int, halvings: int, aim: Tensor) -> tuple[Tensor, Tensor]:
    """By bisection, the interval in which each aim falls, never one without mass, and how far inside it lies.

    Args:
        cdf: where intervals end, those of many searches, (n,).
        first: where those of this search begin, (...).
        length: how many they are.
        halvings: `_halvings` of these.
        aim: from 0 to where the last one ends, (...), of the dtype of `cdf`.

    Returns:
        Which interval, from 0, and the share of its mass below the aim, in [0, 1]: (...), (...).
    """
    # at the very end the last one that has mass, not those after it, which end there too
    inside = torch.minimum(aim, cdf[first + length - 1] * (1 - torch.finfo(cdf.dtype).eps / 2))
    passed = torch.zeros_like(first)
    for halving in reversed(range(halvings)):
        further = passed + 2**halving
        # the last one is never passed
        is_passed = (further < length) & (cdf[first + further.clamp(max=length) - 1] <= inside)
        passed = torch.where(is_passed, further, passed)
    below = torch.where(passed > 0, cdf[(first + passed - 1).clamp(min=0)], 0.0)
    return passed, ((aim - below) / (cdf[first + passed] - below)).clamp(0, 1)


def importance_weights(log_likelihood: Tensor) -> Tensor:
    """Self-normalised weights of shared prior samples: softmax over s of l_bs, (B, S) -> (B, S)."""
    return torch.softmax(log_likelihood, dim=-1)


def effective_sample_size(weights: Tensor) -> Tensor:
    """1 / sum_s w_bs^2: how many equally weighted samples the weights are worth, (B, S) -> (B,).

    >>> effective_sample_size(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])).tolist()
    [4.0, 1.0]
    """
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
    return _search_rows(weights, (strata + uniform) / uniform.shape[1])


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
    drawn = _search_rows(remainder, uniform)
    position = torch.arange(num_draws, dtype=torch.float64, device=weights.device).expand_as(uniform)
    copies = torch.searchsorted(certain.cumsum(-1), position.contiguous(), right=True)
    return torch.where(copies < weights.shape[1], copies, drawn)
