"""Layers of univariate functions against NumPy and scipy in float64: values, initial values, grid updates.

Seeds are fixed, so that a test passes always or never. For a seed drawn at random each Kolmogorov-Smirnov
test here would raise a false alarm with probability ALARM.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from scipy.interpolate import BSpline
from torch import Tensor

from lvkam import univariate
from lvkam.splines import BASES, Knots, extend_grid, features_backward, uniform_knots
from lvkam.univariate import (
    ACTIVATIONS,
    FunctionFamily,
    UnivariateFunctions,
    fastest_precision,
    twice_differentiable,
)
from tests.conftest import require_compiler, stream

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


class Functions(torch.nn.Module):
    """A layer as it is, or its functions each by itself."""

    def __init__(self, layer: UnivariateFunctions, summed: bool):
        super().__init__()
        self.layer, self.summed = layer, summed

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.summed else self.layer.functions(x)


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("degree", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_layer_passes_gradcheck(name: str, degree: int, summed: bool) -> None:
    module = Functions(lively_layer(name, degree=degree, outputs=2).double(), summed)
    names, parameters = zip(*module.named_parameters(), strict=True)
    x = torch.randn(4, 3, dtype=torch.float64, generator=stream(4)).requires_grad_()

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), x)

    learnt = {"coef", "w_base", "w_spline"} | ({"log_bandwidth"} if name in BUMPS else set())
    assert {f"layer.{parameter}" for parameter in learnt} == set(names)
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
    assert layer.update_grid(x) is None
    assert (layer.grid.diff(dim=1) > 0).all()
    assert all(bool(torch.isfinite(value).all()) for value in layer.state_dict().values())
    np.testing.assert_allclose(layer.functions(x).detach().numpy(), before.numpy(), atol=1e-4, rtol=1e-5)
    assert torch.isfinite(layer(torch.randn(50, 3, generator=stream(18)))).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_update_with_a_bad_input_says_so_and_changes_nothing(name: str, bad: float) -> None:
    layer = lively_layer(name)
    before = copy.deepcopy(layer.state_dict())
    x = torch.rand(20, 3, generator=stream(19))
    x[7, 1] = bad
    assert layer.update_grid(x) == "an input is not finite"
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_update_that_would_spoil_the_layer_says_why_and_changes_nothing(name: str) -> None:
    x = torch.rand(200, 3, generator=stream(19))
    signs = torch.sign(torch.randn(lively_layer(name).coef.shape, generator=stream(20)))
    cases: list[tuple[Tensor, Tensor | None, str]] = [
        # finite, but not the knots beyond them
        (6.6e38 * (x.double() - 0.5), None, "the new knots are not finite or not increasing"),
        # as large as they can be: fitted on other knots some are larger
        (x, 3.3e38 * signs, "a new coefficient is not finite"),
        (x, torch.nan * signs, "spline fit: a basis function or a value is not finite"),
    ]
    for inputs, coef, reason in cases:
        layer = lively_layer(name)
        if coef is not None:
            layer.coef.data.copy_(coef)
        before = copy.deepcopy(layer.state_dict())
        assert layer.update_grid(inputs) == reason
        for key, value in layer.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), before[key].numpy(), strict=True)


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


Results = dict[str, Array]
"""Values and, by name, gradients."""

TERMS = "log_bandwidth, by input"
"""Gradient of each input's bandwidth, if each had its own: they may nearly cancel in their sum."""


def slow_results(layer: UnivariateFunctions, x: Tensor, grad: Tensor) -> Results:
    """All of a layer by the plain basis, autograd and sums over whole tensors, in float64."""
    slow = copy.deepcopy(layer).double()
    x = x.detach().double().requires_grad_()
    eta = None
    if slow.family.basis.has_bandwidth:
        eta = slow.log_bandwidth.exp().expand(*x.shape, 1)
        if eta.requires_grad:
            eta.retain_grad()
    basis = slow.family.basis.evaluate(x, slow.grid, slow.family.degree, eta)
    functions = torch.einsum("nik,iko,io->nio", basis, slow.coef, slow.w_spline)
    functions = functions + slow.family.activation(x).unsqueeze(-1) * slow.w_base
    out = functions.sum(1) if grad.ndim == 2 else functions
    (out * grad.double()).sum().backward()
    terms = {} if eta is None or eta.grad is None else {TERMS: (eta.grad * eta).detach().numpy()}
    return collect(slow, x, out) | terms


