"""Losses to train with: callables of one signature, objective(model, x, rng) -> scalar loss.

Importance sampling, with S samples of the prior shared by the batch and drawn without gradient:

    w_bs = softmax over s of l_bs, without gradient
    loss = -mean_b sum_s w_bs (l_bs + log p(z_s))

Its gradient is the self-normalised estimate of the gradient of -mean_b log p(x_b), since

    grad log p(x) = E over p(z|x) of [grad log p(x|z) + grad log p(z)].

Thermodynamic integration, A_b being a sum over temperatures that estimates log p(x_b) (`lvkam.annealing`):

    loss = -mean_b A_b,   grad loss = -mean_b sum_s (W_bs grad l_bs + w_bs(1) grad log p(z_s)),   W_bs = dA_b / dl_bs

Most samples carry next to no weight. Only those that do are differentiated: by default all whose weight float32
could tell from zero beside the others, so that the gradient is the same; fewer by choice. All samples are weighed
without a graph; the gradient goes through the weighted sum of those that an image has chosen.

A line search, or a Newton step, needs a function rather than one gradient: with the latents, the weights W and V of the
samples that carry gradient and the noise held as they are at the parameters theta_0 of the step's beginning,

    J(theta) = -mean_b sum_s (W_bs l_bs(theta) + V_bs log p(z_s; theta)).

At theta_0 its gradient is the training gradient, and everywhere its gradient is its own. For importance sampling it is
what the M step of expectation maximisation lowers (Neal and Hinton 1998): by Jensen's inequality the evidence estimated
with the same latents, log mean_s p(x, z_s; theta) / p(z_s; theta_0), rises at least as much as J falls.

Letters: B images, S samples, Q latent coordinates, D data dimensions, T temperatures.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lvkam.annealing import (
    RESAMPLERS,
    Annealed,
    anneal,
    anneal_prior,
    power_schedule,
    telescoped_weights,
    trapezoid_rule,
    trapezoid_weights,
)
from lvkam.compilation import rows_kept
from lvkam.model import LVKAM
from lvkam.sampling import CellTable, Compiler, stratified_resample
from lvkam.shares import Share

SIZED = 64
"""Images of a batch whose effective sample sizes are averaged where the weights of all are not needed."""


class Estimate(NamedTuple):
    """A loss, and how far its samples can be trusted; of a share, its part of both, which add up over processes."""

    loss: Tensor
    """(), differentiable."""
    effective_sample_size: Tensor
    """Mean over the images, or the first `SIZED` of them where those are enough, (), between 1 and S."""


class Frozen(NamedTuple):
    """An estimate, and the function J whose gradient it has, all draws and weights being held."""

    estimate: Estimate
    value: Tensor
    """J at the present parameters, (), without gradient: not the loss where this is another sum than the weights'."""
    function: Callable[[], Tensor]
    """J at whatever the parameters have become, (), differentiable; it draws no random numbers."""


class _Draws(NamedTuple):
    """What l_bs depends on besides the parameters."""

    x: Tensor
    """(B, D)."""
    z: Tensor
    """Shared by all images, (S, Q), or each image's own, (B, S, Q)."""
    noise: Tensor | None
    """(S, D) or (B, S, D), of standard deviation 1."""

    def take(self, rows: Tensor | slice) -> _Draws:
        """Those of some samples only, R of them."""
        return _Draws(self.x, self.z[rows], None if self.noise is None else self.noise[rows])

    def outputs(self, model: LVKAM) -> Tensor:
        """(S, D) or (B, S, D)."""
        out = model.outputs(self.z)
        return out if self.noise is None else out + model.noise_std * self.noise


def _draw(model: LVKAM, x: Tensor, z: Tensor, rng: torch.Generator) -> _Draws:
    """With the noise on the generator's outputs that is there while training only."""
    if model.noise_std > 0 and torch.is_grad_enabled():
        return _Draws(x, z, torch.randn(*z.shape[:-1], x.shape[1], generator=rng).to(z))
    return _Draws(x, z, None)


