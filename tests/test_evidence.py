"""Estimates of log p(x) against dense quadrature and a closed form, their error bars against what repetitions show.

Seeds are fixed, so that a test passes always or never. A normal estimate is 4 standard errors off once in 16,000; where
the error comes from 20 repetitions itself, once in 1300.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import lvkam.annealing
import lvkam.evidence
from lvkam.annealing import RESAMPLERS, anneal_prior, power_schedule
from lvkam.evidence import Evidence, annealed_log_evidence, importance_log_evidence
from lvkam.generator import OUTPUT_ACTIVATIONS, KANGenerator
from lvkam.model import LVKAM
from lvkam.univariate import ACTIVATIONS, FunctionFamily, UnivariateFunctions
from tests.conftest import small_prior, stream
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


def set_lines(layer: torch.nn.Module, slopes: Tensor, offset: Tensor | float) -> None:
    """Phi_io(x) = slope_io x + offset_o / I on the grid: B-splines whose coefficients are a line at their centres."""
    assert isinstance(layer, UnivariateFunctions)
    centres = layer.grid.unfold(1, 3, 1)[:, 1:-1].mean(-1)  # (I, K), of degree 3
    with torch.no_grad():
        layer.coef.copy_(centres.unsqueeze(-1) * slopes.unsqueeze(1) + torch.as_tensor(offset) / len(slopes))
        layer.w_spline.fill_(1)
        layer.w_base.zero_()


def linear_gaussian(latent_dim: int, spread: float) -> tuple[LVKAM, Tensor, Tensor]:
    """z ~ N(0, I), x ~ N(A z + b, s^2 I); the model, images (B, D), and log N(x; b, A A^T + s^2 I)."""
    family = FunctionFamily(activation=ACTIVATIONS["none"], grid_size=6, grid_range=(-9, 9))
    prior = small_prior(latent_dim, 2, reference="gaussian", family=family, points=2048)
    set_lines(prior.layers[0], torch.zeros(latent_dim, 2), 0.0)
    generator = KANGenerator([latent_dim, 3], family, stream(20))
    slopes, offset = torch.randn(latent_dim, 3, generator=stream(21)), torch.tensor([0.5, -1.0, 2.0])
    set_lines(generator.layers[0], slopes, offset)
    z = torch.randn(50, latent_dim, generator=stream(22))
    torch.testing.assert_close(generator(z).detach(), z @ slopes + offset, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prior.log_prob(z).detach(), stats_of_normal(z), rtol=0, atol=1e-3)
    model = LVKAM(prior, generator, "l2", OUTPUT_ACTIVATIONS["none"], likelihood_std=spread)
    covariance = (slopes.T @ slopes).double() + spread**2 * torch.eye(3)
    normal = torch.distributions.MultivariateNormal(offset.double(), covariance)
    x = torch.stack([offset, offset + 2.2 * slopes[0], offset - torch.tensor([spread, 0.3, spread])])
    return model, x, normal.log_prob(x.double())


def stats_of_normal(z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)


def assert_within_error_bars(found: Evidence, truth: Tensor, largest: float) -> None:
    assert ((found.log_evidence - truth).abs() <= 4 * found.standard_error + 0.02).all()
    assert float(found.standard_error.max()) < largest  # which would otherwise allow anything
    assert found.log_evidence.shape == found.standard_error.shape == found.effective_sample_size.shape == truth.shape


WAYS: list[dict[str, Any]] = [
    {"moves": 0, "resampler": None},
    {"moves": 0},
    {"moves": 1, "resampler": None},
    {"moves": 2, "resampler": RESAMPLERS["residual"], "threshold": 0.9},
    {"moves": 1, "resampler": RESAMPLERS["systematic"]},
    {},
]


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_closed_form_of_a_linear_gaussian_model(latent_dim: int) -> None:
    model, x, truth = linear_gaussian(latent_dim, 0.5)
    assert_within_error_bars(importance_log_evidence(model, x, 40_000, stream(23)), truth, 0.06)
    for way in WAYS:
        found = annealed_log_evidence(model, x, 100, stream(24), num_temps=20, **way)
        assert_within_error_bars(found, truth, 0.25)


def test_moves_reach_a_posterior_that_the_prior_hardly_touches() -> None:
    """A narrow one far out: with the same particles a tenth of the error, and still the closed form."""
    model, x, truth = linear_gaussian(1, 0.05)
    plain = annealed_log_evidence(model, x[1:2], 60, stream(25), num_temps=60, moves=0, resampler=None)
    moved = annealed_log_evidence(model, x[1:2], 60, stream(25), num_temps=60, moves=3)
    assert_within_error_bars(moved, truth[1:2], 0.2)
    assert moved.standard_error < 0.5 * plain.standard_error
    assert moved.effective_sample_size > 2 * plain.effective_sample_size


@pytest.mark.parametrize("way", WAYS, ids=range(len(WAYS)))
@pytest.mark.parametrize(
    ("latent_dim", "reference", "likelihood"),
    [(1, "uniform", "bernoulli"), (1, "gaussian", "l2"), (2, "uniform", "l2"), (2, "gaussian", "bernoulli")],
)
def test_annealed_within_its_error_bars_of_dense_quadrature(
    latent_dim: int, reference: str, likelihood: str, way: dict[str, Any]
) -> None:
    model = lively_model(latent_dim, reference, likelihood=likelihood)
    model.likelihood_std = 0.6
    found = annealed_log_evidence(model, IMAGES, 80, stream(26), num_temps=15, **way)
    assert_within_error_bars(found, exact_log_evidence(model, latent_dim, reference), 0.12)
    if not way.get("moves", 1):
        assert found.acceptance is None
    else:
        assert found.acceptance is not None
        assert 0.1 < found.acceptance <= 1
    assert (found.effective_sample_size <= 1600 * (1 + 1e-9)).all()
    assert (found.effective_sample_size >= 40).all()


@pytest.mark.parametrize("per_chunk", [1, 3 * 30, 7 * 30 + 5, 10**6])
def test_without_resampling_and_moves_it_is_log_mean_exp(per_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same draws of the prior, which are drawn for some images at a time; errors by the jackknife, by hand."""
    monkeypatch.setattr(lvkam.evidence, "PARTICLES", per_chunk)
    model = lively_model(2, "uniform")
    found = annealed_log_evidence(
        model, IMAGES, 30, stream(27), num_temps=7, moves=0, resampler=None, repetitions=5
    )  # fmt: skip
    rng, rows, size = stream(27), [], max(1, per_chunk // 30)
    for x in IMAGES.repeat(5, 1).split(size):
        z = model.prior.sample(30 * len(x), rng).unflatten(0, (len(x), 30))
        with torch.no_grad():
            rows.append(model.reported_log_likelihood(x, z).double())
    values = torch.cat(rows).view(5, 2, 30)  # an image after the other, again and again
    blocks = np.exp(values.numpy()).mean(-1)  # (R, B)
    np.testing.assert_allclose(found.log_evidence.numpy(), np.log(blocks.mean(0)), rtol=1e-5)
    weights = np.exp(values.numpy())  # those of all samples, whatever repetition they belong to
    sizes = weights.sum((0, 2)) ** 2 / (weights**2).sum((0, 2))
    np.testing.assert_allclose(found.effective_sample_size.numpy(), sizes, rtol=1e-4)
    without = np.log([np.delete(blocks, r, 0).mean(0) for r in range(5)])
    np.testing.assert_allclose(found.standard_error.numpy(), 4 / 5**0.5 * without.std(0, ddof=1), rtol=1e-4)
    assert found.mean_standard_error == pytest.approx(4 / 5**0.5 * without.mean(1).std(ddof=1), rel=1e-4)
    assert found.acceptance is None


def test_chunks_of_one_row_work_with_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(2, "uniform")
    exact = exact_log_evidence(model, 2, "uniform")
    whole = annealed_log_evidence(model, IMAGES, 40, stream(28), num_temps=8)
    monkeypatch.setattr(lvkam.evidence, "PARTICLES", 1)
    parts = annealed_log_evidence(model, IMAGES, 40, stream(28), num_temps=8)
    for found in (whole, parts):
        assert_within_error_bars(found, exact, 0.1)
    # the same shares, up to chance: each is of 2 x 20 x 40 x 7 moves
    assert parts.acceptance == pytest.approx(whole.acceptance, abs=0.05)


@pytest.mark.parametrize("t", [0.3, 1.0])
def test_particles_stop_at_the_last_temperature(t: float) -> None:
    """Below 1 they are weighted draws of p_t: E_t on the way, moments of z and the evidence by quadrature."""
    model = lively_model(1, "uniform")
    nodes, temperatures = dense_nodes(1, "uniform"), t * power_schedule(10, 2.0)
    found = anneal_prior(
        model.prior, functools.partial(model.reported_log_likelihood, IMAGES), 2, 20_000, temperatures, stream(35),
        model.prior.table(), moves=1, resampler=RESAMPLERS["stratified"], threshold=0.5,
    )  # fmt: skip
    assert not found.log_likelihood.requires_grad
    with torch.no_grad():
        values, log_prior = model.reported_log_likelihood(IMAGES, nodes).double(), model.prior.log_prob(nodes).double()
    mass = torch.softmax(temperatures.view(-1, 1, 1) * values + log_prior, -1)
    # 20,000 particles: a mean of numbers that spread by 1 is known to 0.03, with four standard errors
    torch.testing.assert_close(found.expectations.double(), (mass * values).sum(-1), rtol=0, atol=0.04)
    for power in (1, 2):
        moment = (found.weights.double() * found.state.squeeze(-1).double() ** power).sum(1)
        torch.testing.assert_close(moment, mass[-1] @ nodes.squeeze(-1).double() ** power, rtol=0, atol=0.01)
    log_evidence = torch.logsumexp(t * values + log_prior, 1) - log_prior.logsumexp(0)
    torch.testing.assert_close(found.log_evidence, log_evidence, rtol=0, atol=0.04)


def test_too_few_particles_are_seen() -> None:
    """All the weight on next to no particles shows, however many repetitions agree in having missed."""
    model = lively_model(2, "uniform")
    model.likelihood_std = 0.02  # a posterior far narrower than the prior
    model.likelihood = "l2"
    found = annealed_log_evidence(model, IMAGES, 200, stream(36), num_temps=1, moves=0)
    assert found.acceptance is None
    assert (found.effective_sample_size < 100).all()  # of 4,000 particles


def test_a_seed_gives_the_same_annealed_evidence() -> None:
    model = lively_model(2, "gaussian")
    one, same, other = (annealed_log_evidence(model, IMAGES, 10, stream(s), num_temps=5) for s in (29, 29, 30))
    assert torch.equal(one.log_evidence, same.log_evidence)
    assert torch.equal(one.standard_error, same.standard_error)
    assert not torch.equal(one.log_evidence, other.log_evidence)
    assert not one.log_evidence.requires_grad
    assert one.log_evidence.dtype == torch.float64


def test_the_threshold_and_the_resampler_are_used() -> None:
    """Never resampling is having no resampler; always is another thing, and the shares are those asked for."""
    model, calls = lively_model(2, "uniform"), []

    def watched(weights: Tensor, rng: torch.Generator) -> Tensor:
        calls.append(weights.shape)
        return RESAMPLERS["systematic"](weights, rng)

    def evidence(**way: Any) -> Tensor:
        return annealed_log_evidence(model, IMAGES, 30, stream(34), num_temps=6, repetitions=3, **way).log_evidence

    never, plain = evidence(resampler=watched, threshold=0.0), evidence(resampler=None)
    assert torch.equal(never, plain)
    assert not calls
    assert not torch.equal(evidence(resampler=watched, threshold=1.0), plain)
    assert calls == [(6, 30)] * 5  # three repetitions of two images, at each temperature but the ends


def test_annealed_settings_are_used() -> None:
    """Temperatures are (k/T)^p: each move is told its own, at none of the ends."""
    model, seen = lively_model(1, "uniform"), []
    with pytest.MonkeyPatch.context() as patch:
        moves = lvkam.annealing.redrawing

        def watched(count: int, rng: torch.Generator, **kit: Any) -> Any:
            move = moves(count, rng, **kit)
            assert move is not None

            def told(z: Tensor, log_likelihood: Tensor, t: float) -> tuple[Tensor, Tensor, float]:
                seen.append(t)
                return move(z, log_likelihood, t)

            return told

        patch.setattr(lvkam.annealing, "redrawing", watched)
        annealed_log_evidence(model, IMAGES, 10, stream(31), num_temps=6, exponent=2.0, repetitions=2)
    assert seen == power_schedule(6, 2.0)[1:-1].tolist()


@pytest.mark.parametrize("way", [{"moves": 0, "resampler": None}, {"moves": 1, "threshold": 0.8}])
def test_annealed_error_bars_are_honest(way: dict[str, Any]) -> None:
    """Of 40 seeds: the variance of the mean over images, divided by the bars' mean square, is F-distributed.

    With 39 degrees of freedom above and, as each bar is of 20 repetitions, 40 x 19 below; a false alarm has probability
    2e-4 where all is normal, and the bounds are 10 % wider since repetitions of few particles are not quite. The mean
    over the seeds is within 4 standard errors, once the logarithm's bias of half a squared standard error is added.
    """
    model = lively_model(1, "uniform")
    exact, rng = exact_log_evidence(model, 1, "uniform"), stream(32)
    runs = [annealed_log_evidence(model, IMAGES, 12, rng, num_temps=6, **way) for _ in range(40)]
    means = torch.stack([r.log_evidence.mean() for r in runs])
    bars = np.array([r.mean_standard_error for r in runs])
    ratio = float(means.var()) / np.mean(bars**2)
    law = stats.f(39, 40 * 19)
    assert law.ppf(1e-4) / 1.1 < ratio < law.isf(1e-4) * 1.1
    off = float(means.mean() - exact.mean()) + np.mean(bars**2) / 2
    assert abs(off) < 4 * float(means.std()) / 40**0.5
    single = torch.stack([r.log_evidence for r in runs]).var(0) / torch.stack([r.standard_error**2 for r in runs]).mean(
        0
    )
    assert ((law.ppf(1e-4) / 1.1 < single) & (single < law.isf(1e-4) * 1.1)).all()


@pytest.mark.parametrize("repetitions", [1, 0])
def test_one_repetition_has_no_error_bar(repetitions: int) -> None:
    with pytest.raises(ValueError, match=rf"repetitions = {repetitions}: must be at least 2"):
        annealed_log_evidence(lively_model(1, "uniform"), IMAGES, 8, stream(33), repetitions=repetitions)
