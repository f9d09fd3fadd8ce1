"""Checkpoints: one self-contained HDF5 file, readable with plain h5py, without pickle and without torch.

    /                      attrs: format format_version lvkam_version config dataset image_shape seed epoch iteration
    /prior/mixture_logits  (Q, P)
    /prior/layers/<n>/     grid (I, G+1+2k)  coef (I, O, K)  w_base (I, O)  w_spline (I, O)  [bandwidth ()]
    /generator/layers/<n>/ the same
    /training/             state of the optimiser, of the random numbers and of the grid updates

Every array carries the SHA-256 of its bytes, and the file the SHA-256 of them all and of its attributes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lvkam.config import parse_config
from lvkam.errors import InputError

FORMAT = "lvkam-checkpoint"
FORMAT_VERSION = 1
_TEXT = ("format", "lvkam_version", "config", "dataset")
_NUMBERS = ("format_version", "seed", "epoch", "iteration")
_ATTRIBUTES: dict[str, type] = {
    **dict.fromkeys((*_TEXT, "sha256"), str),
    **dict.fromkeys(_NUMBERS, np.integer),
    "image_shape": np.ndarray,
}


class CheckpointError(InputError):
    """A file that is no checkpoint, or a damaged one; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """What the file holds, as NumPy arrays by their paths in it."""

    config: str
    """The resolved configuration, INI text."""
    dataset: str
    image_shape: tuple[int, ...]
    seed: int
    epoch: int
    iteration: int
    lvkam_version: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    """`prior/...` and `generator/...`: the model."""
    training: Mapping[str, np.ndarray] = field(repr=False, default_factory=dict)
    """`training/...`: what going on with the training needs."""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that the path holds the old file or the new one, never a part.

    Raises:
        OSError: it could not be written; a file that was there before is intact.
    """
    attributes: dict[str, object] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "lvkam_version": checkpoint.lvkam_version,
        "config": checkpoint.config,
        "dataset": checkpoint.dataset,
        "image_shape": np.asarray(checkpoint.image_shape, dtype=np.int64),
        "seed": checkpoint.seed,
        "epoch": checkpoint.epoch,
        "iteration": checkpoint.iteration,
    }
    arrays = {name: np.asarray(a, order="C") for name, a in {**checkpoint.arrays, **checkpoint.training}.items()}
    digests = {name: _digest(array) for name, array in arrays.items()}
    with write_atomically(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array).attrs["sha256"] = digests[name]
        file.attrs.update(attributes)
        file.attrs["sha256"] = _total_digest(attributes, digests)


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Context: a temporary path beside `path`, synced and renamed to it at the end, removed on failure."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: the file is missing, is no checkpoint, is of another version, or is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise CheckpointError(f"{path}: not a checkpoint of lvkam (not an HDF5 file)")
    try:
        with h5py.File(path, "r") as file:
            return _read(path, file)
    except CheckpointError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        # what h5py raises on a file whose structure is broken
        raise CheckpointError(f"{path}: damaged: {error}") from error


def _read(path: Path, file: h5py.File) -> Checkpoint:
    if str(file.attrs.get("format")) != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of lvkam")
    version = file.attrs.get("format_version")
    if not isinstance(version, np.integer) or version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version}: this lvkam reads {FORMAT_VERSION}")
    for name, kind in _ATTRIBUTES.items():
        if name not in file.attrs:
            raise CheckpointError(f"{path}: damaged: the attribute {name} is missing")
        value = file.attrs[name]
        if not isinstance(value, kind) or (isinstance(value, np.ndarray) and value.dtype.kind != "i"):
            raise CheckpointError(f"{path}: damaged: the attribute {name} is of the wrong kind")
    numbers = {n: int(np.asarray(file.attrs[n]).item()) for n in _NUMBERS}
    image_shape = np.asarray(file.attrs["image_shape"], dtype=np.int64)
    attributes: dict[str, object] = {**{n: str(file.attrs[n]) for n in _TEXT}, **numbers, "image_shape": image_shape}

    arrays: dict[str, np.ndarray] = {}
    _collect(path, file, "", arrays)
    digests = {name: _digest(array) for name, array in arrays.items()}
    for name, digest in digests.items():
        if file[name].attrs.get("sha256") != digest:
            raise CheckpointError(f"{path}: damaged: the checksum of {name} does not match")
    if file.attrs["sha256"] != _total_digest(attributes, digests):
        raise CheckpointError(f"{path}: damaged: the checksum of the whole does not match")
    return Checkpoint(
        config=str(attributes["config"]),
        dataset=str(attributes["dataset"]),
        image_shape=tuple(image_shape.tolist()),
        seed=numbers["seed"],
        epoch=numbers["epoch"],
        iteration=numbers["iteration"],
        lvkam_version=str(attributes["lvkam_version"]),
        arrays={n: a for n, a in arrays.items() if not n.startswith("training/")},
        training={n: a for n, a in arrays.items() if n.startswith("training/")},
    )


def _collect(path: Path, group: h5py.Group, prefix: str, arrays: dict[str, np.ndarray]) -> None:
    """All numeric arrays below a group; a link that leads elsewhere, or anything else, is refused."""
    for name in group:
        full = f"{prefix}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{path}: {full} is a link to elsewhere, which no checkpoint holds")
        item = group[name]
        if isinstance(item, h5py.Group):
            _collect(path, item, f"{full}/", arrays)
        elif isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and not (item.external or item.is_virtual):
            arrays[full] = np.asarray(item[()])
        else:
            raise CheckpointError(f"{path}: {full} is not an array of numbers stored in the file")


def _digest(array: np.ndarray) -> str:
    header = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def _total_digest(attributes: Mapping[str, object], digests: Mapping[str, str]) -> str:
    lines = [f"{name}={value}" for name, value in sorted(attributes.items())]
    lines += [f"{name} {digest}" for name, digest in sorted(digests.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: the object that `lvkam info --json` prints; needs no model."""
    checkpoint = read_checkpoint(path)
    config = parse_config(checkpoint.config, f"{path} (config)")
    learnt = {"prior": config.prior.bandwidth_trainable, "generator": config.generator.bandwidth_trainable}
    counted = [
        array.size
        for name, array in checkpoint.arrays.items()
        if not name.endswith("/grid") and (learnt[name.split("/")[0]] or not name.endswith("/bandwidth"))
    ]
    return {
        "parameters": sum(counted),
        "epoch": checkpoint.epoch,
        "iteration": checkpoint.iteration,
        "dataset": checkpoint.dataset,
        "image_shape": list(checkpoint.image_shape),
        "seed": checkpoint.seed,
        "lvkam_version": checkpoint.lvkam_version,
        "verified": True,  # reading it verified every checksum
        "config": config.to_dict(),
    }
