"""Files of images and tables: what is in them is read, whatever else they hold is one message, and nothing is trusted.

Independent of what is tested: NumPy, h5py, Pillow, SciPy and the csv module write the files.
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from lvkam.errors import DataError
from lvkam.readers import own_arrays, read_image
from tests.conftest import within

savez: Callable[..., None] = np.savez

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def told(path: Path, read: Callable[[Path], object] | None = None) -> str:
    """Why a file is refused, by its head or when it is read: one line, which begins with its path."""

    def read_all(path: Path) -> None:
        for rows in own_arrays(path).values():
            rows.read(0, rows.shape[0])

    with pytest.raises(DataError) as caught, within(30):
        (read or read_all)(path)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert message.isprintable(), message
    assert len(message) < len(str(path)) + 400
    return message.removeprefix(str(path)).removeprefix(": ")


def read_or_refused(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a damaged file, or none if it is refused; nothing else is raised."""
    try:
        return {name: rows.read(0, rows.shape[0]) for name, rows in own_arrays(path).items()}
    except DataError:
        told(path)
        return {}


def only(path: Path) -> np.ndarray:
    """The one array of a file, whole."""
    arrays = own_arrays(path)
    assert list(arrays) == ["samples"]
    found = arrays["samples"].read(0, arrays["samples"].shape[0])
    if not path.is_dir():  # what its head says is what it holds
        assert (found.shape, found.dtype) == arrays["samples"][:2]
    return found


# --- NumPy's archives


