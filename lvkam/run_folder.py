"""A run's folder: its name, who may write there, and its files of numbers and images."""

from __future__ import annotations

import csv
import errno
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import h5py
import numpy as np
from PIL import Image

from lvkam.config import Config
from lvkam.errors import InputError
from lvkam.hdf5 import write_hdf5
from lvkam.plots import drawn, image_grid, pair_plot
from lvkam.progress import EpochRecord
from lvkam.standardisation import Standardisation
from lvkam.writing import PART, WriteError, remove_parts, write_picture, write_table, write_text

RUN_FILES = (
    "config.ini", "loss.csv", "loss.png", "ckpt.h5", "best.h5",
    "real_images.h5", "real_images.png", "generated_images.h5", "generated_images.png",
)  # fmt: skip
"""What a run writes into its folder."""

FRAMES, EVENTS = "evolution", "tensorboard"
"""Folders within it, for whoever wants to watch a training."""

OUTCOMES = ("loss.png", "generated_images.h5", "generated_images.png")
"""What a run writes when all is trained."""

JOB = ".job"
"""Which job of several processes has begun the run, or gone on with it: it alone may do so again unasked."""

JOURNAL = "journal.log"
"""Of a sweep, in its folder."""


class OutputError(InputError):
    """A place where nothing can be put, or where something would be lost."""


def default_folder(config: Config) -> Path:
    """logs/{Vanilla|Thermodynamic}/{reference density}/{dataset}_{seed}."""
    method = "Thermodynamic" if config.thermodynamic.num_temps > 1 else "Vanilla"
    dataset = Path(config.training.dataset).absolute().stem
    return Path("logs", method, config.prior.reference_density, f"{dataset}_{config.training.seed}")


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a path stands for: a run folder's, or the file itself."""
    return path / "ckpt.h5" if path.is_dir() else path


def is_sweep(path: Path) -> bool:
    """Whether a path is a sweep's folder."""
    return (path / JOURNAL).is_file()


def results_in(folder: Path) -> list[str]:
    """Names of the files and folders of a run that a folder holds.

    Raises:
        OutputError: no folder can have this name.
        WriteError: nobody may look there.
    """
    try:
        held = [name for name in RUN_FILES if (folder / name).exists()]
        return held + [name for name in (FRAMES, EVENTS) if any((folder / name).glob("*"))]
    except OSError as error:
        raise _refusal(folder, error) from error


def _refusal(path: Path, error: OSError) -> OutputError | WriteError:
    """Bad input is a name that no file can have; whatever else the system refuses is a failure."""
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"{path}: cannot be written ({error.strerror})")
    return WriteError(path, error)


def check_files(files: Sequence[Path], overwrite: bool, checkpoint: Path | None = None) -> None:
    """Make sure that these files can be written, without writing anything.

    Args:
        files: what will be written.
        overwrite: whether they may replace what is there.
        checkpoint: what they are made from, if it is one, and must not replace.

    Raises:
        OutputError: one is there already or is the checkpoint, two are the same, or there is no such place.
        WriteError: nothing can be written there.
    """
    for file in files:
        try:
            if file.is_dir() or not file.name:
                raise OutputError(f"{file}: is a folder")
            if file.exists() and not overwrite:
                raise OutputError(f"{file}: exists already; give --overwrite to replace it")
            if not file.absolute().parent.is_dir():
                raise OutputError(f"{file}: there is no folder {file.parent}")
            with tempfile.NamedTemporaryFile(prefix=f".{file.name}.", suffix=PART, dir=file.absolute().parent):
                pass  # under a name as long as it will have while it is written
        except OSError as error:
            raise _refusal(file, error) from error
    places = {file.resolve() for file in files}
    if len(places) < len(files):
        raise OutputError(f"{', '.join(map(str, files))}: must be different files")
    if checkpoint is not None and checkpoint.resolve() in places:
        raise OutputError(f"{checkpoint}: is the checkpoint itself")


