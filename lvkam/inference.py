"""What is done with a trained model: draw from it, and measure the evidence of data under it."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import os
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from lvkam.annealing import RESAMPLERS, Annealed, anneal_prior, power_schedule
from lvkam.build import load_checkpoint
from lvkam.checkpoint import Checkpoint
from lvkam.config import Config
from lvkam.data import Samples, load_samples
from lvkam.errors import DataError
from lvkam.evidence import (
    PARTICLES,
    REPETITIONS,
    Evidence,
    annealed_log_evidence,
    importance_log_evidence,
)
from lvkam.experiment import draw_samples
from lvkam.plots import temperatures_figure
from lvkam.run_folder import OutputError, check_files, save_samples
from lvkam.sections import ThermodynamicConfig
from lvkam.sources import is_path
from lvkam.training import random_stream
from lvkam.writing import write_atomically

ESTIMATORS = {"importance": (1000, 20000), "annealed": (100, 16)}
"""Ways to estimate evidence, each with how many images and samples it takes unless told."""

LOWEST_SAMPLE_SIZE = 20
"""Effective sample size below which an estimate is not to be trusted: its standard error may be far too small."""

MOST_DRAWN = 500
"""Temperatures that the integrand is drawn at, however many a training uses: more would be one line."""

POWERS = (0.0, 0.01, 0.05, 0.2, 1.0)
"""Temperatures of which power posteriors are drawn."""


def evaluate_checkpoint(
    path: Path,
    num_images: int | None = None,
    num_samples: int | None = None,
    seed: int | None = None,
    data_dir: Path | None = None,
    *,
    estimator: Literal["importance", "annealed"] = "importance",
    num_temps: int = 100,
    moves: int = 1,
    data: str | Samples | None = None,
    per_image: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evidence of images, or rows, under a checkpoint's model: the object of `lvkam evaluate --json`.

    Args:
        path: the checkpoint.
        num_images: B, the first ones of the test split; by the estimator if None, and all of `data`.
        num_samples: S: draws shared by the images, or particles of each image in each of the repetitions.
        seed: of the samples; the run's own if None.
        data_dir: where to look for the data first.
        estimator: one of `ESTIMATORS`.
        num_temps: T, of the annealed estimator.
        moves: its Metropolis moves at each temperature.
        data: what to evaluate: a name, a path, or as loaded; the test split of the model's own data set if None.
        per_image: CSV file for the figures of each image or row.
        overwrite: whether that file may be replaced.

    Raises:
        CheckpointError: no checkpoint.
        DataError: the images cannot be had, are fewer, or of another size.
        OutputError: `per_image` is there already or cannot be written.
    """
    if per_image is not None:
        check_files([per_image], overwrite, path)
    num_samples = num_samples or ESTIMATORS[estimator][1]
    if num_images is None and (data is None or (isinstance(data, str) and not is_path(data))):
        num_images = ESTIMATORS[estimator][0]
    checkpoint, config, model = load_checkpoint(path)
    loaded = _load_test(path, checkpoint, config, data, num_images, data_dir)
    x = loaded.x
    rng = random_stream(checkpoint.seed if seed is None else seed, "evaluation")
    shown = sys.stderr.isatty()
    if estimator == "importance":
        evidence = importance_log_evidence(model, x, num_samples, rng, progress=shown)
    else:
        evidence = annealed_log_evidence(model, x, num_samples, rng, num_temps=num_temps, moves=moves, progress=shown)
    of_table = checkpoint.standardisation
    if of_table is not None:  # of the rows as they are, not standardised
        evidence = dataclasses.replace(evidence, log_evidence=evidence.log_evidence - of_table.log_volume)
    if per_image is not None:
        _write_per_image(per_image, evidence, "Image" if of_table is None else "Row")
    nll = -float(evidence.log_evidence.mean())
    annealed = estimator == "annealed"
    return {
        "nll_nats": nll,
        "nll_stderr": evidence.mean_standard_error,
        "bits_per_dim": nll / math.log(2) / x.shape[1],
        "effective_sample_size": float(evidence.effective_sample_size.mean()),
        "num_images": len(x),
        "num_samples": num_samples,
        "images_not_to_trust": int((evidence.effective_sample_size < LOWEST_SAMPLE_SIZE).sum()),
        "num_repetitions": REPETITIONS if annealed else 1,
        "num_temps": num_temps if annealed else None,
        "acceptance": evidence.acceptance,
        "estimator": estimator,
        "likelihood": config.generator.likelihood,
        "data": data if isinstance(data, str) else f"{checkpoint.dataset}, the first of the test split",
        "values": loaded.scaling,
        "what": "image" if of_table is None else "row",
    }


