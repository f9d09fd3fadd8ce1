"""What each way of training reaches on MNIST in the same seconds: test NLL by annealed evidence, over several seeds.

A quarter of an hour, so that `run_benchmarks.sh` leaves it out: `python -m benchmarking.estimators`. Kernels are
compiled before any training is timed, by a short training of each kind. All run in an ordinary Python process, without
the freed memory that the command `lvkam` keeps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from benchmarking.harness import NIST, VANILLA, Row, options
from lvkam import load_config, run_experiment
from lvkam.build import load_checkpoint, problem_of_compiling
from lvkam.data import load_dataset
from lvkam.evidence import annealed_log_evidence
from lvkam.training import random_stream

SEEDS, SECONDS = (1, 2, 3), 30
IMAGES, PARTICLES, TEMPERATURES = 100, 8, 50
"""Of the evidence."""

SIZES = [
    "MIX_PRIOR.layer_widths=10, 21",
    "KAN_LIKELIHOOD.expert_widths=21, 128",
    "KAN_LIKELIHOOD.generator_variance=0.70710678",
    "OPTIMIZER.learning_rate=0.002",
    "TRAINING.MC_expectation_sample_size=256",
    "TRAINING.N_epochs=1000",
    f"TRAINING.compile={'true' if problem_of_compiling() is None else 'false'}",
    "TRAINING.num_generated_samples=64",
]


def _temperatures(estimator: str, **others: object) -> list[str]:
    keys = {"num_temps": 69, "estimator": estimator, **others}
    return [f"THERMODYNAMIC_INTEGRATION.{key}={value}" for key, value in keys.items()]


FEW = "TRAINING.MC_expectation_sample_size=16"
WAYS = {
    "importance sampling": [VANILLA],
    "trapezoid": _temperatures("trapezoid"),
    "trapezoid, resampling": _temperatures("trapezoid", resampler="stratified"),
    "stepping stone, resampling": _temperatures("steppingstone", resampler="stratified"),
    "telescoped": _temperatures("telescoped"),
    "importance sampling, S = 16": [VANILLA, FEW],
    "trapezoid, T = 10, S = 16, 1 move": [*_temperatures("trapezoid", num_temps=10, moves_per_temperature=1), FEW],
    "stepping stone, T = 10, S = 16, 1 move": [
        *_temperatures("steppingstone", num_temps=10, moves_per_temperature=1),
        FEW,
    ],
}


def train(way: list[str], seed: int, seconds: float, folder: Path) -> Path:
    settings = [*SIZES, *way, f"TRAINING.seed={seed}", f"TRAINING.max_seconds={seconds}"]
    return run_experiment(load_config(NIST, settings), folder, overwrite=True, say=lambda line: None)


def main() -> None:
    report = options(
        "estimators", f"Test NLL after {SECONDS} seconds of training on MNIST 14x14, Q = 21, S = 256, B = 64"
    )
    seeds, seconds = (SEEDS[:1], 4) if report.quick else (SEEDS, SECONDS)
    images = load_dataset("MNIST", 1, IMAGES, (14, 14)).test
    nll: dict[str, list[float]] = {name: [] for name in WAYS}
    errors: dict[str, list[float]] = {name: [] for name in WAYS}
    steps: dict[str, list[int]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        for way in WAYS.values():
            train(way, 1, 1, folder)
        for seed in seeds:  # the ways in turn, so that a machine's drift meets all of them
            for name, way in WAYS.items():
                train(way, seed, seconds, folder)
                checkpoint, _, model = load_checkpoint(folder / "ckpt.h5", compile=problem_of_compiling() is None)
                evidence = annealed_log_evidence(
                    model, images, PARTICLES, random_stream(seed, "evaluation"), num_temps=TEMPERATURES
                )
                nll[name].append(-float(evidence.log_evidence.mean()))
                errors[name].append(evidence.mean_standard_error)
                steps[name].append(checkpoint.iteration)
                print(f"seed {seed}, {name}: {nll[name][-1]:.2f} nats, {steps[name][-1]} steps", flush=True)
    rows: list[Row] = [
        {
            "training": name,
            **{f"seed {seed}": round(value, 2) for seed, value in zip(seeds, nll[name], strict=True)},
            "mean NLL": round(float(np.mean(nll[name])), 2),
            "error of each": round(float(np.mean(errors[name])), 3),
            "steps": round(float(np.mean(steps[name]))),
        }
        for name in WAYS
    ]
    report.add(
        f"nats an image: {IMAGES} test images, {PARTICLES} particles in 20 repetitions, T = {TEMPERATURES}", rows
    )

    def draw(axes: Axes) -> None:
        for index, name in enumerate(WAYS):
            axes.plot(nll[name], [index] * len(seeds), "o", color="#0072B2")
        axes.set_yticks(range(len(WAYS)), list(WAYS), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("test NLL (nats an image), a point for each seed")

    report.write(draw)


if __name__ == "__main__":
    main()
