"""Layers of univariate functions against NumPy and scipy in float64: values, initial values, grid updates.

Seeds are fixed, so that a test passes always or never. For a seed drawn at random each Kolmogorov-Smirnov
test here would raise a false alarm with probability ALARM.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from scipy.interpolate import BSpline
from torch import Tensor

from lvkam.splines import BASES
from lvkam.univariate import ACTIVATIONS, FunctionFamily, UnivariateFunctions
from tests.conftest import stream

ALARM = 1e-4
BUMPS = ["RBF", "RSWAF"]
NAMES = ["B-spline", *BUMPS]
Array = NDArray[np.float64]

FORMULAS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: x * special.ndtr(x),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "silu": lambda x: x * special.expit(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "celu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "none": np.zeros_like,
}


def family(name: str, activation: str = "silu", **others: Any) -> FunctionFamily:
    return FunctionFamily(basis=BASES[name], activation=ACTIVATIONS[activation], **others)


def b_splines(x: Array, grid: Array, degree: int) -> Array:
    """(N, K) by scipy, zero outside: padded by degree + 1 knots a side, so that no basis function is cut."""
    pad = 1 + np.arange(degree + 1)
    padded = np.concatenate((grid[0] - pad[::-1], grid, grid[-1] + pad))
    inside = np.clip(x, padded[degree], padded[-degree - 1])
    return BSpline.design_matrix(inside, padded, degree).toarray()[:, degree + 1 : -degree - 1]


def design(name: str, x: Array, grid: Array, degree: int, bandwidth: float) -> Array:
    """Basis functions of one input, (N, K)."""
    if name == "B-spline":
        return b_splines(x, grid, degree)
    distance = (x[:, None] - grid) / (bandwidth * np.diff(grid).mean())
    return np.exp(-(distance**2) / 2) if name == "RBF" else 1 - np.tanh(distance) ** 2


def numbers(layer: UnivariateFunctions) -> dict[str, Array]:
    return {key: value.double().numpy().copy() for key, value in layer.state_dict().items()}


def splines(layer: UnivariateFunctions, name: str, x: Tensor) -> Array:
    """sum_m coef B_m(x), (N, I, O), in float64 from the layer's parameters alone."""
    state = numbers(layer)
    eta = float(np.exp(state.get("log_bandwidth", 0.0)))
    column = x.double().numpy().T
    parts = [
        design(name, column[i], state["grid"][i], layer.family.degree, eta) @ state["coef"][i]
        for i in range(layer.num_inputs)
    ]
    return np.stack(parts, 1)


def lively_layer(name: str, activation: str = "silu", degree: int = 3, outputs: int = 4) -> UnivariateFunctions:
    """Three inputs, uneven grids, coefficients of order one, a bandwidth of 0.7."""
    settings = family(name, activation, degree=degree, grid_size=6, bandwidth=0.7)
    layer = UnivariateFunctions(3, outputs, settings, stream(0))
    layer.update_grid(torch.randn(200, 3, generator=stream(1)) * torch.tensor([0.3, 1.0, 2.0]))
    with torch.no_grad():
        layer.coef.copy_(torch.randn(layer.coef.shape, generator=stream(2)))
    return layer


def check_values(layer: UnivariateFunctions, name: str, activation: str) -> None:
    x = 3 * torch.randn(300, 3, dtype=torch.float64, generator=stream(3))  # some lie outside the grids
    state = numbers(layer)
    base = FORMULAS[activation](x.numpy())[..., None] * state["w_base"]
    expected = base + state["w_spline"] * splines(layer, name, x)
    double = copy.deepcopy(layer).double()
    for module, inputs, tolerance in ((double, x, 1e-10), (layer, x.float(), 5e-5)):
        functions = module.functions(inputs).double().detach().numpy()
        np.testing.assert_allclose(functions, expected, atol=tolerance)
        total = module(inputs).double().detach().numpy()
        np.testing.assert_allclose(total, expected.sum(1), atol=tolerance)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_layer_is_its_formula(name: str, degree: int) -> None:
    check_values(lively_layer(name, degree=degree), name, "silu")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_base_activation_is_its_formula(activation: str) -> None:
    x = torch.linspace(-8, 8, 999, dtype=torch.float64)
    np.testing.assert_allclose(ACTIVATIONS[activation](x).numpy(), FORMULAS[activation](x.numpy()), atol=1e-14)
    check_values(lively_layer("B-spline", activation), "B-spline", activation)