def check_folder(folder: Path, overwrite: bool) -> None:
    """Make sure that a run can write here, without writing anything.

    Raises:
        OutputError: it holds another run's results, or no folder can be there.
        WriteError: nothing can be written there.
    """
    held = results_in(folder)
    if held and not overwrite:
        raise OutputError(
            f"{folder}: holds the results of a run ({', '.join(held)}); give --resume to go on with it, "
            "--overwrite to replace it, or --output for another folder"
        )
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists() or p.is_symlink())
    if not existing.is_dir():
        what = "" if existing == folder.absolute() else f"{existing} "
        raise OutputError(f"{folder}: {what}is not a folder")
    for name in RUN_FILES:
        if (folder / name).is_dir():
            raise OutputError(f"{folder / name}: is a folder, where a file is to be written")
    for name in (FRAMES, EVENTS):
        if (folder / name).is_file():
            raise OutputError(f"{folder / name}: is a file, where a folder is to be written")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise WriteError(folder, error) from error


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Context in which no other training writes here; what a crashed one has left half written is removed.

    The system releases the lock of a process that ends, however it ends; its name is what it leaves behind.

    Args:
        folder: the run folder.
        say: told when a crashed process held it last.

    Raises:
        OutputError: another process writes here; the message names it.
        WriteError: nothing can be written here.
    """
    owner = folder / ".owner"
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise OutputError(f"{folder}: another training is writing here: {_owner(owner)}") from error
    except OSError as error:
        raise WriteError(folder, error) from error
    try:
        if owner.exists():
            say(f"{folder}: its last training did not end by itself ({_owner(owner)}); taking over")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}, since {since}")
        remove_parts(folder, (*RUN_FILES, owner.name))
        yield
    finally:
        with suppress(OSError):  # where nothing can be written any more, that has been told already
            owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:200] or "a process that gives no name"
    except OSError:
        return "a process that has not given its name yet"


def write_losses(path: Path, records: Iterable[EpochRecord]) -> None:
    """Write `loss.csv`: a header with its columns, and a row for each record, of which there is one at least.

    Raises:
        WriteError: it could not be written; what was there before is intact.
    """
    rows = [record.as_row() for record in records]
    write_table(path, list(rows[0]), rows)


def read_losses(path: Path) -> list[dict[str, str]]:
    """The rows of `loss.csv`."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def save_samples(
    path: Path,
    samples: np.ndarray,
    image_shape: tuple[int, ...],
    standardisation: Standardisation | None = None,
    latents: np.ndarray | None = None,
    picture: Path | None = None,
) -> None:
    """Write images or rows as the dataset `samples` of an HDF5 file, and a picture beside it.

    Args:
        path: the HDF5 file.
        samples: (N, D), as the model sees them: images, which are clipped to [0, 1], or standardised rows, which are
            restored.
        image_shape: (H, W) or (H, W, C); (D,) of a table.
        standardisation: of a table's columns.
        latents: (N, Q), written as the dataset `latents` if given.
        picture: the PNG file, a grid of images or a pair plot; by default `path` with the ending .png.
    """

    def fill(file: h5py.File) -> None:
        file["samples"] = as_in_data(samples, image_shape, standardisation)
        if latents is not None:
            file["latents"] = latents.astype(np.float32)

    write_hdf5(path, fill, seal=False)
    write_picture(picture or path.with_suffix(".png"), picture_of(samples, image_shape, standardisation))


def as_in_data(
    samples: np.ndarray, image_shape: tuple[int, ...], standardisation: Standardisation | None
) -> np.ndarray:
    """Samples as the data have them: images clipped to [0, 1], or rows restored; arguments as for `save_samples`."""
    if standardisation is None:
        return np.clip(samples.reshape(-1, *image_shape), 0, 1).astype(np.float32)
    return standardisation.restore(samples)


def picture_of(
    samples: np.ndarray, image_shape: tuple[int, ...], standardisation: Standardisation | None
) -> Image.Image:
    """A grid of images, or a pair plot of rows; arguments as for `save_samples`."""
    samples = as_in_data(samples, image_shape, standardisation)
    if standardisation is None:
        return image_grid(samples)
    of = standardisation
    return drawn(pair_plot(samples, of.columns, of.mean, of.std))
