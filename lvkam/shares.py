"""One process's share of a batch's loss: of its images, or of its samples.

Where processes divide the images, each weighs them by all samples and needs none of the others. Where they divide the
samples, the weights are normalised over all of them, by logarithms of sums that processes tell one another:

    w_bs = exp(l_bs - L_b),   L_b = log sum over processes r of exp(L_br),   L_br = log sum over the s of r of exp(l_bs)

Either way the parts add up to the loss of one process.

Letters: B images, S samples, N processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lvkam.sampling import effective_sample_size, importance_weights

Gather = Callable[[Tensor], Tensor]
"""A tensor of each process, of one shape, (...) -> those of all, (N, ...), the same to the bit everywhere."""


def pooled_log_sum(log_weights: Tensor, gather: Gather) -> Tensor:
    """L_b over the samples of all processes: (..., S/N) -> (...)."""
    return gather(log_weights.logsumexp(-1)).logsumexp(0)


@dataclass(frozen=True)
class Share:
    """What a process contributes to the loss of a batch.

    Args:
        num_images: B of the whole batch, of which this process may have a part.
        rank: which part of the samples is this process's, in 0..size-1.
        size: in how many parts the samples are.
        gather: among the processes that have the other samples; None where all samples are here.
        images_rng: for random numbers of each image's own, on the CPU; those of the shared stream if None.
    """

    num_images: int
    rank: int = 0
    size: int = 1
    gather: Gather | None = None
    images_rng: torch.Generator | None = None

    def rows(self, num_samples: int) -> slice:
        """This process's part of so many samples, a multiple of `size`."""
        part = num_samples // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def mean(self, of_images: Tensor, num_here: int | None = None) -> Tensor:
        """This process's part of a mean over all images: (B,) -> ().

        Args:
            of_images: values of images here, all of them or a sample.
            num_here: how many images they stand for; as many as there are values if None.
        """
        num_here = len(of_images) if num_here is None else num_here
        return of_images.mean() * (num_here / (self.num_images * self.size))

    def total(self, x: Tensor) -> Tensor:
        """Sum over the samples of all processes: (B, S/N) -> (B,)."""
        return x.sum(-1) if self.gather is None else self.gather(x.sum(-1)).sum(0)

    def log_sum(self, log_weights: Tensor) -> Tensor:
        """log of the sum of exponentials over the samples of all: (B, S/N) -> (B,)."""
        return log_weights.logsumexp(-1) if self.gather is None else pooled_log_sum(log_weights, self.gather)

    def importance_weights(self, log_likelihood: Tensor) -> Tensor:
        """Of the samples here, self-normalised over those of all: (B, S/N) -> (B, S/N)."""
        if self.gather is None:
            return importance_weights(log_likelihood)
        return torch.exp(log_likelihood - self.log_sum(log_likelihood).unsqueeze(-1))

    def effective_sample_size(self, weights: Tensor) -> Tensor:
        """1 / sum_s w_bs^2 over the samples of all: (B, S/N) -> (B,)."""
        return effective_sample_size(weights) if self.gather is None else 1 / self.total(weights.square())

    def top(self, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The largest of each row.

        Where other processes have samples too, `count` are chosen of all: as many are given back of those here, and
        what is not among the chosen is -inf.

        Returns:
            Values and their indices among the samples here, (B, min(count, S/N)) each.
        """
        best = values.topk(min(count, values.shape[-1]), dim=-1)
        if self.gather is None:
            return best.values, best.indices
        of_all = self.gather(best.values).movedim(0, -1).flatten(-2)  # (B, N n)
        least = of_all.topk(count, dim=-1).values[..., -1:]
        return best.values.masked_fill(best.values < least, -math.inf), best.indices
