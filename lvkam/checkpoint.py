"""Checkpoints: one self-contained HDF5 file, readable with plain h5py, without pickle and without torch.

    /                      attrs: format format_version lvkam_version config dataset image_shape seed epoch iteration
    /prior/mixture_logits  (Q, P)
    /prior/layers/<n>/     grid (I, G+1+2k)  coef (I, O, K)  w_base (I, O)  w_spline (I, O)  [bandwidth ()]
    /generator/layers/<n>/ the same
    /data/                 of a table: mean (D)  std (D), its columns' standardisation; their names: attr columns
    /training/optimizer/   the optimiser's state, an array for each of its quantities under each parameter's path
    /training/progress/    `TrainingState`: counts, sums, random numbers, the log
    /training/             compiled (), on_gpu (), bfloat16 (), threads (), data_sha256 (32): what it was trained with

Every array carries the SHA-256 of its bytes, the file the SHA-256 of them all and of its attributes, and before its
first byte that of all bytes (`lvkam.hdf5`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lvkam.config import Config, parse_config
from lvkam.errors import InputError
from lvkam.hdf5 import (
    HDF5Error,
    Layout,
    check_names,
    digest,
    holds,
    open_hdf5,
    read_array,
    read_integers,
    read_text,
    write_hdf5,
)
from lvkam.progress import TrainingState
from lvkam.sections import UnivariateConfig
from lvkam.standardisation import LARGEST, Standardisation, default_names

FORMAT = "lvkam-checkpoint"
FORMAT_VERSION = 1
_TEXT = ("lvkam_version", "config", "dataset")
_NUMBERS = ("seed", "epoch", "iteration")
_ATTRIBUTES = ("format", "format_version", *_TEXT, *_NUMBERS, "image_shape", "sha256")
_OF_TABLES = ("columns",)
LARGEST_SIDE = 10**6
"""Of an image."""

OPTIMIZER_STATE: dict[str, tuple[str, ...]] = {
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
    "sgd": (),
    "rms": ("square_avg", "step"),
    "gd": (),
    "cg": ("direction", "scaled_difference"),
    "bfgs": ("inverse_hessian", "step"),
    "l-bfgs": ("changes", "differences", "step"),
    "newton": (),
    "interior-point": (),
    "neldermead": (),
}
"""What each optimiser remembers of a parameter: arrays like it, but for those of `_state_shape`."""


def _state_shape(key: str, shape: tuple[int, ...], num_parameters: int, memory: int) -> tuple[int, ...]:
    """Of an array that an optimiser keeps of a parameter of a shape; matrices have the order of the model's memory."""
    size = math.prod(shape)
    if key == "step":  # how many were taken
        return ()
    if key == "inverse_hessian":  # this parameter's rows
        return size, num_parameters
    if key in {"changes", "differences"}:  # a row for each of the pairs
        return memory, size
    return shape


_FLOAT, _WIDE, _INTEGER = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)


class CheckpointError(HDF5Error):
    """A file that is no checkpoint, or a damaged one; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """What the file holds, as NumPy arrays by their paths in it."""

    config: str
    """The resolved configuration, INI text."""
    dataset: str
    image_shape: tuple[int, ...]
    """(H, W) or (H, W, 3); (D,) of a table."""
    seed: int
    epoch: int
    iteration: int
    lvkam_version: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    """`prior/...` and `generator/...`: the model."""
    training: Mapping[str, np.ndarray] = field(repr=False, default_factory=dict)
    """`training/...`: what going on with the training needs; empty in a file of a model alone."""
    standardisation: Standardisation | None = field(repr=False, default=None)
    """Of a table's columns."""

    @property
    def progress(self) -> TrainingState:
        """Where the training stands.

        Raises:
            CheckpointError: nothing is there to go on with.
        """
        prefix = "training/progress/"
        arrays = {n.removeprefix(prefix): a for n, a in self.training.items() if n.startswith(prefix)}
        if not arrays:
            raise CheckpointError("a model alone: nothing that a training could go on with")
        return TrainingState.from_arrays(self.epoch, self.iteration, arrays)


