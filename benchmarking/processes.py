"""Several processes: measured efficiency on this machine, and what larger ones would give by count of operations.

    T(N) = operations of a process / rate + 2 (N - 1)/N * 4 parameters / bandwidth + latency * log2 N

The second table is arithmetic: its rates are those of `MACHINES`. Letters: N processes, B images, S samples, Q latent
coordinates, H hidden width, D data dimensions, K basis functions, P components.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from benchmarking.harness import Row, options
from lvkam.checkpoint import read_checkpoint

PRESET = Path(__file__).parents[1] / "config" / "mnist_quality.ini"
LAYOUTS = (("one, 1 thread", 1, 1, "batch"), ("one, 2 threads", 1, 2, "batch"),
           ("two, 1 thread each, batch", 2, 1, "batch"), ("two, 1 thread each, samples", 2, 1, "samples"))  # fmt: skip
"""Name, processes, threads of each, what they divide."""
BASIS, COMPONENTS, NODES = 15, 5, 256
BATCH, SAMPLES, CARRIED = 512, 2048, 4
"""B, S and how many samples of an image carry gradient."""


class Machine(NamedTuple):
    """What a process reaches, and what connects it."""

    name: str
    processes: tuple[int, ...]
    rate: float
    """Operations a second of a process, multiplications and additions counted by themselves."""
    bandwidth: float
    """Bytes a second by which gradients are summed."""
    latency: float
    """Seconds a step that neither shrinks with N nor with the sizes: launches, Python, random numbers."""


MACHINES = (
    Machine("8 GPUs, one node", (1, 2, 4, 8), 50e12, 200e9, 10e-3),
    Machine("64 nodes of 8 GPUs, 100 Gbit/s", (8, 64, 512), 50e12, 12.5e9, 10e-3),
)
SIZES = ((100, 196), (100, 3072), (300, 3072), (1000, 12288))
"""Q and D; H is 2 Q + 1, as in the theorem."""


def throughput(processes: int, threads: int, shard: str, seconds: float) -> float:
    """Steps a second of a training by the preset."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "lvkam"]
        values = [f"TRAINING.max_seconds={seconds:g}", f"TRAINING.shard={shard}", "TRAINING.num_generated_samples=10",
                  "TRAINING.N_test=64", "TRAINING.compile=true", "OPTIMIZER.schedule=constant"]  # fmt: skip
        overrides = [part for value in values for part in ("--set", value)]
        command = [sys.executable, *launch, "train", str(PRESET), "--output", str(run), *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        checkpoint = read_checkpoint(run / "ckpt.h5")
        return checkpoint.iteration / checkpoint.progress.seconds


def parameters(q: int, d: int) -> int:
    """Of prior and generator; each function has K + 2 of them."""
    h = 2 * q + 1
    return (q * COMPONENTS + q * h + h * d) * (BASIS + 2)


def operations(q: int, d: int, images: float, samples: float) -> float:
    """Of a step on so many images and samples: the table of the prior, forward, likelihood, backward."""
    h = 2 * q + 1
    functions = BASIS * (q * h + h * d)
    rows = min(samples, CARRIED * images)  # that carry gradient
    table = 6 * q * COMPONENTS * NODES * BASIS
    return table + 2 * samples * functions + 2 * images * samples * d + rows * (4 * functions + 4 * images * d)


def step_seconds(machine: Machine, n: int, q: int, d: int, shard: str, batch: int = BATCH) -> float:
    """T(N)."""
    images, samples = (batch / n, SAMPLES) if shard == "batch" else (batch, SAMPLES / n)
    reduced = 2 * (n - 1) / n * 4 * parameters(q, d) / machine.bandwidth
    return operations(q, d, images, samples) / machine.rate + reduced + machine.latency


def estimates() -> list[Row]:
    """Speed-ups over one process: of the same batch, by either shard, and of a batch that grows with N."""
    rows: list[Row] = []
    for machine in MACHINES:
        for q, d in SIZES:
            for n in machine.processes:
                alone = step_seconds(machine, 1, q, d, "batch")
                of = {shard: alone / step_seconds(machine, n, q, d, shard) for shard in ("batch", "samples")}
                growing = n * alone / step_seconds(machine, n, q, d, "batch", n * BATCH)
                rows.append({
                    "machine": machine.name, "Q": q, "D": d, "N": n, "parameters (M)": round(parameters(q, d) / 1e6, 1),
                    "all-reduce (ms)": round(2e3 * (n - 1) / n * 4 * parameters(q, d) / machine.bandwidth, 2),
                    "shard = batch": round(of["batch"], 2), "shard = samples": round(of["samples"], 2),
                    "batch of N x 512": round(growing, 1),
                })  # fmt: skip
    return rows


def main() -> None:
    report = options("processes", "Steps a second of one and two processes, and of larger machines on paper")
    rounds, seconds = (1, 2.0) if report.quick else (3, 20.0)
    found: dict[str, list[float]] = {name: [] for name, *_ in LAYOUTS}
    for _ in range(rounds):
        for name, processes, threads, shard in LAYOUTS:
            found[name].append(throughput(processes, threads, shard, seconds))
    alone = np.array(found[LAYOUTS[0][0]])
    rows: list[Row] = []
    for name, processes, threads, _ in LAYOUTS:
        speed = np.array(found[name])
        rows.append({
            "processes": name, "steps a second": round(float(np.median(speed)), 1),
            "speed-up": round(float(np.median(speed / alone)), 2),
            "efficiency": round(float(np.median(speed / alone)) / (processes * threads), 2),
        })  # fmt: skip
    report.add("measured: config/mnist_quality.ini, medians of rounds in turn, beside one process of one thread", rows)
    report.add("on paper", estimates())

    def draw(axes: Axes) -> None:
        for machine in MACHINES:
            for q, d in SIZES[1::2]:
                alone = step_seconds(machine, 1, q, d, "samples")
                speed = [alone / step_seconds(machine, n, q, d, "samples") for n in machine.processes]
                axes.plot(machine.processes, speed, "o-", label=f"Q {q}, D {d}: {machine.name}")
        n = [1, 512]
        axes.plot(n, n, ":", color="0.6")
        axes.set(xscale="log", yscale="log", xlabel="processes", ylabel="speed-up on paper, shard = samples")
        axes.legend(fontsize=7)

    report.write(draw)


if __name__ == "__main__":
    main()
