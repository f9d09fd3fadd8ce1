"""Optimisers by their names in the INI file, what they take, and the course of the learning rate.

rate of iteration i = learning_rate * min(1, i / warmup_steps) * schedule(i)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lvkam.descent import (
    BFGS,
    LBFGS,
    ConjugateGradients,
    FunctionOptimizer,
    GradientDescent,
    InteriorPoint,
    NelderMead,
    Newton,
)
from lvkam.line_search import Constants

ParameterGroups = Iterable[Parameter] | Iterable[dict[str, Any]]

FIRST_ORDER: dict[str, Callable[[Any, float], Optimizer]] = {
    # fused: one pass over all parameters, an order of magnitude faster than one operation after the other
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, fused=True),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate, fused=True),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, fused=True),
    "rms": lambda parameters, rate: torch.optim.RMSprop(parameters, lr=rate),
}
"""torch's, everything but the learning rate being its default."""

SEARCHING: dict[str, Callable[..., FunctionOptimizer]] = {
    "gd": GradientDescent,
    "cg": ConjugateGradients,
    "bfgs": BFGS,
    "l-bfgs": LBFGS,
    "newton": Newton,
    "interior-point": InteriorPoint,
    "neldermead": NelderMead,
}
"""Those that lower a function in each step; all but `neldermead` search along lines."""


def build_optimizer(
    name: str,
    parameters: ParameterGroups,
    learning_rate: float,
    line_search: str = "morethuente",
    constants: Constants = Constants(),  # noqa: B008 a tuple
    memory: int = 100,
) -> Optimizer:
    """The optimiser of a run.

    Args:
        name: a key of `FIRST_ORDER` or `SEARCHING`.
        parameters: what it may change; for those of `FIRST_ORDER` in groups too, as torch has them.
        learning_rate: its step size, or the first trial of a search for it.
        line_search: for those that search along lines, one of `LINE_SEARCHES`.
        constants: of the line search.
        memory: how many pairs L-BFGS keeps.
    """
    if name in FIRST_ORDER:
        return FIRST_ORDER[name](list(parameters), learning_rate)
    return SEARCHING[name](parameters, learning_rate, line_search, constants, memory)


def memory_needed(name: str, num_parameters: int, memory: int) -> int:
    """Bytes that an optimiser takes beyond some times the parameters."""
    n = num_parameters
    return {
        # what is kept, and copied twice on its way into a checkpoint
        "l-bfgs": 3 * 2 * 4 * memory * n,
        "bfgs": 3 * 4 * n**2,
        # in float64 the Hessian, its transpose or factor; eigenvectors and LAPACK's workspace besides
        "newton": 5 * 8 * n**2,
        "interior-point": 3 * 8 * n**2,
        "neldermead": 2 * 8 * (n + 1) * n,  # SciPy sorts the simplex into another one
    }.get(name, 0)


def memory_allowed() -> int:
    """Half of this machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def rate_factor(
    schedule: str,
    iteration: int,
    num_iterations: int,
    steps_per_epoch: int,
    *,
    elapsed: float = 0.0,
    warmup_steps: int = 0,
    step_every: int = 3,
    step_factor: float = 0.5,
) -> float:
    """What the learning rate of an iteration is multiplied by.

        constant    1
        cosine      (1 + cos(pi r)) / 2, r rising from 0 to 1 over the iterations after the warm-up, or with the time
        step        step_factor^floor(epochs done / step_every)

    each times min(1, iteration / warmup_steps). The cosine is Loshchilov and Hutter's, 2017, equation 5.

    Args:
        schedule: `constant`, `cosine` or `step`.
        iteration: from 1.
        num_iterations: in the whole training.
        steps_per_epoch: how many iterations an epoch takes.
        elapsed: share of the time allowed that has passed; r is at least that.
        warmup_steps: over which the rate rises.
        step_every: epochs.
        step_factor: between 0 and 1.
    """
    warmth = min(1.0, iteration / warmup_steps) if warmup_steps else 1.0
    if schedule == "cosine":
        done = max(0, iteration - 1 - warmup_steps) / max(1, num_iterations - warmup_steps)
        return warmth * (1 + math.cos(math.pi * min(1.0, max(done, elapsed)))) / 2
    if schedule == "step":
        return warmth * step_factor ** ((iteration - 1) // steps_per_epoch // step_every)
    return warmth
