"""Estimates of log p(x) against dense quadrature, their error bars against what repetitions show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lvkam.evidence import importance_log_evidence
from lvkam.model import LVKAM
from tests.conftest import stream
from tests.test_objectives import IMAGES, dense_nodes, lively_model


@torch.no_grad()
def exact_log_evidence(model: LVKAM, latent_dim: int, reference: str) -> Tensor:
    """By the midpoint rule; the prior's mass at the nodes is normalised by itself."""
    nodes = dense_nodes(latent_dim, reference)
    log_prior = model.prior.log_prob(nodes).double()
    joint = model.reported_log_likelihood(IMAGES, nodes).double() + log_prior
    return joint.logsumexp(1) - log_prior.logsumexp(0)


@pytest.mark.parametrize("likelihood", ["bernoulli", "l2"])
@pytest.mark.parametrize(("latent_dim", "reference"), [(1, "uniform"), (1, "gaussian"), (2, "uniform")])
def test_within_its_error_bars_of_the_exact_evidence(latent_dim: int, reference: str, likelihood: str) -> None:
    model = lively_model(latent_dim, reference, likelihood=likelihood)
    model.likelihood_std = 0.6
    exact = exact_log_evidence(model, latent_dim, reference)
    found = importance_log_evidence(model, IMAGES, 20_000, stream(0))
    assert ((found.log_evidence - exact).abs() < 4 * found.standard_error + 1e-3).all()
    assert (found.standard_error < 0.1).all()


def test_error_bars_are_calibrated() -> None:
    """Over 200 repetitions the errors divided by their bars spread as a standard normal does.

    The spread of 200 such numbers lies within 1 +- 0.2 with a false alarm in 10,000; the jackknife adds 10 %.
    """
    model = lively_model(1, "uniform")
    exact = exact_log_evidence(model, 1, "uniform")
    rng = stream(1)
    runs = [importance_log_evidence(model, IMAGES, 2000, rng) for _ in range(200)]
    scores = torch.stack([(r.log_evidence - exact) / r.standard_error for r in runs])
    assert ((scores.std(0) - 1).abs() < 0.3).all()
    assert (scores.mean(0).abs() < 0.4).all()
    means = torch.stack([(r.log_evidence - exact).mean() / r.mean_standard_error for r in runs])
    assert abs(float(means.std()) - 1) < 0.3


def test_shared_samples_do_not_average_out() -> None:
    """A hundred copies of one image are no better known than the one."""
    model = lively_model(1, "uniform")
    one = importance_log_evidence(model, IMAGES[:1], 5000, stream(2))
    many = importance_log_evidence(model, IMAGES[:1].expand(100, -1), 5000, stream(2))
    assert many.mean_standard_error == pytest.approx(one.mean_standard_error, rel=1e-3)
    assert one.mean_standard_error == pytest.approx(float(one.standard_error), rel=1e-9)


@pytest.mark.parametrize("num_samples", [2, 31, 33, 5000])
def test_the_estimate_is_log_mean_exp_of_its_own_samples(num_samples: int) -> None:
    model = lively_model(2, "uniform")
    found = importance_log_evidence(model, IMAGES, num_samples, stream(3))
    rng, terms, blocks = stream(3), [], min(32, num_samples)
    for r in range(blocks):  # the same draws, block by block
        size = num_samples * (r + 1) // blocks - num_samples * r // blocks
        with torch.no_grad():
            terms.append(model.reported_log_likelihood(IMAGES, model.prior.sample(size, rng)).double().numpy())
    values = np.concatenate(terms, 1)
    assert values.shape[1] == num_samples
    peak = values.max(1, keepdims=True)
    weights = np.exp(values - peak)
    np.testing.assert_allclose(found.log_evidence.numpy(), np.log(weights.mean(1)) + peak[:, 0], rtol=1e-6)
    np.testing.assert_allclose(
        found.effective_sample_size.numpy(), weights.sum(1) ** 2 / (weights**2).sum(1), rtol=1e-5
    )  # fmt: skip
    log_means = [np.log(np.delete(weights, np.s_[a:b], 1).mean(1)) for a, b in block_bounds(num_samples, blocks)]
    without = np.stack(log_means)
    expected = np.sqrt((blocks - 1) / blocks * ((without - without.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(found.standard_error.numpy(), expected, rtol=1e-4)


def block_bounds(num_samples: int, blocks: int) -> list[tuple[int, int]]:
    return [(num_samples * r // blocks, num_samples * (r + 1) // blocks) for r in range(blocks)]


def test_the_likelihood_is_quoted_unscaled() -> None:
    """Whatever `generator_variance` is, for bernoulli; for l2 it is the density's own width."""
    model = lively_model(1, "uniform")
    first = importance_log_evidence(model, IMAGES, 100, stream(4)).log_evidence
    model.likelihood_std = 0.1
    assert torch.equal(importance_log_evidence(model, IMAGES, 100, stream(4)).log_evidence, first)

    model = lively_model(1, "uniform", likelihood="l2")
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.zero_()  # a generator of zeros: log N(x; 0, s^2) exactly
    model.likelihood_std = 0.3
    found = importance_log_evidence(model, IMAGES, 10, stream(5)).log_evidence
    expected = -(IMAGES.double() ** 2).sum(1) / (2 * 0.3**2) - 2.5 * math.log(2 * math.pi * 0.3**2)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)


def test_one_sample_has_no_error_bar() -> None:
    with pytest.raises(ValueError, match=r"num_samples = 1: must be at least 2"):
        importance_log_evidence(lively_model(1, "uniform"), IMAGES, 1, stream(6))
