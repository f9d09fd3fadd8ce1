"""Images from disk: the idx format and its damages, where files are looked for, resizing, downloads."""

from __future__ import annotations

import gzip
import hashlib
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import pooch
import pytest
import requests
import torch

from lvkam import data
from lvkam.data import FILES, SOURCES, DataError, IdxSource, TooFewImagesError, load_dataset, load_labels, read_idx

SHIPPED = Path(data.__file__).parent / "datasets"
IMAGES, LABELS = FILES["train"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def put(folder: Path, value: int, count: int = 3, side: int = 4, zipped: bool = True) -> Path:
    """A data set all of whose pixels and labels are `value`."""
    folder.mkdir(parents=True, exist_ok=True)
    for images, labels in FILES.values():
        for name, shape in ((images, (count, side, side)), (labels, (count,))):
            content = idx(np.full(shape, value))
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, none of the machine's own folders, no network."""

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.delenv("LVKAM_DATA_DIR", raising=False)
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(pooch, "retrieve", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path / "cache" / "lvkam" / "FashionMNIST" / "raw"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(5,), (0,), (3, 2), (2, 3, 4), (2, 1, 3, 2)])
def test_idx_files_are_read(shape: tuple[int, ...], pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
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
def test_damaged_files_are_told(name: str, tmp_path: Path) -> None:
    (file := tmp_path / "x").write_bytes(DAMAGED[name][0])
    with pytest.raises(DataError) as caught:
        read_idx(file)
    assert str(caught.value) == f"{file}: {DAMAGED[name][1]}"


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
    with pytest.raises(DataError, match=r"\A[^\n]*/x\.gz: damaged gzip \([^\n]+\)\Z"):
        read_idx(file)


def test_a_folder_or_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_idx(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read (Is a directory)"
    with pytest.raises(DataError, match=r"x: cannot be read \(No such file or directory\)\Z"):
        read_idx(tmp_path / "x")


def test_no_more_is_read_than_the_header_announces(tmp_path: Path) -> None:
    with (file := tmp_path / "x").open("wb") as sparse:
        sparse.write(struct.pack(">HBBII", 0, 8, 2, 5, 2**30))
        sparse.truncate(16 + 5 * 2**30)
    (bomb := tmp_path / "y").write_bytes(gzip.compress(idx(np.arange(3)) + bytes(2**26)))
    tracemalloc.start()
    for path in (file, bomb):
        with pytest.raises(DataError, match="its header announces"):
            read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_places_are_searched_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVKAM_DATA_DIR", str(tmp_path / "environment"))
    option = tmp_path / "option"
    places = [
        put(option / "FashionMNIST" / "raw", 255, zipped=False),
        put(tmp_path / "environment" / "FashionMNIST" / "raw", 204),
        put(tmp_path / "debian", 153),
        put(cache, 102),
    ]
    for place, value in zip(places, (255, 204, 153, 102), strict=True):
        found = load_dataset("FMNIST", 3, 2, data_dir=option)
        assert found.train.unique().tolist() == found.test.unique().tolist() == [pytest.approx(value / 255)]
        assert load_labels("FMNIST", "train", 3, data_dir=option).tolist() == [value] * 3
        for file in place.iterdir():
            file.unlink()


def test_mnist_of_a_folder_goes_before_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "option" / "MNIST" / "raw", 255)
    put(tmp_path / "environment" / "MNIST" / "raw", 51)
    put(tmp_path / "cache" / "lvkam" / "MNIST" / "raw", 0)
    assert load_labels("MNIST", "train", 2).tolist() == [5, 0]
    monkeypatch.setenv("LVKAM_DATA_DIR", str(tmp_path / "environment"))
    assert load_labels("MNIST", "train", 2).tolist() == [51, 51]
    assert load_labels("MNIST", "train", 2, data_dir=tmp_path / "option").tolist() == [255, 255]
    assert load_labels("MNIST", "train", 2, data_dir=tmp_path / "nowhere").tolist() == [51, 51]


@pytest.mark.parametrize(
    ("name", "mean", "std", "first", "counts"),
    [
        ("MNIST", 0.1307, 0.3081, {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "test": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]},
         {"train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
          "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]}),
        ("FMNIST", 0.2860, 0.3530, {"train": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "test": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]},
         {"train": [6000] * 10, "test": [1000] * 10}),
    ],
)  # fmt: skip
def test_known_facts(
    name: str, mean: float, std: float, first: dict[str, list[int]], counts: dict[str, list[int]], data_dir: Path
) -> None:
    folder = None if name == "MNIST" else data_dir
    found = load_dataset(name, 60000, 10000, data_dir=folder)
    assert (found.name, found.image_shape) == (name, (28, 28))
    assert (found.train.shape, found.test.shape) == ((60000, 784), (10000, 784))
    assert found.train.dtype == found.test.dtype == torch.float32
    assert (found.train.min().item(), found.train.max().item()) == (0, 1)
    assert found.train.double().mean().item() == pytest.approx(mean, abs=5e-5)
    assert found.train.double().std().item() == pytest.approx(std, abs=5e-5)
    for split, total in (("train", 60000), ("test", 10000)):
        labels = load_labels(name, split, total, data_dir=folder)
        assert labels[:10].tolist() == first[split]
        assert labels.bincount().tolist() == counts[split]


@pytest.mark.parametrize("name", sum(FILES.values(), ()))
def test_bytes_are_the_published_ones(name: str, data_dir: Path) -> None:
    shipped, given, fashion = (
        hashlib.sha256(gzip.decompress((folder / "raw" / f"{name}.gz").read_bytes())).hexdigest()
        for folder in (SHIPPED / "MNIST", data_dir / "MNIST", data_dir / "FashionMNIST")
    )
    assert shipped == given
    assert fashion == SOURCES["FMNIST"].sha256[name]


def test_the_first_images_of_each_split(data_dir: Path) -> None:
    for folder in (SHIPPED, data_dir):
        found = load_dataset("MNIST", 7, 5, data_dir=folder)
        for split, held in (("train", found.train), ("test", found.test)):
            with gzip.open(folder / "MNIST" / "raw" / f"{FILES[split][0]}.gz") as file:
                pixels = np.frombuffer(file.read(16 + 784 * len(held))[16:], np.uint8).reshape(-1, 784)
            np.testing.assert_array_equal(np.round(held.numpy() * 255), pixels)


def triangle(length: int, target: int) -> np.ndarray:
    """Weights (target, length) of antialiased linear interpolation: a triangle as wide as the step, cut at the ends."""
    step = length / target
    distance = np.abs((np.arange(target)[:, None] + 0.5) * step - (np.arange(length) + 0.5)) / max(step, 1)
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(14, 14), (9, 11), (7, 28), (28, 28), (1, 1), (40, 33)])
def test_resizing_is_antialiased_bilinear(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "RESIZE_CHUNK", 7)
    images = load_dataset("MNIST", 20, 1).train.double().numpy().reshape(20, 28, 28)
    found = load_dataset("MNIST", 20, 1, size)
    expected = triangle(28, size[0]) @ images @ triangle(28, size[1]).T
    assert found.image_shape == size
    assert found.train.dtype == torch.float32
    np.testing.assert_allclose(found.train.numpy().reshape(20, *size), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [None, (14, 14), (9, 11), (40, 33)])
