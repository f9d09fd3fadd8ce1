"""The prior against dense quadrature in float64 and, where its energies are lines, against closed forms.

Seeds are fixed, so that a test passes always or never. For a seed drawn at random each single statistical
test (a Kolmogorov-Smirnov test of one coordinate, a chi-squared test) would raise a false alarm with
probability ALARM.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

import lvkam.prior
from lvkam.prior import MixturePrior
from lvkam.sampling import BLOCK
from lvkam.splines import BASES
from lvkam.univariate import ACTIVATIONS, FunctionFamily, UnivariateFunctions, twice_differentiable
from tests.conftest import require_compiler, small_prior, stream

ALARM = 1e-4
DRAWS = 20_000
RANGES = {"uniform": (0.0, 1.0), "gaussian": (-25.0, 25.0)}
Array = NDArray[np.float64]

every_prior = pytest.mark.parametrize(
    ("reference", "basis", "hidden"),
    [(r, b, h) for r in sorted(RANGES) for b in sorted(BASES) for h in ((), (3,), (4, 2))],
)


def layer_of(prior: MixturePrior, index: int = 0) -> UnivariateFunctions:
    layer = prior.layers[index]
    assert isinstance(layer, UnivariateFunctions)
    return layer


@torch.no_grad()
def wild_prior(
    reference: str, basis: str, hidden: tuple[int, ...] = (), points: int = 256, seed: int = 0
) -> MixturePrior:
    """Two coordinates, three components, adapted grids, and energies that vary by 2 nats (standard deviation)."""
    prior = small_prior(2, 3, hidden, reference, FunctionFamily(basis=BASES[basis]), points, seed)
    layers = [layer_of(prior, index) for index in range(len(prior.layers))]
    rng = stream(seed + 1)

    def randomise(*tensors: Tensor) -> None:
        for tensor in tensors:
            tensor.copy_(torch.randn(tensor.shape, generator=rng))

    randomise(prior.mixture_logits, *(t for layer in layers for t in (layer.coef, layer.w_base, layer.w_spline)))
    prior.update_grids(64, rng)
    randomise(*(layer.coef for layer in layers))  # a fit of bumps to close knots has large ones
    for layer in layers[:-1]:  # so that the whole bends about as often as one layer of splines
        layer.w_spline.mul_(0.3)
    z = torch.rand(500, 2, generator=rng) if reference == "uniform" else torch.randn(500, 2, generator=rng)
    spread = prior.energies(z).std(0).mean()
    layers[-1].w_base.mul_(2 / spread)
    layers[-1].w_spline.mul_(2 / spread)
    return prior


def reference_log_prob(reference: str, z: Tensor) -> Tensor:
    return torch.zeros_like(z) if reference == "uniform" else torch.distributions.Normal(0.0, 1.0).log_prob(z)


class Dense(NamedTuple):
    """The mixture by the trapezoid rule in float64."""

    z: Tensor  # (n,)
    log_normaliser: Tensor  # (Q, P)
    density: Tensor  # (n, Q)
    cdf: Array  # (n, Q)


def dense(prior: MixturePrior, reference: str, nodes: int = 100_001) -> Dense:
    prior = copy.deepcopy(prior).double()
    z = torch.linspace(*RANGES[reference], nodes, dtype=torch.float64)
    with torch.no_grad():
        logs = prior.energies(z[:, None].expand(-1, prior.latent_dim)) + reference_log_prob(reference, z)[:, None, None]
        peak = logs.amax(0)
        normaliser = peak + torch.trapezoid(torch.exp(logs - peak), z, dim=0).log()
        alpha = torch.from_numpy(special.softmax(prior.mixture_logits.numpy(), axis=1))
        density = (alpha * torch.exp(logs - normaliser)).sum(-1)
        cdf = torch.cumulative_trapezoid(density, z, dim=0)
    return Dense(z, normaliser, density, np.concatenate((np.zeros((1, prior.latent_dim)), cdf.numpy())))


def assert_drawn_from(z: Array, cdf: Callable[[Array], Array]) -> None:
    assert stats.kstest(z, cdf).pvalue > ALARM


@every_prior
def test_random_energies(reference: str, basis: str, hidden: tuple[int, ...]) -> None:
    """Draws, density and normalisers are those of the mixture, far from pi_0 and under its own quadrature."""
    # the default suffices for one layer
    prior = wild_prior(reference, basis, hidden, points=2048 if hidden else 256)
    true = dense(prior, reference)
    drawn = prior.sample(DRAWS, stream(10)).double().numpy()
    pi_0 = reference_log_prob(reference, true.z).exp()
    for q in range(2):
        assert_drawn_from(drawn[:, q], lambda z, q=q: np.interp(z, true.z.numpy(), true.cdf[:, q]))
        # far from the reference: in total variation
        assert float(torch.trapezoid((true.density[:, q] - pi_0).abs(), true.z)) / 2 > 0.1

    with torch.no_grad():
        np.testing.assert_allclose(prior.log_normalisers().numpy(), true.log_normaliser.numpy(), atol=4e-2)
        pick = torch.randint(0, len(true.z), (2, 300), generator=stream(11))
        pick = pick[:, (true.density[pick[0], 0] > 1e-20) & (true.density[pick[1], 1] > 1e-20)]
        expected = true.density[pick[0], 0].log() + true.density[pick[1], 1].log()
        log_prob = prior.log_prob(true.z[pick.T].float()).double()
        np.testing.assert_allclose(log_prob.numpy(), expected.numpy(), atol=4e-2, rtol=1e-4)
        # p(z_0, b) integrates to p_1(b), and p(a, z_1) to p_0(a)
        z = true.z[::10].float()
        a, b = torch.full_like(z, 0.3), torch.full_like(z, 0.6)
        rows = (torch.stack((z, b), 1), torch.stack((a, z), 1))
        product = [float(torch.trapezoid(prior.log_prob(row).double().exp(), z.double())) for row in rows]
        here = float(prior.log_prob(torch.tensor([[0.3, 0.6]])).double().exp())
    np.testing.assert_allclose(product[0] * product[1] / here, 1, atol=2e-2)


@pytest.mark.parametrize("reference", sorted(RANGES))
@pytest.mark.parametrize("points", [64, 200, 256, 257, 1000])
def test_nodes_hold_the_knots_and_are_about_as_many_as_asked(points: int, reference: str) -> None:
    prior = small_prior(reference=reference, points=points)
    prior.update_grids(64, stream(31))
    nodes, grid = prior.table().nodes, layer_of(prior).grid
    low, high = prior.reference.support
    assert nodes.shape[0] == 2
    assert (nodes.shape[1] - 1) % BLOCK == 0
    # at most 15 fewer, so that the blocks are whole, and one more at each end
    assert points - 15 + 2 <= nodes.shape[1] <= points + 2
    assert (nodes.diff(dim=1) >= 0).all()
    assert (nodes[:, :2] == low).all()
    assert (nodes[:, -2:] == high).all()
    for q in range(2):
        assert torch.isin(grid[q][(grid[q] > low) & (grid[q] < high)], nodes[q]).all()


@pytest.mark.parametrize("reference", sorted(RANGES))
def test_quadrature_is_of_second_order(reference: str) -> None:
    true = dense(wild_prior(reference, "B-spline"), reference).log_normaliser
    errors = []
    for points in (128, 512):
        with torch.no_grad():
            normalisers = copy.deepcopy(wild_prior(reference, "B-spline", points=points)).double().log_normalisers()
        errors.append(float((normalisers - true).abs().max()))
    assert errors[0] > 6 * errors[1]
    assert errors[1] < 5e-3


@torch.no_grad()
def line_prior(reference: str, slopes: list[float], width: float = 25.0, points: int = 256) -> MixturePrior:
    """f_qp(z) = slope_p z on the grid: a B-spline whose coefficients are a line at the Greville abscissae."""
    grid_range = (0.0, 1.0) if reference == "uniform" else (-width, width)
    settings = FunctionFamily(activation=ACTIVATIONS["none"], grid_range=grid_range)
    prior = small_prior(2, len(slopes), (), reference, settings, points)
    layer = layer_of(prior)
    greville = layer.grid.unfold(1, 3, 1)[:, 1:-1].mean(-1)  # (Q, K)
    layer.coef.copy_(greville[:, :, None] * torch.tensor(slopes))
    layer.w_spline.fill_(1)
    prior.mixture_logits.copy_(torch.randn(2, len(slopes), generator=stream(20)))
    return prior


def truncated_exponential(slope: float, x: Array) -> Array:
    if slope == 0:
        return x
    if slope > 0:
        return (np.exp(slope * (x - 1)) - np.exp(-slope)) / -np.expm1(-slope)
    return np.expm1(slope * x) / np.expm1(slope)


@pytest.mark.parametrize(
    ("reference", "slopes"),
    [("uniform", [s]) for s in (0.0, 1e-4, 3.0, -100.0, 100.0, -1000.0, 1000.0)]
    + [("uniform", [0.0, -1000.0, 1000.0, 1e-3])]
    + [("gaussian", [s]) for s in (0.0, 1e-4, 1.0, -6.0, 6.0, -100.0, 100.0)]
    + [("gaussian", [0.0, -6.0, 9.0, 1e-3])],
)
def test_lines_give_truncated_exponentials_and_shifted_normals(reference: str, slopes: list[float]) -> None:
    prior = line_prior(reference, slopes, width=25 + 1.2 * max(map(abs, slopes)))
    alpha = special.softmax(prior.mixture_logits.detach().double().numpy(), axis=1)
    drawn = prior.sample(DRAWS, stream(21)).double().numpy()

    def component_cdf(slope: float, z: Array) -> Array:
        return truncated_exponential(slope, z) if reference == "uniform" else special.ndtr(z - slope)

    for q in range(2):
        assert_drawn_from(drawn[:, q], lambda z, q=q: alpha[q] @ np.stack([component_cdf(s, z) for s in slopes]))

    s = np.array(slopes)
    uniform = np.maximum(s, 0) + np.log(special.exprel(-np.abs(s)))  # log of (e^s - 1) / s
    expected = uniform if reference == "uniform" else s**2 / 2
    with torch.no_grad():
        normalisers = prior.log_normalisers().double().numpy()
    np.testing.assert_allclose(normalisers, np.tile(expected, (2, 1)), atol=2e-3, rtol=1e-5)


@pytest.mark.parametrize("reference", sorted(RANGES))
def test_without_energies_the_prior_is_its_reference(reference: str) -> None:
    """f = 0 in every family, deep or not, whatever the grids."""
    for basis in BASES:
        for hidden in ((), (3,)):
            prior = wild_prior(reference, basis, hidden)
            last = layer_of(prior, len(prior.layers) - 1)
            nn.init.zeros_(last.w_spline)
            nn.init.zeros_(last.w_base)
            drawn = prior.sample(DRAWS, stream(22)).double().numpy()
            for q in range(2):
                assert_drawn_from(drawn[:, q], (stats.uniform if reference == "uniform" else stats.norm).cdf)
            with torch.no_grad():
                np.testing.assert_allclose(prior.log_normalisers().numpy(), 0, atol=2e-3)


def test_mixture_proportions() -> None:
    prior = line_prior("gaussian", [-15.0, 0.0, 15.0], width=40)
    with torch.no_grad():
        prior.mixture_logits.copy_(torch.tensor([[1.0, 0.0, -1.0], [-6.0, 0.0, -torch.inf]]))
    component = torch.bucketize(prior.sample(DRAWS, stream(23)), torch.tensor([-7.5, 7.5]))
    expected = special.softmax(prior.mixture_logits.detach().double().numpy(), axis=1) * DRAWS
    for q, held in ((0, 3), (1, 2)):
        counts = torch.bincount(component[:, q], minlength=3).numpy()
        assert (counts[held:] == 0).all()
        assert stats.chisquare(counts[:held], expected[q, :held]).pvalue > ALARM


def test_uniform_density_ends_at_0_and_1() -> None:
    prior = wild_prior("uniform", "B-spline")
    with torch.no_grad():
        outside = torch.tensor([[-1e-6, 0.5], [0.5, 1 + 1e-6], [-3.0, 7.0]])
        assert (prior.log_prob(outside) == -torch.inf).all()
        assert (prior.log_unnormalised(outside) == -torch.inf).all()
        assert torch.isfinite(prior.log_prob(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))).all()
    drawn = prior.sample(DRAWS, stream(24))
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()


@pytest.mark.parametrize("slopes", [[0.0], [6.0], [-6.0, 6.0], [-40.0], [20.0, 0.0, 3.0]])
def test_gaussian_range_leaves_out_under_1e_6(slopes: list[float]) -> None:
    nodes = line_prior("gaussian", slopes, width=80).table().nodes.double().numpy()
    for slope in slopes:
        assert (special.ndtr(nodes[:, 0] - slope) + special.ndtr(slope - nodes[:, -1]) < 1e-6).all()


@pytest.mark.parametrize("bump", [-14.0, 9.5, 14.0])
def test_gaussian_range_covers_a_bump_far_out(bump: float) -> None:
    """All mass in a bump beyond the first range, where the end cells show nothing of it."""
    prior = line_prior("gaussian", [0.0], width=20)
    layer = layer_of(prior)
    nearest = (layer.grid[0, 2:-2] - bump).abs().argmin()
    with torch.no_grad():
        layer.coef[:, nearest] = 300.0
    true = dense(prior, "gaussian")
    nodes = prior.table().nodes.double()
    inside = (true.z >= nodes[0, 0]) & (true.z <= nodes[0, -1])
    assert float(torch.trapezoid(true.density[:, 0] * ~inside, true.z)) < 1e-6
    drawn = prior.sample(DRAWS, stream(25)).double().numpy()
    assert_drawn_from(drawn[:, 0], lambda z: np.interp(z, true.z.numpy(), true.cdf[:, 0]))


def plain_energies(prior: MixturePrior, z: Tensor) -> Tensor:
    """f_qp(z_q) as its definition says, by what PyTorch differentiates itself: (N, Q) -> (N, Q, P)."""
    hidden = z
    for index in range(len(prior.layers)):
        layer = layer_of(prior, index)
        x = hidden if index == 0 else hidden.flatten(0, 1)
        spline = torch.einsum("nim,imo->nio", layer.basis(x), layer.coef)
        values = layer.w_base * layer.family.activation(x).unsqueeze(-1) + layer.w_spline * spline  # (N, I, O)
        hidden = values if index == 0 else values.sum(1).unflatten(0, z.shape)
    return hidden


def assert_same_gradients(found: MixturePrior, expected: MixturePrior, tolerance: float) -> None:
    """Each entry to within `tolerance` times the largest of its parameter."""
    for name, parameter in expected.named_parameters():
        one, other = found.get_parameter(name).grad, parameter.grad
        assert one is not None
        assert other is not None
        scale = float(other.abs().max())
        assert scale > 1e-3, name
        np.testing.assert_allclose(one.double().numpy(), other.numpy(), atol=tolerance * scale, err_msg=name)


@every_prior
def test_gradients_are_those_of_the_interpolated_density(reference: str, basis: str, hidden: tuple[int, ...]) -> None:
    """To rounding: log Z of the same nodes by log-sum-exp of the cells' masses, differentiated by PyTorch."""
    prior, exact = wild_prior(reference, basis, hidden).double(), wild_prior(reference, basis, hidden).double()
    z = (torch.rand(20, 2, generator=stream(12)) * 0.8 + 0.1).double()
    log_prob = prior.log_prob(z)
    log_prob.mean().backward()

    nodes = prior.table().nodes
    logs = plain_energies(exact, nodes.T).permute(1, 2, 0) + reference_log_prob(reference, nodes).unsqueeze(1)
    held = nodes.diff(dim=1) > 0
    normalisers = []
    for q in range(2):
        left, right = logs[q, :, :-1][:, held[q]], logs[q, :, 1:][:, held[q]]
        steepness = (right - left).abs()
        assert (steepness > 1e-9).all()
        log_mean = torch.maximum(left, right) + torch.log(-torch.expm1(-steepness) / steepness)
        normalisers.append(torch.logsumexp(log_mean + nodes[q].diff()[held[q]].log(), -1))
    log_alpha = torch.log_softmax(exact.mixture_logits, -1)
    mixture = torch.logsumexp(plain_energies(exact, z) + log_alpha - torch.stack(normalisers), -1)
    expected = (mixture + reference_log_prob(reference, z)).sum(-1)
    expected.mean().backward()
    np.testing.assert_allclose(log_prob.detach().numpy(), expected.detach().numpy(), atol=1e-10)
    assert_same_gradients(prior, exact, 1e-7)


