"""A layer of learnt univariate functions, one for each pair of an input and an output.

    Phi_io(x) = w_base[i,o] b(x) + w_spline[i,o] sum_m coef[i,m,o] B_m(x; grid_i)

Each of the I inputs has its own grid, shared by its O functions. Written with the features
F = (B_1, ..., B_K, b) and the weights W = (w_spline coef, w_base), a layer is one matrix product: N points with
I (K+1) features each, times I (K+1) x O. Being K+1 times as large as the inputs, the
features are not kept beyond one chunk of rows, but computed again for the gradient, chunk by chunk. Compiled for a
processor, B-splines in single precision are summed without the features that are zero, where that is faster
(`lvkam/local_splines.py`). These paths can be differentiated once; within `twice_differentiable` layers are computed as
they are written, for second derivatives.

Letters: N points, I inputs, O outputs, G grid intervals, k spline degree, K basis functions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvkam.compilation import ROWS, compiled, fix_last_size, rows_kept
from lvkam.local_splines import DEGREES, LANES, add_sums, coef_gradients, input_gradients
from lvkam.splines import (
    BASES,
    Basis,
    Knots,
    adaptive_knots,
    evaluate_spline,
    extend_grid,
    features,
    features_backward,
    fit_coefficients,
    prepare_knots,
    uniform_knots,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "swish": F.hardswish,  # the reference means the hard-swish by this name
    "gelu": F.gelu,
    "selu": F.selu,
    "silu": F.silu,
    "elu": F.elu,
    "celu": F.celu,
    "none": torch.zeros_like,  # no base term
}
"""The functions b, by their names in the INI file."""

CPUINFO, BF16_UNITS = Path("/proc/cpuinfo"), {"amx_bf16", "avx512_bf16"}
"""Where Linux names what processors can do, and its names of bfloat16 units: without them products take longer."""


CHUNK = 2**21
"""Features computed at a time, in numbers: they stay in the processor's cache, and memory is bounded."""

LOCAL_POINTS, LOCAL_COST = 256, 2
"""Where sums of the B-splines that are not zero are faster than products of matrices: from so many points on, and
where they take so many times fewer multiplications, since each takes longer."""

_IS_TWICE_DIFFERENTIABLE: ContextVar[bool] = ContextVar("is_twice_differentiable", default=False)


