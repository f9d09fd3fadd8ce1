"""Tables, inverse transforms and resamplers against float64 formulas and known distributions.

Seeds are fixed, so that a test passes always or never. For a seed drawn at random each single statistical
test here would raise a false alarm with probability ALARM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import exprel, logsumexp
from torch import Tensor

from lvkam.compilation import compiled
from lvkam.sampling import (
    BLOCK,
    CellTable,
    _halvings,
    _search,
    component_means,
    effective_sample_size,
    importance_weights,
    inverse_transform,
    repeat_ends,
    residual_resample,
    stratified_resample,
    systematic_resample,
    tabulate,
)
from tests.conftest import require_compiler, stream

ALARM = 1e-4
# the series of float64 ends at 0.05, that of float32 at 0.5
SLOPES = [0.0, 1e-6, 1e-3, 0.0499, 0.05, 0.0501, 0.4999, 0.5, 0.5001, 1.0, 100.0, 1000.0]
Array = NDArray[np.float64]


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=stream(seed))


def zigzags_and_ramps(slope: float, dtype: torch.dtype, num: int = 6) -> tuple[Tensor, Tensor]:
    """Two coordinates on uneven nodes, one with empty cells; up and down in turn, and one way only."""
    widths = torch.tensor([[0.1, 0.3, 0.2, 0.6, 0.3], [1.0, 0.0, 0.0, 2.0, 0.5]], dtype=torch.float64)
    places = widths.repeat(1, num // 5 + 1)[:, : num - 1].cumsum(1)
    nodes = (torch.nn.functional.pad(places, (1, 0)) + torch.tensor([[0.0], [-3.0]])).to(dtype)
    ramp = torch.arange(num, dtype=dtype)
    zigzag = ramp % 2
    patterns = torch.stack((zigzag, -zigzag, ramp, -ramp))
    offset = torch.tensor([[[3.0]], [[-40.0]]], dtype=dtype)
    return repeat_ends(nodes), repeat_ends(offset + slope * patterns)  # (2, n), (2, 4, n)


def log_masses(nodes: Array, log_density: Array) -> Array:
    """log of each cell's integral of a piecewise log-linear density: width e^max (1 - e^-|s|) / |s|."""
    higher = np.maximum(log_density[..., 1:], log_density[..., :-1])
    with np.errstate(divide="ignore"):
        width = np.log(np.diff(nodes))[..., None, :]
    return width + higher + np.log(exprel(-np.abs(np.diff(log_density))))


@pytest.mark.parametrize("num", [1, 2, 14, 15, 16, 17, 31, 32, 300])
def test_repeated_ends_add_cells_without_width(num: int) -> None:
    nodes = torch.rand(2, 3, num, generator=stream(30)).sort().values
    repeated = repeat_ends(nodes)
    assert (repeated.shape[-1] - 1) % BLOCK == 0
    assert repeated.shape[-1] < num + 2 + BLOCK  # no block more than it takes
    assert torch.equal(repeated[..., 1 : num + 1], nodes)
    assert torch.equal(repeated[..., 0], nodes[..., 0])
    assert repeated.shape[-1] >= num + 2
    assert (repeated[..., num + 1 :] == nodes[..., -1:]).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 5e-7)])
