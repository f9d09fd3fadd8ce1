"""Figures of learnt functions: what is drawn is what was given, also where there is next to nothing to draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle, StepPatch

from lvkam.function_figures import FUNCTIONS, NODES, attribution, functions_figure, network_figure, prior_figure
from lvkam.generator import KANGenerator
from lvkam.inspection import (
    InspectedLayer,
    PriorDensities,
    function_curves,
    inspect_layers,
    prior_densities,
    strongest_functions,
)
from lvkam.model import LVKAM
from lvkam.plots import drawn
from lvkam.univariate import FunctionFamily
from tests.conftest import small_prior, stream

WIDTHS = {
    "three layers": (4, 7, 3, 2),
    "one layer": (2, 5),
    "one unit each": (1, 1, 1),
    "wide": (12, 30, 25),
}


def looked_at(
    widths: tuple[int, ...], components: int = 3, reference: str = "uniform", constant: bool = False
) -> tuple[LVKAM, list[InspectedLayer], PriorDensities]:
    """A model, its layers and its prior's densities; all functions may be zero."""
    prior = small_prior(widths[0], components, reference=reference)
    model = LVKAM(prior, KANGenerator(widths, FunctionFamily(grid_size=4), stream(1)), "l2", torch.tanh)
    if constant:
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
    return model, inspect_layers(model, model.prior.sample(200, stream(2))), prior_densities(prior)


def names(layer: str, output: int) -> str:
    return f"{layer}/{output}"


def data_of(axes: Axes, line: int) -> np.ndarray:
    return np.asarray(axes.lines[line].get_xydata())


@pytest.mark.parametrize("reference", ["uniform", "gaussian"])
@pytest.mark.parametrize(("latent_dim", "components"), [(1, 1), (5, 3)])
def test_a_panel_of_the_prior_shows_its_coordinate(latent_dim: int, components: int, reference: str) -> None:
    model, _, densities = looked_at((latent_dim, 2), components, reference)
    samples, order = model.prior.sample(500, stream(3)).numpy(), [0] if latent_dim == 1 else [3, 0, 4]
    figure = prior_figure(densities, samples, order, np.linspace(0.1, 0.6, latent_dim))
    assert len(figure.axes) == len(order)
    for axes, q in zip(figure.axes, order, strict=True):
        activity = 10 + 50 * q / max(1, latent_dim - 1)
        assert axes.get_title() == f"$z_{{{q}}}$, activity {activity:.0f} %"
        z, (low, high) = densities.z[q], axes.get_xlim()
        reference_line, mixture = data_of(axes, 0), data_of(axes, 1)
        np.testing.assert_array_equal(reference_line, np.stack((z, densities.reference[q]), 1))
        np.testing.assert_array_equal(mixture, np.stack((z, densities.mixture[q]), 1))
        (collection,) = (c for c in axes.collections if isinstance(c, LineCollection))
        curves = [np.asarray(curve) for curve in collection.get_segments()]
        assert len(curves) == components
        for curve, component in zip(curves, densities.components[q], strict=True):
            np.testing.assert_allclose(curve[:, 1] * np.trapezoid(component, z), component, rtol=1e-9)
            assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(1)
        # the more a component weighs, the less it is faint
        opacity = np.asarray(collection.get_colors())[:, 3]
        assert (np.argsort(opacity) == np.argsort(np.trapezoid(densities.components[q], z))).all()
        bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
        edges = [*(bar.get_x() for bar in bars), bars[-1].get_x() + bars[-1].get_width()]
        counts, _ = np.histogram(samples[:, q], np.linspace(low, high, 41), density=True)
        np.testing.assert_allclose(edges, np.linspace(low, high, 41), atol=1e-12)
        np.testing.assert_allclose([bar.get_height() for bar in bars], counts, rtol=1e-6)
        if reference == "uniform":
            assert (low, high) == (0, 1)
        else:  # all panels span the same, and leave out next to nothing
            assert (low, high) == figure.axes[0].get_xlim()
            assert np.interp((low, high), z, densities.cdf[q]) == pytest.approx([0, 1], abs=6e-4)
        inside = (z >= low) & (z <= high)
        highest = max(mixture[inside, 1].max(), reference_line[inside, 1].max(), counts.max())
        assert axes.get_ylim() == (0, pytest.approx(1.08 * highest))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][::3] == ["density of the coordinate", "500 samples"]
    said = f", {len(order)} of {latent_dim} coordinates" if len(order) < latent_dim else ""
    assert figure.get_supxlabel().startswith(f"latent coordinate{said}; ")
    drawn(figure)


