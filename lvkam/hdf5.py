"""HDF5 files: written in one piece, sealed; opened in one place, which trusts nothing.

Files travel between people, and the format can name other files, announce arrays far larger than itself, and lead a
parser astray. So what is read back is written with a seal, the SHA-256 of its bytes, in the user block that HDF5 leaves
to applications (other readers skip it): damage is found before the HDF5 library looks at it. And what is read is a
fixed list of names with their types and shapes: plain arrays of numbers within the file itself, and attributes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue] h5py's stub leaves it out

from lvkam.errors import InputError
from lvkam.writing import write_atomically

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SEAL_SIZE = 512
"""The smallest user block."""
LONGEST_TEXT = 2**16
"""Characters of an attribute."""
EMPTINESS = 1000
"""A file may be so many times as large as what the disk holds of it, as file systems that compress have it."""

KNOWN_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
"""Of arrays in files of other people's: those that come with h5py."""
LARGEST_PIECE, MOST_PIECES = 2**24, 10**6
"""Bytes of a piece that such an array is stored in, unless the array itself is larger; and how many there may be."""

Layout = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Names of arrays, with their types and shapes."""


class HDF5Error(InputError):
    """A file that is no HDF5 file, is broken, or holds what it should not; the message names it."""


def write_hdf5(path: Path, fill: Callable[[h5py.File], None], *, seal: bool) -> None:
    """Write an HDF5 file so that the path holds the old file or the new one, never a part.

    Args:
        path: the file.
        fill: puts everything into it.
        seal: whether to put the SHA-256 of its bytes before them.

    Raises:
        WriteError: it could not be written; a file that was there before is intact.
    """
    # made in memory, so that a full disk is met by plain writing, which can fail without harm
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=SEAL_SIZE if seal else 0) as file:
        fill(file)
    content = buffer.getbuffer()
    if seal:
        content[:SEAL_SIZE] = _seal(hashlib.sha256(content[SEAL_SIZE:]).hexdigest(), len(content))
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def _seal(sha256: str, size: int) -> bytes:
    return f"lvkam: sealed HDF5 file of {size} bytes\nsha256 of all after byte {SEAL_SIZE}: {sha256}\n".encode().ljust(
        SEAL_SIZE, b"\0"
    )


@contextmanager
def open_hdf5(path: Path, *, sealed: bool = True) -> Iterator[h5py.File]:
    """Context: a file open for the functions below.

    Args:
        path: the file.
        sealed: whether it must have a seal, which is verified first.

    Raises:
        HDF5Error: it is missing, no such file or damaged; or an array or attribute asked for is not what it should be.
    """
    try:
        if not path.is_file():
            raise HDF5Error(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        raw = path.open("rb")
    except OSError as error:
        raise HDF5Error(f"{path}: cannot be read ({error.strerror})") from error
    with raw:
        try:
            if sealed:
                _check_seal(path, raw)
            elif not h5py.is_hdf5(path):
                raise HDF5Error(f"{path}: not an HDF5 file")
            # by its bytes, not its path: so the library reads what was verified
            with h5py.File(raw, "r") as file:
                yield file
        except InputError:
            raise
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, OverflowError) as error:
            # what h5py raises on a file whose structure is broken
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise HDF5Error(f"{path}: damaged: {reason}") from error


def _check_seal(path: Path, raw: BinaryIO) -> None:
    found, status = raw.read(SEAL_SIZE), os.fstat(raw.fileno())
    if not found.startswith(_seal("", 0)[:8]):
        what = "an HDF5 file without a seal" if found.startswith(SIGNATURE) else "not an HDF5 file"
        raise HDF5Error(f"{path}: not a checkpoint of lvkam ({what})")
    if not found.startswith(_seal("", status.st_size).splitlines()[0]):
        raise HDF5Error(f"{path}: damaged: not of the size that its seal says")
    # some file systems do not count blocks
    if status.st_blocks and status.st_size > EMPTINESS * 512 * status.st_blocks:
        raise HDF5Error(f"{path}: announces {status.st_size} bytes, of which nearly all are holes")
    # a file reads into buffers, which its stub leaves out
    sha256 = hashlib.file_digest(raw, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    if found != _seal(sha256, status.st_size):
        raise HDF5Error(f"{path}: damaged: its bytes do not match its seal")
    raw.seek(0)


def read_text(path: Path, item: h5py.File | h5py.Dataset, name: str) -> str:
    """An attribute that is a text of printable lines.

    Raises:
        HDF5Error: it is missing, or something else.
    """
    kind = h5py.check_string_dtype(_attribute(path, item, name, ()).dtype)
    value = item.attrs[name] if kind is not None and kind.length is None else None
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.replace("\n", "").isprintable():
        raise HDF5Error(f"{path}: damaged: the attribute {name} is of the wrong kind")
    return value


def read_integers(
    path: Path, item: h5py.File | h5py.Dataset, name: str, shape: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """An attribute that is one integer, or a few: of a given shape, or any that an array of images can have.

    Raises:
        HDF5Error: it is missing, or something else.
    """
    attribute = _attribute(path, item, name, shape)
    few = attribute.shape in {(), (1,), (2,), (3,)}
    if not (few and isinstance(attribute.get_type(), h5py.h5t.TypeIntegerID)):
        raise HDF5Error(f"{path}: damaged: the attribute {name} is of the wrong kind")
    return tuple(np.asarray(item.attrs[name]).reshape(-1).tolist())


def _attribute(path: Path, item: h5py.File | h5py.Dataset, name: str, shape: tuple[int, ...] | None) -> h5py.h5a.AttrID:
    if name not in item.attrs:
        raise HDF5Error(f"{path}: damaged: the attribute {name} is missing")
    attribute = item.attrs.get_id(name)
    if shape is not None and attribute.shape != shape:
        raise HDF5Error(f"{path}: damaged: the attribute {name} is of the wrong kind")
    return attribute


def check_names(path: Path, file: h5py.File, attributes: Collection[str], layout: Layout) -> None:
    """Make sure that a file holds attributes and arrays of these names, and nothing else.

    Raises:
        HDF5Error: a name is missing, or there are more.
    """
    groups: dict[str, set[str]] = {"": set()}
    for name in layout:
        parts = name.split("/")
        for depth in range(len(parts)):
            groups.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    for group, names in groups.items():
        node: h5py.Group | h5py.Dataset = file
        for part in group.split("/") if group else ():
            node = _child(path, node, part)
        where = f"{group}/" if group else ""
        if not isinstance(node, h5py.Group):
            raise HDF5Error(f"{path}: {group} is not a group")
        if len(node) > len(names):
            extra = next((n for n in node if n not in names), "a name twice")
            # a name may not move the cursor, nor need it be text
            shown = extra if isinstance(extra, str) and extra.isprintable() else ascii(extra)
            raise HDF5Error(f"{path}: holds {where}{shown:.80}, which no such file does")
        for name in sorted(names):
            _check_link(path, node, name)
    if len(file.attrs) > len(attributes):
        raise HDF5Error(f"{path}: holds an attribute more than such a file does")


def _child(path: Path, group: h5py.Group | h5py.Dataset, name: str) -> h5py.Group | h5py.Dataset:
    _check_link(path, group, name)
    child = group[name]
    if not isinstance(child, h5py.Group | h5py.Dataset):
        raise HDF5Error(f"{path}: {_full_name(group, name)} is neither a group nor an array")
    return child


def _check_link(path: Path, group: h5py.Group | h5py.Dataset, name: str) -> None:
    """Before anything follows the link: one of another kind can lead into other files."""
    full = _full_name(group, name)
    if not isinstance(group, h5py.Group):
        raise HDF5Error(f"{path}: {full}: what should hold it is not a group")
    if not group.id.links.exists(name.encode()):
        raise HDF5Error(f"{path}: damaged: {full} is missing")
    if group.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise HDF5Error(f"{path}: {full} is a link to elsewhere, which no such file holds")


def _full_name(group: h5py.Group | h5py.Dataset, name: str) -> str:
    return f"{group.name}/{name}".lstrip("/")


def holds(file: h5py.File, name: str) -> bool:
    """Whether there is something of this name at the top, of whatever kind: nothing is followed."""
    return file.id.links.exists(name.encode())


def read_array(
    path: Path, file: h5py.File, name: str, dtype: np.dtype, shape: tuple[int, ...]
) -> tuple[np.ndarray, str]:
    """An array of numbers, all of it within the file, and its checksum, verified.

    Raises:
        HDF5Error: it is not of that type and shape, is stored in another way, or is damaged.
    """
    item: h5py.Group | h5py.Dataset = file
    for part in name.split("/"):
        item = _child(path, item, part)
    if not isinstance(item, h5py.Dataset):
        raise HDF5Error(f"{path}: {name} is not an array")
    if not item.id.get_type().equal(h5py.h5t.py_create(dtype)) or item.shape != shape:
        found = f"{item.dtype} {item.shape}"[:80]
        raise HDF5Error(f"{path}: {name} holds {found}, its configuration means {dtype} {shape}")
    if not _is_stored_within(item, {h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT}, set()):
        raise HDF5Error(f"{path}: {name} is not stored plainly within the file")
    stored = min(item.id.get_storage_size(), file.id.get_filesize())
    if stored != item.nbytes:
        raise HDF5Error(f"{path}: {name} announces {item.nbytes} bytes and stores {stored}")
    array = np.empty(shape, dtype)
    item.read_direct(array)
    checksum = digest(array)
    if read_text(path, item, "sha256") != checksum:
        raise HDF5Error(f"{path}: damaged: the checksum of {name} does not match")
    return array, checksum


def _is_stored_within(item: h5py.Dataset, layouts: Collection[int], filters: Collection[int]) -> bool:
    """Whether all of an array lies in its own file, in one of these ways."""
    how, used = item.id.get_create_plist(), _filters(item)
    each_once = len(set(used)) == len(used) and set(used) <= set(filters)
    return how.get_layout() in layouts and not how.get_external_count() and each_once


def _filters(item: h5py.Dataset) -> list[int]:
    how = item.id.get_create_plist()
    return [how.get_filter(index)[0] for index in range(how.get_nfilters())]


def names_of_arrays(path: Path, file: h5py.File) -> list[str]:
    """Names of the arrays at the top of a file of somebody else's.

    Raises:
        HDF5Error: something there is a link to elsewhere.
    """
    names = sorted(name if isinstance(name, str) else repr(name) for name in file)
    return [name for name in names if isinstance(_child(path, file, name), h5py.Dataset)]


def describe_array(path: Path, file: h5py.File, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and stored bytes of an array of numbers in a file of somebody else's.

    Raises:
        HDF5Error: it holds something else than numbers, or is stored in another place or way.
    """
    item = _child(path, file, name)
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise HDF5Error(f"{path}: {name} is not an array")
    numbers = isinstance(item.id.get_type(), h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID)
    if not numbers and item.dtype != np.bool_:
        raise HDF5Error(f"{path}: {name} holds something else than numbers")
    layouts = {h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT, h5py.h5d.CHUNKED}
    if not _is_stored_within(item, layouts, KNOWN_FILTERS):
        raise HDF5Error(f"{path}: {name} is stored elsewhere, or by a filter other than gzip, lzf, shuffle, fletcher32")
    if item.chunks:
        number = math.prod(-(-side // piece) for side, piece in zip(item.shape, item.chunks, strict=True))
        if math.prod(item.chunks) * item.dtype.itemsize > max(LARGEST_PIECE, item.nbytes) or number > MOST_PIECES:
            raise HDF5Error(f"{path}: {name} is stored in {number} pieces of {item.chunks}: out of proportion")
    return item.shape, item.dtype, min(item.id.get_storage_size(), file.id.get_filesize())


def read_rows(path: Path, file: h5py.File, name: str, first: int, last: int) -> np.ndarray:
    """Rows of an array from one to before another; raises as `describe_array`."""
    describe_array(path, file, name)
    item = file[name]
    assert isinstance(item, h5py.Dataset)
    if item.chunks and h5py.h5z.FILTER_DEFLATE in _filters(item):
        _check_pieces(path, item, item.chunks, first, last)
    return item[first:last]


def _check_pieces(path: Path, item: h5py.Dataset, pieces: tuple[int, ...], first: int, last: int) -> None:
    """Inflate each piece as far as it may go: the library would go on for as long as there is something to inflate."""
    most = math.prod(pieces) * item.dtype.itemsize + 4  # a checksum may be in it
    unless = 1 << _filters(item).index(h5py.h5z.FILTER_DEFLATE)
    starts = [range(0, side, piece) for side, piece in zip(item.shape, pieces, strict=True)]
    starts[0] = range(first // pieces[0] * pieces[0], last, pieces[0])
    for start in itertools.product(*starts):
        if item.id.get_chunk_info_by_coord(start).byte_offset is None:  # never written
            continue
        mask, content = item.id.read_direct_chunk(start)
        if mask & unless:
            continue
        try:
            inflated = zlib.decompressobj().decompress(content, most + 1)
        except zlib.error as error:
            raise HDF5Error(f"{path}: damaged: {item.name}: {error}") from error
        if len(inflated) > most:
            raise HDF5Error(f"{path}: {item.name} holds more than it announces")


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and bytes, in hexadecimal."""
    found = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
