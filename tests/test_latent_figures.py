"""Figures of latents: what is drawn is what was given, image by image, line by line."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle, StepPatch

from lvkam.inspection import Posterior, PriorDensities, prior_densities
from lvkam.latent_figures import (
    lines_figure,
    nearest_figure,
    posterior_figure,
    strips_figure,
    temperatures_figure,
)
from lvkam.plots import drawn
from tests.conftest import small_prior

COLOUR = pytest.mark.parametrize("colour", [(), (3,)], ids=["grey", "colour"])


def shown(axes: Axes) -> np.ndarray:
    """The image of a panel, of which values from 0 to 1 are black to white."""
    (image,) = axes.images
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name == "gray"
    return np.asarray(image.get_array())


def data_of(axes: Axes, line: int = 0) -> np.ndarray:
    return np.asarray(axes.lines[line].get_xydata())


@COLOUR
@pytest.mark.parametrize(("rows", "levels"), [(3, 4), (1, 1)])
def test_strips_hold_every_image_in_its_place(rows: int, levels: int, colour: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).random((rows, levels, 5, 7, *colour))
    images[0, 0, 0, 0], images[0, 0, 0, 1] = -3, 4  # are black and white
    places, row_names = np.linspace(0.02, 0.98, levels), [f"row {n}" for n in range(rows)]
    figure = strips_figure(list(images), row_names, places, "a label", "a title")
    drawn(figure)
    (axes,) = figure.axes
    sheet = shown(axes)
    assert sheet.shape == (rows * 6, levels * 8, *colour)
    for r in range(rows):
        for c in range(levels):
            cell = sheet[6 * r : 6 * r + 6, 8 * c : 8 * c + 8]
            np.testing.assert_array_equal(cell[:5, :7], images[r, c].clip(0, 1))
            assert np.unique(cell[5:]) == np.unique(cell[:, 7:]) == 0.38
    # every name stands within its row, every level within its column
    assert [label.get_text() for label in axes.get_yticklabels()] == row_names
    assert np.round(axes.get_yticks() // 6).tolist() == list(range(rows))
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{level:.2g}" for level in places]
    assert np.round(axes.get_xticks() // 8).tolist() == list(range(levels))
    assert (axes.get_xlabel(), axes.get_title()) == ("a label", "a title")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 12)])
def test_a_table_has_a_panel_a_row_and_a_line_a_column(rows: int, columns: int) -> None:
    values = np.random.default_rng(0).random((rows, 6, columns))
    column_names = ["$a$_$", "_b", *"cdefghijkl"][:columns]  # neither mathematics nor hidden
    levels = np.linspace(0, 1, 6)
    figure = lines_figure(list(values), [f"row {n}" for n in range(rows)], levels, "a label", column_names)
    drawn(figure)
    assert [axes.get_title() for axes in figure.axes] == [f"row {n}" for n in range(rows)]
    assert {axes.get_xlabel() for axes in figure.axes} == {"a label"}
    assert figure.axes[0].get_ylabel() == "value (standard deviations)"
    for axes, row in zip(figure.axes, values, strict=True):
        assert len(axes.lines) == min(10, columns)
        for line in range(len(axes.lines)):
            np.testing.assert_array_equal(data_of(axes, line), np.stack((levels, row[:, line]), 1))
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
        assert len(looks) == len(axes.lines)
    (legend,) = figure.legends
    expected = [name.replace("$", r"\$") for name in column_names[:10]]
    assert [text.get_text() for text in legend.get_texts()] == expected
    assert [handle.get_color() for handle in legend.get_lines()] == [line.get_color() for line in figure.axes[0].lines]


@COLOUR
@pytest.mark.parametrize("count", [1, 13])
def test_each_sample_stands_above_its_neighbour(count: int, colour: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    images, neighbours = rng.random((2, count, 4, 3, *colour))
    distances = np.linspace(0, 3, count)
    figure = nearest_figure(images, neighbours, distances, "a title")
    drawn(figure)
    assert figure.get_suptitle() == "a title"
    panels = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert place is not None
        panels[place.rowspan.start, place.colspan.start] = axes
    for n in range(count):
        row, column = divmod(n, 10)
        np.testing.assert_array_equal(shown(panels[2 * row, column]), images[n])
        np.testing.assert_array_equal(shown(panels[2 * row + 1, column]), neighbours[n])
        assert panels[2 * row + 1, column].get_title() == f"{distances[n]:.2f}"
    assert sum(len(axes.images) for axes in figure.axes) == 2 * count


def found_of(z: np.ndarray, weights: np.ndarray, data_dim: int) -> Posterior:
    weights = weights / weights.sum(1, keepdims=True)
    return Posterior(z, weights, 1 / (weights**2).sum(1), np.zeros((len(weights), data_dim)))


def uniform_densities(latent_dim: int) -> PriorDensities:
    """Of a prior that is flat, so that ranks are places."""
    prior = small_prior(latent_dim, 2)
    for parameter in prior.parameters():
        parameter.detach().zero_()
    return prior_densities(prior)


@COLOUR
def test_a_posterior_is_drawn_as_it_is(colour: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    z, counts = rng.random((40, 4)), rng.integers(1, 6, (2, 40))
    z[:, 3] = np.where(np.arange(40) < 20, 0.01 * z[:, 3], z[:, 3])
    z[:, 1] **= 4  # these two depart most from a flat prior
    images, reconstructions = rng.random((2, 2, 5, 4, *colour))
    figure = posterior_figure(images, reconstructions, found_of(z, counts.astype(float), 3), uniform_densities(4))
    drawn(figure)
    assert len(figure.axes) == 12
    for b, row in enumerate(np.reshape(np.array(figure.axes), (2, 6))):
        image, reconstruction, weights, spans, *informed = row
        np.testing.assert_array_equal(shown(image), images[b])
        np.testing.assert_array_equal(shown(reconstruction), reconstructions[b])
        largest = np.sort(counts[b])[::-1].cumsum() / counts[b].sum()
        np.testing.assert_allclose(data_of(weights), np.stack((np.arange(1, 41), largest), 1))
        sample_size = counts[b].sum() ** 2 / (counts[b] ** 2).sum()
        assert data_of(weights, 1)[:, 0].tolist() == pytest.approx([sample_size] * 2)
        assert weights.get_title() == f"effective sample size {sample_size:.1f}"
        assert weights.get_xlabel() == "largest of 40 weights"
        repeated = np.repeat(z, counts[b], axis=0)
        expected = np.quantile(repeated, (0.05, 0.5, 0.95), axis=0, method="inverted_cdf")
        bars = np.array([path.vertices for path in spans.collections[0].get_paths()])
        np.testing.assert_allclose(bars[:, :, 0], np.arange(4)[:, None].repeat(2, 1))
        np.testing.assert_allclose(bars[:, :, 1], expected[[0, 2]].T, atol=1e-6)
        np.testing.assert_allclose(data_of(spans)[:, 1], expected[1], atol=1e-6)
        assert {axes.get_xlabel() for axes in informed} == {"$z_{1}$", "$z_{3}$"}
        for axes in informed:
            q = int(axes.get_xlabel()[4])
            bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
            low, high = axes.get_xlim()
            heights, edges = np.histogram(repeated[:, q], np.linspace(low, high, 31), density=True)
            np.testing.assert_allclose([bar.get_height() for bar in bars], heights, rtol=1e-6)
            np.testing.assert_allclose([bar.get_x() for bar in bars], edges[:-1], atol=1e-12)
            np.testing.assert_allclose(data_of(axes)[:, 1], 1, atol=1e-6)  # the prior
    assert [axes.get_title() for axes in figure.axes[:2]] == ["image", "reconstruction"]


@pytest.mark.parametrize("far", [1e-6, 0.5, 1 - 1e-6])
def test_a_posterior_that_is_one_draw_is_drawn_wherever_it_lies(far: float) -> None:
    z = np.linspace(0.1, 0.9, 30)[:, None].repeat(2, 1)
    z[4] = far
    weights = np.zeros((1, 30))
    weights[0, 4] = 1
    figure = posterior_figure(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), found_of(z, weights, 4), uniform_densities(2))
    drawn(figure)
    for axes in figure.axes[4:]:
        bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
        assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)
        low, high = axes.get_xlim()
        assert low <= far <= high


@pytest.mark.parametrize("num_draws", [1, 20])
def test_of_one_coordinate_one_posterior_is_drawn(num_draws: int) -> None:
    z = np.random.default_rng(0).random((num_draws, 1))
    rows = np.array([[0.3, -1.0, 2.0]])
    found = found_of(z, np.ones((1, num_draws)), 3)
    figure = posterior_figure(rows, rows + 1, found, uniform_densities(1))
    drawn(figure)
    assert [axes.get_xlabel() for axes in figure.axes[3:]] == ["latent coordinate", "$z_{0}$"]
    # rows of a table, the first column at the top
    for axes, expected in zip(figure.axes[:2], (rows, rows + 1), strict=True):
        np.testing.assert_array_equal(data_of(axes), np.stack((expected[0], np.arange(3)), 1))
        assert axes.yaxis_inverted()


def test_the_temperatures_figure_integrates_the_mean_by_trapezoids() -> None:
    temperatures = np.linspace(0, 1, 5) ** 2
    integrand = np.stack([-50 + 30 * temperatures, -60 + 30 * temperatures], axis=1)  # straight lines: exact
    rng = np.random.default_rng(0)
    powers = [(t, rng.normal(size=99), rng.random(99)) for t in (0.0, 1.0)]
    figure = temperatures_figure(temperatures, integrand, powers, 7)
    first, second, third = figure.axes
    assert first.get_title() == "area of the trapezoids: mean log p(x) = -40.00"
    mean = second.lines[-1]
    assert np.allclose(mean.get_xdata(), np.linspace(0, 1, 5))
    assert np.allclose(mean.get_ydata(), integrand.mean(1))
    assert third.get_xlabel() == "latent coordinate 7"
    legend = third.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["t = 0", "t = 1"]


def test_power_posteriors_are_weighted_histograms() -> None:
    rng = np.random.default_rng(0)
    powers = [(t, rng.random(30), rng.integers(1, 5, 30).astype(float)) for t in (0.0, 0.05, 1.0)]
    figure = temperatures_figure(np.array([0.0, 0.3, 1.0]), np.array([[-5.0], [-2.0], [-1.0]]), powers, 3)
    drawn(figure)
    first, _, third = figure.axes
    trapezoids = 0.3 * -3.5 + 0.7 * -1.5
    assert first.get_title() == f"area of the trapezoids: mean log p(x) = {trapezoids:.2f}"
    np.testing.assert_array_equal(data_of(first, 1), [[0, -5], [0.3, -2], [1, -1]])
    patches = [patch for patch in third.patches if isinstance(patch, StepPatch)]
    for patch, (_, z, weights) in zip(patches, powers, strict=True):
        heights, edges, _ = patch.get_data()
        repeated = np.repeat(z, weights.astype(int))
        np.testing.assert_allclose(heights, np.histogram(repeated, edges, density=True)[0])
        assert edges[0] <= z.min() <= z.max() <= edges[-1]
    assert len({patch.get_edgecolor() for patch in patches}) == 3
