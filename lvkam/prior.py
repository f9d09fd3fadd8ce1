"""The prior: independent latent coordinates, each a mixture of univariate energy-based densities.

    p(z) = prod_q sum_p alpha_qp exp(f_qp(z_q)) pi_0(z_q) / Z_qp,    alpha_q = softmax of the mixture logits
    Z_qp = integral of exp(f_qp) pi_0 over the support

The functions f_qp are one layer of univariate functions, or several: the first has Q x H functions, the later
ones are shared by all coordinates and summed over their inputs, so that f_qp stays a function of z_q alone.

One quadrature serves sampling and normalisation: nodes at the knots and evenly in between, the log-density
interpolated linearly (`lvkam.sampling`).

Letters: N points, Q latent coordinates, P mixture components, H hidden functions, n quadrature nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lvkam.sampling import (
    BLOCK,
    CellTable,
    component_means,
    inverse_transform,
    log_integral,
    repeat_ends,
    tabulate,
)
from lvkam.splines import evaluate_spline
from lvkam.univariate import FunctionFamily, UnivariateFunctions, glorot_normal, is_twice_differentiable


class ReferenceDensity(NamedTuple):
    """pi_0, the density that exp(f) reshapes."""

    log_prob: Callable[[Tensor], Tensor]
    """(...) -> (...), elementwise."""
    sample: Callable[[int, int, torch.Generator], Tensor]
    """(N, Q, rng) -> (N, Q), on the CPU."""
    support: tuple[float, float]
    bounded: bool
    """Whether nothing lies outside `support`; it is widened on demand where something may."""


def _uniform_log_prob(z: Tensor) -> Tensor:
    return torch.where((z >= 0) & (z <= 1), 0.0, -torch.inf).to(z.dtype)


def _gaussian_log_prob(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi))


REFERENCE_DENSITIES = {
    "uniform": ReferenceDensity(
        _uniform_log_prob, lambda n, q, rng: torch.rand(n, q, generator=rng), (0.0, 1.0), bounded=True
    ),
    "gaussian": ReferenceDensity(
        _gaussian_log_prob, lambda n, q, rng: torch.randn(n, q, generator=rng), (-8.0, 8.0), bounded=False
    ),
}
"""The densities pi_0, by their names in the INI file."""

TAIL_MASS = 1e-7
"""Share of its mass that a density may leave beyond either end of the quadrature's range."""

INTERVAL_SHARE = 0.75
"""Share of the quadrature's nodes that the intervals between knots divide equally; the rest goes by length."""

MAX_WIDENINGS = 12
"""How often the range may widen by half before a density counts as one that cannot be normalised."""

CHUNK = 2**23
"""Energies computed at a time, N Q P of them, to bound the memory."""


def _mixture_log_density(energies: Tensor, log_weights: Tensor, log_reference: Tensor) -> Tensor:
    """sum_q log sum_p exp(f_qp + log weight_qp) pi_0: (Q, N, P), (Q, P), (N, Q) -> (N,)."""
    mixture = torch.logsumexp(energies + log_weights.unsqueeze(1), dim=-1)  # (Q, N)
    return (mixture.T + log_reference).sum(-1)


class _Quadrature(NamedTuple):
    """Nodes, and what else changes only with the grid and the range."""

    nodes: Tensor
    """(Q, n)."""
    log_reference: Tensor
    """log pi_0 at the nodes, (Q, 1, n)."""
    features: Tensor | None
    """The first layer's at the nodes, (Q, n, K+1); None if a bandwidth changes them too."""


