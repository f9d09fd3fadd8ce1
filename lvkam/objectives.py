"""Losses to train with: callables of one signature, objective(model, x, rng) -> scalar loss.

Importance sampling, with S samples of the prior shared by the batch and drawn without gradient:

    w_bs = softmax over s of l_bs, without gradient
    loss = -mean_b sum_s w_bs (l_bs + log p(z_s))

Its gradient is the self-normalised estimate of the gradient of -mean_b log p(x_b), since

    grad log p(x) = E over p(z|x) of [grad log p(x|z) + grad log p(z)].

Most samples carry next to no weight. Only those that do are differentiated: by default all whose weight float32
could tell from zero beside the others, so that the gradient is the same; fewer by choice.

Letters: B images, S samples, D data dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lvkam.model import LVKAM
from lvkam.sampling import CellTable, effective_sample_size, importance_weights, stratified_resample


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
        gradient_samples: how many samples of each image carry gradient; all if None.
        gradient_selection: `top` takes those of the largest weights, and normalises these; `resampled` draws them
            by their weights, which leaves the gradient's expectation as it is.
    """

    num_samples: int
    normalization: Literal["quadrature", "contrastive"] = "quadrature"
    gradient_samples: int | None = None
    gradient_selection: Literal["top", "resampled"] = "top"

    def __post_init__(self) -> None:
        if self.gradient_samples is not None and self.gradient_samples < 1:
            raise ValueError(f"gradient_samples = {self.gradient_samples}: must be None or at least 1")
        if self.gradient_selection not in {"top", "resampled"}:
            raise ValueError(f"gradient_selection = {self.gradient_selection}: must be top or resampled")

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
        carried = self._carried(weights, rng)
        likelihood = carried * log_likelihood + (weights - carried) * log_likelihood.detach()
        share = carried.mean(0)  # (S,)
        loss = -likelihood.sum(1).mean() - self._mean_log_prior(model, z, table, share)
        return Estimate(loss, effective_sample_size(weights).mean())

    def _carried(self, weights: Tensor, rng: torch.Generator) -> Tensor:
        """The weights with which samples are differentiated, most of them zero: (B, S) -> (B, S)."""
        batch, num_samples = weights.shape
        count = self.gradient_samples
        if count is None or count >= num_samples or not torch.is_grad_enabled():
            return weights * (weights > torch.finfo(torch.float32).eps / num_samples)
        if self.gradient_selection == "top":
            best = weights.topk(count, dim=1)
            return torch.zeros_like(weights).scatter_(1, best.indices, best.values / best.values.sum(1, keepdim=True))
        uniform = torch.rand(batch, count, dtype=torch.float64, generator=rng).to(weights.device)
        drawn = stratified_resample(weights, uniform)
        each = torch.full(drawn.shape, 1 / count, dtype=weights.dtype, device=weights.device)
        return torch.zeros_like(weights).scatter_add_(1, drawn, each)

    def _mean_log_prior(self, model: LVKAM, z: Tensor, table: CellTable, share: Tensor) -> Tensor:
        """sum_s share_s log p(z_s), over the samples that have a share: ()."""
        if self.normalization == "contrastive":
            log_prior = model.prior.log_unnormalised(z)
            return (share * (log_prior - log_prior.mean())).sum()
        kept = share.nonzero().squeeze(1)
        return (share[kept] * model.prior.log_prob(z[kept], table)).sum()
