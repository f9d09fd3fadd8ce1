"""A layer of learnt univariate functions, one for each pair of an input and an output.

    Phi_io(x) = w_base[i,o] b(x) + w_spline[i,o] sum_m coef[i,m,o] B_m(x; grid_i)

Each of the I inputs has its own grid, shared by its O functions. Written with the features
F = (B_1, ..., B_K, b) and the weights W = (w_spline coef, w_base), a layer is one matrix product: N points with
I (K+1) features each, times I (K+1) x O.

Letters: N points, I inputs, O outputs, G grid intervals, k spline degree, K basis functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvkam.splines import (
    BASES,
    Basis,
    adaptive_knots,
    evaluate_spline,
    extend_grid,
    fit_coefficients,
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


def glorot_normal(num_inputs: int, num_outputs: int, rng: torch.Generator) -> Tensor:
    """Normal with variance 2 / (I + O), (I, O) (Glorot and Bengio 2010, equation 16 for a normal)."""
    return torch.randn(num_inputs, num_outputs, generator=rng) * math.sqrt(2 / (num_inputs + num_outputs))


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
        self.coef = nn.Parameter(fit_coefficients(self.basis(knots.T), noise).float())  # (I, K, O)

    @property
    def bandwidth(self) -> Tensor | None:
        """eta > 0, or None where the basis has none."""
        return self.log_bandwidth.exp() if self.family.basis.has_bandwidth else None

    def basis(self, x: Tensor) -> Tensor:
        """B_m(x_ni; grid_i): (N, I) -> (N, I, K), in the dtype of `x`."""
        bandwidth = self.bandwidth
        return self.family.basis.evaluate(
            x, self.grid.to(x.dtype), self.family.degree, None if bandwidth is None else bandwidth.to(x.dtype)
        )

    def features(self, x: Tensor) -> Tensor:
        """Basis functions and base activation of each input: (N, I) -> (N, I, K+1)."""
        return torch.cat((self.basis(x), self.family.activation(x).unsqueeze(-1)), dim=-1)

    def weight(self) -> Tensor:
        """What the features are multiplied by: (I, K+1, O)."""
        return torch.cat((self.coef * self.w_spline.unsqueeze(1), self.w_base.unsqueeze(1)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """sum_i Phi_io(x_ni): (N, I) -> (N, O)."""
        return self.features(x).flatten(1) @ self.weight().flatten(0, 1)

    def functions(self, x: Tensor) -> Tensor:
        """Phi_io(x_ni), each function by itself: (N, I) -> (N, I, O)."""
        return self.combine(self.features(x))

    def combine(self, features: Tensor) -> Tensor:
        """`functions` from features computed before: (N, I, K+1) -> (N, I, O)."""
        return evaluate_spline(features, self.weight())

    @torch.no_grad()
    def update_grid(self, x: Tensor) -> None:
        """Move the knots to where the inputs lie, and refit the splines to their previous values there.

        The idea of pykan's `update_grid_from_samples` (Liu et al. 2024, section 2.5); in float64.

        Args:
            x: inputs, (N, I).

        Raises:
            FloatingPointError: an input is not finite; nothing is changed then.
        """
        x = x.double()
        if not torch.isfinite(x).all():
            raise FloatingPointError("grid update: an input of the layer is not finite")
        previous = evaluate_spline(self.basis(x), self.coef.double())
        knots = adaptive_knots(x, self.family.grid_size, self.family.grid_update_ratio)
        self.grid.copy_(extend_grid(knots, self.family.degree))
        self.coef.copy_(fit_coefficients(self.basis(x), previous))