def results(layer: UnivariateFunctions, x: Tensor, grad: Tensor) -> Results:
    """The same by the layer itself: summed if the gradient is (N, O), each function by itself if (N, I, O)."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    out = layer(x) if grad.ndim == 2 else layer.functions(x)
    out.backward(grad)
    return collect(layer, x, out)


def collect(layer: UnivariateFunctions, x: Tensor, out: Tensor) -> Results:
    tensors = {"values": out.detach(), "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
    # without an activation nothing may have reached w_base
    return {name: t.double().numpy().copy() for name, t in tensors.items() if t is not None}


def check_results(found: Results, expected: Results, tolerance: float) -> None:
    """Equal to the slow path's, within a share of the largest entry of each, or of the sum behind a bandwidth's."""
    names = expected.keys() - {TERMS}
    assert found.keys() >= names
    assert all(np.abs(found[name]).max(initial=0) == 0 for name in found.keys() - names)
    for name in names:
        scale = np.abs(expected[TERMS]).sum() if name == "log_bandwidth" else np.abs(expected[name]).max(initial=0)
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance * scale, err_msg=name)


def some_inputs(rows: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs of the three of a lively layer, some outside its grids."""
    return 2 * torch.randn(rows, 3, dtype=dtype, generator=stream(30))


def gradient(layer: UnivariateFunctions, x: Tensor, summed: bool = True) -> Tensor:
    shape = (len(x), layer.num_outputs) if summed else (len(x), layer.num_inputs, layer.num_outputs)
    return torch.randn(shape, dtype=x.dtype, generator=stream(31))


ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize(
    ("degree", "activation"),
    [(1, "silu"), (2, "tanh"), (3, "silu"), (3, "none"), (3, "relu"), (4, "gelu"), (5, "celu")],
)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_the_slow_path(name: str, degree: int, activation: str, summed: bool, dtype: torch.dtype) -> None:
    layer = lively_layer(name, activation, degree).to(dtype)
    x = some_inputs(dtype=dtype)
    grad = gradient(layer, x, summed)
    check_results(results(layer, x, grad), slow_results(layer, x, grad), ROUNDING[dtype])


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_kernels_are_the_slow_path(name: str, summed: bool) -> None:
    require_compiler()
    layer = lively_layer(name)
    layer.family = dataclasses.replace(layer.family, compiled=True)
    for rows in (200, 77, 1):
        x = some_inputs(rows)
        grad = gradient(layer, x, summed)
        check_results(results(layer, x, grad), slow_results(layer, x, grad), ROUNDING[torch.float32])


def test_compiled_kernels_in_chunks_without_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setattr(univariate, "CHUNK", 30 * 25)  # 25 rows of 3 x 10 features at a time
    layer = lively_layer("B-spline")
    layer.family = dataclasses.replace(layer.family, compiled=True)
    x = some_inputs(130)
    grad = gradient(layer, x)
    grad[torch.rand(130, generator=stream(32)) < 0.5] = 0
    check_results(results(layer, x, grad), slow_results(layer, x, grad), ROUNDING[torch.float32])


def results_of_a_bad_gradient(layer: UnivariateFunctions) -> Results:
    """Of one that is not a number at one row and output: in x it reaches that row, and no other."""
    grad = torch.zeros(20, 4)
    grad[3, 1] = torch.nan
    found = results(layer, some_inputs(20), grad)
    assert np.isnan(found["x"][3]).all()
    assert not np.isnan(np.delete(found["x"], 3, 0)).any()
    return found


