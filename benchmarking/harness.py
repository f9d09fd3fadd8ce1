"""What the benchmarks share: interleaved timing, peak memory, and results as text, CSV and picture.

Machines are noisy and drift. Candidates are therefore timed in turn, round after round, each after a call that is not
timed; medians are quoted, with quartiles beside them, and ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib.metadata
import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

from cli.main import M_MMAP_THRESHOLD, keep_freed_memory
from lvkam.build import problem_of_compiling
from lvkam.univariate import fastest_precision

RESULTS = Path(__file__).parent / "results"
NIST = Path(__file__).parents[1] / "nist_config.ini"
VANILLA = "THERMODYNAMIC_INTEGRATION.num_temps=-1"
"""Override for importance sampling."""
Row = dict[str, str | float | int]


@dataclass(frozen=True)
class Timing:
    """Seconds of each round."""

    seconds: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def milliseconds(self) -> Row:
        low, middle, high = np.percentile(1e3 * self.seconds, (25, 50, 75))
        return {"ms": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}

    def ratio(self, other: Timing) -> float:
        return float(np.median(self.seconds / other.seconds))


def variants() -> dict[str, bool]:
    """Names of lvkam's variants, and whether their kernels are compiled: both where a compiler works."""
    return {"lvkam, not compiled": False} | ({} if problem_of_compiling() else {"lvkam": True})


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 5,
    longest: float = 60,
    *,
    as_command: bool = True,
) -> dict[str, Timing]:
    """Time candidates in turn.

    Args:
        candidates: by their names.
        rounds: how often each is timed; fewer, but at least 3, if all that takes longer than `longest`.
        warmup: calls of each that are not counted.
        longest: seconds.
        as_command: keep freed memory in the process from now on, as the command `lvkam` does and no library may.
    """
    if as_command:
        keep_freed_memory()
    for call in candidates.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    began = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - began > longest:
            break
        for name, call in candidates.items():
            call()  # so that the caches hold what they would hold in a loop of this candidate
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(np.array(values)) for name, values in seconds.items()}


def peak_memory(call: Callable[[], object]) -> float | None:
    """MiB by which a call raises the process's memory at its highest; None where the system does not tell.

    From now on each larger tensor gets pages of its own, which go back when it does, so that holes in the allocator's
    memory are not counted. That is slow: what follows is no longer timed as in an ordinary process.
    """
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") and os.access(clear, os.W_OK)):
        return None
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.malloc_trim(0)

    def read(key: str) -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024

    clear.write_text("5")  # the highest so far is forgotten
    before = read("VmRSS")
    call()
    return read("VmHWM") - before


@dataclass
class Report:
    """A benchmark's results: tables under headings, and one picture."""

    name: str
    title: str
    quick: bool
    folder: Path
    tables: list[tuple[str, list[Row]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    """Where all was measured, as `machine` says it; here and now if none is named."""

    def add(self, heading: str, rows: Sequence[Row]) -> None:
        self.tables.append((heading, list(rows)))
        print(f"{heading}\n{as_text(rows)}\n", flush=True)

    def write(self, *draw: Callable[[Axes], None]) -> None:
        """Text, CSV and a picture with a panel for each function."""
        self.folder.mkdir(parents=True, exist_ok=True)
        quick = ["a quick run: few rounds, few sizes"] if self.quick else []
        parts = [
            self.title,
            *(self.machines or [machine()]),
            *quick,
            *self.notes,
            *(f"{heading}\n{as_text(rows)}" for heading, rows in self.tables),
        ]
        (self.folder / f"{self.name}.txt").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        columns = list(dict.fromkeys(key for _, rows in self.tables for row in rows for key in row))
        with (self.folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["table", *columns], lineterminator="\n")
            writer.writeheader()
            for heading, rows in self.tables:
                writer.writerows({"table": heading, **row} for row in rows)
        size = (6.4 if len(draw) == 1 else 4.8 * len(draw), 4.0)
        figure, panels = plt.subplots(1, len(draw), figsize=size, layout="constrained", squeeze=False)
        for fill, axes in zip(draw, panels.flat, strict=True):
            fill(axes)
        figure.suptitle(textwrap.fill(self.title, 80), fontsize=9)
        figure.savefig(self.folder / f"{self.name}.png", dpi=100)
        plt.close(figure)


def as_text(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)


def _cell(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> str:
    """Where and under what settings something was measured."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (ln.split(":")[1].strip() for ln in info.read_text().splitlines() if ln.startswith("model name")), model
        )
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    units = "with" if fastest_precision("cpu") == torch.bfloat16 else "no"
    return (
        f"{date.today()}, {model}, {units} bfloat16 units, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}{_peer_versions()}, OMP_WAIT_POLICY {policy}"
    )


def _peer_versions() -> str:
    installed = {
        d.name: d.version for d in importlib.metadata.distributions() if d.name in {"pykan", "inkan", "flashkan"}
    }
    return "".join(f", {name} {version}" for name, version in sorted(installed.items()))


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], label: str) -> None:
    """Horizontal bars on a logarithmic scale, each with its value."""
    drawn = axes.barh(range(len(names)), values, color=plt.get_cmap("cividis")(0.35))
    axes.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.set_xlabel(label)


def option_parser(name: str, title: str) -> argparse.ArgumentParser:
    """`--quick` and `--output`, which all benchmarks have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarking.{name}", description=title)
    parser.add_argument("--quick", action="store_true", help="few rounds and sizes: to see that it works")
    parser.add_argument("--output", type=Path, help="folder for the results")
    return parser


def begin(name: str, title: str, arguments: argparse.Namespace) -> Report:
    """A report in the folder asked for."""
    folder = arguments.output or (RESULTS / "quick" if arguments.quick else RESULTS)
    tqdm.write(f"{name}: {title}", file=sys.stderr)
    return Report(name, title, arguments.quick, folder)


def options(name: str, title: str) -> Report:
    """Read `--quick` and `--output` and begin a report."""
    return begin(name, title, option_parser(name, title).parse_args())