class MixturePrior(nn.Module):
    """p(z), sampled exactly by inverse transform, with a normalised log-density.

    Args:
        latent_dim: Q.
        num_components: P.
        hidden_widths: widths H of the layers between a coordinate and its P functions; none by default.
        family: what the functions of all layers have in common.
        reference: pi_0.
        quadrature_points: about how many nodes, knots included, over the reference's support: up to 15 fewer, so
            that cells fill whole blocks. As the range of a Gaussian widens, their number grows with it.
        rng: source of the initial values.
    """

    def __init__(
        self,
        latent_dim: int,
        num_components: int,
        hidden_widths: Sequence[int],
        family: FunctionFamily,
        reference: ReferenceDensity,
        quadrature_points: int,
        rng: torch.Generator,
    ):
        super().__init__()
        self.latent_dim, self.num_components = latent_dim, num_components
        self.reference, self.quadrature_points = reference, quadrature_points
        widths = [*hidden_widths, num_components]
        shapes = [(latent_dim, widths[0]), *zip(widths[:-1], widths[1:], strict=True)]
        self.layers = nn.ModuleList(UnivariateFunctions(i, o, family, rng) for i, o in shapes)
        self.mixture_logits = nn.Parameter(glorot_normal(latent_dim, num_components, rng))
        self._quadratures: dict[tuple[float, float], _Quadrature] = {}  # by range
        self._quadrature_grid: tuple[Tensor, int] | None = None  # that they are of, and its version

    def _layer(self, index: int) -> UnivariateFunctions:
        layer = self.layers[index]
        assert isinstance(layer, UnivariateFunctions)
        return layer

    def energies(self, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """f_qp(z_q): (N, Q) -> (N, Q, P); whoever has the first layer's weight already passes it."""
        layer = self._layer(0)
        return self._deepen(evaluate_spline(layer.features(z), layer.weight() if weight is None else weight))

    def _deepen(self, hidden: Tensor) -> Tensor:
        """The layers after the first, shared by all coordinates: (N, Q, H) -> (N, Q, P)."""
        shape = hidden.shape[:2]
        for index in range(1, len(self.layers)):
            hidden = self._layer(index)(hidden.flatten(0, 1)).unflatten(0, shape)
        return hidden

    def log_weights(self) -> Tensor:
        """log alpha_qp, (Q, P)."""
        return torch.log_softmax(self.mixture_logits, dim=-1)

    def log_prob(self, z: Tensor, table: CellTable | None = None) -> Tensor:
        """log p(z), normalised: (N, Q) -> (N,); minus infinity outside the support.

        Args:
            z: (N, Q).
            table: of the present parameters, from `table()`; computed here if None.
        """
        table, weight = table or self.table(), self._layer(0).weight()
        return self._log_mixture(z, self.log_weights() - self._log_normalisers(table, weight), weight)

    def log_unnormalised(self, z: Tensor) -> Tensor:
        """sum_q log sum_p alpha_qp exp(f_qp(z_q)) pi_0(z_q): what the reference trains, (N, Q) -> (N,)."""
        return self._log_mixture(z, self.log_weights(), self._layer(0).weight())

    def _log_mixture(self, z: Tensor, log_weights: Tensor, weight: Tensor) -> Tensor:
        rows = max(1, CHUNK // (self.latent_dim * self.num_components))
        if len(z) <= rows:
            return self._log_mixture_of_chunk(z, log_weights, weight)
        # each chunk's energies are computed again for the gradient, so that one chunk's exist at a time
        chunks = [
            checkpoint(
                self._log_mixture_of_chunk, z_, log_weights, weight, use_reentrant=False, preserve_rng_state=False
            )
            for z_ in z.split(rows)
        ]
        return torch.cat(chunks)  # pyright: ignore[reportArgumentType] checkpoint does not tell what it returns

    def _log_mixture_of_chunk(self, z: Tensor, log_weights: Tensor, weight: Tensor) -> Tensor:
        kernel = self.kernel(_mixture_log_density, len(z))
        return kernel(self.energies(z, weight).transpose(0, 1), log_weights, self.reference.log_prob(z))

    def log_normalisers(self, table: CellTable | None = None) -> Tensor:
        """log Z_qp by quadrature, (Q, P), differentiable; `table` as for `log_prob`."""
        return self._log_normalisers(table or self.table(), self._layer(0).weight())

    def _log_normalisers(self, table: CellTable, weight: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return table.log_normaliser
        if is_twice_differentiable():
            energies = self._node_energies(table.nodes, weight)
            return log_integral(table.nodes, table.log_density + (energies - energies.detach()))
        # d log Z is the mean of df under the component: so the gradient needs the energies' graph only, and where
        # the energies are linear combinations of features, these features' means.
        if len(self.layers) == 1:
            means = component_means(table, self._node_features(table.nodes))  # (Q, P, K+1)
            mean_energy = (means.transpose(1, 2) * weight).sum(1)
        else:
            share = table.node_mass / table.node_mass.sum(-1, keepdim=True)
            mean_energy = (share * self._node_energies(table.nodes, weight)[..., 1:-1]).sum(-1)
        return table.log_normaliser + (mean_energy - mean_energy.detach())

    @torch.no_grad()
    def sample(self, num_samples: int, rng: torch.Generator, table: CellTable | None = None) -> Tensor:
        """Draw from p(z) by inverse transform: a component by alpha, then a place by its CDF.

        Args:
            num_samples: N.
            rng: on the CPU, whatever the model's device, so that a seed means the same everywhere.
            table: as for `log_prob`: whoever draws several times computes it once.

        Returns:
            (N, Q), on the model's device, without gradient.
        """
        return self._draw(num_samples, self.latent_dim, None, rng, table or self.table())

    @torch.no_grad()
    def redraw(self, coordinates: Tensor, rng: torch.Generator, table: CellTable | None = None) -> Tensor:
        """Draw single coordinates from p(z_q).

        Args:
            coordinates: which ones, (N, m), in 0..Q-1.
            rng: on the CPU.
            table: as for `sample`.

        Returns:
            Their values, (N, m).
        """
        return self._draw(len(coordinates), coordinates.shape[1], coordinates, rng, table or self.table())

    def _draw(
        self, num_draws: int, width: int, coordinates: Tensor | None, rng: torch.Generator, table: CellTable
    ) -> Tensor:
        """Values of m coordinates, all of them if None: (N, m)."""
        uniform = torch.rand(num_draws, width, dtype=torch.float64, generator=rng).to(self.mixture_logits.device)
        weights, compiler = self.log_weights().exp(), partial(self.kernel, num_points=num_draws, inline=False)
        return inverse_transform(table, weights, uniform, compiler, coordinates)

    @property
    def kernel(self) -> Callable[..., Callable[..., Any]]:
        """What makes the kernel that runs of a function: it compiles it, or leaves it as it is."""
        return self._layer(0).family.kernel

    @torch.no_grad()
    def table(self) -> CellTable:
        """The densities exp(f_qp) pi_0 integrated, for the present parameters.

        Raises:
            FloatingPointError: a component's energies have diverged.
        """
        # The search for the range starts afresh each time: it depends on the parameters alone, not on what
        # they were before, and a model read from a file draws the same samples.
        low, high = self.reference.support
        if not self.reference.bounded:  # a bump far out stands on the grid
            grid = self._layer(0).grid
            low, high = min(low, float(grid.min())), max(high, float(grid.max()))
        for _ in range(MAX_WIDENINGS):
            quadrature = self._place_quadrature(low, high)
            log_density = self._node_energies(quadrature.nodes, self._layer(0).weight())
            if not self.reference.bounded:  # a uniform one is zero between its ends
                log_density += quadrature.log_reference
            table = tabulate(quadrature.nodes, log_density, self.kernel)
            if not torch.isfinite(table.log_normaliser.sum()):
                raise FloatingPointError("prior: an energy is not finite")
            heavy_left, heavy_right = (False, False) if self.reference.bounded else _heavy_tails(table)
            if not (heavy_left or heavy_right):
                return table
            step = (high - low) / 2
            low, high = low - step * heavy_left, high + step * heavy_right
        raise FloatingPointError(
            f"prior: the density of a component does not fit into [{low:g}, {high:g}]: its energies have diverged"
        )

    def _place_nodes(self, low: float, high: float) -> Tensor:
        """Quadrature nodes in [low, high], sorted, (Q, n): the knots there, and others in between.

        A spline bends as sharply as its knots are close: most nodes are shared equally among the intervals
        between knots, the rest goes by length, for what lies outside the grid or comes from deeper layers.
        """
        grid, support = self._layer(0).grid, self.reference.support
        stretch = (high - low) / (support[1] - support[0])
        ends = torch.tensor([low, high], dtype=torch.float64, device=grid.device).expand(self.latent_dim, -1)
        breaks = torch.cat((ends, grid.double().clamp(low, high)), dim=1).sort(dim=1).values  # (Q, M+2)
        length = breaks.diff(dim=1)
        kept = (length > 0).double()
        share = INTERVAL_SHARE * kept / kept.sum(1, keepdim=True)
        share += (1 - INTERVAL_SHARE) * length / length.sum(1, keepdim=True)
        num_between = max(BLOCK, round(self.quadrature_points * stretch) - breaks.shape[1])
        num_between -= (num_between + breaks.shape[1] + 1) % BLOCK  # so that no cells are added beside the ends
        places = (torch.arange(num_between, dtype=share.dtype, device=grid.device) + 0.5) / num_between
        cdf = F.pad(share.cumsum(1), (1, 0))
        cell = torch.searchsorted(cdf, places.expand(self.latent_dim, -1).contiguous(), right=True) - 1
        within = (places - cdf.gather(1, cell)) / share.gather(1, cell)
        between = breaks.gather(1, cell) + within * length.gather(1, cell)
        return repeat_ends(torch.cat((between, breaks), dim=1).sort(dim=1).values.to(grid.dtype))

    def _place_quadrature(self, low: float, high: float) -> _Quadrature:
        """Nodes in [low, high] with their features, kept as long as neither grid nor range changes."""
        layer, grid = self._layer(0), self._layer(0).grid
        known = self._quadrature_grid
        if known is None or known[0] is not grid or known[1] != grid._version:
            self._quadratures, self._quadrature_grid = {}, (grid, grid._version)
        if (low, high) not in self._quadratures:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training too
                nodes = self._place_nodes(low, high)
                log_reference = self.reference.log_prob(nodes).unsqueeze(1)
                features = None
                if layer.bandwidth is None:
                    features = layer.features(nodes.T).transpose(0, 1).contiguous()
                self._quadratures[low, high] = _Quadrature(nodes, log_reference, features)
        return self._quadratures[low, high]

    def _node_features(self, nodes: Tensor) -> Tensor:
        """The first layer's features: (Q, n) -> (Q, n, K+1)."""
        for kept in self._quadratures.values():
            if kept.nodes is nodes and kept.features is not None:
                return kept.features
        return self._layer(0).features(nodes.T).transpose(0, 1)

    def _node_energies(self, nodes: Tensor, weight: Tensor) -> Tensor:
        """f_qp at the nodes: (Q, n) -> (Q, P, n)."""
        features = self._node_features(nodes)
        if len(self.layers) == 1:
            return torch.bmm(weight.transpose(1, 2), features.transpose(1, 2))
        return self._deepen(torch.bmm(features, weight)).transpose(1, 2)

    @torch.no_grad()
    def update_grids(self, num_samples: int, rng: torch.Generator) -> list[str | None]:
        """Adapt the first layer's grids to draws from pi_0, each later one's to its own N*Q inputs.

        Args:
            num_samples: N.
            rng: on the CPU.

        Returns:
            What `UnivariateFunctions.update_grid` says of each layer.
        """
        z = self.reference.sample(num_samples, self.latent_dim, rng).to(self.mixture_logits)
        problems = [self._layer(0).update_grid(z)]
        hidden = self._layer(0).functions(z).flatten(0, 1)  # (N*Q, H)
        for index in range(1, len(self.layers)):
            problems.append(self._layer(index).update_grid(hidden))
            hidden = self._layer(index)(hidden)
        return problems


def _heavy_tails(table: CellTable) -> tuple[bool, bool]:
    """Whether some density has more than `TAIL_MASS` left of its nodes, and right of them.

    Far out f is at most linear, and log pi_0 falls faster than any line; so from the end node on a density falls
    at least as fast as in the last stretch before it, and exp(l) / descent bounds its tail.
    """
    stretch = (table.nodes[:, -1:] - table.nodes[:, :1]) / table.nodes.shape[1]
    heavy = []
    for x, log_density in (
        (table.nodes, table.log_density),
        (-table.nodes.flip(1), table.log_density.flip(2)),
    ):
        inner = (x - x[:, :1] < stretch).sum(1, keepdim=True)  # the first node that is a stretch away, (Q, 1)
        width = x.gather(1, inner) - x[:, :1]  # (Q, 1)
        index = inner.unsqueeze(1).expand(*log_density.shape[:2], 1)
        descent = (log_density.gather(2, index).squeeze(2) - log_density[..., 0]) / width  # (Q, P)
        tail = torch.exp(log_density[..., 0] - table.log_normaliser) / descent
        heavy.append(bool(((descent <= 0) | (tail > TAIL_MASS)).any()))
    return heavy[0], heavy[1]
