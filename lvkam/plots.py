"""Pictures: grids of images, pair plots, the course of a training, temperatures. No display is needed, and no torch."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # what draws no curves does not wait for it
    from matplotlib.figure import Figure

MOST_IMAGES = 144
"""A grid shows the first so many images."""

SMALLEST_SIDE = 56
"""Images are enlarged, by a whole factor, until they are about as wide as this many pixels."""


MOST_COLUMNS, MOST_POINTS = 6, 5000
"""A pair plot shows the first so many columns and rows."""

SPAN = 4
"""Standard deviations to either side of the mean, on its axes."""

BLUE = "#0072B2"


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Panels, (rows, columns), in a figure of a size in inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def image_grid(images: np.ndarray) -> Image.Image:
    """A near-square grid of images with thin lines between them.

    Args:
        images: (N, H, W) or (N, H, W, 3), in [0, 1]; the first `MOST_IMAGES` are shown.
    """
    images = images[:MOST_IMAGES]
    height, width = images.shape[1:3]
    factor = max(1, SMALLEST_SIDE // max(height, width))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    pixels = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    height, width = pixels.shape[1:3]
    columns = math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    line = 2
    sheet = np.full((rows * (height + line) + line, columns * (width + line) + line, *pixels.shape[3:]), 96, np.uint8)
    for index, image in enumerate(pixels):
        top = line + index // columns * (height + line)
        left = line + index % columns * (width + line)
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def save_image_grid(path: Path, images: np.ndarray) -> None:
    """Write `image_grid` as a PNG file, whatever the path ends with."""
    image_grid(images).save(path, format="PNG")


def collage(panels: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Samples of several models side by side, each with its title: images as a grid, tables by their first columns.

    Args:
        panels: titles, with images (N, H, W) or (N, H, W, 3), or rows (N, D).
    """
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, all_axes = _figure(rows, columns, (3 * columns, 3.3 * rows))
    for axes in all_axes.flat:
        axes.set_axis_off()
    for axes, (title, samples) in zip(all_axes.flat, panels, strict=False):
        axes.set_title(title, fontsize=8)
        if samples.ndim == 2:
            axes.set_axis_on()
            axes.plot(samples[:, 0], samples[:, min(1, samples.shape[1] - 1)], ".", markersize=2, color=BLUE)
        else:
            sheet = image_grid(samples)
            axes.imshow(np.asarray(sheet), cmap="gray" if sheet.mode == "L" else None, vmin=0, vmax=255)
    return figure


def pair_plot(table: np.ndarray, columns: Sequence[str], mean: np.ndarray, std: np.ndarray) -> Figure:
    """Columns against one another: histograms on the diagonal, points below it.

    Args:
        table: (N, D); the first `MOST_COLUMNS` columns and `MOST_POINTS` rows are shown.
        columns: names.
        mean: (D,), with `std` what the axes span, the same for any samples of one model.
        std: (D,).
    """
    shown, table = min(MOST_COLUMNS, table.shape[1]), table[:MOST_POINTS]
    figure, panels = _figure(shown, shown, (1.5 + 1.7 * shown, 1.2 + 1.7 * shown))
    low, high = mean - SPAN * std, mean + SPAN * std
    size = min(7.0, max(2.5, 120 / math.sqrt(len(table))))  # few points can be seen, and many told apart
    for row in range(shown):
        for column in range(shown):
            axes = panels[row, column]
            axes.tick_params(labelsize=7, labelbottom=row == shown - 1, labelleft=column == 0 < row)
            if column > row:
                axes.remove()
            elif column == row:
                axes.hist(table[:, row], np.linspace(low[row], high[row], 49), color=BLUE)
                axes.set_xlim(low[row], high[row])
                axes.set_yticks([])
            else:
                axes.plot(table[:, column], table[:, row], ".", markersize=size, alpha=0.5, color=BLUE, mew=0)
                axes.set(xlim=(low[column], high[column]), ylim=(low[row], high[row]))
            if row == shown - 1 and column <= row:
                axes.set_xlabel(_short(columns[column]), fontsize=9)
            if column == 0:
                axes.set_ylabel(_short(columns[row]), fontsize=9)
    if shown < len(columns):
        figure.suptitle(f"the first {shown} of {len(columns)} columns", fontsize=9)
    return figure


def _short(name: str) -> str:
    # a dollar sign would begin mathematics
    return (name if len(name) <= 20 else f"{name[:19]}…").replace("$", r"\$")


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

    figure, (panels,) = _figure(1, 3, (11, 3.4))
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


def save_loss_curve(csv_path: Path, png_path: Path) -> None:
    """Draw `loss.csv`: losses, test NLL and effective sample size by epoch, epochs with grid updates marked."""
    from matplotlib.ticker import MaxNLocator

    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["Epoch"]) for row in rows]
    figure, (panels,) = _figure(1, 3, (11, 3.4))
    curves = (
        (("Train Loss", "Test Loss"), "loss"),
        (("Test NLL",), "test NLL (nats)"),
        (("Effective Sample Size",), "effective sample size"),
    )
    for axes, (columns, label) in zip(panels, curves, strict=True):
        for column, colour, marker in zip(columns, (BLUE, "#D55E00"), ("o", "s"), strict=False):
            values = [float(row[column]) for row in rows]
            axes.plot(epochs, values, color=colour, marker=marker, markersize=4, label=column)
        for epoch, row in zip(epochs, rows, strict=True):
            if row["Grid Updated"] == "true":
                axes.axvline(epoch, color="0.8", linestyle=":", zorder=0)
        axes.set_xlabel("epoch (dotted: grids updated)")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(columns) > 1:
            axes.legend(frameon=False)
    figure.savefig(png_path, format="png", dpi=110)
