"""The formats of data sets known by name: what is in a file is read, whatever else it holds is one message.

Independent of what is tested: NumPy and SciPy write the files.
"""

from __future__ import annotations

import gzip
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from lvkam.formats import read_cifar, read_cifar_labels, read_idx, read_svhn, read_svhn_labels
from tests.conftest import idx
from tests.test_readers import HTML, rng, told

# --- idx


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(5,), (0,), (3, 2), (2, 3, 4), (2, 1, 3, 2)])
def test_idx_files_are_read(shape: tuple[int, ...], pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    array = rng().integers(0, 256, shape, dtype=np.uint8)
    (file := tmp_path / "x").write_bytes(pack(idx(array)))
    read = read_idx(file)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array, strict=True)


GOOD = idx(np.arange(24).reshape(2, 3, 4))
ZIPPED = gzip.compress(GOOD)
DAMAGED = {
    "empty": (b"", "not an idx file (it begins with b'')"),
    "short": (b"\0\0\x08", "not an idx file (it begins with b'\\x00\\x00\\x08')"),
    "text": (b"hello", "not an idx file (it begins with b'hell')"),
    "a web page": (HTML, "not an idx file (it begins with b'<!DO')"),
    "wrong magic": (b"\0\1" + GOOD[2:], "not an idx file (it begins with b'\\x00\\x01\\x08\\x03')"),
    "floats": (b"\0\0\x0d" + GOOD[3:], "idx type 0x0d; only unsigned bytes (0x08) are images"),
    "signed bytes": (b"\0\0\x09" + GOOD[3:], "idx type 0x09; only unsigned bytes (0x08) are images"),
    "no dimension": (b"\0\0\x08\0", "an idx file of 0 dimensions"),
    "five dimensions": (b"\0\0\x08\5" + bytes(20), "an idx file of 5 dimensions"),
    "cut header": (GOOD[:15], "cut short within its header"),
    "header alone": (GOOD[:16], "its header announces 24 bytes, it holds only 0"),
    "cut body": (GOOD[:-1], "its header announces 24 bytes, it holds only 23"),
    "too much": (GOOD + b"\0", "its header announces 24 bytes, it holds more"),
    "huge": (struct.pack(">HBBII", 0, 8, 2, 5, 2**30), "its header announces 5368709120 bytes, more than 4 GiB"),
    "overflowing": (
        struct.pack(">HBBIIII", 0, 8, 4, *[2**16] * 4),
        f"its header announces {2**64} bytes, more than 4 GiB",
    ),
    "zipped text": (gzip.compress(b"hello"), "not an idx file (it begins with b'hell')"),
    "zipped, cut body": (gzip.compress(GOOD[:-1]), "its header announces 24 bytes, it holds only 23"),
    "zipped, too much": (gzip.compress(GOOD + bytes(9)), "its header announces 24 bytes, it holds more"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_idx_files_are_told(name: str, tmp_path: Path) -> None:
    (file := tmp_path / "x").write_bytes(DAMAGED[name][0])
    assert told(file, read_idx) == DAMAGED[name][1]


@pytest.mark.parametrize(
    "content",
    [
        ZIPPED[:-9],
        ZIPPED[:12],
        ZIPPED[:5],
        ZIPPED[:-8] + bytes(8),
        ZIPPED[:10] + b"\xff" * 9 + ZIPPED[19:],
        b"\x1f\x8b",
    ],
    ids=["cut", "cut early", "cut header", "wrong checksum", "wrong body", "magic alone"],
)
def test_damaged_gzip_is_told(content: bytes, tmp_path: Path) -> None:
    (file := tmp_path / "x.gz").write_bytes(content)
    assert told(file, read_idx).startswith("damaged gzip (")


def test_a_folder_or_nothing_is_no_idx_file(tmp_path: Path) -> None:
    assert told(tmp_path, read_idx) == "cannot be read (Is a directory)"
    assert told(tmp_path / "x", read_idx) == "cannot be read (No such file or directory)"


def test_no_more_is_read_than_the_header_announces(tmp_path: Path) -> None:
    with (file := tmp_path / "x").open("wb") as sparse:
        sparse.write(struct.pack(">HBBII", 0, 8, 2, 5, 2**30))
        sparse.truncate(16 + 5 * 2**30)
    (bomb := tmp_path / "y").write_bytes(gzip.compress(idx(np.arange(3)) + bytes(2**26)))
    tracemalloc.start()
    for path in (file, bomb):
        assert told(path, read_idx).startswith("its header announces")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


# --- CIFAR10 and SVHN


def cifar(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Records of CIFAR10's binary version: a label, then all red bytes row by row, all green ones, all blue ones."""
    records = bytearray()
    for image, label in zip(images, labels, strict=True):
        records.append(label)
        for channel in range(3):
            for row in range(32):
                records += bytes(image[row, :, channel].tolist())
    return bytes(records)


def test_every_pixel_of_cifar_is_where_it_should_be(tmp_path: Path) -> None:
    images = rng().integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    (path := tmp_path / "data_batch_1.bin").write_bytes(cifar(images, np.array([0, 9, 3, 5])))
    np.testing.assert_array_equal(read_cifar(path), images, strict=True)


NO_CIFAR = {
    "nothing": (b"", "0 bytes, which is no multiple of 3073: no batch of CIFAR10's images"),
    "cut short": (bytes(2 * 3073 - 1), "6145 bytes, which is no multiple of 3073: no batch of CIFAR10's images"),
    "a web page": (HTML, f"{len(HTML)} bytes, which is no multiple of 3073: no batch of CIFAR10's images"),
    "shifted": (bytes(3073) + b"\x0a" + bytes(3072), "holds labels above 9: no batch of CIFAR10's images"),
}


@pytest.mark.parametrize("name", NO_CIFAR)
def test_what_is_no_batch_of_cifar_is_told(name: str, tmp_path: Path) -> None:
    (path := tmp_path / "data_batch_1.bin").write_bytes(NO_CIFAR[name][0])
    assert told(path, read_cifar) == NO_CIFAR[name][1]


@pytest.mark.parametrize("compressed", [False, True])
def test_every_pixel_of_svhn_is_where_it_should_be(compressed: bool, tmp_path: Path) -> None:
    images = rng().integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    content = {"X": images.transpose(1, 2, 3, 0), "y": np.array([[1], [10], [3], [4], [5]], np.uint8)}
    scipy.io.savemat(path := tmp_path / "train_32x32.mat", content, do_compression=compressed)
    np.testing.assert_array_equal(read_svhn(path), images, strict=True)


NO_SVHN: dict[str, dict[str, Any]] = {
    "no X": {"y": np.zeros((3, 1), np.uint8)},
    "floats": {"X": np.zeros((32, 32, 3, 2))},
    "signed bytes": {"X": np.zeros((32, 32, 3, 2), np.int8)},
    "complex numbers": {"X": np.zeros((32, 32, 3, 2), complex)},
    "text": {"X": "hello"},
    "objects": {"X": np.array([[np.zeros(3), "a"]], dtype=object)},
    "records": {"X": {"a": 1, "b": "c"}},
    "another order": {"X": np.zeros((2, 32, 32, 3), np.uint8)},
    "one image": {"X": np.zeros((32, 32, 3), np.uint8)},
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", NO_SVHN)
def test_another_matlab_file_is_told(name: str, compressed: bool, tmp_path: Path) -> None:
    scipy.io.savemat(path := tmp_path / "train_32x32.mat", NO_SVHN[name], do_compression=compressed)
    assert re.fullmatch(r"X is .* \(.*\); must be uint8 \(32, 32, 3, N\), as in SVHN", told(path, read_svhn))


def test_x_is_found_among_others(tmp_path: Path) -> None:
    images = rng().integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    content = {"y": np.ones((2, 1)), "x": np.zeros(3), "about": "hello", "more": {"a": 1}}
    content |= {"X": images.transpose(1, 2, 3, 0), "last": np.zeros((2, 2))}
    for compressed in (False, True):
        scipy.io.savemat(path := tmp_path / "train_32x32.mat", content, do_compression=compressed)
        np.testing.assert_array_equal(read_svhn(path), images, strict=True)


@pytest.mark.parametrize("content", [b"", HTML, HTML * 40, bytes(5000)])
def test_what_is_no_matlab_file_is_told(content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "train_32x32.mat").write_bytes(content)
    assert told(path, read_svhn).startswith("no readable MATLAB file (")


def test_labels_of_cifar_and_svhn(tmp_path: Path) -> None:
    records = np.zeros((4, 3073), np.uint8)
    records[:, 0] = [3, 9, 0, 1]
    (path := tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    assert read_cifar_labels(path).tolist() == [3, 9, 0, 1]
    scipy.io.savemat(path := tmp_path / "test_32x32.mat", {"y": np.array([[1], [10], [9]], np.uint8)})
    assert read_svhn_labels(path).tolist() == [1, 0, 9]
    scipy.io.savemat(path, {"y": np.array([[0], [11]], np.uint8)})
    assert told(path, read_svhn_labels) == "y is uint8 (2, 1); must be uint8 (N, 1), 1 to 10, as in SVHN"
