"""What a training step costs as one size after the other is doubled: time, peak memory and the fitted exponents."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from benchmarking.harness import NIST, VANILLA, Row, interleave, options, peak_memory
from benchmarking.train_step import training_step
from lvkam import build_model, load_config
from lvkam.build import problem_of_compiling
from lvkam.data import load_dataset
from lvkam.training import random_stream

BASE = {"S": 256, "B": 64, "Q": 50, "P": 20, "G": 12}
DOUBLED = {
    "S": (256, 512, 1024, 2048),
    "B": (64, 128, 256, 512),
    "Q": (25, 50, 100, 200),
    "P": (20, 40, 80, 160),
    "G": (6, 12, 24, 48),
}
FASTEST = "lvkam" if problem_of_compiling() is None else "lvkam, not compiled"


def overrides(sizes: dict[str, int]) -> list[str]:
    return [
        VANILLA,
        f"MIX_PRIOR.layer_widths={sizes['P']}, {sizes['Q']}",
        f"KAN_LIKELIHOOD.expert_widths={sizes['Q']}, 100",
        f"MIX_PRIOR.grid_size={sizes['G']}",
        f"KAN_LIKELIHOOD.grid_size={sizes['G']}",
        f"TRAINING.batch_size={sizes['B']}",
        f"TRAINING.MC_expectation_sample_size={sizes['S']}",
    ]


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    report = options("scaling", "Cost of a training step as each size is doubled, from S 256, B 64, Q 50, P 20, G 12")
    images = load_dataset("MNIST", 8192, 64, (14, 14)).train
    rows: list[Row] = []
    fitted: list[Row] = []
    curves: dict[str, tuple[tuple[int, ...], list[float]]] = {}
    for letter, whole in DOUBLED.items():
        sizes = whole[:2] if report.quick else whole
        steps = {}
        for size in sizes:
            config = load_config(NIST, overrides({**BASE, letter: size}))
            model = build_model(config, images.shape[1], compile=FASTEST == "lvkam")
            model.update_grids(64, random_stream(1, "training"), prior=True, generator=True)
            steps[str(size)] = training_step(model, config, list(images.split(config.training.batch_size)))
            for _ in range(20):  # past the first steps, in which all samples carry weight
                steps[str(size)]()
        memory = {size: peak_memory(step) for size, step in steps.items()}
        timings = interleave(steps, 5 if report.quick else 25)
        for size, timing in timings.items():
            peak = memory[size]
            rows.append({"size": letter, "value": int(size), **timing.milliseconds()})
            rows[-1]["peak MiB"] = "" if peak is None else round(peak, 1)
        curve = [1e3 * timing.median for timing in timings.values()]
        curves[letter] = (sizes, curve)
        fitted.append(
            {"size": letter, "from": sizes[0], "to": sizes[-1], "exponent of the time": exponent(sizes, curve)}
        )
    report.add("time, and peak memory of a step beside its parameters, gradients and optimiser state", rows)
    report.add("fitted exponents", fitted)

    def draw(axes: Axes) -> None:
        for letter, (sizes, curve) in curves.items():
            axes.plot(np.array(sizes) / sizes[0], curve, "o-", label=letter)
        axes.set(xscale="log", yscale="log", xlabel="times the smallest", ylabel="ms a step")
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=8)

    report.write(draw)


if __name__ == "__main__":
    main()
