"""The training gradient against the gradient of the exact evidence, by dense quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lvkam.model import LVKAM
from lvkam.objectives import ImportanceSampling
from lvkam.univariate import UnivariateFunctions
from tests.conftest import small_model, small_prior, stream


def lively_model(latent_dim: int, reference: str, num_components: int = 2, likelihood: str = "bernoulli") -> LVKAM:
    """Densities and outputs far from their flat first values."""
    model = small_model(small_prior(latent_dim, num_components, reference=reference), likelihood=likelihood)
    with torch.no_grad():
        for scale, layers in ((3, model.prior.layers), (1, model.generator.layers)):
            for layer in layers:
                assert isinstance(layer, UnivariateFunctions)
                layer.coef.copy_(scale * torch.randn(layer.coef.shape, generator=stream(5)))
        model.prior.mixture_logits.mul_(3)
    return model


IMAGES = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [0.2, 0.9, 0.0, 0.5, 1.0]])


def dense_nodes(latent_dim: int, reference: str) -> Tensor:
    low, high, number = (0.0, 1.0, 2000) if reference == "uniform" else (-7.0, 7.0, 4000)
    number = number if latent_dim == 1 else 400
    step = (high - low) / number
    line = low + step * (torch.arange(number) + 0.5)  # midpoints
    return torch.cartesian_prod(*[line] * latent_dim).reshape(-1, latent_dim)


def gradient(loss: Tensor, model: LVKAM) -> np.ndarray:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().numpy()


def exact_gradient(model: LVKAM, latent_dim: int, reference: str) -> np.ndarray:
    """Of -mean_b log of the integral of p(z) exp(l_b(z)), up to a constant."""
    nodes = dense_nodes(latent_dim, reference)
    joint = model.log_likelihood(IMAGES, nodes) + model.prior.log_prob(nodes)
    return gradient(-joint.logsumexp(1).mean(), model)


def distance(estimate: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(estimate - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("likelihood", ["bernoulli", "l2"])
@pytest.mark.parametrize(("latent_dim", "reference"), [(1, "uniform"), (1, "gaussian"), (2, "uniform")])
def test_the_gradient_tends_to_that_of_the_evidence(latent_dim: int, reference: str, likelihood: str) -> None:
    model = lively_model(latent_dim, reference, likelihood=likelihood)
    exact = exact_gradient(model, latent_dim, reference)
    errors = {}
    for samples, repetitions in ((300, 10), (30_000, 10)):
        objective, rng = ImportanceSampling(samples), stream(samples)
        estimates = [gradient(objective(model, IMAGES, rng), model) for _ in range(repetitions)]
        errors[samples] = np.mean([distance(e, exact) for e in estimates])
    assert errors[30_000] < 0.06
    # a hundred times the samples, a tenth of the error
    assert 6 < errors[300] / errors[30_000] < 16


def test_the_reference_form_is_biased_for_mixtures() -> None:
    """`contrastive` tends to another gradient when P > 1, to the right one when P = 1."""
    distances = {}
    for components in (1, 2):
        model = lively_model(1, "uniform", components)
        exact = exact_gradient(model, 1, "uniform")
        for objective in (ImportanceSampling(100_000), ImportanceSampling(100_000, "contrastive")):
            rng = stream(6)
            estimate = np.mean([gradient(objective(model, IMAGES, rng), model) for _ in range(4)], axis=0)
            distances[components, objective.normalization] = distance(estimate, exact)
    assert distances[1, "quadrature"] < 0.01
    assert distances[1, "contrastive"] < 0.01
    assert distances[2, "quadrature"] < 0.01
    assert distances[2, "contrastive"] > 0.03


@pytest.mark.parametrize("normalization", ["quadrature", "contrastive"])
def test_the_loss_is_its_formula(normalization: str) -> None:
    model = lively_model(2, "uniform")
    assert normalization in {"quadrature", "contrastive"}
    objective = ImportanceSampling(64, "quadrature" if normalization == "quadrature" else "contrastive")
    estimate = objective.estimate(model, IMAGES, stream(7))
    with torch.no_grad():
        z = model.prior.sample(64, stream(7))
        likelihood = model.log_likelihood(IMAGES, z).double().numpy()
        if normalization == "quadrature":
            log_prior = model.prior.log_prob(z).double().numpy()
        else:
            log_prior = model.prior.log_unnormalised(z).double().numpy()
            log_prior = log_prior - log_prior.mean()
    weights = np.exp(likelihood - likelihood.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(estimate.loss.item(), -(weights * (likelihood + log_prior)).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        estimate.effective_sample_size.item(), (1 / (weights**2).sum(1)).mean(), rtol=1e-5
    )  # fmt: skip
    assert torch.equal(estimate.loss, objective(model, IMAGES, stream(7)))


def test_the_stream_of_random_numbers_goes_on() -> None:
    """Two losses in a row are of different samples; the reference begins each with the same seed."""
    model, rng = lively_model(2, "uniform"), stream(10)
    first, second = (ImportanceSampling(16)(model, IMAGES, rng) for _ in range(2))
    assert not torch.equal(first, second)


def test_weights_carry_no_gradient() -> None:
    """With one sample the weight is 1 whatever the likelihood: the loss is -(l + log p)."""
    model = lively_model(1, "uniform")
    found = gradient(ImportanceSampling(1)(model, IMAGES, stream(8)), model)
    z = model.prior.sample(1, stream(8))
    expected = gradient(-(model.log_likelihood(IMAGES, z) + model.prior.log_prob(z)).mean(), model)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_noise_acts_on_the_output_before_its_activation() -> None:
    model = lively_model(1, "uniform")
    model.noise_std = 0.7
    estimate = ImportanceSampling(32).estimate(model, IMAGES, rng := stream(9))
    rng = stream(9)
    z = model.prior.sample(32, rng)
    out = model.generator(z)
    noisy = out + 0.7 * torch.randn(out.shape, generator=rng)
    likelihood = model.output_log_likelihood(IMAGES, noisy).detach()
    expected = -(likelihood.softmax(1) * (likelihood + model.prior.log_prob(z))).sum(1).mean()
    torch.testing.assert_close(estimate.loss, expected)
    with torch.no_grad():  # while training only
        evaluated = ImportanceSampling(32)(model, IMAGES, stream(9))
    model.noise_std = 0.0
    assert torch.equal(ImportanceSampling(32)(model, IMAGES, stream(9)), evaluated)
    assert not torch.isclose(evaluated, expected)