@every_prior
def test_gradients_are_those_of_dense_quadrature(reference: str, basis: str, hidden: tuple[int, ...]) -> None:
    prior = wild_prior(reference, basis, hidden, points=4096)
    exact = copy.deepcopy(prior).double()
    z = torch.rand(20, 2, generator=stream(12)) * 0.8 + 0.1
    prior.log_prob(z).mean().backward()

    nodes = torch.linspace(*RANGES[reference], 20_001, dtype=torch.float64)
    logs = plain_energies(exact, nodes[:, None].expand(-1, 2)) + reference_log_prob(reference, nodes)[:, None, None]
    peak = logs.detach().amax(0)
    normalisers = peak + torch.trapezoid(torch.exp(logs - peak), nodes, dim=0).log()
    log_alpha = torch.log_softmax(exact.mixture_logits, -1)
    mixture = torch.logsumexp(plain_energies(exact, z.double()) + log_alpha - normalisers, -1)
    (mixture + reference_log_prob(reference, z.double())).sum(-1).mean().backward()

    names = [name for name, _ in prior.named_parameters()]
    assert {"mixture_logits", "layers.0.coef", "layers.0.w_base", "layers.0.w_spline"} <= set(names)
    assert ("layers.0.log_bandwidth" in names) == (basis != "B-spline")
    assert_same_gradients(prior, exact, 5e-3)


