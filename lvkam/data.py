"""Data sets as the model sees them: images in [0, 1], resized if asked; tables with standardised columns.

Letters: N images or rows, H x W pixels, C channels, D data dimensions (H W, H W C, or columns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvkam.errors import DataError
from lvkam.readers import SPLITS, WHOLE, Rows
from lvkam.sources import SOURCES, arrays_of, labels_of
from lvkam.standardisation import Standardisation

RESIZE_CHUNK = 4096
"""Images that are resized at a time, to bound the memory."""
LOOKED_AT = 1000
"""Images of each part of one's own data that are looked at for their range, however few are asked for."""
CHANNELS = (1, 3)
"""Grey or colour."""
_LARGEST_OF_TYPE = {"u1": 255, "u2": 65535}
_SEEDS_OF_BITS = {"train": 1, "test": 2}


class TooFewImagesError(DataError):
    """A split holds fewer images, or rows, than were asked for."""

    def __init__(self, name: str, split: str, available: int, requested: int, what: str = "images"):
        self.split, self.available, self.requested, self.what = split, available, requested, what
        super().__init__(f"{name} has {available} {split} {what}, fewer than the {requested} asked for")


class Samples(NamedTuple):
    """Images, or rows of a table, as a model sees them."""

    x: Tensor
    """(N, D), float32: in [0, 1], or standardised."""
    shape: tuple[int, ...]
    """Of one: (H, W) or (H, W, C), or (D,)."""
    scaling: str
    """How the values were brought to what they are, in words."""


@dataclass(frozen=True)
class Dataset:
    """Images, or rows of a table, of both splits."""

    name: str
    train: Tensor
    """(N, D), float32: in [0, 1], or standardised."""
    test: Tensor
    """(M, D), likewise."""
    image_shape: tuple[int, ...]
    """(H, W) or (H, W, C); (D,) of a table."""
    scaling: str = "values as they are"
    """How the values were brought to what they are, in words."""
    standardisation: Standardisation | None = None
    """Of a table."""
    is_drawn_anew: bool = False
    """Whether training images are grey here, and binarised each time that they are trained with."""

    @property
    def log_volume(self) -> float:
        """What log p of the values here exceeds log p of the original ones by, in nats; 0 for images."""
        return 0.0 if self.standardisation is None else self.standardisation.log_volume

    @property
    def what(self) -> str:
        """What it holds, in a word."""
        return "images" if self.standardisation is None else "rows"

    def __str__(self) -> str:
        size = (
            "x".join(map(str, self.image_shape)) if self.standardisation is None else f"{self.image_shape[0]} columns"
        )
        anew = ", the training images in each batch anew" if self.is_drawn_anew else ""
        return f"{self.name}, {size}, {len(self.train)} {self.what}, {self.scaling}{anew}"

    def binarised(self, *, anew: bool) -> Dataset:
        """The same in bits: test images always the same, and training images too unless they are drawn `anew`."""
        train, test = self.train if anew else static_bits(self.train, "train"), static_bits(self.test, "test")
        return replace(self, train=train, test=test, scaling=f"{self.scaling}, binarised", is_drawn_anew=anew)

    def shown(self, count: int) -> Tensor:
        """The first training images, or rows, as they are shown and evaluated: never drawn anew, (count, D)."""
        return static_bits(self.train[:count], "train") if self.is_drawn_anew else self.train[:count]


def load_dataset(
    name: str,
    num_train: int,
    num_test: int,
    resize: tuple[int, int] | None = None,
    data_dir: Path | None = None,
) -> Dataset:
    """The first images, or rows, of both splits; of data in one piece the first N and the next M.

    Args:
        name: `MNIST`, `FMNIST`, `CIFAR10`, `SVHN`; or the path of a `.npz`, `.h5` or `.csv` file or a folder of images.
        num_train: N.
        num_test: M.
        resize: (H, W), by antialiased bilinear interpolation; the native size if None.
        data_dir: where to look first for a data set known by name.

    Raises:
        DataError: an unknown name, or files that cannot be had or are not what they should be.
        TooFewImagesError: a split is smaller than asked for.
    """
    arrays = arrays_of(name, data_dir)
    if WHOLE in arrays:
        rows = arrays[WHOLE]
        _check_number(name, "test", rows, rows.shape[0] - 1, num_test)
        _check_number(name, "train", rows, rows.shape[0] - num_test, num_train)  # which the test ones leave
        train, test = np.split(_read(name, rows, num_train + num_test), [num_train])
    else:
        for split, asked in zip(SPLITS, (num_train, num_test), strict=True):
            _check_number(name, split, arrays[split], arrays[split].shape[0], asked)
        rows = arrays["train"]
        train = _read(f"{name}: train", rows, num_train)
        test = _read(f"{name}: test", arrays["test"], num_test)
        if train.ndim != test.ndim and 2 in {train.ndim, test.ndim}:
            raise DataError(f"{name}: train and test are of shapes {train.shape} and {test.shape}: a table and images")
    if rows.is_table:
        if train.shape[1] != test.shape[1]:
            raise DataError(f"{name}: has {train.shape[1]} columns in training, {test.shape[1]} in test")
        try:
            standardisation = Standardisation.of(train, rows.columns)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        found = [_standardised(name, part, standardisation) for part in (train, test)]
    else:
        standardisation, found = None, _unit_images(name, (train, test), resize, arrays)
    (x, shape, scaling), (y, shape_of_test, _) = found
    if shape != shape_of_test:
        raise DataError(f"{name}: its images are {shape} in training, {shape_of_test} in test")
    return Dataset(name, x, y, shape, scaling, standardisation)


