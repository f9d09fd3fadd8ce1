"""The four optimisers of this version, against one step computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lvkam.optimizers import FIRST_ORDER, build_optimizer

RATE, START, GRADIENT = 0.01, 2.0, 6.0
BY_HAND = {
    "sgd": START - RATE * GRADIENT,
    # corrected moments of a first step: g and g^2
    "adam": START - RATE * GRADIENT / (GRADIENT + 1e-8),
    "adamw": START * (1 - RATE * 0.01) - RATE * GRADIENT / (GRADIENT + 1e-8),
    "rms": START - RATE * GRADIENT / (math.sqrt(0.01 * GRADIENT**2) + 1e-8),
}


def test_every_optimizer_is_checked() -> None:
    assert set(FIRST_ORDER) == set(BY_HAND)


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_a_step_is_the_one_by_hand(name: str) -> None:
    parameter = nn.Parameter(torch.tensor(START))
    optimizer = build_optimizer(name, iter([parameter]), RATE)
    (3 * (parameter - 1) ** 2).backward()
    optimizer.step()
    assert parameter.item() == pytest.approx(BY_HAND[name], rel=1e-6)