@every_prior
def test_normalisers_have_one_value(reference: str, basis: str, hidden: tuple[int, ...]) -> None:
    """With and without gradient, from a table or none; and draws and densities from it are the same."""
    prior = wild_prior(reference, basis, hidden)
    table = prior.table()
    with torch.no_grad():
        plain = prior.log_normalisers()
    differentiable = prior.log_normalisers()
    assert differentiable.requires_grad
    assert not plain.requires_grad
    for other in (differentiable, prior.log_normalisers(table), table.log_normaliser):
        assert torch.equal(plain, other.detach())
    z = prior.sample(50, stream(13), table)
    assert torch.equal(z, prior.sample(50, stream(13)))
    assert torch.equal(prior.log_prob(z), prior.log_prob(z, table))
    unnormalised = torch.logsumexp(prior.energies(z) + prior.log_weights(), -1) + reference_log_prob(reference, z)
    torch.testing.assert_close(prior.log_unnormalised(z), unnormalised.sum(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [(), (4,), (5, 2)])
def test_energies_depend_on_their_own_coordinate(hidden: tuple[int, ...]) -> None:
    prior = small_prior(3, 2, hidden)
    widths = [*hidden, 2]
    assert [layer_of(prior, n).w_base.shape for n in range(len(widths))] == list(zip([3, *hidden], widths, strict=True))
    assert prior.mixture_logits.shape == (3, 2)
    z = torch.rand(4, 3, generator=stream(14))
    jacobian = torch.autograd.functional.jacobian(prior.energies, z)
    assert isinstance(jacobian, Tensor)  # (N, Q, P, N, Q)
    own = torch.eye(12).view(4, 3, 1, 4, 3).expand_as(jacobian).bool()
    assert (jacobian[~own] == 0).all()
    assert (jacobian[own].abs() > 0).float().mean() > 0.9
    with torch.no_grad():  # the later layers are one function, the same for each coordinate
        hidden_values = layer_of(prior).functions(z)
        for q in range(3):
            values = hidden_values[:, q]
            for n in range(1, len(widths)):
                values = layer_of(prior, n).functions(values).sum(1)
            torch.testing.assert_close(prior.energies(z)[:, q], values, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("hidden", [(), (3,)])
@pytest.mark.parametrize("reference", sorted(RANGES))
def test_nothing_stale_is_used(reference: str, hidden: tuple[int, ...]) -> None:
    """Grids, parameters, range or dtype change after the features at the nodes were kept."""
    prior = wild_prior(reference, "B-spline", hidden)
    z = torch.rand(40, 2, generator=stream(15))

    def check_fresh() -> None:
        fresh = small_prior(2, 3, hidden, reference)
        fresh.load_state_dict(prior.state_dict())
        fresh = fresh.to(prior.mixture_logits.dtype)
        expected = fresh.log_prob(z.to(prior.mixture_logits))
        assert torch.equal(prior.log_prob(z.to(prior.mixture_logits)), expected)
        assert torch.equal(prior.sample(40, stream(16)), fresh.sample(40, stream(16)))

    values = [prior.log_prob(z).detach()]
    for change in (
        lambda: prior.update_grids(64, stream(17)),
        lambda: prior.load_state_dict(wild_prior(reference, "B-spline", hidden, seed=50).state_dict()),
        lambda: nn.init.constant_(layer_of(prior).w_base, 6.0),  # a Gaussian's range widens to one side
        lambda: nn.init.constant_(layer_of(prior).w_base, -2.0),
        prior.double,
    ):
        change()
        check_fresh()
        values.append(prior.log_prob(z.to(prior.mixture_logits)).detach())
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(values[:-2], values[1:-1], strict=True))


@pytest.mark.parametrize("hidden", [(), (3,)])
@pytest.mark.parametrize("basis", sorted(BASES))
def test_what_inference_mode_leaves_behind_can_train(basis: str, hidden: tuple[int, ...]) -> None:
    prior = wild_prior("uniform", basis, hidden)
    with torch.inference_mode():
        z = prior.sample(20, stream(30))
    prior.log_prob(z.clone()).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in prior.parameters())


