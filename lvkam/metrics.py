"""How far generated samples are from real ones: distances and overlaps of two sets of features.

    KID = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x.y / F + 1)^3                     (Binkowski 2018)
    FID = |mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))                                    (Heusel 2017)
    precision = mean_j 1[some i: |x_i - y_j| < r(x_i)]    recall   = mean_i 1[some j: |x_i - y_j| < r(y_j)]
    density   = mean_j #{i: |x_i - y_j| < r(x_i)} / k     coverage = mean_i 1[some j: |x_i - y_j| < r(x_i)]

r(x_i) is the distance to the k-th nearest other point of the same set (Kynkaanniemi 2019, Naeem 2020).

Letters: N real points x, M generated points y, F features, R bootstrap replicates, k neighbours.

Intervals are of 95 %, by bootstrap. A replicate gives each point a weight, how often a draw with replacement takes it:
a few matrix products are then all replicates. KID leaves out the pairs of a point with itself, in the replicates too,
where repeated points would pass for close ones. FID is too large by what two finite sets differ by chance, and its
replicates are so once more: the basic interval, 2 theta - quantiles, takes that bias out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

NEIGHBOURS = 5
"""k, of precision, recall, density and coverage."""
REPLICATES, REPLICATES_WIDE, WIDE = 400, 20, 512
"""R; and R for more features than so many, each of whose replicates of FID takes seconds."""
ROWS = 1024
"""Points whose distances or kernel values to all others are held at a time, which bounds the memory."""
NUMBERS = 2**22
"""Weighted features that are held at a time, likewise."""


class Estimate(NamedTuple):
    """A figure with its interval."""

    value: float
    """The plug-in estimate: what others would compute."""
    corrected: float
    """Without the bias that the bootstrap finds in it: 2 theta - mean of the replicates."""
    low: float
    """Of the 95 % interval."""
    high: float


def kid(real: Tensor, generated: Tensor, rng: torch.Generator) -> Estimate:
    """Kernel inception distance, of the whole sets: unbiased, and so now and then below zero.

    Args:
        real: (N, F), N at least 2.
        generated: (M, F), likewise.
        rng: of the bootstrap, which takes both sets anew.
    """
    x, y = real.double(), generated.double()
    v, w = (_weights(len(points), REPLICATES, rng) for points in (x, y))
    within = _mean_kernel(x, x, v, v, without_diagonal=True) + _mean_kernel(y, y, w, w, without_diagonal=True)
    return _basic(within - 2 * _mean_kernel(x, y, v, w))


def _mean_kernel(x: Tensor, y: Tensor, v: Tensor, w: Tensor, *, without_diagonal: bool = False) -> Tensor:
    """Weighted means of k(x_i, y_j) for weights (R, N) and (R, M): (R,)."""
    from torchmetrics.image.kid import poly_kernel

    total, pairs = torch.zeros(len(v), dtype=x.dtype), v.sum(1) * w.sum(1)
    for rows in _chunks(len(x)):
        kernel = poly_kernel(x[rows], y)
        if without_diagonal:
            kernel.diagonal(rows.start).zero_()
        total += ((v[:, rows] @ kernel) * w).sum(1)
    return total / (pairs - (v * w).sum(1) if without_diagonal else pairs)


class _Features(nn.Module):
    """Lets a metric of images take features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """As they are."""
        return features