def is_twice_differentiable() -> bool:
    """Whether what is computed now can be differentiated again and again."""
    return _IS_TWICE_DIFFERENTIABLE.get()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within it layers keep all features and are differentiated by autograd alone, uncompiled, as often as wanted."""
    token = _IS_TWICE_DIFFERENTIABLE.set(True)
    try:
        yield
    finally:
        _IS_TWICE_DIFFERENTIABLE.reset(token)


@functools.cache
def fastest_precision(device_type: str) -> torch.dtype:
    """bfloat16 where a kind of device has units for its products, as far as Linux or CUDA tells; else float32."""
    if device_type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_units = CPUINFO.is_file() and not BF16_UNITS.isdisjoint(CPUINFO.read_text().split())
    return torch.bfloat16 if has_units else torch.float32


@dataclass(frozen=True)
class FunctionFamily:
    """What all functions of a layer have in common; the defaults are the INI file's."""

    basis: Basis = BASES["B-spline"]
    activation: Callable[[Tensor], Tensor] = ACTIVATIONS["silu"]
    degree: int = 3
    grid_size: int = 12
    grid_range: tuple[float, float] = (0.0, 1.0)
    grid_update_ratio: float = 0.05
    epsilon_scale: float = 0.1
    mu_scale: float = 1.0
    sigma_base: float = 1.0
    sigma_spline: float = 1.0
    bandwidth: float = 1.0
    bandwidth_trainable: bool = True
    precision: torch.dtype | None = torch.float32
    """Of the matrix products of layers that sum over their inputs; parameters and results stay float32. None: what is
    fastest where they are."""
    compiled: bool = False
    """Whether kernels are compiled; if not, they run as they are."""

    def precision_of(self, x: Tensor) -> torch.dtype:
        """Of the products of x with a matrix."""
        if x.dtype != torch.float32:
            return x.dtype  # float64 stays what it is
        return self.precision or fastest_precision(x.device.type)

    def kernel(self, function: Callable[..., Any], num_points: int = 2, inline: bool = True) -> Callable[..., Any]:
        """The function, compiled or as it is; a single point would need a compilation of its own."""
        is_compiled = self.compiled and num_points > 1 and not is_twice_differentiable()
        return compiled(function, inline) if is_compiled else function

    def rows_at_a_time(self, matrix: Tensor) -> int:
        """How many rows of features to compute before they are multiplied by a matrix."""
        numbers = CHUNK if self.compiled else CHUNK // 4  # which then takes four times as much on the way
        return max(1, (32 * numbers if matrix.is_cuda else numbers) // len(matrix))


def _plain(tensor: Any) -> Any:
    """Without graph and contiguous, as the kernels take it: each other form would be compiled for itself."""
    return None if tensor is None else tensor.detach().contiguous()


def _rows_with_gradient(grad: Tensor, multiple: int = 1) -> Tensor:
    """Rows that are not all zero; the others are of samples that carry no weight, and cost nothing: (R,)."""
    return rows_kept(grad.abs().sum(1) != 0, multiple)  # so is what is not a number


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # so it is in a backward pass that is to be differentiated itself
        raise RuntimeError(
            "layers of univariate functions can be differentiated once only, outside twice_differentiable"
        )


class _Features(torch.autograd.Function):
    """F(x), (N, I, K+1), keeping nothing but its arguments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Tensor, bandwidth: Tensor | None, knots: Knots, family: FunctionFamily
    ) -> Tensor:
        ctx.save_for_backward(x, base, bandwidth)
        ctx.knots, ctx.family = knots, family
        x, base, bandwidth = _plain(x), _plain(base), _plain(bandwidth)
        return family.kernel(features, len(x))(x, base, knots, bandwidth, family.basis, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, base, bandwidth = map(_plain, ctx.saved_tensors)
        kernel = ctx.family.kernel(features_backward, len(x))
        _, *gradients = kernel(x, base, ctx.knots, bandwidth, ctx.family.basis, grad_outputs[0].contiguous())
        return *gradients, None, None


class _SummedFunctions(torch.autograd.Function):
    """F(x) W, (N, O), a chunk of rows at a time, keeping its arguments, W and at most one chunk of features."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, I)
        base: Tensor,  # (N, I)
        bandwidth: Tensor | None,
        coef: Tensor,  # (I, K, O)
        w_spline: Tensor,  # (I, O)
        w_base: Tensor,  # (I, O)
        knots: Knots,
        family: FunctionFamily,
    ) -> Tensor:
        ctx.save_for_backward(x, base, bandwidth, coef, w_spline)
        ctx.knots, ctx.family = knots, family
        x, base, bandwidth = _plain(x), _plain(base), _plain(bandwidth)
        dtype = family.precision_of(x)
        weight = family.kernel(_weight)(_plain(coef), _plain(w_spline), _plain(w_base), dtype)
        ctx.matrix = matrix = weight.flatten(0, 1)
        rows = family.rows_at_a_time(matrix)
        out = matrix.new_empty(len(x), matrix.shape[1])
        for x_, base_, out_ in zip(x.split(rows), base.split(rows), out.split(rows), strict=True):
            values = family.kernel(features, len(x_))(x_, base_, knots, bandwidth, family.basis, dtype).flatten(1)
            torch.mm(values, matrix, out=out_)
            ctx.values = values if len(x) <= rows else None  # a single chunk is kept, more are computed again
            del values
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, base, bandwidth, coef, w_spline = map(_plain, ctx.saved_tensors)
        family, basis, knots, matrix = ctx.family, ctx.family.basis, ctx.knots, ctx.matrix
        wants_inputs, wants_matrix = any(ctx.needs_input_grad[:3]), any(ctx.needs_input_grad[3:])
        dtype, grad, rows = matrix.dtype, grad_outputs[0], family.rows_at_a_time(matrix)
        kept = _rows_with_gradient(grad, ROWS if dtype == torch.bfloat16 else 1)
        all_kept = len(kept) == len(x)
        parts = (x, base, grad) if all_kept else (x[kept], base[kept], grad[kept])
        # allocated before any chunk, so that the chunks' memory is free in one piece for the next one
        grad_x, grad_base, grad_matrix = (torch.empty_like(tensor) for tensor in (parts[0], parts[1], matrix))
        if dtype != x.dtype and len(kept) > rows:  # chunks add up in full precision
            grad_matrix = grad_matrix.to(x.dtype)
        grad_bandwidth = None if bandwidth is None else torch.zeros_like(bandwidth)

        def chunk(first: bool, x: Tensor, base: Tensor, grad: Tensor, grad_x: Tensor, grad_base: Tensor) -> None:
            # a function, so that the features of one chunk are gone before those of the next are computed
            values, grad = ctx.values if all_kept else None, grad.to(dtype)
            if wants_inputs:
                grad_features = (grad @ matrix.T).view(*x.shape, len(matrix) // x.shape[1])
                kernel = family.kernel(features_backward, len(x))
                again, for_x, for_base, for_bandwidth = kernel(
                    x, base, knots, bandwidth, basis, grad_features, values is None
                )
                values = again if values is None else values
                grad_x.copy_(for_x)
                grad_base.copy_(for_base)
                if grad_bandwidth is not None:
                    grad_bandwidth.add_(for_bandwidth)
            elif values is None:  # latents carry no gradient
                values = family.kernel(features, len(x))(x, base, knots, bandwidth, basis, dtype)
            if wants_matrix and dtype == grad_matrix.dtype:
                grad_matrix.addmm_(values.flatten(1).T, grad, beta=0 if first else 1)
            elif wants_matrix:
                product = values.flatten(1).T @ grad
                grad_matrix.copy_(product) if first else grad_matrix.add_(product)

        chunks = zip(*(tensor.split(rows) for tensor in (*parts, grad_x, grad_base)), strict=True)
        for index, part in enumerate(chunks):
            chunk(index == 0, *part)
        of_inputs = of_matrix = (None, None, None)
        if wants_inputs:
            if not all_kept:
                grad_x, grad_base = (torch.zeros_like(x).index_copy_(0, kept, g) for g in (grad_x, grad_base))
            of_inputs = grad_x, grad_base, grad_bandwidth
        if wants_matrix:
            of_matrix = family.kernel(_weight_backward)(coef, w_spline, grad_matrix.view(len(coef), -1, coef.shape[2]))
        return *of_inputs, *of_matrix, None, None


class _LocalSums(torch.autograd.Function):
    """sum_i s_io(x_ni), (N, O), without the basis functions that are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coef: Tensor, grid: Tensor, is_even: bool, degree: int) -> Tensor:
        x, coef = _plain(x), _plain(coef)  # (N, I), (I, K, O)
        ctx.save_for_backward(x, coef, grid)
        ctx.is_even, ctx.degree = is_even, degree
        return add_sums(x, grid, is_even, degree, coef, x.new_zeros(len(x), coef.shape[2]))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, coef, grid = ctx.saved_tensors
        wants_x, wants_coef, *_ = ctx.needs_input_grad
        grad = grad_outputs[0]
        kept = _rows_with_gradient(grad)
        all_kept = len(kept) == len(x)
        points, grad = (x, grad.contiguous()) if all_kept else (x.index_select(0, kept), grad.index_select(0, kept))
        grad_x = grad_coef = None
        if wants_x:
            grad_x = input_gradients(points, grid, ctx.is_even, ctx.degree, coef, grad)
            if not all_kept:
                grad_x = torch.zeros_like(x).index_copy_(0, kept, grad_x)
        if wants_coef:
            grad_coef = coef_gradients(points, grid, ctx.is_even, ctx.degree, grad)
        return grad_x, grad_coef, None, None, None


def glorot_normal(num_inputs: int, num_outputs: int, rng: torch.Generator) -> Tensor:
    """Normal with variance 2 / (I + O), (I, O) (Glorot and Bengio 2010, equation 16 for a normal)."""
    return torch.randn(num_inputs, num_outputs, generator=rng) * math.sqrt(2 / (num_inputs + num_outputs))


def _weight(coef: Tensor, w_spline: Tensor, w_base: Tensor, dtype: torch.dtype) -> Tensor:
    """W = (w_spline coef, w_base): (I, K, O), (I, O), (I, O) -> (I, K+1, O)."""
    return torch.cat((coef * w_spline.unsqueeze(1), w_base.unsqueeze(1)), dim=1).to(dtype)


def _weight_backward(coef: Tensor, w_spline: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad.to(coef.dtype)
    grad_spline = grad[:, :-1]
    return grad_spline * w_spline.unsqueeze(1), (grad_spline * coef).sum(1), grad[:, -1].clone()


class _Weight(torch.autograd.Function):
    """W from its three factors."""

    @staticmethod
    def forward(ctx: Any, coef: Tensor, w_spline: Tensor, w_base: Tensor, family: FunctionFamily) -> Tensor:
        ctx.save_for_backward(coef, w_spline)
        ctx.family = family
        return family.kernel(_weight)(_plain(coef), _plain(w_spline), _plain(w_base), coef.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        kernel = ctx.family.kernel(_weight_backward)
        return *kernel(*map(_plain, ctx.saved_tensors), grad_outputs[0].contiguous()), None


class UnivariateFunctions(nn.Module):
    """I x O univariate functions: (N, I) -> (N, O), summed over the inputs, or (N, I, O).

    Args:
        num_inputs: I.
        num_outputs: O.
        family: basis, base activation, grid and scales of the initial values.
        rng: source of the initial values.
    """

    grid: Tensor
    """Extended knots, (I, G+1+2k)."""
    log_bandwidth: Tensor
    """log of eta, (); present only where the basis has a bandwidth."""

    def __init__(self, num_inputs: int, num_outputs: int, family: FunctionFamily, rng: torch.Generator):
        super().__init__()
        self.num_inputs, self.num_outputs, self.family = num_inputs, num_outputs, family
        self._knots: tuple[Tensor, int, Knots] | None = None  # with the grid that they are of, and its version
        knots = uniform_knots(num_inputs, family.grid_size, family.grid_range)
        self.register_buffer("grid", extend_grid(knots, family.degree).float())
        if family.basis.has_bandwidth:
            log_bandwidth = torch.tensor(math.log(family.bandwidth))
            if family.bandwidth_trainable:
                self.log_bandwidth = nn.Parameter(log_bandwidth)
            else:
                self.register_buffer("log_bandwidth", log_bandwidth)

        spread = 2 * torch.randn(num_inputs, num_outputs, generator=rng) - 1
        base_scale = (family.mu_scale + family.sigma_base * spread) / math.sqrt(num_inputs)
        self.w_base = nn.Parameter(glorot_normal(num_inputs, num_outputs, rng) * base_scale)
        self.w_spline = nn.Parameter(glorot_normal(num_inputs, num_outputs, rng) * family.sigma_spline)

        noise = torch.rand(family.grid_size + 1, num_inputs, num_outputs, generator=rng) - 0.5
        noise *= family.epsilon_scale / family.grid_size
        self.coef = nn.Parameter(fit_coefficients(self.basis(knots.T), noise).float().contiguous())  # (I, K, O)

    @property
    def bandwidth(self) -> Tensor | None:
        """eta > 0, or None where the basis has none."""
        return self.log_bandwidth.exp() if self.family.basis.has_bandwidth else None

    def basis(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        """B_m(x_ni; grid_i): (N, I) -> (N, I, K), in the dtype of `x`; on the layer's own grid if None."""
        grid, bandwidth = self.grid if grid is None else grid, self.bandwidth
        return self.family.basis.evaluate(
            x, grid.to(x.dtype), self.family.degree, None if bandwidth is None else bandwidth.to(x.dtype)
        )

    def knots(self) -> Knots:
        """The grid, prepared; made anew when it has changed."""
        kept = self._knots
        if kept is None or kept[0] is not self.grid or kept[1] != self.grid._version:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training too
                knots = prepare_knots(self.grid, self.family.degree)
            if self.family.compiled:
                fix_last_size(*(t for t in (knots.grid, *knots.inverse_spans, knots.middles) if t is not None))
            kept = self._knots = (self.grid, self.grid._version, knots)
        return kept[2]

    def features(self, x: Tensor) -> Tensor:
        """Basis functions and base activation of each input: (N, I) -> (N, I, K+1)."""
        if is_twice_differentiable():
            return torch.cat((self.basis(x), self.family.activation(x).unsqueeze(-1)), dim=-1)
        features = _Features.apply(x, self.family.activation(x), self.bandwidth, self.knots(), self.family)
        assert isinstance(features, Tensor)
        return features

    def weight(self) -> Tensor:
        """What the features are multiplied by: (I, K+1, O)."""
        if is_twice_differentiable():
            return _weight(self.coef, self.w_spline, self.w_base, self.coef.dtype)
        weight = _Weight.apply(self.coef, self.w_spline, self.w_base, self.family)
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """sum_i Phi_io(x_ni): (N, I) -> (N, O)."""
        if is_twice_differentiable():
            return self.features(x).flatten(1) @ self.weight().flatten(0, 1)
        if self.leaves_out_zeros(x):
            coef, is_even = self.coef * self.w_spline.unsqueeze(1), self.knots().middles is not None
            sums = _LocalSums.apply(x, coef, self.grid, is_even, self.family.degree)
            assert isinstance(sums, Tensor)
            return torch.addmm(sums, self.family.activation(x), self.w_base)
        out = _SummedFunctions.apply(
            x, self.family.activation(x), self.bandwidth, self.coef, self.w_spline, self.w_base, self.knots(),
            self.family,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out

    def leaves_out_zeros(self, x: Tensor) -> bool:
        """Whether sums go without the basis functions that are zero at x, (N, I): compiled, where it is faster."""
        family, (_, num_functions, num_outputs) = self.family, self.coef.shape
        registers = -(-num_outputs // LANES) * LANES
        return (
            family.compiled
            and family.basis == BASES["B-spline"]
            and family.degree in DEGREES
            and x.device.type == "cpu"
            and x.dtype == self.grid.dtype == self.coef.dtype == family.precision_of(x) == torch.float32
            and x.ndim == 2
            and x.shape[1] == self.num_inputs  # other shapes are told by the products
            and len(x) >= LOCAL_POINTS
            and LOCAL_COST * (family.degree + 1) * registers <= (num_functions + 1) * num_outputs
            and not is_twice_differentiable()
        )

    def functions(self, x: Tensor) -> Tensor:
        """Phi_io(x_ni), each function by itself: (N, I) -> (N, I, O)."""
        return evaluate_spline(self.features(x), self.weight())

    @torch.no_grad()
    def update_grid(self, x: Tensor) -> str | None:
        """Move the knots to where the inputs lie, and refit the splines to their previous values there.

        The idea of pykan's `update_grid_from_samples` (Liu et al. 2024, section 2.5); in float64.

        Args:
            x: inputs, (N, I).

        Returns:
            None, or why it would have spoilt the layer, which then stays as it was.
        """
        x = x.double()
        if not x.isfinite().all():
            return "an input is not finite"
        knots = adaptive_knots(x, self.family.grid_size, self.family.grid_update_ratio)
        grid = extend_grid(knots, self.family.degree).to(self.grid)
        if not (grid.isfinite().all() and (grid.diff(dim=1) > 0).all()):
            return "the new knots are not finite or not increasing"
        try:
            coef = fit_coefficients(self.basis(x, grid), evaluate_spline(self.basis(x), self.coef.double()))
        except (FloatingPointError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            return str(error).splitlines()[0]
        coef = coef.to(self.coef)
        if not coef.isfinite().all():
            return "a new coefficient is not finite"
        self.grid.copy_(grid)
        self.coef.copy_(coef)
        return None