def local_layer(monkeypatch: pytest.MonkeyPatch, degree: int = 3, even: bool = False) -> UnivariateFunctions:
    """A lively layer, compiled, that leaves out the B-splines that are zero, however few its points and outputs are."""
    require_compiler()
    monkeypatch.setattr(univariate, "LOCAL_POINTS", 0)
    monkeypatch.setattr(univariate, "LOCAL_COST", 0)
    layer = lively_layer("B-spline", degree=degree)
    if even:
        knots = uniform_knots(3, 6, (-1.5, 2))
        layer.grid.copy_(extend_grid(knots, degree))
    layer.family = dataclasses.replace(layer.family, compiled=True)
    return layer


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_sums_without_what_is_zero_are_the_slow_path(degree: int, even: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = local_layer(monkeypatch, degree, even)
    called: list[bool] = []
    add_sums = univariate.add_sums

    def counted(x: Tensor, grid: Tensor, is_even: bool, *others: Any) -> Tensor:
        called.append(is_even)
        return add_sums(x, grid, is_even, *others)

    monkeypatch.setattr(univariate, "add_sums", counted)
    for rows in (200, 77, 1, 0):
        x = some_inputs(rows)
        dense = gradient(layer, x)
        for share in (0, 0.5, 1):  # of rows without gradient
            grad = dense * (torch.rand(rows, 1, generator=stream(32)) >= share)
            check_results(results(layer, x, grad), slow_results(layer, x, grad), ROUNDING[torch.float32])
    assert called == [even and degree >= 2] * 12


def test_sums_without_what_is_zero_take_any_strides_and_lose_no_bad_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = local_layer(monkeypatch)
    x, grad = some_inputs(20), torch.randn(20, 4, generator=stream(31))
    strided = x.T.contiguous().T
    assert not strided.is_contiguous()
    check_results(results(layer, strided, grad.T.contiguous().T), slow_results(layer, x, grad), 1e-5)
    with torch.inference_mode():
        inferred = layer(x)
    assert torch.equal(inferred, layer(x))
    assert np.isnan(results_of_a_bad_gradient(layer)["coef"][..., 1]).any()


def test_sums_without_what_is_zero_have_no_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = local_layer(monkeypatch), some_inputs(20).requires_grad_()
    for wanted in (x, layer.coef, layer.w_spline):
        with pytest.raises(RuntimeError, match="once only"):
            torch.autograd.grad(layer(x).square().sum(), wanted, create_graph=True)
    # in the base weights the layer is linear, and nothing is refused or wrong
    (first,) = torch.autograd.grad(layer(x).square().sum(), layer.w_base, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), layer.w_base)
    base = layer.family.activation(x).detach()
    np.testing.assert_allclose(second.detach(), 4 * base.T @ (base @ first.detach()), rtol=1e-4)
    with twice_differentiable():
        assert not layer.leaves_out_zeros(x)