def _load_test(
    path: Path,
    checkpoint: Checkpoint,
    config: Config,
    data: str | Samples | None,
    count: int | None,
    data_dir: Path | None,
) -> Samples:
    """The first images or rows of the data given, or of the test split of the checkpoint's own data set."""
    if data is None and is_path(checkpoint.dataset):
        # a checkpoint may come from anybody: it does not decide which files are opened
        raise DataError(f"{path}: its model was trained with files of one's own: name the data with --data")
    if isinstance(data, Samples):
        found = data._replace(x=data.x[:count])
    else:
        name, resize = data or checkpoint.dataset, config.training.img_resize
        # of the file that it was trained with, if that is in one piece, what it has not seen
        seen = config.training.num_train if is_path(name) and _is_same(name, checkpoint.dataset) else 0
        found = load_samples(name, count, resize, data_dir, checkpoint.standardisation, skip=seen)
    if found.shape != checkpoint.image_shape:
        raise DataError(f"{path}: its model is of images {checkpoint.image_shape}, not {found.shape}")
    return found


def _is_same(name: str, other: str) -> bool:
    return os.path.realpath(name) == os.path.realpath(other)


def _write_per_image(path: Path, evidence: Evidence, what: str) -> None:
    columns = (evidence.log_evidence, evidence.standard_error, evidence.effective_sample_size)
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((what, "Log Evidence (nats)", "Standard Error", "Effective Sample Size"))
        for index, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            writer.writerow((index, *(f"{value:.6f}" for value in row)))


def plot_temperatures(
    path: Path,
    output: Path,
    *,
    num_images: int = 8,
    seed: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw the integrand of thermodynamic integration, and power posteriors, of a checkpoint's model.

    Args:
        path: the checkpoint.
        output: PNG, PDF or SVG file.
        num_images: of the test split, the first ones.
        seed: of the samples; the run's own if None.
        data: name or path of the data; the test split of the model's own data set if None.
        data_dir: where to look for the data first.
        overwrite: whether a file that is there may be replaced.

    Returns:
        The file.

    Raises:
        CheckpointError: no checkpoint.
        DataError: the images cannot be had.
        OutputError: the file is there already, its folder is not, or its ending is of no picture.
    """
    check_files([output], overwrite, path)
    if output.suffix.lower() not in {".png", ".pdf", ".svg"}:
        raise OutputError(f"{output}: must end in .png, .pdf or .svg")
    checkpoint, config, model = load_checkpoint(path)
    x = _load_test(path, checkpoint, config, data, num_images, data_dir).x
    rng = random_stream(checkpoint.seed if seed is None else seed, "evaluation")
    settings = config.thermodynamic
    num_temps = settings.num_temps if settings.num_temps > 1 else ThermodynamicConfig().num_temps
    temperatures = power_schedule(min(num_temps, MOST_DRAWN), settings.exponent)
    table = model.prior.table()

    def annealed(x: Tensor, num_particles: int, until: float, moves: int) -> Annealed:
        likelihood_of = functools.partial(model.reported_log_likelihood, x)
        return anneal_prior(
            model.prior, likelihood_of, len(x), num_particles, until * temperatures, rng, table,
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
            found = annealed(x[:1], 1024, t, moves=3)
            particles.append((found.state[0], found.weights[0]))
            bar.update()
    # the coordinate that the image tells most about: how far its mean moves, in standard deviations of the prior
    (prior, _), (posterior, weights) = particles[0], particles[-1]
    coordinate = int(((weights @ posterior - prior.mean(0)).abs() / prior.std(0)).argmax())
    powers = [(t, z[:, coordinate].numpy(), w.numpy()) for t, (z, w) in zip(POWERS, particles, strict=True)]
    expectations = torch.cat(integrand, 1).numpy()
    figure = temperatures_figure(temperatures.numpy(), expectations, powers, coordinate)
    with write_atomically(output) as temporary:
        figure.savefig(temporary, format=output.suffix[1:].lower(), dpi=110)
    return output


def sample_checkpoint(
    path: Path,
    num_images: int,
    output: Path,
    grid: Path | None = None,
    *,
    seed: int | None = None,
    save_latents: bool = False,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Draw images, or rows, from a checkpoint's model into an HDF5 file and a picture.

    Args:
        path: the checkpoint.
        num_images: N.
        output: the HDF5 file.
        grid: the PNG file; by default `output` with the ending .png.
        seed: of the samples; the run's own if None, which gives the run's own samples.
        save_latents: whether to add the dataset `latents`.
        overwrite: whether files that are there may be replaced.

    Returns:
        The two files.

    Raises:
        CheckpointError: no checkpoint.
        OutputError: a file is there already, or its folder is not.
    """
    grid = grid or output.parent / f"{output.stem}.png"
    check_files([output, grid], overwrite, path)
    checkpoint, config, model = load_checkpoint(path)
    seed, of_table = checkpoint.seed if seed is None else seed, checkpoint.standardisation is not None
    samples, latents = draw_samples(model, config, num_images, seed, of_table=of_table)
    save_samples(
        output, samples.numpy(), checkpoint.image_shape, checkpoint.standardisation,
        latents.numpy() if save_latents else None, grid,
    )  # fmt: skip
    return output, grid
