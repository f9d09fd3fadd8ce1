"""What a model has learnt, as arrays to look at: densities, functions, and what single latent coordinates do.

    CDF of a coordinate    F_q(z) = sum_p alpha_qp F_qp(z),   in closed form between the nodes that are sampled from
    strength of a function Var[Phi_io(x_i)] = W_io' Cov[F(x_i)] W_io,   F the features of input i, W their weights
    activity               A_q = E ||y - y_q'||^2 / (2 sum_d Var[y_d]),   y = decode(z), z from the prior, and z_q drawn
                           again in y_q': the total effect of coordinate q (Jansen 1999)

Letters: N draws, Q latent coordinates, P mixture components, n nodes, I inputs, O outputs, K basis functions, D data
dimensions, L levels, B images, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lvkam.model import LVKAM
from lvkam.prior import MixturePrior
from lvkam.sampling import effective_sample_size, tabulate
from lvkam.univariate import UnivariateFunctions

MOST_ROWS = 4096
"""Inputs that a layer is looked at with; deep priors have Q times as many as there are draws."""

CURVE_POINTS = 1024
"""Points of a curve, or a few more."""

CHUNK = 4096
"""Latents that are decoded at a time."""


class PriorDensities(NamedTuple):
    """The densities of all coordinates, as they are sampled."""

    z: np.ndarray
    """Places, (Q, n), non-decreasing: the quadrature's nodes, and some between them."""
    components: np.ndarray
    """alpha_qp p_qp(z), (Q, P, n)."""
    mixture: np.ndarray
    """p_q(z), (Q, n)."""
    reference: np.ndarray
    """pi_0(z), (Q, n)."""
    cdf: np.ndarray
    """F_q(z), (Q, n), from 0 to 1."""

    def rank(self, z: np.ndarray) -> np.ndarray:
        """F_q(z_q), linear between nodes: (..., Q) -> (..., Q)."""
        columns = [np.interp(z[..., q], self.z[q], self.cdf[q]) for q in range(len(self.z))]
        return np.stack(columns, -1)

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """The reverse of `rank`: (..., Q) in [0, 1] -> (..., Q)."""
        columns = [np.interp(u[..., q], self.cdf[q], self.z[q]) for q in range(len(self.z))]
        return np.stack(columns, -1)


