"""What pictures show, as arrays: against quadrature, closed forms and loops.

Statistical tests say how often they would fail by chance, were the seed changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_simpson
from scipy.special import expit
from scipy.stats import kstest, norm

from lvkam import inspection
from lvkam.generator import KANGenerator
from lvkam.inspection import (
    Curve,
    PriorDensities,
    activities,
    decode,
    departures,
    function_curves,
    inspect_layers,
    interpolation,
    nearest,
    posterior,
    prior_densities,
    strongest_functions,
    traversal,
    weighted_quantiles,
)
from lvkam.model import LVKAM
from lvkam.prior import MixturePrior
from lvkam.splines import BASES
from lvkam.univariate import ACTIVATIONS, FunctionFamily, UnivariateFunctions
from tests.conftest import small_model, small_prior, stream

PRIORS: dict[str, dict[str, Any]] = {
    "uniform": {"latent_dim": 3},
    "deep uniform": {"hidden": (4,), "family": FunctionFamily(grid_size=5)},
    "gaussian": {"reference": "gaussian", "family": FunctionFamily(grid_range=(-3.0, 3.0))},
    "deep gaussian": {
        "reference": "gaussian",
        "hidden": (3, 2),
        "family": FunctionFamily(basis=BASES["RBF"], grid_range=(-3.0, 3.0)),
    },
    "one component": {"latent_dim": 1, "num_components": 1},
}


def wild(module: torch.nn.Module, size: float = 1.5) -> None:
    """Make all functions of a module large and uneven."""
    rng = stream(5)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, UnivariateFunctions):
                layer.coef.copy_(size * torch.randn(layer.coef.shape, generator=rng))
                layer.w_spline.fill_(1.0)
            elif isinstance(layer, MixturePrior):
                layer.mixture_logits.copy_(torch.randn(layer.mixture_logits.shape, generator=rng))


def wild_prior(name: str) -> MixturePrior:
    prior = small_prior(points=600, **PRIORS[name])
    wild(prior, 0.5 if len(prior.layers) > 1 else 1.5)
    return prior


def linear_model(weights: np.ndarray, prior: MixturePrior | None = None, activation: str = "none") -> LVKAM:
    """y_d = activation(sum_q weights_qd z_q), on uniform latents unless a prior is given; z may not be negative."""
    latent_dim, data_dim = weights.shape
    if prior is None:
        prior = small_prior(latent_dim, 1)
        for parameter in prior.parameters():
            torch.nn.init.zeros_(parameter)
    generator = KANGenerator([latent_dim, data_dim], FunctionFamily(activation=ACTIVATIONS["relu"]), stream(0))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
        for layer in generator.layers:
            assert isinstance(layer, UnivariateFunctions)
            layer.w_base.copy_(torch.from_numpy(weights))
    return LVKAM(prior, generator, "l2", {"none": lambda out: out, "tanh": torch.tanh}[activation])


def marginal(prior: MixturePrior, q: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p_q and its integral from x[0] on, at equally spaced places, from `log_prob` alone."""
    z = torch.full((len(x), prior.latent_dim), 0.4)
    z[:, q] = torch.from_numpy(x)
    with torch.no_grad():
        density = prior.log_prob(z).double().exp().numpy()  # times the others' densities, all at the same place
    integral = cumulative_simpson(density, x=x, initial=0)
    return density / integral[-1], integral / integral[-1]


@pytest.mark.parametrize("name", PRIORS)
def test_densities_are_those_of_the_model(name: str) -> None:
    prior = wild_prior(name)
    found = prior_densities(prior)
    np.testing.assert_allclose(found.components.sum(1), found.mixture, rtol=1e-12)
    with torch.no_grad():
        weights = prior.log_weights().exp().numpy()
        energies = prior.energies(torch.from_numpy(found.z.T).float()).double().numpy()  # (n, Q, P)
    is_gaussian = prior.reference is not small_prior().reference
    for q, z in enumerate(found.z):
        assert (np.diff(z) >= 0).all()
        assert (np.diff(found.cdf[q]) >= 0).all()
        assert found.cdf[q][[0, -1]].tolist() == [0, 1]
        reference = norm.pdf(z) if is_gaussian else np.ones_like(z)
        np.testing.assert_allclose(found.reference[q], reference, rtol=1e-6)
        # straight lines between the places will do
        np.testing.assert_allclose(np.trapezoid(found.mixture[q], z), 1, atol=2e-4)
        np.testing.assert_allclose(np.trapezoid(found.components[q], z), weights[q], atol=2e-4)
        for p, component in enumerate(found.components[q]):
            shape = np.exp(energies[:, q, p]) * reference
            expected = weights[q, p] * shape / np.trapezoid(shape, z)
            np.testing.assert_allclose(component, expected, atol=1e-2 * component.max())
        x = np.linspace(z[0], z[-1], 40001)
        density, cdf = marginal(prior, q, x)
        np.testing.assert_allclose(found.mixture[q], np.interp(z, x, density), atol=1e-2 * density.max())
        np.testing.assert_allclose(found.cdf[q], np.interp(z, x, cdf), atol=5e-4)