class _Carried(NamedTuple):
    """The weights with which samples are differentiated: of all samples, or of a few of each image."""

    weights: Tensor
    """(B, n)."""
    samples: Tensor | None
    """Of which samples, (B, n), in 0..S-1, perhaps one more than once; None: of all S in their order."""

    def of_all(self, num_samples: int) -> Tensor:
        """(B, S)."""
        return self._at(torch.arange(num_samples, device=self.weights.device), num_samples)

    def totals(self, num_samples: int) -> Tensor:
        """Their sums over the images, (S,)."""
        if self.samples is None:
            return self.weights.sum(0)
        if self.weights.is_cuda:  # where sums at random places are taken in no fixed order
            return self.of_all(num_samples).sum(0)
        return self.weights.new_zeros(num_samples).scatter_add_(0, self.samples.flatten(), self.weights.flatten())

    def on_rows(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Samples that hold all which some image has chosen, (R,), and their weights, (B, R)."""
        assert self.samples is not None
        chosen = torch.zeros(num_samples, dtype=torch.bool, device=self.samples.device)
        rows = rows_kept(chosen.index_fill_(0, self.samples.flatten(), True))
        place = torch.empty(num_samples, dtype=torch.int64, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        return rows, self._at(place, len(rows))

    def _at(self, place: Tensor, width: int) -> Tensor:
        """The weights, each sample at a place of its own, (S,): (B, width)."""
        if self.samples is None:
            return self.weights
        return self.weights.new_zeros(len(self.weights), width).scatter_add_(1, place[self.samples], self.weights)


@dataclass(frozen=True)
class Objective(ABC):
    """What a model is trained with; the objectives share samples of the prior, and which of them carry gradient.

    Args:
        num_samples: S.
        normalization: `quadrature` trains with the normalised log-prior. `contrastive` is the reference's form:
            the unnormalised log-prior minus its mean over the prior samples, which is biased for mixtures.
        gradient_samples: how many samples of each image carry gradient, and make up the loss; all if None.
        gradient_selection: `top` takes those of the largest weights, and scales these up to the sum of all;
            `resampled` draws them by their weights, which leaves the gradient's expectation as it is. Of a weight that
            is negative its size counts.
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

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Estimate:
        """The loss with its effective sample size; of a share, x being its images, this process's part of them."""
        return self.freeze(model, x, rng, share).estimate

    @abstractmethod
    def freeze(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Frozen:
        """The same with the function J of this estimate's draws and weights."""

    def _draw_shared(self, model: LVKAM, x: Tensor, table: CellTable, rng: torch.Generator, share: Share) -> _Draws:
        """With those of the samples that are the share's, of S that are the same in all processes."""
        draws = _draw(model, x, model.prior.sample(self.num_samples, rng, table), rng)
        return draws if share.gather is None else draws.take(share.rows(self.num_samples))

    @property
    def _few(self) -> int | None:
        """How many samples of each image are differentiated; None if all are."""
        count = self.gradient_samples
        return count if count is not None and count < self.num_samples and torch.is_grad_enabled() else None

    def _carried(self, weights: Tensor, rng: torch.Generator, share: Share) -> _Carried:
        """The weights with which samples are differentiated, of the weights (B, S) that they have."""
        count, size = self._few, weights.abs()
        if count is None:
            return _Carried(weights * (size > torch.finfo(torch.float32).eps / self.num_samples), None)
        total = share.total(size).unsqueeze(1)
        if self.gradient_selection == "top":
            best, samples = share.top(size, count)
            best = best.clamp(min=0)  # those that are not chosen
            scale = total / share.total(best).unsqueeze(1).clamp(min=torch.finfo(size.dtype).tiny)
            return _Carried(weights.gather(1, samples).sign() * best * scale, samples)
        uniform = torch.rand(len(weights), count, dtype=torch.float64, generator=rng).to(weights.device)
        drawn = stratified_resample(size, uniform)
        return _Carried(weights.gather(1, drawn).sign() * total / count, drawn)

    def _freeze(
        self,
        model: LVKAM,
        draws: _Draws,
        table: CellTable,
        out: Tensor,
        carried: tuple[_Carried, _Carried],
        size: Tensor,
        num_images: int,
    ) -> Frozen:
        """The loss -mean_b sum_s (W_bs l_bs + V_bs log p(z)), W and V being constants, most of them zero.

        Args:
            model: the model.
            draws: images, latents, noise.
            table: of the prior.
            out: the generator's outputs at the draws, (S, D) or (B, S, D).
            carried: W and V.
            size: effective sample size, ().
            num_images: of the whole batch.
        """
        (on_likelihood, on_prior), z, num_samples = carried, draws.z.flatten(0, -2), draws.z.shape[-2]
        shared = draws.z.ndim == 2
        of_prior = on_prior.totals(num_samples) if shared else on_prior.of_all(num_samples).flatten()
        if shared and on_likelihood.samples is not None:
            rows, weights = on_likelihood.on_rows(num_samples)
            draws, out = draws.take(rows), out.index_select(0, rows)  # whose gradient is faster than that of out[rows]
        else:
            weights = on_likelihood.of_all(num_samples)

        def loss(out: Tensor, table: CellTable) -> Tensor:
            likelihood = model.weighted_log_likelihood(draws.x, out, weights)
            return -(likelihood + self._log_prior(model, z, table, of_prior)) / num_images

        def function() -> Tensor:
            return loss(draws.outputs(model), model.prior.table())

        value = loss(out, table)
        return Frozen(Estimate(value, size), value.detach(), function)

    def _log_prior(self, model: LVKAM, z: Tensor, table: CellTable, weights: Tensor) -> Tensor:
        """sum_s v_s log p(z_s), over the samples that have a weight: ()."""
        if self.normalization == "contrastive":
            log_prior = model.prior.log_unnormalised(z)
            return (weights * (log_prior - log_prior.mean())).sum()
        kept = weights.nonzero().squeeze(1)
        return (weights[kept] * model.prior.log_prob(z[kept], table)).sum()


@dataclass(frozen=True)
class ImportanceSampling(Objective):
    """The reference's "Vanilla" training."""

    def freeze(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Frozen:
        """The loss with its effective sample size, and J."""
        share = share or Share(len(x))
        table = model.prior.table()
        draws = self._draw_shared(model, x, table, rng, share)
        out, few = draws.outputs(model), self._few
        # The weights are the posterior's, at which the gradient is evaluated; they are no part of what is
        # differentiated (the identity above).
        logits = model.output_log_likelihood(x, out.detach())
        if few is not None and self.gradient_selection == "top":  # the weights of the others are not needed
            best, samples = share.top(logits, few)
            carried = _Carried(share.importance_weights(best), samples)
            weights = share.importance_weights(logits[:SIZED])
        else:
            weights = share.importance_weights(logits)
            carried = self._carried(weights, share.images_rng or rng, share)
        size = share.mean(share.effective_sample_size(weights), len(x))
        return self._freeze(model, draws, table, out, (carried, carried), size, share.num_images)


@dataclass(frozen=True)
class ThermodynamicIntegration(Objective):
    """Training by the sum over temperatures, t_k = (k/T)^p.

    On shared samples without resampling, every estimator but `telescoped` tends to importance sampling as T grows, and
    `steppingstone` is importance sampling. Only moves bring samples that the prior has not drawn.

    Args:
        num_temps: T, at least 2.
        exponent: p.
        estimator: `trapezoid`, `steppingstone`, or `telescoped`, the reference's, of whose temperatures only the first
            and the last count.
        resampler: resamples the particles of an image that have become too unequal; one of `RESAMPLERS`, or `none`.
        resampling_threshold: below this share of S the effective sample size is too low.
        moves_per_temperature: Metropolis moves. Then each image has S particles of its own, which costs B times the
            work at each temperature.
    """

    num_temps: int = 69
    exponent: float = 5.0
    estimator: Literal["trapezoid", "steppingstone", "telescoped"] = "trapezoid"
    resampler: Literal["none", "stratified", "systematic", "residual"] = "none"
    resampling_threshold: float = 0.5
    moves_per_temperature: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_temps < 2:
            raise ValueError(f"num_temps = {self.num_temps}: must be at least 2")
        if self.moves_per_temperature and self.resampler == "none":
            raise ValueError("moves_per_temperature: moves need a resampler")
        if self.estimator == "telescoped" and self.resampler != "none":
            raise ValueError("estimator = telescoped: resamples by itself; resampler must be none")
        if self.moves_per_temperature and self.normalization == "contrastive":
            raise ValueError("normalization = contrastive: needs draws from the prior, which moves do not leave")

    @property
    def temperatures(self) -> Tensor:
        """(T+1,), float64."""
        return power_schedule(self.num_temps, self.exponent)

    def freeze(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Frozen:
        """The loss with the effective sample size at t = 1 (with resampling, the lowest one on the way), and J."""
        share = share or Share(len(x))
        table, images_rng = model.prior.table(), share.images_rng or rng
        if self.moves_per_temperature:
            z, weights, value, size = self._move_particles(model, x, table, images_rng)
            draws = _draw(model, x, z, images_rng)
            out = draws.outputs(model)
        else:
            draws = self._draw_shared(model, x, table, rng, share)
            out = draws.outputs(model)
            log_likelihood = model.output_log_likelihood(x, out.detach())
            weights, value, size = self._weigh(log_likelihood, model.prior.kernel, images_rng, share)
        on_likelihood, on_prior = weights
        carried = self._carried(on_likelihood, images_rng, share)
        # one tensor where V = W: the same samples carry both, and nothing is drawn a second time
        of_prior = carried if on_prior is on_likelihood else self._carried(on_prior, images_rng, share)
        frozen = self._freeze(model, draws, table, out, (carried, of_prior), share.mean(size), share.num_images)
        if value is None:
            return frozen
        # the weights' sum has the gradient, this is the sum over temperatures itself
        loss = frozen.estimate.loss
        loss = loss - loss.detach() - share.mean(value).to(loss)
        return frozen._replace(estimate=Estimate(loss, frozen.estimate.effective_sample_size))

    def _weigh(
        self, log_likelihood: Tensor, compiler: Compiler, rng: torch.Generator, share: Share
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None, Tensor]:
        """W and V of shared samples, (B, S) each; A, if it is another sum than theirs; effective sample sizes."""
        if self.resampler != "none":
            index = torch.arange(self.num_samples, device=log_likelihood.device).expand(len(log_likelihood), -1)
            annealed = anneal(
                index, log_likelihood, self.temperatures, rng,
                resampler=RESAMPLERS[self.resampler], threshold=self.resampling_threshold,
            )  # fmt: skip
            weights = torch.zeros_like(log_likelihood).scatter_add_(1, annealed.state, annealed.weights)
            return (weights, weights), self._value(annealed), annealed.effective_sample_size
        at_one = share.importance_weights(log_likelihood)
        size = share.effective_sample_size(at_one)
        if self.estimator == "trapezoid":
            weights, value = trapezoid_weights(log_likelihood, self.temperatures, compiler, share.gather)
            return (weights, at_one), value, size
        if self.estimator == "steppingstone":  # without resampling its sum is the logarithm of the mean weight
            return (at_one, at_one), share.log_sum(log_likelihood) - math.log(self.num_samples), size
        return telescoped_weights(log_likelihood, self.temperatures, rng), None, size

    def _move_particles(
        self, model: LVKAM, x: Tensor, table: CellTable, rng: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
        """Each image's own particles, (B, S, Q), annealed free of noise; W and V, A, effective sample sizes."""
        annealed = anneal_prior(
            model.prior, functools.partial(model.log_likelihood, x), len(x), self.num_samples, self.temperatures, rng,
            table, moves=self.moves_per_temperature, resampler=RESAMPLERS[self.resampler],
            threshold=self.resampling_threshold,
        )  # fmt: skip
        weights = annealed.weights
        return annealed.state, (weights, weights), self._value(annealed), annealed.effective_sample_size

    def _value(self, annealed: Annealed) -> Tensor:
        """A_b, (B,)."""
        if self.estimator == "steppingstone":
            return annealed.log_evidence
        return trapezoid_rule(self.temperatures).to(annealed.expectations) @ annealed.expectations
