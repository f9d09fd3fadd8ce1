"""torch's optimisers against one step computed by hand; what the others need; the course of the learning rate."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import nn

from lvkam.checkpoint import OPTIMIZER_STATE
from lvkam.config import SEARCH_ALONG_LINES, SECTIONS
from lvkam.descent import FunctionOptimizer
from lvkam.line_search import LINE_SEARCHES, Constants
from lvkam.optimizers import FIRST_ORDER, SEARCHING, build_optimizer, memory_allowed, memory_needed, rate_factor

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


def words(section: str, key: str) -> set[str]:
    return set(get_args(SECTIONS[section].fields_by_key()[key][1].annotation))


def test_every_name_of_the_configuration_is_known() -> None:
    assert FIRST_ORDER.keys() | SEARCHING.keys() == OPTIMIZER_STATE.keys() == words("OPTIMIZER", "type")
    assert not FIRST_ORDER.keys() & SEARCHING.keys()
    assert LINE_SEARCHES.keys() == words("LINE_SEARCH", "type")
    assert set(SEARCH_ALONG_LINES) == SEARCHING.keys() - {"neldermead"}
    defaults = SECTIONS["LINE_SEARCH"]().values_by_key()
    assert [defaults[key] for key in ("c_1", "c_2", "rho")] == list(Constants())


@pytest.mark.parametrize("name", SEARCHING)
def test_what_an_optimiser_keeps_is_what_its_files_hold(name: str) -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(()))]
    optimizer = build_optimizer(name, iter(parameters), 0.1, "hagerzhang", Constants(0.1, 0.2, 0.3), 4)
    assert isinstance(optimizer, FunctionOptimizer)
    assert (optimizer.line_search, optimizer.constants) == ("hagerzhang", (0.1, 0.2, 0.3))
    for parameter in parameters:
        assert optimizer.state.get(parameter, {}).keys() == set(OPTIMIZER_STATE[name])
        assert not any(tensor.any() for tensor in optimizer.state.get(parameter, {}).values())


def held(optimizer: FunctionOptimizer) -> int:
    memories = {
        t.untyped_storage().data_ptr(): t.untyped_storage() for s in optimizer.state.values() for t in s.values()
    }
    return sum(storage.nbytes() for storage in memories.values())


@pytest.mark.parametrize(("name", "expected"), [
    ("adam", 0), ("sgd", 0), ("gd", 0), ("cg", 0), ("l-bfgs", 3 * 2 * 7 * 30 * 4), ("bfgs", 3 * 30**2 * 4),
    ("newton", 5 * 30**2 * 8), ("interior-point", 3 * 30**2 * 8), ("neldermead", 2 * 31 * 30 * 8),
])  # fmt: skip
def test_the_memory_that_a_step_needs(name: str, expected: int) -> None:
    assert memory_needed(name, 30, 7) == expected
    if name in {"l-bfgs", "bfgs"}:  # which they keep
        optimizer = build_optimizer(name, [nn.Parameter(torch.zeros(30))], 0.1, memory=7)
        assert isinstance(optimizer, FunctionOptimizer)
        assert expected / 3 <= held(optimizer) <= expected / 3 + 8


def test_half_of_the_memory_is_allowed() -> None:
    with open("/proc/meminfo", encoding="ascii") as file:
        total = int(next(line for line in file if line.startswith("MemTotal")).split()[1]) * 1024
    assert memory_allowed() == pytest.approx(total / 2, rel=0.01)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_the_rate_warms_up_and_takes_its_course(schedule: str) -> None:
    factors = [rate_factor(schedule, i, 100, 10, warmup_steps=20, step_every=3, step_factor=0.1) for i in range(1, 101)]
    cold = [rate_factor(schedule, i, 100, 10, step_every=3, step_factor=0.1) for i in range(1, 101)]
    assert factors[:20] == pytest.approx([k / 20 for k in range(1, 21)])
    assert cold[0] == 1
    if schedule == "constant":
        assert factors[20:] == [1] * 80
        assert cold == [1] * 100
    elif schedule == "cosine":
        assert factors[20] == 1
        assert factors[20 + 40] == pytest.approx(0.5)  # half of the way
        assert factors[20 + 20] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
        assert 0 < factors[99] < 0.001
        assert cold[50] == pytest.approx(0.5)
        assert all(a > b for a, b in zip(cold[:-1], cold[1:], strict=True))
    else:
        expected = [1] * 30 + [0.1] * 30 + [0.01] * 30 + [0.001] * 10  # 3 epochs of 10 steps each
        assert cold == pytest.approx(expected)
        assert factors[20:] == pytest.approx(expected[20:])


def test_a_cosine_falls_with_the_time_if_that_is_over_first() -> None:
    by_time = [rate_factor("cosine", i, 1000, 10, elapsed=i / 50, warmup_steps=5) for i in range(1, 51)]
    assert by_time[4:] == pytest.approx([(1 + math.cos(math.pi * i / 50)) / 2 for i in range(5, 51)])
    assert by_time[:4] == pytest.approx([i / 5 * (1 + math.cos(math.pi * i / 50)) / 2 for i in range(1, 5)])
    assert by_time[-1] == pytest.approx(0, abs=1e-12)
    assert rate_factor("cosine", 800, 1000, 10, elapsed=0.1) == rate_factor("cosine", 800, 1000, 10)
    for schedule in ("constant", "step"):
        assert rate_factor(schedule, 8, 100, 10, elapsed=0.9) == 1


def test_a_training_shorter_than_its_warm_up_only_warms_up() -> None:
    for schedule in ("constant", "cosine"):
        factors = [rate_factor(schedule, i, 5, 5, warmup_steps=10) for i in range(1, 6)]
        assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