@pytest.mark.parametrize("name", PRIORS)
def test_rank_and_quantile_reverse_each_other(name: str) -> None:
    prior = wild_prior(name)
    found, rng = prior_densities(prior), np.random.default_rng(0)
    u = rng.random((3, 50, prior.latent_dim))
    np.testing.assert_allclose(found.rank(found.quantile(u)), u, atol=1e-12)
    z = prior.sample(200, stream(1)).double().numpy()
    np.testing.assert_allclose(found.quantile(found.rank(z)), z, atol=1e-9)
    ends = np.stack((found.z[:, 0] - 1, found.z[:, -1] + 1))
    assert found.rank(ends).tolist() == [[0] * prior.latent_dim, [1] * prior.latent_dim]
    # at 1e-4 for each of 1 to 3 coordinates: false alarm once in 1000 changes of the seed, over all priors
    ranks = found.rank(prior.sample(5000, stream(2)).double().numpy())
    assert min(kstest(column, "uniform").pvalue for column in ranks.T) > 1e-4


@pytest.mark.parametrize("reference", ["uniform", "gaussian"])
def test_without_energies_ranks_are_those_of_the_reference(reference: str) -> None:
    prior = small_prior(reference=reference)
    for parameter in prior.parameters():
        torch.nn.init.zeros_(parameter)
    u = np.linspace(0.01, 0.99, 99)[:, None].repeat(2, 1)
    expected = norm.ppf(u) if reference == "gaussian" else u
    np.testing.assert_allclose(prior_densities(prior).quantile(u), expected, atol=2e-3)


def test_activities_of_a_sum_are_the_shares_of_its_terms() -> None:
    weights = np.array([[3.0, 0.0], [0.0, 0.0], [1.0, -2.0], [0.5, 0.5]])
    expected = (weights**2).sum(1) / (weights**2).sum()
    # the relative deviation is at most 0.014 (1.2 of a squared difference, 0.9 of a variance, 20,000 draws), and six
    # of them are allowed: false alarm once in 10^8 changes of the seed
    found = activities(linear_model(weights), 20000, stream(0))
    np.testing.assert_allclose(found, expected, rtol=0.08)
    assert found[1] == 0  # nothing hears of it
    assert found.dtype == np.float64


def test_activities_are_total_effects_where_coordinates_interact() -> None:
    prior = wild_prior("deep uniform")
    model = linear_model(np.array([[2.0, 6.0], [3.0, -4.0]]), prior, "tanh")
    # by quadrature: E Var[y | the other coordinate] / Var[y], data dimensions summed
    x = (np.arange(400) + 0.5) / 400
    p = [marginal(prior, q, np.linspace(0, 1, 801))[0][1::2] for q in range(2)]
    p = [each / each.sum() for each in p]
    y = decode(model, np.stack(np.meshgrid(x, x, indexing="ij"), -1).astype(float))  # (400, 400, D)

    def variance(values: np.ndarray, density: np.ndarray) -> np.ndarray:  # over the first axis
        mean = np.tensordot(density, values, 1)
        return np.tensordot(density, (values - mean) ** 2, 1)

    total = variance(y.reshape(160000, 2), np.outer(p[0], p[1]).ravel()).sum()
    expected = np.array(
        [
            (variance(y, p[0]) * p[1][:, None]).sum() / total,
            (variance(y.transpose(1, 0, 2), p[1]) * p[0][:, None]).sum() / total,
        ]
    )
    assert expected.sum() > 1.1
    # the relative deviation is about 0.012, and six of them are allowed: false alarm once in 10^8
    np.testing.assert_allclose(activities(model, 20000, stream(0)), expected, rtol=0.07)


def test_of_a_constant_no_coordinate_is_active_and_no_function_strong() -> None:
    model = linear_model(np.zeros((3, 2)))
    assert activities(model, 10, stream(0)).tolist() == [0, 0, 0]
    (layer,) = [layer for layer in inspect_layers(model, torch.rand(50, 3)) if layer.name.startswith("generator")]
    # splines that add up to a constant, to rounding
    coef = layer.layer.coef
    torch.nn.init.ones_(coef)
    torch.nn.init.ones_(layer.layer.w_spline)
    strength = inspect_layers(model, torch.rand(50, 3))[-1].strength
    assert (strength >= 0).all()
    assert strength.max() < 1e-12


