"""Pictures of data and of a training: grids of images, pair plots, losses. No display is needed, and no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:  # what draws no curves does not wait for it
    from matplotlib.figure import Figure

MOST_IMAGES = 144
"""A grid shows the first so many images."""

SMALLEST_SIDE = 56
"""Images are enlarged, by a whole factor, until they are about as wide as this many pixels."""

MOST_COLUMNS, MOST_POINTS = 6, 5000
"""A pair plot shows the first so many columns and rows."""

WIDEST = 480
"""Pixels across a moving picture."""

DPI = 110
"""Of figures written as pixels."""

SPAN = 4
"""Standard deviations to either side of the mean, on its axes."""

BLUE, ORANGE, GREEN, PURPLE = COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
"""Told apart by the colour-blind too (Okabe and Ito 2008)."""


def new_figure(
    rows: int, columns: int, size: tuple[float, float], widths: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """Panels, (rows, columns), in a figure of a size in inches, drawn without a display; columns as wide as told."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, width_ratios=widths)


def drawn(figure: Figure) -> Image.Image:
    """A figure as RGB pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


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


def sheet_figure(images: np.ndarray) -> Figure:
    """`image_grid` as a figure, for files that hold no pixels."""
    sheet = image_grid(images)
    figure, ((axes,),) = new_figure(1, 1, (sheet.width / DPI, sheet.height / DPI))
    figure.set_layout_engine(None)
    axes.set_position((0, 0, 1, 1))
    axes.imshow(np.asarray(sheet), cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    return figure


def save_evolution(path: Path, epochs: Sequence[int], pictures: Iterable[np.ndarray]) -> None:
    """Write an animated GIF of a model's samples while it learns, its last picture held for two seconds.

    Args:
        path: the GIF file, whatever it ends with.
        epochs: T, written above the pictures.
        pictures: T of them, (H, W) or (H, W, 3), 8 bits; reduced to `WIDEST` pixels, and to the first one's size.
    """

    def frames() -> Iterator[Image.Image]:
        size, strip = None, 24
        for epoch, pixels in zip(epochs, pictures, strict=True):
            picture = Image.fromarray(pixels).convert("L" if pixels.ndim == 2 else "RGB")
            shrink = max(1.0, picture.width / WIDEST)
            size = size or (round(picture.width / shrink), round(picture.height / shrink))
            sheet = Image.new(picture.mode, (size[0], size[1] + strip), "white")
            sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (0, strip))
            ImageDraw.Draw(sheet).text((6, 3), f"epoch {epoch}", fill="black", font_size=15)
            yield sheet.quantize(64)

    each = min(400, max(40, 8000 // len(epochs) // 10 * 10))  # GIF counts hundredths of a second
    durations, others = [each] * (len(epochs) - 1) + [2000], frames()
    next(others).save(path, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def collage(panels: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Samples of several models side by side, each with its title: images as a grid, tables by their first columns.

    Args:
        panels: titles, with images (N, H, W) or (N, H, W, 3), or rows (N, D).
    """
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, all_axes = new_figure(rows, columns, (3 * columns, 3.3 * rows))
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
    figure, panels = new_figure(shown, shown, (1.5 + 1.7 * shown, 1.2 + 1.7 * shown))
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
                axes.set_xlabel(short_name(columns[column]), fontsize=9)
            if column == 0:
                axes.set_ylabel(short_name(columns[row]), fontsize=9)
    if shown < len(columns):
        figure.suptitle(f"the first {shown} of {len(columns)} columns", fontsize=9)
    return figure


def short_name(name: str) -> str:
    """A column's name as a figure has room for."""
    # a dollar sign would begin mathematics
    return (name if len(name) <= 20 else f"{name[:19]}…").replace("$", r"\$")


def loss_figure(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Rows of `loss.csv`: losses, test NLL and effective sample size by epoch, epochs with grid updates marked.

    Epoch 0, before any training, is told in words where there are two others: beside it all of them look alike.
    """
    from matplotlib.ticker import MaxNLocator

    before, rows = (rows[0], rows[1:]) if len(rows) > 2 else (None, rows)
    epochs = [int(row["Epoch"]) for row in rows]
    figure, (panels,) = new_figure(1, 3, (11, 3.4))
    curves = (
        (("Train Loss", "Test Loss"), "loss"),
        (("Test NLL",), "test NLL (nats)"),
        (("Effective Sample Size",), "effective sample size"),
    )
    for axes, (columns, label) in zip(panels, curves, strict=True):
        for column, colour, marker in zip(columns, (BLUE, ORANGE), ("o", "s"), strict=False):
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
    if before is not None:
        words = (f"{column.lower()} {float(before[column]):.4g}" for columns, _ in curves for column in columns)
        figure.suptitle(f"before training: {', '.join(words)}".replace("nll", "NLL"), fontsize=9)
    return figure
