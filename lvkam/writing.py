"""Files that are there whole or not at all: written beside their place, synced, and renamed."""

from __future__ import annotations

import csv
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

PART = ".part"
"""What names of files end with that are being written."""


class WriteError(OSError):
    """A file or folder that cannot be written; what was there before is intact."""

    def __init__(self, path: Path, error: OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.ENOENT and not path.parent.is_dir():
            reason = f"there is no folder {path.parent}"
        super().__init__(f"{path}: cannot be written ({reason})")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where there is none; raises WriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from error


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Context: a temporary path beside `path`, synced and renamed to it at the end, removed on failure.

    Raises:
        WriteError: it could not be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
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
    except OSError as error:
        raise WriteError(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; raises WriteError."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG file, whatever its name ends with; raises WriteError."""
    with write_atomically(path) as temporary:
        picture.save(temporary, format="PNG")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV file with a header; raises WriteError."""
    with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(folder: Path, names: Iterable[str]) -> None:
    """Remove what a crash has left half written of these files; nobody else may be writing them."""
    for name in names:
        for part in folder.glob(f".{name}.*{PART}"):
            part.unlink(missing_ok=True)
