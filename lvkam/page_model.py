"""The generator as numbers that a web page can compute with: `templates/generator.js` is the other half.

    out_o = sum_i sum_m F_m(x_i) W[i, m, o],   F = (B_1, ..., B_K, b),   layer after layer

Weights are float32 where the page has room for them; else those of the last layers, whose errors no other layer
amplifies, are 16-bit integers, each row (i, m) with a scale of its own; else the page gets frames that were computed
here, and picks among these.

Letters: N points, I inputs, O outputs, K basis functions, Q latent coordinates, D data dimensions, L levels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvkam.config import Config
from lvkam.model import LVKAM
from lvkam.univariate import UnivariateFunctions, twice_differentiable

MOST_CHARACTERS = 3_600_000
"""Of weights, written as base64: with pictures and curves a page stays under 5 MB."""

TOLERANCE = 3e-4
"""How far 16-bit weights may move the data of the latents tried, whose range is 1; the page promises 1e-3 for all."""

LEVELS = 129
"""Quantiles of each coordinate, between `LOWEST` and `HIGHEST`."""

LOWEST, HIGHEST = 0.01, 0.99


def encode_array(array: np.ndarray) -> dict[str, Any]:
    """A float32, int16 or uint8 array as the page's `decodeArray` takes it, little-endian."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "data": base64.b64encode(data.tobytes()).decode("ascii")}


def _quantised(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Integers (I, K+1, O) and the scale of each row, (I, K+1), that restore a weight."""
    scale = weight.abs().amax(-1).clamp(min=1e-30) / 32767
    return torch.round(weight / scale.unsqueeze(-1)).to(torch.int16).numpy(), scale.numpy()


def _layers(model: LVKAM) -> list[UnivariateFunctions]:
    return [layer for layer in model.generator.layers if isinstance(layer, UnivariateFunctions)]


def _decoded(model: LVKAM, weights: Sequence[Tensor], z: Tensor) -> Tensor:
    """What a generator of these weights makes of latents: (N, Q) -> (N, D)."""
    with twice_differentiable():
        for layer, weight in zip(_layers(model), weights, strict=True):
            z = layer.features(z).flatten(1) @ weight.flatten(0, 1)
    return model.output_activation(z)


@torch.no_grad()
def generator_payload(
    model: LVKAM, config: Config, z: Tensor, most_characters: int = MOST_CHARACTERS
) -> dict[str, Any] | None:
    """What `makeGenerator` takes, or None where the weights have no room or 16 bits do not do.

    Args:
        model: on the CPU.
        config: its configuration, which names basis and activations.
        z: latents to try 16-bit weights with, (N, Q).
        most_characters: what the weights may take.
    """
    settings, layers = config.generator, _layers(model)
    with twice_differentiable():  # in full precision, whatever the model multiplies in: so does the page
        weights = [layer.weight() for layer in layers]
    sizes, count = [weight.numel() / 6 for weight in weights], len(weights)  # six bits are a character
    floats = next(
        (n for n in range(count, -1, -1) if 32 * sum(sizes[:n]) + 16 * sum(sizes[n:]) <= most_characters), None
    )
    if floats is None:
        return None
    quantised = [_quantised(weight) for weight in weights[floats:]]
    restored = [torch.from_numpy(integers * scale[..., None]) for integers, scale in quantised]
    exact, rounded = (_decoded(model, some, z) for some in (weights, weights[:floats] + restored))
    # of data beyond 1, relative to it
    if not ((rounded - exact) / exact.abs().clamp(min=1)).abs().max() <= TOLERANCE:
        return None
    coded = [{"weight": encode_array(weight.numpy())} for weight in weights[:floats]]
    coded += [{"weight": encode_array(integers), "scale": encode_array(scale)} for integers, scale in quantised]
    return {
        "output": settings.output_activation,
        "layers": [
            {
                "basis": settings.spline_function,
                "degree": settings.spline_degree,
                "bandwidth": 1.0 if layer.bandwidth is None else layer.bandwidth.item(),
                "activation": settings.base_activation,
                "inputs": layer.num_inputs,
                "outputs": layer.num_outputs,
                "grid": encode_array(layer.grid.numpy()),
                **of_layer,
            }
            for layer, of_layer in zip(layers, coded, strict=True)
        ],
    }


def quantile_levels(levels: int = LEVELS) -> np.ndarray:
    """The u of the page's quantiles, (L,)."""
    return np.linspace(LOWEST, HIGHEST, levels)


def quantile_payload(table: np.ndarray, density: np.ndarray) -> dict[str, Any]:
    """What `makeQuantile` takes, of quantiles at `quantile_levels` and the densities there, (L, Q) each."""
    coded = {name: encode_array(a.T.astype(np.float32)) for name, a in (("table", table), ("density", density))}
    return {"low": LOWEST, "high": HIGHEST, "levels": len(table), **coded}
