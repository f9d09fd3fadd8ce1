"""Tables of numbers: each column brought to mean 0 and standard deviation 1 for the model, and back.

    u_d = (x_d - mean_d) / std_d,   log p(x) = log p(u) - sum_d log std_d

Letters: N rows, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LARGEST = 1e36
"""Mean or standard deviation, so that float32 holds whatever is drawn; the smallest one is its reciprocal."""


def default_names(num_columns: int) -> tuple[str, ...]:
    """x1, x2, ...: of columns that have no names."""
    return tuple(f"x{d}" for d in range(1, num_columns + 1))


@dataclass(frozen=True)
class Standardisation:
    """The transform of a table; it belongs to the training rows, and travels with the checkpoint."""

    columns: tuple[str, ...]
    """Names."""
    mean: np.ndarray = field(repr=False)
    """(D,), float64."""
    std: np.ndarray = field(repr=False)
    """(D,), float64, greater than 0."""

    @classmethod
    def of(cls, table: np.ndarray, columns: tuple[str, ...]) -> Standardisation:
        """The transform that gives these rows, (N, D), mean 0 and standard deviation 1.

        Raises:
            ValueError: a column is constant, so that its density is infinite; or too large or small for float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = table.mean(0, dtype=np.float64), table.std(0, dtype=np.float64)
            spread = np.ptp(table, 0)
        for name, centre, scale, range_, first in zip(columns, mean, std, spread, table[0], strict=True):
            if not (np.isfinite(scale) and max(abs(centre), scale) < LARGEST):
                raise ValueError(f"the column {name} holds numbers too large for single precision: change its unit")
            if not range_ > 1e-12 * abs(first):
                raise ValueError(f"the column {name} is constant ({first:g} in all {len(table)} rows)")
            if not scale > 1 / LARGEST:
                raise ValueError(f"the column {name} holds numbers too small for single precision: change its unit")
        return cls(columns, mean, std)

    def apply(self, table: np.ndarray) -> np.ndarray:
        """What the model sees of rows: (N, D) -> (N, D), float32."""
        with np.errstate(over="ignore"):  # infinite where float32 ends
            return ((table - self.mean) / self.std).astype(np.float32)

    def restore(self, standardised: np.ndarray) -> np.ndarray:
        """The reverse: (N, D) -> (N, D), float64, for what is far from zero has its spread in the last digits."""
        return standardised.astype(np.float64) * self.std + self.mean

    @property
    def log_volume(self) -> float:
        """sum_d log std_d, in nats: what log p(u) exceeds log p(x) by."""
        return float(np.log(self.std).sum())