@pytest.mark.parametrize("num", [6, 62])
@pytest.mark.parametrize("slope", SLOPES)
def test_table_is_the_exact_integral(slope: float, num: int, dtype: torch.dtype, tolerance: float) -> None:
    table = tabulate(*zigzags_and_ramps(slope, dtype, num))
    nodes, log_density = table.nodes.double().numpy(), table.log_density.double().numpy()
    logs = log_masses(nodes, log_density)
    total: Array = np.logaddexp.reduce(logs, axis=-1)
    rounding = 1e-14 if dtype == torch.float64 else 3e-7
    np.testing.assert_allclose(table.log_normaliser.double().numpy(), total, rtol=rounding, atol=rounding)

    masses = np.exp(logs - total[..., None])
    blocks = masses.reshape(2, 4, -1, BLOCK).sum(-1)
    assert blocks.shape[-1] == (1 if num == 6 else 4)
    np.testing.assert_allclose(table.block_mass.numpy(), blocks, atol=max(1e-12, 4 * rounding), rtol=0)
    np.testing.assert_allclose(table.block_mass.sum(-1).numpy(), 1, rtol=1e-14)
    assert (table.block_mass >= 0).all()
    cells: Array = (
        table.cell_cdf.diff(dim=-1, prepend=torch.zeros_like(table.cell_cdf[..., :1])).flatten(-2).double().numpy()
    )
    assert (cells >= 0).all()
    np.testing.assert_allclose(cells / cells.sum(-1, keepdims=True), masses, atol=max(1e-12, 4 * rounding), rtol=0)

    # the derivative of log Z by central differences, which err by 1e-8 here
    step = 1e-4
    expected = np.empty_like(log_density)
    for n in range(nodes.shape[1]):
        shift = step * np.eye(nodes.shape[1])[n]
        above, below = (np.logaddexp.reduce(log_masses(nodes, log_density + d), axis=-1) for d in (shift, -shift))
        expected[..., n] = (above - below) / (2 * step)
    share = (table.node_mass / table.node_mass.sum(-1, keepdim=True)).double().numpy()
    np.testing.assert_allclose(share, expected[..., 1:-1], atol=tolerance, rtol=0)
    assert (expected[..., [0, -1]] == 0).all()  # what the table leaves out
    assert (share >= 0).all()


def test_table_shifts_with_its_density_and_carries_no_gradient() -> None:
    nodes, log_density = zigzags_and_ramps(1.0, torch.float64)
    table, far = tabulate(nodes, log_density.clone().requires_grad_()), tabulate(nodes, log_density + 5e4)
    np.testing.assert_allclose(far.log_normaliser.numpy(), table.log_normaliser.numpy() + 5e4, rtol=1e-14)
    ones = torch.ones(*nodes.shape, 1, dtype=torch.float64)
    x = torch.cat((ones, nodes.unsqueeze(-1)), -1)
    np.testing.assert_allclose(component_means(far, x).numpy(), component_means(table, x).numpy(), atol=1e-10)
    assert not any(tensor.requires_grad for tensor in table)


