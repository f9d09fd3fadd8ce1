"""Where a training stands: with the parameters and the optimiser's state, all that going on with it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np


class EpochRecord(NamedTuple):
    """A row of `loss.csv`; losses are in the units of the scaled likelihood, `test_nll` in nats."""

    seconds: float
    epoch: int
    train_loss: float
    test_loss: float
    grid_updated: bool
    test_nll: float
    effective_sample_size: float

    def as_row(self) -> dict[str, str]:
        """Columns of `loss.csv` and their text."""
        return {
            "Time (s)": f"{self.seconds:.3f}",
            "Epoch": str(self.epoch),
            "Train Loss": f"{self.train_loss:.6f}",
            "Test Loss": f"{self.test_loss:.6f}",
            "Grid Updated": "true" if self.grid_updated else "false",
            "Test NLL": f"{self.test_nll:.6f}",
            "Effective Sample Size": f"{self.effective_sample_size:.4f}",
        }


RANDOM_STATE_SIZE = 5056
"""Bytes of the state of a CPU `torch.Generator`."""


def _random_state() -> np.ndarray:
    return np.zeros(RANDOM_STATE_SIZE, np.uint8)


@dataclass
class TrainingState:
    """A training between two steps."""

    epoch: int = 0
    """Epochs completed, and evaluated."""
    iteration: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Time spent training, evaluation and files left out."""
    batches: int = 0
    """Of the present epoch, done."""
    loss_sum: float = 0.0
    """Over the images of these batches."""
    sample_size_sum: float = 0.0
    """Effective sample sizes, likewise."""
    grid_updated: bool = False
    """In the present epoch."""
    cut_short: bool = False
    """Whether it was ended by `max_seconds`, and recorded so."""
    last_grid_update: int = 0
    grid_update_period: int = 0
    skipped_grid_updates: int = 0
    """Layers' updates that would have spoilt their layer."""
    best_nll: float = math.inf
    """Lowest test NLL of a completed epoch."""
    stream: np.ndarray = field(default_factory=_random_state, repr=False)
    """State of the training's random numbers."""
    epoch_stream: np.ndarray = field(default_factory=_random_state, repr=False)
    """The same before the order of the present epoch was drawn."""
    log: list[EpochRecord] = field(default_factory=list, repr=False)
    """Epoch 0, before any training, and the completed epochs."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything by its name, but epoch and iteration, which a checkpoint holds as attributes."""
        scalars = {name: np.asarray(getattr(self, name), dtype) for name, dtype in _scalars().items()}
        log = np.array(self.log, np.float64).reshape(len(self.log), len(EpochRecord._fields))
        return {**scalars, "stream": self.stream, "epoch_stream": self.epoch_stream, "log": log}

    @classmethod
    def from_arrays(cls, epoch: int, iteration: int, arrays: Mapping[str, np.ndarray]) -> TrainingState:
        """The reverse of `to_arrays`.

        Raises:
            ValueError: numbers that no training can have come to.
        """
        values: dict[str, Any] = {name: arrays[name].item() for name in _scalars()}
        values |= {"stream": arrays["stream"], "epoch_stream": arrays["epoch_stream"]}
        if not all(values[name] >= 0 for name in _COUNTS) or values["grid_update_period"] == 0:
            raise ValueError("a count of its training is too small")
        if not values["best_nll"] > -math.inf:
            raise ValueError(f"its best test NLL is {values['best_nll']}")
        rows = arrays["log"].tolist()
        if [row[1] for row in rows] != list(range(epoch + 1)):
            raise ValueError(f"its log is not that of {epoch} epochs")
        log = [EpochRecord(*row)._replace(epoch=int(row[1]), grid_updated=bool(row[4])) for row in rows]
        return cls(epoch=epoch, iteration=iteration, log=log, **values)

    @staticmethod
    def layout(epoch: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Types and shapes of `to_arrays` after so many epochs."""
        streams = dict.fromkeys(("stream", "epoch_stream"), (np.dtype(np.uint8), (RANDOM_STATE_SIZE,)))
        log = (np.dtype(np.float64), (epoch + 1, len(EpochRecord._fields)))
        return {**{name: (dtype, ()) for name, dtype in _scalars().items()}, **streams, "log": log}


_COUNTS = ("seconds", "batches", "last_grid_update", "grid_update_period", "skipped_grid_updates")


def _scalars() -> dict[str, np.dtype]:
    """Names of the numbers in a file, and their types there."""
    types = {"int": np.dtype(np.int64), "float": np.dtype(np.float64), "bool": np.dtype(np.bool_)}
    # types are text here, by the import from __future__ above
    named = {f.name: types[str(f.type)] for f in fields(TrainingState) if str(f.type) in types}
    return {name: dtype for name, dtype in named.items() if name not in {"epoch", "iteration"}}
