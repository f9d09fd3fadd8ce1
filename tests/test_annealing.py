"""Sums over temperatures against float64 formulas; particles against a schedule written out, and exact posteriors.

Seeds are fixed, so that a test passes always or never. For a seed drawn at random each single statistical
test here would raise a false alarm with probability ALARM, where no other number is given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import softmax
from torch import Tensor

import lvkam.annealing
from lvkam.annealing import (
    RESAMPLERS,
    Annealed,
    Move,
    Resampler,
    anneal,
    metropolis_move,
    num_redrawn,
    power_schedule,
    redrawing,
    telescoped_weights,
    trapezoid_rule,
    trapezoid_weights,
)
from lvkam.model import LVKAM
from tests.conftest import stream
from tests.test_objectives import IMAGES, lively_model
from tests.test_prior import dense

ALARM = 1e-4
Array = NDArray[np.float64]

every_resampler = pytest.mark.parametrize("name", sorted(RESAMPLERS))


def log_likelihoods(rows: int = 3, samples: int = 40, spread: float = 4.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, samples, dtype=torch.float64, generator=stream(seed)) - 20


def log_mean_exp(values: Tensor) -> Array:
    found: Array = np.logaddexp.reduce(values.double().numpy(), axis=-1)
    return found - math.log(values.shape[-1])


def expectations_by_numpy(log_likelihood: Tensor, temperatures: Tensor) -> Array:
    """E_bk, (T+1, B)."""
    logs = log_likelihood.double().numpy()
    return np.stack([(softmax(t * logs, axis=1) * logs).sum(1) for t in temperatures.numpy()])


@pytest.mark.parametrize("exponent", [0.3, 1.0, 3.0, 5.0])
@pytest.mark.parametrize("num", [1, 2, 7, 69])
def test_schedule_is_powers_from_0_to_1(num: int, exponent: float) -> None:
    temperatures = power_schedule(num, exponent)
    assert temperatures.dtype == torch.float64
    assert temperatures.shape == (num + 1,)
    assert temperatures[0] == 0
    assert temperatures[-1] == 1
    assert (temperatures.diff() > 0).all()
    np.testing.assert_allclose(temperatures.numpy(), [(k / num) ** exponent for k in range(num + 1)], rtol=1e-14)


@pytest.mark.parametrize(("num", "exponent"), [(0, 1.0), (-3, 2.0), (5, 0.0), (5, -1.0), (5, math.nan)])
def test_a_schedule_that_makes_no_sense_is_refused(num: int, exponent: float) -> None:
    with pytest.raises(ValueError, match="must be at least 1, and greater than 0"):
        power_schedule(num, exponent)


@pytest.mark.parametrize("num", [1, 2, 30])
def test_trapezoid_rule_is_numpys(num: int) -> None:
    temperatures = power_schedule(num, 2.5)
    expected = [np.trapezoid(row, temperatures.numpy()) for row in np.eye(num + 1)]
    np.testing.assert_allclose(trapezoid_rule(temperatures).numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expectations_are_their_formula(dtype: torch.dtype) -> None:
    values, temperatures = log_likelihoods().to(dtype), power_schedule(10, 3)
    found = anneal(values, values, temperatures, stream(0)).expectations
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(found.double().numpy(), expectations_by_numpy(values, temperatures), rtol=tolerance)
    assert (found.diff(dim=0) >= 0).all()  # the derivative of E_t is a variance


@pytest.mark.parametrize("exponent", [1.0, 3.0])
def test_riemann_sums_enclose_the_evidence(exponent: float) -> None:
    """E_t does not decrease, and its integral is log-mean-exp: one sum is a lower bound, the other an upper one."""
    values, truth = log_likelihoods(), log_mean_exp(log_likelihoods())
    for num in (2, 10, 100):
        temperatures = power_schedule(num, exponent)
        expectations, steps = (
            anneal(values, values, temperatures, stream(0)).expectations.numpy(),
            temperatures.diff().numpy(),
        )
        assert (steps @ expectations[:-1] < truth).all()
        assert (truth < steps @ expectations[1:]).all()


@pytest.mark.parametrize("exponent", [1.0, 2.0, 5.0])
def test_trapezoid_tends_to_log_mean_exp_as_the_square_of_the_step(exponent: float) -> None:
    values = log_likelihoods()
    truth = log_mean_exp(values)
    errors = [np.abs(trapezoid_weights(values, power_schedule(t, exponent))[1].numpy() - truth) for t in (400, 800)]
    assert (errors[1] < 2e-3).all()
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.05)


@pytest.mark.parametrize("chunk", [2**20, 1, 500])
@pytest.mark.parametrize(("num", "exponent"), [(1, 1.0), (2, 3.0), (30, 5.0)])
def test_trapezoid_weights_are_the_derivative_of_the_sum(
    num: int, exponent: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PyTorch makes of A = sum_k c_k E_k, its weights differentiated too."""
    monkeypatch.setattr(lvkam.annealing, "CHUNK", chunk)
    values, temperatures = log_likelihoods().requires_grad_(), power_schedule(num, exponent)
    weights = torch.softmax(temperatures.view(-1, 1, 1) * values, -1)
    by_hand = (trapezoid_rule(temperatures).view(-1, 1, 1) * weights * values).sum((0, 2))
    (expected,) = torch.autograd.grad(by_hand.sum(), values)
    found, value = trapezoid_weights(values, temperatures)
    assert not found.requires_grad
    torch.testing.assert_close(value, by_hand.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, rtol=1e-12)
    assert (found < 0).any() == (num < 30)  # many temperatures come close to softmax(l)
    # of float32 likelihoods, as in training, to their rounding
    rounded, rounded_value = trapezoid_weights(values.detach().float(), temperatures)
    torch.testing.assert_close(rounded.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(rounded_value.double(), value, rtol=1e-5, atol=0)


def strata(weights: Array, uniform: Array) -> NDArray[np.int64]:
    """One index of each stratum, (B, S)."""
    places = (np.arange(uniform.shape[1]) + uniform) / uniform.shape[1]
    cdf = weights.cumsum(1) / weights.sum(1, keepdims=True)
    return np.stack([np.searchsorted(c, p, side="right") for c, p in zip(cdf, places, strict=True)])


def reference_loss(values: Array, log_prior: Array, temperatures: Array, k: int, index: NDArray[np.int64]) -> Array:
    """loss_k of the reference with given draws: (B, S), (S,), (T+1,), (B, S) -> (B,)."""
    drawn, prior = np.take_along_axis(values, index, 1), log_prior[index]
    v = softmax((temperatures[k] - temperatures[k - 1]) * drawn, axis=1)
    return (v * (temperatures[k] * drawn + prior - log_prior.mean())).sum(1)


@pytest.mark.parametrize("level", [-100.0, -1e4, -1e5])
def test_trapezoid_weights_lose_nothing_to_the_likelihoods_level(level: float) -> None:
    """In float32 a level of 1e5 leaves 0.004 to the differences: W is that of the rounded numbers all the same."""
    values = (log_likelihoods(spread=5.0) + level).float()
    weights, value = trapezoid_weights(values, power_schedule(20, 5.0))
    exact, exact_value = trapezoid_weights(values.double(), power_schedule(20, 5.0))
    torch.testing.assert_close(weights.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("level", [-3000.0, -25000.0])
def test_evidence_loses_nothing_to_the_number_of_steps(level: float) -> None:
    values = (log_likelihoods(spread=5.0) + level).float()
    found = anneal(values, values, power_schedule(1000, 2.0), stream(40)).log_evidence
    torch.testing.assert_close(found, values.double().logsumexp(1) - math.log(values.shape[1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num", [2, 3, 12])
def test_telescoped_weights_are_the_sum_over_all_temperatures(num: int) -> None:
    """All T - 1 differences of the reference's terms, those in the middle with any draws, since they cancel."""
    values, temperatures = log_likelihoods(spread=2.0), power_schedule(num, 2).numpy()
    log_prior = torch.randn(40, dtype=torch.float64, generator=stream(1)).numpy() - 7
    on_likelihood, on_prior = telescoped_weights(values, torch.from_numpy(temperatures), stream(2))
    rng, losses = stream(2), {}
    for k in [1, num, *range(2, num)]:  # the function draws the first, then the last
        uniform = torch.rand(3, 40, dtype=torch.float64, generator=rng).numpy()
        index = strata(softmax(temperatures[k - 1] * values.numpy(), axis=1), uniform)
        losses[k] = reference_loss(values.numpy(), log_prior, temperatures, k, index)
    expected = sum(losses[k] - losses[k - 1] for k in range(2, num + 1))
    found = (on_likelihood.numpy() * values.numpy() + on_prior.numpy() * log_prior).sum(1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(on_prior.sum(1).numpy(), 0, atol=1e-12)
    np.testing.assert_allclose(on_likelihood.sum(1).numpy(), 1 - temperatures[1], atol=1e-12)


def counts_of(index: Tensor, num: int) -> Tensor:
    return torch.nn.functional.one_hot(index, num).sum(1).double()


@every_resampler
def test_resamplers_are_unbiased(name: str) -> None:
    """Mean counts of 10,000 draws, by Hotelling's test: chi-squared with as many degrees as the counts vary in."""
    rows, weights = 10_000, torch.tensor([0.31, 0.02, 0.18, 0.27, 0.09, 0.13])
    counts = counts_of(RESAMPLERS[name](weights.expand(rows, -1), stream(3)), 6)
    expected = 6 * weights.double() / weights.double().sum()
    off, covariance = (counts.mean(0) - expected).numpy(), np.cov(counts.numpy().T)
    rank = np.linalg.matrix_rank(covariance, tol=1e-8)
    assert rank >= 3
    inverse = np.linalg.pinv(covariance, rcond=1e-8, hermitian=True)
    assert stats.chi2.sf(rows * off @ inverse @ off, rank) > ALARM
    assert np.abs(off).max() < 0.05
    if name == "residual":
        assert (counts >= torch.floor(expected)).all()
    else:
        assert ((counts - expected).abs() < (1 if name == "systematic" else 2)).all()
    assert len(torch.unique(counts, dim=0)) > 3  # each row has random numbers of its own


@every_resampler
def test_resamplers_of_edge_weights(name: str) -> None:
    resample = RESAMPLERS[name]
    short = torch.softmax(torch.randn(4, 1000, generator=stream(30)), 1) * (1 - 1e-4)
    assert (short.sum(1) < 1).all()
    drawn = resample(short, stream(4))
    assert drawn.shape == short.shape
    assert int(drawn.max()) < 1000
    away = (counts_of(drawn, 1000) - 1000 * short.double() / short.double().sum(1, keepdim=True)).abs()
    assert away.max() < (2 if name == "stratified" else 1) or name == "residual"
    survivors = torch.arange(50)
    assert torch.equal(resample(torch.eye(50), stream(5)), survivors[:, None].expand(-1, 50))
    assert torch.equal(resample(torch.ones(7, 1), stream(6)), torch.zeros(7, 1, dtype=torch.int64))
    rng = stream(7)
    assert not torch.equal(resample(short, rng), resample(short, rng))
    assert torch.equal(resample(short, stream(4)), drawn)


def test_without_resampling_particles_are_importance_samples() -> None:
    values, temperatures = log_likelihoods(), power_schedule(15, 2)
    found = anneal(torch.arange(40).expand(3, -1), values, temperatures, stream(8))
    weights = [softmax(t * values.numpy(), axis=1) for t in temperatures.numpy()]
    assert torch.equal(found.state, torch.arange(40).expand(3, -1))
    assert torch.equal(found.log_likelihood, values)
    np.testing.assert_allclose(found.log_evidence.numpy(), log_mean_exp(values), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.weights.numpy(), weights[-1], rtol=1e-10)
    np.testing.assert_allclose(
        found.expectations.numpy(), expectations_by_numpy(values, temperatures), rtol=1e-12
    )  # fmt: skip
    lowest = np.min([1 / (w**2).sum(1) for w in weights], axis=0)
    np.testing.assert_allclose(found.effective_sample_size.numpy(), lowest, rtol=1e-10)
    assert found.acceptance is None
    assert found.log_evidence.dtype == torch.float64
    in_single = anneal(torch.arange(40).expand(3, -1), values.float(), temperatures, stream(8))
    np.testing.assert_allclose(in_single.log_evidence.numpy(), log_mean_exp(values), rtol=0, atol=1e-4)


def test_images_do_not_mix() -> None:
    """Nothing random in it: together is one by one. A row that need not be resampled keeps its particles."""
    values, temperatures = log_likelihoods(), power_schedule(15, 2)
    state = torch.randn(3, 40, 2, generator=stream(9))
    together = anneal(state, values, temperatures, stream(10))
    for b in range(3):
        alone = anneal(state[b : b + 1], values[b : b + 1], temperatures, stream(10))
        for one, all_ in zip(alone[:4], together[:4], strict=True):
            assert isinstance(one, Tensor)
            assert isinstance(all_, Tensor)
            torch.testing.assert_close(one[0], all_[b], rtol=1e-13, atol=1e-13)

    values[1] = -3.0  # all alike
    mixed = anneal(state, values, temperatures, stream(10), resampler=RESAMPLERS["stratified"], threshold=0.9)
    assert torch.equal(mixed.state[1], state[1])
    np.testing.assert_allclose(mixed.log_evidence[1].item(), -3, rtol=1e-12)
    assert mixed.effective_sample_size[1].item() == pytest.approx(40)
    for b in (0, 2):
        assert len(mixed.state[b].unique(dim=0)) < 40
        assert torch.isin(mixed.state[b], state[b]).all()


def counting(resampler: Resampler) -> tuple[Resampler, list[Tensor]]:
    calls: list[Tensor] = []

    def counted(weights: Tensor, rng: torch.Generator) -> Tensor:
        calls.append(weights)
        return resampler(weights, rng)

    return counted, calls


def test_the_threshold_decides_when_to_resample() -> None:
    values, temperatures = log_likelihoods(), power_schedule(15, 1)
    plain = anneal(torch.arange(40).expand(3, -1), values, temperatures, stream(11))
    for threshold, expected in ((0.0, 0), (1.0, 14)):  # never where no temperature follows
        resampler, calls = counting(RESAMPLERS["systematic"])
        state = torch.arange(40).expand(3, -1)
        found = anneal(state, values, temperatures, stream(11), resampler=resampler, threshold=threshold)
        assert len(calls) == expected
        assert torch.equal(found.state, state) == (expected == 0)
        for weights in calls:
            np.testing.assert_allclose(weights.sum(1).numpy(), 1, rtol=1e-12)
        if not expected:
            assert torch.equal(found.log_evidence, plain.log_evidence)


class ByHand(NamedTuple):
    particles: NDArray[np.int64]
    weights: Array
    log_evidence: Array
    expectations: Array
    lowest_size: Array
    resampled: NDArray[np.bool_]  # (T-1, B)


def by_hand(values: Array, temperatures: Array, indices: Iterator[Tensor], threshold: float, moves: bool) -> ByHand:
    """The particles by NumPy; whenever an image needs it, the next indices are used; moves add t to likelihoods."""
    rows, samples = values.shape
    particles, weights = np.tile(np.arange(samples), (rows, 1)), np.ones((rows, samples))
    evidence, expectations, sizes, resampled = np.zeros(rows), [values.mean(1)], [], []
    for k in range(1, len(temperatures)):
        weights = weights * np.exp((temperatures[k] - temperatures[k - 1]) * values)
        shares = weights / weights.sum(1, keepdims=True)
        expectations.append((shares * values).sum(1))
        sizes.append(1 / (shares**2).sum(1))
        if k == len(temperatures) - 1:
            break
        resampled.append(sizes[-1] < threshold * samples)
        index = next(indices).numpy() if resampled[-1].any() else None
        for row, b in enumerate(np.flatnonzero(resampled[-1])):  # only those that need it are drawn for
            assert index is not None
            evidence[b] += np.log(weights[b].mean())
            particles[b], values[b], weights[b] = particles[b][index[row]], values[b][index[row]], 1.0
        if moves:
            values = values + temperatures[k]
    shares = weights / weights.sum(1, keepdims=True)
    evidence += np.log(weights.mean(1))
    return ByHand(particles, shares, evidence, np.stack(expectations), np.min(sizes, 0), np.stack(resampled))


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.0])
def test_particles_are_the_algorithm_written_out(threshold: float, moves: bool) -> None:
    """With given draws and a move that is arithmetic: nothing is random, all is compared to rounding."""
    values, temperatures = log_likelihoods(spread=2.0) + 20, power_schedule(9, 1.5)
    indices, seen = torch.randint(40, (8, 3, 40), generator=stream(12)), []
    rounds = iter(indices)

    def move(state: Tensor, log_likelihood: Tensor, t: float) -> tuple[Tensor, Tensor, float]:
        seen.append(t)
        return state, log_likelihood + t, t

    found = anneal(
        torch.arange(40).expand(3, -1), values, temperatures, stream(13),
        resampler=lambda weights, _: next(rounds)[: len(weights)], threshold=threshold, move=move if moves else None,
    )  # fmt: skip
    true = by_hand(values.numpy().copy(), temperatures.numpy(), iter(indices), threshold, moves)
    assert true.resampled.any()
    assert threshold == 1 or not true.resampled.all()
    np.testing.assert_array_equal(found.state.numpy(), true.particles)
    for one, other in (
        (found.weights, true.weights),
        (found.log_evidence, true.log_evidence),
        (found.expectations, true.expectations),
        (found.effective_sample_size, true.lowest_size),
    ):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-10)
    shift = temperatures[1:-1].sum() if moves else 0.0
    np.testing.assert_allclose(
        found.log_likelihood.numpy(), values.gather(1, found.state).numpy() + float(shift), rtol=1e-10
    )
    if moves:  # everywhere but at the ends
        assert seen == temperatures[1:-1].tolist()
        assert found.acceptance == pytest.approx(float(temperatures[1:-1].mean()))


@every_resampler
def test_one_particle_and_one_survivor(name: str) -> None:
    temperatures = power_schedule(8, 2)

    def annealed(values: Tensor) -> Annealed:
        state = torch.arange(values.shape[1]).expand(len(values), -1)
        return anneal(state, values, temperatures, stream(14), resampler=RESAMPLERS[name], threshold=1.0)

    values = log_likelihoods(5, 1)
    found = annealed(values)
    np.testing.assert_allclose(found.log_evidence.numpy(), values[:, 0].numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.expectations.numpy(), values[:, 0].expand(9, -1).numpy(), rtol=1e-12)
    assert (found.weights == 1).all()
    assert (found.effective_sample_size == 1).all()

    # each image has one particle that explains it, of 30; the others are out at the first temperature
    found = annealed(torch.where(torch.eye(30, dtype=torch.bool), -3.0, -1e6))
    assert torch.equal(found.state, torch.arange(30)[:, None].expand(-1, 30))
    np.testing.assert_allclose(found.log_evidence.numpy(), -3 - math.log(30), rtol=1e-6)
    np.testing.assert_allclose(found.weights.numpy(), 1 / 30, rtol=1e-6)
    assert (found.effective_sample_size == 1).all()


def moved_once(model: LVKAM, z: Tensor, values: Tensor, t: float, rng: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """By a single move, with draws of the model's own prior."""
    return metropolis_move(
        z, values, t, rng,
        redraw=lambda coordinates: model.prior.redraw(coordinates, rng),
        likelihood_of=lambda z: model.log_likelihood(IMAGES, z),
    )  # fmt: skip


def test_redrawing_repeats_the_move() -> None:
    model = model_of(2, "uniform")
    start, values = particles_of(model, 500, 15)
    move = move_of(model, IMAGES, stream(16), 3)
    assert move is not None
    found = move(start, values, 0.5)
    z, rng, shares = start, stream(16), []
    for _ in range(3):
        z, values, share = moved_once(model, z, values, 0.5, rng)
        shares.append(share)
    assert torch.equal(found[0], z)
    assert torch.equal(found[1], values)
    assert found[2] == pytest.approx(np.mean(shares))
    assert move_of(model, IMAGES, stream(16), 0) is None


def test_how_many_coordinates_are_redrawn() -> None:
    """From half of them at t = 0 (rounded) to one, never more for a higher temperature."""
    for latent_dim in (1, 2, 3, 7, 10, 101):
        counts = [num_redrawn(latent_dim, t) for t in np.linspace(0, 1, 200)]
        assert all(1 <= n <= max(1, (latent_dim + 1) / 2) for n in counts)
        assert abs(counts[0] - max(1, latent_dim / 2)) <= 0.5
        assert counts[-1] == 1
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("t", [0.0, 1e-4, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("latent_dim", [1, 2, 7, 10])
def test_a_move_proposes_distinct_coordinates_and_leaves_the_others(latent_dim: int, t: float) -> None:
    particles = 4000
    z = torch.arange(float(2 * particles * latent_dim)).view(2, particles, latent_dim)
    asked, proposals = [], []

    def redraw(coordinates: Tensor) -> Tensor:
        asked.append(coordinates)
        return -1.0 - coordinates.float()

    def likelihood_of(proposed: Tensor) -> Tensor:
        proposals.append(proposed)
        return torch.full((2, particles), -0.7)

    values = torch.zeros(2, particles)
    moved, moved_values, share = metropolis_move(
        z, values, t, stream(17), redraw=redraw, likelihood_of=likelihood_of
    )  # fmt: skip
    count, coordinates = num_redrawn(latent_dim, t), asked[0]
    assert coordinates.shape == (2 * particles, count)
    changed = proposals[0] != z
    assert (changed.sum(-1) == count).all()  # distinct, for each has changed a place of its own
    assert torch.equal(proposals[0][changed], -1.0 - changed.nonzero()[:, 2])
    # by chance, each as often as the others: twice the mean would be forty standard deviations away
    usage = changed.float().mean((0, 1))
    assert ((usage - count / latent_dim).abs() < 6 * (count / latent_dim / (2 * particles)) ** 0.5).all()

    accepted = (moved != z).any(-1)
    assert torch.equal(moved, torch.where(accepted.unsqueeze(-1), proposals[0], z))
    assert torch.equal(moved_values, torch.where(accepted, -0.7, 0.0))
    assert share == pytest.approx(float(accepted.float().mean()))
    # exp(-0.7 t) of them, within four standard deviations
    expected = math.exp(-0.7 * t)
    assert 0 < share <= 1
    assert abs(share - expected) <= 4 * (expected * (1 - expected) / (2 * particles)) ** 0.5
    assert share == 1 or t > 0


@pytest.mark.parametrize("t", [0.2, 1.0])
def test_better_places_are_always_taken(t: float) -> None:
    z, values = torch.zeros(2, 50, 3), torch.full((2, 50), -5.0)
    moved, better, share = metropolis_move(
        z, values, t, stream(18),
        redraw=lambda coordinates: torch.ones(coordinates.shape), likelihood_of=lambda _: values + 0.1,
    )  # fmt: skip
    assert share == 1
    assert torch.equal(better, values + 0.1)
    assert torch.equal(moved.sum(-1), torch.full((2, 50), float(num_redrawn(3, t))))


def model_of(latent_dim: int, reference: str, likelihood: str = "bernoulli") -> LVKAM:
    """A mixture with random energies, and images that say much about their latents."""
    model = lively_model(latent_dim, reference, likelihood=likelihood)
    model.likelihood_std = 0.4
    return model


def particles_of(model: LVKAM, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws from the prior for each of the images, and their log-likelihoods."""
    with torch.no_grad():
        z = model.prior.sample(len(IMAGES) * num, stream(seed)).unflatten(0, (len(IMAGES), -1))
        return z, model.log_likelihood(IMAGES, z)


def move_of(model: LVKAM, x: Tensor, rng: torch.Generator, count: int) -> Move | None:
    table = model.prior.table()

    def redraw(coordinates: Tensor) -> Tensor:
        return model.prior.redraw(coordinates, rng, table)

    def likelihood_of(z: Tensor) -> Tensor:
        return model.log_likelihood(x, z)

    return redrawing(count, rng, redraw=redraw, likelihood_of=likelihood_of)


class Quantiles:
    """A model on a grid of its prior's quantiles u in [0, 1]^Q, where p_t is proportional to exp(t l(z(u)))."""

    def __init__(self, model: LVKAM, reference: str):
        latent_dim = model.prior.latent_dim
        true = dense(model.prior, reference)
        self.z, self.cdf = true.z.numpy(), true.cdf
        number = 20_000 if latent_dim == 1 else 400
        line = (torch.arange(number, dtype=torch.float64) + 0.5) / number
        self.shape, self.model = (number,) * latent_dim, model
        self.nodes = torch.cartesian_prod(*[line] * latent_dim).reshape(-1, latent_dim)
        with torch.no_grad():
            values = model.log_likelihood(IMAGES, self.latents(self.nodes.numpy()))
        self.log_likelihood = values.double().numpy()  # (B, number^Q)
        self.log_evidence = log_mean_exp(values)

    def latents(self, u: Array) -> Tensor:
        columns = [np.interp(u[:, q], self.cdf[:, q], self.z) for q in range(u.shape[1])]
        return torch.from_numpy(np.stack(columns, 1)).float()

    def draw(self, t: float, num: int, seed: int) -> Tensor:
        """From p_t, of each image: (B, num, Q)."""
        rng, drawn = np.random.default_rng(seed), []
        for logs in self.log_likelihood:
            cell = rng.choice(len(logs), num, p=softmax(t * logs))
            jitter = (rng.random((num, len(self.shape))) - 0.5) / self.shape[0]
            drawn.append(self.latents(self.nodes[cell].numpy() + jitter))
        return torch.stack(drawn)

    def p_values(self, z: Tensor, t: float) -> list[float]:
        """Of Kolmogorov and Smirnov's test of each image's marginals."""
        found = []
        for b, logs in enumerate(self.log_likelihood):
            mass = softmax(t * logs).reshape(self.shape)
            for q in range(len(self.shape)):
                marginal = mass.sum(tuple(a for a in range(len(self.shape)) if a != q))
                ends, cdf = np.linspace(0, 1, self.shape[0] + 1), np.append(0, marginal.cumsum())
                u = np.interp(z[b, :, q].double().numpy(), self.z, self.cdf[:, q])
                found.append(stats.kstest(u, lambda u, ends=ends, cdf=cdf: np.interp(u, ends, cdf)).pvalue)
        return found


@functools.cache
def known_model(latent_dim: int, reference: str) -> tuple[LVKAM, Quantiles]:
    """A model with its exact power posteriors and evidence; not to be changed."""
    model = model_of(latent_dim, reference)
    return model, Quantiles(model, reference)


@pytest.mark.parametrize("t", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("reference", ["uniform", "gaussian"])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_moves_leave_the_power_posterior_as_it_is(latent_dim: int, reference: str, t: float) -> None:
    """False alarm with probability 1e-3 for each image's marginal; draws from the prior instead are found out."""
    model, quantiles = known_model(latent_dim, reference)
    rng, num = stream(19), 10_000
    z = quantiles.draw(t, num, 20)
    assert min(quantiles.p_values(z, t)) > 1e-3
    with torch.no_grad():
        values = model.log_likelihood(IMAGES, z)
    start, table = z, model.prior.table()
    for _ in range(8):
        z, values, share = metropolis_move(
            z, values, t, rng,
            redraw=lambda coordinates: model.prior.redraw(coordinates, rng, table),
            likelihood_of=lambda z: model.log_likelihood(IMAGES, z),
        )  # fmt: skip
        assert 0.02 < share <= 1
    assert (z != start).any(-1).float().mean() > 0.5
    torch.testing.assert_close(values, model.log_likelihood(IMAGES, z).detach())
    assert min(quantiles.p_values(z, t)) > 1e-3
    if t >= 0.4:
        assert max(quantiles.p_values(particles_of(model, num, 21)[0], t)) < 1e-3


def test_moves_at_t_0_keep_the_prior() -> None:
    """With several coordinates at a time; each stays distributed as its own prior."""
    model = model_of(5, "gaussian")
    z, values = particles_of(model, 3000, 22)
    true, rng = dense(model.prior, "gaussian"), stream(23)
    for _ in range(3):
        z, values, share = moved_once(model, z, values, 0.0, rng)
        assert share == 1
    for q in range(5):
        drawn = z[..., q].flatten().double().numpy()
        assert stats.kstest(drawn, lambda x, q=q: np.interp(x, true.z.numpy(), true.cdf[:, q])).pvalue > ALARM


@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.parametrize("name", ["none", *sorted(RESAMPLERS)])
@pytest.mark.parametrize(("latent_dim", "reference"), [(1, "uniform"), (2, "gaussian")])
def test_the_evidence_of_few_particles_is_unbiased(latent_dim: int, reference: str, name: str, moves: int) -> None:
    """Z, not its logarithm: the mean over 1500 rows within four standard errors, a false alarm in 16,000."""
    model, quantiles = known_model(latent_dim, reference)
    repetitions, particles, rng = 1500, 12, stream(24)
    for b in range(2):
        x = IMAGES[b : b + 1].expand(repetitions, -1)
        with torch.no_grad():
            z = model.prior.sample(repetitions * particles, rng).unflatten(0, (repetitions, -1))
            values = model.log_likelihood(x, z)
        found = anneal(
            z, values, power_schedule(8, 2.0), rng,
            resampler=RESAMPLERS.get(name), threshold=0.8, move=move_of(model, x, rng, moves),
        )  # fmt: skip
        ratio = (found.log_evidence - quantiles.log_evidence[b]).exp()
        error = float(ratio.std()) / repetitions**0.5
        assert error < 0.05
        assert abs(float(ratio.mean()) - 1) < 4 * error
        assert (found.acceptance is None) == (moves == 0)


@pytest.mark.parametrize(("latent_dim", "reference"), [(1, "uniform"), (2, "gaussian")])
def test_moves_find_what_the_prior_has_not_drawn(latent_dim: int, reference: str) -> None:
    """With the same particles the evidence is too low by less, and its expectations' integral is nearer to it."""
    model, quantiles = known_model(latent_dim, reference)
    x, temperatures = IMAGES.repeat(100, 1), power_schedule(20, 3.0)
    truth = np.tile(quantiles.log_evidence, 100)
    errors = {}
    for moves in (0, 2):
        rng = stream(25)
        with torch.no_grad():
            z = model.prior.sample(len(x) * 10, rng).unflatten(0, (len(x), -1))
            values = model.log_likelihood(x, z)
        found = anneal(
            z, values, temperatures, rng, resampler=RESAMPLERS["stratified"], move=move_of(model, x, rng, moves)
        )
        integral = (trapezoid_rule(temperatures) @ found.expectations.double()).numpy()
        errors[moves] = [np.sqrt(np.mean((a - truth) ** 2)) for a in (found.log_evidence.numpy(), integral)]
    assert errors[2][0] < 0.8 * errors[0][0]
    assert errors[2][1] < 0.8 * errors[0][1]