def test_range_widens_only_where_it_must() -> None:
    """Right for mass around 6, then left for mass around -6: as many nodes as before, but elsewhere."""
    settings = FunctionFamily(activation=ACTIVATIONS["leakyrelu"], sigma_spline=0.0)

    def nodes_of(prior: MixturePrior, slope: float) -> Tensor:
        nn.init.constant_(layer_of(prior).w_base, slope)
        return prior.table().nodes

    prior, fresh = (small_prior(reference="gaussian", family=settings) for _ in range(2))
    still = nodes_of(prior, 0.0)
    right, left = nodes_of(prior, 6.0), nodes_of(prior, -600.0)  # a hundredth of the slope left of 0
    assert (still[:, 0] == -8).all()
    assert (still[:, -1] == 8).all()
    assert (right[:, 0] == -8).all()
    assert (right[:, -1] > 11).all()
    assert (left[:, 0] < -11).all()
    assert (left[:, -1] == 8).all()
    assert right.shape == left.shape
    for slope in (3.0, 3.5, 4.0, 5.0, 8.0):  # a normal to the right of 0, nearly another to the left
        high = nodes_of(prior, slope)[0, -1].double().numpy()
        masses = np.exp([slope**2 / 2, (slope / 100) ** 2 / 2]) * special.ndtr([slope, -slope / 100])
        assert np.exp(slope**2 / 2) * special.ndtr(slope - high) < 1e-6 * masses.sum()
    nodes_of(prior, -600.0)
    assert torch.equal(left, nodes_of(fresh, -600.0))
    assert torch.equal(prior.table().log_normaliser, fresh.table().log_normaliser)


