"""Likelihoods against closed forms, layers against their composition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lvkam.generator import (
    KANGenerator,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    squared_distance,
    weighted_bernoulli,
    weighted_squared_distance,
)
from lvkam.univariate import FunctionFamily, UnivariateFunctions
from tests.conftest import require_compiler, stream


def test_bernoulli_log_likelihood_is_its_definition() -> None:
    x = torch.rand(5, 7, generator=stream(0), dtype=torch.float64)
    x[0], x[1] = 0.0, 1.0
    logits = 4 * torch.randn(6, 7, generator=stream(1), dtype=torch.float64)
    y = 1 / (1 + np.exp(-logits.numpy()))[None]
    t = x.numpy()[:, None]
    expected = (t * np.log(y) + (1 - t) * np.log(1 - y)).sum(-1)
    np.testing.assert_allclose(bernoulli_log_likelihood(x, logits).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(bernoulli_log_likelihood(x.float(), logits.float()).numpy(), expected, rtol=1e-5)


def test_bernoulli_log_likelihood_of_certain_pixels_is_finite() -> None:
    x = torch.tensor([[0.0, 1.0]])
    logits = torch.tensor([[-1e4, 1e4], [1e4, -1e4]])
    assert bernoulli_log_likelihood(x, logits).tolist() == [[0.0, -2e4]]


@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_gaussian_log_likelihood_is_scipys(std: float) -> None:
    x = torch.rand(4, 9, generator=stream(2), dtype=torch.float64)
    mean = torch.rand(5, 9, generator=stream(3), dtype=torch.float64)
    expected = stats.norm.logpdf(x.numpy()[:, None], mean.numpy()[None], std).sum(-1)
    np.testing.assert_allclose(gaussian_log_likelihood(x, mean, std).numpy(), expected, rtol=1e-10)


def test_weighted_sums_over_pairs_are_those_of_the_pairs() -> None:
    """Weights of both signs, as trapezoid weights are, in value and gradient."""
    x = torch.rand(6, 9, generator=stream(6), dtype=torch.float64)
    weights = torch.randn(6, 4, generator=stream(7), dtype=torch.float64)
    out = torch.randn(4, 9, generator=stream(8), dtype=torch.float64, requires_grad=True)
    for found, pairs in (
        (weighted_bernoulli(x, out, weights), bernoulli_log_likelihood(x, out)),
        (weighted_squared_distance(x, out, weights), (x.unsqueeze(1) - out).square().sum(-1)),
    ):
        expected = (weights * pairs).sum()
        np.testing.assert_allclose(found.item(), expected.item(), rtol=1e-12)
        (gradient,), (wanted,) = (torch.autograd.grad(value, out) for value in (found, expected))
        np.testing.assert_allclose(gradient.numpy(), wanted.numpy(), atol=1e-13)


def test_squared_distance_survives_a_far_origin() -> None:
    x = 100 + torch.rand(4, 50, generator=stream(4))
    y = 100 + torch.rand(6, 50, generator=stream(5))
    expected = ((x.double()[:, None] - y.double()[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distance(x, y).numpy(), expected.numpy(), rtol=1e-5)
    assert (squared_distance(x, x).diagonal() >= 0).all()


@pytest.mark.parametrize("hidden", [(), (4,), (4, 3)])
def test_layers_are_composed(hidden: tuple[int, ...]) -> None:
    generator = KANGenerator([2, *hidden, 5], FunctionFamily(grid_size=6), stream(6))
    z = torch.rand(8, 2, generator=stream(7))
    values = z
    for layer in generator.layers:
        assert isinstance(layer, UnivariateFunctions)
        values = layer.functions(values).sum(1)  # each function by itself, then the sum over the inputs
    np.testing.assert_allclose(generator(z).detach().numpy(), values.detach().numpy(), atol=1e-5)
    assert generator(z).shape == (8, 5)


def test_each_layer_adapts_to_its_own_inputs() -> None:
    """The knots of layer n span what layer n - 1, already adapted, makes of the latents."""
    generator = KANGenerator([2, 4, 5], FunctionFamily(grid_size=6), stream(8))
    z = 0.2 + 0.3 * torch.rand(300, 2, generator=stream(9))
    before = generator(z).detach()
    generator.update_grids(z)
    inputs: list[Tensor] = [z, generator.layers[0](z).detach()]
    for layer, x in zip(generator.layers, inputs, strict=True):
        assert isinstance(layer, UnivariateFunctions)
        inner = layer.grid[:, 3:-3]
        np.testing.assert_allclose(inner[:, 0].numpy(), x.amin(0).numpy(), atol=2e-3)
        np.testing.assert_allclose(inner[:, -1].numpy(), x.amax(0).numpy(), atol=2e-3)
    # the functions are smooth: new knots describe nearly the same ones
    np.testing.assert_allclose(generator(z).detach().numpy(), before.numpy(), atol=1e-2)


def gradients(generator: KANGenerator, z: Tensor, grad: Tensor) -> list[Tensor]:
    """Outputs, and gradients of latents and parameters, in float64."""
    z = z.clone().requires_grad_()
    out = generator(z)
    found = torch.autograd.grad(out, [z, *generator.parameters()], grad)
    return [tensor.detach().double() for tensor in (out, *found)]


def rebuilt(generator: KANGenerator, family: FunctionFamily) -> KANGenerator:
    """The same parameters, in layers of another family."""
    layers = [layer for layer in generator.layers if isinstance(layer, UnivariateFunctions)]
    other = KANGenerator([layers[0].num_inputs, *(layer.num_outputs for layer in layers)], family, stream(10))
    other.load_state_dict(generator.state_dict())
    return other


def test_a_compiled_generator_is_the_plain_one() -> None:
    require_compiler()
    family = FunctionFamily(grid_size=6)
    plain = KANGenerator([2, 4, 5], family, stream(11))
    z = torch.rand(40, 2, generator=stream(12))
    plain.update_grids(z)
    compiled = rebuilt(plain, dataclasses.replace(family, compiled=True))
    grad = torch.randn(40, 5, generator=stream(13))
    grad[::3] = 0  # samples without weight
    for found, expected in zip(gradients(compiled, z, grad), gradients(plain, z, grad), strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5 * expected.abs().max().item())


def test_a_bfloat16_generator_is_close() -> None:
    family = FunctionFamily()
    exact = KANGenerator([20, 40, 50], family, stream(14))
    z = torch.rand(60, 20, generator=stream(15))
    exact.update_grids(z)
    half = rebuilt(exact, dataclasses.replace(family, precision=torch.bfloat16))
    grad = torch.randn(60, 50, generator=stream(16))
    assert half(z).dtype == torch.float32
    names = ["values", "latents", *(name for name, _ in exact.named_parameters())]
    for name, found, expected in zip(names, gradients(half, z, grad), gradients(exact, z, grad), strict=True):
        # each of two layers rounds 3 times, by a share of less than 2^-9 in the root mean square; what the second
        # layer's splines make of a rounded input is off by up to as many times more as there are cells
        cells = family.grid_size if name in {"layers.1.coef", "layers.1.w_spline"} else 1
        error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert 1e-5 < error < 2 * 3 * 2**-9 * cells, name


def test_samples_without_gradient_leave_the_others_as_they_are() -> None:
    generator = KANGenerator([2, 4, 5], FunctionFamily(grid_size=6), stream(17))
    z = torch.rand(30, 2, generator=stream(18))
    grad = torch.randn(30, 5, generator=stream(19))
    kept = torch.rand(30, generator=stream(20)) < 0.3
    whole = gradients(generator, z, grad * kept[:, None])
    alone = gradients(generator, z[kept], grad[kept])
    assert (whole[1][~kept] == 0).all()
    for found, expected in zip([whole[1][kept], *whole[2:]], alone[1:], strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5 * expected.abs().max().item())