def fid(real: Tensor, generated: Tensor, rng: torch.Generator) -> Estimate:
    """Frechet distance of the Gaussians with the sets' means and covariances.

    Args:
        real: (N, F), N at least 2.
        generated: (M, F), likewise.
        rng: of the bootstrap, which takes both sets anew.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = real.double(), generated.double()
    metric = FrechetInceptionDistance(feature=_Features(x.shape[1]))
    metric.update(x, real=True)
    metric.update(y, real=False)
    num_replicates = REPLICATES if x.shape[1] <= WIDE else REPLICATES_WIDE
    v, w = (_weights(len(points), num_replicates, rng)[1:] for points in (x, y))
    centre, together = x.mean(0), max(1, NUMBERS // max(x.numel(), y.numel()))
    parts = zip(v.split(together), w.split(together), strict=True)
    replicates = torch.cat([frechet_distance(x - centre, y - centre, *both) for both in parts])
    return _basic(torch.cat([metric.compute().unsqueeze(0), replicates]))


def frechet_distance(x: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """FID of points near the origin, (N, F) and (M, F), weighted by (R, N) and (R, M), which sum to N and M: (R,)."""
    (mean_x, root_x), (mean_y, root_y) = _moments(x, v), _moments(y, w)
    # C = L L^T of both: the singular values of L_x^T L_y are the roots of the eigenvalues of C_x C_y
    cross = torch.linalg.svdvals(root_x.mT @ root_y).sum(-1)
    spread = root_x.square().sum((-2, -1)) + root_y.square().sum((-2, -1))
    return (mean_x - mean_y).square().sum(-1) + spread - 2 * cross


def _moments(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means (R, F), and L (R, F, F), of which L L^T is the covariance."""
    total = w.sum(-1, keepdim=True)
    mean = w @ x / total
    second = (x.T * w.unsqueeze(1)) @ x - total.unsqueeze(-1) * mean.unsqueeze(-1) * mean.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(second / (total.unsqueeze(-1) - 1))
    return mean, vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


class Manifolds(NamedTuple):
    """What each point contributes to the four overlaps, which are the means."""

    precision: Tensor
    """(M,): whether the generated point lies in some real point's ball."""
    recall: Tensor
    """(N,): whether the real point lies in some generated point's ball."""
    density: Tensor
    """(M,): in how many real balls the generated point lies, over k."""
    coverage: Tensor
    """(N,): whether some generated point lies in the real point's ball."""


def manifolds(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> Manifolds:
    """Precision, recall, density and coverage, point by point.

    Args:
        real: (N, F), N above k.
        generated: (M, F), M above k.
        k: the neighbour that a ball reaches.
    """
    x, y = real.double(), generated.double()
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    balls, recall, coverage = torch.zeros(len(y)), [], []
    for rows in _chunks(len(x)):
        distance = _distances(x[rows], y)
        in_real = distance < radius_x[rows, None]
        balls += in_real.sum(0)
        coverage.append(in_real.any(1))
        recall.append((distance < radius_y).any(1))
    return Manifolds((balls > 0).double(), torch.cat(recall).double(), balls.double() / k, torch.cat(coverage).double())


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other one, (N,)."""
    # the nearest of all is the point itself
    chunks = [_distances(points[rows], points).kthvalue(k + 1, 1).values for rows in _chunks(len(points))]
    return torch.cat(chunks)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # by differences: products would not find equal points at distance zero
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def overlap(contributions: Tensor, rng: torch.Generator) -> Estimate:
    """The mean of what points contribute, (N,), to one of the `Manifolds`.

    The bootstrap takes anew the points that the mean is over, generated ones for precision and density, real ones for
    recall and coverage. The balls are held: of repeated points they would shrink to nothing.
    """
    means = _weights(len(contributions), REPLICATES, rng) @ contributions / len(contributions)
    low, high = means[1:].quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    value = means[0].item()  # a mean has no bias; its percentiles stay within what it can be
    return Estimate(value, value, low, high)


def _basic(theta: Tensor) -> Estimate:
    """From the estimate and its replicates, (1 + R,)."""
    value, replicates = theta[0].item(), theta[1:]
    below, above = replicates.quantile(torch.tensor([0.025, 0.975], dtype=theta.dtype)).tolist()
    return Estimate(value, 2 * value - replicates.mean().item(), 2 * value - above, 2 * value - below)


def _weights(num_points: int, num_replicates: int, rng: torch.Generator) -> Tensor:
    """Ones, then how often each of the replicates takes a point: (1 + R, N)."""
    taken = torch.randint(num_points, (num_replicates, num_points), generator=rng)
    counts = torch.zeros(num_replicates, num_points, dtype=torch.float64)
    counts.scatter_add_(1, taken, torch.ones_like(taken, dtype=torch.float64))
    return torch.cat([torch.ones(1, num_points, dtype=torch.float64), counts])


def _chunks(number: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, number)) for start in range(0, number, ROWS))
