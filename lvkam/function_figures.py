"""Figures of learnt functions: the prior's densities, the strongest functions of each layer, the network they make.

Letters: N draws, Q latent coordinates, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lvkam.inspection import Curve, InspectedLayer, PriorDensities, function_curves, strongest_functions
from lvkam.plots import BLUE, GREEN, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 120
"""Densities in one figure."""

FUNCTIONS = 6
"""Functions of each layer in one figure."""

NODES, EDGES = 9, 18
"""Units that the network shows in each layer at most, and functions between two layers."""

EDGE_SHARE = 5e-4
"""Share of a coordinate's mass that lies beyond either end of its panel, if its support has no ends."""

Names = Callable[[str, int], str]
"""From a layer and one of its outputs to what that is called."""


def prior_figure(
    densities: PriorDensities, samples: np.ndarray, coordinates: Sequence[int], activities: np.ndarray
) -> Figure:
    """A panel for each coordinate: its components, their mixture, pi_0, and a histogram of samples.

    Args:
        densities: of the prior.
        samples: (N, Q), drawn from it.
        coordinates: which ones, in this order; the first `MOST_PANELS` are shown.
        activities: (Q,), told above the panels.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    shown = list(coordinates)[:MOST_PANELS]
    columns = min(len(shown), max(3, math.ceil(math.sqrt(1.2 * len(shown)))))
    rows = math.ceil(len(shown) / columns)
    width, height = max(4.5, 1.55 * columns), 1.25 * rows + 0.8
    figure, panels = new_figure(rows, columns, (width, height))
    figure.set_layout_engine(None)  # which takes ten times as long as the rest for a hundred panels
    figure.subplots_adjust(0.1 / width, 0.5 / height, 1 - 0.1 / width, 1 - 0.55 / height, 0.12, 0.36)
    lowest, highest = _limits(densities, shown)
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    for place, (axes, q) in enumerate(zip(panels.flat, shown, strict=False)):
        z = densities.z[q]
        bars = axes.hist(samples[:, q], np.linspace(lowest, highest, 41), density=True, color="0.85", label="samples")
        areas = np.trapezoid(densities.components[q], z)[:, None]  # their weights
        curves = np.stack(np.broadcast_arrays(z, densities.components[q] / areas), -1)  # (P, n, 2)
        opacity = min(1.0, 15 / len(areas)) * (0.2 + 0.6 * areas / areas.max())
        colours = np.concatenate((np.tile(to_rgb(ORANGE), (len(areas), 1)), opacity), 1)
        axes.add_collection(LineCollection(list(curves), colors=colours, linewidth=0.5))
        (reference,) = axes.plot(z, densities.reference[q], color="0.35", linewidth=0.9, linestyle="--")
        (mixture,) = axes.plot(z, densities.mixture[q], color=BLUE, linewidth=1.3)
        inside = (z >= lowest) & (z <= highest)
        top = max(densities.mixture[q][inside].max(), densities.reference[q][inside].max(), bars[0].max())
        axes.set(xlim=(lowest, highest), ylim=(0, 1.08 * top), yticks=[])
        axes.set_title(f"$z_{{{q}}}$, activity {100 * activities[q]:.0f} %", fontsize=7, pad=2)
        axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))  # those at the ends run into the neighbours'
        axes.tick_params(labelsize=6, labelbottom=place + columns >= len(shown), length=2)
        axes.spines[["top", "right", "left"]].set_visible(False)
        if place == 0:
            figure.legend(
                [mixture, Line2D([], [], color=ORANGE, linewidth=0.8), reference, bars[2][0]],
                ["density of the coordinate", "its components", "reference π₀", f"{len(samples):,} samples"],
                loc="upper center", ncols=4 if columns > 3 else 2, frameon=False, fontsize=8,
            )  # fmt: skip
    left = f", {len(shown)} of {len(densities.z)} coordinates" if len(shown) < len(densities.z) else ""
    figure.supxlabel(f"latent coordinate{left}; each component by itself; heights differ by panel", fontsize=8)
    return figure


def _limits(densities: PriorDensities, shown: Sequence[int]) -> tuple[float, float]:
    """What all panels span: the support, or all but a little of the mass."""
    ends = [np.interp((EDGE_SHARE, 1 - EDGE_SHARE), densities.cdf[q], densities.z[q]) for q in shown]
    if (densities.reference[:, 0] > 0.5).all():  # the uniform one does not fall off
        return float(densities.z.min()), float(densities.z.max())
    return float(np.min(ends)), float(np.max(ends))


def functions_figure(layers: Sequence[InspectedLayer], names: Names) -> Figure:
    """The strongest functions of each layer, a row a layer: spline and base part, knots, and where the data lie.

    Args:
        layers: of `inspect_layers`.
        names: what outputs are called.
    """
    figure, panels = new_figure(len(layers), FUNCTIONS, (2.15 * FUNCTIONS, 1.9 * len(layers) + 0.6))
    handles: dict[str, object] = {}
    for row, inspected in zip(panels, layers, strict=True):
        total = inspected.strength.sum(0)
        curves = strongest_functions(inspected, FUNCTIONS)
        for axes in row[len(curves) :]:
            axes.remove()
        for axes, curve in zip(row, curves, strict=False):
            handles |= _draw_function(axes, curve)
            axes.set_xlabel(input_name(curve.layer, curve.input), fontsize=7, labelpad=1)
            share = _share(curve.strength, total[curve.output])
            axes.set_title(f"to {names(curve.layer, curve.output)} ({100 * share:.0f} %)", fontsize=7, pad=3)
        part, _, number = inspected.name.partition(".layers.")
        row[0].set_ylabel(f"{part}, layer {int(number) + 1}", fontsize=8)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize=8)  # pyright: ignore[reportArgumentType]
    return figure


def _draw_function(axes: Axes, curve: Curve) -> dict[str, object]:
    """Draw a function into a panel: what a legend is made of."""
    (total,) = axes.plot(curve.x, curve.spline + curve.base, color=BLUE, linewidth=1.6, zorder=3)
    (spline,) = axes.plot(curve.x, curve.spline, color=ORANGE, linewidth=0.9, linestyle="--")
    (base,) = axes.plot(curve.x, curve.base, color=GREEN, linewidth=0.9, linestyle=":")
    low, high = axes.get_ylim()
    floor = low - 0.25 * (high - low)
    counts, edges = np.histogram(curve.data, np.linspace(curve.x[0], curve.x[-1], 41))
    data = axes.stairs(
        floor + 0.22 * (high - low) * counts / counts.max(), edges, baseline=floor, fill=True, color="0.85"
    )
    (knots,) = axes.plot(
        curve.knots, np.full(len(curve.knots), floor), "|", color="0.25", markersize=5, clip_on=False, zorder=4
    )
    axes.set(ylim=(floor, high), xlim=(curve.x[0], curve.x[-1]))
    axes.tick_params(labelsize=6, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    return {"function": total, "spline part": spline, "base part": base, "knots": knots, "inputs": data}


def _share(part: float, whole: float) -> float:
    """None of nothing: an output may be constant."""
    return float(part / whole) if whole > 0 else 0.0


def input_name(layer: str, index: int) -> str:
    """What an input of a layer is called: a latent coordinate in the first one."""
    return f"$z_{{{index}}}$" if layer.endswith(".0") else f"hidden {index}"


class _Edge(NamedTuple):
    """A function that is drawn."""

    layer: int
    input: int
    output: int
    share: float
    """Of the output's variance."""


