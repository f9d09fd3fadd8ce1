"""The prior by itself: tabulating, drawing and the log-density with its gradient, beside a straightforward port."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes

from benchmarking.harness import NIST, Row, bars, interleave, options, variants
from benchmarking.peers import PortedModel, prior_floor
from lvkam import build_model, load_config
from lvkam.prior import MixturePrior
from lvkam.training import random_stream

NUM_SAMPLES = 64


def calls_of(prior: MixturePrior) -> dict[str, Callable[[], object]]:
    rng = random_stream(1, "training")
    table = prior.table()
    z = prior.sample(NUM_SAMPLES, rng, table)
    return {
        "table": prior.table,
        "draws": lambda: prior.sample(NUM_SAMPLES, rng, table),
        "log-density and gradient": lambda: prior.log_prob(z, table).sum().backward(),
        "all three": lambda: prior.log_prob(prior.sample(NUM_SAMPLES, rng, now := prior.table()), now).sum().backward(),
    }


def main() -> None:
    report = options(
        "prior", f"The prior at nist_config.ini's sizes: 101 coordinates, 50 components, {NUM_SAMPLES} draws"
    )
    config = load_config(NIST)
    models = {name: build_model(config, 196, compile=compiled) for name, compiled in variants().items()}
    candidates = {
        f"{name}: {part}": call for name, model in models.items() for part, call in calls_of(model.prior).items()
    }
    some = next(iter(models.values()))
    port = PortedModel(some, some.prior.table().nodes[:, 1:-1])
    rng = random_stream(1, "training")
    candidates["port: all three"] = lambda: port.log_prob(port.sample(NUM_SAMPLES, rng)).sum().backward()
    candidates["matrix products alone"] = prior_floor(some.prior, NUM_SAMPLES)
    timings = interleave(candidates, 10 if report.quick else 60)
    rows: list[Row] = [{"what": name, **timing.milliseconds()} for name, timing in timings.items()]
    for row, timing in zip(rows, timings.values(), strict=True):
        row["times the products"] = timing.ratio(timings["matrix products alone"])
    report.add("milliseconds", rows)

    def draw(axes: Axes) -> None:
        bars(axes, list(timings), [1e3 * timing.median for timing in timings.values()], "ms")

    report.write(draw)


if __name__ == "__main__":
    main()