def load_samples(
    name: str,
    count: int | None,
    resize: tuple[int, int] | None = None,
    data_dir: Path | None = None,
    standardisation: Standardisation | None = None,
    split: Literal["train", "test"] = "test",
    skip: int = 0,
) -> Samples:
    """The first images, or rows, of a split, or of data in one piece.

    Args:
        name: as for `load_dataset`.
        count: how many; all if None.
        resize: (H, W), of images.
        data_dir: where to look first for a data set known by name.
        standardisation: of the table that the model was trained with, or None if that was images.
        split: where there are two.
        skip: how many to leave out first of data in one piece.

    Raises:
        DataError: as `load_dataset`; or a table where images are expected, or the reverse.
        TooFewImagesError: there are fewer.
    """
    arrays = arrays_of(name, data_dir)
    rows = arrays[split if split in arrays else WHOLE]
    if rows.is_table != (standardisation is not None):
        what = ("images", "a table") if standardisation is None else ("a table", "images")
        raise DataError(f"{name}: holds {what[1]}, the model was trained with {what[0]}")
    skip = 0 if split in arrays else skip
    _check_number(name, split, rows, rows.shape[0] - skip, count or 1)
    values = _read(name, rows, count or rows.shape[0] - skip, skip)
    if standardisation is None:
        return _without_first(skip, _unit_images(name, (values,), resize, arrays)[0])
    if values.shape[1] != len(standardisation.columns):
        raise DataError(f"{name}: has {values.shape[1]} columns, the model {len(standardisation.columns)}")
    if rows.names and rows.columns != standardisation.columns:
        names = ", ".join(standardisation.columns)
        raise DataError(f"{name}: its columns are {', '.join(rows.columns):.200}, the model's {names:.200}")
    return _without_first(skip, _standardised(name, values, standardisation))


def _without_first(number: int, samples: Samples) -> Samples:
    return samples._replace(scaling=f"{samples.scaling}; without the first {number}") if number else samples


def load_labels(name: str, split: str, count: int, data_dir: Path | None = None) -> Tensor:
    """The labels of the first images of a split of a data set known by name, (count,), int64.

    Raises as `load_dataset`.
    """
    if name not in SOURCES or split not in SOURCES[name].labels:
        raise DataError(f"{name}: its labels are not read; those of {', '.join(SOURCES)} are")
    labels = labels_of(name, split, data_dir)
    if count > len(labels):
        raise TooFewImagesError(name, split, len(labels), count)
    return torch.from_numpy(labels[:count].astype(np.int64))


def _check_number(name: str, split: str, rows: Rows, available: int, asked: int) -> None:
    if asked > available:
        raise TooFewImagesError(name, split, max(0, available), asked, "rows" if rows.is_table else "images")


def _read(where: str, rows: Rows, count: int, first: int = 0) -> np.ndarray:
    """Images, or rows as float64, from one on; raises DataError if a value of them is not finite."""
    values = rows.read(first, first + count)
    if rows.is_table:
        return checked_table(where, values, rows.columns, first)
    if values.dtype.kind == "f":
        finite = np.isfinite(values).reshape(count, -1).all(1)
        if not finite.all():
            bad = first + int(np.flatnonzero(~finite)[0])
            raise DataError(f"{where}: image {bad} (counted from 0) holds a value that is not finite")
    return values


# images


