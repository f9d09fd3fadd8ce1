"""Files of images and tables: what they hold is known, and bounded, before it is read.

Files travel between people. So nothing is unpickled, no link is followed, no size is believed before it has been
compared with the file's own, and every error names the file, and the image or the column in it.

Letters: N images or rows, H x W pixels, C channels, D columns.
"""

from __future__ import annotations

import csv
import math
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from lvkam.errors import DataError, InputError
from lvkam.formats import LARGEST_ARRAY, damage
from lvkam.hdf5 import HDF5Error, describe_array, names_of_arrays, open_hdf5, read_rows
from lvkam.standardisation import default_names

if TYPE_CHECKING:
    import h5py

LARGEST_TABLE = 2**30
"""Bytes of a text file."""
LARGEST_FACTOR, SMALL = 200, 2**24
"""Compressed arrays may be so many times as large as what the file holds of them, if they are not small (in bytes)."""
LARGEST_IMAGE = 4096 * 4096
"""Pixels."""
MOST_COLUMNS = 10**6
"""Of a table."""
LONGEST_NAME, LONGEST_NAMES, LONGEST_LINE = 100, 30000, 2**17
"""Characters of a column's name, of all of them, and of the line in which they stand."""

IMAGE_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WEBP", ".pgm": "PPM", ".ppm": "PPM",
}  # fmt: skip
"""Endings of image files, and what Pillow calls their formats: it tries no other ones."""

SPLITS, WHOLE = ("train", "test"), "samples"
"""Names of arrays in own files: both splits, or all in one."""

MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?"}
"""What tables write where a value is missing."""


class Rows(NamedTuple):
    """An array in a file, known by its head."""

    shape: tuple[int, ...]
    """(N, H, W), (N, H, W, C) or (N, D)."""
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    """Its rows from one to before another; raises DataError."""
    names: tuple[str, ...] = ()
    """Of its columns, where a file has them."""

    @property
    def is_table(self) -> bool:
        """(N, D), and no images."""
        return len(self.shape) == 2

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a table's columns, x1 to xD where it has none."""
        return self.names or default_names(self.shape[1])


def in_memory(array: np.ndarray, names: tuple[str, ...] = ()) -> Rows:
    """An array that has been read already."""
    return Rows(array.shape, array.dtype, lambda start, stop: array[start:stop], names)


def own_arrays(path: Path) -> dict[str, Rows]:
    """What a `.npz`, `.h5` or `.csv` file or a folder of images holds, after all that its head can tell.

    Returns:
        `train` and `test`, or `samples`.

    Raises:
        DataError: nothing is there, it cannot be read, or holds something else.
    """
    try:
        if path.is_dir():
            return _folder_arrays(path)
        if not path.is_file():
            raise DataError(f"{path}: {'is not a file' if path.exists() else 'no such file or folder'}")
    except DataError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, or no name
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: must be a folder of images, or a file that ends in {', '.join(_READERS)}")
    arrays = reader(path)
    for name, rows in arrays.items():
        _check_head(f"{path}: {name}" if len(arrays) > 1 else str(path), rows)
    return arrays


def _check_head(where: str, rows: Rows) -> None:
    if rows.dtype.kind not in "biuf":
        raise DataError(f"{where}: holds {_type_name(rows.dtype)}; must be integers, floats or bools")
    if len(rows.shape) not in {2, 3, 4}:
        raise DataError(
            f"{where}: an array of shape {rows.shape}; must be images, (N, H, W) or (N, H, W, C), or a table, (N, D)"
        )
    if min(rows.shape) < 1:
        raise DataError(f"{where}: is empty, of shape {rows.shape}")
    if len("\n".join(rows.names)) > LONGEST_NAMES:
        raise DataError(
            f"{where}: the names of its {rows.shape[1]} columns have more than {LONGEST_NAMES} characters in all"
        )
    if rows.is_table and rows.shape[1] > MOST_COLUMNS:
        raise DataError(f"{where}: {rows.shape[1]} columns, more than {MOST_COLUMNS}; images are (N, H, W)")
    if (size := math.prod(rows.shape) * rows.dtype.itemsize) > LARGEST_ARRAY:
        raise DataError(f"{where}: announces {size} bytes, more than 4 GiB")


