"""Image data sets: found on disk or downloaded, verified, read, resized, brought to [0, 1].

Looked for in this order: the folder given, `LVKAM_DATA_DIR` (both laid out as torchvision does,
`MNIST/raw/train-images-idx3-ubyte`, plain or gzip), the package itself (MNIST), the folder of Debian's package
`dataset-fashion-mnist`; then downloaded into the user's cache.

Letters: N images, H x W pixels, D = H W data dimensions.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvkam.errors import InputError


class DataError(InputError):
    """Data that cannot be had or read; one message says what is missing or wrong."""


class TooFewImagesError(DataError):
    """A split holds fewer images than were asked for."""

    def __init__(self, name: str, split: str, available: int, requested: int):
        self.split, self.available, self.requested = split, available, requested
        super().__init__(f"{name} has {available} {split} images, fewer than the {requested} asked for")


@dataclass(frozen=True)
class Dataset:
    """Images of both splits, row by row."""

    name: str
    train: Tensor
    """(N, D), float32, in [0, 1]."""
    test: Tensor
    """(M, D), likewise."""
    image_shape: tuple[int, ...]
    """(H, W)."""


@dataclass(frozen=True)
class IdxSource:
    """A data set of idx files."""

    folder: str
    """Its name in torchvision's layout."""
    mirrors: tuple[str, ...]
    sha256: dict[str, str]
    """File name without .gz -> SHA-256 of the uncompressed bytes: compression may differ from mirror to mirror."""


FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels of each split."""

SOURCES = {
    "MNIST": IdxSource("MNIST", (), {}),
    "FMNIST": IdxSource(
        "FashionMNIST",
        (
            "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        },
    ),
}
NOT_IMPLEMENTED = ("CIFAR10", "SVHN")
"""Known names that later versions will read."""

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

RESIZE_CHUNK = 4096
"""Images that are resized at a time, to bound the memory."""


def load_dataset(
    name: str,
    num_train: int,
    num_test: int,
    resize: tuple[int, int] | None = None,
    data_dir: Path | None = None,
) -> Dataset:
    """The first images of both splits.

    Args:
        name: `MNIST` or `FMNIST`.
        num_train: N.
        num_test: M, of the test split.
        resize: (H, W), by antialiased bilinear interpolation; the native size if None.
        data_dir: where to look first.

    Raises:
        DataError: an unknown name, or files that cannot be had or are not what they should be.
        TooFewImagesError: a split is smaller than asked for.
    """
    train, test = (
        _first_images(name, split, count, resize, data_dir)
        for split, count in (("train", num_train), ("test", num_test))
    )
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{name}: its images are {tuple(train.shape[1:])} in training, {tuple(test.shape[1:])} in test")
    return Dataset(name, train.flatten(1), test.flatten(1), tuple(train.shape[1:]))


def load_labels(name: str, split: str, count: int, data_dir: Path | None = None) -> Tensor:
    """The labels of the first images of a split, (count,), int64; raises as `load_dataset`."""
    labels = read_idx(_find(name, FILES[split][1], data_dir))
    if labels.ndim != 1:
        raise DataError(f"{name}: its labels have {labels.ndim} dimensions instead of 1")
    if count > len(labels):
        raise TooFewImagesError(name, split, len(labels), count)
    return torch.from_numpy(labels[:count].astype(np.int64))


def _first_images(name: str, split: str, count: int, resize: tuple[int, int] | None, data_dir: Path | None) -> Tensor:
    path = _find(name, FILES[split][0], data_dir)
    pixels = read_idx(path)
    if pixels.ndim != 3:
        raise DataError(f"{path}: holds an array of {pixels.ndim} dimensions, not images")
    if 0 in pixels.shape[1:]:
        raise DataError(f"{path}: holds images without pixels")
    if count > len(pixels):
        raise TooFewImagesError(name, split, len(pixels), count)
    return resize_images(torch.from_numpy(pixels[:count]), resize)


def resize_images(pixels: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Grey images (N, H, W) in 0..255 to float32 in [0, 1], resized if a size is given."""
    if size is None:
        return pixels.float() / 255
    chunks = [
        F.interpolate(
            chunk.unsqueeze(1).float() / 255, size, mode="bilinear", antialias=True, align_corners=False
        ).squeeze(1)
        for chunk in pixels.split(RESIZE_CHUNK)
    ]
    return torch.cat(chunks).clamp(0, 1)


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes, plain or gzip; no more than its header announces.

    Raises:
        DataError: not such a file, or one cut short.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise DataError(f"{path}: not an idx file (it begins with {head!r})")
            if head[2] != 8:
                raise DataError(f"{path}: idx type 0x{head[2]:02x}; only unsigned bytes (0x08) are images")
            if not 1 <= head[3] <= 4:
                raise DataError(f"{path}: an idx file of {head[3]} dimensions")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise DataError(f"{path}: cut short within its header")
            shape = struct.unpack(f">{head[3]}I", sizes)
            expected = int(np.prod(shape, dtype=object))
            if expected > 2**32:
                raise DataError(f"{path}: its header announces {expected} bytes, more than 4 GiB")
            content = file.read(expected + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) != expected:
        found = "more" if len(content) > expected else f"only {len(content)}"
        raise DataError(f"{path}: its header announces {expected} bytes, it holds {found}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def _find(name: str, file: str, data_dir: Path | None) -> Path:
    """The file of a data set, from the first place that holds it."""
    source = _source(name)
    places = list(_places(name, source, data_dir))
    for place in places:
        for path in (place / file, place / f"{file}.gz"):
            if path.is_file():
                return path
    return _download(name, source, file, places)


def _source(name: str) -> IdxSource:
    if name in SOURCES:
        return SOURCES[name]
    if name in NOT_IMPLEMENTED:
        raise DataError(f"the data set {name} is not implemented yet; there are {', '.join(SOURCES)}")
    if os.path.exists(name):
        raise DataError(f"reading images from a path is not implemented yet; there are {', '.join(SOURCES)}")
    near = difflib.get_close_matches(name.upper(), SOURCES, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SOURCES)}"
    raise DataError(f"unknown data set {name}; {hint}")


