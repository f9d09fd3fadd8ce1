"""Pictures: grids of images, and the course of a training. No display is needed, and no torch."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from PIL import Image

MOST_IMAGES = 144
"""A grid shows the first so many images."""

SMALLEST_SIDE = 56
"""Images are enlarged, by a whole factor, until they are about as wide as this many pixels."""


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


def save_loss_curve(csv_path: Path, png_path: Path) -> None:
    """Draw `loss.csv`: losses, test NLL and effective sample size by epoch, epochs with grid updates marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["Epoch"]) for row in rows]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    curves = (
        (("Train Loss", "Test Loss"), "loss"),
        (("Test NLL",), "test NLL (nats per image)"),
        (("Effective Sample Size",), "effective sample size"),
    )
    for axes, (columns, label) in zip(panels, curves, strict=True):
        for column, colour, marker in zip(columns, ("#0072B2", "#D55E00"), ("o", "s"), strict=False):
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
    figure.savefig(png_path, dpi=110)
