"""The formats of data sets known by name, and how damage of any file of data is told.

Letters: N images.
"""

from __future__ import annotations

import gzip
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lvkam.errors import DataError, InputError

LARGEST_ARRAY = 2**32
"""Bytes of an array in a file."""


@contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
    """What libraries raise on a broken file, in one message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of it too
            yield
    except InputError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, ValueError, TypeError, LookupError, struct.error,
            ArithmeticError, AttributeError, SyntaxError, tokenize.TokenError) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: {what} ({reason:.200})") from error


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
            expected = math.prod(shape)
            if expected > LARGEST_ARRAY:
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


def read_cifar(path: Path) -> np.ndarray:
    """Images of a batch of CIFAR10's binary version, (N, 32, 32, 3): a label and 3 x 32 x 32 bytes each.

    Raises:
        DataError: not such a file.
    """
    return np.ascontiguousarray(_cifar_records(path)[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def read_cifar_labels(path: Path) -> np.ndarray:
    """The labels of such a batch, (N,); raises as `read_cifar`."""
    return _cifar_records(path)[:, 0]


def _cifar_records(path: Path) -> np.ndarray:
    size = 1 + 3 * 32 * 32
    with damage(path, "no readable batch of CIFAR10"):
        if path.stat().st_size > LARGEST_ARRAY:
            raise DataError(f"{path}: more than 4 GiB")
        content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % size:
        raise DataError(f"{path}: {len(content)} bytes, which is no multiple of {size}: no batch of CIFAR10's images")
    records = content.reshape(-1, size)
    if (records[:, 0] > 9).any():
        raise DataError(f"{path}: holds labels above 9: no batch of CIFAR10's images")
    return records


def read_svhn(path: Path) -> np.ndarray:
    """Images of a split of SVHN, (N, 32, 32, 3), from a MATLAB file whose X is (32, 32, 3, N).

    SciPy's reader takes the types in a file for granted: it is for files whose bytes have been verified.

    Raises:
        DataError: not such a file.
    """
    images = _matlab_array(path, "X")
    if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.ndim != 4:
        raise DataError(f"{path}: X is {images.dtype} {images.shape}; must be uint8 (32, 32, 3, N), as in SVHN")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2))


def read_svhn_labels(path: Path) -> np.ndarray:
    """The labels of a split of SVHN, (N,), from y, (N, 1), where 10 stands for the digit 0; raises as `read_svhn`."""
    labels = _matlab_array(path, "y")
    if labels.dtype != np.uint8 or labels.shape != (labels.size, 1) or not ((labels >= 1) & (labels <= 10)).all():
        raise DataError(f"{path}: y is {labels.dtype} {labels.shape}; must be uint8 (N, 1), 1 to 10, as in SVHN")
    return labels[:, 0] % 10


def _matlab_array(path: Path, name: str) -> np.ndarray:
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        with damage(path, "no readable MATLAB file"):
            return scipy.io.loadmat(path, variable_names=[name]).get(name, np.empty(0))
    except MatReadError as error:
        raise DataError(f"{path}: no readable MATLAB file ({error})") from error
