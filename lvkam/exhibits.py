"""What a report shows of a trained model: pictures as data URIs, charts, and the numbers that the page computes with.

Letters: N images or rows, D data dimensions, Q latent coordinates, P mixture components, L levels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvkam.charts import Chart, Series, line_chart
from lvkam.inspection import (
    Curve,
    strongest_functions,
    traversal,
)
from lvkam.page_model import (
    HIGHEST,
    LOWEST,
    MOST_CHARACTERS,
    encode_array,
    generator_payload,
    quantile_levels,
    quantile_payload,
)
from lvkam.plots import SMALLEST_SIDE
from lvkam.progress import EpochRecord
from lvkam.run_folder import picture_of
from lvkam.subject import Subject
from lvkam.summary import Run

NUM_SAMPLES, NUM_ROWS = 64, 2000
"""Images, or rows of a table, that are shown."""

MOST_NUMBERS = 150_000
"""Pixel values of a set of pictures: of larger images fewer are shown."""

NUM_RECONSTRUCTIONS = 12

MOST_TRAVERSED, STEPS, STEPS_OF_CURVES = 12, 13, 65
"""Coordinates, and places of each: of images, and of a table's columns."""

MOST_COMPONENTS, DENSITY_POINTS, MOST_OPEN = 6, 90, 24
"""Curves beside a prior density, those of the heaviest components; points of each; and how many coordinates have all
that, while those that one sees only when asking have their density, with half of the points."""

TAIL = 2e-4
"""What a curve of an unbounded density leaves out at either end."""

FUNCTIONS_OF_A_LAYER = 6

FRAMES, MOST_FRAMED = 33, 16
"""Where the page has no room for the generator: places of a coordinate, and how many coordinates."""

COLOURS = 7
"""Of the style sheet."""


def look_at(run: Run, seed: int) -> tuple[Subject, np.ndarray, np.ndarray]:
    """A run's model as `lvkam plot` looks at it, its samples as it sees data, (N, D), and their latents, (N, Q)."""
    subject = Subject(run.path, run.loaded, seed)
    return subject, *subject.draw(NUM_ROWS if run.is_table else NUM_SAMPLES)


def coordinate_name(q: int) -> str:
    """z with its number below."""
    return "z" + str(q).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def percent(share: float) -> str:
    """A share, written with two digits."""
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


# pictures