@pytest.mark.parametrize("widths", [WIDTHS["three layers"], WIDTHS["one unit each"]])
def test_the_strongest_functions_are_drawn_a_row_a_layer(widths: tuple[int, ...]) -> None:
    _, layers, _ = looked_at(widths)
    figure = functions_figure(layers, names)
    drawn(figure)
    panels = iter(figure.axes)
    for row, layer in enumerate(layers):
        curves = strongest_functions(layer, FUNCTIONS)
        assert len(curves) == min(FUNCTIONS, layer.strength.shape[0])
        for column, curve in enumerate(curves):
            axes = next(panels)
            place = axes.get_subplotspec()
            assert place is not None
            assert (place.rowspan.start, place.colspan.start) == (row, column)
            share = 100 * curve.strength / layer.strength[:, curve.output].sum()
            assert axes.get_title() == f"to {layer.name}/{curve.output} ({share:.0f} %)"
            is_first = layer.name.endswith(".0")
            unit = f"hidden {curve.input}"
            assert axes.get_xlabel() == (f"$z_{{{curve.input}}}$" if is_first else unit)
            for line, part in enumerate((curve.spline + curve.base, curve.spline, curve.base)):
                np.testing.assert_array_equal(data_of(axes, line), np.stack((curve.x, part), 1))
            np.testing.assert_array_equal(data_of(axes, 3)[:, 0], curve.knots)
            (stairs,) = (patch for patch in axes.patches if isinstance(patch, StepPatch))
            heights, edges, floor = stairs.get_data()
            counts, _ = np.histogram(curve.data, edges)
            assert counts.sum() == len(curve.data)
            np.testing.assert_allclose((heights - floor) / (heights - floor).max(), counts / counts.max(), atol=1e-12)
            # no curve crosses the histogram, or leaves the panel
            (bottom, top), lines = axes.get_ylim(), [curve.spline + curve.base, curve.spline, curve.base]
            assert bottom == floor
            assert heights.max() < min(line.min() for line in lines)
            assert top > max(line.max() for line in lines)
            assert axes.get_xlim() == (curve.x[0], curve.x[-1])
            part, _, number = layer.name.partition(".layers.")
            label = f"{part}, layer {int(number) + 1}"
            assert axes.get_ylabel() == (label if column == 0 else "")
    assert next(panels, None) is None
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["function", "spline part", "base part", "knots", "inputs"]


def test_attribution_divides_variance_by_strength() -> None:
    first = np.array([[1.0, 2.0], [3.0, 0.0]])
    second = np.array([[6.0, 1.0, 0.0], [2.0, 4.0, 0.0]])
    latents, hidden, outputs = attribution([first, second])
    assert outputs.tolist() == [8, 5, 0]
    assert hidden.tolist() == [6 + 1, 2 + 4]
    assert latents.tolist() == [7 / 4 + 6, 3 * 7 / 4]


def test_attribution_loses_nothing_on_its_way() -> None:
    rng = np.random.default_rng(0)
    strengths = [rng.random(shape) ** 4 for shape in ((6, 9), (9, 4), (4, 11))]
    scores = attribution(strengths)
    assert [len(score) for score in scores] == [6, 9, 4, 11]
    np.testing.assert_allclose([score.sum() for score in scores], strengths[-1].sum())
    assert [score.tolist() for score in attribution([np.zeros((2, 3))])] == [[0, 0], [0, 0, 0]]


class Network:
    """What a network's figure shows: units by layer, with their places, and lines with their share."""

    def __init__(self, axes: Axes):
        self.places: dict[int, list[float]] = {}
        self.lines: list[tuple[np.ndarray, float]] = []
        for line in axes.lines:
            points = np.asarray(line.get_xydata())
            if line.get_marker() == "o":
                self.places.setdefault(round(points[0, 1]), []).append(points[0, 0])
            else:
                self.lines.append((points, ((line.get_alpha() or 0) - 0.25) / 0.75))
        self.texts = [(*text.get_position(), text.get_text()) for text in axes.texts]

    def labels(self, layer: int) -> list[str]:
        """Of a layer's units, from left to right."""
        near = {0: -0.45, 1: 1, 2: 2.1}[layer]
        return [text for _, y, text in sorted(self.texts) if y == near]


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_units_of_a_network_stand_apart_and_inside(widths: tuple[int, ...]) -> None:
    _, layers, densities = looked_at(widths)
    layers = [layer for layer in layers if layer.name.startswith("generator")]
    outputs = list(range(widths[-1]))[:NODES]
    figure = network_figure(layers, densities, outputs, names, None)
    drawn(figure)
    axes = figure.axes[0]
    shown = Network(axes)
    assert sorted(shown.places) == list(range(len(widths)))
    for number, places in shown.places.items():
        assert len(set(places)) == len(places) <= min(NODES, widths[number])
        assert min(places) > 0
        assert max(places) < 1
    assert figure.get_suptitle().startswith(
        f"latents ({len(shown.places[0])} of {widths[0]}) at the bottom, "
        f"outputs ({len(outputs)} of {widths[-1]}) at the top"
    )
    # two lines a function, from unit to curve to unit, and a panel each for curves and latents
    starts, ends = shown.lines[::2], shown.lines[1::2]
    assert len(axes.child_axes) == len(starts) + len(shown.places[0])
    curves = [child for child in axes.child_axes if not child.collections]
    if max(widths) <= NODES and len(widths) == 2:  # all functions are drawn
        assert len(curves) == widths[0] * widths[1]
        assert sum(share for _, share in starts) == pytest.approx(widths[1])
    goals: dict[tuple[int, float], list[float]] = {}
    middles: dict[int, list[tuple[float, float]]] = {}
    for (low, share), (high, same) in zip(starts, ends, strict=True):
        assert low[1, 0] == high[0, 0]
        assert share == pytest.approx(same)
        assert 0 <= share <= 1 + 1e-9
        assert low[0, 0] in shown.places[round(low[0, 1])]
        assert high[1, 0] in shown.places[round(high[1, 1])]
        middles.setdefault(round(low[0, 1]), []).append((low[1, 0], low[0, 0] + high[1, 0]))
        goals.setdefault((round(low[0, 1]), low[0, 0]), []).append(high[1, 0])
    for number in range(len(layers)):  # units stand below those that they go to, so that few lines cross
        means = [np.mean(goals[number, place]) for place in sorted(shown.places[number])]
        assert (np.diff(means) > -1e-9).all()
    for pairs in middles.values():  # and curves between their units
        assert (np.diff([units for _, units in sorted(pairs)]) > -1e-9).all()