def test_zeros_are_left_out_where_that_is_faster() -> None:
    def leaves_out(points: int = 256, name: str = "B-spline", outputs: int = 128, **settings: Any) -> bool:
        options: dict[str, Any] = {"compiled": True} | settings
        layer = UnivariateFunctions(2, outputs, family(name, **options), stream(0))
        return layer.leaves_out_zeros(torch.zeros(points, 2))

    assert leaves_out(grid_size=12)
    assert not leaves_out(255, grid_size=12)
    assert not leaves_out(name="RBF", grid_size=12)
    assert not leaves_out(grid_size=12, compiled=False)
    assert not leaves_out(grid_size=12, precision=torch.bfloat16)
    # 2 x 4 functions are multiplied in the time of 7 + 1
    assert leaves_out(grid_size=4)
    assert not leaves_out(grid_size=3)
    # 17 outputs take as long as 32
    assert not leaves_out(grid_size=4, outputs=17)
    assert not leaves_out(grid_size=30, degree=6)
    # a copy does as the original, and none takes what the kernels do not
    layer = copy.deepcopy(UnivariateFunctions(2, 128, family("B-spline", grid_size=12, compiled=True), stream(0)))
    x = torch.zeros(256, 2)
    assert layer.leaves_out_zeros(x)
    assert not layer.leaves_out_zeros(x.to("meta"))
    assert not layer.leaves_out_zeros(torch.zeros(256, 3))
    assert not layer.leaves_out_zeros(torch.zeros(256, 2, 2))
    layer.double()
    assert not layer.leaves_out_zeros(x)
    assert not layer.leaves_out_zeros(x.double())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("rows", [1, 7, 64, 200, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing(name: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lively_layer(name).to(dtype)
    x = some_inputs(dtype=dtype)
    grad = gradient(layer, x)
    expected = slow_results(layer, x, grad)
    check_results(results(layer, x, grad), expected, ROUNDING[dtype])
    features = layer.num_inputs * (layer.coef.shape[1] + 1)
    for numbers_at_a_time in (rows * features, (rows + 1) * features - 1):
        monkeypatch.setattr(univariate, "CHUNK", numbers_at_a_time)
        check_results(results(layer, x, grad), expected, ROUNDING[dtype])
    monkeypatch.setattr(univariate, "CHUNK", 1)  # less than a row: a row at a time
    check_results(results(layer, x, grad), expected, ROUNDING[dtype])


@pytest.mark.parametrize("chunk", [univariate.CHUNK, 200])
@pytest.mark.parametrize("kept", ["none", "the first", "the last", "some", "all", "one output of each"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_without_gradient_cost_and_change_nothing(
    name: str, kept: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Tensor] = []

    def backward(x: Tensor, *others: Any) -> Any:
        computed.append(x)
        return features_backward(x, *others)

    layer = lively_layer(name).double()
    x = some_inputs(dtype=torch.float64)
    dense = gradient(layer, x)
    mask = torch.zeros_like(dense)
    if kept == "one output of each":
        mask[torch.arange(200), torch.randint(4, (200,), generator=stream(32))] = 1
    else:
        some = torch.rand(200, generator=stream(33)) < 0.2
        rows = {"none": slice(0), "the first": slice(1), "the last": slice(199, 200), "some": some, "all": slice(200)}
        mask[rows[kept]] = 1
    expected = slow_results(layer, x, dense * mask)
    monkeypatch.setattr(univariate, "features_backward", backward)
    monkeypatch.setattr(univariate, "CHUNK", chunk)
    check_results(results(layer, x, dense * mask), expected, ROUNDING[torch.float64])
    # not a row more is computed, and each row once
    assert torch.equal(torch.cat([x[:0], *computed]), x[mask.any(1)])


def test_a_gradient_that_is_not_a_number_is_not_lost() -> None:
    assert np.isnan(results_of_a_bad_gradient(lively_layer("B-spline"))["coef"][..., 1]).all()


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_rows(name: str, summed: bool, rows: int) -> None:
    layer = lively_layer(name)
    x = some_inputs(rows)
    grad = gradient(layer, x, summed)
    found = results(layer, x, grad)
    assert found["values"].shape == grad.shape
    check_results(found, slow_results(layer, x, grad), ROUNDING[torch.float32])


@pytest.mark.parametrize("name", NAMES)
def test_latents_without_gradient_change_no_parameters_gradient(name: str) -> None:
    layer = lively_layer(name).double()
    for trainable in (True, False):  # without a bandwidth to learn, a backward pass needs no slopes
        if name in BUMPS and not trainable:
            layer.log_bandwidth.requires_grad_(False)
        x = some_inputs(dtype=torch.float64)
        grad = gradient(layer, x)
        expected = slow_results(layer, x, grad)
        layer.zero_grad()
        layer(x).backward(grad)
        for key, parameter in layer.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                scale = np.abs(expected[key]).max()
                np.testing.assert_allclose(parameter.grad.numpy(), expected[key], atol=1e-12 * scale)


def test_inputs_of_any_strides_are_the_same() -> None:
    layer = lively_layer("B-spline")
    x = some_inputs()
    grad = gradient(layer, x)
    wide = torch.zeros(200, 6)
    wide[:, ::2] = x
    check_results(results(layer, wide[:, ::2], grad.T.contiguous().T), slow_results(layer, x, grad), 1e-5)
    grad = grad[:, :1].expand(-1, 4)
    check_results(results(layer, x.T.contiguous().T, grad), slow_results(layer, x, grad), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_not_kept(name: str) -> None:
    """K + 1 features of each input would be ten times the inputs, here."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    layer, x = lively_layer(name), some_inputs(5000).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in kept}
    # the inputs, for the kernels and for the activation; what it makes of them; the rest does not grow with them
    assert sum(distinct.values()) <= 2 * x.numel() + 4 * layer.coef.numel()


@pytest.mark.parametrize("by", ["backward", "grad"])
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_second_derivative_is_an_error(name: str, summed: bool, by: str) -> None:
    """And never a wrong number, as it would be of the base activation alone."""

    def differentiate_twice(wanted: Tensor) -> None:
        out = layer(x) if summed else layer.functions(x)
        (first,) = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        if by == "backward":
            first.square().sum().backward()
        else:
            torch.autograd.grad(first.square().sum(), wanted)

    layer, x = lively_layer(name), some_inputs(20).requires_grad_()
    for wanted in (x, *layer.parameters()):
        with pytest.raises(RuntimeError):
            differentiate_twice(wanted)


def half_precision_bounds(layer: UnivariateFunctions, x: Tensor, grad: Tensor) -> Results:
    """How far bfloat16 products may be off: every factor and every result is rounded once.

    Rounding to bfloat16's 8 bits changes a number by a share of 2^-8 at most. A product of two rounded factors,
    summed in more bits and rounded again, is off by at most 3 such shares (and their squares) of the sum of its
    terms' absolute values; a gradient of x takes one such product and then goes on in float32. That sum is found by
    the slow path, with absolute values in place of numbers.
    """
    slow = copy.deepcopy(layer).double()
    x = x.double().requires_grad_()
    eta = slow.bandwidth
    basis = slow.family.basis.evaluate(x, slow.grid, slow.family.degree, eta)
    slope = torch.stack([torch.autograd.grad(basis[..., m].sum(), x, retain_graph=True)[0]
                         for m in range(basis.shape[2])], -1).abs()  # fmt: skip
    base = slow.family.activation(x)
    (base_slope,) = torch.autograd.grad(base.sum(), x, retain_graph=True)
    with torch.no_grad():
        grad = grad.double().abs()
        basis, base, base_slope, weight = basis.abs(), base.abs(), base_slope.abs(), slow.weight().abs()
        features = torch.cat((basis, base.unsqueeze(-1)), -1)
        grad_features = torch.einsum("no,iko->nik", grad, weight)
        grad_weight = torch.einsum("nik,no->iko", features, grad)
        bounds = {
            "values": torch.einsum("nik,iko->no", features, weight),
            "x": (grad_features[..., :-1] * slope).sum(-1) + grad_features[..., -1] * base_slope,
            "coef": grad_weight[:, :-1] * slow.w_spline.abs().unsqueeze(1),
            "w_spline": (grad_weight[:, :-1] * slow.coef.abs()).sum(1),
            "w_base": grad_weight[:, -1],
        }
        if eta is not None:  # dB/d(log eta) = -(x - t) dB/dx
            distance = (x.unsqueeze(-1) - slow.grid).abs()
            bounds["log_bandwidth"] = (grad_features[..., :-1] * slope * distance).sum()
    return {name: bound.numpy() for name, bound in bounds.items()}


@pytest.mark.parametrize("chunk", [univariate.CHUNK, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_off_by_its_rounding(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(univariate, "CHUNK", chunk)
    layer = lively_layer(name)
    layer.family = dataclasses.replace(layer.family, precision=torch.bfloat16)
    check_half_precision(layer)


@pytest.mark.parametrize("name", ["B-spline", "RBF"])
def test_compiled_bfloat16_is_off_by_its_rounding(name: str) -> None:
    require_compiler()
    layer = lively_layer(name)
    layer.family = dataclasses.replace(layer.family, precision=torch.bfloat16, compiled=True)
    check_half_precision(layer)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 amx_bf16 amx_tile", torch.bfloat16),
        ("flags\t\t: fpu avx2 avx512_bf16\nbugs\t\t: swapgs", torch.bfloat16),
        ("flags\t\t: fpu avx2 amx_bf16", torch.bfloat16),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", torch.float32),
        (None, torch.float32),  # not on Linux
    ],
)
def test_the_precision_is_left_to_what_the_processor_has_units_for(
    told: str | None, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(univariate, "CPUINFO", tmp_path / "cpuinfo")
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    fastest_precision.cache_clear()
    try:
        assert fastest_precision("cpu") == expected
        family = FunctionFamily(precision=None)
        assert family.precision_of(torch.zeros(1)) == expected
        assert family.precision_of(torch.zeros(1, dtype=torch.float64)) == torch.float64
        assert FunctionFamily(precision=torch.bfloat16).precision_of(torch.zeros(1)) == torch.bfloat16
    finally:
        fastest_precision.cache_clear()


def check_half_precision(layer: UnivariateFunctions) -> None:
    x = some_inputs()
    grad = gradient(layer, x)
    grad[::3] = 0
    assert layer(x).dtype == torch.float32
    found, expected, bounds = (
        results(layer, x, grad),
        slow_results(layer, x, grad),
        half_precision_bounds(layer, x, grad),
    )
    assert found.keys() == expected.keys() - {TERMS} == bounds.keys()
    for key, bound in bounds.items():
        error = np.abs(found[key] - expected[key])
        assert (error <= 3.1 * 2**-8 * bound + 1e-5 * bound.max()).all(), key
        assert error.max() > 1e-5 * np.abs(expected[key]).max(), f"{key}: more exact than bfloat16 can be"
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32
               for p in layer.parameters())  # fmt: skip


def test_bfloat16_chunks_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a sum of equal terms stops growing at the 256th: here 2,000 are added, a row at a time."""
    monkeypatch.setattr(univariate, "CHUNK", 1)
    layer = lively_layer("B-spline", "sigmoid")
    layer.family = dataclasses.replace(layer.family, precision=torch.bfloat16)
    x, grad = some_inputs(2000), torch.ones(2000, 4)
    found, expected, bounds = (f(layer, x, grad)["w_base"] for f in (results, slow_results, half_precision_bounds))
    assert (np.abs(found - expected) <= 3.1 * 2**-8 * bounds).all()


def test_bfloat16_leaves_float64_and_single_functions_alone() -> None:
    exact, layer = lively_layer("B-spline"), lively_layer("B-spline")
    layer.family = dataclasses.replace(layer.family, precision=torch.bfloat16)
    x = some_inputs()
    assert torch.equal(layer.functions(x), exact.functions(x))
    assert torch.equal(layer.double()(x.double()), exact.double()(x.double()))


def knots_are_the_grids(layer: UnivariateFunctions) -> bool:
    knots = layer.knots()
    return torch.equal(knots.grid[:, :-1], layer.grid)


def moved(layer: UnivariateFunctions) -> UnivariateFunctions:
    other = copy.deepcopy(layer)
    other.update_grid(1 + 3 * torch.rand(100, 3, generator=stream(34)))
    assert not torch.equal(other.grid, layer.grid)
    return other


GRID_CHANGES: dict[str, Callable[[UnivariateFunctions], object]] = {
    "update_grid": lambda layer: layer.update_grid(torch.rand(100, 3, generator=stream(35))),
    "load_state_dict": lambda layer: layer.load_state_dict(moved(layer).state_dict()),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(moved(layer).state_dict(), assign=True),
    "copy_": lambda layer: layer.grid.copy_(moved(layer).grid),
    "one knot": lambda layer: layer.grid[1].add_(0.5),
    "double": lambda layer: layer.double(),
    "double and back": lambda layer: layer.double().float(),
}


@pytest.mark.parametrize("change", GRID_CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_knots_follow_the_grid(name: str, change: str) -> None:
    layer = lively_layer(name)
    x = some_inputs()
    layer(x)
    before = layer.knots()
    assert layer.knots() is before  # kept while nothing changes
    GRID_CHANGES[change](layer)
    assert knots_are_the_grids(layer)
    x = x.to(layer.grid.dtype)
    grad = gradient(layer, x)
    check_results(results(layer, x, grad), slow_results(layer, x, grad), ROUNDING[x.dtype])


def test_knots_are_prepared_once() -> None:
    layer = lively_layer("B-spline")
    first = layer.knots()
    for _ in range(3):
        results(layer, some_inputs(), torch.ones(200, 4))
        layer.functions(some_inputs())
    assert layer.knots() is first


def test_knots_of_inference_serve_training() -> None:
    layer = lively_layer("RBF")
    x = some_inputs()
    with torch.inference_mode():
        values = layer(x)
    assert isinstance(layer.knots(), Knots)
    grad = gradient(layer, x)
    found = results(layer, x, grad)
    np.testing.assert_array_equal(found["values"], values.double().numpy())
    check_results(found, slow_results(layer, x, grad), ROUNDING[torch.float32])


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_can_be_copied_and_saved(name: str) -> None:
    layer = lively_layer(name)
    x = some_inputs()
    values = layer(x).detach()
    layer.functions(x).sum().backward()
    other = copy.deepcopy(layer)
    other.update_grid(torch.rand(100, 3, generator=stream(36)))
    assert knots_are_the_grids(other)
    # neither follows the other
    assert torch.equal(layer(x), values)
    assert not torch.equal(other(x), values)
    torch.save(layer.state_dict(), file := io.BytesIO())
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), values)


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_computes_what_a_cpu_does(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    layer = lively_layer(name)
    other = copy.deepcopy(layer).cuda()
    x = torch.randn(300, 3, generator=stream(5)).requires_grad_()
    y = x.detach().cuda().requires_grad_()
    torch.testing.assert_close(other(y).cpu(), layer(x), atol=1e-4, rtol=1e-4)
    other(y).square().sum().backward()
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(y.grad.cpu(), x.grad, atol=1e-3, rtol=1e-3)
    for one, two in zip(layer.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        torch.testing.assert_close(two.grad.cpu(), one.grad, atol=1e-2, rtol=1e-3)


def value_and_gradients(layer: UnivariateFunctions, x: Tensor, summed: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = (layer(x) if summed else layer.functions(x)).sin().sum()
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()])]


SECOND = [(name, "silu") for name in NAMES] + [("B-spline", a) for a in sorted(ACTIVATIONS) if a != "silu"]


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize(("name", "activation"), SECOND)
def test_the_path_that_can_be_differentiated_twice_is_the_same_function(
    name: str, activation: str, summed: bool
) -> None:
    """Value and gradient to rounding; its second derivatives, along a direction, by central differences."""
    layer = lively_layer(name, activation).double()
    x = torch.randn(40, 3, dtype=torch.float64, generator=stream(7))
    fast = value_and_gradients(layer, x, summed)
    with twice_differentiable():
        for one, other in zip(value_and_gradients(layer, x, summed), fast, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        parameters = list(layer.parameters())
        out = (layer(x) if summed else layer.functions(x)).sin().sum()
        gradients = torch.autograd.grad(out, parameters, create_graph=True)
        along = [torch.randn(p.shape, dtype=p.dtype, generator=stream(8)) for p in parameters]
        slope = torch.stack([(g * d).sum() for g, d in zip(gradients, along, strict=True)]).sum()
        found = torch.autograd.grad(slope, parameters)
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, along, strict=True):
                p.add_(d, alpha=sign * 1e-6)
        ends.append(value_and_gradients(layer, x, summed)[2:])
    for one, high, low in zip(found, *ends, strict=True):
        difference = (high - low) / 2e-6
        torch.testing.assert_close(one, difference, rtol=1e-6, atol=1e-6 * difference.abs().max().item())


def test_second_derivatives_are_refused_again_afterwards() -> None:
    layer = lively_layer("B-spline")
    x = torch.randn(5, 3, generator=stream(9))

    def second() -> None:
        gradients = torch.autograd.grad(layer(x).square().sum(), [*layer.parameters()], create_graph=True)
        torch.autograd.grad(torch.stack([g.sum() for g in gradients]).sum(), [*layer.parameters()])

    with twice_differentiable():
        second()
    with pytest.raises(ZeroDivisionError), twice_differentiable():
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="once only"):
        second()


def test_nothing_is_compiled_where_second_derivatives_are_wanted() -> None:
    settings = family("RBF", compiled=True)
    assert settings.kernel(features_backward) is not features_backward
    with twice_differentiable():
        assert settings.kernel(features_backward) is features_backward
