"""Estimates of the evidence log p(x), to evaluate a model with.

    importance   log p(x) ~ log mean_s p(x | z_s),   z_s from the prior
    annealed     log p(x) ~ log mean_r Z_r,   Z_r by particles that go from prior to posterior (`lvkam.annealing`)

Either average is unbiased for p(x); its logarithm is too low on average, by about half its squared standard error.
Where few samples of the prior explain an image that error is large and cannot be seen in the samples themselves;
annealed particles find such places.

Letters: B images, S samples or particles, R independent blocks or repetitions, T temperatures.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from lvkam.annealing import RESAMPLERS, Resampler, anneal_prior, power_schedule
from lvkam.model import LVKAM

NUM_BLOCKS = 32
"""Blocks of samples for the jackknife."""

REPETITIONS = 20
"""Independent repetitions of annealing, for the jackknife."""

CHUNK = 1024
"""Samples that go through the generator at a time, to bound the memory."""

PARTICLES = 4096
"""Particles that are annealed at a time."""


@dataclass(frozen=True)
class Evidence:
    """log p(x) of each image, and how far it can be trusted."""

    log_evidence: Tensor
    """(B,), in nats."""
    standard_error: Tensor
    """(B,), of the estimate, the image held fixed."""
    effective_sample_size: Tensor
    """(B,), between 1 and S, or R S if annealed: by the lowest one of each repetition on its way, and by how unequal
    the repetitions are."""
    mean_standard_error: float
    """Of the mean over the images. They share the samples, so that their errors do not average out as
    independent ones would; it comes from leaving out the same block or repetition for all of them."""
    acceptance: float | None = None
    """Share of the moves that were accepted; None without moves."""


@torch.no_grad()
def importance_log_evidence(
    model: LVKAM, x: Tensor, num_samples: int, rng: torch.Generator, *, progress: bool = False
) -> Evidence:
    """log p(x) by prior samples that all images share, unscaled by `generator_variance`.

    Standard errors come from the jackknife over `NUM_BLOCKS` independent blocks of samples.

    Args:
        model: the model.
        x: images, (B, D).
        num_samples: S, at least 2; streamed, so that any number fits in memory.
        rng: on the CPU.
        progress: whether to show a bar on standard error.

    Raises:
        ValueError: fewer than two samples.

    >>> import lvkam
    >>> model = lvkam.build_model(lvkam.load_config("config/mnist_quality.ini"), data_dim=196)
    >>> found = importance_log_evidence(model, torch.zeros(2, 196), 100, torch.Generator().manual_seed(0))
    >>> found.log_evidence.shape, bool((found.standard_error > 0).all())
    (torch.Size([2]), True)
    """
    if num_samples < 2:
        raise ValueError(f"num_samples = {num_samples}: must be at least 2, for a standard error")
    table = model.prior.table()
    num_blocks = min(NUM_BLOCKS, num_samples)
    sizes = [num_samples * (r + 1) // num_blocks - num_samples * r // num_blocks for r in range(num_blocks)]
    block_sums, squares = [], []
    for size in tqdm(sizes, desc="evidence", unit="block", leave=False, disable=not progress):
        chunks = [
            model.reported_log_likelihood(x, model.prior.sample(min(CHUNK, size - start), rng, table)).double()
            for start in range(0, size, CHUNK)
        ]
        block_sums.append(torch.stack([c.logsumexp(1) for c in chunks]).logsumexp(0))
        squares.append(torch.stack([(2 * c).logsumexp(1) for c in chunks]).logsumexp(0))
    blocks = torch.stack(block_sums)  # (R, B): log sum_s p(x_b | z_s) over each block
    ess = torch.exp(2 * blocks.logsumexp(0) - torch.stack(squares).logsumexp(0))
    return _average(blocks, torch.tensor(sizes), ess)


@torch.no_grad()
def annealed_log_evidence(
    model: LVKAM,
    x: Tensor,
    num_particles: int,
    rng: torch.Generator,
    *,
    num_temps: int = 100,
    exponent: float = 2.0,
    moves: int = 1,
    resampler: Resampler | None = RESAMPLERS["stratified"],
    threshold: float = 0.5,
    repetitions: int = REPETITIONS,
    progress: bool = False,
) -> Evidence:
    """log p(x) by annealing each image's own particles from the prior, unscaled by `generator_variance`.

    Sequential Monte Carlo; without a resampler, annealed importance sampling (Neal 2001). Standard errors come from the
    jackknife over the repetitions, which are independent. The estimate is too low on average, as the logarithm of any
    average is.

    Args:
        model: the model.
        x: images, (B, D).
        num_particles: S, of each image in each repetition; those of one image are in memory at once.
        rng: on the CPU.
        num_temps: T.
        exponent: p of the temperatures.
        moves: Metropolis moves at each temperature.
        resampler: one of `RESAMPLERS`, or None.
        threshold: resample below this share of S.
        repetitions: R, at least 2.
        progress: whether to show a bar on standard error.

    Raises:
        ValueError: fewer than two repetitions, no particle or no temperature.
    """
    if repetitions < 2:
        raise ValueError(f"repetitions = {repetitions}: must be at least 2, for a standard error")
    if num_particles < 1:
        raise ValueError(f"num_particles = {num_particles}: must be at least 1")
    table = model.prior.table()
    temperatures = power_schedule(num_temps, exponent)
    rows = torch.arange(repetitions * len(x), device=x.device)  # the images once for each repetition
    log_evidence, lowest, accepted = [], [], []
    bar = tqdm(total=len(rows), desc="evidence", unit="image", unit_scale=1 / repetitions, leave=False,
               disable=not progress)  # fmt: skip
    with bar:
        for chunk in rows.split(max(1, PARTICLES // num_particles)):
            likelihood_of = functools.partial(model.reported_log_likelihood, x[chunk % len(x)])
            annealed = anneal_prior(
                model.prior, likelihood_of, len(chunk), num_particles, temperatures, rng, table,
                moves=moves, resampler=resampler, threshold=threshold,
            )  # fmt: skip
            log_evidence.append(annealed.log_evidence)
            lowest.append(annealed.effective_sample_size)
            if annealed.acceptance is not None:
                accepted.append(annealed.acceptance * len(chunk) / len(rows))
            bar.update(len(chunk))
    blocks = torch.cat(log_evidence).view(repetitions, -1) + math.log(num_particles)  # (R, B)
    # the effective sample size of each repetition, and how unequal the repetitions are
    ess = torch.exp(2 * blocks.logsumexp(0) - (2 * blocks - torch.cat(lowest).view(repetitions, -1).log()).logsumexp(0))
    sizes = torch.full((repetitions,), num_particles)
    return _average(blocks, sizes, ess, sum(accepted) if accepted else None)


def _average(blocks: Tensor, sizes: Tensor, ess: Tensor, acceptance: float | None = None) -> Evidence:
    """Evidence of logarithms of sums over blocks of samples, (R, B), which have so many samples each, (R,)."""
    sizes = sizes.to(blocks)
    without = _leave_one_out(blocks) - (sizes.sum() - sizes).log().unsqueeze(1)  # (R, B)
    return Evidence(
        log_evidence=blocks.logsumexp(0) - sizes.sum().log(),
        standard_error=_jackknife_error(without),
        effective_sample_size=ess,
        mean_standard_error=float(_jackknife_error(without.mean(1, keepdim=True))),
        acceptance=acceptance,
    )


def _leave_one_out(blocks: Tensor) -> Tensor:
    """log of the sum over all blocks but one: (R, B) -> (R, B).

    Summed from both sides rather than subtracted, which would fail where one block holds nearly everything.
    """
    nothing = torch.full_like(blocks[:1], -math.inf)
    before = torch.cat((nothing, blocks.logcumsumexp(0)[:-1]))
    after = torch.cat((blocks.flip(0).logcumsumexp(0).flip(0)[1:], nothing))
    return torch.logaddexp(before, after)


def _jackknife_error(without: Tensor) -> Tensor:
    """Standard error from the R leave-one-out estimates: (R, B) -> (B,) (Efron and Stein 1981)."""
    num_blocks = without.shape[0]
    return ((num_blocks - 1) / num_blocks * (without - without.mean(0)).square().sum(0)).sqrt()
