"""Estimates of the evidence log p(x), to evaluate a model with.

    log p(x) ~ log mean_s p(x | z_s),   z_s from the prior

The average is unbiased for p(x); its logarithm is too low on average, by about half its squared standard error.

Letters: B images, S samples, R blocks of samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from lvkam.model import LVKAM

NUM_BLOCKS = 32
"""Blocks of samples for the jackknife."""

CHUNK = 1024
"""Samples that go through the generator at a time, to bound the memory."""


@dataclass(frozen=True)
class Evidence:
    """log p(x) of each image, and how far it can be trusted."""

    log_evidence: Tensor
    """(B,), in nats."""
    standard_error: Tensor
    """(B,), of the estimate, the image held fixed."""
    effective_sample_size: Tensor
    """(B,), between 1 and S."""
    mean_standard_error: float
    """Of the mean over the images. They share the samples, so that their errors do not average out as
    independent ones would; it comes from leaving out the same block of samples for all of them."""


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
    total = blocks.logsumexp(0)
    log_evidence = total - math.log(num_samples)
    ess = torch.exp(2 * total - torch.stack(squares).logsumexp(0))

    left = num_samples - torch.tensor(sizes, dtype=torch.float64, device=x.device)
    without = _leave_one_out(blocks) - left.log().unsqueeze(1)  # (R, B)
    return Evidence(
        log_evidence=log_evidence,
        standard_error=_jackknife_error(without),
        effective_sample_size=ess,
        mean_standard_error=float(_jackknife_error(without.mean(1, keepdim=True))),
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
