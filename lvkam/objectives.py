"""Losses to train with: callables of one signature, objective(model, x, rng) -> scalar loss.

Importance sampling, with S samples of the prior shared by the batch and drawn without gradient:

    w_bs = softmax over s of l_bs, without gradient
    loss = -mean_b sum_s w_bs (l_bs + log p(z_s))

Its gradient is the self-normalised estimate of the gradient of -mean_b log p(x_b), since

    grad log p(x) = E over p(z|x) of [grad log p(x|z) + grad log p(z)].

Letters: B images, S samples, D data dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lvkam.model import LVKAM
from lvkam.sampling import CellTable, effective_sample_size, importance_weights


class Estimate(NamedTuple):
    """A loss, and how far its samples can be trusted."""

    loss: Tensor
    """(), differentiable."""
    effective_sample_size: Tensor
    """Mean over the images, (), between 1 and S."""


@dataclass(frozen=True)
class ImportanceSampling:
    """The reference's "Vanilla" training.

    Args:
        num_samples: S.
        normalization: `quadrature` trains with the normalised log-prior. `contrastive` is the reference's form:
            the unnormalised log-prior minus its mean over the prior samples, which is biased for mixtures.
    """

    num_samples: int
    normalization: Literal["quadrature", "contrastive"] = "quadrature"

    def __call__(self, model: LVKAM, x: Tensor, rng: torch.Generator) -> Tensor:
        """Loss of the images x, (B, D): scalar, in the units of the scaled likelihood."""
        return self.estimate(model, x, rng).loss

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator) -> Estimate:
        """The loss with its effective sample size."""
        table = model.prior.table()
        z = model.prior.sample(self.num_samples, rng, table)
        out = model.generator(z)  # (S, D)
        if model.noise_std > 0 and torch.is_grad_enabled():  # while training only
            out = out + model.noise_std * torch.randn(out.shape, generator=rng).to(out)
        log_likelihood = model.output_log_likelihood(x, out)  # (B, S)
        # The weights are the posterior's, at which the gradient is evaluated; they are no part of what is
        # differentiated (the identity above).
        weights = importance_weights(log_likelihood.detach())
        loss = -(weights * (log_likelihood + self._log_prior(model, z, table))).sum(1).mean()
        return Estimate(loss, effective_sample_size(weights).mean())

    def _log_prior(self, model: LVKAM, z: Tensor, table: CellTable) -> Tensor:
        if self.normalization == "quadrature":
            return model.prior.log_prob(z, table)
        log_prior = model.prior.log_unnormalised(z)
        return log_prior - log_prior.mean()