def _places(name: str, source: IdxSource, data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        yield data_dir / source.folder / "raw"
    if environment := os.environ.get("LVKAM_DATA_DIR"):
        yield Path(environment) / source.folder / "raw"
    if name == "MNIST":
        yield Path(__file__).parent / "datasets" / "MNIST" / "raw"
    if name == "FMNIST":
        yield DEBIAN_FOLDER
    yield _cache(source)


def _cache(source: IdxSource) -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("lvkam")) / source.folder / "raw"


def _download(name: str, source: IdxSource, file: str, places: list[Path]) -> Path:
    """Fetch a file from the first mirror that has the right bytes."""
    import filelock
    import pooch
    import requests

    folder = _cache(source)
    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".{file}.lock"):
            if (folder / f"{file}.gz").is_file():  # another process was quicker
                return folder / f"{file}.gz"
            for mirror in source.mirrors:
                url = f"{mirror}{file}.gz"
                try:
                    fetched = Path(pooch.retrieve(url, None, fname=f".{file}.part", path=folder, progressbar=True))
                except (OSError, requests.RequestException) as error:
                    tried.append(f"{url} ({type(error).__name__})")
                    continue
                if _unzipped_sha256(fetched) == source.sha256[file]:
                    return fetched.replace(folder / f"{file}.gz")
                fetched.unlink()
                tried.append(f"{url} (wrong bytes)")
    except OSError as error:
        raise DataError(f"{name}: {folder} cannot be written ({error.strerror})") from error
    looked = ", ".join(str(place) for place in places)
    raise DataError(
        f"{name}: {file} is missing. Looked in {looked}; tried {', '.join(tried) or 'no download'}. "
        f"Put {file}.gz into one of these folders, or name another with --data-dir or LVKAM_DATA_DIR"
    )


def _unzipped_sha256(path: Path) -> str | None:
    try:
        with gzip.open(path) as file:
            # a gzip file reads into buffers, which its stub leaves out
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (EOFError, OSError, zlib.error):
        return None  # not gzip: wrong bytes, as the caller says
