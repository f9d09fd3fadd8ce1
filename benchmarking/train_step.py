"""A training step at the sizes of nist_config.ini, beside a straightforward port and its own matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from benchmarking.harness import NIST, Row, bars, interleave, options
from benchmarking.peers import Floor, PortedModel, prior_floor
from lvkam import LVKAM, build_model, build_objective, load_config
from lvkam.compilation import compiler_problem
from lvkam.config import Config
from lvkam.data import load_dataset
from lvkam.optimizers import build_optimizer
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


def main() -> None:
    report = options("train_step", "A training step on MNIST 14x14 at nist_config.ini's sizes, importance sampling")
    rounds = 10 if report.quick else 60
    images = load_dataset("MNIST", 32000, 64, (14, 14)).train
    shown: dict[str, float] = {}
    for num_samples in SAMPLES:
        config = load_config(NIST, [f"TRAINING.MC_expectation_sample_size={num_samples}"])
        batches = list(images.split(config.training.batch_size))
        calls: dict[str, Callable[[], None]] = {}
        variants = {"lvkam, not compiled": False} | ({} if compiler_problem() else {"lvkam": True})
        model = build_model(config, images.shape[1])
        for name, compiled in variants.items():
            model = build_model(config, images.shape[1], compile=compiled)
            model.update_grids(64, random_stream(1, "training"), prior=True, generator=True)
            calls[name] = training_step(model, config, batches)
            for _ in range(20 if report.quick else SETTLED):
                calls[name]()
        port = PortedModel(model, model.prior.table().nodes[:, 1:-1])
        if num_samples == SAMPLES[0]:  # with more samples the port needs gigabytes
            calls["straightforward port"] = ported_step(port, config, batches)
        num_features = config.generator.grid_size + config.generator.spline_degree + 1
        layers = list(itertools.pairwise([*config.generator.widths, images.shape[1]]))
        generator = Floor(layers, num_features, num_samples)
        calls["floor: generator's products"] = generator
        calls["floor: prior's products"] = prior_floor(model.prior, num_samples)
        calls["floor: fused Adam"] = fused_step(list(model.parameters()))
        timings = interleave(calls, rounds)
        floor = sum(timing.seconds for name, timing in timings.items() if name.startswith("floor"))
        rows: list[Row] = []
        for name, timing in timings.items():
            row: Row = {"S": num_samples, "step": name, **timing.milliseconds()}
            if not name.startswith("floor"):
                row["times floor"] = float(np.median(timing.seconds / floor))
                if "straightforward port" in timings:
                    row["times faster than port"] = timings["straightforward port"].ratio(timing)
                shown[f"{name}, S = {num_samples}"] = 1e3 * timing.median
            rows.append(row)
        report.add(f"S = {num_samples}", rows)
    report.write(lambda axes: _draw(axes, shown))


def _draw(axes: Axes, shown: dict[str, float]) -> None:
    bars(axes, list(shown), list(shown.values()), "ms a step")


if __name__ == "__main__":
    main()
