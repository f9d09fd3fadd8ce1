"""What is done with a trained model: draw from it, and measure the evidence of data under it."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

from lvkam.checkpoint import write_atomically
from lvkam.data import DataError, load_dataset
from lvkam.evidence import Evidence, importance_log_evidence
from lvkam.experiment import draw_images, load_checkpoint
from lvkam.run_folder import check_files, save_images
from lvkam.training import random_stream


def evaluate_checkpoint(
    path: Path,
    num_images: int,
    num_samples: int,
    seed: int | None = None,
    data_dir: Path | None = None,
    *,
    per_image: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evidence of the first test images under a checkpoint's model: the object of `lvkam evaluate --json`.

    Args:
        path: the checkpoint.
        num_images: B, the first ones of the test split.
        num_samples: S.
        seed: of the samples; the run's own if None.
        data_dir: where to look for the data first.
        per_image: CSV file for the figures of each image.
        overwrite: whether that file may be replaced.

    Raises:
        CheckpointError: no checkpoint.
        DataError: the images cannot be had, are fewer, or of another size.
        OutputError: `per_image` is there already or cannot be written.
    """
    if per_image is not None:
        check_files([per_image], overwrite, path)
    checkpoint, config, model = load_checkpoint(path)
    dataset = load_dataset(checkpoint.dataset, 1, num_images, config.training.img_resize, data_dir)
    if dataset.image_shape != checkpoint.image_shape:
        raise DataError(f"{path}: its model is of images {checkpoint.image_shape}, not {dataset.image_shape}")
    rng = random_stream(checkpoint.seed if seed is None else seed, "evaluation")
    evidence = importance_log_evidence(model, dataset.test, num_samples, rng, progress=sys.stderr.isatty())
    if per_image is not None:
        _write_per_image(per_image, evidence)
    nll = -float(evidence.log_evidence.mean())
    return {
        "nll_nats": nll,
        "nll_stderr": evidence.mean_standard_error,
        "bits_per_dim": nll / math.log(2) / dataset.test.shape[1],
        "effective_sample_size": float(evidence.effective_sample_size.mean()),
        "num_images": num_images,
        "num_samples": num_samples,
        "estimator": "importance",
        "likelihood": config.generator.likelihood,
    }


def _write_per_image(path: Path, evidence: Evidence) -> None:
    columns = (evidence.log_evidence, evidence.standard_error, evidence.effective_sample_size)
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("Image", "Log Evidence (nats)", "Standard Error", "Effective Sample Size"))
        for index, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            writer.writerow((index, *(f"{value:.6f}" for value in row)))


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
    """Draw images from a checkpoint's model into an HDF5 file and a PNG grid.

    Args:
        path: the checkpoint.
        num_images: N.
        output: the HDF5 file.
        grid: the PNG file; by default `output` with the ending .png.
        seed: of the samples; the run's own if None, which gives the run's own images.
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
    images, latents = draw_images(model, config, num_images, checkpoint.seed if seed is None else seed)
    save_images(output, images.numpy(), checkpoint.image_shape, latents.numpy() if save_latents else None, grid)
    return output, grid