@pytest.mark.parametrize("hidden", [(), (3,)])
@pytest.mark.parametrize("reference", sorted(RANGES))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_diverged_energies_raise(bad: float, reference: str, hidden: tuple[int, ...]) -> None:
    prior = wild_prior(reference, "B-spline", hidden)
    with torch.no_grad():
        layer_of(prior).coef[1, 8, 0] = bad
        layer_of(prior).w_spline[1, 0] = 2.0
    for use in (prior.table, lambda: prior.sample(3, stream(0)), lambda: prior.log_prob(torch.rand(3, 2))):
        with pytest.raises(FloatingPointError, match="energ"):
            use()


def test_a_density_without_an_end_raises() -> None:
    prior = small_prior(reference="gaussian", family=FunctionFamily(activation=ACTIVATIONS["relu"]))
    nn.init.constant_(layer_of(prior).w_base, 1e4)
    with pytest.raises(FloatingPointError, match="does not fit"):
        prior.sample(3, stream(0))


@pytest.mark.parametrize("reference", sorted(RANGES))
def test_draws_repeat_with_their_seed_and_carry_no_gradient(reference: str) -> None:
    one, two = wild_prior(reference, "RBF", (3,)), wild_prior(reference, "RBF", (3,))
    rng = stream(18)
    first, second = one.sample(100, rng), one.sample(100, rng)
    assert not torch.equal(first, second)
    assert torch.equal(first, two.sample(100, stream(18)))
    assert not torch.equal(first, two.sample(100, stream(19)))
    assert first.shape == (100, 2)
    assert first.dtype == torch.float32
    assert not first.requires_grad


