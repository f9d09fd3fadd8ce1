"""Data sets known by name: where their files are looked for, downloads, and what bytes they must have."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import multiprocessing
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
import scipy.io

from lvkam import sources
from lvkam.config import SPLIT_SIZES, ConfigError, parse_config
from lvkam.data import load_dataset, load_labels
from lvkam.errors import DataError
from lvkam.formats import read_idx
from lvkam.sources import (
    IDX_IMAGES,
    IDX_LABELS,
    SOURCES,
    arrays_of,
    check_bytes,
    check_dataset,
    check_own,
    files_of,
    find,
    is_path,
)
from tests.conftest import idx
from tests.test_formats import cifar

SHIPPED = Path(sources.__file__).parent / "datasets"
(IMAGES,), (LABELS,) = IDX_IMAGES["train"], IDX_LABELS["train"]
ALL_FILES = [name for files in (IDX_LABELS, IDX_IMAGES) for (name,) in files.values()]

pytestmark = pytest.mark.usefixtures("cache")


def put(folder: Path, value: int, count: int = 3, side: int = 4, zipped: bool = True) -> Path:
    """A data set all of whose pixels and labels are `value`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ALL_FILES:
        content = idx(np.full((count, side, side) if "idx3" in name else (count,), value))
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


def fashion(cache: Path) -> Path:
    return cache / "FashionMNIST" / "raw"


def test_places_are_searched_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVKAM_DATA_DIR", str(tmp_path / "environment"))
    option = tmp_path / "option"
    places = [
        put(option / "FashionMNIST" / "raw", 255, zipped=False),
        put(tmp_path / "environment" / "FashionMNIST" / "raw", 204),
        put(tmp_path / "debian", 153),
        put(fashion(cache), 102),
    ]
    for place, value in zip(places, (255, 204, 153, 102), strict=True):
        found = load_dataset("FMNIST", 3, 2, data_dir=option)
        assert found.train.unique().tolist() == found.test.unique().tolist() == [pytest.approx(value / 255)]
        assert load_labels("FMNIST", "train", 3, data_dir=option).tolist() == [value] * 3
        for file in place.iterdir():
            file.unlink()


def test_mnist_of_a_folder_goes_before_the_packages(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "option" / "MNIST" / "raw", 255)
    put(tmp_path / "environment" / "MNIST" / "raw", 51)
    put(cache / "MNIST" / "raw", 0)
    assert load_labels("MNIST", "train", 2).tolist() == [5, 0]
    monkeypatch.setenv("LVKAM_DATA_DIR", str(tmp_path / "environment"))
    assert load_labels("MNIST", "train", 2).tolist() == [51, 51]
    assert load_labels("MNIST", "train", 2, data_dir=tmp_path / "option").tolist() == [255, 255]
    assert load_labels("MNIST", "train", 2, data_dir=tmp_path / "nowhere").tolist() == [51, 51]


@pytest.mark.parametrize("name", ALL_FILES)
def test_bytes_are_the_published_ones(name: str, data_dir: Path) -> None:
    for data_set, folder in (("MNIST", SHIPPED / "MNIST"), ("MNIST", data_dir / "MNIST"),
                             ("FMNIST", data_dir / "FashionMNIST")):  # fmt: skip
        path = folder / "raw" / f"{name}.gz"
        digest = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
        assert SOURCES[data_set].checksums[name] == f"sha256:{digest}"
        assert check_bytes(data_set, name, path)


def test_other_bytes_are_not_taken_for_the_published_ones(tmp_path: Path) -> None:
    content = gzip.decompress((SHIPPED / "MNIST" / "raw" / f"{LABELS}.gz").read_bytes())
    path = tmp_path / LABELS
    for changed, verdict in (
        (content, True), (gzip.compress(content, 1), True), (content[:-1], False), (content + b"\0", False),
        (gzip.compress(content)[:-5], False), (b"", False),
    ):  # fmt: skip
        path.write_bytes(changed)
        if verdict:
            assert check_bytes("MNIST", LABELS, path)
        else:
            with pytest.raises(DataError, match=f"{LABELS}: has other bytes than the published {LABELS}"):
                check_bytes("MNIST", LABELS, path)
    with pytest.raises(DataError, match="has other bytes"):
        check_bytes("MNIST", IMAGES, path)
    # of what is in an archive, none is published
    assert not check_bytes("CIFAR10", "data_batch_1.bin", path)