def test_a_network_is_pruned_to_its_strongest_functions() -> None:
    _, layers, densities = looked_at((12, 30, 25))
    first, second = (layer for layer in layers if layer.name.startswith("generator"))
    rng = np.random.default_rng(0)
    weak = [1e-6 * rng.random(layer.strength.shape) for layer in (first, second)]
    # latents 7 and 2 make hidden units 20 and 4, which make outputs 24 and 3; stronger outputs are not asked for
    weak[0][7, 20] = weak[0][2, 4] = 1
    weak[1][20, 24], weak[1][4, 3] = 2, 1
    weak[1][range(5, 17), range(5, 17)] = 50
    first, second = (layer._replace(strength=s) for layer, s in zip((first, second), weak, strict=True))
    figure = network_figure([first, second], densities, [24, 3], names, (5, 5))
    shown = Network(figure.axes[0])
    strong = [(points, share) for points, share in shown.lines if share > 0.9]
    assert len(strong) == 8  # two halves of four functions
    assert len(shown.places[0]) <= NODES
    assert {"$z_{7}$", "$z_{2}$"} <= set(shown.labels(0))
    assert {"20", "4"} <= set(shown.labels(1))
    # followed from the top down, the strong lines join those units
    of_latent = dict(zip(sorted(shown.places[0]), shown.labels(0), strict=True))
    of_hidden = dict(zip(sorted(shown.places[1]), shown.labels(1), strict=True))
    joined = set()
    for (low, _), (high, _) in zip(strong[::2], strong[1::2], strict=True):
        if low[0, 1] == 0:
            joined.add((of_latent[low[0, 0]], of_hidden[high[1, 0]]))
        else:
            joined.add((of_hidden[low[0, 0]], f"{high[1, 0]}"))
    assert joined == {("$z_{7}$", "20"), ("$z_{2}$", "4"), ("20", "0.25"), ("4", "0.75")}
    # the strongest of a coordinate's curves is drawn as it is
    (curve,) = function_curves(first, [(7, 20)])
    curves = [np.asarray(child.lines[0].get_xydata()) for child in figure.axes[0].child_axes if child.lines]
    expected = np.stack((curve.x, curve.spline + curve.base), 1)
    assert any(np.array_equal(drawn_curve, expected) for drawn_curve in curves)
    for latent in (7, 2):  # so are the latents' densities
        density = np.stack((densities.z[latent], densities.mixture[latent]), 1)
        assert any(np.array_equal(drawn_curve, density) for drawn_curve in curves)
    # outputs of an image are marked in it
    marked = [np.asarray(child.images[0].get_array()) for child in figure.axes[0].child_axes if child.images]
    assert [np.flatnonzero(image).tolist() for image in marked] == [[24], [3]]


@pytest.mark.parametrize("image_shape", [(2, 3), (1, 2, 3)])
def test_a_networks_output_is_marked_in_its_image(image_shape: tuple[int, ...]) -> None:
    _, layers, densities = looked_at((2, 6))
    figure = network_figure(layers[1:], densities, [1, 5], names, image_shape)
    marked = [np.asarray(child.images[0].get_array()) for child in figure.axes[0].child_axes if child.images]
    expected = [[1], [5]] if image_shape == (2, 3) else [[0], [1]]  # whatever the colour
    assert [np.flatnonzero(image).tolist() for image in marked] == expected
    assert {image.shape for image in marked} == {image_shape[:2]}


@pytest.mark.parametrize("widths", [(1, 1), (3, 4, 2)])
def test_functions_that_are_constant_can_be_drawn(widths: tuple[int, ...]) -> None:
    model, layers, densities = looked_at(widths, constant=True)
    figure = functions_figure(layers, names)
    assert {axes.get_title().rsplit("(", 1)[1] for axes in figure.axes} == {"0 %)"}
    drawn(figure)
    layers = [layer for layer in layers if layer.name.startswith("generator")]
    drawn(network_figure(layers, densities, list(range(widths[-1])), names, None))
    samples = model.prior.sample(50, stream(0)).numpy()
    drawn(prior_figure(densities, samples, range(widths[0]), np.zeros(widths[0])))
