"""LV-KAM: a learnt prior over latents and a Kolmogorov-Arnold network from latents to data.

    p(x) = integral of p(z) p(x|z) dz          (arXiv 2506.14167)

Letters: N draws, B images, S samples, Q latent coordinates, D data dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lvkam.generator import (
    KANGenerator,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    squared_distance,
    weighted_bernoulli,
    weighted_squared_distance,
)
from lvkam.prior import MixturePrior
from lvkam.sampling import importance_weights


class LVKAM(nn.Module):
    """Prior and generator together.

    Args:
        prior: p(z).
        generator: z to data, before the output activation.
        likelihood: `bernoulli` (data in [0, 1], with the sigmoid only) or `l2`.
        output_activation: what turns the generator's output into data.
        likelihood_std: the key `generator_variance`, which holds a standard deviation. Training divides either
            likelihood by 2 likelihood_std^2; for `l2` it is the Gaussian's standard deviation.
        noise_std: the key `generator_noise_var`, likewise: noise on the generator's output while training.
    """

    def __init__(
        self,
        prior: MixturePrior,
        generator: KANGenerator,
        likelihood: Literal["bernoulli", "l2"],
        output_activation: Callable[[Tensor], Tensor],
        likelihood_std: float = 1.0,
        noise_std: float = 0.0,
    ):
        super().__init__()
        self.prior, self.generator = prior, generator
        self.likelihood: Literal["bernoulli", "l2"] = likelihood
        self.output_activation = output_activation
        self.likelihood_std, self.noise_std = likelihood_std, noise_std

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """l_bs as training scales it, free of noise.

        Args:
            x: (B, D).
            z: shared by all images, (S, Q), or each image's own, (B, S, Q).

        Returns:
            (B, S).
        """
        return self.output_log_likelihood(x, self.outputs(z))

    def outputs(self, z: Tensor) -> Tensor:
        """What the generator makes of latents, before the output activation: (..., Q) -> (..., D)."""
        return self.generator(z.flatten(0, -2)).unflatten(0, z.shape[:-1])

    def output_log_likelihood(self, x: Tensor, out: Tensor) -> Tensor:
        """l_bs as training scales it, from generator outputs: (B, D), (S, D) or (B, S, D) -> (B, S)."""
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(x, out, self._scale)
        return -self._scale * squared_distance(x, self.output_activation(out))

    def weighted_log_likelihood(self, x: Tensor, out: Tensor, weights: Tensor) -> Tensor:
        """sum_bs W_bs l_bs, of constant weights, (B, S), without l where all images share the samples: arguments as for
        `output_log_likelihood` -> ()."""
        if out.ndim == 3:
            return (weights * self.output_log_likelihood(x, out)).sum()
        if self.likelihood == "bernoulli":
            return self._scale * weighted_bernoulli(x, out, weights)
        return -self._scale * weighted_squared_distance(x, self.output_activation(out), weights)

    @property
    def _scale(self) -> float:
        """What training multiplies the likelihood by."""
        return 1 / (2 * self.likelihood_std**2)

    def reported_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x_b | z_s) as every reported figure uses it, in nats; arguments and result as for `log_likelihood`.

        The Bernoulli log-likelihood itself, or the Gaussian log-density with its constant.
        """
        out = self.outputs(z)
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(x, out)
        return gaussian_log_likelihood(x, self.output_activation(out), self.likelihood_std)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Data from latents: (N, Q) -> (N, D)."""
        return self.output_activation(self.generator(z))

    def sample(self, num_samples: int, rng: torch.Generator) -> Tensor:
        """Draw from the model: (N, D), in data space, without gradient.

        Args:
            num_samples: N.
            rng: on the CPU, whatever the model's device.
        """
        return self.decode(self.prior.sample(num_samples, rng))

    @torch.no_grad()
    def posterior(self, x: Tensor, num_samples: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """p(z|x) as weighted draws from the prior, shared by all images.

        Args:
            x: (B, D).
            num_samples: S.
            rng: on the CPU.

        Returns:
            Latents (S, Q), and weights (B, S) that sum to one over s. They belong to the likelihood of
            `reported_log_likelihood`.
        """
        z = self.prior.sample(num_samples, rng)
        return z, importance_weights(self.reported_log_likelihood(x, z))

    @torch.no_grad()
    def update_grids(
        self, num_samples: int, rng: torch.Generator, *, prior: bool, generator: bool
    ) -> dict[str, str | None]:
        """Adapt the grids: the prior's to draws from pi_0, the generator's to draws from the prior.

        Args:
            num_samples: how many draws the grids adapt to.
            rng: on the CPU.
            prior: whether the prior's grids are updated.
            generator: whether the generator's are.

        Returns:
            What `UnivariateFunctions.update_grid` says of each layer, by its name.
        """
        said: dict[str, list[str | None]] = {}
        if prior:
            said["prior"] = self.prior.update_grids(num_samples, rng)
        if generator:
            said["generator"] = self.generator.update_grids(self.prior.sample(num_samples, rng))
        return {f"{part}.layers.{n}": problem for part, problems in said.items() for n, problem in enumerate(problems)}
