"""The training gradient against the gradient of the exact evidence, by dense quadrature, and against its formula.

Seeds are fixed, so that a test passes always or never. For a seed drawn at random the tests that resampled gradients
are unbiased would raise a false alarm with probability ALARM.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from lvkam.annealing import RESAMPLERS, Annealed, anneal, power_schedule, redrawing, trapezoid_rule, trapezoid_weights
from lvkam.compilation import ROWS
from lvkam.model import LVKAM
from lvkam.objectives import SIZED, Estimate, ImportanceSampling, Objective, ThermodynamicIntegration
from lvkam.prior import MixturePrior
from lvkam.shares import Share
from lvkam.univariate import UnivariateFunctions
from tests.conftest import small_model, small_prior, stream

ALARM = 1e-4


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


def test_few_samples_tend_to_the_gradient_of_the_evidence() -> None:
    """Drawn by weight as often as one likes, or the best ones of more and more; a few best ones are biased."""
    model = lively_model(1, "uniform")
    exact, rng, num_samples = exact_gradient(model, 1, "uniform"), stream(24), 10_000

    def mean(count: int, selection: Literal["top", "resampled"], repetitions: int) -> np.ndarray:
        objective = ImportanceSampling(num_samples, gradient_samples=count, gradient_selection=selection)
        return np.mean([gradient(objective(model, IMAGES, rng), model) for _ in range(repetitions)], axis=0)

    assert distance(mean(20, "resampled", 1), exact) > 0.1  # one draw of them is far off
    assert distance(mean(20, "resampled", 200), exact) < 0.05
    errors = [distance(mean(count, "top", 20), exact) for count in (20, 2000, 9000, 9900)]
    assert errors[0] > 0.1
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05


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


def peaked_model(reference: str = "uniform") -> LVKAM:
    """In float64; next to no weight for most samples."""
    model = lively_model(2, reference)
    model.likelihood_std = 0.15
    return model.double()


X = IMAGES.double()


def samples_and_weights(model: LVKAM, num_samples: int, seed: int, images: Tensor = X) -> tuple[Tensor, Tensor]:
    """z (S, Q), and the weights of all samples, (B, S)."""
    with torch.no_grad():
        z = model.prior.sample(num_samples, stream(seed))
        log_likelihood = model.log_likelihood(images, z)
        weights = torch.exp(log_likelihood - log_likelihood.amax(1, keepdim=True))
        return z, weights / weights.sum(1, keepdim=True)


def plain_loss(model: LVKAM, z: Tensor, weights: Tensor, normalization: str = "quadrature") -> Tensor:
    """-mean_b sum_s w_bs (l_bs + log p(z_s)), of all samples, differentiated as it stands."""
    if normalization == "contrastive":
        log_prior = model.prior.log_unnormalised(z)
        log_prior = log_prior - log_prior.mean()
    else:
        log_prior = model.prior.log_prob(z)
    return -(weights * (model.log_likelihood(X, z) + log_prior)).sum(1).mean()


def count_prior_points(model: LVKAM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """To how many points of each call the prior gives a density."""
    calls: list[int] = []
    energies = MixturePrior.energies

    def counted(self: MixturePrior, z: Tensor, weight: Tensor | None = None) -> Tensor:
        if self is model.prior:
            calls.append(len(z))
        return energies(self, z, weight)

    monkeypatch.setattr(MixturePrior, "energies", counted)
    return calls


def importance_sampling(num: int, normalization: str, count: int | None = None, how: str = "top") -> ImportanceSampling:
    return ImportanceSampling(
        num,
        "contrastive" if normalization == "contrastive" else "quadrature",
        count,
        "resampled" if how == "resampled" else "top",
    )


@pytest.mark.parametrize("normalization", ["quadrature", "contrastive"])
@pytest.mark.parametrize("reference", ["uniform", "gaussian"])
def test_what_carries_no_weight_changes_nothing(
    reference: str, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient are those of all samples, to what float32 could tell; few are differentiated."""
    model = peaked_model(reference)
    z, weights = samples_and_weights(model, 2000, 11)
    expected = plain_loss(model, z, weights, normalization)
    exact = gradient(expected, model)
    calls = count_prior_points(model, monkeypatch)
    loss = importance_sampling(2000, normalization)(model, X, stream(11))
    kept = int((weights > torch.finfo(torch.float32).eps / 2000).any(0).sum())
    assert 10 < kept < 1500
    assert calls == [kept if normalization == "quadrature" else 2000]
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-6)
    found = gradient(loss, model)
    np.testing.assert_allclose(found, exact, atol=1e-6 * np.abs(exact).max(), rtol=0)
    assert not np.array_equal(found, exact)  # something was left out


