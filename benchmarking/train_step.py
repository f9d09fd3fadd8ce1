"""A training step at the sizes of nist_config.ini, beside a straightforward port and its own matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from benchmarking.harness import NIST, VANILLA, Row, bars, interleave, options, variants
from benchmarking.peers import Floor, PortedModel, prior_floor
from lvkam import LVKAM, build_model, build_objective, load_config
from lvkam.config import Config
from lvkam.data import load_dataset
from lvkam.optimizers import build_optimizer
from lvkam.sampling import CellTable
from lvkam.training import random_stream

SAMPLES = (64, 1024)
SETTLED = 200
"""Steps before anything is timed: a trained model has fewer samples of weight than a new one."""


def training_step(model: LVKAM, config: Config, batches: list[Tensor]) -> Callable[[], None]:
    objective, rng = build_objective(config), random_stream(1, "training")
    optimizer = build_optimizer("adam", model.parameters(), config.optimizer.learning_rate)
    endless = itertools.cycle(batches)

    def step() -> None:
        loss = objective.estimate(model, next(endless), rng).loss
        optimizer.zero_grad()
        loss.backward()
        if not torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).isfinite():
            raise FloatingPointError("a gradient is not finite")
        optimizer.step()

    return step


def ported_step(port: PortedModel, config: Config, batches: list[Tensor]) -> Callable[[], None]:
    rng = random_stream(1, "training")
    optimizer = torch.optim.Adam(port.parameters(), lr=config.optimizer.learning_rate)
    endless = itertools.cycle(batches)

    def step() -> None:
        loss = port.loss(next(endless), config.training.num_samples, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def fused_step(parameters: list[nn.Parameter]) -> Callable[[], None]:
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    for parameter in copies:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam(copies, lr=1e-3, fused=True)
    return optimizer.step


def carrying(model: LVKAM) -> list[int]:
    """How many samples carry gradient, a number for each step from now on."""
    counts: list[int] = []
    log_prob = model.prior.log_prob

    def counted(z: Tensor, table: CellTable | None = None) -> Tensor:  # only of samples that carry gradient
        counts.append(len(z))
        return log_prob(z, table)

    model.prior.log_prob = counted
    return counts


def main() -> None:
    report = options("train_step", "A training step on MNIST 14x14 at nist_config.ini's sizes, importance sampling")
    images = load_dataset("MNIST", 32000, 64, (14, 14)).train
    calls: dict[str, Callable[[], None]] = {}
    counts: dict[str, list[int]] = {}
    for num_samples in SAMPLES:
        config = load_config(NIST, [VANILLA, f"TRAINING.MC_expectation_sample_size={num_samples}"])
        batches = list(images.split(config.training.batch_size))
        for variant, compiled in variants().items():
            name = f"{variant}, S = {num_samples}"
            model = build_model(config, images.shape[1], compile=compiled)
            model.update_grids(64, random_stream(1, "training"), prior=True, generator=True)
            calls[name] = training_step(model, config, batches)
            for _ in range(20 if report.quick else SETTLED):
                calls[name]()
            counts[name] = carrying(model)
            if num_samples == SAMPLES[0] and not compiled:  # with more samples the port needs gigabytes
                for port_name, contracted in (("port", False), ("port, contracted", True)):
                    port = PortedModel(model, model.prior.table().nodes[:, 1:-1], contracted=contracted)
                    calls[f"{port_name}, S = {num_samples}"] = ported_step(port, config, batches)
            floor = f"floor, S = {num_samples}"
            num_features = config.generator.grid_size + config.generator.spline_degree + 1
            layers = list(itertools.pairwise([*config.generator.widths, images.shape[1]]))
            calls[f"{floor}: generator's products"] = Floor(layers, num_features, num_samples, input_grad=False)
            calls[f"{floor}: prior's products"] = prior_floor(model.prior, num_samples)
            calls[f"{floor}: fused Adam"] = fused_step(list(model.parameters()))
    timings = interleave(calls, 10 if report.quick else 60, longest=180)
    port = timings[f"port, S = {SAMPLES[0]}"]
    rows: list[Row] = []
    for name, timing in timings.items():
        row: Row = {"step": name, **timing.milliseconds()}
        if not name.startswith("floor"):
            size = name.rpartition(" ")[2]
            floor = sum(t.seconds for n, t in timings.items() if n.startswith(f"floor, S = {size}:"))
            row["times floor"] = float(np.median(timing.seconds / floor))
            if size == str(SAMPLES[0]):
                row["times faster than port"] = port.ratio(timing)
            if counts.get(name):
                row["samples that carry gradient"] = float(np.mean(counts[name]))
        rows.append(row)
    report.add("milliseconds a step; floors are for all S samples, without the latents' gradient", rows)
    best = "lvkam" if f"lvkam, S = {SAMPLES[0]}" in timings else "lvkam, not compiled"
    ratio = timings[f"{best}, S = {SAMPLES[1]}"].ratio(timings[f"{best}, S = {SAMPLES[0]}"])
    report.add("more samples", [{"step": best, f"S = {SAMPLES[1]} over S = {SAMPLES[0]}": ratio}])
    shown = {name: 1e3 * timing.median for name, timing in timings.items() if not name.startswith("floor")}
    report.write(lambda axes: _draw(axes, shown))


def _draw(axes: Axes, shown: dict[str, float]) -> None:
    bars(axes, list(shown), list(shown.values()), "ms a step")


if __name__ == "__main__":
    main()