def rough_density(num: int, dtype: torch.dtype, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Two coordinates on uneven nodes, one with an empty cell in its middle, and three components."""
    width = torch.rand(2, num - 1, dtype=torch.float64, generator=stream(31)) + 0.05
    width[1, num // 2] = 0
    nodes = torch.nn.functional.pad(width.cumsum(1) / width.sum(1, keepdim=True), (1, 0))
    log_density = spread * torch.randn(2, 3, num, dtype=torch.float64, generator=stream(32))
    return repeat_ends(nodes.to(dtype)), repeat_ends(log_density.to(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("spread", [0.01, 1.5, 20.0])
def test_component_means_are_means_of_the_interpolated_functions(
    spread: float, dtype: torch.dtype, tolerance: float
) -> None:
    """By Gauss and Legendre's rule in every cell, and as derivatives of log Z."""
    nodes, log_density = rough_density(45, dtype, spread)
    values = torch.randn(2, nodes.shape[1], 4, dtype=torch.float64, generator=stream(33))
    values[..., 0], values[..., 1] = 1, nodes
    values = values.to(dtype)
    table = tabulate(nodes, log_density)
    means = component_means(table, values).double().numpy()
    assert means.shape == (2, 3, 4)

    x, logs, f = nodes.double().numpy(), log_density.double().numpy(), values.double().numpy()
    place, weight = np.polynomial.legendre.leggauss(60)
    place = (place + 1) / 2  # in [0, 1]

    def inside_cells(at_nodes: Array) -> Array:
        return at_nodes[..., :-1, None] + np.diff(at_nodes)[..., None] * place

    density = np.exp(inside_cells(logs) - logs.max(-1)[..., None, None])
    density *= np.diff(x)[:, None, :, None] * weight  # (Q, P, C, 60)
    interpolated = inside_cells(f.swapaxes(1, 2))  # (Q, F, C, 60)
    expected = np.einsum("qpcg,qfcg->qpf", density, interpolated) / density.sum((-1, -2))[..., None]
    np.testing.assert_allclose(means, expected, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(means[..., 0], 1, atol=tolerance)

    step = 1e-4  # central differences err by its square times the third cumulant
    for n in range(4):
        shift = step * f[:, None, :, n]
        above, below = (np.logaddexp.reduce(log_masses(x, logs + d), axis=-1) for d in (shift, -shift))
        np.testing.assert_allclose(means[..., n], (above - below) / (2 * step), atol=tolerance + 1e-7, rtol=0)


def always(num_coordinates: int, num_components: int, component: int) -> Tensor:
    """Weights of a mixture that is one of its components."""
    return torch.eye(num_components)[component].expand(num_coordinates, -1)


def block_ends(table: CellTable) -> Tensor:
    """Numbers at which draws of a component pass from block to block: (Q, P, C/BLOCK)."""
    ends = table.block_mass.cumsum(-1)
    return ends / ends[..., -1:]


def ramp_table(slopes: list[float], nodes: int, dtype: torch.dtype = torch.float32) -> CellTable:
    """exp(slope x) on [0, 1], one coordinate, one component a slope."""
    x = torch.linspace(0, 1, nodes, dtype=torch.float64)
    log_density = (torch.tensor(slopes, dtype=torch.float64)[:, None] * x).to(dtype)
    return tabulate(repeat_ends(x[None].to(dtype)), repeat_ends(log_density[None]))


def truncated_exponential(slope: float) -> Callable[[Array], Array]:
    """CDF of exp(slope x) on [0, 1], in a form that overflows for neither sign."""
    if slope == 0:
        return lambda x: x
    if slope > 0:
        return lambda x: (np.exp(slope * (x - 1)) - np.exp(-slope)) / -np.expm1(-slope)
    return lambda x: np.expm1(slope * x) / np.expm1(slope)


@pytest.mark.parametrize("nodes", [2, 40, 300])
@pytest.mark.parametrize("slope", [s * sign for s in SLOPES for sign in (1, -1)])
def test_draws_from_ramps_are_truncated_exponentials(slope: float, nodes: int) -> None:
    table = ramp_table([-slope / 3 - 1, slope], nodes)  # the component of index 1 is the one drawn
    z = inverse_transform(table, always(1, 2, 1), uniform(20_000, 1, seed=0)).double().numpy()[:, 0]
    cdf = truncated_exponential(slope)
    assert stats.kstest(z, cdf).pvalue > ALARM
    # and without chance: the CDF of a quantile is its probability
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    z = inverse_transform(ramp_table([-1.0, slope], nodes, torch.float64), always(1, 2, 1), u).numpy()[:, 0]
    np.testing.assert_allclose(cdf(z), u.numpy()[:, 0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num", [6, 62])
@pytest.mark.parametrize("slope", [*SLOPES, 1e-9, 1e-12, 1e5])
def test_quantiles_increase_inside_the_nodes(slope: float, num: int, dtype: torch.dtype) -> None:
    nodes, log_density = zigzags_and_ramps(slope, dtype, num)
    table = tabulate(nodes, log_density)
    edges = torch.tensor([0.0, 5e-324, 1e-16, 1e-9, 1e-6], dtype=torch.float64)
    for p in range(4):
        # on the borders of the blocks, and as close to them as numbers are
        borders = block_ends(table)[:, p].flatten()
        beside = (torch.nextafter(borders, torch.tensor(end, dtype=torch.float64)) for end in (0, 1))
        u = torch.cat((edges, uniform(2000, seed=1), 1 - edges, borders, *beside)).sort().values
        z = inverse_transform(table, always(2, 4, p), u[:, None].expand(-1, 2))
        assert torch.isfinite(z).all()
        assert (z.diff(dim=0) >= 0).all()
        assert (z >= nodes[:, 0]).all()
        assert (z <= nodes[:, -1]).all()
        assert not ((z[:, 1] > -2) & (z[:, 1] < -2 + 1e-12)).any()
        if slope * num <= 15:  # every cell that is not empty has mass
            # not equal for each slope: an upward one is mirrored, and -log1p(expm1(-s)) / s may miss 1 by a rounding
            np.testing.assert_allclose(z[0].numpy(), nodes[:, 0].numpy(), atol=1e-15, rtol=0)
            np.testing.assert_allclose(z[-1].numpy(), nodes[:, -1].numpy(), atol=1e-6)


def test_cells_without_mass_are_never_drawn() -> None:
    """Both end cells have none in float32, and the middle has an empty cell."""
    nodes = torch.tensor([[0.0, 1.0, 2.0, 2.0, 3.0, 4.0]])
    log_density = torch.tensor([[[-900.0, -300.0, 0.0, 5.0, -300.0, -900.0]]])
    table = tabulate(repeat_ends(nodes), repeat_ends(log_density))
    u = torch.cat((torch.tensor([0.0, 1e-300, 1 - 1e-16, 1.0], dtype=torch.float64), uniform(500, seed=2)))
    z = inverse_transform(table, torch.ones(1, 1), u[:, None])
    assert (z >= 1).all()
    assert (z <= 3).all()
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("held", [(0,), (2,), (4,), (1, 3), (0, 4), (0, 1, 2, 3, 4)])
def test_blocks_without_mass_are_never_drawn(held: tuple[int, ...]) -> None:
    """Five blocks, some of them flat at exp(0), the others so low that float32 has no mass for them."""
    x = torch.arange(5 * BLOCK + 1.0)[None]
    log_density = torch.full((1, 1, 5 * BLOCK + 1), -400.0)
    for block in held:
        log_density[..., block * BLOCK + 1 : (block + 1) * BLOCK] = 0
    # draws take cells of width at the ends as any others
    table = tabulate(x, log_density)
    num = 6000
    extremes = torch.tensor([0.0, 5e-324, 1e-300, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    u = torch.cat((extremes, block_ends(table).flatten(), uniform(num, seed=34)))
    z = inverse_transform(table, torch.ones(1, 1), u[:, None])[:, 0]
    block, cell = torch.div(z, BLOCK, rounding_mode="floor"), z % BLOCK
    is_held = torch.isin(block, torch.tensor(held, dtype=block.dtype))
    assert is_held[-num:].all()
    # the very end of a block that is held is the place where the next one begins
    assert (is_held | (cell == 0) & torch.isin(block - 1, torch.tensor(held, dtype=block.dtype))).all()
    counts = torch.bincount(block[-num:].long(), minlength=5)[list(held)]
    assert len(held) == 1 or stats.chisquare(counts.numpy()).pvalue > ALARM


# z in float32 is exact to 3e-8, its CDF to that times the density, which reaches 65 here
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2.5e-6), (torch.float64, 1e-12)])
def test_draws_from_a_rough_density_of_many_blocks(dtype: torch.dtype, tolerance: float) -> None:
    """Every cell of every block is hit as often as its mass says, and CDF(z(u)) = u without chance."""
    nodes, log_density = rough_density(300, dtype)
    table = tabulate(nodes, log_density)
    x, logs = nodes.double().numpy(), log_density.double().numpy()
    masses = np.exp(log_masses(x, logs))
    masses /= masses.sum(-1, keepdims=True)  # (2, 3, C)
    assert table.block_mass.shape == (2, 3, 19)
    num = 60_000
    middle = always(2, 3, 1)
    z = inverse_transform(table, middle, uniform(num, 2, seed=35)).double().numpy()
    u = torch.linspace(0, 1, 3001, dtype=torch.float64)[:, None].expand(-1, 2)
    quantiles = inverse_transform(table, middle, u).double().numpy()
    for q in range(2):
        has_width = np.diff(x[q]) > 0
        edges, expected = np.unique(x[q]), num * masses[q, 1][has_width]
        assert len(edges) == len(expected) + 1
        counts = np.histogram(z[:, q], edges)[0]
        often = expected > 8  # for a chi-squared test; the rare cells count as one
        assert often.mean() > 0.8
        observed, wanted = (np.append(v[often], v[~often].sum()) for v in (counts, expected))
        assert stats.chisquare(observed, wanted).pvalue > ALARM

        cell = np.clip(np.searchsorted(edges, quantiles[:, q], side="right") - 1, 0, len(expected) - 1)
        slope, width = np.diff(logs[q, 1])[has_width][cell], np.diff(edges)[cell]
        place = (quantiles[:, q] - edges[cell]) / width
        part = place * exprel(slope * place) / exprel(slope)
        below = np.append(0, masses[q, 1][has_width].cumsum())[cell]
        cdf = below + part * masses[q, 1][has_width][cell]
        np.testing.assert_allclose(cdf, u[:, q].numpy(), atol=tolerance, rtol=0)


def test_each_coordinate_and_component_has_its_own_row() -> None:
    slopes = torch.tensor([[-30.0, -2.0, 5.0], [1.0, 80.0, -9.0]])
    x = torch.linspace(0, 1, 17)
    table = tabulate(repeat_ends(x.expand(2, -1)), repeat_ends(slopes[..., None] * x))
    for p in range(3):
        z = inverse_transform(table, always(2, 3, p), uniform(20_000, 2, seed=4 + p)).double().numpy()
        for q in range(2):
            assert stats.kstest(z[:, q], truncated_exponential(float(slopes[q, p]))).pvalue > ALARM


def short_weights(num: int) -> Tensor:
    """Float32 weights that a softmax might give, whose float32 sum stays under 1."""
    weights = torch.full((1, num), 1 / num) * (1 - 1e-4)
    assert float(weights.cumsum(-1)[0, -1]) < 1
    return weights


def unit_intervals(num_coordinates: int, num_components: int, num_cells: int = 3 * BLOCK) -> CellTable:
    """Component p uniform on [p, p + 1]: which one has been drawn is seen from the draw."""
    x = torch.linspace(0, num_components, num_components * num_cells + 1, dtype=torch.float64).expand(
        num_coordinates, -1
    )
    middle = (x[0, 1:] + x[0, :-1]) / 2
    outside = middle.floor() != torch.arange(num_components)[:, None]  # (P, C)
    low = torch.full((num_coordinates, num_components, x.shape[1]), -900.0, dtype=torch.float64)
    for p in range(num_components):
        low[:, p, p * num_cells : (p + 1) * num_cells + 1] = 0
    table = tabulate(x, low)
    # the cells beside an interval fall from 1 to nothing: they are left out by hand
    masses = torch.where(outside, 0.0, 1 / num_cells).expand(num_coordinates, -1, -1).unflatten(-1, (-1, BLOCK))
    return table._replace(cell_cdf=masses.cumsum(-1), block_mass=masses.sum(-1))


def test_a_mixture_is_drawn_from_by_its_weights_and_within_each_component_evenly() -> None:
    """The one uniform number that chooses the component is uniform again within it."""
    weights = torch.tensor([[0.2, 0.0, 0.5, 0.3], [0.0, 2.0, 0.0, 6.0], [1e-2, 0.99, 0.0, 0.0]])
    z = inverse_transform(unit_intervals(3, 4), weights, uniform(100_000, 3, seed=5))
    for q in range(3):
        counts = torch.bincount(z[:, q].floor().long(), minlength=4).numpy()
        expected = (weights[q].double() / weights[q].double().sum()).numpy() * 100_000
        held = expected > 0
        assert (counts[~held] == 0).all()
        assert stats.chisquare(counts[held], expected[held] * 100_000 / expected.sum()).pvalue > ALARM
        for p in np.flatnonzero(held):
            within = z[z[:, q].floor() == p, q].numpy() - p
            assert stats.kstest(within, "uniform").pvalue > ALARM


def test_components_never_run_past_the_end() -> None:
    u = torch.tensor([0.0, 5e-324, 1 - 1e-9, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    for num in (1, 3, 60):
        z = inverse_transform(unit_intervals(2, num, BLOCK), short_weights(num).expand(2, -1), u[:, None].expand(-1, 2))
        np.testing.assert_allclose(z[:2].numpy(), 0, atol=1e-300)
        np.testing.assert_allclose(z[2:].numpy(), num, rtol=1e-9 * max(1, num))
    padded = torch.tensor([[0.0, 0.3, 0.6, 0.0]]).expand(3, -1)
    ends = inverse_transform(unit_intervals(3, 4), padded, u[:, None].expand(-1, 3))
    np.testing.assert_allclose(ends[:, 0].numpy(), [1, 1, 3, 3, 3], rtol=1e-8)
    assert torch.equal(ends, ends[:, :1].expand(-1, 3))


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 40, 850])
def test_bisection_finds_what_a_search_finds(length: int) -> None:
    mass = torch.rand(5, length, generator=stream(36)) * (torch.rand(5, length, generator=stream(37)) < 0.7)
    mass[:, length // 2] = 0.5  # some mass in each row
    cdf = mass.double().cumsum(-1)
    row = torch.arange(5).expand(500, -1)
    aim = uniform(500, 5, seed=38).sort(dim=0).values * cdf[:, -1]
    aim[0], aim[1], aim[-1] = 0, cdf[:, length // 2], cdf[:, -1]
    found, share = _search(cdf.flatten(), length * row, length, _halvings(length), aim)
    for q in range(5):
        expected = np.searchsorted(cdf[q].numpy(), aim[:, q].numpy(), side="right")
        last = int(mass[q].nonzero().max())
        np.testing.assert_array_equal(found[:, q], np.minimum(expected, last))
        below = np.append(0, cdf[q].numpy())[found[:, q]]
        np.testing.assert_allclose(
            below + share[:, q].numpy() * mass[q].double().numpy()[found[:, q]], aim[:, q], rtol=1e-13
        )


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    return systematic_resample(weights, u[:, :1], u.shape[1])


Resampler = Callable[[Tensor, Tensor], Tensor]
RESAMPLERS: dict[str, Resampler] = {
    "stratified": stratified_resample, "systematic": systematic, "residual": residual_resample,
}  # fmt: skip


def counts_of(indices: Tensor, num: int) -> Tensor:
    return torch.nn.functional.one_hot(indices, num).sum(1).double()


def within_promise(name: str, counts: Tensor, expected: Tensor) -> bool:
    """Counts and n w, (B, S): what each resampler promises of every single draw."""
    if name == "residual":
        return bool((counts >= torch.floor(expected + 1e-9)).all())
    return bool(((counts - expected).abs() < (1 if name == "systematic" else 2) + 1e-9).all())


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
@pytest.mark.parametrize("num_draws", [1, 7, 16])
def test_resampling_is_unbiased_and_keeps_its_promise(name: str, num_draws: int) -> None:
    rows, weights = 10_000, torch.tensor([0.5, 0.03, 0.0, 0.22, 0.15, 0.1])
    indices = RESAMPLERS[name](weights.expand(rows, -1), uniform(rows, num_draws, seed=6))
    assert indices.shape == (rows, num_draws)
    counts = counts_of(indices, 6)
    expected = num_draws * weights.double() / weights.double().sum()
    assert within_promise(name, counts, expected)
    assert (counts[:, 2] == 0).all()
    bound = stats.norm.isf(ALARM / 2 / 6) * counts.std(0) / rows**0.5
    assert ((counts.mean(0) - expected).abs() <= bound + 1e-7 * num_draws).all()  # float32 weights
    if num_draws == 1:  # draws of different rows are independent
        held = expected > 0
        assert stats.chisquare(counts.sum(0)[held].numpy(), (rows * expected[held]).numpy()).pvalue > ALARM


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
def test_resampling_varied_and_edge_weights(name: str) -> None:
    resample = RESAMPLERS[name]
    logits = 3 * torch.randn(300, 20, generator=stream(7))
    weights = torch.softmax(logits, -1)
    expected = 30 * weights.double() / weights.double().sum(-1, keepdim=True)
    assert within_promise(name, counts_of(resample(weights, uniform(300, 30, seed=8)), 20), expected)

    survivors = torch.arange(20)
    assert torch.equal(resample(torch.eye(20), uniform(20, 9, seed=9)), survivors[:, None].expand(-1, 9))
    assert torch.equal(resample(torch.ones(5, 1), uniform(5, 4, seed=10)), torch.zeros(5, 4, dtype=torch.int64))
    for u in (0.0, 1 - 2.0**-53, 1.0):
        ends = torch.full((1, 64), u, dtype=torch.float64)
        for num in (1, 3, 4096):
            drawn = resample(short_weights(num), ends)
            assert int(drawn.min()) >= 0
            assert int(drawn.max()) < num
        padded = resample(torch.tensor([[0.0, 0.3, 0.6, 0.0]]), ends)
        assert set(padded.flatten().tolist()) <= {1, 2}
    whole = resample(torch.tensor([[1, 2, 3, 4]]) * torch.tensor(0.1), uniform(1, 10, seed=11))
    assert counts_of(whole, 4).tolist() == [[1, 2, 3, 4]]


def test_residual_takes_whole_expectations_for_whole() -> None:
    """Also those that rounding leaves just under a whole number."""
    for num in range(1, 100):
        drawn = residual_resample(torch.full((1, num), 1 / num, dtype=torch.float64), uniform(1, num, seed=14))
        assert drawn.tolist() == [list(range(num))]


def test_stratified_draws_one_of_each_stratum() -> None:
    u = uniform(50, 8, seed=12)
    drawn = stratified_resample(torch.full((50, 1000), 1e-3), u)
    np.testing.assert_array_equal(drawn.numpy(), np.floor(((np.arange(8) + u.numpy()) / 8) * 1000))
    shifted = systematic_resample(torch.full((50, 1000), 1e-3), u[:, :1], 8)
    np.testing.assert_array_equal(np.diff(shifted.numpy()), 125)


def test_weights_and_effective_sample_size() -> None:
    log_likelihood = 40 * torch.randn(30, 50, generator=stream(13))
    weights = importance_weights(log_likelihood)
    logs = log_likelihood.double().numpy()
    expected = np.exp(logs - logsumexp(logs, axis=-1, keepdims=True))
    np.testing.assert_allclose(weights.numpy(), expected, rtol=2e-5, atol=1e-30)
    np.testing.assert_allclose(effective_sample_size(weights).numpy(), 1 / np.square(expected).sum(-1), rtol=2e-5)
    np.testing.assert_allclose(effective_sample_size(torch.full((2, 64), 1 / 64)).numpy(), 64, rtol=1e-6)
    assert effective_sample_size(torch.eye(5)).tolist() == [1.0] * 5
    halves = importance_weights(torch.tensor([[0.0, 0.0, -1e30, -torch.inf]]))
    assert halves.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert effective_sample_size(halves).tolist() == [2.0]


@pytest.mark.parametrize("level", [-1e30, -1e5, 0.0, 1e5, 1e30])
def test_weights_of_extreme_log_likelihoods(level: float) -> None:
    log_likelihood = torch.full((1, 4), level)
    np.testing.assert_allclose(importance_weights(log_likelihood).numpy(), 0.25, rtol=1e-6)
    log_likelihood[0, 2] = level + max(1e3, abs(level))
    assert importance_weights(log_likelihood).tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_compiled_tables_and_draws_are_the_plain_ones() -> None:
    require_compiler()
    for num, spread in ((300, 1.5), (270, 1e-3), (290, 40.0)):  # of one number of bisections: compiled once
        nodes, log_density = rough_density(num, torch.float32, spread)
        plain, table = tabulate(nodes, log_density), tabulate(nodes, log_density, compiled)
        torch.testing.assert_close(table.log_normaliser, plain.log_normaliser, rtol=1e-6, atol=1e-6)
        # relative to the largest: a fused multiply-add errs by a rounding of what it subtracts from
        scale = plain.node_mass.amax(-1, keepdim=True)
        torch.testing.assert_close(table.node_mass / scale, plain.node_mass / scale, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(table.block_mass, plain.block_mass, rtol=1e-6, atol=1e-6)
        weights = torch.rand(2, 3, generator=stream(39))
        u = torch.cat((torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), uniform(3998, 2, seed=40)))
        z = inverse_transform(plain, weights, u, partial(compiled, inline=False))
        torch.testing.assert_close(z, inverse_transform(plain, weights, u), rtol=0, atol=1e-6)
    nodes, log_density = zigzags_and_ramps(1000.0, torch.float32, 62)  # most cells are beyond float32
    table = tabulate(nodes, log_density, compiled)
    torch.testing.assert_close(table.log_normaliser, tabulate(nodes, log_density).log_normaliser, rtol=1e-6, atol=1e-6)
