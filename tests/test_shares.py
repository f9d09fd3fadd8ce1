"""Parts of a batch's samples, in threads that stand for processes, against all samples in one piece."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from lvkam.annealing import power_schedule, trapezoid_weights
from lvkam.shares import Share
from tests.conftest import stream

IMAGES, SAMPLES = 4, 12

several = pytest.mark.parametrize("size", [1, 2, 3])


class Meeting:
    """Where threads tell one another tensors, as processes do by `World.gather`."""

    def __init__(self, size: int):
        self.barrier, self.held = threading.Barrier(size, timeout=30), [torch.empty(0)] * size

    def gather(self, rank: int, x: Tensor) -> Tensor:
        self.held[rank] = x
        self.barrier.wait()
        told = torch.stack(self.held)
        self.barrier.wait()  # nobody tells the next before all have taken this one
        return told


def together(size: int, work: Callable[[Share], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """What all shares come to, each in a thread of its own."""
    meeting = Meeting(size)
    shares = [Share(IMAGES, rank, size, functools.partial(meeting.gather, rank)) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, shares))


def log_likelihoods() -> Tensor:
    return 3 * torch.randn(IMAGES, SAMPLES, dtype=torch.float64, generator=stream(0)) - 50


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@several
def test_weights_are_normalised_over_the_samples_of_all(size: int) -> None:
    values = log_likelihoods()

    def work(share: Share) -> tuple[Tensor, ...]:
        part = values[:, share.rows(SAMPLES)]
        weights = share.importance_weights(part)
        return weights, share.log_sum(part), share.effective_sample_size(weights), share.total(weights)

    parts = together(size, work)
    expected = torch.softmax(values, 1)
    assert_close(torch.cat([weights for weights, *_ in parts], 1), expected)
    for _, log_sum, effective, total in parts:  # the same in all
        assert_close(log_sum, values.logsumexp(1))
        assert_close(effective, 1 / expected.square().sum(1))
        assert_close(total, torch.ones(IMAGES, dtype=torch.float64))


@several
def test_means_over_the_images_add_up(size: int) -> None:
    values = log_likelihoods()[:, 0]
    of_samples = together(size, lambda share: (share.mean(values), share.mean(values[:2], IMAGES)))
    assert_close(torch.stack([all_ for all_, _ in of_samples]).sum(), values.mean())
    assert_close(torch.stack([some for _, some in of_samples]).sum(), values[:2].mean())
    # where processes have other images, each has all samples of its own ones
    assert_close(Share(IMAGES).mean(values[:3]) + Share(IMAGES).mean(values[3:]), values.mean())


@several
@pytest.mark.parametrize("count", [1, 3, 7, 11])
def test_the_largest_are_chosen_of_all(count: int, size: int) -> None:
    values = log_likelihoods()
    parts = together(size, lambda share: share.top(values[:, share.rows(SAMPLES)], count))
    nothing = torch.full((IMAGES, SAMPLES // size), -math.inf, dtype=torch.float64)
    found = torch.cat([nothing.scatter(1, samples, best) for best, samples in parts], 1)
    least = values.topk(count, 1).values[:, -1:]
    assert torch.equal(found, torch.where(values >= least, values, -math.inf))


@several
def test_trapezoid_weights_are_those_of_all_samples(size: int) -> None:
    values, temperatures = log_likelihoods(), power_schedule(5, 2.0)

    def work(share: Share) -> tuple[Tensor, ...]:
        return trapezoid_weights(values[:, share.rows(SAMPLES)], temperatures, gather=share.gather)

    parts = together(size, work)
    weights, sums = trapezoid_weights(values, temperatures)
    assert_close(torch.cat([part for part, _ in parts], 1), weights)
    for _, part in parts:
        assert_close(part, sums)
