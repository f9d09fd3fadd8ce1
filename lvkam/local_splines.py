"""Sums of B-splines by those few that are not zero at a point, in C++ compiled for this processor.

    out_no = sum_i s_io(x_ni),   s_io(x) = sum_m coef[i, m, o] B_m(x; grid_i),   B_m(x) = 0 but for k + 1 of the K

Written as a product of matrices (`lvkam/univariate.py`), K numbers of each input are multiplied, most of them zero;
here k + 1 are. `local_splines.cpp` beside this file is compiled when first needed, and kept among torch's compiled
kernels.

Letters: N points, I inputs, O outputs, k spline degree, M = G + 1 + 2k extended knots, K = G + k basis functions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-fast-math", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC",
)  # fmt: skip
"""OpenMP's threads are torch's own, and as many. No order of sums is left to the compiler."""

LANES = 16
"""Outputs are computed in multiples of it."""

DEGREES = range(1, 6)
"""That there are kernels for."""


class _Layer(ctypes.Structure):
    """`struct Layer` of the C++ file."""

    _fields_ = (
        ("points", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("knots", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("grid", ctypes.c_void_p),
        ("even", ctypes.c_bool),
    )


def _run(*command: str) -> bytes:
    """What a compiler writes.

    Raises:
        RuntimeError: it is not there, or fails, in one line.
    """
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        told = next((line for line in lines if "error" in line), lines[0] if lines else None)
        raise RuntimeError(f"{command[0]}: {told or f'exit status {done.returncode}'}")
    return done.stdout


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, compiled unless that has been done for this processor, by this compiler, from this source.

    Raises:
        RuntimeError: no compiler works here, or what it has made cannot be kept or loaded.
    """
    # torch is asked for its folder only now, since this loads its compiler
    from torch._inductor.runtime.runtime_utils import cache_dir  # pyright: ignore[reportPrivateImportUsage]

    compiler = (*shlex.split(os.environ.get("CXX") or "g++"), *FLAGS)
    # the compiler's own names tell its version and what the processor can do
    names = _run(*compiler, "-dM", "-E", "-x", "c++", os.devnull)
    try:
        key = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), names, shlex.join(compiler).encode()))).hexdigest()
        path = Path(cache_dir()) / "lvkam" / f"{SOURCE.stem}-{key[:16]}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / path.name
                _run(*compiler, str(SOURCE), "-o", str(made))
                made.replace(path)  # whole or not at all, whoever else compiles it now
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"compiled kernels: {error}") from error
    layer, degree, numbers = ctypes.POINTER(_Layer), ctypes.c_int, ctypes.c_void_p
    for function, *arguments in (
        (found.spline_sums, layer, degree, numbers, numbers, numbers),
        (found.spline_input_gradients, layer, degree, numbers, numbers, numbers, numbers),
        (found.spline_coef_gradients, layer, degree, numbers, numbers),
        (found.spline_memory, layer, degree),
    ):
        function.argtypes, function.restype = arguments, None
    found.spline_memory.restype = ctypes.c_int64
    return found


def kernel_problem() -> str | None:
    """Why the kernels cannot be had here, in one line, or None."""
    try:
        library()
    except RuntimeError as error:
        return str(error)
    return None


def _layer(x: Tensor, grid: Tensor, even: bool, degree: int, coef: Tensor, out: Tensor) -> _Layer:
    """What the kernels are told; they go by addresses, so that all must be as they take it.

    `out` are the outputs or their gradient, (N, O), `coef` the coefficients or theirs, (I, K, O).
    """
    assert x.ndim == grid.ndim == out.ndim == 2
    outputs = out.shape[1]
    assert x.shape[1] == len(grid)
    assert len(out) == len(x)
    assert coef.shape == (len(grid), grid.shape[1] - 1 - degree, outputs)
    assert degree in DEGREES
    for tensor in (x, grid, coef, out):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.device.type == "cpu"
    return _Layer(len(x), x.shape[1], outputs, grid.shape[1], x.data_ptr(), grid.data_ptr(), even)


def _memory(layer: _Layer, degree: int) -> Tensor:
    """For the coefficients as the kernels read them."""
    return torch.empty(library().spline_memory(layer, degree), dtype=torch.float32, device="cpu")


def add_sums(x: Tensor, grid: Tensor, even: bool, degree: int, coef: Tensor, out: Tensor) -> Tensor:
    """Add the sums of splines to `out`, and return it.

    All tensors are contiguous, float32, on the CPU.

    Args:
        x: (N, I).
        grid: extended knots, (I, M), strictly increasing.
        even: whether they are equally spaced.
        degree: k, of `DEGREES`.
        coef: (I, K, O).
        out: (N, O).

    Raises:
        RuntimeError: as `library`.
    """
    layer = _layer(x, grid, even, degree, coef, out)
    memory = _memory(layer, degree)
    library().spline_sums(layer, degree, coef.data_ptr(), memory.data_ptr(), out.data_ptr())
    return out


def input_gradients(x: Tensor, grid: Tensor, even: bool, degree: int, coef: Tensor, grad_out: Tensor) -> Tensor:
    """sum_o grad_out[n, o] s'_io(x_ni): (N, I); arguments and errors as for `add_sums`."""
    layer = _layer(x, grid, even, degree, coef, grad_out)
    memory, grad = _memory(layer, degree), torch.empty_like(x)
    library().spline_input_gradients(
        layer, degree, coef.data_ptr(), memory.data_ptr(), grad_out.data_ptr(), grad.data_ptr()
    )
    return grad


def coef_gradients(x: Tensor, grid: Tensor, even: bool, degree: int, grad_out: Tensor) -> Tensor:
    """sum_n grad_out[n, o] B_m(x_ni): (I, K, O); arguments and errors as for `add_sums`."""
    grad = x.new_empty(len(grid), grid.shape[1] - 1 - degree, grad_out.shape[1])
    layer = _layer(x, grid, even, degree, grad, grad_out)
    library().spline_coef_gradients(layer, degree, grad_out.data_ptr(), grad.data_ptr())
    return grad
