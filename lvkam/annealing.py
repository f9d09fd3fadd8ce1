"""From prior to posterior by temperatures: weights, resampling and moves along power posteriors.

    p_t(z|x) proportional to p(z) p(x|z)^t,   t_k = (k/T)^p,  k = 0..T,   w_bs(t) = softmax over s of t l_bs
    E_bk = sum_s w_bs(t_k) l_bs

    thermodynamic integration    log p(x) = integral over t in [0, 1] of E_t[log p(x|z)]
    trapezoid                    A_b = sum_k c_k E_bk,  c_k the trapezoid weights
    stepping stone               A_b = sum_k log sum_s w_bs(t_(k-1)) exp((t_k - t_(k-1)) l_bs)

Pure functions of log-likelihoods: what is annealed, and how it is redrawn, comes from the caller; `anneal_prior`
anneals latents.

Letters: B images, S samples or particles, Q latent coordinates, T temperatures.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lvkam.prior import MixturePrior
from lvkam.sampling import (
    CellTable,
    Compiler,
    as_written,
    effective_sample_size,
    residual_resample,
    stratified_resample,
    systematic_resample,
)
from lvkam.shares import Gather, pooled_log_sum

CHUNK = 2**20
"""Weights computed at a time, some temperatures of B x S, to bound the memory."""

Resampler = Callable[[Tensor, torch.Generator], Tensor]
"""(weights (B, S), rng on the CPU) -> S indices of each row, (B, S)."""


def _uniform(weights: Tensor, per_row: int, rng: torch.Generator) -> Tensor:
    return torch.rand(len(weights), per_row, dtype=torch.float64, generator=rng).to(weights.device)


def _stratified(weights: Tensor, rng: torch.Generator) -> Tensor:
    return stratified_resample(weights, _uniform(weights, weights.shape[1], rng))


def _systematic(weights: Tensor, rng: torch.Generator) -> Tensor:
    return systematic_resample(weights, _uniform(weights, 1, rng), weights.shape[1])


def _residual(weights: Tensor, rng: torch.Generator) -> Tensor:
    return residual_resample(weights, _uniform(weights, weights.shape[1], rng))


RESAMPLERS: dict[str, Resampler] = {"stratified": _stratified, "systematic": _systematic, "residual": _residual}
"""By their names in the INI file."""


def power_schedule(num_temps: int, exponent: float) -> Tensor:
    """t_k = (k/T)^p for k = 0..T: (T+1,), float64, from exactly 0 to exactly 1.

    Raises:
        ValueError: no temperatures, or an exponent that is not positive.

    >>> power_schedule(4, 2.0).tolist()
    [0.0, 0.0625, 0.25, 0.5625, 1.0]
    """
    if num_temps < 1 or not exponent > 0:
        raise ValueError(f"{num_temps} temperatures, exponent {exponent}: must be at least 1, and greater than 0")
    return (torch.arange(num_temps + 1, dtype=torch.float64) / num_temps) ** exponent


def trapezoid_rule(temperatures: Tensor) -> Tensor:
    """c_k, by which values at the temperatures sum to the trapezoid rule's integral: (T+1,) -> (T+1,)."""
    step = temperatures.diff()
    nothing = step.new_zeros(1)
    return (torch.cat((nothing, step)) + torch.cat((step, nothing))) / 2


@torch.no_grad()
def trapezoid_weights(
    log_likelihood: Tensor, temperatures: Tensor, compiler: Compiler = as_written, gather: Gather | None = None
) -> tuple[Tensor, Tensor]:
    """What all temperatures come to: the trapezoid sum A, and its derivative with respect to l.

        W_bs = sum_k c_k w_bs(t_k) (1 + t_k (l_bs - E_bk))

    W sums to one over s and may be negative. It is a constant, which makes the differentiable part of a loss as
    cheap as that of importance sampling.

    Args:
        log_likelihood: (B, S).
        temperatures: (T+1,), float64, increasing.
        compiler: for the kernel.
        gather: among processes that have other samples of the same images, as many each; None if all are here.

    Returns:
        W (B, S) of the samples here and A (B,).
    """
    peak = log_likelihood.amax(1, keepdim=True)
    if gather is not None:
        peak, compiler = gather(peak).amax(0), as_written  # what processes tell one another is in no kernel
    log_likelihood = log_likelihood - peak  # W stays what it is, and small numbers lose less to rounding
    total = torch.zeros_like(log_likelihood)
    value = peak.squeeze(1).clone()
    nodes = torch.stack((temperatures, trapezoid_rule(temperatures)), 1).to(log_likelihood)
    for chunk in _chunks(nodes, log_likelihood):
        part = compiler(_trapezoid_part)(log_likelihood, *chunk.unbind(1), gather)
        total += part[:, :-1]
        value += part[:, -1]
    return total, value