def _layer_layout(prefix: str, section: UnivariateConfig, widths: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    knots = section.grid_size + 1 + 2 * section.spline_degree
    splines = section.spline_function == "B-spline"
    bases = section.grid_size + section.spline_degree if splines else knots
    for index, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layer = f"{prefix}/layers/{index}"
        yield f"{layer}/grid", (_FLOAT, (inputs, knots))
        yield f"{layer}/coef", (_FLOAT, (inputs, outputs, bases))
        yield f"{layer}/w_base", (_FLOAT, (inputs, outputs))
        yield f"{layer}/w_spline", (_FLOAT, (inputs, outputs))
        if not splines:
            yield f"{layer}/bandwidth", (_WIDE, ())


def model_layout(config: Config, data_dim: int) -> Layout:
    """Types and shapes of the arrays of a configuration's model, by their paths."""
    prior, generator = config.prior, config.generator
    return {
        "prior/mixture_logits": (_FLOAT, (prior.latent_dim, prior.num_components)),
        **dict(_layer_layout("prior", prior, prior.layer_widths[::-1])),
        **dict(_layer_layout("generator", generator, (*generator.widths, data_dim))),
    }


def learnt(config: Config, path: str) -> bool:
    """Whether the array of a path is a parameter."""
    section = config.prior if path.startswith("prior/") else config.generator
    return not path.endswith("/grid") and (section.bandwidth_trainable or not path.endswith("/bandwidth"))


def count_parameters(config: Config, data_dim: int) -> int:
    """How many numbers a configuration's model learns."""
    layout = model_layout(config, data_dim)
    return sum(math.prod(shape) for path, (_, shape) in layout.items() if learnt(config, path))


def training_layout(config: Config, data_dim: int, epoch: int) -> Layout:
    """The same for what going on with the training needs."""
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        "training/compiled": (np.dtype(np.bool_), ()),
        "training/on_gpu": (np.dtype(np.bool_), ()),
        "training/bfloat16": (np.dtype(np.bool_), ()),
        "training/threads": (_INTEGER, ()),
        "training/data_sha256": (np.dtype(np.uint8), (32,)),
    }
    layout |= {f"training/progress/{name}": entry for name, entry in TrainingState.layout(epoch).items()}
    num_parameters, memory = count_parameters(config, data_dim), config.optimizer.lbfgs_memory
    for path, (_, shape) in model_layout(config, data_dim).items():
        for key in OPTIMIZER_STATE[config.optimizer.type] if learnt(config, path) else ():
            of_key = _state_shape(key, shape, num_parameters, memory)
            layout[f"training/optimizer/{path}/{key}"] = (_FLOAT, of_key)
    return layout


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that the path holds the old file or the new one, never a part.

    Raises:
        WriteError: it could not be written; a file that was there before is intact.
    """
    attributes: dict[str, object] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{name: getattr(checkpoint, name) for name in _TEXT},
        "image_shape": np.asarray(checkpoint.image_shape, dtype=np.int64),
        **{name: getattr(checkpoint, name) for name in _NUMBERS},
    }
    arrays = {name: np.asarray(a, order="C") for name, a in {**checkpoint.arrays, **checkpoint.training}.items()}
    if (of_table := checkpoint.standardisation) is not None:
        named = of_table.columns != default_names(len(of_table.columns))
        attributes["columns"] = "\n".join(of_table.columns) if named else ""
        arrays |= {"data/mean": of_table.mean, "data/std": of_table.std}
    digests = {name: digest(array) for name, array in arrays.items()}

    def fill(file: h5py.File) -> None:
        for name, array in arrays.items():
            file.create_dataset(name, data=array).attrs["sha256"] = digests[name]
        file.attrs.update(attributes)
        file.attrs["sha256"] = _total_digest(attributes, digests)

    write_hdf5(path, fill, seal=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint: every byte, every name, type and shape, every number.

    Raises:
        CheckpointError: the file is missing, no checkpoint, of another version, damaged, or contradicts itself.
    """
    try:
        with open_hdf5(path) as file:
            return _read(path, file)
    except InputError as error:  # of the file, or of the configuration in it
        raise CheckpointError(str(error)) from error