def inspected_model(basis: str, hidden: tuple[int, ...] = (3,), latent_dim: int = 4) -> LVKAM:
    family = FunctionFamily(basis=BASES[basis], degree=2, grid_size=4)
    prior = small_prior(latent_dim, 2, hidden, family=family)
    generator = KANGenerator([latent_dim, 3, 5], family, stream(1))
    model = LVKAM(prior, generator, "bernoulli", torch.sigmoid)
    wild(model)
    return model


@pytest.mark.parametrize("basis", BASES)
def test_strength_is_the_variance_of_each_function(basis: str) -> None:
    model = inspected_model(basis)
    z = model.prior.sample(300, stream(2))
    found = {layer.name: layer for layer in inspect_layers(model, z)}
    assert list(found) == ["prior.layers.0", "prior.layers.1", "generator.layers.0", "generator.layers.1"]
    inputs = {
        "prior.layers.0": z,
        "prior.layers.1": found["prior.layers.0"].layer.functions(z).flatten(0, 1),
        "generator.layers.0": z,
        "generator.layers.1": found["generator.layers.0"].layer(z),
    }
    for name, expected in inputs.items():
        layer = found[name]
        torch.testing.assert_close(layer.inputs, expected)
        with torch.no_grad():
            functions = layer.layer.functions(expected).double().numpy()  # (N, I, O)
        strength = functions.var(0)
        if name == "generator.layers.1":  # of which the output activation lets a part through
            out = functions.sum(1)
            strength *= expit(out).var(0) / out.var(0)
        np.testing.assert_allclose(layer.strength, strength, rtol=1e-4)


def test_of_a_deep_prior_all_coordinates_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MOST_ROWS", 80)
    model = inspected_model("B-spline")
    z = model.prior.sample(40, stream(2))
    first, second, *_ = inspect_layers(model, z)
    with torch.no_grad():
        hidden = first.layer.functions(z)  # (N, Q, H)
    # twice as many rows as are looked at: which coordinate is each of?
    same = (second.inputs[:, None, None] == hidden).all(-1)  # (80, N, Q)
    assert same.any(1).sum(0).tolist() == [20] * 4


@pytest.mark.parametrize("basis", BASES)
def test_a_curve_is_its_function_in_two_parts(basis: str) -> None:
    model = inspected_model(basis)
    layer = inspect_layers(model, 3 * model.prior.sample(100, stream(2)) - 1)[-2]  # inputs beyond the knots too
    pairs = [(0, 2), (3, 0), (3, 1)]
    for curve, (i, o) in zip(function_curves(layer, pairs), pairs, strict=True):
        assert (curve.layer, curve.input, curve.output) == ("generator.layers.0", i, o)
        assert curve.strength == layer.strength[i, o]
        with torch.no_grad():
            x = torch.from_numpy(curve.x)
            functions = layer.layer.functions(x[:, None].expand(-1, 4))[:, i, o].numpy()
            base = (layer.layer.w_base[i, o] * torch.nn.functional.silu(x)).numpy()
        np.testing.assert_allclose(curve.spline + curve.base, functions, atol=1e-5)
        np.testing.assert_allclose(curve.base, base, atol=1e-6)
        np.testing.assert_allclose(curve.knots, np.linspace(0, 1, 5), atol=1e-6)
        np.testing.assert_array_equal(curve.data, layer.inputs[:, i])
        np.testing.assert_allclose(curve.x[0], min(0, curve.data.min()), atol=1e-6)
        np.testing.assert_allclose(curve.x[-1], max(1, curve.data.max()), atol=1e-6)
        assert (np.diff(curve.x) > 0).all()


def test_the_strongest_functions_are_one_of_each_input() -> None:
    model = inspected_model("B-spline")
    layer = inspect_layers(model, model.prior.sample(100, stream(2)))[2]
    strength = np.array([[1.0, 5, 2], [9, 0, 8], [0, 0, 7], [3, 3, 3]])

    def found(count: int) -> list[tuple[int, int, float]]:
        curves: list[Curve] = strongest_functions(layer._replace(strength=strength), count)
        return [(curve.input, curve.output, curve.strength) for curve in curves]

    assert found(9) == [(1, 0, 9.0), (2, 2, 7.0), (0, 1, 5.0), (3, 0, 3.0)]
    assert found(2) == found(9)[:2]


def transparent(latent_dim: int = 3) -> tuple[LVKAM, PriorDensities]:
    """A model that generates its latents, and its prior's densities, far from flat."""
    prior = small_prior(latent_dim)
    wild(prior)
    return linear_model(np.eye(latent_dim), prior), prior_densities(prior)