def _chunks(temperatures: Tensor, log_likelihood: Tensor) -> tuple[Tensor, ...]:
    """As many temperatures at a time as their weights may be, but two at least: one would be compiled for itself."""
    least = max(2, CHUNK // (2 * log_likelihood.numel()))  # no chunk has twice as many
    return temperatures.tensor_split(max(1, len(temperatures) // least))


def _trapezoid_part(log_likelihood: Tensor, t: Tensor, c: Tensor, gather: Gather | None) -> Tensor:
    """W, and A in one more column, of some of the temperatures: (B, S), (c,), (c,) -> (B, S+1)."""
    log_weights = t.view(-1, 1, 1) * log_likelihood
    if gather is None:
        weights = torch.softmax(log_weights, -1)  # w_bs(t_k), (c, B, S)
        mean = (weights * log_likelihood).sum(-1)  # E_bk, (c, B)
    else:
        weights = torch.exp(log_weights - pooled_log_sum(log_weights, gather).unsqueeze(-1))
        mean = gather((weights * log_likelihood).sum(-1)).sum(0)
    t, c = t.view(-1, 1), c.view(-1, 1)  # (c, 1)
    # sum_k c_k w_k (1 + t_k (l - E_k)), with l taken out of the sum
    constant, linear = (c * (1 - t * mean)).unsqueeze(-1), (c * t).unsqueeze(-1)
    total = (weights * constant).sum(0) + log_likelihood * (weights * linear).sum(0)
    return torch.cat((total, (c * mean).sum(0).unsqueeze(-1)), -1)


def telescoped_weights(log_likelihood: Tensor, temperatures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The reference's estimator: of its sum over temperatures all but the first and the last cancel.

        loss_k = sum_j v_j [t_k l_i(j) + log p(z_i(j))],   i ~ stratified(w(t_(k-1))),
        v = softmax over j of (t_k - t_(k-1)) l_i(j),      A = loss_T - loss_1

    The mean of the log-prior that each loss_k subtracts cancels too.

    Args:
        log_likelihood: (B, S).
        temperatures: (T+1,), T at least 2.
        rng: on the CPU.

    Returns:
        What multiplies l and what multiplies log p(z) in A, (B, S) each.
    """
    first = _reference_term(log_likelihood, temperatures, 1, rng)
    last = _reference_term(log_likelihood, temperatures, len(temperatures) - 1, rng)
    return last - float(temperatures[1]) * first, last - first


@torch.no_grad()
def _reference_term(log_likelihood: Tensor, temperatures: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """sum of v_j over the j that drew a sample, (B, S)."""
    before, t = float(temperatures[k - 1]), float(temperatures[k])
    index = _stratified(torch.softmax(before * log_likelihood, -1), rng)
    v = torch.softmax((t - before) * log_likelihood.gather(1, index), -1)
    return torch.zeros_like(log_likelihood).scatter_add_(1, index, v)


class Annealed(NamedTuple):
    """Particles that have come from t = 0 to t = 1."""

    state: Tensor
    """(B, S, ...)."""
    log_likelihood: Tensor
    """(B, S)."""
    weights: Tensor
    """(B, S), those of the posterior; each row sums to one."""
    log_evidence: Tensor
    """(B,), float64: by stepping stones; its exponential is unbiased for p(x)."""
    expectations: Tensor
    """E_bk, (T+1, B)."""
    effective_sample_size: Tensor
    """(B,), the lowest on the way, resampling having raised it again or not."""
    acceptance: float | None
    """Share of the proposed moves that were accepted; None without moves."""


Move = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, float]]
"""(state (B, S, ...), l (B, S), t) -> state, l and the share accepted; leaves p_t invariant."""


@torch.no_grad()
def anneal(
    state: Tensor,
    log_likelihood: Tensor,
    temperatures: Tensor,
    rng: torch.Generator,
    *,
    resampler: Resampler | None = None,
    threshold: float = 0.5,
    move: Move | None = None,
) -> Annealed:
    """Sequential Monte Carlo over the power posteriors.

    Del Moral, Doucet and Jasra 2006; without resampling it is annealed importance sampling (Neal 2001). At each
    temperature particles are reweighted by exp((t_k - t_(k-1)) l), resampled where they have become too unequal (their
    mean weight then goes into the evidence, and they start again as equals), and moved, except at t = 1, where nothing
    would come after.

    Args:
        state: what a likelihood belongs to, draws from the prior, (B, S, ...).
        log_likelihood: l of each, (B, S).
        temperatures: (T+1,), float64, from 0 to 1.
        rng: for the resampler, on the CPU.
        resampler: never resample if None.
        threshold: resample an image's particles when their effective sample size is below this share of S.
        move: changes particles at a temperature; none if None.
    """
    batch, num_particles = log_likelihood.shape
    # in float64, since small steps add up
    log_weights = torch.zeros_like(log_likelihood, dtype=torch.float64)
    log_evidence = torch.zeros(batch, dtype=torch.float64, device=log_likelihood.device)
    weights = torch.full_like(log_likelihood, 1 / num_particles)
    expectations = [log_likelihood.mean(1)]
    lowest = torch.full_like(log_likelihood[:, 0], num_particles)
    accepted = []
    last = len(temperatures) - 1
    for k, (previous, t) in enumerate(itertools.pairwise(temperatures.tolist()), start=1):
        log_weights = log_weights + (t - previous) * log_likelihood.double()
        weights = torch.softmax(log_weights, -1).to(log_likelihood.dtype)
        expectations.append((weights * log_likelihood).sum(1))
        size = effective_sample_size(weights)
        lowest = torch.minimum(lowest, size)
        if k == last:
            break
        if resampler is not None and len(needy := (size < threshold * num_particles).nonzero().squeeze(1)):
            index = resampler(weights[needy], rng)
            log_evidence.index_add_(0, needy, _log_mean(log_weights[needy]))
            log_weights = log_weights.index_fill(0, needy, 0.0)
            state = state.index_copy(0, needy, _take(state[needy], index))
            log_likelihood = log_likelihood.index_copy(0, needy, _take(log_likelihood[needy], index))
        if move is not None:
            state, log_likelihood, share = move(state, log_likelihood, t)
            accepted.append(share)
    log_evidence += _log_mean(log_weights)
    acceptance = sum(accepted) / len(accepted) if accepted else None
    return Annealed(state, log_likelihood, weights, log_evidence, torch.stack(expectations), lowest, acceptance)


def _log_mean(log_weights: Tensor) -> Tensor:
    """log of the mean weight: (B, S) -> (B,)."""
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Each row's chosen particles: (B, S, ...), (B, S) -> (B, S, ...)."""
    return values[torch.arange(len(index), device=index.device).unsqueeze(1), index]


def redrawing(
    count: int,
    rng: torch.Generator,
    *,
    redraw: Callable[[Tensor], Tensor],
    likelihood_of: Callable[[Tensor], Tensor],
) -> Move | None:
    """So many moves of `metropolis_move` in a row, for `anneal`; None if it is none."""

    def move(z: Tensor, log_likelihood: Tensor, t: float) -> tuple[Tensor, Tensor, float]:
        accepted = 0.0
        for _ in range(count):
            z, log_likelihood, share = metropolis_move(
                z, log_likelihood, t, rng, redraw=redraw, likelihood_of=likelihood_of
            )
            accepted += share / count
        return z, log_likelihood, accepted

    return move if count else None


@torch.no_grad()
def anneal_prior(
    prior: MixturePrior,
    likelihood_of: Callable[[Tensor], Tensor],
    num_images: int,
    num_particles: int,
    temperatures: Tensor,
    rng: torch.Generator,
    table: CellTable,
    *,
    moves: int,
    resampler: Resampler | None,
    threshold: float,
) -> Annealed:
    """Anneal S particles of each image, drawn from the prior and redrawn from it, by `anneal`.

    `likelihood_of` tells that of latents, (B, S, Q) -> (B, S); `table` is the prior's.
    """
    z = prior.sample(num_images * num_particles, rng, table).unflatten(0, (num_images, num_particles))
    redraw = functools.partial(prior.redraw, rng=rng, table=table)
    move = redrawing(moves, rng, redraw=redraw, likelihood_of=likelihood_of)
    return anneal(z, likelihood_of(z), temperatures, rng, resampler=resampler, threshold=threshold, move=move)


def num_redrawn(latent_dim: int, t: float) -> int:
    """How many of Q coordinates a move changes: half at t = 0, one at t = 1, fewer as the posterior narrows."""
    return max(1, round(latent_dim / 2 * (1 - math.sqrt(t))))


@torch.no_grad()
def metropolis_move(
    z: Tensor,
    log_likelihood: Tensor,
    t: float,
    rng: torch.Generator,
    *,
    redraw: Callable[[Tensor], Tensor],
    likelihood_of: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, float]:
    """Redraw some latent coordinates of each particle from the prior, and accept by the likelihood alone.

    The proposal is the prior's own conditional and the choice of coordinates does not look at z, so that the
    Metropolis-Hastings ratio is (p(x|z') / p(x|z))^t.

    Args:
        z: (B, S, Q).
        log_likelihood: (B, S).
        t: the temperature.
        rng: on the CPU.
        redraw: coordinates (B S, m) -> their new values, (B S, m).
        likelihood_of: (B, S, Q) -> (B, S).

    Returns:
        z, its log-likelihoods, and the share accepted.
    """
    batch, num_particles, latent_dim = z.shape
    count = num_redrawn(latent_dim, t)
    coordinates = torch.rand(batch * num_particles, latent_dim, generator=rng).topk(count).indices.to(z.device)
    proposed = z.flatten(0, 1).scatter(1, coordinates, redraw(coordinates)).view_as(z)
    proposed_likelihood = likelihood_of(proposed)
    threshold = torch.rand(batch, num_particles, generator=rng).to(z.device).log()
    accepted = threshold < t * (proposed_likelihood - log_likelihood)
    z = torch.where(accepted.unsqueeze(-1), proposed, z)
    return z, torch.where(accepted, proposed_likelihood, log_likelihood), float(accepted.float().mean())
