"""Two models to set LV-KAM beside: a variational autoencoder, and a latent-space energy-based prior.

    VAE    log p(x) >= E_q log p(x|z) - KL(q(z|x) || N(0, I))                       (Kingma and Welling 2014, eq. 10)
    LEBM   p(z) = exp(f(z)) N(z; 0, I) / Z                                          (Pang et al. 2020, eq. 3)

Both decode Q latents by one MLP into the logits of Bernoulli means, as grey values are, and are trained by Adam for so
many seconds, the learning rate falling to zero by a cosine over that time.

Letters: B images, S samples or steps, Q latent coordinates, D data dimensions, K chains.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lvkam.evidence import Evidence
from lvkam.generator import bernoulli_log_likelihood
from lvkam.optimizers import rate_factor

LATENT_DIM, HIDDEN = 20, 512
BATCH = 128
"""Images a step."""
TOGETHER = 50_000
"""Latents that are decoded at a time to estimate evidence, to bound the memory."""


def mlp(widths: list[int], activation: Callable[[], nn.Module], rng: torch.Generator) -> nn.Sequential:
    """Dense layers with an activation between them, initial values as torch draws them but from `rng`."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layer = skip_init(nn.Linear, n_in, n_out)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -(n_in**-0.5), n_in**-0.5, generator=rng)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def reconstruction(x: Tensor, logits: Tensor) -> Tensor:
    """-log p(x_b | z_b), each image with its own latent: (B, D) twice -> (B,)."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I): (..., Q) -> (...)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


class Rival(nn.Module, ABC):
    """A model with an MLP decoder from Q latents to D logits."""

    WARMUP = 100
    """Steps over which the learning rate rises."""

    def __init__(self, data_dim: int, latent_dim: int, hidden: int, rng: torch.Generator):
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = mlp([latent_dim, hidden, hidden, data_dim], nn.SiLU, rng)

    @abstractmethod
    def loss(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """What a training step descends on images (B, D): a number."""

    @abstractmethod
    def rates(self) -> list[tuple[nn.Module, float]]:
        """Parts, and the highest learning rate of each."""

    @abstractmethod
    def draw_latents(self, num_samples: int, rng: torch.Generator) -> Tensor:
        """From the prior, (N, Q)."""

    @abstractmethod
    def log_evidence(self, x: Tensor, num_samples: int, rng: torch.Generator) -> Evidence:
        """log p(x) of images (B, D) by S samples of each image's own."""

    @torch.no_grad()
    def sample(self, num_samples: int, rng: torch.Generator) -> Tensor:
        """Means of images, (N, D), as LV-KAM draws them too."""
        return self.decoder(self.draw_latents(num_samples, rng)).sigmoid()