def _type_name(dtype: np.dtype) -> str:
    return {"O": "Python objects", "S": "text", "U": "text", "V": "records", "c": "complex numbers"}.get(
        dtype.kind, str(dtype)
    )


def _chosen(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Of the arrays in a file those that count."""
    if set(SPLITS) <= set(names):
        return SPLITS
    if WHOLE in names:
        return (WHOLE,)
    if len(names) == 1:
        return (names[0],)
    shown = ", ".join(ascii(name)[1:-1][:40] for name in names[:8]) or "no array"
    raise DataError(f"{path}: holds {shown}; must hold `train` and `test`, or `samples`, or one array only")


def _named(chosen: Sequence[str], rows_of: Callable[[str], Rows]) -> dict[str, Rows]:
    return {name if len(chosen) > 1 else WHOLE: rows_of(name) for name in chosen}


# NumPy's archives


def _npz_arrays(path: Path) -> dict[str, Rows]:
    with damage(path, "no readable .npz file"), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if other := next((name for name in archive.namelist() if not name.endswith(".npy")), None):
            raise DataError(f"{path}: holds {other:.80}, which is no array")
        return _named(_chosen(path, names), lambda name: _npz_rows(path, archive, name))


def _npz_rows(path: Path, archive: zipfile.ZipFile, name: str) -> Rows:
    """The head of one array; its sizes must agree with one another."""
    info = archive.getinfo(f"{name}.npy")
    if info.flag_bits & 1:
        raise DataError(f"{path}: {name} is encrypted")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise DataError(f"{path}: {name} is compressed in a way that NumPy does not write")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)  # type: ignore[arg-type] of which its stub wants more
        if version not in {(1, 0), (2, 0)}:
            raise DataError(f"{path}: {name}: an array format that lvkam does not read ({version})")
        read_head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, by_columns, dtype = read_head(member)  # type: ignore[arg-type] of which its stub wants more
        except MemoryError as error:  # a head so nested that Python's own parser, which reads it, gives up
            raise DataError(f"{path}: {name}: the head of an array cannot be read") from error
        start = member.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {name}: holds Python objects, which are never read; must be numbers")
    size = math.prod(shape) * dtype.itemsize
    if info.file_size != start + size:
        raise DataError(f"{path}: damaged: {name} announces {size} bytes, the archive {info.file_size - start}")
    _check_factor(path, name, size, min(info.compress_size, path.stat().st_size))

    def read(first: int, last: int) -> np.ndarray:
        row = size // max(1, shape[0])
        with damage(path, f"damaged: {name}"), zipfile.ZipFile(path) as again, again.open(f"{name}.npy") as content:
            content.seek(start + (0 if by_columns else first * row))
            count = size if by_columns else (last - first) * row
            raw = content.read(count)
            if len(raw) != count:
                raise DataError(f"{path}: damaged: {name} is cut short")
            while content.read(2**20):  # the checksum is compared at the end
                pass
        if by_columns:
            return np.frombuffer(raw, dtype).reshape(shape, order="F")[first:last].copy()
        return np.frombuffer(raw, dtype).reshape(last - first, *shape[1:]).copy()

    return Rows(shape, dtype, read)


def _check_factor(path: Path, name: str, size: int, stored: int) -> None:
    if size > max(SMALL, LARGEST_FACTOR * stored):
        raise DataError(f"{path}: {name} announces {size} bytes and stores {stored}: out of proportion")


# HDF5


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with open_hdf5(path, sealed=False) as file:
            yield file
    except HDF5Error as error:
        raise DataError(str(error)) from error


def _hdf5_arrays(path: Path) -> dict[str, Rows]:
    with _opened(path) as file:
        return _named(_chosen(path, names_of_arrays(path, file)), lambda name: _hdf5_rows(path, name))


def _hdf5_rows(path: Path, name: str) -> Rows:
    with _opened(path) as file:
        shape, dtype, stored = describe_array(path, file, name)
        _check_factor(path, name, math.prod(shape) * dtype.itemsize, stored)

    def read(first: int, last: int) -> np.ndarray:
        with _opened(path) as again:
            return read_rows(path, again, name, first, last)

    return Rows(shape, dtype, read)


# tables as text


def _csv_arrays(path: Path) -> dict[str, Rows]:
    if path.stat().st_size > LARGEST_TABLE:
        raise DataError(f"{path}: {path.stat().st_size} bytes, more than 1 GiB")
    delimiter, columns, has_names = _csv_head(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")
            table = np.loadtxt(path, delimiter=delimiter, skiprows=int(has_names), comments=None, quotechar='"',
                               encoding="utf-8-sig", ndmin=2)  # fmt: skip
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        raise DataError(_first_bad_cell(path, delimiter, has_names, columns) or f"{path}: {error!s:.200}") from None
    if not len(table):
        raise DataError(f"{path}: holds names of columns, and no row")
    if table.shape[1] != len(columns):
        raise DataError(f"{path}: {len(columns)} names for {table.shape[1]} columns")
    if not np.isfinite(table).all():
        told = _first_bad_cell(path, delimiter, has_names, columns)
        raise DataError(told or f"{path}: a value is missing or infinite")
    return {WHOLE: in_memory(table, columns if has_names else ())}


def _csv_head(path: Path) -> tuple[str, tuple[str, ...], bool]:
    """What separates fields, the columns' names (or numbers, from 1), and whether the first line has names."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            line = file.readline(LONGEST_LINE + 1)
            if len(line) > LONGEST_LINE:
                raise DataError(f"{path}: its first line has more than {LONGEST_LINE} characters")
            # as many columns as any sign makes of it
            heads = {sign: next(csv.reader([line], delimiter=sign), []) for sign in ",;\t"}
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    delimiter = max(heads, key=lambda sign: len(heads[sign]))
    head = [field.strip() for field in heads[delimiter]]
    has_names = not all(_is_number(field) or field.lower() in MISSING for field in head)
    if len(head) > 1 and not head[0] and (has_names or _is_numbering(head[1:])):
        raise DataError(f"{path}: its first column has no name: if it numbers the rows, leave it out (index=False)")
    if len(head) > 1 and _is_numbering(head):
        raise DataError(f"{path}: its first line, {line.strip()[:40]}, numbers the columns: name them, or leave it out")
    if not head or (has_names and any(map(_is_number, head))):
        found = line.strip()[:80]
        raise DataError(
            f"{path}: its first line must hold numbers (1.5, and not 1,5), or names of columns, and holds {found!r}"
        )
    if not has_names:
        return delimiter, tuple(str(d) for d in range(1, len(head) + 1)), False
    seen: set[str] = set()
    for index, name in enumerate(head):
        if not name or not name.isprintable() or len(name) > LONGEST_NAME or name in seen:
            raise DataError(
                f"{path}: the name of column {index + 1} is {ascii(name)[:60]}; must be printable, its own, "
                f"and no longer than {LONGEST_NAME} characters"
            )
        seen.add(name)
    return delimiter, tuple(head), True


def _is_numbering(head: list[str]) -> bool:
    """Whether these are the numbers that libraries write where columns have no names."""
    return any(head == [str(d + first) for d in range(len(head))] for first in (0, 1))


def _first_bad_cell(path: Path, delimiter: str, has_names: bool, columns: tuple[str, ...]) -> str | None:
    """Why a table is none, in words that lead to the place; None where another parser finds nothing wrong with it."""
    with suppress(csv.Error, OSError, UnicodeDecodeError), path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=delimiter)
        for row in rows:
            if not row or (has_names and rows.line_num == 1):
                continue
            if len(row) != len(columns):
                return f"{path}: line {rows.line_num} has {len(row)} fields, the first one {len(columns)}"
            for name, field in zip(columns, row, strict=True):
                if field.strip().lower() in MISSING:
                    return f"{path}: line {rows.line_num}: the column {name} has no value there; fill or drop it first"
                if not _is_number(field):
                    shown = ascii(field)[:40]
                    return f"{path}: line {rows.line_num}: the column {name} holds {shown}, which is not a number"
                if not math.isfinite(float(field)):
                    shown = ascii(field)[:40]
                    return f"{path}: line {rows.line_num}: the column {name} holds {shown}, which is not finite"
    return None


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return field.isascii() and "_" not in field  # which Python allows and NumPy does not