DTYPES = ["?", "u1", "i1", "<u2", ">i4", "<i8", "u8", "<f2", ">f4", "f8"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_archives_are_read_by_rows(order: Any, save: Callable[..., None], tmp_path: Path) -> None:
    for number, dtype in enumerate(DTYPES):
        shape = [(9, 4), (9, 5, 4), (9, 5, 4, 3)][number % 3]
        array = np.asarray(rng(number).integers(0, 100, shape).astype(dtype), order=order)
        save(path := tmp_path / "a.npz", samples=array)
        np.testing.assert_array_equal(only(path), array, strict=True)
        rows = own_arrays(path)["samples"]
        for start, stop in ((0, 1), (3, 7), (8, 9), (4, 4)):
            np.testing.assert_array_equal(rows.read(start, stop), array[start:stop], strict=True)


def test_the_arrays_that_count_are_chosen_by_name(tmp_path: Path) -> None:
    one, two, three = (rng(n).random((n + 2, 3, 3)) for n in range(3))
    for content, expected in (
        ({"train": one, "test": two}, {"train": one, "test": two}),
        ({"train": one, "test": two, "samples": three, "labels": three}, {"train": one, "test": two}),
        ({"samples": one, "train": two, "more": three}, {"samples": one}),
        ({"whatever": one}, {"samples": one}),
        ({"train": one}, {"samples": one}),
    ):
        savez(tmp_path / "a.npz", **content)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.update(content)
            file.create_group("more_of_it")["x"] = three
        for name in ("a.npz", "a.h5"):
            found = {split: rows.read(0, rows.shape[0]) for split, rows in own_arrays(tmp_path / name).items()}
            assert found.keys() == expected.keys()
            for split, array in expected.items():
                np.testing.assert_array_equal(found[split], array, strict=True)


WHICH = "must hold `train` and `test`, or `samples`, or one array only"
IMAGES = np.zeros((2, 3, 3))
WRONG_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no array": ({}, f"holds no array; {WHICH}"),
    "two unnamed ones": ({"arr_0": IMAGES, "arr_1": IMAGES}, f"holds arr_0, arr_1; {WHICH}"),
    "half of the splits": ({"train": IMAGES, "labels": IMAGES}, f"holds labels, train; {WHICH}"),
    "text": ({"a": np.array([["a", "b"]])}, "holds text; must be integers, floats or bools"),
    "bytes": ({"a": np.array([[b"a", b"b"]])}, "holds text; must be integers, floats or bools"),
    "complex numbers": ({"a": 1j * IMAGES}, "holds complex numbers; must be integers, floats or bools"),
    "records": ({"a": np.zeros((2, 3), "i4, f4")}, "holds records; must be integers, floats or bools"),
    "dates": (
        {"a": np.zeros((2, 3), "M8[D]")}, "holds datetime64[D]; must be integers, floats or bools",
    ),
    "durations": (
        {"a": np.zeros((2, 3), "m8[s]")}, "holds timedelta64[s]; must be integers, floats or bools",
    ),
    "a number": ({"a": np.array(3.0)},
                 "an array of shape (); must be images, (N, H, W) or (N, H, W, C), or a table, (N, D)"),
    "a list": ({"a": np.zeros(3)},
               "an array of shape (3,); must be images, (N, H, W) or (N, H, W, C), or a table, (N, D)"),
    "five dimensions": ({"a": np.zeros((2, 3, 1, 2, 2))}, "an array of shape (2, 3, 1, 2, 2); must be images, "
                        "(N, H, W) or (N, H, W, C), or a table, (N, D)"),
    "no rows": ({"a": np.zeros((0, 3))}, "is empty, of shape (0, 3)"),
    "no columns": ({"a": np.zeros((3, 0))}, "is empty, of shape (3, 0)"),
    "no pixels": ({"a": np.zeros((3, 2, 0))}, "is empty, of shape (3, 2, 0)"),
    "one of two": ({"train": IMAGES, "test": np.zeros((0, 3, 3))}, "test: is empty, of shape (0, 3, 3)"),
    "too many columns": (
        {"a": np.zeros((1, 10**6 + 1), bool)}, "1000001 columns, more than 1000000; images are (N, H, W)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_an_archive_of_something_else_is_told(name: str, tmp_path: Path) -> None:
    content, message = WRONG_ARRAYS[name]
    np.savez(path := tmp_path / "a.npz", **content)
    found = told(path)
    assert found.replace("holds train, labels", "holds labels, train") == message


@pytest.mark.parametrize("name", ["no array", "half of the splits", "a number", "a list", "five dimensions", "no rows",
                                  "no pixels", "one of two", "two unnamed ones", "too many columns"])  # fmt: skip
def test_an_hdf5_file_of_something_else_is_told_in_the_same_words(name: str, tmp_path: Path) -> None:
    content, message = WRONG_ARRAYS[name]
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        file.update(content)
    assert told(path) == message


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("samples", "train"):
        array = np.array([[Canary(canary)]], dtype=object)
        savez(path := tmp_path / "a.npz", **{name: array}, test=array)
        found = told(path)
        which = "samples" if name == "samples" else "train"
        assert found == f"{which}: holds Python objects, which are never read; must be numbers"
        assert not canary.exists()
    with np.load(path, allow_pickle=True) as loaded:
        _ = loaded["test"]
    assert canary.exists()  # so would it have been


def npy(head: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An array file whose head says so."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(head.encode()))
    return b"\x93NUMPY" + bytes(version) + length + head.encode() + body


def head(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def archive(path: Path, content: bytes, name: str = "samples.npy", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    return path


HEADS: dict[str, tuple[bytes, str]] = {
    "more than there is": (npy(head("(4, 4)"), bytes(60)), "damaged: samples announces 64 bytes, the archive 60"),
    "less than there is": (npy(head("(4, 4)"), bytes(68)), "damaged: samples announces 64 bytes, the archive 68"),
    "far more": (npy(head("(1000000, 1000000)")), "damaged: samples announces 4000000000000 bytes, the archive 0"),
    "sizes below zero": (npy(head("(-2, -2)"), bytes(16)), "is empty, of shape (-2, -2)"),
    "no magic": (b"NUMPY" + bytes(100), "no readable .npz file (the magic string is not correct; "),
    "no bytes": (b"", "no readable .npz file (EOF: reading magic string, expected 8 bytes got 0)"),
    "another format": (
        npy(head("(2, 2)"), bytes(16), (3, 0)), "samples: an array format that lvkam does not read ((3, 0))",
    ),
    "arrays in an array": (
        npy(head("(1,)", "('<f4', (4,))"), bytes(16)), "holds records; must be integers, floats or bools",
    ),
    "no such type": (npy(head("(2, 2)", "'zzz'"), bytes(16)), "no readable .npz file (descr is not a valid dtype"),
    "a type of no bytes": (npy(head("(2, 2)", "'|V0'")), "holds records; must be integers, floats or bools"),
    "an older letter of a type": (
        npy(head("(2, 2)", "'|a4'"), bytes(16)), "holds text; must be integers, floats or bools",
    ),
    "a type that is no word": (npy(head("(2, 2)", "','"), bytes(16)), "no readable .npz file (invalid syntax"),
    "a type that is a list": (npy(head("(2, 2)", "[[[]]]"), bytes(16)), "no readable .npz file (not enough values"),
    "unended": (npy("{'descr': '<f4', 'shape': (2, 2"), "no readable .npz file (('EOF in multi-line statement'"),
    "wrongly indented": (npy("  x\n y\n"), "no readable .npz file (unindent does not match"),
    "no dictionary": (npy("[1, 2]"), "no readable .npz file (Header is not a dictionary"),
    "another dictionary": (npy("{'a': 1}"), "no readable .npz file (Header does not contain the correct keys"),
    "keys of several kinds": (npy("{1: 2, 'a': 3}"), "no readable .npz file ("),
    "zero bytes": (npy("\0" * 100), "no readable .npz file (Cannot parse header: "),
    "no end of nesting": (npy("(" * 900), "no readable .npz file ("),
    "nesting that Python's parser gives up": (npy("-" * 9000 + "1"), "samples: the head of an array cannot be read"),
    "nesting that its compiler gives up": (npy("{" + "-" * 3000 + "1: 1}"), "no readable .npz file ("),
    "numbers of 4000 digits": (npy(head(f"({'9' * 4000}, {'9' * 4000})")), "no readable .npz file (Exceeds the limit"),
    "a head of 20 kB": (npy(head("(2, 2)") + " " * 20000, bytes(16)), "no readable .npz file (Header info length"),
    "a head longer than the file": (npy(head("(2, 2)"))[:20], "no readable .npz file (EOF: reading array header"),
}  # fmt: skip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_misleads_is_told(name: str, method: int, tmp_path: Path) -> None:
    content, message = HEADS[name]
    assert told(archive(tmp_path / "a.npz", content, method=method)).startswith(message)


def test_a_head_as_python_2_wrote_it_is_read_in_silence(tmp_path: Path) -> None:
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    path = archive(tmp_path / "a.npz", npy(head("(2L, 2L)"), array.tobytes()))
    np.testing.assert_array_equal(only(path), array, strict=True)


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07.npy", "a\nb.npy", "\u202e.npy"])
def test_a_name_that_would_move_the_cursor_does_not(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", npy(head("(2, 2)", "'|O'"), bytes(16)), name)
    assert "holds Python objects" in told(path)  # and is printable, as `told` makes sure
    savez(path, **{name.removesuffix(".npy"): IMAGES, "b": IMAGES})
    assert WHICH in told(path)
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        file[name] = h5py.SoftLink("/x")
    assert "is a link to elsewhere" in told(path)


def patched(path: Path, offset: int, form: str, value: int) -> None:
    """Change a field of the central directory's first record, and the same one of the local header before it."""
    content = bytearray(path.read_bytes())
    record = content.index(b"PK\x01\x02")
    struct.pack_into(form, content, record + offset, value)
    if offset < 30:
        struct.pack_into(form, content, offset - 2, value)
    path.write_bytes(content)


def test_an_archive_with_something_else_in_it_is_told(tmp_path: Path) -> None:
    np.savez(path := tmp_path / "a.npz", samples=IMAGES)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("readme.txt", "hello")
    assert told(path) == "holds readme.txt, which is no array"


def test_what_is_encrypted_or_packed_otherwise_is_told(tmp_path: Path) -> None:
    content = npy(head("(2, 2)"), bytes(16))
    patched(path := archive(tmp_path / "a.npz", content), 8, "<H", 1)
    assert told(path) == "samples is encrypted"
    patched(archive(path, content), 10, "<H", 99)
    assert told(path) == "samples is compressed in a way that NumPy does not write"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert told(archive(path, content, method=method)) == "samples is compressed in a way that NumPy does not write"


def test_zip_bombs_are_refused_by_their_heads(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, samples=np.zeros((2**25, 2), np.uint8))
    stored = zipfile.ZipFile(path).infolist()[0].compress_size
    bomb = f"samples announces {2**26} bytes and stores {{}}: out of proportion"
    tracemalloc.start()
    assert told(path) == bomb.format(stored)
    patched(path, 20, "<I", 2**31)  # and says that it stores more
    assert told(path) == bomb.format(path.stat().st_size)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()
    # what is small may be as regular as it likes
    np.savez_compressed(path, samples=np.zeros((2**23, 2), np.uint8))
    assert own_arrays(path)["samples"].shape == (2**23, 2)


def test_an_archive_cut_short_is_told(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(path := tmp_path / "a.npz", train=rng().random((5, 3, 3)), test=rng().random((4, 3, 3)))
        whole = path.read_bytes()
        for size in range(0, len(whole), 7):
            path.write_bytes(whole[:size])
            assert told(path).startswith("no readable .npz file (")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_bits_of_an_archive_are_told_or_change_nothing(save: Callable[..., None], tmp_path: Path) -> None:
    arrays = {"train": rng().integers(0, 9, (30, 3, 3)), "test": rng(1).integers(0, 9, (4, 3, 3))}
    save(path := tmp_path / "a.npz", **arrays)
    whole, refused = path.read_bytes(), 0
    for place in rng(2).choice(8 * len(whole), 400, replace=False).tolist():
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        found = read_or_refused(path)
        refused += not found
        # one may be lost where the archive lists what it holds, but none is another
        for name, array in (found or arrays).items():
            expected = arrays.values() if name == "samples" else [arrays[name]]
            assert any(np.array_equal(array, a) and array.dtype == a.dtype for a in expected)
    assert refused > 200


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_told_though_only_rows_before_it_are_asked_for(save: Callable[..., None], tmp_path: Path) -> None:
    array = rng().integers(0, 256, (300, 30, 30), dtype=np.uint8)
    save(path := tmp_path / "a.npz", samples=array)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        end = file.infolist()[0].compress_size
    content = bytearray(whole)
    content[end - 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged: samples \("):
        own_arrays(path)["samples"].read(0, 5)
    path.write_bytes(whole)
    np.testing.assert_array_equal(own_arrays(path)["samples"].read(0, 5), array[:5])


# --- HDF5


HOW: list[dict[str, Any]] = [
    {}, {"chunks": (4, 5, 2)}, {"compression": "gzip"}, {"compression": "gzip", "chunks": (4, 5, 2), "shuffle": True},
    {"compression": "gzip", "fletcher32": True}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True},
    {"maxshape": (None, 7, 3), "compression": "gzip", "chunks": (100, 7, 3)},
]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_hdf5_files_are_read_by_rows(how: dict[str, Any], tmp_path: Path) -> None:
    for number, dtype in enumerate(DTYPES):
        array = rng(number).integers(0, 100, (50, 7, 3)).astype(dtype)
        with h5py.File(path := tmp_path / "a.HDF5", "w") as file:
            file.create_dataset("samples", data=array, **how)
        np.testing.assert_array_equal(only(path), array, strict=True)
        rows = own_arrays(path)["samples"]
        for start, stop in ((0, 1), (3, 7), (49, 50)):
            np.testing.assert_array_equal(rows.read(start, stop), array[start:stop], strict=True)


def test_pieces_that_were_never_written_are_what_the_file_says_they_are(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", (30, 4), "i2", chunks=(10, 4), compression="gzip", fillvalue=7)
        data[10:20] = 3
    np.testing.assert_array_equal(only(path), np.repeat(np.array([7, 3, 7], np.int16), 10)[:, None].repeat(4, 1))


def low(name: str, shape: tuple[int, ...], dtype: str, set_up: Callable[[Any], None]) -> Callable[[h5py.File], None]:
    """A dataset made by the library's own calls."""

    def make(file: h5py.File) -> None:
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        set_up(how)
        kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, name.encode(), kind, space, how)

    return make


def filtered(*numbers: int) -> Callable[[Any], None]:
    def set_up(how: Any) -> None:
        how.set_chunk((2, 3))
        for number in numbers:
            how.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1,))

    return set_up


def stored_beside(file: h5py.File) -> None:
    (outside := Path(file.filename).with_suffix(".raw")).write_bytes(b"CANARY..CANARY..CANARY..")
    file.create_dataset("samples", (2, 3), "f4", external=[(outside, 0, 24)])


def virtual(file: h5py.File) -> None:
    with h5py.File(outside := Path(file.filename).with_suffix(".other"), "w") as other:
        other["a"] = np.ones((2, 3))
    layout = h5py.VirtualLayout((2, 3), "f8")
    layout[...] = h5py.VirtualSource(outside, "a", (2, 3))
    file.create_virtual_dataset("samples", layout)


def never_written(shape: tuple[int, ...], **how: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset("samples", shape, "f4", **how)


def inflated(times: int, **how: Any) -> Callable[[h5py.File], None]:
    """A piece that holds far more than it should: what HDF5 inflates to its end."""

    def make(file: h5py.File) -> None:
        data = file.create_dataset("samples", (10, 10), "f4", chunks=(10, 10), compression="gzip", **how)
        data.id.write_direct_chunk((0, 0), zlib.compress(bytes(times * 400)))

    return make


DEFLATE = h5py.h5z.FILTER_DEFLATE
STORED = "samples is stored elsewhere, or by a filter other than gzip, lzf, shuffle, fletcher32"
LINK = "samples is a link to elsewhere, which no such file holds"
NO_NUMBERS = "samples holds something else than numbers"
WRONG_HDF5: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "a soft link": (lambda f: f.update({"samples": h5py.SoftLink("/x"), "x": IMAGES}), LINK),
    "an external link": (lambda f: f.update({"samples": h5py.ExternalLink("o.h5", "/x")}), LINK),
    "an external link beside it": (
        lambda f: f.update({"samples": IMAGES, "x": h5py.ExternalLink("o.h5", "/x")}), LINK.replace("samples", "x"),
    ),
    "stored in another file": (stored_beside, STORED),
    "made of other files": (virtual, STORED),
    "an unknown filter": (low("samples", (2, 3), "f4", filtered(32015)), STORED),
    "a filter that may be loaded": (low("samples", (2, 3), "f4", filtered(307)), STORED),
    "a filter twice": (low("samples", (2, 3), "f4", filtered(DEFLATE, DEFLATE)), STORED),
    "records": (lambda f: f.update({"samples": np.zeros((2, 3), "i4, f4")}), NO_NUMBERS),
    "text": (lambda f: f.create_dataset("samples", data=[["a", "b"]], dtype=h5py.string_dtype()), NO_NUMBERS),
    "bytes": (lambda f: f.update({"samples": np.array([[b"a"]])}), NO_NUMBERS),
    "lists": (lambda f: f.create_dataset("samples", (2, 3), h5py.vlen_dtype(np.int32)), NO_NUMBERS),
    "references": (lambda f: f.create_dataset("samples", (2, 3), h5py.ref_dtype), NO_NUMBERS),
    "complex numbers": (lambda f: f.update({"samples": 1j * IMAGES}), NO_NUMBERS),
    "an enumeration": (
        lambda f: f.create_dataset("samples", (2, 3), h5py.enum_dtype({"A": 1}, "i4")), NO_NUMBERS,
    ),
    "opaque bytes": (lambda f: f.update({"samples": np.zeros((2, 3), "V4")}), NO_NUMBERS),
    "nothing": (lambda f: f.update({"samples": h5py.Empty("f4")}), "samples is not an array"),
    "a group": (lambda f: f.create_group("samples"), f"holds no array; {WHICH}"),
    "a type": (lambda f: f.update({"samples": np.dtype("f4")}), "samples is neither a group nor an array"),
    "huge, never written": (
        never_written((10**4, 10**4)), "samples announces 400000000 bytes and stores 0: out of proportion",
    ),
    "huge, in pieces, never written": (
        never_written((10**4, 10**4), chunks=(100, 100)),
        "samples announces 400000000 bytes and stores 0: out of proportion",
    ),
    "beyond all bounds": (
        never_written((2**40, 2**20), chunks=(1024, 1024)),
        f"samples is stored in {2**40} pieces of (1024, 1024): out of proportion",
    ),
    "huge pieces": (
        never_written((10, 10), chunks=(20000, 20000), maxshape=(None, None)),
        "samples is stored in 1 pieces of (20000, 20000): out of proportion",
    ),
    "millions of pieces": (
        never_written((2000, 2000), chunks=(1, 1)),
        "samples is stored in 4000000 pieces of (1, 1): out of proportion",
    ),
    "a piece with more in it": (inflated(1000), "/samples holds more than it announces"),
    "a piece with more in it, shuffled": (inflated(2, shuffle=True), "/samples holds more than it announces"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_HDF5)
def test_an_hdf5_file_that_misleads_is_told(name: str, tmp_path: Path) -> None:
    make, message = WRONG_HDF5[name]
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        make(file)
    assert told(path) == message


def test_a_piece_that_inflates_for_ever_takes_no_memory(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        inflated(2**18)(file)
    tracemalloc.start()
    assert told(path) == "/samples holds more than it announces"
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_a_damaged_piece_is_told(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("samples", (10, 10), "f4", chunks=(10, 10), compression="gzip")
        data.id.write_direct_chunk((0, 0), b"nothing that was deflated")
    assert told(path).startswith("damaged: /samples: Error -3 while decompressing data")


@pytest.mark.parametrize("content", [b"", b"hello", HTML * 100, b"\x89HDF\r\n\x1a"])
def test_what_is_no_hdf5_file_is_told(content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "a.h5").write_bytes(content)
    assert told(path) == "not an HDF5 file"


def test_an_hdf5_file_cut_short_is_told(tmp_path: Path) -> None:
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        file.create_dataset("samples", data=rng().random((50, 3, 3)))
    whole = path.read_bytes()
    for size in range(8, len(whole), 97):
        path.write_bytes(whole[:size])
        assert told(path).startswith("damaged: ")


def test_flipped_bits_of_an_hdf5_file_with_checksums_are_told_or_change_nothing(tmp_path: Path) -> None:
    array = rng().integers(0, 99, (60, 4, 4), dtype=np.int32)
    with h5py.File(path := tmp_path / "a.h5", "w", libver="latest") as file:
        file.create_dataset("samples", data=array, fletcher32=True, compression="gzip", chunks=(60, 4, 4))
    whole, refused = path.read_bytes(), 0
    for place in rng(1).choice(8 * len(whole), 300, replace=False).tolist():
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        found = read_or_refused(path)
        refused += not found
        np.testing.assert_array_equal(found.get("samples", array), array, strict=True)
    assert refused > 100


# --- tables as text


TABLE = np.array([[1, -2.5, 3e-7], [4e10, 5, -0.0]])
LINES = "1,-2.5,3e-7\n+4E10,5.,-0\n"
TEXTS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "numbers alone": (LINES, ()),
    "names": (f"height,weight,age\n{LINES}", ("height", "weight", "age")),
    "lines of Windows": (f"a,b,c\n{LINES}".replace("\n", "\r\n"), ("a", "b", "c")),
    "lines of an old Macintosh": (f"a,b,c\n{LINES}".replace("\n", "\r"), ("a", "b", "c")),
    "no last end of line": (f"a,b,c\n{LINES}".rstrip(), ("a", "b", "c")),
    "empty lines": (f"a,b,c\n\n{LINES}\n\n".replace("\n+", "\n\n+"), ("a", "b", "c")),
    "semicolons": (f"a,b,c\n{LINES}".replace(",", ";"), ("a", "b", "c")),
    "tabs": (f"a,b,c\n{LINES}".replace(",", "\t"), ("a", "b", "c")),
    "semicolons, no names": (LINES.replace(",", ";"), ()),
    "commas within names": (f'"a;b","c, d",e\n{LINES}', ("a;b", "c, d", "e")),
    "semicolons and commas within names": (f'"a,b";c,d;"e;f"\n{LINES.replace(",", ";")}', ("a,b", "c,d", "e;f")),
    "quotes": (f'"a","b","c"\n"1","-2.5","3e-7"\n{LINES.splitlines()[1]}', ("a", "b", "c")),
    "a byte-order mark": (b"\xef\xbb\xbf" + f"a,b,c\n{LINES}".encode(), ("a", "b", "c")),
    "a byte-order mark, no names": (b"\xef\xbb\xbf" + LINES.encode(), ()),
    "white space": (" a , b,c \n" + LINES.replace(",", " , "), ("a", "b", "c")),
    "names in other letters": (f"größe,重さ,ε\n{LINES}", ("größe", "重さ", "ε")),
    "a name of 100 letters": (f"{'a' * 100},b,c\n{LINES}", ("a" * 100, "b", "c")),
    "a name that means missing": (f"NA,b,c\n{LINES}", ("NA", "b", "c")),
    "a # in a name": (f"# a,b,c\n{LINES}", ("# a", "b", "c")),
}


@pytest.mark.parametrize("name", TEXTS)
def test_tables_are_read(name: str, tmp_path: Path) -> None:
    text, names = TEXTS[name]
    (path := tmp_path / "a.CSV").write_bytes(text if isinstance(text, bytes) else text.encode())
    np.testing.assert_array_equal(only(path), TABLE, strict=True)
    rows = own_arrays(path)["samples"]
    assert rows.names == names
    assert rows.columns == (names or ("x1", "x2", "x3"))
    assert rows.is_table


def test_a_table_of_one_column_and_one_of_one_row_are_tables(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_text("a\n1\n2\n3\n")
    np.testing.assert_array_equal(only(path), [[1.0], [2.0], [3.0]])
    path.write_text("1,2,4\n")
    np.testing.assert_array_equal(only(path), [[1.0, 2.0, 4.0]])


def test_numbers_are_read_to_the_bit(tmp_path: Path) -> None:
    table = rng().standard_normal((200, 3)) * 10.0 ** rng(1).integers(-300, 300, (200, 3))
    (path := tmp_path / "a.csv").write_text("\n".join(",".join(map(repr, row)) for row in table.tolist()))
    np.testing.assert_array_equal(only(path), table, strict=True)


FIRST = "its first line must hold numbers (1.5, and not 1,5), or names of columns, and holds"
INDEX = "if it numbers the rows, leave it out (index=False)"
NAME = "must be printable, its own, and no longer than 100 characters"
NO_VALUE = "has no value there; fill or drop it first"
NO_TABLE: dict[str, tuple[str | bytes, str]] = {
    "an empty field": ("a,b\n1,2\n3,\n", f"line 3: the column b {NO_VALUE}"),
    "numbers for names": ("0,1,2\n3,4,5\n", "its first line, 0,1,2, numbers the columns: name them, or leave it out"),
    "numbers from 1": ("1,2\n3,4\n", "its first line, 1,2, numbers the columns: name them, or leave it out"),
    "an index": (",a,b\n0,1,2\n", f"its first column has no name: {INDEX}"),
    "an index and numbers for names": (",0,1\n0,1,2\n", f"its first column has no name: {INDEX}"),
    "an empty field of no name": ("1,3\n3,\n", f"line 2: the column 2 {NO_VALUE}"),
    "an empty field in the first line": (",2\n3,4\n", f"line 1: the column 1 {NO_VALUE}"),
    "a space": ("a,b\n1,2\n , 4\n", f"line 3: the column a {NO_VALUE}"),
    **{
        f"the word {word}": (f"a,b\n1,2\n3,4\n{word},5\n", f"line 4: the column a {NO_VALUE}")
        for word in ("NaN", "nan", "NA", "n/a", "null", "None", "-", "?")
    },
    **{
        f"the number {word}": (f"a,b\n1,2\n3,{word}\n", f"line 3: the column b holds '{word}', which is not finite")
        for word in ("inf", "-Infinity", "1e999")
    },
    **{
        f"the number {word}": (f"a,b\n1,{word}\n", f"line 2: the column b holds {word!a}, which is not a number")
        for word in ("x", "0x10", "1_000", "2j", "true", "1.2.3", "1 2", "１", "$5", "5%", "a\x1b[2J", "\0", "2#3")
    },
    "a decimal comma": ("a;b\n1,5;2,5\n", "line 2: the column a holds '1,5', which is not a number"),
    "a field less": ("a,b\n1,2\n3\n", "line 3 has 1 fields, the first one 2"),
    "a field more": ("a,b\n1,2\n3,4,5\n", "line 3 has 3 fields, the first one 2"),
    "a field more in all lines": ("a,b\n1,2,3\n4,5,6\n", "2 names for 3 columns"),
    "a line of spaces": ("a,b\n1,2\n  \n3,4\n", "line 3 has 1 fields, the first one 2"),
    "a comment": ("# measured by hand\n1,2\n", "1 names for 2 columns"),
    "an unended quote": ('a,b\n1,"2\n3,4\n', r"line 3: the column b holds '2\n3,4\n', which is not a number"),
    "a name twice": ("a,b,a\n1,2,3\n", f"the name of column 3 is 'a'; {NAME}"),
    "an empty name": ("a,,c\n1,2,3\n", f"the name of column 2 is ''; {NAME}"),
    "a name of a space": ("a, ,c\n1,2,3\n", f"the name of column 2 is ''; {NAME}"),
    "a name that moves the cursor": ("a,\x1b[2J\n1,2\n", rf"the name of column 2 is '\x1b[2J'; {NAME}"),
    "a name that turns the line": ("a,\u202eb\n1,2\n", rf"the name of column 2 is '\u202eb'; {NAME}"),
    "a name too long": (f"a,{'b' * 101}\n1,2\n", f"the name of column 2 is '{'b' * 59}; {NAME}"),
    "names too long in all": (
        ",".join(f"{n:0100}" for n in range(1000, 1301)).replace("0", "o") + "\n" + ",".join("1" * 301),
        "the names of its 301 columns have more than 30000 characters in all",
    ),
    "numbers and names": ("a,1\n2,3\n", f"{FIRST} 'a,1'"),
    "a first line that is empty": ("\na,b\n1,2\n", f"{FIRST} ''"),
    "nothing": ("", f"{FIRST} ''"),
    "empty lines": ("\n\n\n", f"{FIRST} ''"),
    "names alone": ("a,b\n", "holds names of columns, and no row"),
    "no text": (bytes(8), rf"the name of column 1 is '{chr(92)}x00{chr(92)}x00"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "not a text file in UTF-8 (byte 0)"),
    "Latin 1": ("größe,b\n1,2\n".encode("latin-1"), "not a text file in UTF-8 (byte 2)"),
    "Latin 1, far within": (b"a,b\n" + b"1,2\n" * 9000 + b"1,\xff\n", "not a text file in UTF-8"),
    "a field of 200000 letters": (b"a,b\n1," + b"x" * 200000, "could not convert string 'xxx"),
    "a number of 200000 digits": (b"a,b\n1," + b"1" * 200000, "a value is missing or infinite"),
    "HTML": (HTML, ""),
}


@pytest.mark.parametrize("name", NO_TABLE)
def test_what_is_no_table_is_told_with_line_and_column(name: str, tmp_path: Path) -> None:
    text, message = NO_TABLE[name]
    (path := tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = told(path)
    exact = not isinstance(text, bytes) or name in {"UTF-16", "Latin 1"}
    assert found == message if exact else found.startswith(message)


def test_a_first_line_of_a_million_fields_is_told_at_once(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_text("1," * 500000 + "1\n")
    with within(5):
        assert told(path) == "its first line has more than 131072 characters"
    names = [f"a{n}" for n in range(18000)]
    path.write_text(",".join(names) + "\n" + ",".join(name.strip("a") for name in names))
    with within(5):
        assert told(path) == "the names of its 18000 columns have more than 30000 characters in all"
    path.write_text(",".join(["1"] * 65000))  # which have no names
    with within(5):
        assert only(path).shape == (1, 65000)


# --- folders of images


def save(array: np.ndarray, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def grey(seed: int = 0, shape: tuple[int, ...] = (5, 7)) -> np.ndarray:
    return rng(seed).integers(0, 256, shape, dtype=np.uint8)


LOSSLESS = [".png", ".bmp", ".tif", ".tiff", ".ppm", ".webp", ".PNG"]


@pytest.mark.parametrize("ending", LOSSLESS)
def test_pixels_are_read_exactly(ending: str, tmp_path: Path) -> None:
    colours = grey(1, (5, 7, 3))
    options = {"lossless": True} if ending == ".webp" else {}
    np.testing.assert_array_equal(read_image(save(colours, tmp_path / f"a{ending}", **options)), colours, strict=True)
    if ending != ".webp":  # which knows colours only
        np.testing.assert_array_equal(read_image(save(grey(), tmp_path / f"b{ending}")), grey(), strict=True)


def test_other_formats_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(grey(), tmp_path / "a.pgm")), grey(), strict=True)
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    for ending in (".jpg", ".jpeg", ".gif", ".webp"):
        found = read_image(save(flat, tmp_path / f"a{ending}"))
        assert found.shape == (16, 16, 3)
        assert np.abs(found.astype(int) - flat).max() <= 4  # as far as it keeps colours


def test_numbers_of_other_kinds_are_kept(tmp_path: Path) -> None:
    deep = rng().integers(0, 2**16, (5, 7), dtype=np.uint16)
    floats = rng().standard_normal((5, 7)).astype(np.float32)
    for ending in (".png", ".tif"):
        np.testing.assert_array_equal(read_image(save(deep, tmp_path / f"a{ending}")), deep, strict=True)
    np.testing.assert_array_equal(read_image(save(floats, tmp_path / "b.tif")), floats, strict=True)
    bits = grey() > 128
    np.testing.assert_array_equal(read_image(save(bits, tmp_path / "c.png")), bits * np.uint8(255), strict=True)
    wide = np.array([[0, 70000], [-5, 3]], np.int32)
    np.testing.assert_array_equal(read_image(save(wide, tmp_path / "d.tif")), wide, strict=True)


def test_palettes_become_colours(tmp_path: Path) -> None:
    indices = rng().integers(0, 4, (5, 7), dtype=np.uint8)
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    image.save(path := tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path), palette[indices], strict=True)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_laid_on_white(channels: int, tmp_path: Path) -> None:
    pixels = grey(3, (5, 7, channels))
    pixels[0, :3, -1] = [0, 255, 128]
    alpha = pixels[..., -1:] / 255
    expected = alpha * pixels[..., :-1] + (1 - alpha) * 255
    found = read_image(save(pixels, tmp_path / "a.png")).astype(float)
    assert found.shape == ((5, 7) if channels == 2 else (5, 7, 3))  # what has no colour stays grey
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 1


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
def test_images_are_turned_upright(ending: str, tmp_path: Path) -> None:
    turned: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90,
    }  # fmt: skip
    corner = np.zeros((16, 32, 3), np.uint8)
    corner[:8, :16] = (255, 0, 0)
    corner[:8, 16:] = (0, 255, 0)
    for orientation, upright in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if ending == ".webp" else {"quality": 100, "subsampling": 0}
        found = read_image(save(corner, tmp_path / f"{orientation}{ending}", exif=exif, **options))
        expected = upright(corner)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() < 40, orientation


def test_only_the_first_picture_of_several_counts(tmp_path: Path) -> None:
    first, second = Image.fromarray(grey(0)), Image.fromarray(grey(1))
    first.save(path := tmp_path / "a.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(path), grey(0), strict=True)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    names = ["b.png", "a.png", "10.png", "9.bmp", "A.png", "é.png", "a.b.png"]
    for number, name in enumerate(names):
        save(grey(number), tmp_path / name)
    save(grey(99), tmp_path / ".hidden.png")
    (tmp_path / "readme.txt").write_text("nothing to see")
    (tmp_path / "deeper").mkdir()
    save(grey(98), tmp_path / "deeper" / "a.png")
    expected = np.stack([grey(names.index(name)) for name in sorted(names)])
    np.testing.assert_array_equal(only(tmp_path), expected, strict=True)
    rows = own_arrays(tmp_path)["samples"]
    assert rows.shape == (7, 5, 7)
    np.testing.assert_array_equal(rows.read(2, 4), expected[2:4], strict=True)


def test_folders_of_both_splits_are_taken_for_them(tmp_path: Path) -> None:
    for number in range(5):
        save(grey(number), tmp_path / ("train" if number < 3 else "test") / f"{number}.png")
    save(grey(9), tmp_path / "beside.png")
    found = {name: rows.read(0, rows.shape[0]) for name, rows in own_arrays(tmp_path).items()}
    assert list(found) == ["train", "test"]
    np.testing.assert_array_equal(found["train"], np.stack([grey(n) for n in range(3)]))
    np.testing.assert_array_equal(found["test"], np.stack([grey(n) for n in (3, 4)]))


def test_one_folder_of_the_two_is_no_split(tmp_path: Path) -> None:
    save(grey(0), tmp_path / "train" / "a.png")
    assert told(tmp_path).startswith("holds no image; must hold some, .png, ")
    save(grey(1), tmp_path / "b.png")
    np.testing.assert_array_equal(only(tmp_path), grey(1)[None], strict=True)


@pytest.mark.parametrize("grey_first", [True, False])
def test_grey_images_among_colours_become_colours(grey_first: bool, tmp_path: Path) -> None:
    colours = grey(1, (5, 7, 3))
    save(grey(0), tmp_path / ("a.png" if grey_first else "z.png"))
    save(colours, tmp_path / "b.png")
    both = [grey(0)[..., None].repeat(3, 2), colours]
    np.testing.assert_array_equal(only(tmp_path), np.stack(both if grey_first else both[::-1]), strict=True)


def png(width: int, height: int) -> bytes:
    """A PNG file that announces so many pixels and holds next to none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (50000, 50000, "more than 16777216 pixels"),
        (2**31 - 1, 2**31 - 1, "more than 16777216 pixels"),
        (10000, 10000, "more than 16777216 pixels"),
        (4097, 4096, "4096x4097 pixels, more than 16777216"),
    ],
)
def test_an_image_of_too_many_pixels_is_told_at_once(width: int, height: int, message: str, tmp_path: Path) -> None:
    (path := tmp_path / "a.png").write_bytes(png(width, height))
    began = time.perf_counter()
    tracemalloc.start()
    assert told(path, read_image) == message
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert time.perf_counter() - began < 2


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no readable image (cannot identify image file"),
    "text": (HTML, "no readable image (cannot identify image file"),
    "no pixels": (png(0, 0), "no readable image ("),
    "cut short": (png(5, 7)[:-30], "no readable image ("),
    "fewer pixels than announced": (png(50, 70), "no readable image (image file is truncated"),
    "an archive": (zlib.compress(bytes(100)), "no readable image (cannot identify image file"),
    "a PostScript program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "no readable image (cannot identify",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_image_among_many_is_told_by_its_name(name: str, tmp_path: Path) -> None:
    for number in range(9):
        save(grey(number), tmp_path / f"{number}.png")
    (tmp_path / "5.png").write_bytes(BROKEN[name][0])
    assert told(tmp_path).startswith(f"/5.png: {BROKEN[name][1]}")
    (tmp_path / "0.png").write_bytes(BROKEN[name][0])
    assert told(tmp_path).startswith(f"/0.png: {BROKEN[name][1]}")


def test_images_of_several_sizes_are_told(tmp_path: Path) -> None:
    for number in range(3):
        save(grey(number), tmp_path / f"{number}.png")
    save(grey(0, (7, 5)), tmp_path / "3.png")
    all_one = "all must be of one size and type: bring them to it first"
    assert told(tmp_path) == f"/3.png: 7x5 uint8, where 0.png is 5x7 uint8; {all_one}"
    save(grey(0).astype(np.uint16), tmp_path / "3.png")
    assert told(tmp_path) == f"/3.png: 5x7 uint16, where 0.png is 5x7 uint8; {all_one}"


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    message = (
        "holds no image; must hold some, .png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, .webp, .pgm, .ppm, "
        "or the folders train and test"
    )
    assert told(tmp_path) == message
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    assert told(tmp_path) == f"/train: {message}"


VARIANTS: dict[str, tuple[np.ndarray, str, dict[str, Any]]] = {
    "png": (grey(0, (5, 7, 3)), "png", {}), "png16": (grey(0).astype(np.uint16) * 200, "png", {}),
    "jpeg": (grey(0, (5, 7, 3)), "jpeg", {}), "bmp": (grey(0, (5, 7, 3)), "bmp", {}), "gif": (grey(0), "gif", {}),
    "tiff": (grey(0, (5, 7, 3)), "tiff", {}), "tiff16": (grey(0).astype(np.uint16), "tiff", {}),
    "tiff of floats": (grey(0).astype(np.float32), "tiff", {}), "webp": (grey(0, (5, 7, 3)), "webp", {}),
    "ppm": (grey(0, (5, 7, 3)), "ppm", {}), "pgm": (grey(0), "ppm", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_damaged_image_is_one_message_or_some_image(name: str, tmp_path: Path) -> None:
    """Formats without checksums show something else; no other exception and no warning comes out of any."""
    pixels, kind, options = VARIANTS[name]
    if kind != "gif":
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "hello"
        options = {**options, "exif": exif}
    save(pixels, path := tmp_path / f"a.{kind}", **options)
    whole, source, refused = path.read_bytes(), rng(1), 0
    for number in range(150):
        content = bytearray(whole)
        for _ in range(int(source.integers(1, 4))):
            content[int(source.integers(len(content)))] ^= 1 << int(source.integers(8))
        path.write_bytes(content[: int(source.integers(len(content)))] if number % 5 == 0 else content)
        with warnings.catch_warnings(record=True) as said:
            try:
                found = read_image(path)
            except DataError:
                told(path, read_image)
                refused += 1
            else:
                assert found.ndim in {2, 3}
        assert said == []
    assert refused > 20


# --- places


def test_places_where_nothing_is_are_told(tmp_path: Path) -> None:
    (file := tmp_path / "a.txt").write_text("1,2\n")
    assert told(tmp_path / "none.npz") == "no such file or folder"
    assert told(tmp_path / "nowhere" / "none.npz") == "no such file or folder"
    assert told(file / "a.npz") == "no such file or folder"
    assert told(file) == "must be a folder of images, or a file that ends in .npz, .h5, .hdf5, .csv"
    (tmp_path / "broken.npz").symlink_to(tmp_path / "gone.npz")
    assert told(tmp_path / "broken.npz") == "no such file or folder"
    (tmp_path / "circle.npz").symlink_to(tmp_path / "circle.npz")
    assert told(tmp_path / "circle.npz")
    assert told(tmp_path / ("a" * 300 + ".npz")) == "cannot be read (File name too long)"


@pytest.mark.parametrize("name", ["a\0.npz", "\x1b]0;owned\x07.npz", "a\n.npz"])
def test_a_name_that_cannot_be_shown_is_shown_otherwise(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        own_arrays(tmp_path / name)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(".npz: no such file or folder")


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.csv", "folder/a.png"])
def test_only_regular_files_are_read(name: str, tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever."""
    (path := tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    place, message = (path.parent, "/a.png: is not a file") if "folder" in name else (path, "is not a file")
    assert told(place) == message
    path.unlink()
    path.symlink_to("/dev/zero")
    assert told(place) == message


def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    (path := tmp_path / "closed" / "a.npz").parent.mkdir()
    np.savez(path, IMAGES)
    path.parent.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(DataError) as caught:
            own_arrays(path)
    finally:
        os.seteuid(user)
        path.parent.chmod(0o700)
    assert str(caught.value) == f"{path}: cannot be read (Permission denied)"


def test_no_library_warns_where_a_message_tells(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_text("a,b\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told(path)
        told(archive(tmp_path / "a.npz", npy(head("(2L, 2L)"), bytes(15))))
    assert caught == []