@pytest.mark.parametrize("value", [0, 51, 255])
def test_constant_images_stay_constant(value: int, size: tuple[int, int] | None) -> None:
    images = data.resize_images(torch.full((2, 28, 28), value, dtype=torch.uint8), size)
    np.testing.assert_allclose(images.numpy(), value / 255, atol=1e-6)
    assert images.max() <= 1


def test_too_many_are_told() -> None:
    for numbers, split, held, asked in (((60001, 1), "train", 60000, 60001), ((1, 10001), "test", 10000, 10001)):
        with pytest.raises(TooFewImagesError) as caught:
            load_dataset("MNIST", *numbers)
        assert str(caught.value) == f"MNIST has {held} {split} images, fewer than the {asked} asked for"
        assert (caught.value.split, caught.value.available, caught.value.requested) == (split, held, asked)
    with pytest.raises(TooFewImagesError, match="MNIST has 10000 test images, fewer than the 10001 asked for"):
        load_labels("MNIST", "test", 10001)


@pytest.mark.parametrize("called", [load_dataset, lambda name, n, _: load_labels(name, "train", n)])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10", "the data set CIFAR10 is not implemented yet; there are MNIST, FMNIST"),
        ("SVHN", "the data set SVHN is not implemented yet; there are MNIST, FMNIST"),
        ("mnist", "unknown data set mnist; did you mean MNIST?"),
        ("FashionMNIST", "unknown data set FashionMNIST; did you mean FMNIST?"),
        ("digits", "unknown data set digits; there are MNIST, FMNIST"),
        ("x" * 300, f"unknown data set {'x' * 300}; there are MNIST, FMNIST"),
        ("\0", "unknown data set \0; there are MNIST, FMNIST"),
        (__file__, "reading images from a path is not implemented yet; there are MNIST, FMNIST"),
    ],
)  # fmt: skip
def test_unknown_names_are_told(name: str, message: str, called: Callable[[str, int, int], object]) -> None:
    with pytest.raises(DataError) as caught:
        called(name, 1, 1)
    assert str(caught.value) == message