def binarise(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each pixel 1 with the probability that is its value, else 0: (N, D) in [0, 1] -> (N, D); bits stay as they are.

    The random numbers are drawn on the CPU image by image, so that the first bits do not depend on N.
    """
    return torch.rand(x.shape, generator=rng).to(x.device).lt_(x)


def static_bits(x: Tensor, split: Literal["train", "test"]) -> Tensor:
    """The bits of a split's first images, (N, D): whatever a run's seed is, so that figures of all runs compare."""
    return binarise(x, torch.Generator().manual_seed(_SEEDS_OF_BITS[split]))


def _unit_images(
    name: str, parts: Sequence[np.ndarray], size: tuple[int, int] | None, arrays: Mapping[str, Rows]
) -> list[Samples]:
    """Images of any type and range, in the same way brought to [0, 1]; `arrays` are all that there are."""
    looked_at = []
    if name not in SOURCES and not all(_LARGEST_OF_TYPE.get(a.dtype.str[1:]) and a.max() > 1 for a in parts):
        # a few images may be darker than those that a model was trained with, and are to be scaled as they were
        looked_at = [rows.read(0, min(LOOKED_AT, rows.shape[0])) for rows in arrays.values()]
    offset, divisor, words = _unit_scale(name, [*parts, *(np.nan_to_num(a, posinf=0, neginf=0) for a in looked_at)])
    found = []
    for part in parts:
        pixels = _channels_last(name, part)
        chunks = [
            _resized(torch.from_numpy((chunk.astype(np.float32) - np.float32(offset)) / np.float32(divisor)), size)
            for chunk in np.split(pixels, range(RESIZE_CHUNK, len(pixels), RESIZE_CHUNK))
        ]
        images = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
        found.append(Samples(images.flatten(1), tuple(images.shape[1:]), words))
    return found


def _channels_last(name: str, pixels: np.ndarray) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, H, W) or (N, H, W, 3)."""
    if pixels.ndim == 3:
        return pixels
    if pixels.shape[3] not in CHANNELS and pixels.shape[1] in CHANNELS:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.shape[3] not in CHANNELS:
        shape = pixels.shape[1:]
        raise DataError(f"{name}: images of shape {shape}; must have 1 channel (grey) or 3 (colour), first or last")
    return pixels[..., 0] if pixels.shape[3] == 1 else pixels


def _unit_scale(name: str, parts: Sequence[np.ndarray]) -> tuple[float, float, str]:
    """What to subtract and to divide by, so that values lie in [0, 1], and that in words."""
    if name in SOURCES:
        return 0.0, 255.0, "values divided by 255"
    low, high = min(part.min().item() for part in parts), max(part.max().item() for part in parts)
    integers = all(part.dtype.kind in "iu" for part in parts)
    # the type decides where it can, so that dark images stay dark
    least = max(_LARGEST_OF_TYPE.get(part.dtype.str[1:], 0) for part in parts) if high > 1 else 0
    for largest in (1, 255, 65535) if integers else (1, 255):
        if low >= 0 and max(high, least) <= largest:
            return 0.0, float(largest), f"values divided by {largest}" if largest > 1 else "values as they are"
    if not integers and low >= -1 and high <= 1:
        return -1.0, 2.0, "values brought from [-1, 1] to [0, 1]"
    ranges = "0 to 65535" if integers else "[0, 1], [-1, 1] or [0, 255]"
    raise DataError(f"{name}: {'integers' if integers else 'floats'} from {low:g} to {high:g}; must be within {ranges}")


def _resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(N, H, W) or (N, H, W, C) in [0, 1], to another height and width."""
    if size is None:
        return images
    grey = images.ndim == 3
    channels_first = images.unsqueeze(1) if grey else images.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return resized.squeeze(1) if grey else resized.permute(0, 2, 3, 1).contiguous()


# tables


def checked_table(name: str, table: np.ndarray, columns: tuple[str, ...], first: int = 0) -> np.ndarray:
    """A table as float64, (N, D); `first` is the number of its first row in the file.

    Raises:
        DataError: a value is missing or infinite; its column is named.
    """
    table = table.astype(np.float64)
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        what = "has no value" if np.isnan(table[row, column]) else "is infinite"
        raise DataError(
            f"{name}: the column {columns[column]} {what} in row {row + first} (counted from 0); fill or drop it"
        )
    return table


def _standardised(name: str, table: np.ndarray, standardisation: Standardisation) -> Samples:
    x = torch.from_numpy(standardisation.apply(table))
    if not x.isfinite().all():
        row, column = (~x.isfinite()).nonzero()[0].tolist()
        raise DataError(
            f"{name}: the column {standardisation.columns[column]} holds {table[row, column]:g}, "
            "too far from the rows that the model is trained with"
        )
    return Samples(x, tuple(x.shape[1:]), "columns standardised")
