"""Sums of those B-splines that are not zero, against scipy's in float64, and how their kernels are compiled."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor

from lvkam import local_splines
from lvkam.splines import extend_grid, uniform_knots
from tests.conftest import require_compiler, stream

Array = NDArray[np.float64]

ROUNDING = 2e-5
"""Of float32, as a share of the largest number: sums of up to 130 inputs, and slopes of up to 20 a unit."""

SHAPES = [
    # N, I, O, G: one of everything, sizes beside those of registers, tiles and blocks; several blocks of outputs and
    # several parts of the inputs
    (1, 1, 1, 1),
    (15, 17, 16, 3),
    (37, 15, 128, 12),
    (50, 130, 33, 12),
    (20, 120, 210, 12),
    (16, 3, 450, 30),
]


def some_grid(num_inputs: int, grid_size: int, degree: int, even: bool) -> Tensor:
    """Extended knots about [-2, 2], (I, M)."""
    knots = uniform_knots(num_inputs, grid_size, (-2, 2))
    if not even:
        knots += (torch.rand(knots.shape, dtype=knots.dtype, generator=stream(1)) - 0.5) * 3.2 / grid_size
    return extend_grid(knots, degree).float()


def some_inputs(num_points: int, grid: Tensor) -> Tensor:
    """Points inside the grids and outside, on knots and at the last one, (N, I)."""
    x = 2 * torch.randn(num_points, len(grid), generator=stream(2))
    where = torch.randint(grid.shape[1], x.shape, generator=stream(3))
    on_knots = torch.rand(x.shape, generator=stream(4)) < 0.2
    return torch.where(on_knots, grid.gather(1, where.T).T, x).contiguous()


def some_numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=stream(seed))


def slow_functions(x: Tensor, grid: Tensor, degree: int, slope: bool = False) -> Array:
    """B_m(x_ni), or their derivatives, by scipy, zero outside the grids: (N, I, K)."""
    columns = []
    for points, knots in zip(x.double().T.numpy(), grid.double().numpy(), strict=True):
        supports = [knots[m : m + degree + 2] for m in range(len(knots) - 1 - degree)]
        elements = [BSpline.basis_element(support, extrapolate=False) for support in supports]
        values = [(element.derivative() if slope else element)(points) for element in elements]
        # beside its support an element is not a number, and at its last knot it has not ended yet
        inside = np.stack([points < support[-1] for support in supports], 1)
        columns.append(np.where(inside, np.nan_to_num(np.stack(values, 1)), 0))
    return np.stack(columns, 1)


def check(found: Tensor, expected: Array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=ROUNDING * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("points", "inputs", "outputs", "grid_size"), SHAPES)
def test_sums_and_gradients_are_those_of_scipy(
    points: int, inputs: int, outputs: int, grid_size: int, degree: int, even: bool
) -> None:
    require_compiler()
    grid = some_grid(inputs, grid_size, degree, even)
    x = some_inputs(points, grid)
    if degree == 1 and even:  # the slope jumps at knots, where rounding decides; layers take the other way
        x += 1e-3
    coef, grad = some_numbers(5, inputs, grid_size + degree, outputs), some_numbers(6, points, outputs)
    before = some_numbers(7, points, outputs)
    values, slopes = slow_functions(x, grid, degree), slow_functions(x, grid, degree, slope=True)
    exact, exact_grad = coef.double().numpy(), grad.double().numpy()
    layer = (x, grid, even, degree)

    out = before.clone()
    assert local_splines.add_sums(*layer, coef, out) is out
    check(out, before.numpy() + np.einsum("nik,iko->no", values, exact))
    check(local_splines.input_gradients(*layer, coef, grad), np.einsum("nik,iko,no->ni", slopes, exact, exact_grad))
    check(local_splines.coef_gradients(*layer, grad), np.einsum("nik,no->iko", values, exact_grad))


@pytest.mark.parametrize("even", [True, False])
def test_no_points_at_all(even: bool) -> None:
    require_compiler()
    grid = some_grid(3, 12, 3, even)
    x, coef, none = torch.zeros(0, 3), some_numbers(5, 3, 15, 4), torch.zeros(0, 4)
    assert local_splines.add_sums(x, grid, even, 3, coef, none).shape == (0, 4)
    assert local_splines.input_gradients(x, grid, even, 3, coef, none).shape == (0, 3)
    assert (local_splines.coef_gradients(x, grid, even, 3, none) == 0).all()


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_in_its_row(bad: float, even: bool) -> None:
    require_compiler()
    grid = some_grid(20, 12, 3, even)
    x, coef, grad = some_inputs(40, grid), some_numbers(5, 20, 15, 30), some_numbers(6, 40, 30)
    whole = local_splines.add_sums(x, grid, even, 3, coef, torch.zeros(40, 30))
    slopes = local_splines.input_gradients(x, grid, even, 3, coef, grad)
    x[7, 4] = bad
    found = local_splines.add_sums(x, grid, even, 3, coef, torch.zeros(40, 30))
    found_slopes = local_splines.input_gradients(x, grid, even, 3, coef, grad)
    assert found[7].isnan().all()
    assert found_slopes[7, 4].isnan()
    assert local_splines.coef_gradients(x, grid, even, 3, grad)[4].isnan().any()
    others = torch.arange(40) != 7
    assert torch.equal(found[others], whole[others])
    assert torch.equal(found_slopes[others], slopes[others])


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("far", [10.0, 1e4, 1e8, 3e38])
@pytest.mark.parametrize("width", [2, 5e-4])
def test_far_outside_all_is_zero(width: float, far: float, even: bool) -> None:
    """Also where differences from knots would round to one another, which are closest where a grid is narrow."""
    require_compiler()
    for degree in local_splines.DEGREES:
        grid = some_grid(17, 12, degree, even) * (width / 2)
        x = torch.full((20, 17), far)
        x[::2] *= -1
        coef, grad = some_numbers(5, 17, 12 + degree, 30), some_numbers(6, 20, 30)
        layer = (x, grid, even, degree)
        assert (local_splines.add_sums(*layer, coef, torch.zeros(20, 30)) == 0).all()
        assert (local_splines.input_gradients(*layer, coef, grad) == 0).all()
        assert (local_splines.coef_gradients(*layer, grad) == 0).all()


def test_threads_change_no_bit() -> None:
    require_compiler()
    grid = some_grid(100, 12, 3, True)
    x, coef, grad = some_inputs(300, grid), some_numbers(5, 100, 15, 250), some_numbers(6, 300, 250)
    layer, threads = (x, grid, True, 3), torch.get_num_threads()
    found: list[tuple[Tensor, ...]] = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert local_splines.library().spline_threads() == count  # they are torch's
            found.append((
                local_splines.add_sums(*layer, coef, torch.zeros(300, 250)),
                local_splines.input_gradients(*layer, coef, grad),
                local_splines.coef_gradients(*layer, grad),
            ))  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_what_the_kernels_do_not_take_never_reaches_them() -> None:
    grid = some_grid(3, 12, 3, True)
    x, coef, out = torch.zeros(5, 3), torch.zeros(3, 15, 4), torch.zeros(5, 4)
    for wrong in (
        (x[:, :2], grid, True, 3, coef, out), (x, grid, True, 6, coef, out), (x, grid, True, 2, coef, out),
        (x.double(), grid, True, 3, coef, out), (x, grid, True, 3, coef, out[:4]),
        (x, grid, True, 3, coef, out.to("meta")), (x, grid, True, 3, coef[..., :3], out),
        (x, grid, True, 3, coef.transpose(0, 1), out),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            local_splines.add_sums(*wrong)
        with pytest.raises(AssertionError):
            local_splines.input_gradients(*wrong)


def test_registers_are_as_wide_here_as_there() -> None:
    assert f"constexpr int LANES = {local_splines.LANES};" in local_splines.SOURCE.read_text(encoding="utf-8")


@pytest.fixture
def compiler() -> None:
    """Which is found before `unloaded` unloads what it has made."""
    require_compiler()


@pytest.fixture
def unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of compiled files, empty, with nothing loaded before."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    local_splines.library.cache_clear()
    yield folder / "lvkam"
    local_splines.library.cache_clear()


@pytest.mark.usefixtures("compiler")
def test_compiled_once_and_for_all(unloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_splines.kernel_problem() is None
    (made,) = unloaded.iterdir()
    assert made.suffix == ".so"
    time = made.stat().st_mtime_ns
    local_splines.library.cache_clear()
    assert isinstance(local_splines.library(), ctypes.CDLL)
    assert [(path, path.stat().st_mtime_ns) for path in unloaded.iterdir()] == [(made, time)]
    monkeypatch.setattr(local_splines, "FLAGS", (*local_splines.FLAGS, "-DOTHER"))
    local_splines.library.cache_clear()
    assert local_splines.kernel_problem() is None
    assert len(list(unloaded.iterdir())) == 2  # another command, another file


@pytest.mark.parametrize("kind", ["missing", "failing", "telling", "silent"])
def test_no_compiler_is_one_line(kind: str, unloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "c++"
    if kind != "missing":
        lines = {"failing": "first second", "telling": "first an-error last"}.get(kind, "")
        program.write_text(f"#!/bin/sh\nfor line in {lines}; do echo $line >&2; done\nexit 4\n")
        program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    said = {
        "missing": "No such file or directory",
        "failing": "first",
        "telling": "an-error",
        "silent": "exit status 4",
    }[kind]
    assert local_splines.kernel_problem() == f"{program}: {said}"
    with pytest.raises(RuntimeError, match=said):
        local_splines.library()
    assert not unloaded.exists()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("which", ["torch's", "ours"])
def test_a_folder_that_cannot_be_is_one_line(which: str, unloaded: Path) -> None:
    file = unloaded.parent if which == "torch's" else unloaded
    file.parent.mkdir(exist_ok=True)
    file.write_text("not a folder")
    problem = local_splines.kernel_problem()
    assert problem is not None
    assert problem.startswith("compiled kernels: [Errno ")
    assert str(file) in problem
    assert len(problem.splitlines()) == 1


@pytest.mark.usefixtures("compiler")
def test_a_compiler_may_have_options(unloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{os.environ.get('CXX') or 'g++'} -DOTHER")
    assert local_splines.kernel_problem() is None
    assert len(list(unloaded.iterdir())) == 1