class VAE(Rival):
    """A variational autoencoder, encoder and decoder mirroring one another."""

    def __init__(
        self,
        data_dim: int,
        rng: torch.Generator,
        *,
        latent_dim: int = LATENT_DIM,
        hidden: int = HIDDEN,
        rate: float = 2e-3,
    ):
        super().__init__(data_dim, latent_dim, hidden, rng)
        self.encoder = mlp([data_dim, hidden, hidden, 2 * latent_dim], nn.SiLU, rng)
        self.rate = rate

    def loss(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """-ELBO by one sample of each image, its divergence in closed form (Kingma and Welling 2014, eq. 10)."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=rng)
        divergence = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).sum(1)
        return (reconstruction(x, self.decoder(z)) + divergence).mean()

    def rates(self) -> list[tuple[nn.Module, float]]:
        """One for all."""
        return [(self, self.rate)]

    def draw_latents(self, num_samples: int, rng: torch.Generator) -> Tensor:
        """From N(0, I), (N, Q)."""
        return torch.randn(num_samples, self.latent_dim, generator=rng)

    @torch.no_grad()
    def log_evidence(self, x: Tensor, num_samples: int, rng: torch.Generator) -> Evidence:
        """log mean_s p(x|z_s) N(z_s; 0, I) / q(z_s|x), z_s from the encoder: unbiased for p(x)."""

        def log_weights(part: Tensor) -> Tensor:
            mean, log_std = (y.unsqueeze(1) for y in self.encoder(part).chunk(2, 1))
            noise = torch.randn(len(part), num_samples, self.latent_dim, generator=rng)
            z = mean + log_std.exp() * noise
            log_q = standard_normal(noise) - log_std.sum(-1)
            return bernoulli_log_likelihood(part, self.decoder(z)) + standard_normal(z) - log_q

        return average([log_weights(part) for part in x.split(max(1, TOGETHER // num_samples))])


class FastVAE(VAE):
    """The same, its networks compiled and in bfloat16 as LV-KAM's are: what differs then is not how it is computed."""

    def __init__(self, data_dim: int, rng: torch.Generator):
        super().__init__(data_dim, rng)
        self.encoder.compile()
        self.decoder.compile()

    def loss(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """-ELBO, networks in bfloat16 and the rest in single precision."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().loss(x, rng)

    @torch.no_grad()
    def sample(self, num_samples: int, rng: torch.Generator) -> Tensor:
        """Means of images, (N, D)."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().sample(num_samples, rng).float()


class Normaliser(NamedTuple):
    """log Z of an energy-based prior."""

    value: float
    standard_error: float
    effective_sample_size: float


class LEBM(Rival):
    """A latent-space energy-based prior, learnt by short runs of Langevin dynamics (Pang et al. 2020, algorithm 1).

    Steps and their sizes are the paper's, of SVHN; their update z + s'grad + sqrt(2 s') noise is `langevin` with
    s' = s^2/2, as in their code. Learning rates are higher than the paper's, 2e-5 and 1e-4: a minute allows some
    hundred steps, and short trials on MNIST had lower NLL so.
    """

    WARMUP = 20  # of two hundred steps in 15 s, more would be half of the training
    PRIOR_STEPS, PRIOR_SIZE = 60, 0.4
    POSTERIOR_STEPS, POSTERIOR_SIZE = 20, 0.1
    FITTING_SIZE = 0.7
    """s of the dynamics that a proposal is fitted to, in units of the posterior's width."""
    NORMALISER_SAMPLES = 1_000_000

    def __init__(
        self,
        data_dim: int,
        rng: torch.Generator,
        *,
        latent_dim: int = LATENT_DIM,
        hidden: int = HIDDEN,
        hidden_energy: int = 200,
        prior_rate: float = 1e-4,
        decoder_rate: float = 2e-3,
    ):
        super().__init__(data_dim, latent_dim, hidden, rng)
        self.energy = mlp([latent_dim, hidden_energy, hidden_energy, 1], nn.GELU, rng)
        self.prior_rate, self.decoder_rate = prior_rate, decoder_rate

    def tilt(self, z: Tensor) -> Tensor:
        """f: (..., Q) -> (...)."""
        return self.energy(z).squeeze(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) + log Z: (..., Q) -> (...)."""
        return self.tilt(z) + standard_normal(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) + log Z, each image with its own latent: (B, D) and (B, Q) -> (B,)."""
        return self.log_prior(z) - reconstruction(x, self.decoder(z))

    def loss(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Its gradient is that of the maximum-likelihood ascent, by one sample of each image (eqs. 8 and 10).

        The energy's: f of the prior's samples less f of the posterior's; the decoder's: -log p(x|z).
        """
        start = torch.randn(len(x), self.latent_dim, generator=rng)
        z = last(langevin(lambda z: self.log_joint(x, z), start, self.POSTERIOR_STEPS, self.POSTERIOR_SIZE, rng))
        of_prior = self.draw_latents(len(x), rng)
        return (self.tilt(of_prior) - self.tilt(z) + reconstruction(x, self.decoder(z))).mean()

    def rates(self) -> list[tuple[nn.Module, float]]:
        """One of the energy, one of the decoder."""
        return [(self.energy, self.prior_rate), (self.decoder, self.decoder_rate)]

    def draw_latents(self, num_samples: int, rng: torch.Generator) -> Tensor:
        """By a short run of Langevin dynamics in the prior from N(0, I), (N, Q)."""
        start = torch.randn(num_samples, self.latent_dim, generator=rng)
        return last(langevin(self.log_prior, start, self.PRIOR_STEPS, self.PRIOR_SIZE, rng))

    @torch.no_grad()
    def log_normaliser(self, rng: torch.Generator) -> Normaliser:
        """log Z = log E exp(f(z)), z from N(0, I)."""
        sizes = [min(TOGETHER, self.NORMALISER_SAMPLES - n) for n in range(0, self.NORMALISER_SAMPLES, TOGETHER)]
        tilts = [self.tilt(torch.randn(size, self.latent_dim, generator=rng)) for size in sizes]
        found = average([torch.cat(tilts).unsqueeze(0)])
        return Normaliser(*map(float, (found.log_evidence, found.standard_error, found.effective_sample_size)))

    def log_evidence(self, x: Tensor, num_samples: int, rng: torch.Generator) -> Evidence:
        """log mean_s p(x|z_s) exp(f(z_s)) N(z_s; 0, I) / q_x(z_s) - log Z, z_s from a proposal of each image's own.

        Samples are drawn afresh once q_x is fixed, and it is positive everywhere: Z p(x) is estimated without bias,
        however well the Langevin dynamics that q_x was fitted to have mixed. Its tails are those of Student's t,
        heavier than those of N(0, I) exp(f) with an f that grows no faster than linearly: the weights are bounded, so
        that their variance and with it the standard error exist. The error of log Z, which all images share, is in it.
        """
        normaliser = self.log_normaliser(rng)
        found = [self._log_weights(part, num_samples, rng) for part in x.split(max(1, TOGETHER // num_samples))]
        return average(found, normaliser)

    def _log_weights(self, x: Tensor, num_samples: int, rng: torch.Generator) -> Tensor:
        proposal = self.proposal(x, rng)
        with torch.no_grad():
            z, log_q = proposal.draw(num_samples, rng)
            return bernoulli_log_likelihood(x, self.decoder(z)) + self.log_prior(z) - log_q

    def proposal(
        self, x: Tensor, rng: torch.Generator, *, chains: int = 16, settling: int = 40, steps: int = 60
    ) -> StudentT:
        """A distribution about each image's posterior, fitted to Langevin dynamics in it.

        The mode alone would be a poor centre: in 20 dimensions the posterior's mean is several standard deviations off.
        The dynamics run in coordinates in which the posterior is about as wide in all directions, so that they mix in a
        few steps: those of the curvature at the mode.

        Args:
            x: (B, D).
            rng: of starts and noise.
            chains: K, for each image.
            settling: steps before any state counts.
            steps: S, that count.
        """
        mode = self.posterior_mode(x)
        root = torch.linalg.cholesky(torch.linalg.inv(self.curvature(mode)))

        def place(u: Tensor) -> Tensor:
            return mode.unsqueeze(1) + u.view(len(x), -1, self.latent_dim) @ root.mT

        images = x.repeat_interleave(chains, 0)
        start = torch.randn(len(images), self.latent_dim, generator=rng)
        states = langevin(
            lambda u: self.log_joint(images, place(u).flatten(0, 1)), start, settling + steps, self.FITTING_SIZE, rng
        )
        kept = torch.stack(list(itertools.islice(states, settling, None)))  # (S, B K, Q)
        return StudentT.around(place(kept.view(steps, len(x), chains, -1).transpose(0, 1).flatten(1, 2)))

    @torch.no_grad()
    def curvature(self, z: Tensor, step: float = 0.01) -> Tensor:
        """Gauss and Newton's, I + J' W J, W the Bernoulli variances, J the decoder's Jacobian: (B, Q) -> (B, Q, Q)."""
        offsets = step * torch.eye(self.latent_dim)
        there, back = (self.decoder(z.unsqueeze(1) + sign * offsets) for sign in (1, -1))
        jacobian = (there - back) / (2 * step)  # (B, Q, D)
        mean = self.decoder(z).sigmoid().unsqueeze(1)
        return torch.eye(self.latent_dim) + (mean * (1 - mean) * jacobian) @ jacobian.mT

    def posterior_mode(self, x: Tensor, steps: int = 100, rate: float = 0.1) -> Tensor:
        """A mode of p(z|x), about, by Adam from the origin: (B, D) -> (B, Q)."""
        z = torch.zeros(len(x), self.latent_dim, requires_grad=True)
        optimizer = torch.optim.Adam([z], lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
        for _ in range(steps):
            (z.grad,) = torch.autograd.grad(-self.log_joint(x, z).sum(), z)
            optimizer.step()
            schedule.step()
        return z.detach()


def langevin(
    log_density: Callable[[Tensor], Tensor], z: Tensor, steps: int, size: float, rng: torch.Generator
) -> Iterator[Tensor]:
    """Unadjusted Langevin dynamics, z <- z + s^2/2 grad log p(z) + s noise (Pang et al. 2020, eq. 11).

    Args:
        log_density: log p up to a constant, (N, Q) -> (N,).
        z: where they begin, (N, Q).
        steps: how many.
        size: s.
        rng: of the noise.

    Yields:
        The state after each step, (N, Q), without gradient.
    """
    for _ in range(steps):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_density(z).sum(), z)
        z = z.detach() + size**2 / 2 * gradient + size * torch.randn(z.shape, generator=rng)
        yield z


def last(states: Iterator[Tensor]) -> Tensor:
    """The last one, none of the others being kept."""
    return deque(states, maxlen=1).pop()


class StudentT(NamedTuple):
    """Multivariate t distributions, one for each image."""

    mean: Tensor
    """(B, Q)."""
    root: Tensor
    """Lower triangular, (B, Q, Q)."""

    FREEDOM = 10
    SHRINKAGE = 0.4
    """Of correlations, which few points estimate badly."""

    @classmethod
    def around(cls, states: Tensor) -> StudentT:
        """With the mean and, its correlations shrunk, the covariance of each image's points, (B, N, Q)."""
        mean = states.mean(1)
        centred = states - mean.unsqueeze(1)
        covariance = centred.mT @ centred / states.shape[1]
        variances = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        return cls(mean, torch.linalg.cholesky(covariance.lerp(variances, cls.SHRINKAGE)))

    def draw(self, num_samples: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples (B, S, Q) and the logarithms of their densities (B, S)."""
        size, dim, nu = len(self.mean), self.mean.shape[1], self.FREEDOM
        chi_squared = torch.randn(size, num_samples, nu, generator=rng).square().sum(-1, keepdim=True)
        noise = torch.randn(size, num_samples, dim, generator=rng) * (nu / chi_squared).sqrt()
        constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - dim / 2 * math.log(nu * math.pi)
        log_volume = self.root.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        log_q = constant - log_volume - (nu + dim) / 2 * (noise.square().sum(-1) / nu).log1p()
        return self.mean.unsqueeze(1) + noise @ self.root.mT, log_q


def average(log_weights: list[Tensor], normaliser: Normaliser | None = None) -> Evidence:
    """log mean_s w_bs of each image's own independent samples, and its standard error by the delta method.

    Args:
        log_weights: parts of (B, S), by images.
        normaliser: what to divide by, if there is anything: its error is common to all images.
    """
    shift, common, _ = normaliser or (0.0, 0.0, 0.0)
    w = torch.cat(log_weights).double()
    size = w.shape[1]
    ess = 1 / w.softmax(1).square().sum(1)
    variance = (size / ess - 1) / (size - 1)  # that of w over its squared mean, over S
    return Evidence(
        log_evidence=w.logsumexp(1) - math.log(size) - shift,
        standard_error=(variance + common**2).sqrt(),
        effective_sample_size=ess,
        mean_standard_error=math.sqrt(float(variance.sum()) / len(w) ** 2 + common**2),
    )


class Training(NamedTuple):
    """What a training took."""

    steps: int
    seconds: float


def train(model: Rival, images: Tensor, seconds: float, rng: torch.Generator) -> Training:
    """Train for so many seconds on images (N, D), in a new order each time that all have been seen.

    The rate of step i is its highest value times min(1, i/WARMUP) (1 + cos(pi t)) / 2, t the share of time that has
    passed (Loshchilov and Hutter 2017, eq. 5).
    """
    peaks = [rate for _, rate in model.rates()]
    optimizer = torch.optim.Adam([{"params": list(part.parameters())} for part, _ in model.rates()], fused=True)
    for _ in range(2):  # what happens only the first times is not training
        model.loss(images[:BATCH], rng).backward()
    batches = _batches(images, rng)
    steps, elapsed, start = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        share = elapsed / seconds
        factor = rate_factor("cosine", steps + 1, sys.maxsize, 1, elapsed=share, warmup_steps=model.WARMUP)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        loss = model.loss(next(batches), rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        elapsed = time.perf_counter() - start
    return Training(steps, elapsed)


def _batches(images: Tensor, rng: torch.Generator) -> Iterator[Tensor]:
    while True:
        for batch in torch.randperm(len(images), generator=rng).split(min(BATCH, len(images))):
            yield images[batch]
