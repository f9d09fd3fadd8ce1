"""Optimisers by their names in the INI file."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

OPTIMIZERS: dict[str, Callable[[list[Parameter], float], Optimizer]] = {
    # fused: one pass over all parameters, an order of magnitude faster than one operation after the other
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, fused=True),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate, fused=True),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, fused=True),
    "rms": lambda parameters, rate: torch.optim.RMSprop(parameters, lr=rate),
}


def build_optimizer(name: str, parameters: Iterable[Parameter], learning_rate: float) -> Optimizer:
    """The optimiser of a run.

    Args:
        name: a key of `OPTIMIZERS`.
        parameters: what it may change.
        learning_rate: its step size; everything else is torch's default.
    """
    return OPTIMIZERS[name](list(parameters), learning_rate)
