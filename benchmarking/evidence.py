"""Evidence of the same images by importance sampling and by annealing: do they agree, and at what price?

Six minutes, so that `run_benchmarks.sh` leaves it out: `python -m benchmarking.evidence`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes

from benchmarking.estimators import SIZES
from benchmarking.harness import NIST, VANILLA, Row, options
from cli.main import keep_freed_memory
from lvkam import load_config, load_model, run_experiment
from lvkam.build import problem_of_compiling
from lvkam.data import load_dataset
from lvkam.evidence import Evidence, annealed_log_evidence, importance_log_evidence
from lvkam.training import random_stream

IMAGES = 100


def main() -> None:
    report = options("evidence", f"Evidence of {IMAGES} test images under a model of 21 latent coordinates, two ways")
    keep_freed_memory()
    images = load_dataset("MNIST", 1, 5 if report.quick else IMAGES, (14, 14)).test
    with tempfile.TemporaryDirectory() as temporary:
        settings = [*SIZES, VANILLA, f"TRAINING.N_epochs={1 if report.quick else 10}"]
        folder = run_experiment(load_config(NIST, settings), Path(temporary) / "run", say=lambda line: None)
        model = load_model(folder / "ckpt.h5", compile=problem_of_compiling() is None)
    rng = random_stream(1, "evaluation")
    ways: dict[str, Callable[[], Evidence]] = {
        "importance, 2,000 samples": lambda: importance_log_evidence(model, images, 2000, rng),
        "importance, 40,000 samples": lambda: importance_log_evidence(model, images, 40000, rng),
        "annealed, 16 particles, 100 temperatures, 1 move": lambda: annealed_log_evidence(model, images, 16, rng),
        "annealed, 32 particles, 200 temperatures, 2 moves": lambda: annealed_log_evidence(
            model, images, 32, rng, num_temps=200, moves=2
        ),
    }
    rows: list[Row] = []
    found: dict[str, Evidence] = {}
    for name, estimate in ways.items():
        start = time.perf_counter()
        found[name] = evidence = estimate()
        rows.append({
            "estimate": name,
            "NLL": round(-float(evidence.log_evidence.mean()), 3),
            "standard error": round(evidence.mean_standard_error, 3),
            "mean error of an image": round(float(evidence.standard_error.mean()), 3),
            "effective samples": round(float(evidence.effective_sample_size.mean()), 1),
            "lowest": round(float(evidence.effective_sample_size.min()), 1),
            "accepted": "" if evidence.acceptance is None else round(evidence.acceptance, 2),
            "seconds": round(time.perf_counter() - start, 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
    report.add(f"nats an image, {len(images)} images; annealed in 20 repetitions", rows)
    reference = found["annealed, 32 particles, 200 temperatures, 2 moves"]

    def draw(axes: Axes) -> None:
        for name, evidence in list(found.items())[1:3]:
            difference = evidence.log_evidence - reference.log_evidence
            axes.errorbar(
                reference.log_evidence,
                difference,
                evidence.standard_error,
                fmt="o",
                markersize=3,
                linewidth=0.7,
                label=name,
            )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="log p(x) by 32 particles, 200 temperatures, 2 moves", ylabel="difference to it (nats)")
        axes.legend(fontsize=8)

    report.write(draw)


if __name__ == "__main__":
    main()
