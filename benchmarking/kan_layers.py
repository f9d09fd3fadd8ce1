"""Forward and backward pass of a generator's two KAN layers, beside other libraries and the matrix products alone.

All run in an ordinary Python process, as libraries do. The command `lvkam` has freed memory kept in the process, which
spares layers with large intermediate results most of their cost; the other benchmarks do as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.interpolate import BSpline
from torch import Tensor, nn

from benchmarking.harness import Report, Row, bars, interleave, options, peak_memory
from benchmarking.peers import Floor, PortedLayer, other_libraries
from lvkam.build import problem_of_compiling
from lvkam.generator import KANGenerator
from lvkam.splines import adaptive_knots, extend_grid, features, prepare_knots
from lvkam.univariate import FunctionFamily, UnivariateFunctions

WIDTHS, GRID_SIZE, DEGREE = [101, 202, 196], 12, 3
POINTS = (64, 512, 4096)
SLOW = {"pykan": 512, "Cox-de Boor, each function": 512, "Cox-de Boor, contracted": 4096}
"""What is timed apart, and up to how many points; beyond, the first two need gigabytes."""


def adapted(family: FunctionFamily, z: Tensor) -> KANGenerator:
    generator = KANGenerator(WIDTHS, family, torch.Generator().manual_seed(1))
    generator.update_grids(z)
    return generator


def step(module: nn.Module, z: Tensor, grad: Tensor) -> Callable[[], None]:
    parameters = [p for p in module.parameters() if p.requires_grad]

    def call() -> None:
        for parameter in parameters:
            parameter.grad = None
        module(z).backward(grad)

    return call


def candidates(left_out: Set[str]) -> tuple[dict[str, nn.Module], list[str]]:
    """By name; all have grids that an update has adapted, but the other libraries, which have uniform ones."""
    z = torch.rand(256, WIDTHS[0], generator=torch.Generator().manual_seed(0)) ** 2
    plain = FunctionFamily(grid_size=GRID_SIZE, degree=DEGREE)
    families = {"lvkam, not compiled": plain}
    if problem_of_compiling() is None:
        families |= {
            "lvkam": replace(plain, compiled=True),
            "lvkam, bf16": replace(plain, compiled=True, precision=torch.bfloat16),
        }
    found: dict[str, nn.Module] = {
        name: adapted(family, z) for name, family in sorted(families.items()) if name not in left_out
    }
    layers = [layer for layer in adapted(plain, z).layers if isinstance(layer, UnivariateFunctions)]
    others, missing = other_libraries(WIDTHS, GRID_SIZE, DEGREE, left_out)
    found |= others
    for name, contracted in (("Cox-de Boor, contracted", True), ("Cox-de Boor, each function", False)):
        found[name] = nn.Sequential(*(PortedLayer(layer, contracted=contracted) for layer in layers))
    return found, missing


def measure(report: Report, num_points: int, modules: dict[str, nn.Module]) -> list[Row]:
    z = (torch.rand(num_points, WIDTHS[0], generator=torch.Generator().manual_seed(2)) ** 2).requires_grad_()
    grad = torch.randn(num_points, WIDTHS[-1], generator=torch.Generator().manual_seed(3))
    floor = Floor([(101, 202), (202, 196)], GRID_SIZE + DEGREE + 1, num_points)
    fits = {name: module for name, module in modules.items() if num_points <= SLOW.get(name, num_points)}
    calls: dict[str, Callable[[], None]] = {"matrix products alone": floor}
    calls |= {name: step(module, z, grad) for name, module in fits.items()}
    # what takes many times longer is timed apart, so that the others get enough rounds
    slow = {name for name in calls if name in SLOW}
    rounds = 7 if report.quick else 41
    timings = interleave({n: c for n, c in calls.items() if n not in slow}, rounds, as_command=False)
    rows: list[Row] = []
    for name, timing in timings.items():
        rows.append(
            {
                "N": num_points,
                "layers": name,
                **timing.milliseconds(),
                "ratio": timing.ratio(timings["matrix products alone"]),
            }
        )
    for name in sorted(slow):
        both = {"floor": floor, name: calls[name]}
        pair = interleave(both, 3 if report.quick else 7, warmup=1, as_command=False)
        rows.append(
            {"N": num_points, "layers": name, **pair[name].milliseconds(), "ratio": pair[name].ratio(pair["floor"])}
        )
    report.add(f"forward and backward pass, N = {num_points}", rows)
    return rows


def errors() -> list[Row]:
    """Largest error of the kernel's B-splines against scipy in float64, on grids that updates produce."""
    rng = torch.Generator().manual_seed(4)
    inputs = {
        "uniform": torch.rand(500, 50, generator=rng),
        "heavy tails": torch.randn(500, 50, generator=rng) ** 5,
        "two clusters": torch.rand(500, 50, generator=rng) * 1e-4 + (torch.rand(500, 50, generator=rng) > 0.5),
        "constant": torch.full((500, 50), 0.7),
        "far off": 1000 + 0.01 * torch.rand(500, 50, generator=rng),
    }
    rows: list[Row] = []
    for name, x in inputs.items():
        for ratio in (0.0, 0.05, 0.5):
            grid = extend_grid(adaptive_knots(x, GRID_SIZE, ratio), DEGREE).float()
            inside = grid[:, DEGREE] + torch.rand(2000, 50, generator=rng) * (grid[:, -DEGREE - 1] - grid[:, DEGREE])
            kernel = FunctionFamily(compiled=problem_of_compiling() is None).kernel(features)
            basis = FunctionFamily().basis
            values = kernel(inside, inside, prepare_knots(grid, DEGREE), None, basis, torch.float32)[..., :-1]
            worst = 0.0
            for i in range(50):
                # clipped in float64: a point may round onto the last knot
                knots, points = grid[i].double().numpy(), inside[:, i].double().numpy()
                points = np.clip(points, knots[DEGREE], knots[-DEGREE - 1])
                exact = BSpline.design_matrix(points, knots, DEGREE).toarray()
                worst = max(worst, float(np.abs(values[:, i].double().numpy() - exact).max()))
            gaps = grid[:, DEGREE:-DEGREE].diff(dim=1)
            rows.append(
                {
                    "inputs": name,
                    "grid_update_ratio": ratio,
                    "shortest/longest gap": float((gaps.amin(1) / gaps.amax(1)).min()),
                    "error": worst,
                }
            )
    return rows


