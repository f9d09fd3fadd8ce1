"""The model's likelihoods, posterior and samples against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lvkam.generator import bernoulli_log_likelihood, gaussian_log_likelihood
from lvkam.univariate import UnivariateFunctions
from tests.conftest import small_model, small_prior, stream


@pytest.mark.parametrize("likelihood", ["bernoulli", "l2"])
@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@torch.no_grad()
def test_training_scales_the_likelihood_and_reports_do_not(likelihood: str, std: float) -> None:
    model = small_model(small_prior(), likelihood=likelihood)
    model.likelihood_std = std
    x, z = torch.rand(4, 5, generator=stream(0)), torch.rand(6, 2, generator=stream(1))
    out = model.generator(z)
    if likelihood == "bernoulli":
        training = bernoulli_log_likelihood(x, out) / (2 * std**2)
        reported = bernoulli_log_likelihood(x, out)
    else:
        training = -((x[:, None] - out[None]) ** 2).sum(-1) / (2 * std**2)
        reported = gaussian_log_likelihood(x, out, std)
    np.testing.assert_allclose(model.log_likelihood(x, z).numpy(), training.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.reported_log_likelihood(x, z).numpy(), reported.numpy(), atol=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "l2"])
def test_weighted_log_likelihoods_are_those_of_the_pairs(likelihood: str) -> None:
    """As training scales them, of outputs that images share and of each image's own."""
    model = small_model(small_prior(), likelihood=likelihood)
    model.likelihood_std = 0.4
    x = torch.rand(3, 6, generator=stream(9))
    weights = torch.randn(3, 5, generator=stream(10))
    for shape in ((5, 6), (3, 5, 6)):
        out = torch.randn(shape, generator=stream(11))
        expected = (weights * model.output_log_likelihood(x, out)).sum()
        np.testing.assert_allclose(model.weighted_log_likelihood(x, out, weights).item(), expected.item(), rtol=1e-4)


def test_samples_are_decoded_prior_samples() -> None:
    model = small_model(small_prior())
    drawn = model.sample(50, stream(2))
    z = model.prior.sample(50, stream(2))
    assert torch.equal(drawn, torch.sigmoid(model.generator(z)))
    assert drawn.shape == (50, 5)
    assert not drawn.requires_grad


@pytest.mark.parametrize("reference", ["uniform", "gaussian"])
def test_posterior_mean_is_that_of_dense_quadrature(reference: str) -> None:
    prior = small_prior(1, 2, reference=reference)
    model = small_model(prior)
    with torch.no_grad():
        for layer, factor in ((prior.layers[0], 20), (model.generator.layers[1], 10)):
            assert isinstance(layer, UnivariateFunctions)
            layer.coef.mul_(factor)
            layer.w_base.mul_(factor)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0]])
    z, weights = model.posterior(x, 200_000, stream(3))
    assert z.shape == (200_000, 1)
    np.testing.assert_allclose(weights.sum(1).numpy(), 1, atol=1e-4)
    nodes = torch.linspace(*((0, 1) if reference == "uniform" else (-9, 9)), 20_001)[:, None]
    with torch.no_grad():
        density = (model.reported_log_likelihood(x, nodes) + prior.log_prob(nodes)).double().softmax(1)
    expected = density @ nodes.double()
    # 4 standard errors of the self-normalised estimate, about 1e-2
    spread = ((weights.double() ** 2) @ (z.double() ** 2)).sqrt()
    error = (weights.double() @ z.double() - expected).abs()
    assert (error <= 4 * spread.clamp(min=1e-3)).all()


@pytest.mark.parametrize(("prior_updates", "generator_updates"), [(True, False), (False, True), (True, True)])
def test_only_the_grids_asked_for_adapt(prior_updates: bool, generator_updates: bool) -> None:
    model = small_model(small_prior())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.update_grids(64, stream(4), prior=prior_updates, generator=generator_updates)
    moved = {name.split(".")[0] for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {name for name, yes in (("prior", prior_updates), ("generator", generator_updates)) if yes}


def test_layers_whose_grids_would_spoil_them_are_named() -> None:
    model = small_model(small_prior(hidden=(3,)))
    names = ["prior.layers.0", "prior.layers.1", "generator.layers.0", "generator.layers.1"]
    assert model.update_grids(64, stream(4), prior=True, generator=True) == dict.fromkeys(names)
    layer = model.generator.layers[1]
    assert isinstance(layer, UnivariateFunctions)
    with torch.no_grad():
        layer.coef.fill_(torch.nan)
    before = layer.grid.clone()
    reason = "spline fit: a basis function or a value is not finite"
    said = model.update_grids(64, stream(4), prior=True, generator=True)
    assert said == {**dict.fromkeys(names), "generator.layers.1": reason}
    assert torch.equal(layer.grid, before)
    assert model.update_grids(64, stream(4), prior=True, generator=False) == dict.fromkeys(names[:2])
    hidden = model.prior.layers[0]
    assert isinstance(hidden, UnivariateFunctions)
    with torch.no_grad():
        hidden.coef.fill_(torch.nan)
    assert model.update_grids(64, stream(4), prior=True, generator=False) == {
        "prior.layers.0": reason,
        "prior.layers.1": "an input is not finite",
    }