@torch.no_grad()
def prior_densities(prior: MixturePrior) -> PriorDensities:
    """The densities that `prior.sample` draws from."""
    table = prior.table()
    parts = -(-CURVE_POINTS // table.nodes.shape[1])  # of each cell, so that straight lines between them will do
    nodes, log_density = _refined(table.nodes.double(), parts), _refined(table.log_density.double(), parts)
    weights = prior.log_weights().double()
    components = torch.exp(log_density + (weights - table.log_normaliser.double()).unsqueeze(-1))
    in_block = tabulate(nodes, log_density).cell_cdf
    of_block = in_block[..., -1:]
    cells = (in_block + of_block.cumsum(-2) - of_block).flatten(-2)  # (Q, P, n-1)
    cdf = (weights.exp().unsqueeze(-1) * cells / cells[..., -1:]).sum(1)
    cdf = torch.cat((torch.zeros_like(cdf[:, :1]), cdf / cdf[:, -1:]), 1)
    reference = prior.reference.log_prob(nodes).exp()
    arrays = (nodes, components, components.sum(1), reference, cdf)
    return PriorDensities(*(array.cpu().numpy() for array in arrays))


def _refined(values: Tensor, parts: int) -> Tensor:
    """Linear between neighbours, as densities are in their logarithm: (..., n) -> (..., (n-1) parts + 1)."""
    steps = torch.arange(parts, dtype=values.dtype, device=values.device) / parts
    between = torch.lerp(values[..., :-1, None], values[..., 1:, None], steps).flatten(-2)
    return torch.cat((between, values[..., -1:]), -1)


@torch.no_grad()
def activities(model: LVKAM, num_draws: int, rng: torch.Generator) -> np.ndarray:
    """How much each coordinate moves what is generated, as a share of the variance of all: (Q,).

    Args:
        model: the model.
        num_draws: N.
        rng: on the CPU.
    """
    table = model.prior.table()
    z, other = (model.prior.sample(num_draws, rng, table) for _ in range(2))
    y = model.decode(z)
    moved = []
    for q in range(model.prior.latent_dim):
        z_q = z.clone()
        z_q[:, q] = other[:, q]
        moved.append((y - model.decode(z_q)).square().sum(1).mean() / 2)
    variance = y.var(0).sum().clamp(min=torch.finfo(y.dtype).tiny)  # nothing moves a constant
    return (torch.stack(moved) / variance).cpu().double().numpy()


class InspectedLayer(NamedTuple):
    """A layer with what goes into it."""

    name: str
    """`prior.layers.0`, `generator.layers.1`, ..."""
    layer: UnivariateFunctions
    inputs: Tensor
    """(N, I)."""
    strength: np.ndarray
    """Variance of each function's contribution, (I, O); of the last layer to the data, as far as the variance of its
    outputs comes through the output activation."""


@torch.no_grad()
def inspect_layers(model: LVKAM, z: Tensor) -> list[InspectedLayer]:
    """All layers, the prior's first, with their inputs under draws of the prior, z: (N, Q)."""
    found = []

    def look(name: str, layer: object, inputs: Tensor) -> UnivariateFunctions:
        assert isinstance(layer, UnivariateFunctions)
        rows = inputs[:MOST_ROWS]  # whole draws, whose coordinates follow one another in a deep prior
        found.append(InspectedLayer(name, layer, rows, _strength(layer, rows).cpu().numpy()))
        return layer

    hidden = z
    for index, layer in enumerate(model.prior.layers):
        known = look(f"prior.layers.{index}", layer, hidden)
        # coordinates stay apart: the first layer's functions are not summed, later layers are shared
        hidden = known(hidden) if index else known.functions(hidden).flatten(0, 1)
    for index, layer in enumerate(model.generator.layers):
        z = look(f"generator.layers.{index}", layer, z)(z)
    # what a function moves before an output activation that flattens it, a pixel that is always black, is not seen
    before, after = z.double().var(0), model.output_activation(z.double()).var(0)
    kept = torch.where(before > 0, after / before, 0.0)
    found[-1] = found[-1]._replace(strength=found[-1].strength * kept.cpu().numpy())
    return found


def _strength(layer: UnivariateFunctions, inputs: Tensor) -> Tensor:
    """Var[Phi_io], (I, O), from the covariance of the features of each input."""
    features = layer.features(inputs).double()  # (N, I, K+1)
    features -= features.mean(0)
    covariance = torch.einsum("nik,nil->ikl", features, features) / len(features)
    weight = layer.weight().double()  # (I, K+1, O)
    return (weight * (covariance @ weight)).sum(1)


class Curve(NamedTuple):
    """A learnt function of one variable, Phi_io = spline + base."""

    layer: str
    input: int
    output: int
    strength: float
    x: np.ndarray
    """(m,), over the knots and all inputs."""
    spline: np.ndarray
    """(m,)."""
    base: np.ndarray
    """(m,)."""
    knots: np.ndarray
    """(G+1,), without those that extend the grid."""
    data: np.ndarray
    """The inputs, (N,)."""


def strongest_functions(inspected: InspectedLayer, count: int) -> list[Curve]:
    """The strongest function of each input, of the inputs where it is strongest; the strongest first."""
    outputs = inspected.strength.argmax(1)
    inputs = np.argsort(-inspected.strength.max(1), kind="stable")[:count]
    return function_curves(inspected, [(int(i), int(outputs[i])) for i in inputs])


@torch.no_grad()
def function_curves(inspected: InspectedLayer, pairs: Sequence[tuple[int, int]]) -> list[Curve]:
    """Functions of a layer by their inputs and outputs."""
    layer, inputs = inspected.layer, inspected.inputs
    extension = layer.family.degree
    knots = layer.grid[:, extension : layer.grid.shape[1] - extension]  # (I, G+1)
    low, high = torch.minimum(knots[:, 0], inputs.amin(0)), torch.maximum(knots[:, -1], inputs.amax(0))
    x = torch.lerp(low, high, torch.linspace(0, 1, CURVE_POINTS // 4, device=low.device).unsqueeze(1))  # (m, I)
    features, weight = layer.features(x), layer.weight()
    curves = []
    for i, o in pairs:
        parts = features[:, i] * weight[i, :, o]  # (m, K+1)
        arrays = (x[:, i], parts[:, :-1].sum(1), parts[:, -1], knots[i], inputs[:, i])
        strength = float(inspected.strength[i, o])
        curves.append(Curve(inspected.name, i, o, strength, *(array.cpu().numpy() for array in arrays)))
    return curves


def traversal(
    model: LVKAM, densities: PriorDensities, z: np.ndarray, coordinates: Sequence[int], levels: np.ndarray
) -> np.ndarray:
    """What is generated as one coordinate at a time goes through the quantiles of its prior.

    Args:
        model: the model.
        densities: of its prior.
        z: the latents that the others keep, (Q,).
        coordinates: which ones move.
        levels: (L,), in [0, 1].

    Returns:
        (len(coordinates), L, D).
    """
    paths = np.tile(z, (len(coordinates), len(levels), 1))
    for path, q in zip(paths, coordinates, strict=True):
        path[:, q] = np.interp(levels, densities.cdf[q], densities.z[q])
    return decode(model, paths)


def interpolation(model: LVKAM, densities: PriorDensities, ends: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """What lies between two draws, every coordinate going from rank to rank of its prior.

    A straight line would cross places where the prior has no mass.

    Args:
        model: the model.
        densities: of its prior.
        ends: latents, (2, Q).
        levels: (L,), from 0 at the first to 1 at the second.

    Returns:
        (L, D).
    """
    start, end = densities.rank(ends)
    return decode(model, densities.quantile(start + np.asarray(levels)[:, None] * (end - start)))


def decode(model: LVKAM, z: np.ndarray) -> np.ndarray:
    """`model.decode` of arrays: (..., Q) -> (..., D)."""
    latents = torch.from_numpy(z).to(model.prior.mixture_logits)
    decoded = [model.decode(chunk).cpu() for chunk in latents.reshape(-1, z.shape[-1]).split(CHUNK)]
    return torch.cat(decoded).numpy().reshape(*z.shape[:-1], -1)


class Posterior(NamedTuple):
    """p(z|x) as weighted draws from the prior."""

    z: np.ndarray
    """(S, Q)."""
    weights: np.ndarray
    """(B, S), summing to one."""
    sample_size: np.ndarray
    """Effective sample size, (B,)."""
    reconstruction: np.ndarray
    """The mean of what is generated, (B, D)."""


@torch.no_grad()
def posterior(model: LVKAM, x: Tensor, num_samples: int, rng: torch.Generator) -> Posterior:
    """The posterior of images x, (B, D), by importance sampling from the prior, as `model.posterior`."""
    z, weights = model.posterior(x, num_samples, rng)
    chunks = zip(weights.split(CHUNK, 1), z.split(CHUNK), strict=True)
    reconstruction = sum(w @ model.decode(chunk) for w, chunk in chunks)
    assert isinstance(reconstruction, Tensor)
    arrays = (z, weights, effective_sample_size(weights), reconstruction)
    return Posterior(*(array.cpu().numpy() for array in arrays))


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Quantiles of weighted draws, column by column: (S, Q), (S,) -> (len(levels), Q)."""
    order = np.argsort(values, axis=0)
    cumulative = weights[order].cumsum(0)
    index = np.stack([(cumulative < level * cumulative[-1]).sum(0) for level in levels])
    return np.take_along_axis(np.take_along_axis(values, order, 0), np.minimum(index, len(values) - 1), 0)


def departures(ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far a posterior is from its prior, coordinate by coordinate: the largest difference of their CDFs, (Q,).

    Args:
        ranks: of draws in their prior, (S, Q).
        weights: of the draws, (S,), summing to one.
    """
    order = np.argsort(ranks, axis=0)
    ranks, weights = np.take_along_axis(ranks, order, 0), weights[order]
    above = weights.cumsum(0) - ranks
    return np.maximum(above, weights - above).max(0)  # before and after each step


def nearest(x: Tensor, among: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of x, (N, D), which row of others, (M, D), is nearest, and how far it is: (N,), (N,)."""
    distance = torch.cdist(x, among, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.argmin(1).numpy(), distance.amin(1).numpy()
