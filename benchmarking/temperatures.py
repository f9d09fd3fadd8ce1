"""Cost of a training step by thermodynamic integration: T = 10, 50, 100, as in the reference's benchmark, and 1,000."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes

from benchmarking.harness import NIST, VANILLA, Row, interleave, options, variants
from benchmarking.train_step import training_step
from lvkam import build_model, load_config
from lvkam.data import load_dataset
from lvkam.training import random_stream

TEMPERATURES = (10, 50, 100, 1000)
WAYS = {"no resampling": [], "resampling": ["THERMODYNAMIC_INTEGRATION.resampler=stratified"]}
PLAIN = "importance sampling"


def steps(compiled: bool) -> dict[str, Callable[[], None]]:
    images = load_dataset("MNIST", 8192, 64, (14, 14)).train
    settings = {PLAIN: [VANILLA]}
    settings |= {
        f"T = {count}, {way}": [f"THERMODYNAMIC_INTEGRATION.num_temps={count}", *overrides]
        for way, overrides in WAYS.items()
        for count in TEMPERATURES
    }
    found = {}
    for name, overrides in settings.items():
        config = load_config(NIST, overrides)
        model = build_model(config, images.shape[1], compile=compiled)
        model.update_grids(64, random_stream(1, "training"), prior=True, generator=True)
        found[name] = training_step(model, config, list(images.split(64)))
    return found


def main() -> None:
    report = options(
        "temperatures", "A training step by thermodynamic integration (trapezoid), at nist_config.ini's sizes"
    )
    rows: list[Row] = []
    for variant, compiled in variants().items():
        timings = interleave(steps(compiled), 10 if report.quick else 40, warmup=20)
        for name, timing in timings.items():
            ratio = timing.ratio(timings[PLAIN])
            rows.append({"model": variant, "step": name, **timing.milliseconds(), "times importance sampling": ratio})
    report.add("milliseconds", rows)

    def draw(axes: Axes) -> None:
        for variant in variants():
            for way, style in zip(WAYS, ("o-", "s--"), strict=True):
                found = {
                    row["step"]: float(row["times importance sampling"]) for row in rows if row["model"] == variant
                }
                values = [found[f"T = {count}, {way}"] for count in TEMPERATURES]
                axes.plot(TEMPERATURES, values, style, label=f"{variant}: {way}")
        axes.axhline(1, color="0.7", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="temperatures T", ylabel="times a step of importance sampling")
        axes.set_xticks(TEMPERATURES, [f"{count:,}" for count in TEMPERATURES])
        axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        axes.minorticks_off()
        axes.legend(fontsize=8)

    report.write(draw)


if __name__ == "__main__":
    main()
