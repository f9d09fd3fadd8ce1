"""Sealed HDF5 files: every byte is covered, other readers see plain HDF5, and nothing is trusted that is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lvkam.hdf5 import (
    LONGEST_TEXT,
    SEAL_SIZE,
    SIGNATURE,
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
from tests.conftest import h5_arrays, reseal

ARRAYS: dict[str, np.ndarray] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/c": np.asarray(True),
    "b/d/e": np.array([-1, 2**63 - 1], dtype=np.int64),
}
LAYOUT: Layout = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}
SEAL = "damaged: its bytes do not match its seal"
SIZE = "damaged: not of the size that its seal says"


def fill(file: h5py.File) -> None:
    for name, array in ARRAYS.items():
        file.create_dataset(name, data=array).attrs["sha256"] = digest(array)
    file.attrs.update({"text": "ein Wörtchen\n", "number": 7, "shape": np.array([2, 3])})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_hdf5(path := tmp_path / "a.h5", fill, seal=True)
    return path


def refused(path: Path, read: Callable[[h5py.File], object] = lambda _: None) -> str:
    """The message, without the path that it begins with: one line, fit for a terminal."""
    with pytest.raises(HDF5Error) as caught, open_hdf5(path) as file:
        read(file)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable(), message
    return message.removeprefix(f"{path}: ")


def changed(path: Path, change: Callable[[h5py.File], object]) -> None:
    """Change a file and seal it again."""
    with h5py.File(path, "r+") as file:
        change(file)
    reseal(path)


def names(path: Path) -> Callable[[h5py.File], None]:
    return lambda file: check_names(path, file, ("text", "number", "shape"), LAYOUT)


def test_what_was_written_is_read(path: Path) -> None:
    with open_hdf5(path) as file:
        names(path)(file)
        for name, array in ARRAYS.items():
            found, checksum = read_array(path, file, name, *LAYOUT[name])
            np.testing.assert_array_equal(found, array, strict=True)
            assert checksum == digest(array) == file[name].attrs["sha256"]
        assert read_text(path, file, "text") == "ein Wörtchen\n"
        assert read_integers(path, file, "number", ()) == read_integers(path, file, "number") == (7,)
        assert read_integers(path, file, "shape") == read_integers(path, file, "shape", (2,)) == (2, 3)
        assert [holds(file, name) for name in ("a", "b", "c", "number")] == [True, True, False, False]


def test_the_digest_tells_types_shapes_and_bytes_apart() -> None:
    arrays = [
        np.zeros(4, np.float32), np.zeros(4, np.int32), np.zeros((2, 2), np.float32), np.zeros((4, 1), np.float32),
        np.zeros(2, np.float64), np.zeros(4, ">f4"), np.array([0, 0, 0, -0.0], np.float32), np.zeros(0), np.zeros(()),
    ]  # fmt: skip
    assert len({digest(array) for array in arrays}) == len(arrays)
    assert digest(np.arange(6.0).reshape(2, 3).T) == digest(np.ascontiguousarray(np.arange(6.0).reshape(2, 3).T))
    expected = hashlib.sha256(b"<f4 (2,) " + np.array([1, 2], "<f4").tobytes()).hexdigest()
    assert digest(np.array([1, 2], np.float32)) == expected


def test_other_readers_see_a_plain_file(path: Path, tmp_path: Path) -> None:
    assert {n: a.tolist() for n, a in h5_arrays(path).items()} == {n: a.tolist() for n, a in ARRAYS.items()}
    with h5py.File(path) as file:
        assert file.userblock_size == SEAL_SIZE == 512
        assert file.attrs["number"] == 7
    content = path.read_bytes()
    assert content[SEAL_SIZE:].startswith(SIGNATURE)
    # and without its seal it is a file as well
    write_hdf5(tmp_path / "plain.h5", fill, seal=False)
    assert (tmp_path / "plain.h5").read_bytes().startswith(SIGNATURE)
    assert h5_arrays(tmp_path / "plain.h5").keys() == ARRAYS.keys()


def test_the_seal_is_text_that_can_be_checked_by_hand(path: Path) -> None:
    content = path.read_bytes()
    lines = content[:SEAL_SIZE].rstrip(b"\0").decode("ascii").splitlines()
    assert lines == [
        f"lvkam: sealed HDF5 file of {len(content)} bytes",
        f"sha256 of all after byte 512: {hashlib.sha256(content[512:]).hexdigest()}",
    ]


def test_the_same_content_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_hdf5(tmp_path / "b.h5", fill, seal=True)
    assert (tmp_path / "b.h5").read_bytes() == path.read_bytes()


def test_the_seal_covers_every_byte(path: Path) -> None:
    whole = path.read_bytes()
    places = {*range(SEAL_SIZE), *range(SEAL_SIZE, SEAL_SIZE + 100), *range(SEAL_SIZE, len(whole), 37), len(whole) - 1}
    assert len(places) > SEAL_SIZE + 150
    for place in sorted(places):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        # the first letters tell whether there is a seal at all, the rest of its first line the size
        foreign = "not a checkpoint of lvkam (not an HDF5 file)"
        assert refused(path) == (foreign if place < 8 else SIZE if place < whole.index(b" bytes\n") + 6 else SEAL), (
            place
        )


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 511, 512, 513, 600, -1])
def test_a_file_cut_short_is_refused(size: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:size])
    assert refused(path) == ("not a checkpoint of lvkam (not an HDF5 file)" if 0 <= size < 8 else SIZE)


def test_a_longer_file_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for more in (b"\0", b"x" * 512, whole):
        path.write_bytes(whole + more)
        assert refused(path) == SIZE


def test_a_file_of_holes_is_refused_at_once(path: Path) -> None:
    size = 2**40
    seal = f"lvkam: sealed HDF5 file of {size} bytes\nsha256 of all after byte 512: {'0' * 64}\n"
    path.write_bytes(seal.encode().ljust(SEAL_SIZE, b"\0"))
    os.truncate(path, size)
    if path.stat().st_blocks > 1000:
        pytest.skip("no file here has holes")
    assert refused(path) == f"announces {size} bytes, of which nearly all are holes"


def test_what_is_no_sealed_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.h5") == "no such file"
    assert refused(tmp_path) == "not a file"
    write_hdf5(path := tmp_path / "plain.h5", fill, seal=False)
    assert refused(path) == "not a checkpoint of lvkam (an HDF5 file without a seal)"
    path.write_bytes(b"lvkam")
    assert refused(path) == "not a checkpoint of lvkam (not an HDF5 file)"


@pytest.mark.parametrize("content", [b"", b"nothing", SIGNATURE, SIGNATURE + bytes(500)])
def test_a_seal_around_nothing_is_refused(content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "a.h5").write_bytes(bytes(SEAL_SIZE) + content)
    reseal(path)
    assert refused(path).startswith("damaged: ")


def test_a_broken_structure_within_a_good_seal_is_refused_or_read_right(path: Path) -> None:
    """What the HDF5 library makes of a broken file must be one message, or the very arrays."""
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    told: list[str] = []
    for place in rng.choice(np.arange(SEAL_SIZE, len(whole)), 300, replace=False):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        reseal(path)
        try:
            with open_hdf5(path) as file:
                names(path)(file)
                for name, array in ARRAYS.items():
                    np.testing.assert_array_equal(read_array(path, file, name, *LAYOUT[name])[0], array, strict=True)
        except HDF5Error as error:
            told.append(str(error))
    assert len(told) > 20
    assert all(message.startswith(f"{path}: ") and message.isprintable() for message in told)


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError])
def test_what_the_library_raises_is_one_message(error: type[Exception], path: Path) -> None:
    def broken(_: h5py.File) -> None:
        raise error("Unable to read\nanything")

    told = refused(path, broken)
    assert told.removeprefix("damaged: ").strip("'\"").startswith("Unable to read")

    def silent(_: h5py.File) -> None:
        raise error

    assert refused(path, silent) == f"damaged: {error.__name__}"


def test_an_error_of_ours_is_not_taken_for_damage(path: Path) -> None:
    def mistaken(_: h5py.File) -> None:
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"), open_hdf5(path) as file:
        mistaken(file)


def test_a_file_that_cannot_be_written_leaves_the_old_one(path: Path) -> None:
    before = path.read_bytes()

    def fails(file: h5py.File) -> None:
        fill(file)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write_hdf5(path, fails, seal=True)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# --- names


def put(name: str, value: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = value

    return change


NAMES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "missing": (lambda f: f.pop("a"), "damaged: a is missing"),
    "missing below": (lambda f: f.pop("b/d/e"), "damaged: b/d/e is missing"),
    "missing group": (lambda f: f.pop("b/d"), "damaged: b/d is missing"),
    "more": (put("x", 1), "holds x, which no such file does"),
    "more below": (put("b/d/x", 1), "holds b/d/x, which no such file does"),
    "a group more": (lambda f: f.create_group("b/x"), "holds b/x, which no such file does"),
    "another name": (lambda f: f.move("a", "x"), "damaged: a is missing"),
    "a soft link": (put("a", h5py.SoftLink("/b/c")), "a is a link to elsewhere, which no such file holds"),
    "a soft link below": (put("b/d/e", h5py.SoftLink("/a")), "b/d/e is a link to elsewhere, which no such file holds"),
    "a group that is a soft link": (put("b", h5py.SoftLink("/")), "b is a link to elsewhere, which no such file holds"),
    "an external link": (put("a", h5py.ExternalLink("o", "/")), "a is a link to elsewhere, which no such file holds"),
    "a group that is an external link": (
        put("b/d", h5py.ExternalLink("o", "/")), "b/d is a link to elsewhere, which no such file holds",
    ),
    "a group that is an array": (put("b/d", np.zeros(2)), "b/d is not a group"),
    "a group that is a type": (put("b", np.dtype("f4")), "b is neither a group nor an array"),
    "a long name": (put("x" * 300, 1), f"holds {'x' * 80}, which no such file does"),
    "an attribute more": (lambda f: f.attrs.create("x", 1), "holds an attribute more than such a file does"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names_are_those_of_the_layout_and_no_others(case: str, path: Path) -> None:
    change, message = NAMES[case]
    changed(path, change)
    assert refused(path, names(path)) == message


@pytest.mark.parametrize("name", ["x\ny", "x\x1b[31m", "x\u202ey", "x\x7f"])
def test_a_name_that_would_move_the_cursor_is_told_in_one_printable_line(name: str, path: Path) -> None:
    changed(path, put(name, 1))
    told = refused(path, names(path))
    assert told.startswith("holds ")
    assert told.endswith(", which no such file does")


def test_a_name_that_is_no_text_is_told(path: Path) -> None:
    changed(path, lambda f: f.create_dataset(b"\xff\xfe", data=1))
    assert refused(path, names(path)).startswith("holds ")


# --- arrays


def replaced(value: Any, **keywords: Any) -> Callable[[h5py.File], object]:
    """Another array in the place of `a`, with a checksum that fits it."""

    def change(file: h5py.File) -> None:
        del file["a"]
        file.create_dataset("a", data=value, **keywords).attrs["sha256"] = digest(np.asarray(value))

    return change


def overwritten(file: h5py.File) -> None:
    dataset = file["a"]
    assert isinstance(dataset, h5py.Dataset)
    dataset[...] = 1


def never_written(file: h5py.File) -> None:
    del file["a"]
    file.create_dataset("a", (2, 3), "f4").attrs["sha256"] = digest(np.zeros((2, 3), np.float32))


def external(file: h5py.File) -> None:
    del file["a"]
    (outside := Path(file.filename).with_suffix(".raw")).write_bytes(ARRAYS["a"].tobytes())
    dataset = file.create_dataset("a", (2, 3), "f4", external=[(outside, 0, h5py.h5f.UNLIMITED)])
    dataset.attrs["sha256"] = digest(ARRAYS["a"])


def virtual(file: h5py.File) -> None:
    del file["a"]
    with h5py.File(outside := Path(file.filename).with_suffix(".other"), "w") as other:
        other["a"] = ARRAYS["a"]
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[...] = h5py.VirtualSource(outside, "a", (2, 3))
    file.create_virtual_dataset("a", layout).attrs["sha256"] = digest(ARRAYS["a"])


PLAINLY = "a is not stored plainly within the file"
READ: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "missing": (lambda f: f.pop("a"), "damaged: a is missing"),
    "a group": (lambda f: (f.pop("a"), f.create_group("a")), "a is not an array"),
    "a type": (put("a", np.dtype("f4")), "a is neither a group nor an array"),
    "a soft link": (put("a", h5py.SoftLink("/b/c")), "a is a link to elsewhere, which no such file holds"),
    "another shape": (replaced(ARRAYS["a"].T), "a holds float32 (3, 2), its configuration means float32 (2, 3)"),
    "another type": (
        replaced(ARRAYS["a"].astype("f8")), "a holds float64 (2, 3), its configuration means float32 (2, 3)",
    ),
    "another order": (
        replaced(ARRAYS["a"].astype(">f4")), "a holds >f4 (2, 3), its configuration means float32 (2, 3)",
    ),
    "empty": (
        lambda f: (f.pop("a"), f.create_dataset("a", data=h5py.Empty("f4"))),
        "a holds float32 None, its configuration means float32 (2, 3)",
    ),
    "chunks": (replaced(ARRAYS["a"], chunks=(1, 1)), PLAINLY),
    "compressed": (replaced(ARRAYS["a"], compression="gzip"), PLAINLY),
    "checked": (replaced(ARRAYS["a"], fletcher32=True), PLAINLY),
    "growing": (replaced(ARRAYS["a"], maxshape=(None, 3)), PLAINLY),
    "in another file": (external, PLAINLY),
    "in other files": (virtual, PLAINLY),
    "never written": (never_written, "a announces 24 bytes and stores 0"),
    "other numbers": (
        overwritten, "damaged: the checksum of a does not match",
    ),
    "another checksum": (
        lambda f: f["a"].attrs.modify("sha256", "0" * 64), "damaged: the checksum of a does not match",
    ),
    "a longer checksum": (
        lambda f: f["a"].attrs.create("sha256", digest(ARRAYS["a"]) + " "), "damaged: the checksum of a does not match",
    ),
    "no checksum": (lambda f: f["a"].attrs.pop("sha256"), "damaged: the attribute sha256 is missing"),
    "a number for a checksum": (
        lambda f: f["a"].attrs.create("sha256", 1), "damaged: the attribute sha256 is of the wrong kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_an_array_is_what_was_asked_for_or_refused(case: str, path: Path) -> None:
    change, message = READ[case]
    changed(path, change)
    assert refused(path, lambda file: read_array(path, file, "a", *LAYOUT["a"])) == message


def test_an_array_below_an_array_is_refused(path: Path) -> None:
    told = refused(path, lambda file: read_array(path, file, "a/x", *LAYOUT["a"]))
    assert told == "a/x: what should hold it is not a group"


def test_an_array_that_announces_more_than_the_file_holds_is_refused(path: Path) -> None:
    size = 2**40
    changed(path, lambda f: (f.pop("a"), f.create_dataset("a", (size,), "u1")))
    told = refused(path, lambda file: read_array(path, file, "a", np.dtype("u1"), (size,)))
    assert told == f"a announces {size} bytes and stores 0"


def test_a_compact_array_is_read(path: Path) -> None:
    def compact(file: h5py.File) -> None:
        del file["a"]
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((2, 3))
        dataset = h5py.Dataset(h5py.h5d.create(file.id, b"a", h5py.h5t.py_create(np.dtype("f4")), space, how))
        dataset[...] = ARRAYS["a"]
        dataset.attrs["sha256"] = digest(ARRAYS["a"])

    changed(path, compact)
    with open_hdf5(path) as file:
        np.testing.assert_array_equal(read_array(path, file, "a", *LAYOUT["a"])[0], ARRAYS["a"], strict=True)


# --- attributes

TEXTS: dict[str, Any] = {
    "a number": 1, "a list": ["a", "b"], "a list of one": ["a"], "bytes": np.bytes_(b"abc"),
    "nothing": h5py.Empty("f4"),
    "an escape": "\x1b[2J", "a carriage return": "a\rb", "a tabulator": "a\tb", "another direction": "a\u202eb",
    "too long": "a" * (LONGEST_TEXT + 1), "an opaque value": np.void(b"ab"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_is_of_printable_lines_or_refused(case: str, path: Path) -> None:
    changed(path, lambda f: f.attrs.create("text", TEXTS[case]))
    assert refused(path, lambda f: read_text(path, f, "text")) == "damaged: the attribute text is of the wrong kind"


def test_a_text_that_is_no_utf_8_is_refused(path: Path) -> None:
    kind = h5py.string_dtype("utf-8")
    changed(path, lambda f: f.attrs.create("text", b"\xff\xfe", dtype=kind))
    assert refused(path, lambda f: read_text(path, f, "text")) == "damaged: the attribute text is of the wrong kind"


@pytest.mark.parametrize("text", ["", "a\n\nb\n", "ε_scale = 0.1", "a" * LONGEST_TEXT])
def test_texts_are_read(text: str, path: Path) -> None:
    changed(path, lambda f: f.attrs.create("text", text))
    with open_hdf5(path) as file:
        assert read_text(path, file, "text") == text


INTEGERS: dict[str, Any] = {
    "a text": "1", "a float": 1.0, "truth": True, "nothing": h5py.Empty("i8"), "four": [1, 2, 3, 4],
    "none": np.zeros(0, int),
    "a table": [[1, 2], [3, 4]], "complex": 1j, "a record": np.zeros((), "i4, i4"), "an opaque value": np.void(b"ab"),
}  # fmt: skip


@pytest.mark.parametrize("case", INTEGERS)
def test_integers_are_integers_or_refused(case: str, path: Path) -> None:
    changed(path, lambda f: f.attrs.create("number", INTEGERS[case]))
    wrong = "damaged: the attribute number is of the wrong kind"
    assert refused(path, lambda f: read_integers(path, f, "number")) == wrong
    assert refused(path, lambda f: read_integers(path, f, "number", ())) == wrong


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, (5,)), (-1, (-1,)), (np.int8(7), (7,)), (np.uint64(2**64 - 1), (2**64 - 1,)), (np.array(3, ">i4"), (3,)),
        ([4], (4,)), ([4, 5], (4, 5)), ([4, 5, 6], (4, 5, 6)),
    ],
)  # fmt: skip
def test_integers_are_read_exactly(value: Any, expected: tuple[int, ...], path: Path) -> None:
    changed(path, lambda f: f.attrs.create("number", value))
    with open_hdf5(path) as file:
        found = read_integers(path, file, "number")
    assert found == expected
    assert [type(n) for n in found] == [int] * len(expected)


@pytest.mark.parametrize(("value", "shape"), [(5, (1,)), ([5], ()), ([5, 6], ()), ([5, 6], (3,)), ([5, 6, 7], (2,))])
def test_integers_of_another_shape_are_refused(value: Any, shape: tuple[int, ...], path: Path) -> None:
    changed(path, lambda f: f.attrs.create("number", value))
    told = refused(path, lambda f: read_integers(path, f, "number", shape))
    assert told == "damaged: the attribute number is of the wrong kind"


def test_a_missing_attribute_is_told(path: Path) -> None:
    assert refused(path, lambda f: read_text(path, f, "none")) == "damaged: the attribute none is missing"
    assert refused(path, lambda f: read_integers(path, f, "none")) == "damaged: the attribute none is missing"
