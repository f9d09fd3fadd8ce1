"""Pictures: each pixel of a grid where it should be, and the course of a training as a PNG."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image, ImageSequence

from lvkam.plots import (
    MOST_COLUMNS,
    MOST_IMAGES,
    MOST_POINTS,
    SMALLEST_SIDE,
    WIDEST,
    drawn,
    image_grid,
    loss_figure,
    pair_plot,
    save_evolution,
)
from lvkam.progress import EpochRecord
from lvkam.run_folder import read_losses, write_losses
from lvkam.writing import write_picture

LINE, GREY = 2, 96


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def arrangement(sheet: np.ndarray, shape: tuple[int, ...], factor: int) -> tuple[int, int]:
    """Rows and columns of a sheet, which must be whole."""
    rows, columns = (
        (extent - LINE) / (side * factor + LINE) for extent, side in zip(sheet.shape, shape[1:3], strict=False)
    )
    assert rows.is_integer()
    assert columns.is_integer()
    return int(rows), int(columns)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 12, 50, 144])
@pytest.mark.parametrize("size", [(14, 14), (28, 28), (5, 9), (9, 5), (60, 64), (14, 14, 3)])
def test_every_pixel_is_where_it_should_be(count: int, size: tuple[int, ...]) -> None:
    images = pixels(count, *size)
    factor = max(1, SMALLEST_SIDE // max(size[:2]))
    sheet = np.asarray(image_grid(images))
    rows, columns = arrangement(sheet, images.shape, factor)
    assert columns == math.ceil(count**0.5)
    assert (rows - 1) * columns < count <= rows * columns
    # pixel by pixel from the picture's side: which image, and which of its pixels, or a line
    y, x = np.indices(sheet.shape[:2]) - LINE
    (row, v), (column, u) = np.divmod(y, size[0] * factor + LINE), np.divmod(x, size[1] * factor + LINE)
    index = row * columns + column
    inside = (y >= 0) & (x >= 0) & (v < size[0] * factor) & (u < size[1] * factor) & (index < count)
    assert np.unique(sheet[~inside]).tolist() == [GREY]
    shown = images[index[inside], v[inside] // factor, u[inside] // factor]
    assert np.abs(sheet[inside] - 255 * shown).max() <= 0.5 + 1e-9
    assert sheet.shape[2:] == size[2:]


@pytest.mark.parametrize(("side", "enlarged"), [(1, 56), (14, 56), (19, 38), (28, 56), (29, 29), (56, 56), (100, 100)])
def test_small_images_are_enlarged_by_whole_factors(side: int, enlarged: int) -> None:
    assert image_grid(pixels(1, side, side)).size == (enlarged + 2 * LINE, enlarged + 2 * LINE)


def test_the_first_images_are_shown_and_no_more() -> None:
    images = pixels(MOST_IMAGES + 30, 4, 4)
    sheet = np.asarray(image_grid(images))
    np.testing.assert_array_equal(sheet, np.asarray(image_grid(images[:MOST_IMAGES])))
    assert arrangement(sheet, images.shape, SMALLEST_SIDE // 4) == (12, 12)


def test_values_beyond_the_range_are_clipped() -> None:
    sheet = np.asarray(image_grid(np.array([[[-1.0, 0.0], [1.0, 7.0]]])))
    corners = sheet[[LINE, LINE, -LINE - 1, -LINE - 1], [LINE, -LINE - 1, LINE, -LINE - 1]]
    assert corners.tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(("size", "mode"), [((4, 4), "L"), ((4, 4, 3), "RGB")])
def test_a_grid_is_a_png_whatever_its_name(size: tuple[int, ...], mode: str, tmp_path: Path) -> None:
    images = pixels(3, *size)
    write_picture(tmp_path / "a.jpg", image_grid(images))
    with Image.open(tmp_path / "a.jpg") as picture:
        assert (picture.format, picture.mode) == ("PNG", mode)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(image_grid(images)))


def draw(folder: Path, losses: list[float], updated: bool = False) -> np.ndarray:
    records = [EpochRecord(1.0, epoch, loss, loss + 1, updated, 2 * loss, 3.5) for epoch, loss in enumerate(losses)]
    write_losses(folder / "loss.csv", records)
    write_picture(folder / "loss.png", drawn(loss_figure(read_losses(folder / "loss.csv"))))
    with Image.open(folder / "loss.png") as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("losses", [[100.0], [100.0, 60.0, 50.0], [float(n % 7) for n in range(300)]])
def test_the_curve_of_a_training_is_drawn(losses: list[float], tmp_path: Path) -> None:
    picture = draw(tmp_path, losses)
    assert picture.shape == (374, 1210, 3)
    # three panels, each with a curve in blue
    blue = (np.abs(picture - (0x00, 0x72, 0xB2)).max(-1) < 40).any(0)
    assert [bool(part.any()) for part in np.array_split(blue, 3)] == [True, True, True]


def test_the_curve_shows_losses_and_grid_updates(tmp_path: Path) -> None:
    plain = draw(tmp_path, [5.0, 4.0, 3.0])
    assert np.array_equal(plain, draw(tmp_path, [5.0, 4.0, 3.0]))
    assert not np.array_equal(plain, draw(tmp_path, [5.0, 3.5, 3.0]))
    assert not np.array_equal(plain, draw(tmp_path, [5.0, 4.0, 3.0], updated=True))


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_a_pair_plot_shows_every_pair_once(columns: int) -> None:
    table = np.random.default_rng(0).standard_normal((500, columns)) * 10.0 ** np.arange(columns)
    mean, std = table.mean(0), table.std(0)
    names = [f"$column_{n}$" for n in range(columns)]
    figure = pair_plot(table, names, mean, std)
    figure.canvas.draw()  # a dollar sign is no mathematics
    panels = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert place is not None
        panels[place.rowspan.start, place.colspan.start] = axes
    assert panels.keys() == {(row, column) for row in range(columns) for column in range(row + 1)}
    for (row, column), axes in panels.items():
        np.testing.assert_allclose(axes.get_xlim(), mean[column] + 4 * std[column] * np.array([-1, 1]))
        if row == column:
            bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
            counts, edges = [bar.get_height() for bar in bars], [bar.get_x() for bar in bars]
            edges.append(edges[-1] + bars[-1].get_width())
            np.testing.assert_array_equal(counts, np.histogram(table[:, row], edges)[0])
            assert sum(counts) >= 498
        else:
            np.testing.assert_array_equal(axes.lines[0].get_xdata(), table[:, column])
            np.testing.assert_array_equal(axes.lines[0].get_ydata(), table[:, row])
    assert [panels[columns - 1, n].get_xlabel() for n in range(columns)] == [n.replace("$", r"\$") for n in names]


def test_a_pair_plot_of_many_columns_and_rows_shows_the_first() -> None:
    table = np.random.default_rng(0).standard_normal((MOST_POINTS + 5, MOST_COLUMNS + 2))
    figure = pair_plot(table, [f"{'x' * 30}{n}" for n in range(MOST_COLUMNS + 2)], table.mean(0), table.std(0))
    assert len(figure.axes) == MOST_COLUMNS * (MOST_COLUMNS + 1) // 2
    assert max(len(axes.lines[0].get_xdata()) for axes in figure.axes if axes.lines) == MOST_POINTS  # type: ignore[arg-type]
    assert figure.get_suptitle() == f"the first {MOST_COLUMNS} of {MOST_COLUMNS + 2} columns"
    assert {len(axes.get_ylabel()) for axes in figure.axes if axes.get_ylabel()} == {20}


@pytest.mark.parametrize(
    ("shape", "count"), [((60, 90), 1), ((60, 90), 50), ((60, 90, 3), 3), ((60, 90, 3), 50), ((700, 960), 3)]
)
def test_the_moving_picture_has_a_frame_an_epoch(shape: tuple[int, ...], count: int, tmp_path: Path) -> None:
    pictures = [np.full(shape, 250 * n // count, np.uint8) for n in range(count)]
    if len(shape) == 3:  # from green to red
        for picture in pictures:
            picture[..., 1] = 255 - picture[..., 0]
    save_evolution(tmp_path / "a", [10 * n for n in range(count)], iter(pictures))
    with Image.open(tmp_path / "a") as moving:
        assert moving.format == "GIF"
        frames = [
            (frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(moving)
        ]
        assert moving.info["loop"] == 0
    assert [duration for duration, _ in frames] == [160 if count == 50 else 400] * (count - 1) + [2000]
    width = min(shape[1], WIDEST)
    height = shape[0] * width // shape[1]
    for (_, frame), picture in zip(frames, pictures, strict=True):
        assert frame.shape == (height + 24, width, 3)
        shown = np.broadcast_to(picture[0, 0], 3).astype(int)
        assert np.abs(frame[24:] - shown).max() <= 4
    strips = [frame[:24] for _, frame in frames]  # black on white
    assert all(strip.min() < 100 and np.median(strip) > 250 for strip in strips)
    assert len({strip.tobytes() for strip in strips}) == count
