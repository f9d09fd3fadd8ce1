"""Pictures of a checkpoint's model, by kind: the arrays of `lvkam.inspection` brought to the figures that show them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lvkam.annealing import RESAMPLERS, Annealed, anneal_prior, power_schedule
from lvkam.build import load_checkpoint
from lvkam.errors import InputError
from lvkam.evidence import PARTICLES
from lvkam.function_figures import MOST_PANELS, NODES, Names, functions_figure, network_figure, prior_figure
from lvkam.inspection import (
    decode,
    interpolation,
    nearest,
    traversal,
)
from lvkam.latent_figures import lines_figure, nearest_figure, posterior_figure, strips_figure, temperatures_figure
from lvkam.monitoring import FRAMES, frames_in
from lvkam.plots import DPI, MOST_IMAGES, MOST_POINTS, loss_figure, pair_plot, save_evolution, sheet_figure, short_name
from lvkam.readers import read_image
from lvkam.run_folder import OutputError, check_files
from lvkam.sections import ThermodynamicConfig
from lvkam.subject import PictureError, Subject
from lvkam.training import random_stream
from lvkam.writing import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS, EVOLUTION = (".png", ".pdf", ".svg"), "evolution"

HISTOGRAM = 20000
"""Draws of the prior in its histograms."""

LEVELS = np.linspace(0.02, 0.98, 11)
"""Quantiles of the prior that a traversal stops at."""

STEPS = np.linspace(0, 1, 11)
"""Of an interpolation."""

TRAVERSED, INTERPOLATED = 10, 8
"""Coordinates of a traversal, unless they are named, and rows of interpolations."""

MOST_DRAWN = 500
"""Temperatures that the integrand is drawn at, however many a training uses: more would be one line."""

POWERS = (0.0, 0.01, 0.05, 0.2, 1.0)
"""Temperatures of which power posteriors are drawn."""


def _prior(subject: Subject) -> Figure:
    samples = subject.loaded.model.prior.sample(HISTOGRAM, subject.rng(2)).numpy()
    return prior_figure(subject.densities, samples, subject.order, subject.activities)


def _names(subject: Subject) -> Names:
    """Of outputs, as figures have room for them."""
    return lambda layer, index: short_name(subject.output_name(layer, index))


def _functions(subject: Subject) -> Figure:
    return functions_figure(subject.layers, _names(subject))


def _network(subject: Subject) -> Figure:
    layers = [layer for layer in subject.layers if layer.name.startswith("generator")]
    # of the data, not of what the output activation flattens
    variance = decode(subject.loaded.model, subject.layers[0].inputs.double().numpy()).var(0)
    outputs = _spread_pixels(variance, subject.image_shape)
    return network_figure(layers, subject.densities, outputs, _names(subject), subject.image_shape)


def _spread_pixels(variance: np.ndarray, image_shape: tuple[int, ...] | None) -> list[int]:
    """The outputs of most variance, (D,): of images one in each of 3 x 3 blocks, so that they lie apart."""
    order = np.argsort(-variance, kind="stable")
    if image_shape is None:
        return sorted(order[:NODES].tolist())
    height, width = image_shape[:2]
    row, column = np.unravel_index(order, image_shape)[:2]
    block = 3 * row // height * 3 + 3 * column // width
    _, first = np.unique(block, return_index=True)
    return order[first].tolist()


def _traversal(subject: Subject) -> Figure:
    coordinates = subject.order if subject.coordinates else subject.order[:TRAVERSED]
    _, (z,) = subject.draw(1)
    moved = list(subject.images(traversal(subject.loaded.model, subject.densities, z, coordinates, LEVELS)))
    names = [f"$z_{{{q}}}$ ({100 * subject.activities[q]:.0f} %)" for q in coordinates]
    label = "quantile of the coordinate's prior"
    if subject.is_table:
        return lines_figure(moved, names, LEVELS, label, subject.columns)
    title = "one draw, in which a single coordinate changes (in brackets its activity)"
    return strips_figure(moved, names, LEVELS, label, title)


def _interpolation(subject: Subject) -> Figure:
    pairs = np.split(subject.draw(2 * INTERPOLATED)[1], INTERPOLATED)
    rows = [subject.images(interpolation(subject.loaded.model, subject.densities, ends, STEPS)) for ends in pairs]
    names = [f"{2 * n} to {2 * n + 1}" for n in range(len(rows))]
    label = "share of the way, in quantiles of the prior"
    if subject.is_table:
        return lines_figure(rows, names, STEPS, label, subject.columns)
    return strips_figure(rows, names, STEPS, label, "from one draw to another")


def _posterior(subject: Subject) -> Figure:
    _check_room(subject)
    x = subject.test(default=4).x
    found = subject.posterior(x)
    images, reconstructions = subject.images(x.numpy()), subject.images(found.reconstruction)
    return posterior_figure(images, reconstructions, found, subject.densities)


def _check_room(subject: Subject) -> None:
    if (subject.num_images or 0) > MOST_PANELS:
        raise PictureError(f"{subject.num_images} images have no room in one figure; at most {MOST_PANELS} have")


def _loss(subject: Subject) -> Figure:
    if not subject.loaded.checkpoint.training:
        raise PictureError(f"{subject.path}: holds a model alone, without the log of a training")
    return loss_figure([record.as_row() for record in subject.loaded.checkpoint.progress.log])


def _samples(subject: Subject) -> Figure:
    drawn, _ = subject.draw(min(subject.num_images or 100, MOST_POINTS if subject.is_table else MOST_IMAGES))
    if (of := subject.loaded.checkpoint.standardisation) is not None:
        return pair_plot(of.restore(drawn), of.columns, of.mean, of.std)
    return sheet_figure(subject.images(drawn))


def _nearest(subject: Subject) -> Figure:
    if subject.is_table:
        raise PictureError(f"{subject.path}: is a model of rows; nearest neighbours are drawn of images")
    _check_room(subject)
    among = subject.training()
    drawn = subject.draw(subject.num_images or 20)[0].clip(0, 1)
    index, distance = nearest(torch.from_numpy(drawn), among)
    title = f"samples, and below each the nearest of {len(among):,} training images, with their distance"
    images, neighbours = subject.images(drawn), subject.images(among[index].numpy())
    return nearest_figure(images, neighbours, distance, title)


def _temperatures(subject: Subject) -> Figure:
    """The integrand of thermodynamic integration, and power posteriors of the first image."""
    _, config, model = subject.loaded
    x, rng = subject.test(default=8).x, random_stream(subject.seed, "evaluation")
    settings = config.thermodynamic
    num_temps = settings.num_temps if settings.num_temps > 1 else ThermodynamicConfig().num_temps
    temperatures = power_schedule(min(num_temps, MOST_DRAWN), settings.exponent)
    table = model.prior.table()

    def annealed(x: Tensor, num_particles: int, until: float, moves: int) -> Annealed:
        likelihood_of = functools.partial(model.reported_log_likelihood, x)
        ladder = torch.cat(
            (temperatures[(temperatures < until) | (temperatures == 0)], temperatures.new_tensor([until]))
        )
        return anneal_prior(
            model.prior, likelihood_of, len(x), num_particles, ladder, rng, table,
            moves=moves, resampler=RESAMPLERS["stratified"], threshold=0.5,
        )  # fmt: skip

    each = 128  # particles of an image for the integrand
    chunks = x.split(PARTICLES // each)
    bar = tqdm(total=len(chunks) + len(POWERS), desc="annealing", leave=False, disable=not sys.stderr.isatty())
    integrand, particles = [], []
    with bar:
        for chunk in chunks:
            integrand.append(annealed(chunk, each, 1.0, moves=1).expectations)
            bar.update()
        for t in POWERS:
            found = annealed(x[:1], 512, t, moves=3)
            particles.append((found.state[0], found.weights[0]))
            bar.update()
    # the coordinate that the image tells most about: how far its mean moves, in standard deviations of the prior
    (prior, _), (posterior, weights) = particles[0], particles[-1]
    coordinate = int(((weights @ posterior - prior.mean(0)).abs() / prior.std(0)).argmax())
    powers = [(t, z[:, coordinate].numpy(), w.numpy()) for t, (z, w) in zip(POWERS, particles, strict=True)]
    expectations = torch.cat(integrand, 1).numpy()
    return temperatures_figure(temperatures.numpy(), expectations, powers, coordinate)


def _save_evolution(subject: Subject, file: Path) -> None:
    """The pictures that a training with `gen_every` left beside its checkpoint, as an animated GIF."""
    frames = frames_in(subject.path.parent)
    if not frames:
        raise PictureError(
            f"{subject.path.parent / FRAMES}: holds no pictures of a training: they are written while it lasts, with "
            "--set TRAINING.gen_every=1 after every epoch"
        )
    save_evolution(file, list(frames), map(read_image, frames.values()))


KINDS: dict[str, Callable[[Subject], Figure]] = {
    "prior": _prior,
    "functions": _functions,
    "network": _network,
    "traversal": _traversal,
    "interpolation": _interpolation,
    "posterior": _posterior,
    "loss": _loss,
    "samples": _samples,
    "nearest": _nearest,
    "temperatures": _temperatures,
}
"""What can be drawn, besides `evolution`, which moves."""


def plot_checkpoint(
    path: Path,
    files: Mapping[str, Path],
    *,
    num_images: int | None = None,
    coordinates: Sequence[int] = (),
    seed: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    overwrite: bool = False,
    leave_out: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw what a checkpoint's model has learnt.

    Args:
        path: the checkpoint.
        files: kinds of picture, of `KINDS`, each with its PNG, PDF or SVG file; `evolution` with a GIF file.
        num_images: how many images are explained, drawn or compared; by the kind if None.
        coordinates: latent coordinates to draw, in this order; the most active ones if there are none.
        seed: of the samples; the run's own if None.
        data: name or path of the data; the model's own data set if None.
        data_dir: where to look for the data first.
        overwrite: whether files that are there may be replaced.
        leave_out: told why a picture cannot be made of this checkpoint, which then is no error.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: no checkpoint.
        PictureError: a picture cannot be made of it.
        DataError: images that a picture needs cannot be had.
        OutputError: a file is there already, its folder is not, or its ending is of no picture.
    """
    check_files(list(files.values()), overwrite, path)
    for kind, file in files.items():
        allowed = (".gif",) if kind == EVOLUTION else FORMATS
        if file.suffix.lower() not in allowed:
            words = ", ".join(allowed[:-1]) + " or " * (len(allowed) > 1) + allowed[-1]
            raise OutputError(f"{file}: must end in {words}")
    loaded = load_checkpoint(path)
    seed = loaded.checkpoint.seed if seed is None else seed
    subject = Subject(path, loaded, seed, data, data_dir, num_images, tuple(coordinates))
    written = []
    bar = tqdm(files.items(), desc="drawing", leave=False, disable=len(files) == 1 or not sys.stderr.isatty())
    for kind, file in bar:
        bar.set_postfix_str(kind)
        try:
            with write_atomically(file) as temporary:
                if kind == EVOLUTION:
                    _save_evolution(subject, temporary)
                else:
                    KINDS[kind](subject).savefig(temporary, format=file.suffix[1:].lower(), dpi=DPI)
        except InputError as error:
            if leave_out is None:
                raise
            leave_out(f"{kind}: {error}")
        else:
            written.append(file)
    return written