def test_a_traversal_moves_one_coordinate_through_its_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHUNK", 4)
    model, densities = transparent()
    z, levels, coordinates = np.array([0.2, 0.5, 0.7]), np.array([0.0, 0.1, 0.5, 0.9, 1.0]), (2, 0)
    before = z.copy()
    found = traversal(model, densities, z, coordinates, levels)
    assert found.shape == (2, 5, 3)
    for moved, q in zip(found, coordinates, strict=True):
        np.testing.assert_allclose(densities.rank(moved)[:, q], levels, atol=1e-5)
        others = [other for other in range(3) if other != q]
        np.testing.assert_allclose(moved[:, others], np.tile(z[others], (5, 1)), atol=1e-6)
    assert (z == before).all()


def test_an_interpolation_goes_from_draw_to_draw_in_equal_ranks() -> None:
    model, densities = transparent()
    ends = model.prior.sample(2, stream(3)).double().numpy()
    found = interpolation(model, densities, ends, np.linspace(0, 1, 6))
    np.testing.assert_allclose(found[[0, -1]], ends, atol=1e-6)
    steps = np.diff(densities.rank(found), axis=0)
    np.testing.assert_allclose(steps, np.tile(densities.rank(ends)[1] - densities.rank(ends)[0], (5, 1)) / 5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1, 3), (9, 3)])
def test_latents_of_every_shape_are_decoded(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHUNK", 2)
    model = linear_model(np.array([[1.0, 2.0], [0.0, 3.0], [4.0, 0.0]]))
    z = np.random.default_rng(0).random(shape)
    np.testing.assert_allclose(decode(model, z), z @ [[1, 2], [0, 3], [4, 0]], rtol=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "l2"])
def test_a_posterior_is_a_loop_over_draws(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHUNK", 7)
    model, x = small_model(wild_prior("uniform"), likelihood=likelihood), torch.rand(3, 5, generator=stream(1))
    wild(model.generator)
    found = posterior(model, x, 60, stream(4))
    z = model.prior.sample(60, stream(4))
    np.testing.assert_array_equal(found.z, z)
    y = model.decode(z).double().numpy()
    for b, image in enumerate(x.double().numpy()):
        if likelihood == "bernoulli":
            log_likelihood = [(image * np.log(s) + (1 - image) * np.log(1 - s)).sum() for s in y]
        else:
            log_likelihood = [-((image - s) ** 2).sum() / 2 for s in y]
        weights = np.exp(log_likelihood) / np.exp(log_likelihood).sum()
        np.testing.assert_allclose(found.weights[b], weights, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(found.sample_size[b], 1 / (weights**2).sum(), rtol=1e-3)
        np.testing.assert_allclose(
            found.reconstruction[b], sum(w * s for w, s in zip(weights, y, strict=True)), atol=1e-4
        )


def test_weighted_quantiles_are_those_of_repeated_draws() -> None:
    rng, levels = np.random.default_rng(0), (0.0, 0.05, 0.25, 0.5, 0.95, 1.0)
    values = rng.random((16, 3))
    equal = weighted_quantiles(values, np.full(16, 1 / 16), levels)
    np.testing.assert_array_equal(equal, np.quantile(values, levels, axis=0, method="inverted_cdf"))
    counts = rng.integers(1, 6, 16)
    repeated = np.quantile(np.repeat(values, counts, axis=0), levels, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(weighted_quantiles(values, counts.astype(float), levels), repeated)
    assert weighted_quantiles(values, np.eye(16)[5], (0.1, 0.9)).tolist() == [values[5].tolist()] * 2


def test_departures_are_kolmogorov_smirnov_distances() -> None:
    rng = np.random.default_rng(0)
    ranks = rng.random((40, 3)) ** [0.5, 1, 2]  # too high, right, too low
    ranks[10:13] = ranks[10]

    def expected(draws: np.ndarray) -> list[float]:
        return [kstest(column, "uniform").statistic for column in draws.T]

    np.testing.assert_allclose(departures(ranks, np.full(40, 1 / 40)), expected(ranks), atol=1e-12)
    counts = rng.integers(1, 6, 40)
    repeated = expected(np.repeat(ranks, counts, axis=0))
    np.testing.assert_allclose(departures(ranks, counts / counts.sum()), repeated, atol=1e-12)
    np.testing.assert_allclose(departures(np.array([[0.9, 0.3]]), np.ones(1)), [0.9, 0.7])


def test_the_nearest_is_found_one_by_one() -> None:
    x, among = torch.rand(7, 6, generator=stream(0)), torch.rand(20, 6, generator=stream(1))
    among[13] = among[4] = x[2]  # two of them equally near
    index, distance = nearest(x, among)
    for n, row in enumerate(x.double().numpy()):
        distances = [np.sqrt(((row - other) ** 2).sum()) for other in among.double().numpy()]
        assert index[n] == int(np.argmin(distances))
        np.testing.assert_allclose(distance[n], min(distances), rtol=1e-5)
    assert (index[2], distance[2]) == (4, 0)
    assert nearest(x, among[:1])[0].tolist() == [0] * 7