@pytest.mark.parametrize("name", NAMES)
def test_layer_passes_gradcheck(name: str) -> None:
    layer = lively_layer(name, outputs=2).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(4, 3, dtype=torch.float64, generator=stream(4)).requires_grad_()

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert {"coef", "w_base", "w_spline"} | ({"log_bandwidth"} if name in BUMPS else set()) == set(names)
    assert torch.autograd.gradcheck(outputs, (x, *parameters))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_bandwidth_is_learnt_only_where_allowed(name: str, trainable: bool) -> None:
    layer = UnivariateFunctions(2, 3, family(name, bandwidth=1.7, bandwidth_trainable=trainable), stream(0))
    learnt = dict(layer.named_parameters())
    assert ("log_bandwidth" in learnt) == (trainable and name in BUMPS)
    assert ("log_bandwidth" in layer.state_dict()) == (name in BUMPS)
    before = copy.deepcopy(layer.state_dict())
    layer(torch.rand(20, 2, generator=stream(1))).square().sum().backward()
    torch.optim.Adam(layer.parameters(), 0.1).step()
    moved = {key for key, value in layer.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(learnt)
    if layer.bandwidth is not None:
        bandwidth = layer.bandwidth.item()
        assert bandwidth > 0
        assert (abs(bandwidth - 1.7) < 1e-6) == (not trainable)


def glorot_mixture(scales: Array) -> Callable[[Array], Array]:
    """CDF of a normal whose standard deviation is one of the given numbers, interpolated between 2,000 points."""
    points = np.linspace(-8, 8, 2001) * np.abs(scales).max()
    cdf = special.ndtr(points[:, None] / np.abs(scales)).mean(1)
    return lambda x: np.interp(x, points, cdf)


@pytest.mark.parametrize(("mu", "sigma"), [(1.0, 1.0), (0.3, 0.0), (-1.0, 0.5)])
def test_initial_weights(mu: float, sigma: float) -> None:
    inputs, outputs = 80, 120
    layer = UnivariateFunctions(
        inputs, outputs, family("B-spline", mu_scale=mu, sigma_base=sigma, sigma_spline=0.4), stream(5)
    )
    glorot = math.sqrt(2 / (inputs + outputs))
    w_base, w_spline = layer.w_base.detach().numpy().ravel(), layer.w_spline.detach().numpy().ravel()
    assert stats.kstest(w_spline.astype(float), stats.norm(0, 0.4 * glorot).cdf).pvalue > ALARM
    noise = stats.norm.ppf((np.arange(400) + 0.5) / 400)  # e, by its quantiles
    scales = glorot * (mu + sigma * (2 * noise - 1)) / math.sqrt(inputs)
    assert stats.kstest(w_base.astype(float), glorot_mixture(scales)).pvalue > ALARM
    # the two are independent of each other
    correlation = np.corrcoef(np.abs(w_base), np.abs(w_spline))[0, 1]
    assert abs(correlation) < stats.norm.isf(ALARM / 2) / math.sqrt(len(w_base))


@pytest.mark.parametrize("name", NAMES)
def test_initial_coefficients_fit_noise_at_the_knots(name: str) -> None:
    settings = family(name, grid_size=7, epsilon_scale=0.3, bandwidth=1.2, grid_range=(-1.0, 3.0))
    layer = UnivariateFunctions(5, 300, settings, stream(6))
    np.testing.assert_allclose(layer.grid[:, 3:-3].numpy(), np.tile(np.linspace(-1, 3, 8), (5, 1)), atol=1e-6)
    np.testing.assert_allclose(layer.grid.diff(dim=1).numpy(), 4 / 7, atol=1e-6)
    knots = torch.linspace(-1, 3, 8, dtype=torch.float64)
    values = splines(layer, name, knots[:, None].expand(-1, 5))
    half = 0.3 / (2 * 7)
    assert stats.kstest(values.ravel(), stats.uniform(-half, 2 * half).cdf).pvalue > ALARM
    assert np.abs(values).max() < half * (1 + 1e-4)
    for i in range(5):  # of all coefficients with these values at the knots, the smallest
        matrix = design(name, knots.numpy(), numbers(layer)["grid"][i], 3, 1.2)
        expected = np.linalg.lstsq(matrix, values[:, i], rcond=1e-6)[0]
        np.testing.assert_allclose(numbers(layer)["coef"][i], expected, atol=1e-6)


def test_the_three_bases_differ_at_each_stage() -> None:
    x = torch.rand(300, 2, generator=stream(7))
    layers = {name: UnivariateFunctions(2, 3, family(name), stream(8)) for name in NAMES}
    assert not torch.allclose(layers["RBF"].coef, layers["RSWAF"].coef, rtol=0.01)
    assert layers["B-spline"].coef.shape[1] == 12 + 3
    for layer in layers.values():  # the bumps with the same coefficients, the B-splines with their number of them
        layer.coef = torch.nn.Parameter(
            torch.randn(2, 19, 3, generator=stream(9))[:, : layer.coef.shape[1]].contiguous()
        )
    values = {name: layer.functions(x).detach() for name, layer in layers.items()}
    for one, other in (("B-spline", "RBF"), ("B-spline", "RSWAF"), ("RBF", "RSWAF")):
        assert float((values[one] - values[other]).abs().max()) > 0.1
    for layer in layers.values():
        layer.update_grid(x)
    assert torch.equal(layers["RBF"].grid, layers["RSWAF"].grid)
    assert float((layers["RBF"].coef - layers["RSWAF"].coef).detach().abs().max()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_update_without_moving_knots_changes_nothing(name: str) -> None:
    layer = UnivariateFunctions(3, 4, family(name, grid_update_ratio=1.0, sigma_spline=3.0), stream(10))
    with torch.no_grad():
        layer.coef.copy_(torch.randn(layer.coef.shape, generator=stream(11)))
    x = torch.cat((torch.tensor([[0.0], [1.0]]).expand(2, 3), torch.rand(400, 3, generator=stream(12))))
    grid, before = layer.grid.clone(), layer.functions(x).detach()
    layer.update_grid(x)
    np.testing.assert_allclose(layer.grid.numpy(), grid.numpy(), atol=1e-6)
    np.testing.assert_allclose(layer.functions(x).detach().numpy(), before.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_update_keeps_a_smooth_function(name: str) -> None:
    # bumps are all as wide as the mean gap: unless they are wide and the gaps alike, they leave holes
    settings = family(name, grid_range=(-0.2, 1.2), bandwidth=2.0)
    layer = UnivariateFunctions(1, 1, settings, stream(13))
    x = torch.rand(500, 1, generator=stream(14))
    x = x.sqrt() if name == "B-spline" else x + 0.3 * x * (1 - x)
    wide = torch.linspace(-0.2, 1.2, 400, dtype=torch.float64)
    matrix = design(name, wide.numpy(), numbers(layer)["grid"][0], 3, 2.0)
    smooth = np.linalg.lstsq(matrix, np.sin(3 * wide.numpy()), rcond=1e-6)[0]
    with torch.no_grad():
        layer.coef.copy_(torch.from_numpy(smooth)[None, :, None])
        layer.w_spline.fill_(1)
    grid, before = layer.grid.clone(), layer.functions(x).detach()
    layer.update_grid(x)
    assert float((layer.grid - grid).abs().max()) > 0.02
    np.testing.assert_allclose(layer.functions(x).detach().numpy(), before.numpy(), atol=1e-3)


@pytest.mark.parametrize("ratio", [0.05, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_update_is_an_independent_least_squares_fit(name: str, ratio: float) -> None:
    settings = family(name, grid_update_ratio=ratio, grid_size=6, bandwidth=0.8)
    layer = UnivariateFunctions(2, 3, settings, stream(15))
    with torch.no_grad():
        layer.coef.copy_(torch.randn(layer.coef.shape, generator=stream(16)))
    x = torch.randn(300, 2, generator=stream(17)) * 0.3 + 0.5
    previous, before = splines(layer, name, x), numbers(layer)
    layer.update_grid(x)
    for i in range(2):
        column = x[:, i].double().numpy()
        adaptive = np.quantile(column, np.linspace(0, 1, 7))
        knots = ratio * np.linspace(column.min(), column.max(), 7) + (1 - ratio) * adaptive
        outer = (knots[-1] - knots[0]) / 6 * np.arange(1, 4)
        grid = np.concatenate((knots[0] - outer[::-1], knots, knots[-1] + outer))
        np.testing.assert_allclose(numbers(layer)["grid"][i], grid, atol=1e-6)
        matrix = design(name, column, grid, 3, 0.8)
        fitted = matrix @ np.linalg.lstsq(matrix, previous[:, i], rcond=1e-6)[0]
        assert np.abs(fitted - previous[:, i]).max() > 1e-2  # the new knots cannot follow the old function
        np.testing.assert_allclose(splines(layer, name, x)[:, i], fitted, atol=1e-4)
    for key in set(before) - {"grid", "coef"}:
        np.testing.assert_array_equal(numbers(layer)[key], before[key])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(64, 3),
        torch.full((64, 3), 500.0),
        torch.tensor([0.0] * 63 + [1.0])[:, None].expand(-1, 3),
        torch.randint(0, 3, (64, 3), generator=torch.Generator().manual_seed(0)) / 4,
        torch.tensor([[0.3, 0.4, 0.5]]),
    ],
    ids=["zero", "large constant", "one outlier", "three values", "one input"],
)
def test_update_with_repeated_inputs_keeps_values_there(name: str, x: Tensor) -> None:
    layer = lively_layer(name)
    before = layer.functions(x).detach()
    layer.update_grid(x)
    assert (layer.grid.diff(dim=1) > 0).all()
    assert all(bool(torch.isfinite(value).all()) for value in layer.state_dict().values())
    np.testing.assert_allclose(layer.functions(x).detach().numpy(), before.numpy(), atol=1e-4, rtol=1e-5)
    assert torch.isfinite(layer(torch.randn(50, 3, generator=stream(18)))).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_update_with_a_bad_input_raises_and_changes_nothing(name: str, bad: float) -> None:
    layer = lively_layer(name)
    before = copy.deepcopy(layer.state_dict())
    x = torch.rand(20, 3, generator=stream(19))
    x[7, 1] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        layer.update_grid(x)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("name", NAMES)
def test_every_activation_and_basis_trains(name: str, activation: str) -> None:
    layer = UnivariateFunctions(3, 4, family(name, activation), stream(20))
    # far inputs, inputs on the knots, and the kinks of the activations at 0 and +-3
    x = torch.cat((2 * torch.randn(40, 3, generator=stream(21)), layer.grid.T, torch.tensor([[0.0, 3.0, -3.0]])))
    target = torch.sin(4 * x[:, :1])
    optimiser = torch.optim.Adam(layer.parameters(), 0.01)
    losses: list[float] = []
    for step in range(8):
        if step == 4:
            layer.update_grid(x)
        optimiser.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in layer.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[3] < losses[0]
    if activation == "none":
        assert layer.w_base.grad is not None
        assert (layer.w_base.grad == 0).all()
