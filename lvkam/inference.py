"""What is done with a trained model: draw from it, and measure the evidence of data under it."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lvkam.build import LoadedModel, load_checkpoint
from lvkam.data import Samples, load_samples, static_bits
from lvkam.errors import DataError, InputError
from lvkam.evidence import (
    REPETITIONS,
    Evidence,
    annealed_log_evidence,
    importance_log_evidence,
)
from lvkam.experiment import draw_samples
from lvkam.quality import check_metrics, measure_quality
from lvkam.readers import WHOLE, own_arrays
from lvkam.run_folder import check_files, save_samples
from lvkam.sources import is_path
from lvkam.training import random_stream
from lvkam.writing import write_table

ESTIMATORS = {"importance": (1000, 20000), "annealed": (100, 16)}
"""Ways to estimate evidence, each with how many images and samples it takes unless told."""

LOWEST_SAMPLE_SIZE = 20
"""Effective sample size below which an estimate is not to be trusted: its standard error may be far too small."""


def caution(figures: Mapping[str, Any] | None) -> str | None:
    """What to say of evidence, as `evaluate_checkpoint` returns it, that is not to be trusted, if so."""
    if not figures or "images_not_to_trust" not in figures:
        return None
    few = figures["images_not_to_trust"]
    if few <= figures["num_images"] / 100:
        return None
    remedy = "--estimator annealed, or " if figures["estimator"] == "importance" else ""
    return (
        f"{few} of {figures['num_images']} {figures['what']}s have an effective sample size under "
        f"{LOWEST_SAMPLE_SIZE}, too low to trust the estimate or its error; try {remedy}more --num-samples"
    )


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
    metrics: Sequence[str] = ("nll",),
    num_generated: int | None = None,
    loaded: LoadedModel | None = None,
) -> dict[str, Any]:
    """Evidence of images, or rows, under a checkpoint's model, and the quality of its samples.

    It is the object of `lvkam evaluate --json`.

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
        metrics: `nll`, the evidence, and out of `lvkam.quality.METRICS`; or `all` alone.
        num_generated: how many samples the other metrics compare with as many real ones, by `measure_quality` if None.
        loaded: the checkpoint, if it has been read already.

    Raises:
        InputError: an unknown metric, or `per_image` without `nll`.
        CheckpointError: no checkpoint.
        DataError: the images cannot be had, are fewer, or of another size.
        FeaturesError: the cached classifier is damaged.
        OutputError: `per_image` is there already or cannot be written.
    """
    names = check_metrics(metrics)
    if per_image is not None:
        if "nll" not in names:
            raise InputError("the figures of each image are of nll, which is not among the metrics")
        check_files([per_image], overwrite, path)
    loaded = loaded or load_checkpoint(path)
    what = "image" if loaded.checkpoint.standardisation is None else "row"
    found: dict[str, Any] = {}
    if "nll" in names:
        if num_images is None and (data is None or (isinstance(data, str) and not is_path(data))):
            num_images = ESTIMATORS[estimator][0]
        test = load_split(path, loaded, data, num_images, data_dir)
        rng = random_stream(loaded.checkpoint.seed if seed is None else seed, "evaluation")
        num_samples = num_samples or ESTIMATORS[estimator][1]
        evidence = _evidence(loaded, test.x, rng, estimator, num_samples, num_temps, moves)
        if per_image is not None:
            _write_per_image(per_image, evidence, what.capitalize())
        where = data if isinstance(data, str) else f"{loaded.checkpoint.dataset}, the first of the test split"
        found |= _summary(evidence, test, estimator, num_samples, num_temps) | {"data": where}
    if qualities := [name for name in names if name != "nll"]:
        test, name = load_split(path, loaded, data, None, data_dir), data or loaded.checkpoint.dataset
        train = _load_train(path, loaded, name, data_dir) if isinstance(name, str) else None
        found |= {"values": test.scaling, "compared_with": data if isinstance(data, str) else "the test split"}
        found |= measure_quality(
            loaded, test.x, train, qualities,
            data=name if isinstance(name, str) else None, num_compared=num_generated, seed=seed, data_dir=data_dir,
        )  # fmt: skip
    config = loaded.config
    return found | {"likelihood": config.generator.likelihood, "binarize": config.training.binarize, "what": what}


def _evidence(
    loaded: LoadedModel,
    x: Tensor,
    rng: torch.Generator,
    estimator: Literal["importance", "annealed"],
    num_samples: int,
    num_temps: int,
    moves: int,
) -> Evidence:
    """The evidence of images, or of rows as they are, not standardised."""
    shown = sys.stderr.isatty()
    if estimator == "importance":
        evidence = importance_log_evidence(loaded.model, x, num_samples, rng, progress=shown)
    else:
        evidence = annealed_log_evidence(
            loaded.model, x, num_samples, rng, num_temps=num_temps, moves=moves, progress=shown
        )
    if (of_table := loaded.checkpoint.standardisation) is None:
        return evidence
    return dataclasses.replace(evidence, log_evidence=evidence.log_evidence - of_table.log_volume)


def _summary(
    evidence: Evidence, test: Samples, estimator: str, num_samples: int, num_temps: int
) -> dict[str, float | str | None]:
    nll, annealed = -float(evidence.log_evidence.mean()), estimator == "annealed"
    return {
        "nll_nats": nll,
        "nll_stderr": evidence.mean_standard_error,
        "bits_per_dim": nll / math.log(2) / test.x.shape[1],
        "effective_sample_size": float(evidence.effective_sample_size.mean()),
        "num_images": len(test.x),
        "num_samples": num_samples,
        "images_not_to_trust": int((evidence.effective_sample_size < LOWEST_SAMPLE_SIZE).sum()),
        "num_repetitions": REPETITIONS if annealed else 1,
        "num_temps": num_temps if annealed else None,
        "acceptance": evidence.acceptance,
        "estimator": estimator,
        "values": test.scaling,
    }


def load_split(
    path: Path,
    loaded: LoadedModel,
    data: str | Samples | None,
    count: int | None,
    data_dir: Path | None,
    split: Literal["train", "test"] = "test",
) -> Samples:
    """The first images or rows of the data given, or of a checkpoint's own data set; binarised if it is of bits.

    Args:
        path: of the checkpoint, for messages.
        loaded: the checkpoint.
        data: a name, a path, or as loaded; the data set that it was trained with if None.
        count: how many; all if None.
        data_dir: where to look for data first.
        split: where there are two; of data in one piece the test split is what the model has not been trained with.

    Raises:
        DataError: they cannot be had, are fewer, of another size, or somebody's own and not named.
    """
    checkpoint, config, _ = loaded
    if data is None and is_path(checkpoint.dataset):
        # a checkpoint may come from anybody: it does not decide which files are opened
        raise DataError(f"{path}: its model was trained with files of one's own: name the data with --data")
    if isinstance(data, Samples):
        found = data._replace(x=data.x[:count])
    else:
        name, resize = data or checkpoint.dataset, config.training.img_resize
        knows = split == "test" and is_path(name) and _is_same(name, checkpoint.dataset)
        skip = config.training.num_train if knows else 0
        found = load_samples(name, count, resize, data_dir, checkpoint.standardisation, split, skip)
    if found.shape != checkpoint.image_shape:
        raise DataError(f"{path}: its model is of images {checkpoint.image_shape}, not {found.shape}")
    if config.training.binarize != "none" and not (bits := static_bits(found.x, split)).equal(found.x):
        found = found._replace(x=bits, scaling=f"{found.scaling}, binarised")  # what are bits already stay so
    return found


def _load_train(path: Path, loaded: LoadedModel, name: str, data_dir: Path | None) -> Tensor | None:
    """The training images or rows of a data set; None where it is in one piece that the model was not trained with."""
    count = None
    if is_path(name) and WHOLE in own_arrays(Path(name)):
        if not _is_same(name, loaded.checkpoint.dataset):
            return None
        count = loaded.config.training.num_train
    return load_split(path, loaded, name, count, data_dir, "train").x


def _is_same(name: str, other: str) -> bool:
    return os.path.realpath(name) == os.path.realpath(other)


def _write_per_image(path: Path, evidence: Evidence, what: str) -> None:
    names = (what, "Log Evidence (nats)", "Standard Error", "Effective Sample Size")
    columns = (evidence.log_evidence, evidence.standard_error, evidence.effective_sample_size)
    figures = enumerate(zip(*(column.tolist() for column in columns), strict=True))
    rows = ((str(index), *(f"{value:.6f}" for value in row)) for index, row in figures)
    write_table(path, names, (dict(zip(names, row, strict=True)) for row in rows))


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