def _read(path: Path, file: h5py.File) -> Checkpoint:
    if read_text(path, file, "format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of lvkam")
    (version,) = read_integers(path, file, "format_version", ())
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version}: this lvkam reads {FORMAT_VERSION}")
    text = {name: read_text(path, file, name) for name in _TEXT}
    numbers = {name: read_integers(path, file, name, ())[0] for name in _NUMBERS}
    shape = read_integers(path, file, "image_shape")
    is_table = len(shape) == 1
    of_data = shape and shape[2:] in {(), (3,)} and all(0 < side <= LARGEST_SIDE for side in shape)
    if not of_data or min(numbers.values()) < 0:
        raise CheckpointError(f"{path}: damaged: {shape}, {numbers}: not numbers of a run")
    config, data_dim = parse_config(text["config"], f"{path} (config)"), math.prod(shape)

    model = model_layout(config, data_dim)
    layout = dict(model)
    if is_table:
        text["columns"] = read_text(path, file, "columns")
        layout |= {"data/mean": (_WIDE, shape), "data/std": (_WIDE, shape)}
    if holds(file, "training"):
        layout |= training_layout(config, data_dim, numbers["epoch"])
    check_names(path, file, _ATTRIBUTES + _OF_TABLES * is_table, layout)
    read = {name: read_array(path, file, name, *entry) for name, entry in layout.items()}
    arrays = {name: array for name, (array, _) in read.items()}
    digests = {name: checksum for name, (_, checksum) in read.items()}
    attributes: dict[str, object] = {
        "format": FORMAT, "format_version": FORMAT_VERSION, **text, **numbers, "image_shape": np.asarray(shape),
    }  # fmt: skip
    if read_text(path, file, "sha256") != _total_digest(attributes, digests):
        raise CheckpointError(f"{path}: damaged: the checksum of the whole does not match")
    for name, array in arrays.items():
        if problem := problem_of(name, array):
            raise CheckpointError(f"{path}: {problem}")
    checkpoint = Checkpoint(
        config=text["config"],
        dataset=text["dataset"],
        image_shape=shape,
        seed=numbers["seed"],
        epoch=numbers["epoch"],
        iteration=numbers["iteration"],
        lvkam_version=text["lvkam_version"],
        arrays={name: arrays[name] for name in model},
        training={name: array for name, array in arrays.items() if name.startswith("training/")},
        standardisation=_standardisation(path, text["columns"], arrays) if is_table else None,
    )
    if checkpoint.training:
        try:
            progress = checkpoint.progress  # making it verifies it
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged: {error}") from error
        most = config.training.steps_per_epoch
        if progress.batches > most:
            raise CheckpointError(f"{path}: damaged: {progress.batches} batches of an epoch of {most}")
    return checkpoint


def _standardisation(path: Path, columns: str, arrays: Mapping[str, np.ndarray]) -> Standardisation:
    mean, std = arrays["data/mean"], arrays["data/std"]
    names = tuple(columns.split("\n")) if columns else default_names(len(mean))
    if len(names) != len(mean) or not ((np.abs(mean) < LARGEST) & (std > 1 / LARGEST) & (std < LARGEST)).all():
        raise CheckpointError(f"{path}: damaged: no standardisation of its {len(mean)} columns")
    return Standardisation(names, mean, std)


def problem_of(name: str, array: np.ndarray) -> str | None:
    """Why an array of a checkpoint cannot be one, if so: a number is not finite, or knots do not increase."""
    if not (np.isfinite(array).all() or name == "training/progress/best_nll"):  # infinite before the first epoch
        return f"{name} holds numbers that are not finite"
    if name.endswith("/grid") and not (np.diff(array) > 0).all():
        return f"{name} holds knots that do not increase"
    if (
        name.startswith("training/optimizer/")
        and name.endswith("/step")
        and not (array >= 0 and array == np.round(array))
    ):
        return f"{name} holds {array}, which is no count"
    if name.endswith("/bandwidth") and array <= 0:
        return f"{name} holds {array}, which is not greater than 0"
    return None


def _total_digest(attributes: Mapping[str, object], digests: Mapping[str, str]) -> str:
    lines = [f"{name}={value}" for name, value in sorted(attributes.items())]
    lines += [f"{name} {digest}" for name, digest in sorted(digests.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: the object that `lvkam info --json` prints; needs no model."""
    checkpoint = read_checkpoint(path)
    config = parse_config(checkpoint.config, f"{path} (config)")
    return {
        "parameters": sum(array.size for name, array in checkpoint.arrays.items() if learnt(config, name)),
        "epoch": checkpoint.epoch,
        "iteration": checkpoint.iteration,
        "dataset": checkpoint.dataset,
        "image_shape": list(checkpoint.image_shape),
        **({} if checkpoint.standardisation is None else {"columns": list(checkpoint.standardisation.columns)}),
        "seed": checkpoint.seed,
        "lvkam_version": checkpoint.lvkam_version,
        "verified": True,  # reading it verified every checksum
        "config": config.to_dict(),
    }
