"""The generator, a Kolmogorov-Arnold network from latents to data, and the likelihood of data under it.

    out_o = sum_i Phi_io(z_i),  layer after layer; the last has one output for each data dimension
    bernoulli   log p(x|z) = sum_d x_d log y_d + (1 - x_d) log(1 - y_d),  y = sigmoid(out)
    l2          log p(x|z) = -||x - y||^2 / (2 sigma^2) - D/2 log(2 pi sigma^2),  y = activation(out)

Both are computed for every pair of an image and a sample by one matrix product, without a (B, S, D) tensor. Of their
sum over pairs, weighted by W, the images enter by A = W' x and n = W' 1 alone (weighted log-likelihoods below).

Letters: N points, B images, S samples, Q latent coordinates, D data dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvkam.univariate import FunctionFamily, UnivariateFunctions

OUTPUT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "none": lambda out: out,
}
"""What turns the generator's output into data, by their names in the INI file."""


class KANGenerator(nn.Module):
    """A stack of layers of univariate functions, each summed over its inputs.

    Args:
        widths: of all layers, from the Q latent coordinates to the D data dimensions.
        family: what the functions of all layers have in common.
        rng: source of the initial values.
        hidden_range: ends of the first grids of all layers but the first; the family's if None.
    """

    def __init__(
        self,
        widths: Sequence[int],
        family: FunctionFamily,
        rng: torch.Generator,
        hidden_range: tuple[float, float] | None = None,
    ):
        super().__init__()
        hidden = family if hidden_range is None else replace(family, grid_range=hidden_range)
        shapes = list(pairwise(widths))
        families = [family] + [hidden] * (len(shapes) - 1)
        self.layers = nn.ModuleList(
            UnivariateFunctions(*shape, f, rng) for shape, f in zip(shapes, families, strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Data before the output activation: (N, Q) -> (N, D)."""
        for layer in self.layers:
            z = layer(z)
        return z

    @torch.no_grad()
    def update_grids(self, z: Tensor) -> list[str | None]:
        """Adapt each layer's grids to its inputs under the given latents, (N, Q), from the first to the last.

        Returns:
            What `UnivariateFunctions.update_grid` says of each layer.
        """
        problems = []
        for layer in self.layers:
            assert isinstance(layer, UnivariateFunctions)
            problems.append(layer.update_grid(z))
            z = layer(z)
        return problems


def bernoulli_log_likelihood(x: Tensor, logits: Tensor, scale: float = 1.0) -> Tensor:
    """sum_d x log y + (1 - x) log(1 - y) with y = sigmoid(logits), for every pair.

    Since log y = logit - softplus(logit) and log(1 - y) = -softplus(logit), no logarithm of zero can arise.

    Args:
        x: data in [0, 1], (B, D).
        logits: generator outputs, (S, D), or each image's own, (B, S, D).
        scale: what it is multiplied by.

    Returns:
        (B, S), in nats.
    """
    if logits.ndim == 3:
        return scale * (torch.bmm(logits, x.unsqueeze(2)).squeeze(2) - F.softplus(logits).sum(-1))
    return (scale * x @ logits.T).sub_(scale * F.softplus(logits).sum(-1))


def weighted_bernoulli(x: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    """sum_bs W_bs log p(x_b|z_s) = sum_sd A_sd logit_sd - n_s softplus(logit_sd): (B, D), (S, D), (B, S) -> ()."""
    return (weights.T @ x * logits).sum() - (weights.sum(0) * F.softplus(logits).sum(-1)).sum()


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """||x_b - y_s||^2 for every pair: (B, D), (S, D) or each image's own (B, S, D) -> (B, S)."""
    if y.ndim == 3:
        return (x.unsqueeze(1) - y).square().sum(-1)
    # The square is expanded into a matrix product. Moving the origin into the data keeps the terms small,
    # so that little is lost when they cancel.
    origin = x.mean(0)
    x, y = x - origin, y - origin
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)).clamp(min=0)


def weighted_squared_distance(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """sum_bs W_bs ||x_b - y_s||^2 = sum_b W_b ||x_b||^2 + sum_s (n_s ||y_s||^2 - 2 A_s y_s), W_b = sum_s W_bs.

    (B, D), (S, D), (B, S) -> (), as for `weighted_bernoulli`.
    """
    origin = x.mean(0)
    x, y = x - origin, y - origin
    of_images = (weights.sum(1) * x.square().sum(1)).sum()
    return of_images + (weights.sum(0) * y.square().sum(1)).sum() - 2 * (weights.T @ x * y).sum()


def gaussian_log_likelihood(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x_b; mean_s, std^2 I), the constant included, for every pair.

    Args:
        x: (B, D).
        mean: (S, D), or each image's own, (B, S, D).
        std: standard deviation, in data units.

    Returns:
        (B, S), in nats.
    """
    constant = x.shape[1] / 2 * math.log(2 * math.pi * std**2)
    return -squared_distance(x, mean) / (2 * std**2) - constant