def test_every_data_set_has_its_files_and_checksums() -> None:
    assert SOURCES.keys() == SPLIT_SIZES.keys()
    assert {name: files_of(name) for name in SOURCES} == {
        "MNIST": ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"],
        "FMNIST": ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"],
        "CIFAR10": [*(f"data_batch_{n}.bin" for n in (1, 2, 3, 4, 5)), "test_batch.bin"],
        "SVHN": ["train_32x32.mat", "test_32x32.mat"],
    }
    for source in SOURCES.values():
        downloaded = [source.archive] if source.archive else [f for files in source.images.values() for f in files]
        for file in downloaded:
            kind, digest = source.checksums[file].split(":")
            assert len(bytes.fromhex(digest)) == {"md5": 16, "sha256": 32}[kind]
        assert all(mirror.endswith("/") for mirror in source.mirrors)


# --- CIFAR10 and SVHN, small ones in the same formats


def put_cifar(folder: Path) -> dict[str, np.ndarray]:
    """Batches of 2, 3, 4, 5, 6 and 3 images: the images of both splits, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, parts = np.random.default_rng(0), []
    for number, file in enumerate(files_of("CIFAR10")):
        images = rng.integers(0, 256, (number + 2 if number < 5 else 3, 32, 32, 3), dtype=np.uint8)
        (folder / file).write_bytes(cifar(images, rng.integers(0, 10, len(images))))
        parts.append(images)
    return {"train": np.concatenate(parts[:5]), "test": parts[5]}


@pytest.mark.parametrize("folder", ["CIFAR10/cifar-10-batches-bin", "cifar-10-batches-bin"])
def test_cifar_is_read_from_a_folder_batch_after_batch(folder: str, tmp_path: Path) -> None:
    images = put_cifar(tmp_path / folder)
    found = load_dataset("CIFAR10", 20, 3, data_dir=tmp_path)
    assert (found.image_shape, found.scaling) == ((32, 32, 3), "values divided by 255")
    for split, x in (("train", found.train), ("test", found.test)):
        np.testing.assert_array_equal(np.round(x.numpy() * 255).reshape(-1, 32, 32, 3), images[split])
    few = load_dataset("CIFAR10", 7, 1, data_dir=tmp_path)
    np.testing.assert_array_equal(few.train.numpy(), found.train[:7].numpy())


@pytest.mark.parametrize("folder", ["SVHN", "."])
def test_svhn_is_read_from_a_folder_if_its_bytes_are_right(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, checksums = {}, {}
    (tmp_path / folder).mkdir(exist_ok=True)
    for seed, (split, count) in enumerate((("train", 6), ("test", 4))):
        images[split] = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        content = {"X": images[split].transpose(1, 2, 3, 0), "y": np.ones((count, 1), np.uint8)}
        path = tmp_path / folder / f"{split}_32x32.mat"
        scipy.io.savemat(path, content, do_compression=True)
        checksums[path.name] = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    with pytest.raises(DataError) as caught:  # these are none of the published ones: SciPy never sees them
        load_dataset("SVHN", 6, 4, data_dir=tmp_path)
    path = tmp_path / folder / "train_32x32.mat"
    message = f"{path}: has other bytes than the published train_32x32.mat: remove it, and it is fetched anew"
    assert str(caught.value) == message
    monkeypatch.setitem(SOURCES, "SVHN", dataclasses.replace(SOURCES["SVHN"], checksums=checksums))
    found = load_dataset("SVHN", 6, 4, data_dir=tmp_path)
    assert found.image_shape == (32, 32, 3)
    for split, x in (("train", found.train), ("test", found.test)):
        np.testing.assert_array_equal(np.round(x.numpy() * 255).reshape(-1, 32, 32, 3), images[split])


# --- names


NAMES = [
    ("mnist", "unknown data set mnist; did you mean MNIST?"),
    ("FashionMNIST", "unknown data set FashionMNIST; did you mean FMNIST?"),
    ("cifar", "unknown data set cifar; did you mean CIFAR10?"),
    ("svhn", "unknown data set svhn; did you mean SVHN?"),
    ("digits", "unknown data set digits; there are MNIST, FMNIST, CIFAR10, SVHN, and files of one's own"),
    ("x" * 300, f"unknown data set {'x' * 300}; there are MNIST, FMNIST, CIFAR10, SVHN, and files of one's own"),
    ("\0", r"unknown data set \x00; there are MNIST, FMNIST, CIFAR10, SVHN, and files of one's own"),
    ("\x1b[2J", r"unknown data set \x1b[2J; there are MNIST, FMNIST, CIFAR10, SVHN, and files of one's own"),
]


@pytest.mark.parametrize(
    "called",
    [
        check_own, arrays_of, files_of, lambda name: find(name, IMAGES), lambda name: load_dataset(name, 1, 1),
        lambda name: check_dataset(parse_config("", "a.ini").model_copy(
            update={"training": parse_config("", "").training.model_copy(update={"dataset": name})})),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("name", "message"), NAMES)
def test_unknown_names_are_told(name: str, message: str, called: Callable[[str], object]) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        called(name)
    assert str(caught.value).endswith(message)


def test_a_name_that_exists_or_looks_like_a_path_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "MNIST").mkdir()
    for name in ("digits", "a.npz", "a/b", "/a", "./MNIST", "MNIST/", "MNIST.v2", "."):
        assert is_path(name), name
    for name in ("MNIST", "FMNIST", "CIFAR10", "SVHN", "mnist", "letters", "\0", "x" * 5000):
        assert not is_path(name), name


def test_what_a_configuration_names_is_told_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("a,b\n1,\n")
    config = parse_config("[TRAINING]\ndataset = a.csv\n", "my.ini")
    with pytest.raises(ConfigError) as caught:
        check_dataset(config)
    assert str(caught.value) == (
        "my.ini: [TRAINING] dataset = a.csv: a.csv: line 2: the column b has no value there; fill or drop it first"
    )
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    check_dataset(config)


def test_arrays_of_the_wrong_kind_are_told(tmp_path: Path) -> None:
    folder = put(tmp_path / "MNIST" / "raw", 1, zipped=False)
    (folder / IMAGES).write_bytes(idx(np.zeros((2, 16))))
    (folder / LABELS).write_bytes(idx(np.zeros((2, 1))))
    with pytest.raises(DataError) as caught:
        load_dataset("MNIST", 1, 1, data_dir=tmp_path)
    assert str(caught.value) == f"{folder / IMAGES}: holds an array of 2 dimensions, not images"
    with pytest.raises(DataError, match="holds labels of 2 dimensions instead of 1"):
        load_labels("MNIST", "train", 1, data_dir=tmp_path)


@pytest.mark.parametrize("size", [None, (14, 14)])
def test_images_without_pixels_are_told(size: tuple[int, int] | None, tmp_path: Path) -> None:
    folder = put(tmp_path / "MNIST" / "raw", 1, zipped=False)
    (folder / IMAGES).write_bytes(idx(np.zeros((2, 0, 4))))
    with pytest.raises(DataError) as caught:
        load_dataset("MNIST", 1, 1, size, data_dir=tmp_path)
    assert str(caught.value) == f"{folder / IMAGES}: holds images without pixels"


# --- downloads


CONTENT = {name: idx(np.full((2, 4, 4) if "idx3" in name else (2,), 51)) for name in ALL_FILES}
MIRRORS = ("https://one.invalid/", "https://two.invalid/", "https://three.invalid/")
ANSWERS: dict[str, bytes | Exception] = {
    "right": gzip.compress(CONTENT[IMAGES]),
    "right, packed otherwise": gzip.compress(CONTENT[IMAGES], 0),
    "wrong bytes": gzip.compress(CONTENT[IMAGES] + b"\0"),
    "not gzip": CONTENT[IMAGES][:-1],
    "a web page": b"<!DOCTYPE html><html></html>",
    "cut": gzip.compress(CONTENT[IMAGES])[:-4],
    "empty": b"",
    "OSError": OSError("unplugged"),
    "ConnectionError": requests.ConnectionError("unplugged"),
    "HTTPError": requests.HTTPError("404"),
    "Timeout": requests.Timeout("too slow"),
}


def mirrors(monkeypatch: pytest.MonkeyPatch, contents: list[bytes | Exception], delay: float = 0) -> list[str]:
    """Let mirrors answer so, one after another: the list of addresses asked."""
    asked: list[str] = []

    def retrieve(url: str, known_hash: str | None, fname: str, path: Path, progressbar: bool = False) -> str:
        assert known_hash is None
        given = contents[len(asked)]
        asked.append(url)
        time.sleep(delay)
        if isinstance(given, Exception):
            raise given
        (Path(path) / fname).write_bytes(given)
        return str(Path(path) / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return asked


def answer(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> list[str]:
    """The same for Fashion-MNIST, by names of `ANSWERS`."""
    digests = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in CONTENT.items()}
    monkeypatch.setitem(SOURCES, "FMNIST", replace(SOURCES["FMNIST"], mirrors=MIRRORS, checksums=digests))
    return mirrors(monkeypatch, [ANSWERS[name] for name in answers])


def held(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


@pytest.mark.parametrize("right", ["right", "right, packed otherwise"])
@pytest.mark.parametrize("before", [[], *([wrong] for wrong in list(ANSWERS)[2:]), ["OSError", "wrong bytes"]])
def test_mirrors_are_asked_until_one_is_right(
    before: list[str], right: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, [*before, right])
    assert read_idx(find("FMNIST", IMAGES)).tolist() == np.full((2, 4, 4), 51).tolist()
    assert asked == [f"{mirror}{IMAGES}.gz" for mirror in MIRRORS[: len(before) + 1]]
    assert held(fashion(cache)) == {f"{IMAGES}.gz"}
    assert find("FMNIST", IMAGES) == fashion(cache) / f"{IMAGES}.gz"
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
    looked = ", ".join(map(str, (*given, tmp_path / "debian", fashion(cache))))
    assert str(caught.value) == (
        f"FMNIST: {IMAGES} is missing. Looked in {looked}; tried {tried}. "
        f"Put {IMAGES}.gz into one of these folders, or name another with --data-dir or LVKAM_DATA_DIR"
    )
    assert len(asked) == 3
    assert held(fashion(cache)) == set()


def test_a_data_set_that_nobody_offers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "CIFAR10", replace(SOURCES["CIFAR10"], mirrors=()))
    with pytest.raises(DataError) as caught:
        find("CIFAR10", "data_batch_3.bin", tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"CIFAR10: data_batch_3.bin is missing. Looked in {tmp_path}/CIFAR10/cifar-10-batches-bin"
    )
    assert f", {tmp_path}/cifar-10-batches-bin, " in message
    assert "; tried no download. Put data_batch_3.bin into one of these folders" in message


def test_a_cache_that_cannot_be_written_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, ["right"])
    cache.parent.write_text("a file in the way")
    with pytest.raises(DataError) as caught:
        load_dataset("FMNIST", 1, 1)
    assert str(caught.value) == f"FMNIST: {fashion(cache)} cannot be written (Not a directory)"
    assert asked == []


def tar(folder: Path, names: list[str]) -> bytes:
    """An archive of a folder's files as CIFAR10's is laid out, with more in it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        for name in (*names[::-1], "readme.html"):
            file.add(folder / name, f"cifar-10-batches-bin/{name}")
        link = tarfile.TarInfo("cifar-10-batches-bin/../../evil.txt")
        file.addfile(link, io.BytesIO())
    return content.getvalue()