@pytest.mark.parametrize("normalization", ["quadrature", "contrastive"])
def test_flat_weights_are_all_differentiated(normalization: str) -> None:
    model = lively_model(2, "uniform").double()
    model.likelihood_std = 3.0
    z, weights = samples_and_weights(model, 300, 12)
    expected = plain_loss(model, z, weights, normalization)
    loss = importance_sampling(300, normalization)(model, X, stream(12))
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    exact = gradient(expected, model)
    np.testing.assert_allclose(gradient(loss, model), exact, atol=1e-12 * np.abs(exact).max(), rtol=0)


@pytest.mark.parametrize("normalization", ["quadrature", "contrastive"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_top_samples_with_their_weights_normalised(
    count: int, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = peaked_model()
    z, weights = samples_and_weights(model, 200, 13)
    best = np.argsort(-weights.numpy(), axis=1)[:, :count]
    restricted = np.zeros(weights.shape)
    np.put_along_axis(restricted, best, np.take_along_axis(weights.numpy(), best, 1), 1)
    restricted /= restricted.sum(1, keepdims=True)
    exact = gradient(plain_loss(model, z, torch.from_numpy(restricted), normalization), model)

    calls = count_prior_points(model, monkeypatch)
    estimate = importance_sampling(200, normalization, count).estimate(model, X, stream(13))
    if normalization == "quadrature":
        assert calls == [len(np.unique(best))]
    np.testing.assert_allclose(gradient(estimate.loss, model), exact, atol=1e-12 * np.abs(exact).max(), rtol=0)

    expected = plain_loss(model, z, torch.from_numpy(restricted), normalization)
    np.testing.assert_allclose(estimate.loss.item(), expected.item(), rtol=1e-12)
    np.testing.assert_allclose(
        estimate.effective_sample_size.item(), (1 / weights.square().sum(1)).mean().item(), rtol=1e-12
    )  # fmt: skip


def test_the_gradient_of_few_samples_with_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihood is differentiated at those chosen alone, in whole blocks of rows; the generator runs once."""
    model = peaked_model()
    model.noise_std = 0.2
    seen: list[tuple[int, bool]] = []
    log_likelihood, weighted = model.output_log_likelihood, model.weighted_log_likelihood

    def watched(x: Tensor, out: Tensor) -> Tensor:
        seen.append((len(out), out.requires_grad))
        return log_likelihood(x, out)

    def watched_too(x: Tensor, out: Tensor, weights: Tensor) -> Tensor:
        seen.append((len(out), out.requires_grad))
        return weighted(x, out, weights)

    monkeypatch.setattr(model, "output_log_likelihood", watched)
    monkeypatch.setattr(model, "weighted_log_likelihood", watched_too)
    loss = importance_sampling(1000, "quadrature", 3)(model, X, stream(21))
    assert seen == [(1000, False), (ROWS, True)]

    rng = stream(21)
    z = model.prior.sample(1000, rng)
    noise = torch.randn(1000, X.shape[1], generator=rng).double()
    with torch.no_grad():
        weights = model.output_log_likelihood(X, model.outputs(z) + 0.2 * noise).numpy()
    best = np.argsort(-weights, axis=1)[:, :3]
    chosen = torch.from_numpy(special.softmax(np.take_along_axis(weights, best, 1), axis=1))
    rows = torch.from_numpy(best)
    likelihood = model.output_log_likelihood(X, model.outputs(z) + 0.2 * noise).gather(1, rows)
    expected = -(chosen * (likelihood + model.prior.log_prob(z)[rows])).sum(1).mean()
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    exact = gradient(expected, model)
    np.testing.assert_allclose(gradient(loss, model), exact, atol=1e-12 * np.abs(exact).max(), rtol=0)


def test_effective_sample_sizes_of_many_images_are_told_by_the_first_ones() -> None:
    """Where few samples carry gradient; all images' otherwise."""
    model = lively_model(2, "uniform").double()
    images = torch.rand(SIZED + 40, IMAGES.shape[1], dtype=torch.float64, generator=stream(22))
    _, weights = samples_and_weights(model, 300, 23, images)
    sizes = 1 / weights.square().sum(1)
    for selection, expected in (("top", sizes[:SIZED].mean()), ("resampled", sizes.mean())):
        found = importance_sampling(300, "quadrature", 2, selection).estimate(model, images, stream(23))
        np.testing.assert_allclose(found.effective_sample_size.item(), expected.item(), rtol=1e-10)


@pytest.mark.parametrize("count", [2, 9])
def test_resampled_gradients_are_unbiased(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one set of prior samples: their mean over many draws is the gradient of all samples."""
    model = lively_model(2, "uniform").double()
    model.likelihood_std = 0.5
    z, weights = samples_and_weights(model, 60, 14)
    full = gradient(plain_loss(model, z, weights), model)
    monkeypatch.setattr(model.prior, "sample", lambda *_: z)
    objective, rng = ImportanceSampling(60, gradient_samples=count, gradient_selection="resampled"), stream(15)
    repetitions, directions = 600, 10  # sums over the parameters are near normal, single parameters are not
    drawn = np.stack([gradient(objective(model, X, rng), model) for _ in range(repetitions)]) - full
    onto = torch.randn(directions, len(full), dtype=torch.float64, generator=stream(16)).numpy()
    onto = np.concatenate((onto * np.abs(full), full[None]))
    projected = drawn @ onto.T
    score = projected.mean(0) / (projected.std(0, ddof=1) / repetitions**0.5)
    assert (np.abs(score) < stats.norm.isf(ALARM / 2 / len(onto))).all()
    # the test has power: each draw by itself is far off, the mean is not
    assert np.median(np.linalg.norm(drawn, axis=1)) > 0.1 * np.linalg.norm(full)
    assert np.linalg.norm(drawn.mean(0)) < 3 / repetitions**0.5 * np.linalg.norm(drawn, axis=1).mean()


@pytest.mark.parametrize("count", [1, 4, 30])
def test_resampled_samples_carry_whole_shares(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draw's gradient is that of weights that are multiples of 1/k, none further from k w_bs than 2."""
    model = peaked_model()
    z, weights = samples_and_weights(model, 100, 17)
    columns = []
    for b in range(2):
        for s in range(100):
            single = torch.zeros(2, 100, dtype=torch.float64)
            single[b, s] = 1
            columns.append(gradient(plain_loss(model, z, single), model))
    monkeypatch.setattr(model.prior, "sample", lambda *_: z)
    objective = ImportanceSampling(100, gradient_samples=count, gradient_selection="resampled")
    rng = stream(18)
    uniform = torch.rand(2, count, dtype=torch.float64, generator=stream(18)).numpy()
    found = gradient(objective(model, X, rng), model)
    places = (np.arange(count) + uniform) / count
    counts = np.zeros((2, 100))
    for b in range(2):
        cdf = weights[b].numpy().cumsum()
        np.add.at(counts[b], np.searchsorted(cdf / cdf[-1], places[b], side="right"), 1)
    assert (np.abs(counts - count * weights.numpy()) < 2).all()
    expected = (counts / count).flatten() @ np.stack(columns)
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("how", ["top", "resampled"])
@pytest.mark.parametrize("normalization", ["quadrature", "contrastive"])
def test_as_many_gradient_samples_as_there_are_is_all(normalization: str, how: str) -> None:
    model = lively_model(2, "uniform")
    plain, rng = importance_sampling(32, normalization)(model, IMAGES, stream(19)), stream(19)
    expected = gradient(plain, model)
    for count in (32, 33, 10_000):
        rng = stream(19)
        loss = importance_sampling(32, normalization, count, how)(model, IMAGES, rng)
        assert torch.equal(loss, plain)
        np.testing.assert_array_equal(gradient(loss, model), expected)
    after = stream(19)  # and nothing is drawn for it
    model.prior.sample(32, after)
    assert torch.equal(rng.get_state(), after.get_state())


@pytest.mark.parametrize("how", ["top", "resampled"])
def test_without_gradient_all_samples_count(how: str) -> None:
    """Selection is for the gradient: the loss of the test images is of all samples."""
    model = peaked_model()
    chosen, rng = importance_sampling(100, "quadrature", 2, how), stream(20)
    with torch.no_grad():
        loss = chosen(model, X, rng)
        assert torch.equal(loss, ImportanceSampling(100)(model, X, stream(20)))
    assert not torch.isclose(loss, chosen(model, X, stream(20)).detach())
    after = stream(20)
    model.prior.sample(100, after)
    assert torch.equal(rng.get_state(), after.get_state())
    z, weights = samples_and_weights(model, 100, 20)
    np.testing.assert_allclose(loss.item(), plain_loss(model, z, weights).item(), rtol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("count", [None, 5])
@pytest.mark.parametrize("how", ["top", "resampled"])
def test_a_seed_gives_the_same_bits(how: str, count: int | None, noise: float) -> None:
    model = lively_model(2, "gaussian")
    model.noise_std = noise
    objective = importance_sampling(64, "quadrature", count, how)
    losses = [objective(model, IMAGES, stream(21)) for _ in range(2)]
    assert torch.equal(losses[0], losses[1])
    np.testing.assert_array_equal(gradient(losses[0], model), gradient(losses[1], model))
    other = objective(model, IMAGES, stream(22))
    assert not torch.equal(losses[0], other)
    if count is not None and how == "resampled":  # the draws go on, they do not begin again
        rng = stream(21)
        first, second = (gradient(objective(model, IMAGES, rng), model) for _ in range(2))
        assert not np.array_equal(first, second)


@pytest.mark.parametrize(("settings", "message"), [
    ({"gradient_samples": 0}, "gradient_samples = 0: must be None or at least 1"),
    ({"gradient_samples": 2, "gradient_selection": "best"}, "gradient_selection = best: must be top or resampled"),
])  # fmt: skip
def test_a_selection_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ImportanceSampling(8, **settings)


def thermodynamic(num_samples: int, **settings: Any) -> ThermodynamicIntegration:
    return ThermodynamicIntegration(num_samples, **settings)


def two_part_loss(
    model: LVKAM, z: Tensor, on_likelihood: Tensor, on_prior: Tensor, contrastive: bool = False
) -> Tensor:
    """-mean_b sum_s (W_bs l_bs + V_bs log p(z_s)) with constant weights, of all samples."""
    log_prior = model.prior.log_unnormalised(z) if contrastive else model.prior.log_prob(z)
    if contrastive:
        log_prior = log_prior - log_prior.mean()
    return -(on_likelihood * model.log_likelihood(X, z) + on_prior * log_prior).sum(1).mean()


def sum_over_temperatures(log_likelihood: Tensor, temperatures: Tensor) -> Tensor:
    """A_b = sum_k c_k E_bk as it is written, weights and all to be differentiated."""
    weights = torch.softmax(temperatures.view(-1, 1, 1) * log_likelihood, -1)
    return (trapezoid_rule(temperatures).view(-1, 1) * (weights * log_likelihood).sum(-1)).sum(0)


@pytest.mark.parametrize("normalization", ["quadrature", "contrastive"])
@pytest.mark.parametrize(("temps", "exponent"), [(2, 1.0), (30, 5.0)])
def test_the_trapezoid_gradient_is_that_of_its_sum(temps: int, exponent: float, normalization: str) -> None:
    """In float64; what float32 could not tell from zero is left out, hence 1e-6. The value is the sum itself."""
    model = peaked_model()
    objective = thermodynamic(300, num_temps=temps, exponent=exponent, normalization=normalization)
    estimate = objective.estimate(model, X, stream(30))
    z, at_one = samples_and_weights(model, 300, 30)
    value = sum_over_temperatures(model.log_likelihood(X, z), power_schedule(temps, exponent))
    nothing = torch.zeros_like(at_one)
    written_out = two_part_loss(model, z, nothing, at_one, normalization == "contrastive") - value.mean()
    expected = gradient(written_out, model)
    found = gradient(estimate.loss, model)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(estimate.loss.item(), -value.mean().item(), rtol=1e-12)
    size = (1 / at_one.square().sum(1)).mean()
    np.testing.assert_allclose(estimate.effective_sample_size.item(), size.item(), rtol=1e-12)


def test_only_the_derivative_of_the_sum_tends_to_the_gradient_of_the_evidence() -> None:
    """Weights held fixed, sum_k c_k w(t_k), leave an error that no number of temperatures removes."""
    model = lively_model(1, "uniform").double()
    model.likelihood_std = 0.2
    nodes = dense_nodes(1, "uniform").double()
    exact = gradient(-(model.log_likelihood(X, nodes) + model.prior.log_prob(nodes)).logsumexp(1).mean(), model)
    errors = {}
    for temps in (50, 400):
        objective = thermodynamic(20_000, num_temps=temps, exponent=2.0)
        found = gradient(objective(model, X, stream(31)), model)
        z, at_one = samples_and_weights(model, 20_000, 31)
        with torch.no_grad():
            values, temperatures = model.log_likelihood(X, z), power_schedule(temps, 2.0)
            weights = torch.softmax(temperatures.view(-1, 1, 1) * values, -1)
            fixed = (trapezoid_rule(temperatures).view(-1, 1, 1) * weights).sum(0)
        held = gradient(two_part_loss(model, z, fixed, at_one), model)
        errors[temps] = (distance(found, exact), distance(held, exact))
    assert errors[400][0] < 0.03
    assert errors[400][1] > 0.98 * errors[50][1] > 0.5


@pytest.mark.parametrize("settings", [
    {"num_temps": 100, "resampler": "stratified", "resampling_threshold": 0.9},
    {"num_temps": 20, "resampler": "systematic", "moves_per_temperature": 2},
    {"num_temps": 20, "resampler": "residual", "moves_per_temperature": 1, "estimator": "steppingstone"},
])  # fmt: skip
@pytest.mark.parametrize("reference", ["uniform", "gaussian"])
def test_particles_give_the_gradient_of_the_evidence(reference: str, settings: dict[str, Any]) -> None:
    """Their value, too, is the evidence, that of the trapezoid rule up to its steps."""
    model = lively_model(1, reference)
    model.likelihood_std = 0.5
    exact = exact_gradient(model, 1, reference)
    objective, rng = thermodynamic(3000, exponent=2.0, **settings), stream(32)
    estimates = [objective.estimate(model, IMAGES, rng) for _ in range(4)]
    found = np.mean([gradient(e.loss, model) for e in estimates], axis=0)
    assert distance(found, exact) < 0.06
    with torch.no_grad():
        nodes = dense_nodes(1, reference)
        log_prior = model.prior.log_prob(nodes).double()
        joint = (model.log_likelihood(IMAGES, nodes).double() + log_prior).logsumexp(1) - log_prior.logsumexp(0)
    values = np.mean([e.loss.item() for e in estimates])
    assert abs(values + float(joint.mean())) < 0.05
    assert all(300 < e.effective_sample_size.item() <= 3000 for e in estimates)


def test_moves_give_the_gradient_that_few_samples_of_the_prior_do_not() -> None:
    """Few samples of the prior know a posterior badly: mean error of eight particles with moves, and without."""
    model = lively_model(2, "uniform")
    model.likelihood_std = 0.25
    exact, errors = exact_gradient(model, 2, "uniform"), {}
    for moves in (0, 2):
        objective = thermodynamic(
            8, num_temps=12, exponent=3.0, resampler="stratified", resampling_threshold=0.9, moves_per_temperature=moves
        )
        rng = stream(33)
        found = [gradient(objective(model, IMAGES, rng), model) for _ in range(30)]
        errors[moves] = np.mean([distance(f, exact) for f in found])
    assert errors[2] < 0.8 * errors[0]


def test_stepping_stones_are_importance_sampling() -> None:
    """Without resampling: the same bits of the gradient, and log-mean-exp as the value, whatever T is."""
    model = peaked_model()
    plain = ImportanceSampling(200).estimate(model, X, stream(34))
    expected = gradient(plain.loss, model)
    for temps in (2, 25):
        estimate = thermodynamic(200, num_temps=temps, estimator="steppingstone").estimate(model, X, stream(34))
        np.testing.assert_array_equal(gradient(estimate.loss, model), expected)
        z, _ = samples_and_weights(model, 200, 34)
        with torch.no_grad():
            log_mean = model.log_likelihood(X, z).logsumexp(1) - math.log(200)
        np.testing.assert_allclose(estimate.loss.item(), -log_mean.mean().item(), rtol=0, atol=1e-5)
        assert torch.equal(estimate.effective_sample_size, plain.effective_sample_size)


def assert_figures_of(
    annealed: Annealed, estimate: Estimate, estimator: str, temperatures: Tensor, rtol: float
) -> None:
    """The loss is the sum over the particles' temperatures, the effective sample size theirs."""
    integral = (trapezoid_rule(temperatures).view(-1, 1) * annealed.expectations).sum(0)
    value = annealed.log_evidence if estimator == "steppingstone" else integral
    np.testing.assert_allclose(estimate.loss.item(), -value.mean().item(), rtol=rtol)
    sizes = annealed.effective_sample_size.mean().item()
    np.testing.assert_allclose(estimate.effective_sample_size.item(), sizes, rtol=rtol)


@pytest.mark.parametrize("estimator", ["trapezoid", "steppingstone"])
@pytest.mark.parametrize("resampler", sorted(RESAMPLERS))
def test_resampled_shared_samples_carry_what_their_particles_weigh(resampler: str, estimator: str) -> None:
    model = peaked_model()
    objective = thermodynamic(
        150, num_temps=10, exponent=2.0, estimator=estimator, resampler=resampler, resampling_threshold=0.7
    )
    estimate, rng = objective.estimate(model, X, stream(35)), stream(35)
    temperatures = power_schedule(10, 2.0)
    with torch.no_grad():
        z = model.prior.sample(150, rng)
        values = model.log_likelihood(X, z)
    index = torch.arange(150).expand(2, -1)
    annealed = anneal(index, values, temperatures, rng, resampler=RESAMPLERS[resampler], threshold=0.7)
    assert len(annealed.state[0].unique()) < 100
    weights = torch.zeros_like(values)
    for b in range(2):
        for s, w in zip(annealed.state[b], annealed.weights[b], strict=True):
            weights[b, s] += w
    expected = gradient(plain_loss(model, z, weights), model)
    np.testing.assert_allclose(gradient(estimate.loss, model), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert_figures_of(annealed, estimate, estimator, temperatures, rtol=1e-12)


@pytest.mark.parametrize("estimator", ["trapezoid", "steppingstone"])
def test_moved_particles_are_differentiated_where_they_arrive(estimator: str) -> None:
    """Each image's own, by the likelihood that training scales; not resampled here, so of unequal weights."""
    model = peaked_model()
    objective = thermodynamic(
        20, num_temps=4, exponent=2.0, estimator=estimator, resampler="systematic", resampling_threshold=0.0,
        moves_per_temperature=2,
    )  # fmt: skip
    estimate, rng = objective.estimate(model, X, stream(43)), stream(43)
    temperatures = power_schedule(4, 2.0)
    with torch.no_grad():
        z = model.prior.sample(40, rng).view(2, 20, 2)
        values = torch.cat([model.log_likelihood(X[b : b + 1], z[b]) for b in range(2)])
    move = redrawing(
        2, rng,
        redraw=lambda coordinates: model.prior.redraw(coordinates, rng),
        likelihood_of=lambda z: torch.cat([model.log_likelihood(X[b : b + 1], z[b]) for b in range(2)]).detach(),
    )  # fmt: skip
    annealed = anneal(z, values, temperatures, rng, move=move)
    assert annealed.weights.max() > 3 / 20
    terms = [
        annealed.weights[b] * (model.log_likelihood(X[b : b + 1], annealed.state[b])[0] + model.prior.log_prob(drawn))
        for b, drawn in enumerate(annealed.state)
    ]
    expected = gradient(-torch.stack(terms).sum(1).mean(), model)
    np.testing.assert_allclose(gradient(estimate.loss, model), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert_figures_of(annealed, estimate, estimator, temperatures, rtol=1e-9)


@pytest.mark.parametrize("normalization", ["quadrature", "contrastive"])
def test_telescoped_is_the_difference_of_the_references_terms(normalization: str) -> None:
    """loss_T - loss_1, value and gradient, the mean of the log-prior included; draws by NumPy."""
    model = peaked_model()
    objective = thermodynamic(80, num_temps=6, exponent=2.0, estimator="telescoped", normalization=normalization)
    loss, rng = objective(model, X, stream(36)), stream(36)
    z = model.prior.sample(80, rng)
    values, temperatures = model.log_likelihood(X, z), power_schedule(6, 2.0).tolist()
    log_prior = model.prior.log_unnormalised(z) if normalization == "contrastive" else model.prior.log_prob(z)
    terms = []
    for k in (1, 6):
        uniform = torch.rand(2, 80, dtype=torch.float64, generator=rng).numpy()
        cdf = torch.softmax(temperatures[k - 1] * values.detach(), 1).numpy().cumsum(1)
        places = (np.arange(80) + uniform) / 80
        rows = [np.searchsorted(c / c[-1], p, side="right") for c, p in zip(cdf, places, strict=True)]
        index = torch.from_numpy(np.stack(rows))
        drawn = values.gather(1, index)
        v = torch.softmax((temperatures[k] - temperatures[k - 1]) * drawn.detach(), 1)
        terms.append((v * (temperatures[k] * drawn + log_prior[index] - log_prior.mean())).sum(1))
    expected = -(terms[1] - terms[0]).mean()
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-6)
    exact = gradient(expected, model)
    np.testing.assert_allclose(gradient(loss, model), exact, rtol=0, atol=1e-6 * np.abs(exact).max())


COMBINATIONS: list[dict[str, Any]] = [
    {"estimator": "telescoped"},
    *({"estimator": e} for e in ("trapezoid", "steppingstone")),
    *({"estimator": e, "resampler": r, "moves_per_temperature": m}
      for e in ("trapezoid", "steppingstone") for r in sorted(RESAMPLERS) for m in (0, 2)),
]  # fmt: skip


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_combination_trains(settings: dict[str, Any]) -> None:
    """Finite loss, finite gradient of every parameter, and the same bits for a seed, noise and selection included."""
    model = lively_model(2, "gaussian")
    for extra in ({}, {"gradient_samples": 3}, {"gradient_samples": 3, "gradient_selection": "resampled"}):
        model.noise_std = 0.3 if extra else 0.0
        objective = thermodynamic(16, num_temps=5, exponent=2.0, **settings, **extra)
        losses = [objective.estimate(model, IMAGES, stream(37)) for _ in range(2)]
        found = [gradient(loss.loss, model) for loss in losses]
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        assert math.isfinite(losses[0].loss.item())
        assert losses[0].loss.shape == ()
        assert 1 - 1e-6 <= losses[0].effective_sample_size.item() <= 16 + 1e-5
        assert torch.equal(losses[0].loss, losses[1].loss)
        np.testing.assert_array_equal(found[0], found[1])
        assert np.abs(found[0]).max() > 1e-4
        rng = stream(37)
        with torch.no_grad():
            first, second = (objective(model, IMAGES, rng) for _ in range(2))
        assert torch.isfinite(first)
        assert not torch.equal(first, second)


def test_noise_is_there_where_particles_arrive() -> None:
    """They move without it, and are differentiated with it; without gradient there is none."""
    model = lively_model(1, "uniform")
    objective = thermodynamic(64, num_temps=4, resampler="stratified", moves_per_temperature=1)
    plain = objective(model, IMAGES, stream(38))
    model.noise_std = 0.7
    noisy = objective(model, IMAGES, stream(38))
    assert torch.equal(noisy.detach(), plain.detach())  # the value is of the way
    assert distance(gradient(noisy, model), gradient(plain, model)) > 0.01
    with torch.no_grad():
        assert torch.equal(objective(model, IMAGES, stream(38)), plain.detach())


def signed_weights() -> Tensor:
    """Of few temperatures and unequal samples: a good part is negative."""
    values = 4 * torch.randn(3, 50, dtype=torch.float64, generator=stream(39))
    weights, _ = trapezoid_weights(values, power_schedule(3, 1.0))
    assert 10 < int((weights < -1e-6).sum()) < 140
    return weights


@pytest.mark.parametrize("how", ["top", "resampled"])
@pytest.mark.parametrize("count", [1, 4, 49])
def test_selected_signed_weights_keep_their_signs_and_their_size(count: int, how: str) -> None:
    weights = signed_weights()
    objective = thermodynamic(50, gradient_samples=count, gradient_selection=how)
    carried = objective._carried(weights, stream(40), Share(len(weights))).of_all(weights.shape[1])
    np.testing.assert_allclose(carried.abs().sum(1).numpy(), weights.abs().sum(1).numpy(), rtol=1e-12)
    assert (carried * weights >= 0).all()
    assert ((carried != 0).sum(1) <= count).all()
    if how == "top":
        assert ((carried != 0).sum(1) == count).all()
        for b in range(3):
            kept = carried[b] != 0
            assert weights[b, kept].abs().min() >= weights[b, ~kept].abs().max()
            ratio = carried[b, kept] / weights[b, kept]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-12, atol=0)
    else:  # whole shares
        shares = carried.abs() * count / weights.abs().sum(1, keepdim=True)
        torch.testing.assert_close(shares, shares.round(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 7])
def test_resampled_signed_weights_are_unbiased(count: int) -> None:
    """Over 4000 draws each weight's mean is within the bound of a normal, of all 150 together with ALARM."""
    weights, rng = signed_weights(), stream(41)
    objective = thermodynamic(50, gradient_samples=count, gradient_selection="resampled")
    drawn = torch.stack(
        [objective._carried(weights, rng, Share(len(weights))).of_all(weights.shape[1]) for _ in range(4000)]
    )
    often = (drawn != 0).sum(0) > 30  # rare ones are not normal
    assert int(often.sum()) > 10
    score = (drawn.mean(0) - weights)[often] / (drawn.std(0)[often] / 4000**0.5 + 1e-12)
    assert score.abs().max() < stats.norm.isf(ALARM / 2 / 150)
    assert (drawn.mean(0) - weights)[~often].abs().max() < 0.05


@pytest.mark.parametrize("how", ["top", "resampled"])
def test_all_signed_weights_are_the_gradient_of_the_full_loss(how: str) -> None:
    model = peaked_model()
    plain = gradient(thermodynamic(60, num_temps=3)(model, X, stream(42)), model)
    for count in (60, 1000):
        objective = thermodynamic(60, num_temps=3, gradient_samples=count, gradient_selection=how)
        np.testing.assert_array_equal(gradient(objective(model, X, stream(42)), model), plain)


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_temps": 1}, "num_temps = 1: must be at least 2"),
    ({"moves_per_temperature": 1}, "moves need a resampler"),
    ({"estimator": "telescoped", "resampler": "residual"}, "resampler must be none"),
    ({"resampler": "stratified", "moves_per_temperature": 1, "normalization": "contrastive"}, "contrastive"),
    ({"gradient_samples": 0}, "gradient_samples = 0: must be None or at least 1"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        thermodynamic(8, **settings)


def test_weights_that_are_all_zero_carry_nothing() -> None:
    """Both terms of the telescoped form may draw one and the same sample."""
    objective = ThermodynamicIntegration(4, num_temps=2, exponent=1.0, estimator="telescoped", gradient_samples=2)
    carried = objective._carried(torch.zeros(3, 4), stream(50), Share(3)).of_all(4)
    assert torch.equal(carried, torch.zeros(3, 4))


STEPS: list[tuple[str, dict[str, Any]]] = [
    *(("vanilla", extra) for extra in ({}, {"normalization": "contrastive"}, {"gradient_samples": 3},
                                       {"gradient_samples": 3, "gradient_selection": "resampled"})),
    *(("thermodynamic", settings) for settings in COMBINATIONS),
    ("thermodynamic", {"gradient_samples": 3}),
]  # fmt: skip


def objective_of(kind: str, settings: dict[str, Any]) -> Objective:
    if kind == "vanilla":
        return ImportanceSampling(20, **settings)
    return thermodynamic(20, num_temps=5, exponent=2.0, **settings)


@torch.no_grad()
def move(model: LVKAM, size: float, seed: int) -> Tensor:
    """Move all parameters; the way, (n,)."""
    way = [torch.randn(p.shape, dtype=p.dtype, generator=stream(seed)) for p in model.parameters()]
    for p, d in zip(model.parameters(), way, strict=True):
        p.add_(d, alpha=size)
    return torch.cat([d.flatten() for d in way])


@pytest.mark.parametrize(
    ("kind", "settings"), STEPS, ids=lambda s: s if isinstance(s, str) else "-".join(map(str, s.values()))
)
def test_the_function_of_a_step_has_the_gradient_of_the_loss_and_its_own_elsewhere(
    kind: str, settings: dict[str, Any]
) -> None:
    """It draws nothing, and is the same whenever it is called, though the samples' densities have changed since."""
    model = lively_model(2, "gaussian").double()
    model.noise_std = 0.3
    objective, rng = objective_of(kind, settings), stream(60)
    frozen = objective.freeze(model, X, rng)
    drawn = rng.get_state()
    plain = objective.estimate(model, X, stream(60))
    assert torch.equal(frozen.estimate.loss, plain.loss)
    assert torch.equal(frozen.estimate.effective_sample_size, plain.effective_sample_size)
    expected = gradient(frozen.estimate.loss, model)
    np.testing.assert_allclose(gradient(frozen.function(), model), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(frozen.function().item(), frozen.value.item(), rtol=1e-12)
    if kind == "vanilla" and not settings:
        np.testing.assert_allclose(frozen.value.item(), plain.loss.item(), rtol=1e-4)  # but for tiny weights

    move(model, 0.1, 61)
    there, slopes = frozen.function().item(), gradient(frozen.function(), model)
    assert abs(there - frozen.value.item()) > 1e-3
    way = move(model, 1e-5, 62).numpy()
    high = frozen.function().item()
    move(model, -2e-5, 62)
    np.testing.assert_allclose((high - frozen.function().item()) / 2e-5, slopes @ way, rtol=1e-5)
    move(model, 1e-5, 62)
    np.testing.assert_allclose(frozen.function().item(), there, rtol=1e-12)
    with torch.no_grad():
        np.testing.assert_allclose(frozen.function().item(), there, rtol=1e-12)
    assert torch.equal(rng.get_state(), drawn)


def test_lowering_the_function_raises_the_evidence_by_as_much_at_least() -> None:
    """Jensen's inequality, for the evidence that the same latents estimate, weighed by where they were drawn."""
    model = lively_model(2, "uniform").double()
    frozen = ImportanceSampling(50).freeze(model, X, stream(63))
    with torch.no_grad():
        z = model.prior.sample(50, stream(63))
        drawn_with = model.prior.log_prob(z)

        def evidence() -> float:
            joint = model.log_likelihood(X, z) + model.prior.log_prob(z) - drawn_with
            return (joint.logsumexp(1) - math.log(50)).mean().item()

        start, state = evidence(), {name: t.clone() for name, t in model.state_dict().items()}
        rises = []
        for seed in range(40):
            move(model, 0.02 * 1.2**seed, 100 + seed)
            fall = frozen.value.item() - frozen.function().item()
            rises.append((evidence() - start, fall))
            model.load_state_dict(state)
    assert all(rise >= fall - 1e-6 for rise, fall in rises)  # what is left out carries next to nothing
    assert sum(rise > fall + 0.01 for rise, fall in rises) > 10
    before = frozen.value.item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        frozen.function().backward()
        optimizer.step()
    fall = before - frozen.function().item()
    assert fall > 0.05
    with torch.no_grad():
        assert evidence() - start >= fall - 1e-6
