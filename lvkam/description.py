"""What a run would be, and what data is there: the same checks, and nothing trained."""

from __future__ import annotations

import math
from pathlib import Path

from lvkam.build import build_model, build_objective, check_optimizer_memory, compilation_plan, layers_of
from lvkam.config import SEARCH_ALONG_LINES, Config
from lvkam.data import Dataset, checked_table, load_samples
from lvkam.evidence import CHUNK
from lvkam.experiment import load_config_dataset
from lvkam.model import LVKAM
from lvkam.objectives import Objective, ThermodynamicIntegration
from lvkam.optimizers import FIRST_ORDER, memory_needed
from lvkam.plots import MOST_IMAGES, drawn, image_grid, pair_plot
from lvkam.run_folder import check_files, check_folder, default_folder, results_in
from lvkam.sources import arrays_of, check_bytes, files_of, find, is_path
from lvkam.training import sample_size
from lvkam.univariate import CHUNK as FEATURES
from lvkam.writing import write_picture

HELD = ", which holds a run: --resume goes on with it, --overwrite replaces it"


def describe_run(config: Config, output: Path | None = None, data_dir: Path | None = None) -> dict[str, str]:
    """What a run would be, after every check that it would make; no run folder is written.

    Raises as `run_experiment` does for bad input, but where the folder holds another run, which is only told.
    """
    folder = output or default_folder(config)
    check_folder(folder, overwrite=True)
    dataset = load_config_dataset(config, data_dir)
    check_optimizer_memory(config, math.prod(dataset.image_shape))
    model = build_model(config, math.prod(dataset.image_shape))
    training = config.training
    steps = training.steps_per_epoch
    first = sample_size(training.initial_sample_size or training.num_samples, training.num_samples, 0.0)
    first = f"{first} to " if first < training.num_samples else ""
    limit = f", at most {training.max_seconds:g} seconds" if training.max_seconds else ""
    return {
        "data": str(dataset),
        "prior": f"{config.prior.latent_dim} latent coordinates, {config.prior.num_components} components each, "
        f"{config.prior.reference_density} reference",
        "generator": " -> ".join(map(str, (*config.generator.widths, math.prod(dataset.image_shape)))),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "steps": f"{training.num_epochs} epochs of {steps} steps of {training.batch_size} {dataset.what} "
        f"and {first}{training.num_samples} samples{limit}",
        "objective": _describe_objective(build_objective(config)),
        "optimizer": _describe_optimizer(config),
        "kernels": f"not compiled: {plan}" if (plan := compilation_plan(config)) else "compiled, if a compiler works",
        "memory": f"about {_memory_estimate(model, config, dataset) / 2**20:.0f} MiB",
        "folder": f"{folder}{HELD if results_in(folder) else ''}",
    }


def describe_data(name: str, picture: Path, data_dir: Path | None = None, *, overwrite: bool = False) -> dict[str, str]:
    """Find or fetch a data set, verify it where its checksums are known, and draw its first images or rows.

    Args:
        name: as for `load_dataset`.
        picture: PNG file.
        data_dir: where to look first.
        overwrite: whether the picture may be replaced.

    Raises:
        DataError: it cannot be had, is damaged, or has other bytes than the published ones.
        OutputError: the picture is there already, or cannot be written.
    """
    check_files([picture], overwrite)
    described: dict[str, str] = {}
    for file in () if is_path(name) else files_of(name):
        path = find(name, file, data_dir)
        verified = check_bytes(name, file, path)
        described[file] = f"{path}, {'verified' if verified else 'no checksum of it is published'}"
    arrays = arrays_of(name, data_dir)
    for split, rows in arrays.items():
        size = "x".join(map(str, rows.shape[1:]))
        kind = f"{size} columns" if rows.is_table else f"images of {size}"
        described[split] = f"{rows.shape[0]} {'rows of ' if rows.is_table else ''}{kind}, {rows.dtype}"
    rows = next(iter(arrays.values()))
    if rows.is_table:
        table = checked_table(name, rows.read(0, rows.shape[0]), rows.columns)
        described["columns"] = ", ".join(rows.columns)
        shown = drawn(pair_plot(table, rows.columns, table.mean(0), table.std(0)))
    else:
        images = load_samples(name, min(MOST_IMAGES, rows.shape[0]), None, data_dir, split="train")
        described["values"] = images.scaling
        shown = image_grid(images.x.numpy().reshape(-1, *images.shape))
    write_picture(picture, shown)
    described["picture"] = str(picture)
    return described


def _describe_objective(objective: Objective) -> str:
    few = ""
    if objective.gradient_samples:
        how = "of the largest weights" if objective.gradient_selection == "top" else "drawn by weight"
        few = f", gradient through {objective.gradient_samples} samples of each image {how}"
    if not isinstance(objective, ThermodynamicIntegration):
        return f"importance sampling{few}"
    particles = f", moves at each: {objective.moves_per_temperature}, of each image's own particles"
    return (
        f"thermodynamic integration, {objective.estimator}, {objective.num_temps} temperatures, "
        f"resampling: {objective.resampler}{particles if objective.moves_per_temperature else ''}{few}"
    )


def _describe_optimizer(config: Config) -> str:
    settings, search = config.optimizer, config.line_search
    words = [settings.type]
    if settings.type in SEARCH_ALONG_LINES:
        rho = f", rho = {search.rho:g}" if search.type == "backtrack" else f", c_2 = {search.c_2:g}"
        words.append(f"line search {search.type} (c_1 = {search.c_1:g}{rho})")
    if settings.type == "l-bfgs":
        words.append(f"of {settings.lbfgs_memory} steps")
    falls = f" by {settings.step_factor:g} every {settings.step_every} epochs" if settings.schedule == "step" else ""
    words.append(f"learning rate {settings.learning_rate:g}, schedule {settings.schedule}{falls}")
    if settings.warmup_steps:
        words.append(f"rising over {settings.warmup_steps} steps")
    if settings.prior_rate != 1 and settings.type in FIRST_ORDER:
        words.append(f"{settings.prior_rate:g} times that for the prior")
    return ", ".join(words)


def _memory_estimate(model: LVKAM, config: Config, dataset: Dataset) -> float:
    """Bytes: the libraries, the images, parameters with gradients and Adam's two moments, or what another
    optimiser needs besides, and the step's tensors."""
    libraries = 350 * 2**20
    parameters = sum(p.numel() for p in model.parameters())
    batch, samples = config.training.batch_size, config.training.num_samples
    if config.thermodynamic.num_temps > 1 and config.thermodynamic.moves_per_temperature:
        samples *= batch  # each image has its own
    samples = max(samples, CHUNK)
    values = sum(layer.num_inputs + layer.num_outputs for _, layer in layers_of(model)) + batch
    quadrature = config.prior.quadrature_points * config.prior.latent_dim * config.prior.num_components
    floats = dataset.train.numel() + 4 * parameters + 4 * samples * values + 6 * quadrature + 4 * FEATURES
    of_optimizer = memory_needed(config.optimizer.type, parameters, config.optimizer.lbfgs_memory)
    return libraries + 4 * floats + of_optimizer
