"""Figures of latents and what is made of them: traversals, interpolations, posteriors, neighbours, temperatures.

Letters: N images, L levels, B images that are explained, S samples, Q latent coordinates, D data dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lvkam.inspection import Posterior, PriorDensities, departures, weighted_quantiles
from lvkam.plots import BLUE, COLOURS, GREEN, ORANGE, new_figure, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 1
"""Pixels between images in a row, before they are enlarged."""

INFORMED = 2
"""Coordinates whose posteriors are drawn: those that an image tells most about."""


def strips_figure(
    rows: Sequence[np.ndarray], names: Sequence[str], levels: np.ndarray, label: str, title: str
) -> Figure:
    """Rows of images, as something changes from left to right.

    Args:
        rows: images of each row, (L, H, W) or (L, H, W, 3).
        names: of the rows.
        levels: (L,), told below the columns.
        label: what they are.
        title: of the figure.
    """
    sheet = np.concatenate([_strip(row) for row in rows])
    height, width = rows[0].shape[1] + LINE, rows[0].shape[2] + LINE
    inch = 0.62
    figure, ((axes,),) = new_figure(1, 1, (inch * len(levels) + 1.4, inch * len(rows) * height / width + 0.9))
    _show(axes, sheet)
    axes.set_xticks(np.arange(len(levels)) * width + width / 2 - 0.5, [f"{level:.2g}" for level in levels], fontsize=8)
    axes.set_yticks(np.arange(len(rows)) * height + height / 2 - 0.5, names, fontsize=8)
    axes.set_xlabel(label, fontsize=9)
    axes.set_title(title, fontsize=9)
    return figure


def _strip(images: np.ndarray) -> np.ndarray:
    """Images side by side, grey lines right of them and below: (L, H, W) -> (H + 1, L (W + 1))."""
    padding = [(0, 0), (0, LINE), (0, LINE), *[(0, 0)] * (images.ndim - 3)]
    return np.concatenate(list(np.pad(np.clip(images, 0, 1), padding, constant_values=0.38)), axis=1)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def lines_figure(
    rows: Sequence[np.ndarray], names: Sequence[str], levels: np.ndarray, label: str, columns: Sequence[str]
) -> Figure:
    """The same of tables: a panel for each row, with a line for each column.

    Args:
        rows: values, (L, D), in standard deviations.
        names: of the rows.
        levels: (L,).
        label: what they are.
        columns: names; the first 10 are drawn.
    """
    across, shown = min(4, len(rows)), [short_name(column) for column in columns[:10]]
    figure, panels = new_figure(
        math.ceil(len(rows) / across), across, (3.1 * across, 2.4 * math.ceil(len(rows) / across) + 0.5)
    )
    for axes in panels.flat[len(rows) :]:
        axes.remove()
    for axes, row, name in zip(panels.flat, rows, names, strict=False):
        for index in range(len(shown)):
            style = ("-", "--", ":", "-.")[index // 4 % 4]
            axes.plot(levels, row[:, index], style, color=COLOURS[index % 4], linewidth=1.3)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlabel(label, fontsize=8)
    panels[0, 0].set_ylabel("value (standard deviations)", fontsize=8)
    # handed over by name: a label that begins with an underscore would be left out
    figure.legend(panels[0, 0].lines, shown, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure


def nearest_figure(images: np.ndarray, neighbours: np.ndarray, distances: np.ndarray, title: str) -> Figure:
    """Samples, each above its nearest training image.

    Args:
        images: samples, (N, H, W) or (N, H, W, 3).
        neighbours: their nearest training images, likewise.
        distances: between them, (N,).
        title: of the figure.
    """
    columns = min(10, len(images))
    rows = math.ceil(len(images) / columns)
    figure, panels = new_figure(2 * rows, columns, (0.85 * columns, 1.95 * rows + 0.4))
    for axes in panels.flat:
        axes.set_axis_off()
    for n, (image, neighbour, distance) in enumerate(zip(images, neighbours, distances, strict=True)):
        above, below = panels[2 * (n // columns) : 2 * (n // columns) + 2, n % columns]
        _show(above, image)
        _show(below, neighbour)
        below.set_title(f"{distance:.2f}", fontsize=7, pad=1.5)
    figure.suptitle(title, fontsize=9)
    return figure


def posterior_figure(
    images: np.ndarray, reconstructions: np.ndarray, found: Posterior, densities: PriorDensities
) -> Figure:
    """What the model thinks of images, a row each: the image, its reconstruction, the importance weights, the posterior
    of each coordinate against its prior, and the densities of those that the image tells most about.

    Args:
        images: (B, H, W), (B, H, W, 3); or rows of a table, (B, D), in standard deviations.
        reconstructions: of the same shape.
        found: their posterior.
        densities: of the prior.
    """
    ranks = densities.rank(found.z)
    widths = (1, 1, 1.6, 3.6, *[1.5] * INFORMED)
    figure, panels = new_figure(len(images), len(widths), (12.5, 1.75 * len(images) + 0.5), widths)
    for b, row in enumerate(panels):
        weights = found.weights[b]
        _draw_pair(row[0], row[1], images[b], reconstructions[b])
        _draw_weights(row[2], weights, found.sample_size[b])
        spans = weighted_quantiles(ranks, weights, (0.05, 0.5, 0.95))
        _draw_spans(row[3], spans)
        for axes, q in zip(row[4:], np.argsort(-departures(ranks, weights), kind="stable"), strict=False):
            _draw_posterior(axes, found.z[:, q], weights, densities, q)
        for axes in row[4 + len(densities.z) :]:
            axes.remove()
    for axes, title in zip(panels[0], ("image", "reconstruction"), strict=False):
        axes.set_title(title, fontsize=8)
    return figure


def _draw_pair(left: Axes, right: Axes, image: np.ndarray, reconstruction: np.ndarray) -> None:
    for axes, values in ((left, image), (right, reconstruction)):
        if values.ndim > 1:
            _show(axes, values)
            axes.set(xticks=[], yticks=[])
        else:
            axes.plot(values, np.arange(len(values)), ".", color=BLUE)
            axes.invert_yaxis()
            axes.tick_params(labelsize=6)


def _draw_weights(axes: Axes, weights: np.ndarray, sample_size: float) -> None:
    """The share that the largest weights have of the whole."""
    axes.plot(np.arange(1, len(weights) + 1), np.sort(weights)[::-1].cumsum(), color=BLUE)
    axes.axvline(sample_size, color=ORANGE, linewidth=0.9, linestyle="--")
    axes.set(xscale="log", ylim=(0, 1.05))
    axes.set_title(f"effective sample size {sample_size:.1f}", fontsize=7, pad=2)
    axes.set_xlabel(f"largest of {len(weights):,} weights", fontsize=7, labelpad=1)
    axes.set_ylabel("their sum", fontsize=7, labelpad=1)
    axes.tick_params(labelsize=6)


def _draw_spans(axes: Axes, spans: np.ndarray) -> None:
    """From the 5th to the 95th percentile of each coordinate's posterior, in quantiles of its prior."""
    from matplotlib.ticker import MaxNLocator

    low, middle, high = spans
    places = np.arange(len(low))
    axes.axhspan(0.05, 0.95, color="0.93", zorder=0)
    axes.vlines(places, low, high, color=BLUE, linewidth=min(4.0, 120 / len(low)), alpha=0.6)
    axes.plot(places, middle, ".", color=ORANGE, markersize=min(6.0, 200 / len(low)))
    axes.set(ylim=(0, 1), xlim=(-0.7, len(low) - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("latent coordinate", fontsize=7, labelpad=1)
    axes.set_ylabel("quantile of the prior", fontsize=7, labelpad=1)
    axes.set_title("posterior: 5 % to 95 % (bars), median (dots); prior (grey)", fontsize=7, pad=2)
    axes.tick_params(labelsize=6)


def _draw_posterior(axes: Axes, z: np.ndarray, weights: np.ndarray, densities: PriorDensities, coordinate: int) -> None:
    ends = 0.001, 0.999
    prior = np.interp(ends, densities.cdf[coordinate], densities.z[coordinate])
    # a posterior may be one draw, far out
    within = weighted_quantiles(z[:, None], weights, ends)[:, 0]
    lowest, highest = min(prior[0], within[0]), max(prior[1], within[1])
    axes.hist(z, np.linspace(lowest, highest, 31), weights=weights, density=True, color=BLUE, alpha=0.5)
    axes.plot(densities.z[coordinate], densities.mixture[coordinate], color=GREEN, linewidth=1.3)
    axes.set(xlim=(lowest, highest), yticks=[])
    axes.set_xlabel(f"$z_{{{coordinate}}}$", fontsize=8, labelpad=1)
    axes.set_title("posterior (bars), prior (line)", fontsize=7, pad=2)
    axes.tick_params(labelsize=6)


def temperatures_figure(
    temperatures: np.ndarray,
    integrand: np.ndarray,
    powers: Sequence[tuple[float, np.ndarray, np.ndarray]],
    coordinate: int,
) -> Figure:
    """Thermodynamic integration: the integrand with its trapezoids, and power posteriors of one coordinate.

    Args:
        temperatures: t_k, (T+1,).
        integrand: E_bk, (T+1, B), in nats.
        powers: some t, each with draws of the coordinate and their weights, from the power posterior of one image.
        coordinate: which one it is.
    """
    import matplotlib

    figure, (panels,) = new_figure(1, 3, (11, 3.4))
    mean = integrand.mean(1)
    for axes, x, label in (
        (panels[0], temperatures, "t"),
        (panels[1], np.linspace(0, 1, len(temperatures)), "k/T, at which t = (k/T)^p"),
    ):
        axes.plot(x, integrand, color="0.75", linewidth=0.8)
        axes.plot(x, mean, color=BLUE, linewidth=1.8, label=f"mean of {integrand.shape[1]} images")
        axes.set(xlabel=label, ylabel="E_t[log p(x|z)] (nats)")
    area = float(np.trapezoid(mean, temperatures))
    panels[0].fill_between(temperatures, mean, 0, color=BLUE, alpha=0.12)
    panels[0].vlines(temperatures, mean, 0, color=BLUE, linewidth=0.4, alpha=0.5)
    panels[0].set_title(f"area of the trapezoids: mean log p(x) = {area:.2f}", fontsize=9)
    panels[1].legend(frameon=False)
    edges = np.linspace(min(z.min() for _, z, _ in powers), max(z.max() for _, z, _ in powers), 26)
    for index, (t, z, weights) in enumerate(powers):
        colour = matplotlib.colormaps["viridis"](0.9 * index / max(1, len(powers) - 1))
        panels[2].stairs(
            np.histogram(z, edges, weights=weights, density=True)[0], edges, color=colour, label=f"t = {t:.2g}"
        )
    panels[2].set(xlabel=f"latent coordinate {coordinate}", ylabel="density")
    panels[2].set_title("power posteriors of one image", fontsize=9)
    panels[2].legend(frameon=False, fontsize=8)
    return figure