def _number_of(most: int, numbers: int) -> int:
    """How many pictures of so many numbers are shown."""
    return max(1, min(most, MOST_NUMBERS // numbers))


def data_uri(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    png = io.BytesIO()
    picture.save(png, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode('ascii')}"


def sheet(run: Run, x: np.ndarray) -> str:
    """The first images, or a pair plot of rows, (N, D)."""
    count = NUM_ROWS if run.is_table else _number_of(NUM_SAMPLES, x.shape[1])
    return data_uri(picture_of(x[:count], run.shape, run.checkpoint.standardisation))


def strip(images: np.ndarray, shape: tuple[int, ...]) -> str:
    """Images, (N, D), beside one another, with nothing in between."""
    factor, gap = max(1, SMALLEST_SIDE // max(shape[:2])), 2
    pixels = np.round(255 * np.clip(images.reshape(-1, *shape[:2], math.prod(shape[2:])), 0, 1)).astype(np.uint8)
    pixels = np.concatenate((pixels, np.full_like(pixels[..., :1], 255)), -1)  # opaque, but for the gaps
    pixels = np.pad(pixels.repeat(factor, 1).repeat(factor, 2), ((0, 0), (0, 0), (0, gap), (0, 0)))
    return data_uri(Image.fromarray(np.concatenate(list(pixels), axis=1)[:, :-gap]))


def reconstructions(run: Run, subject: Subject, x: Tensor) -> dict[str, Any]:
    """Test images, (N, D), and the posterior means of what is generated."""
    x = x[: _number_of(NUM_RECONSTRUCTIONS, 2 * x.shape[1])]
    found = subject.posterior(x)
    rows = [("test image", x.numpy()), ("reconstruction", found.reconstruction)]
    return {
        "num_samples": f"{len(found.z):,}",
        "sample_size": f"{np.median(found.sample_size):.0f}",
        "rows": [(name, strip(images, run.shape)) for name, images in rows],
    }


# charts


def loss_charts(log: Sequence[EpochRecord]) -> list[Chart]:
    """Losses, test NLL and effective sample size by epoch; epoch 0, far above the others, is left out."""
    after = log[1:] or log
    epochs = np.array([record.epoch for record in after], np.float64)
    marks = [float(record.epoch) for record in after if record.grid_updated] if len(after) <= 100 else []

    def of(name: str, field: str, style: str) -> Series:
        return Series(name, epochs, np.array([getattr(record, field) for record in after], np.float64), style)

    losses = [of("train", "train_loss", "c0"), of("test", "test_loss", "c1")]
    nll, sizes = of("test NLL", "test_nll", "c1"), of("effective sample size", "effective_sample_size", "c2")
    return [
        line_chart("Loss", losses, x_label="epoch", marks=marks),
        line_chart("Test NLL (nats)", [nll], x_label="epoch", marks=marks),
        line_chart("Effective sample size", [sizes], x_label="epoch", marks=marks, log_y=True),
    ]


def shared_loss_charts(runs: Sequence[tuple[Run, str]]) -> list[Chart]:
    """The same of several runs, each in its style, by training time."""

    def of(field: str) -> list[Series]:
        found = []
        for run, style in runs:
            after = run.log[1:] or run.log
            seconds, values = (np.array([getattr(r, f) for r in after], np.float64) for f in ("seconds", field))
            found.append(Series(run.name, seconds, values, style))
        return found

    return [
        line_chart("Train loss", of("train_loss"), x_label="seconds"),
        line_chart("Test NLL (nats)", of("test_nll"), x_label="seconds"),
        line_chart("Effective sample size", of("effective_sample_size"), x_label="seconds", log_y=True),
    ]


def prior_charts(run: Run, subject: Subject, most: int | None = None) -> list[tuple[Chart, str]]:
    """Densities of the most active coordinates with their components and pi_0, each with its activity in words."""
    densities, prior = subject.densities, run.model.prior
    weights = prior.log_weights().detach().exp().numpy()  # (Q, P)
    charts = []
    for place, q in enumerate(subject.order[:most]):
        z = densities.z[q]
        low, high = z[[0, -1]] if prior.reference.bounded else np.interp([TAIL, 1 - TAIL], densities.cdf[q], z)
        is_open = place < MOST_OPEN
        x = np.linspace(low, high, DENSITY_POINTS if is_open else DENSITY_POINTS // 2)
        shown = MOST_COMPONENTS if is_open and weights.shape[1] > 1 else 0
        heaviest = np.argsort(-weights[q], kind="stable")[:shown]
        series = [
            Series(f"component {p}", x, np.interp(x, z, densities.components[q, p]), "c1 faint") for p in heaviest
        ]
        series.append(Series("π₀", x, np.interp(x, z, densities.reference[q]), "reference"))
        series.append(Series("p", x, np.interp(x, z, densities.mixture[q]), "c0"))
        name = coordinate_name(q)
        chart = line_chart(name, series, x_label=name, from_zero=True, small=True)
        charts.append((chart, percent(subject.activities[q])))
    return charts


def function_groups(subject: Subject) -> list[tuple[str, list[Chart]]]:
    """The strongest functions of each layer."""
    found = []
    for inspected in subject.layers:
        part, _, index = inspected.name.partition(".layers.")
        size = f"{inspected.layer.num_inputs} × {inspected.layer.num_outputs}"
        curves = strongest_functions(inspected, FUNCTIONS_OF_A_LAYER)
        charts = [_function_chart(_function_name(subject, curve), curve) for curve in curves]
        found.append((f"{part.capitalize()}, layer {int(index) + 1}: {size} functions", charts))
    return found


def _function_name(subject: Subject, curve: Curve) -> str:
    """From where to where a function goes."""
    source = coordinate_name(curve.input) if curve.layer.endswith(".0") else f"hidden {curve.input}"
    return f"{source} → {subject.output_name(curve.layer, curve.output)}"


def _function_chart(name: str, curve: Curve) -> Chart:
    series = [
        Series("spline", curve.x, curve.spline, "c5 dashed"),
        Series("base", curve.x, curve.base, "c4 dashed"),
        Series("sum", curve.x, curve.spline + curve.base, "c0"),
    ]
    return line_chart(name, series, x_label="input", knots=curve.knots, data=curve.data)


# traversals, and what the page computes with


def traversal_strips(run: Run, subject: Subject, start: np.ndarray) -> list[tuple[str, str]]:
    """Images as one of the most active coordinates at a time goes through its prior, from the first sample."""
    steps = _number_of(STEPS, math.prod(run.shape))
    order = subject.order[: _number_of(MOST_TRAVERSED, steps * math.prod(run.shape))]
    levels = np.linspace(LOWEST, HIGHEST, steps)
    found = traversal(run.model, subject.densities, start, order, levels)
    return [
        (f"{coordinate_name(q)} · {percent(subject.activities[q])}", strip(images, run.shape))
        for q, images in zip(order, found, strict=True)
    ]


def traversal_charts(run: Run, subject: Subject, start: np.ndarray) -> list[Chart]:
    """The same for a table: its first columns, in standard deviations from their means."""
    of_table, order = run.checkpoint.standardisation, subject.order[:MOST_TRAVERSED]
    assert of_table is not None
    levels = np.linspace(LOWEST, HIGHEST, STEPS_OF_CURVES)
    found = traversal(run.model, subject.densities, start, order, levels)
    charts = []
    for q, rows in zip(order, found, strict=True):
        z = np.interp(levels, subject.densities.cdf[q], subject.densities.z[q])
        columns = zip(of_table.columns[:COLOURS], rows.T, strict=False)
        series = [Series(name, z, values, f"c{d}") for d, (name, values) in enumerate(columns)]
        charts.append(line_chart(coordinate_name(q), series, x_label=coordinate_name(q)))
    return charts


def page_data(run: Run, subject: Subject, latents: np.ndarray) -> dict[str, Any]:
    """What `report.js` computes with: the generator, or frames where it has no room, quantiles, the first sample."""
    start, densities = latents[0], subject.densities
    table = densities.quantile(np.tile(quantile_levels()[:, None], len(start)))  # (L, Q)
    columns = [np.interp(table[:, q], densities.z[q], densities.mixture[q]) for q in range(len(start))]
    page: dict[str, Any] = {
        "shape": list(run.shape),
        "start": start.tolist(),
        "quantiles": quantile_payload(table, np.stack(columns, 1)),
        "generator": generator_payload(run.model, run.config, torch.from_numpy(latents).float(), MOST_CHARACTERS),
    }
    if page["generator"] is None:
        page["frames"] = _frames(run, subject, start)
    if (of_table := run.checkpoint.standardisation) is not None:
        page |= {"columns": of_table.columns, "mean": of_table.mean.tolist(), "std": of_table.std.tolist()}
    return page


def _frames(run: Run, subject: Subject, start: np.ndarray) -> dict[str, Any]:
    room = MOST_CHARACTERS * 6 // (16 * FRAMES * math.prod(run.shape))
    coordinates = subject.order[: min(MOST_FRAMED, room)]  # none, of very large images
    if not coordinates:
        return {"coordinates": []}
    values = traversal(run.model, subject.densities, start, coordinates, quantile_levels(FRAMES))
    scale = float(np.abs(values).max()) / 32767 or 1.0
    coded = encode_array(np.round(values / scale).astype(np.int16))
    return {"coordinates": coordinates, "levels": FRAMES, "scale": scale, "values": coded}