def count_energies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points each call was given, as the calls come."""
    calls: list[int] = []
    energies = MixturePrior.energies

    def counted(self: MixturePrior, z: Tensor, weight: Tensor | None = None) -> Tensor:
        calls.append(len(z))
        return energies(self, z, weight)

    monkeypatch.setattr(MixturePrior, "energies", counted)
    return calls


@every_prior
def test_densities_in_chunks_are_the_same(
    reference: str, basis: str, hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (wild_prior(reference, basis, hidden).double() for _ in range(2))
    z = torch.rand(40, 2, generator=stream(40)).double()
    z[3] = -0.5  # outside the support of a uniform one
    z_whole, z_parts = z.clone().requires_grad_(), z.clone().requires_grad_()
    values = whole.log_prob(z_whole)
    values[4:].square().mean().backward()
    unnormalised = whole.log_unnormalised(z)

    monkeypatch.setattr(lvkam.prior, "CHUNK", 2 * 3 * 7 + 5)
    calls = count_energies(monkeypatch)
    in_chunks = parts.log_prob(z_parts)
    assert calls == [7, 7, 7, 7, 7, 5]
    in_chunks[4:].square().mean().backward()
    assert calls[6:] == calls[5::-1]  # again for the gradient, one chunk at a time
    torch.testing.assert_close(in_chunks, values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.log_unnormalised(z), unnormalised, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z_parts.grad, z_whole.grad, rtol=1e-12, atol=1e-12)
    assert_same_gradients(parts, whole, 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(parts.log_prob(z), values, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(lvkam.prior, "CHUNK", 1)
    torch.testing.assert_close(parts.log_prob(z), values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("basis", sorted(BASES))
@pytest.mark.parametrize(
    ("reference", "hidden"),
    [
        ("uniform", ()),
        ("gaussian", ()),
        pytest.param("uniform", (3,), marks=pytest.mark.slow),
        pytest.param("gaussian", (3,), marks=pytest.mark.slow),
    ],
)
def test_the_compiled_prior_is_the_plain_one(reference: str, basis: str, hidden: tuple[int, ...]) -> None:
    require_compiler()
    plain = wild_prior(reference, basis, hidden)
    prior = small_prior(2, 3, hidden, reference, FunctionFamily(basis=BASES[basis], compiled=True))
    prior.load_state_dict(plain.state_dict())
    z = torch.rand(100, 2, generator=stream(42))
    found, expected = prior.log_prob(z), plain.log_prob(z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for log_prob in (found, expected):
        log_prob.mean().backward()
    assert_same_gradients(prior, plain, 1e-4)
    with torch.no_grad():
        torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prior.log_normalisers(), plain.log_normalisers(), rtol=1e-5, atol=1e-5)
    # roundings of the CDF, divided by the density, which is low somewhere
    torch.testing.assert_close(prior.sample(500, stream(43)), plain.sample(500, stream(43)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("reference", sorted(RANGES))
def test_redrawn_coordinates_are_distributed_as_their_own_prior(reference: str) -> None:
    """Each draw names its own coordinates; each value is of the one it was asked for."""
    prior = wild_prior(reference, "B-spline")
    true, table = dense(prior, reference), prior.table()
    assert np.abs(true.cdf[:, 0] - true.cdf[:, 1]).max() > 0.1  # the two differ
    coordinates = torch.randint(0, 2, (DRAWS, 3), generator=stream(50))
    drawn = prior.redraw(coordinates, stream(51), table)
    assert drawn.shape == coordinates.shape
    assert drawn.dtype == torch.float32
    assert not drawn.requires_grad
    for q in range(2):
        for place in range(3):
            z = drawn[coordinates[:, place] == q, place].double().numpy()
            assert_drawn_from(z, lambda z, q=q: np.interp(z, true.z.numpy(), true.cdf[:, q]))
    alike = (coordinates[:, :2] == 0).all(1)
    ranks = drawn[alike, :2].argsort(0).argsort(0).double()  # one draw's values are drawn apart
    assert abs(torch.corrcoef(ranks.T)[0, 1]) < stats.norm.isf(ALARM / 2) / len(ranks) ** 0.5


@pytest.mark.parametrize("reference", sorted(RANGES))
def test_redrawing_all_coordinates_is_sampling(reference: str) -> None:
    """The same bits of the same stream; also for one draw, and in another order of coordinates."""
    prior = wild_prior(reference, "B-spline")
    for num in (1, 200):
        everything = torch.arange(2).expand(num, -1)
        assert torch.equal(prior.redraw(everything, stream(52)), prior.sample(num, stream(52)))
    rng = stream(52)
    first, second = (prior.redraw(everything, rng) for _ in range(2))
    assert not torch.equal(first, second)
    once = torch.randint(0, 2, (500, 1), generator=stream(53))
    both = [prior.redraw(torch.full((500, 1), q), stream(54)) for q in range(2)]
    assert torch.equal(prior.redraw(once, stream(54)), torch.where(once == 0, *both))


def test_compiled_redrawing_is_the_plain_one() -> None:
    require_compiler()
    plain = wild_prior("gaussian", "B-spline")
    prior = small_prior(2, 3, (), "gaussian", FunctionFamily(compiled=True))
    prior.load_state_dict(plain.state_dict())
    coordinates = torch.randint(0, 2, (500, 3), generator=stream(57))
    found, expected = (p.redraw(coordinates, stream(58)) for p in (prior, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@every_prior
def test_second_derivatives_of_the_log_density_are_those_of_its_gradient(
    reference: str, basis: str, hidden: tuple[int, ...]
) -> None:
    """Along a direction, by central differences in float64, the normalisation's included."""
    prior = wild_prior(reference, basis, hidden).double()
    z = prior.sample(30, stream(3))
    parameters = list(prior.parameters())

    def gradients(create_graph: bool = False) -> tuple[Tensor, list[Tensor]]:
        value = prior.log_prob(z).sum()
        return value, list(torch.autograd.grad(value, parameters, create_graph=create_graph))

    fast = gradients()
    with twice_differentiable():
        plain = gradients(create_graph=True)
        along = [torch.randn(p.shape, dtype=p.dtype, generator=stream(4)) for p in parameters]
        slope = torch.stack([(g * d).sum() for g, d in zip(plain[1], along, strict=True)]).sum()
        found = torch.autograd.grad(slope, parameters)
    torch.testing.assert_close(plain[0], fast[0], rtol=1e-12, atol=0)
    for one, other in zip(plain[1], fast[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * other.abs().max().item())
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, along, strict=True):
                p.add_(d, alpha=sign * 1e-6)
        ends.append(gradients()[1])
    for one, high, low in zip(found, *ends, strict=True):
        difference = (high - low) / 2e-6
        torch.testing.assert_close(one, difference, rtol=1e-4, atol=1e-5 * difference.abs().max().item())