def memory(modules: dict[str, nn.Module]) -> list[Row]:
    rows: list[Row] = []
    num_points = POINTS[-1]
    z = torch.rand(num_points, WIDTHS[0]).requires_grad_()
    grad = torch.randn(num_points, WIDTHS[-1])
    for name, module in modules.items():
        if num_points > SLOW.get(name, num_points):
            continue
        step(module, z, grad)()  # what is compiled is compiled now
        for tensor in (z, *module.parameters()):
            tensor.grad = None
        peak = peak_memory(step(module, z, grad))
        if peak is not None:
            rows.append({"N": num_points, "layers": name, "peak MiB": round(peak, 1)})
    return rows


def main() -> None:
    report = options("kan_layers", "KAN layers 101 -> 202 -> 196, cubic, 12 intervals, forward and backward")
    # each compilation takes many seconds
    modules, missing = candidates(left_out={"lvkam, bf16", "inkan"} if report.quick else set())
    report.notes += [*missing, "the other libraries' grids are uniform: they have no adaptive ones that are as fast"]
    sizes = (512,) if report.quick else POINTS
    rows = [row for num_points in sizes for row in measure(report, num_points, modules)]
    report.add("error of the cubic B-splines", errors())
    report.add("peak memory of a forward and backward pass, gradients included", memory(modules))
    shown = [row for row in rows if row["N"] == 512]

    def draw(axes: Axes) -> None:
        bars(
            axes,
            [str(r["layers"]) for r in shown],
            [float(r["ratio"]) for r in shown],
            "times the matrix products alone, N = 512",
        )

    report.write(draw)


if __name__ == "__main__":
    main()