def attribution(strengths: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How much of the outputs' variance goes through each unit of each layer, the outputs' own last.

    Variance of an output is divided among its inputs by the strength of their functions, layer after layer (the
    attribution scores of Liu et al. 2024, KAN 2.0, section 4.2, with variances for standard deviations).

    Args:
        strengths: (I, O) of each layer, from the first to the last.
    """
    scores = [strengths[-1].sum(0)]
    for strength in reversed(strengths):
        total = strength.sum(0)
        shares = np.divide(strength, total, out=np.zeros_like(strength), where=total > 0)
        scores.insert(0, shares @ scores[0])
    return scores


def network_figure(
    layers: Sequence[InspectedLayer],
    densities: PriorDensities,
    outputs: Sequence[int],
    names: Names,
    image_shape: tuple[int, ...] | None,
) -> Figure:
    """The generator as a network of small curves, pruned to what matters most, the latents' densities below.

    Args:
        layers: the generator's.
        densities: of the prior.
        outputs: which ones stand at the top, from left to right.
        names: what outputs are called.
        image_shape: of the images, if the outputs are pixels: each is marked in one.
    """
    from matplotlib.patheffects import withStroke

    figure, ((axes,),) = new_figure(1, 1, (12, 1.5 + 2.1 * len(layers)))
    axes.set(xlim=(0, 1), ylim=(-0.62, len(layers) + 0.5))
    axes.set_axis_off()
    kept, edges = _pruned([layer.strength for layer in layers], outputs)
    places = _placed(kept, edges)
    for number, inspected in enumerate(layers):
        _draw_layer(axes, number, inspected, [edge for edge in edges if edge.layer == number], places)
    for number, units in enumerate(places):
        for unit, x in units.items():
            axes.plot(x, number, "o", color="black", markersize=4, zorder=5)
            if number == 0:
                inset = _inset(axes, x, -0.27, 0.075, 0.3)
                inset.fill_between(densities.z[unit], densities.mixture[unit], color=GREEN, alpha=0.3, linewidth=0)
                inset.plot(densities.z[unit], densities.mixture[unit], color=GREEN, linewidth=1.2)
                inset.set(xlim=_limits(densities, [unit]), ylim=(0, None))
                axes.text(x, -0.45, f"$z_{{{unit}}}$", ha="center", va="top", fontsize=9)
            elif number < len(layers):
                label = axes.text(x + 0.007, number, str(unit), fontsize=7, va="center", color="0.35", zorder=6)
                label.set_path_effects([withStroke(linewidth=2, foreground="white")])
            elif image_shape is None:
                axes.text(x, number + 0.1, names(layers[-1].name, unit), ha="center", fontsize=8)
            else:
                inset = _inset(axes, x, number + 0.26, 0.05, 0.36)
                marked = np.arange(math.prod(image_shape)).reshape(image_shape) == unit
                inset.imshow(marked.reshape(*image_shape[:2], -1).any(-1), cmap="gray_r", vmin=0, vmax=1.2)
                inset.set_frame_on(True)
    inputs, of_all = layers[0].layer.num_inputs, layers[-1].layer.num_outputs
    figure.suptitle(
        f"latents ({len(kept[0])} of {inputs}) at the bottom, outputs ({len(kept[-1])} of {of_all}) at the top; "
        "the strongest functions into each unit, lines by their share of its variance",
        fontsize=9,
    )
    return figure


def _pruned(strengths: Sequence[np.ndarray], outputs: Sequence[int]) -> tuple[list[list[int]], list[_Edge]]:
    """Units that stay in each layer, and the functions between them."""
    scores = attribution([*strengths[:-1], strengths[-1][:, list(outputs)]])
    kept: list[list[int]] = [list(outputs)]
    edges = []
    for number, strength in reversed(list(enumerate(strengths))):
        candidates = np.argsort(-scores[number], kind="stable")[:NODES]
        total = strength.sum(0)
        for output in kept[0]:
            best = candidates[np.argsort(-strength[candidates, output], kind="stable")[: EDGES // len(kept[0])]]
            edges += [_Edge(number, int(i), output, _share(strength[i, output], total[output])) for i in best]
        kept.insert(0, sorted({edge.input for edge in edges if edge.layer == number}))
    return kept, edges


def _placed(kept: Sequence[Sequence[int]], edges: Sequence[_Edge]) -> list[dict[int, float]]:
    """Where each unit stands, from 0 to 1: below the units that it goes to, so that few lines cross."""
    places = [_spread(kept[-1])]
    for number in reversed(range(len(kept) - 1)):
        above = places[0]
        goals = {
            unit: np.mean([above[edge.output] for edge in edges if (edge.layer, edge.input) == (number, unit)])
            for unit in kept[number]
        }
        places.insert(0, _spread(sorted(goals, key=lambda unit: goals[unit])))
    return places


def _spread(units: Sequence[int]) -> dict[int, float]:
    return {unit: (place + 0.5) / len(units) for place, unit in enumerate(units)}


def _draw_layer(
    axes: Axes, number: int, inspected: InspectedLayer, edges: Sequence[_Edge], places: Sequence[dict[int, float]]
) -> None:
    """The functions of a layer, as curves halfway between the units that they join."""
    below, above = places[number], places[number + 1]
    edges = sorted(edges, key=lambda edge: below[edge.input] + above[edge.output])
    curves = function_curves(inspected, [(edge.input, edge.output) for edge in edges])
    width, height = min(0.07, 0.9 / len(edges)), 0.24
    for place, (edge, curve) in enumerate(zip(edges, curves, strict=True)):
        x, alpha = (place + 0.5) / len(edges), 0.25 + 0.75 * edge.share
        line = {"color": BLUE, "alpha": alpha, "linewidth": 0.5 + 4 * edge.share, "zorder": 1}
        axes.plot((below[edge.input], x), (number, number + 0.5 - height / 2), **line)
        axes.plot((x, above[edge.output]), (number + 0.5 + height / 2, number + 1), **line)
        inset = _inset(axes, x, number + 0.5, width, height)
        inset.plot(curve.x, curve.spline + curve.base, color=BLUE, linewidth=1.3)
        inset.set_frame_on(True)


def _inset(axes: Axes, x: float, y: float, width: float, height: float) -> Axes:
    """A small panel without ticks, centred at a place of the figure's own."""
    inset = axes.inset_axes((x - width / 2, y - height / 2, width, height), transform=axes.transData)
    inset.set(xticks=[], yticks=[])
    inset.set_frame_on(False)
    for spine in inset.spines.values():
        spine.set(color="0.6", linewidth=0.6)
    return inset