def offer_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, dict[str, np.ndarray]]:
    images = put_cifar(folder := tmp_path / "offered")
    (folder / "readme.html").write_text("hello")
    content = tar(folder, files_of("CIFAR10"))
    source = SOURCES["CIFAR10"]
    assert source.archive is not None
    checksums = {source.archive: f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"}
    monkeypatch.setitem(SOURCES, "CIFAR10", replace(source, checksums=checksums, mirrors=MIRRORS))
    return content, images


def test_an_archive_is_fetched_once_and_unpacked(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, images = offer_cifar(tmp_path, monkeypatch)
    asked = mirrors(monkeypatch, [OSError("unplugged"), content[:-1], content])
    found = load_dataset("CIFAR10", 20, 3)
    np.testing.assert_array_equal(np.round(found.train.numpy() * 255).reshape(-1, 32, 32, 3), images["train"])
    np.testing.assert_array_equal(np.round(found.test.numpy() * 255).reshape(-1, 32, 32, 3), images["test"])
    assert asked == [f"{mirror}cifar-10-binary.tar.gz" for mirror in MIRRORS]
    folder = cache / "CIFAR10" / "cifar-10-batches-bin"
    assert held(folder) == set(files_of("CIFAR10"))
    assert not list(cache.rglob("evil*"))
    load_dataset("CIFAR10", 20, 3)
    assert len(asked) == 3


def test_an_archive_of_wrong_bytes_is_not_unpacked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _ = offer_cifar(tmp_path, monkeypatch)
    recompressed = gzip.compress(gzip.decompress(content), 1)
    mirrors(monkeypatch, [recompressed, b"<!DOCTYPE html>", content + b"\0"])
    with pytest.raises(DataError, match=r"wrong bytes\), .*wrong bytes\), .*wrong bytes\)\. Put data_batch_1\.bin"):
        load_dataset("CIFAR10", 1, 1)
    assert held(cache / "CIFAR10" / "cifar-10-batches-bin") == set()


@pytest.mark.parametrize("name", ["FMNIST", "CIFAR10"])
def test_threads_that_ask_at_once_download_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "CIFAR10":
        content, _ = offer_cifar(tmp_path, monkeypatch)
        asked = mirrors(monkeypatch, [content] * 8, delay=0.1)
        file = "data_batch_1.bin"
    else:
        answer(monkeypatch, [])
        asked = mirrors(monkeypatch, [ANSWERS["right"]] * 8, delay=0.1)
        file = IMAGES
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(find(name, file).read_bytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert len(found) == 8
    assert len(set(found)) == 1


def ask(counter: Path, content: bytes, barrier: object, told: object) -> None:
    """In a process of its own, forked, so that what is patched is there too."""

    def retrieve(url: str, known_hash: str | None, fname: str, path: Path, progressbar: bool = False) -> str:
        with counter.open("a") as file:
            file.write(f"{url}\n")
        time.sleep(0.1)
        (Path(path) / fname).write_bytes(content)
        return str(Path(path) / fname)

    pooch.retrieve = retrieve
    barrier.wait(30)  # type: ignore[attr-defined]
    told.put(find("CIFAR10", "test_batch.bin").stat().st_size)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_processes_that_ask_at_once_download_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, images = offer_cifar(tmp_path, monkeypatch)
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(4), context.SimpleQueue()
    counter = tmp_path / "counter"
    processes = [context.Process(target=ask, args=(counter, content, barrier, told)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert counter.read_text().splitlines() == [f"{MIRRORS[0]}cifar-10-binary.tar.gz"]
    assert [told.get() for _ in processes] == [3073 * len(images["test"])] * 4