def test_arrays_of_the_wrong_kind_are_told(tmp_path: Path) -> None:
    folder = put(tmp_path / "MNIST" / "raw", 1, zipped=False)
    (folder / IMAGES).write_bytes(idx(np.zeros((2, 16))))
    (folder / LABELS).write_bytes(idx(np.zeros((2, 1))))
    with pytest.raises(DataError) as caught:
        load_dataset("MNIST", 1, 1, data_dir=tmp_path)
    assert str(caught.value) == f"{folder / IMAGES}: holds an array of 2 dimensions, not images"
    with pytest.raises(DataError, match="MNIST: its labels have 2 dimensions instead of 1"):
        load_labels("MNIST", "train", 1, data_dir=tmp_path)


@pytest.mark.parametrize("size", [None, (14, 14)])
def test_images_without_pixels_are_told(size: tuple[int, int] | None, tmp_path: Path) -> None:
    folder = put(tmp_path / "MNIST" / "raw", 1, zipped=False)
    (folder / IMAGES).write_bytes(idx(np.zeros((2, 0, 4))))
    with pytest.raises(DataError):
        load_dataset("MNIST", 1, 1, size, data_dir=tmp_path)


CONTENT = {name: idx(np.full((2, 4, 4) if "idx3" in name else (2,), 51)) for name in sum(FILES.values(), ())}
MIRRORS = ("https://one.invalid/", "https://two.invalid/", "https://three.invalid/")
ANSWERS: dict[str, bytes | Exception] = {
    "right": gzip.compress(CONTENT[IMAGES]),
    "right, packed otherwise": gzip.compress(CONTENT[IMAGES], 0),
    "wrong bytes": gzip.compress(CONTENT[IMAGES] + b"\0"),
    "not gzip": CONTENT[IMAGES],
    "cut": gzip.compress(CONTENT[IMAGES])[:-4],
    "empty": b"",
    "OSError": OSError("unplugged"),
    "ConnectionError": requests.ConnectionError("unplugged"),
    "HTTPError": requests.HTTPError("404"),
}


def answer(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> list[str]:
    """Let mirrors answer so; the list of addresses asked."""
    asked: list[str] = []

    def retrieve(url: str, known_hash: str | None, fname: str, path: Path, progressbar: bool = False) -> str:
        assert known_hash is None
        given = ANSWERS[answers[len(asked)]]
        asked.append(url)
        if isinstance(given, Exception):
            raise given
        (Path(path) / fname).write_bytes(given)
        return str(Path(path) / fname)

    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setitem(SOURCES, "FMNIST", IdxSource("FashionMNIST", MIRRORS, digests))
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return asked


def held(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


@pytest.mark.parametrize("right", ["right", "right, packed otherwise"])
@pytest.mark.parametrize("before", [[], *([wrong] for wrong in list(ANSWERS)[2:]), ["OSError", "wrong bytes"]])
def test_mirrors_are_asked_until_one_is_right(
    before: list[str], right: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, [*before, right])
    assert data.read_idx(data._find("FMNIST", IMAGES, None)).tolist() == np.full((2, 4, 4), 51).tolist()
    assert asked == [f"{mirror}{IMAGES}.gz" for mirror in MIRRORS[: len(before) + 1]]
    assert held(cache) == {f"{IMAGES}.gz"}
    assert data._find("FMNIST", IMAGES, None) == cache / f"{IMAGES}.gz"
    assert len(asked) == len(before) + 1


@pytest.mark.parametrize("answers", [["wrong bytes", "not gzip", "OSError"], ["HTTPError", "cut", "ConnectionError"]])
def test_no_right_mirror_is_told(
    answers: list[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LVKAM_DATA_DIR", str(tmp_path / "environment"))
    asked = answer(monkeypatch, answers)
    with pytest.raises(DataError) as caught:
        load_dataset("FMNIST", 1, 1, data_dir=tmp_path / "option")
    reasons = [a if a.endswith("Error") else "wrong bytes" for a in answers]
    tried = ", ".join(f"{mirror}{IMAGES}.gz ({reason})" for mirror, reason in zip(MIRRORS, reasons, strict=True))
    given = [tmp_path / place / "FashionMNIST" / "raw" for place in ("option", "environment")]
    looked = ", ".join(map(str, (*given, tmp_path / "debian", cache)))
    assert str(caught.value) == (
        f"FMNIST: {IMAGES} is missing. Looked in {looked}; tried {tried}. "
        f"Put {IMAGES}.gz into one of these folders, or name another with --data-dir or LVKAM_DATA_DIR"
    )
    assert len(asked) == 3
    assert held(cache) == set()


def test_a_cache_that_cannot_be_written_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, ["right"])
    cache.parents[2].write_text("a file in the way")
    with pytest.raises(DataError) as caught:
        load_dataset("FMNIST", 1, 1)
    assert str(caught.value) == f"FMNIST: {cache} cannot be written (Not a directory)"
    assert asked == []
