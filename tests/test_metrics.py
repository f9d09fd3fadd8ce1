"""Distances and overlaps of sets of features: known values, independent implementations, and intervals that cover."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import prdc
import pytest
import torch
from scipy.stats import binom
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from lvkam import metrics
from lvkam.metrics import Estimate, fid, frechet_distance, kid, manifolds, overlap
from tests.conftest import stream


def features(number: int, seed: int, width: int = 6, shift: float = 0.0) -> Tensor:
    return torch.randn(number, width, generator=stream(seed), dtype=torch.float64) + shift


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return float((a @ b / len(a) + 1) ** 3)


def test_kid_is_the_unbiased_mean_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS", 7)  # in pieces
    x, y = features(20, 0), features(15, 1, shift=0.3)
    xs, ys = x.numpy(), y.numpy()
    expected = (
        np.mean([kernel(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i != j])
        + np.mean([kernel(a, b) for i, a in enumerate(ys) for j, b in enumerate(ys) if i != j])
        - 2 * np.mean([kernel(a, b) for a in xs for b in ys])
    )
    assert kid(x, y, stream(2)).value == pytest.approx(expected, abs=1e-12)
    assert kid(x[:15], y, stream(2)).value == pytest.approx(poly_mmd(x[:15], y).item(), abs=1e-12)


def test_fid_of_gaussians() -> None:
    x = features(20000, 0, 3)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # mean 0, covariance 1, exactly
    # |mu|^2 + sum (1 - s)^2 where covariances commute
    y = x * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([0.0, 0.0, 3.0])
    assert fid(x, y, stream(1)).value == pytest.approx(9 + 1 + 0.25, abs=1e-8)
    ones = torch.ones(1, len(x), dtype=torch.float64)
    assert frechet_distance(x, y, ones, ones).item() == pytest.approx(9 + 1 + 0.25, abs=1e-8)


def test_a_replicate_of_fid_is_the_fid_of_repeated_points() -> None:
    x, y = features(50, 0), features(40, 1, shift=0.5)
    x[:, 3] = 0  # a feature that is dead
    i, j = (torch.randint(n, (n,), generator=stream(n)) for n in (50, 40))
    metric = FrechetInceptionDistance(feature=metrics._Features(6))
    metric.update(x[i], real=True)
    metric.update(y[j], real=False)
    v, w = (taken.bincount(minlength=n).double() for taken, n in ((i, 50), (j, 40)))
    once = torch.ones(1, 50, dtype=torch.float64), torch.ones(1, 40, dtype=torch.float64)
    found = frechet_distance(x, y, torch.cat((once[0], v[None])), torch.cat((once[1], w[None])))[1]
    assert found.item() == pytest.approx(metric.compute().item(), abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5, 20.0])
def test_overlaps_are_those_of_the_package_prdc(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS", 64)
    x, y = features(150, 0), features(120, 1, shift=shift)
    y[5:9] = y[4]  # repeated points, fewer than a ball reaches
    expected = prdc.compute_prdc(x.numpy(), y.numpy(), nearest_k=5)
    for name, each in manifolds(x, y)._asdict().items():
        assert each.mean().item() == pytest.approx(expected[name], abs=1e-6), name


def coverage_of(estimate: Callable[[int], Estimate], truth: float, trials: int) -> int:
    return sum(found.low <= truth <= found.high for found in map(estimate, range(trials)))


@pytest.mark.parametrize(
    ("metric", "shift", "truth"),
    [(kid, 0.0, 0.0), (fid, 0.0, 0.0), (fid, 0.5, 4 * 0.25), (kid, 0.5, None)],
)  # fmt: skip
def test_intervals_cover_the_truth(
    metric: Callable[[Tensor, Tensor, torch.Generator], Estimate],
    shift: float,
    truth: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of intervals of 95 % so many cover that fewer would be had by chance once in 10,000 times."""
    monkeypatch.setattr(metrics, "REPLICATES", 100)
    trials = 100 if metric is kid else 40
    if truth is None:  # E k over normal vectors: E (u + c)^3 with u = x.y / F
        a, b = features(200_000, 998, 4), features(200_000, 999, 4)
        terms = [((a + s) * (b + t)).sum(1) / 4 + 1 for s, t in ((0, 0), (shift, shift), (0, shift))]
        xx, yy, xy = (float((term**3).mean()) for term in terms)
        truth = xx + yy - 2 * xy
    covered = coverage_of(
        lambda n: metric(features(150, 2 * n, 4), features(150, 2 * n + 1, 4, shift), stream(n)), truth, trials
    )
    assert covered >= binom.ppf(1e-4, trials, 0.95)


def test_the_bias_of_fid_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPLICATES", 40)
    found = [fid(features(200, 2 * n), features(200, 2 * n + 1), stream(n)) for n in range(20)]
    plug_in, corrected = np.mean([e.value for e in found]), np.mean([e.corrected for e in found])
    assert plug_in > 0.1
    assert abs(corrected) < plug_in / 5


def test_the_interval_of_a_share_is_that_of_a_share() -> None:
    shares = (torch.arange(400) < 300).double()
    found = overlap(shares, stream(0))
    error = (0.75 * 0.25 / 400) ** 0.5
    assert found.value == found.corrected == 0.75
    assert found.low == pytest.approx(0.75 - 1.96 * error, abs=0.4 * error)
    assert found.high == pytest.approx(0.75 + 1.96 * error, abs=0.4 * error)
    assert overlap(torch.ones(9, dtype=torch.float64), stream(0)) == (1, 1, 1, 1)


def test_the_same_seed_gives_the_same_interval() -> None:
    x, y = features(40, 0), features(40, 1)
    for metric in (kid, fid):
        assert metric(x, y, stream(3)) == metric(x, y, stream(3)) != metric(x, y, stream(4))