# folders of images


def _folder_arrays(path: Path) -> dict[str, Rows]:
    parts = [path / name for name in SPLITS]
    if all(part.is_dir() for part in parts):
        return {name: _folder_rows(part) for name, part in zip(SPLITS, parts, strict=True)}
    return {WHOLE: _folder_rows(path)}


def _folder_rows(folder: Path) -> Rows:
    """Images sorted by name."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_FORMATS and f.name[0] != ".")
    if not files:
        endings = ", ".join(IMAGE_FORMATS)
        raise DataError(f"{folder}: holds no image; must hold some, {endings}, or the folders train and test")
    first = read_image(files[0])
    shape, dtype = (len(files), *first.shape), first.dtype

    def read(start: int, stop: int) -> np.ndarray:
        images = []
        asked = files[start:stop]
        for file in tqdm(asked, desc=f"reading {folder.name}", unit="image", leave=False,
                         disable=len(asked) < 1000 or not sys.stderr.isatty()):  # fmt: skip
            image = read_image(file)
            if image.shape[:2] != first.shape[:2] or image.dtype != dtype:
                raise DataError(
                    f"{file}: {_image_name(image)}, where {files[0].name} is {_image_name(first)}; "
                    "all must be of one size and type: bring them to it first"
                )
            images.append(image)
        if {image.ndim for image in images} == {2, 3}:  # grey ones among colours
            images = [np.repeat(i[..., None], 3, axis=2) if i.ndim == 2 else i for i in images]
        return np.stack(images)

    return Rows(shape, dtype, read)


def _image_name(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]} {image.dtype}"


def read_image(path: Path) -> np.ndarray:
    """An image file's first image: (H, W) or (H, W, 3); 8 or 16 bits, or floats; transparent parts as on white.

    Raises:
        DataError: no such image, a broken one, or one of more than `LARGEST_IMAGE` pixels.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rest of what Pillow says of broken files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=tuple(sorted(set(IMAGE_FORMATS.values())))) as image:
                width, height = image.size
                if width * height > LARGEST_IMAGE:
                    raise DataError(f"{path}: {height}x{width} pixels, more than {LARGEST_IMAGE}")
                upright = ImageOps.exif_transpose(image)
                return _pixels(upright)
        except InputError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise DataError(f"{path}: more than {LARGEST_IMAGE} pixels") from None
        except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error,
                ArithmeticError, AttributeError, RuntimeError) as error:  # fmt: skip
            # what Pillow raises on a broken file depends on its format
            reason = (str(error).splitlines() or [type(error).__name__])[0].replace(str(path), path.name)
            raise DataError(f"{path}: no readable image ({reason:.200})") from error


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        array = np.asarray(image)
        return array.astype(np.uint16) if array.min() >= 0 and array.max() < 2**16 else array
    if image.mode == "F":
        return np.asarray(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        grey = image.convert("L")
        return np.asarray(grey if np.array_equal(np.asarray(grey.convert("RGB")), np.asarray(image)) else image)
    return np.asarray(image.convert("L" if image.mode in {"1", "L"} else "RGB"))


_READERS: dict[str, Callable[[Path], dict[str, Rows]]] = {
    ".npz": _npz_arrays,
    ".h5": _hdf5_arrays,
    ".hdf5": _hdf5_arrays,
    ".csv": _csv_arrays,
}
