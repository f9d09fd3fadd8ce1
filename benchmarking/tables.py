"""How near `config/table.ini` comes to a known density: a mixture of Gaussians in 5 dimensions, 10,000 rows.

Held-out log-evidence beside that of one Gaussian and of the density itself; and whether outliers have the least of it.
A few minutes, so that `run_benchmarks.sh` leaves it out: `python -m benchmarking.tables`.
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, rankdata

from benchmarking.harness import Row, options
from lvkam import load_config, run_experiment
from lvkam.inference import evaluate_checkpoint

PRESET = Path(__file__).parents[1] / "config" / "table.ini"
DIMENSIONS, COMPONENTS, ROWS, HELD_OUT, OUTLIERS = 5, 4, 9000, 1000, 1000


class Mixture(NamedTuple):
    """sum_k weight_k N(mean_k, root_k root_k^T)."""

    weights: np.ndarray
    means: np.ndarray
    roots: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator) -> Mixture:
        """Standard deviations from 0.5 to 1.2 along turned axes, centres of standard deviation 2."""
        turns = np.linalg.qr(rng.normal(size=(COMPONENTS, DIMENSIONS, DIMENSIONS)))[0]
        roots = turns * rng.uniform(0.5, 1.2, (COMPONENTS, 1, DIMENSIONS))
        return cls(np.array([0.4, 0.3, 0.2, 0.1]), rng.normal(0, 2, (COMPONENTS, DIMENSIONS)), roots)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        k = rng.choice(COMPONENTS, count, p=self.weights)
        return self.means[k] + np.einsum("nij,nj->ni", self.roots[k], rng.normal(size=(count, DIMENSIONS)))

    def log_density(self, x: np.ndarray) -> np.ndarray:
        parts = [
            np.log(weight) + multivariate_normal(mean, root @ root.T).logpdf(x)
            for weight, mean, root in zip(*self, strict=True)
        ]
        return np.asarray(logsumexp(parts, axis=0))


def area_under_curve(low: np.ndarray, high: np.ndarray) -> float:
    """How often a score of the first kind lies below one of the second."""
    ranks = rankdata(np.concatenate((low, high)))[len(low) :]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


def scores(checkpoint: Path, data: Path, per_image: Path, num_samples: int) -> tuple[np.ndarray, float]:
    """Log-evidence of each row, and the standard error of its mean."""
    found = evaluate_checkpoint(
        checkpoint, num_samples=num_samples, data=str(data), per_image=per_image, overwrite=True
    )
    with per_image.open(encoding="utf-8") as file:
        return np.array([float(row["Log Evidence (nats)"]) for row in csv.DictReader(file)]), found["nll_stderr"]


def main() -> None:
    report = options("tables", "A mixture of Gaussians in 5 dimensions, 9,000 rows to train with, 1,000 held out")
    rng = np.random.default_rng(1)
    mixture = Mixture.random(rng)
    train, held_out = mixture.sample(ROWS, rng), mixture.sample(HELD_OUT, rng)
    outliers = rng.uniform(train.min(0), train.max(0), (OUTLIERS, DIMENSIONS))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "table.npz", train=train, test=held_out)
        np.savez(folder / "outliers.npz", samples=outliers)
        settings = [f"TRAINING.dataset={folder / 'table.npz'}"]
        start = time.perf_counter()
        run = run_experiment(
            load_config(PRESET, [*settings, "TRAINING.N_epochs=2"] if report.quick else settings), folder / "run"
        )
        seconds = time.perf_counter() - start
        count = 4000 if report.quick else 100_000
        log_p, error = scores(run / "ckpt.h5", folder / "table.npz", folder / "rows.csv", count)
        log_p_outliers, _ = scores(run / "ckpt.h5", folder / "outliers.npz", folder / "outliers.csv", count)
    truth = mixture.log_density(held_out)
    gaussian = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(held_out)  # pyright: ignore
    true_outliers = mixture.log_density(outliers)
    rows: list[Row] = [
        {"density": name, "held-out log p (nats a row)": round(float(held.mean()), 3), "AUC of outliers": auc}
        for name, held, auc in (
            ("the mixture itself", truth, round(area_under_curve(true_outliers, truth), 4)),
            (f"lvkam, +- {error:.3f}", log_p, round(area_under_curve(log_p_outliers, log_p), 4)),
            ("one Gaussian", gaussian, ""),
        )
    ]
    report.add(
        f"{ROWS} rows in {seconds:.0f} s; evidence by {count:,} prior samples; outliers uniform in the box", rows
    )

    def draw(axes: Axes) -> None:
        axes.plot(truth, log_p, ".", markersize=3, color="#0072B2")
        axes.axline((float(truth.mean()), float(truth.mean())), slope=1, color="0.6", linewidth=1)
        axes.set(xlabel="true log p of a held-out row (nats)", ylabel="log-evidence under lvkam")

    report.write(draw)


if __name__ == "__main__":
    main()
