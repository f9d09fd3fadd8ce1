"""Data as a model sees it: images in [0, 1] and resized, tables standardised, and what cannot be either is told."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2

from lvkam import data
from lvkam.data import TooFewImagesError, binarise, load_dataset, load_labels, load_samples, static_bits
from lvkam.errors import DataError
from lvkam.sources import IDX_IMAGES
from lvkam.standardisation import Standardisation

SHIPPED = Path(data.__file__).parent / "datasets"

SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")

pytestmark = pytest.mark.usefixtures("cache")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def npz(path: Path, **arrays: Any) -> str:
    save: Callable[..., None] = np.savez
    save(path / "a.npz", **arrays)
    return str(path / "a.npz")


def told(name: str, num_train: int = 2, num_test: int = 1, size: tuple[int, int] | None = None) -> str:
    """Why data is refused: one line, which begins with its name."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, num_train, num_test, size)
    message = str(caught.value)
    assert message.startswith(name)
    assert message.isprintable()
    return message.removeprefix(name).removeprefix(": ")


# --- the data sets known by name


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
    assert (found.standardisation, found.log_volume, found.what) == (None, 0, "images")
    assert str(found) == f"{name}, 28x28, 60000 images, values divided by 255"
    assert (found.train.shape, found.test.shape) == ((60000, 784), (10000, 784))
    assert found.train.dtype == found.test.dtype == torch.float32
    for split in (found.train, found.test):
        assert (split.min().item(), split.max().item()) == (0, 1)
    assert found.train.double().mean().item() == pytest.approx(mean, abs=5e-5)
    assert found.train.double().std().item() == pytest.approx(std, abs=5e-5)
    for split, total in (("train", 60000), ("test", 10000)):
        labels = load_labels(name, split, total, data_dir=folder)
        assert labels[:10].tolist() == first[split]
        assert labels.bincount().tolist() == counts[split]


FIRST_IMAGES = {
    # SHA-256 of the first image's 784 bytes, of training and of test
    "MNIST": (
        "23ceaef5eb61f0e70d64ac18fdf0f60df3d5971cf30bbadac7b6ebf07f782d2c",
        "8f6a418c9a639f9e14e96feca47a97df2a35a0a68ae2875431c5c80e05536941",
    ),
    "FMNIST": (
        "5bd44e331a6d6998daf675700cd0c13dcd7af8ab954b7585124124da61459e7b",
        "ffc7351ed0f8bae542820866086177fa4e0b366b97bf9d998dffdb8dbe138787",
    ),
}


@pytest.mark.parametrize("name", FIRST_IMAGES)
def test_the_first_image_is_the_published_one(name: str, data_dir: Path) -> None:
    found = load_dataset(name, 1, 1, data_dir=data_dir)
    for x, digest in zip((found.train, found.test), FIRST_IMAGES[name], strict=True):
        pixels = np.round(x.double().numpy() * 255)
        assert np.abs(pixels - x.double().numpy() * 255).max() < 1e-4
        assert hashlib.sha256(pixels.astype(np.uint8).tobytes()).hexdigest() == digest


def test_the_first_images_of_each_split(data_dir: Path) -> None:
    for folder in (SHIPPED, data_dir):
        found = load_dataset("MNIST", 7, 5, data_dir=folder)
        for split, held in zip(SPLITS, (found.train, found.test), strict=True):
            with gzip.open(folder / "MNIST" / "raw" / f"{IDX_IMAGES[split][0]}.gz") as file:
                pixels = np.frombuffer(file.read(16 + 784 * len(held))[16:], np.uint8).reshape(-1, 784)
            np.testing.assert_array_equal(np.round(held.numpy() * 255), pixels)
            samples = load_samples("MNIST", len(held), None, folder, split=split)
            np.testing.assert_array_equal(samples.x.numpy(), held.numpy())
            assert samples.shape == found.image_shape


def test_too_many_are_told() -> None:
    for numbers, split, held, asked in (((60001, 1), "train", 60000, 60001), ((1, 10001), "test", 10000, 10001)):
        with pytest.raises(TooFewImagesError) as caught:
            load_dataset("MNIST", *numbers)
        assert str(caught.value) == f"MNIST has {held} {split} images, fewer than the {asked} asked for"
        assert (caught.value.split, caught.value.available, caught.value.requested) == (split, held, asked)
    for called in (lambda: load_labels("MNIST", "test", 10001), lambda: load_samples("MNIST", 10001)):
        with pytest.raises(TooFewImagesError, match="MNIST has 10000 test images, fewer than the 10001 asked for"):
            called()


# --- bits


def test_a_pixel_is_1_with_the_probability_that_is_its_grey_value() -> None:
    grey = torch.linspace(0, 1, 51)
    draws = binarise(grey.expand(20_000, -1), torch.Generator().manual_seed(0))
    assert draws.dtype == torch.float32
    assert set(draws.unique().tolist()) == {0, 1}
    assert (draws[:, 0] == 0).all()
    assert (draws[:, -1] == 1).all()
    inner, p = draws[:, 1:-1].double(), grey[1:-1].double()
    z = (inner.mean(0) - p) * (20_000 / (p * (1 - p))).sqrt()
    assert chi2.sf(float(z.square().sum()), len(p)) > 1e-6  # the rate of false alarms
    # pixels are independent of one another, and so are images
    assert np.abs(np.corrcoef(inner.T) - np.eye(49)).max() < 6 / 20_000**0.5
    assert np.abs(np.corrcoef(inner[1:].T, inner[:-1].T)[:49, 49:]).max() < 6 / 20_000**0.5
    assert torch.equal(binarise(draws, torch.Generator().manual_seed(1)), draws)  # bits stay


def test_static_bits_are_those_of_the_first_images_however_many_there_are() -> None:
    grey = load_dataset("MNIST", 100, 100, (7, 7))
    for split, x in zip(SPLITS, (grey.train, grey.test), strict=True):
        bits = static_bits(x, split)
        for number in (1, 2, 15, 16, 17, 99):
            assert torch.equal(static_bits(x[:number], split), bits[:number])
    assert not torch.equal(static_bits(grey.train, "train"), static_bits(grey.train, "test"))
    # for good, since figures of all times are to compare
    native = load_dataset("MNIST", 1000, 1000).binarised(anew=False)
    grey = load_dataset("MNIST", 1000, 1000)
    for seed, bits, x in ((1, native.train, grey.train), (2, native.test, grey.test)):
        # as NumPy has the same numbers: the lower 24 bits of those of a Mersenne twister
        numbers = np.random.RandomState(seed).randint(0, 2**32, x.shape, np.uint32)
        np.testing.assert_array_equal(bits.numpy(), (numbers & 0xFFFFFF) / 2**24 < x.numpy())


def test_a_data_set_is_binarised_once_or_in_each_batch() -> None:
    grey = load_dataset("MNIST", 30, 20, (7, 7))
    once, anew = grey.binarised(anew=False), grey.binarised(anew=True)
    assert str(once) == "MNIST, 7x7, 30 images, values divided by 255, binarised"
    assert str(anew) == f"{once}, the training images in each batch anew"
    assert (once.is_drawn_anew, anew.is_drawn_anew, grey.is_drawn_anew) == (False, True, False)
    bits = static_bits(grey.train, "train")
    for found, train in ((once, bits), (anew, grey.train)):
        assert torch.equal(found.train, train)
        assert torch.equal(found.test, static_bits(grey.test, "test"))
        assert torch.equal(found.shown(7), bits[:7])
        assert (found.log_volume, found.image_shape) == (0, (7, 7))
    assert torch.equal(grey.shown(7), grey.train[:7])


# --- own images: ranges


def as_unit(values: np.ndarray, offset: float, divisor: float) -> np.ndarray:
    return (values.astype(float) - offset) / divisor


UNIT = rng().random((6, 4, 5))
RANGES: dict[str, tuple[np.ndarray, float, float, str]] = {
    "bytes": (np.round(UNIT * 255).astype(np.uint8), 0, 255, "values divided by 255"),
    "bytes of 0 and 1": ((UNIT > 0.5).astype(np.uint8), 0, 1, "values as they are"),
    "truth values": (UNIT > 0.5, 0, 1, "values as they are"),
    "long integers up to 255": (np.round(UNIT * 255).astype(np.int64), 0, 255, "values divided by 255"),
    "16 bits": (np.round(UNIT * 65535).astype(np.uint16), 0, 65535, "values divided by 65535"),
    "16 bits, dark": (np.round(UNIT * 300).astype(">i4"), 0, 65535, "values divided by 65535"),
    "floats from 0 to 1": (UNIT, 0, 1, "values as they are"),
    "half precision": (UNIT.astype(np.float16), 0, 1, "values as they are"),
    "floats from -1 to 1": (2 * UNIT - 1, -1, 2, "values brought from [-1, 1] to [0, 1]"),
    "floats from 0 to 255": (UNIT * 255, 0, 255, "values divided by 255"),
}


@pytest.mark.parametrize("name", RANGES)
def test_every_range_is_brought_to_0_to_1(name: str, tmp_path: Path) -> None:
    array, offset, divisor, words = RANGES[name]
    found = load_dataset(npz(tmp_path, samples=array), 4, 2)
    assert found.train.dtype == torch.float32
    assert (found.image_shape, found.scaling) == ((4, 5), words)
    both = torch.cat([found.train, found.test]).numpy().reshape(6, 4, 5)
    np.testing.assert_allclose(both, as_unit(array, offset, divisor), atol=1e-6)
    assert both.min() >= 0
    assert both.max() <= 1
    assert str(found) == f"{tmp_path}/a.npz, 4x5, 4 images, {words}"


def test_both_splits_are_scaled_alike(tmp_path: Path) -> None:
    train, test = (UNIT[:4] > 0.5).astype(np.uint8), np.round(UNIT * 255).astype(np.uint8)
    found = load_dataset(npz(tmp_path, train=train, test=test), 4, 6)
    assert found.scaling == "values divided by 255"
    assert found.train.max().item() == pytest.approx(1 / 255)


@pytest.mark.parametrize("name", ["floats from -1 to 1", "floats from 0 to 255", "bytes", "16 bits, dark"])
@pytest.mark.parametrize("parts", [("train", "test"), ("samples",)])
def test_few_dark_images_are_scaled_as_all_of_them_are(name: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    """The first test image holds no value that tells of the range."""
    array, *_ = RANGES[name]
    array = array.copy()
    array[4] = np.array([0, 1], array.dtype)[[[0, 1, 0, 1, 0]] * 4]
    arrays = {"samples": array} if len(parts) == 1 else {"train": array[:4], "test": array[4:]}
    path = npz(tmp_path, **arrays)
    everything = load_dataset(path, 4, 2)
    few = load_samples(path, 1, skip=4)
    assert few.scaling.startswith(everything.scaling)
    torch.testing.assert_close(few.x, everything.test[:1], rtol=0, atol=0)


WITHIN = "must be within"
FLOATS = "[0, 1], [-1, 1] or [0, 255]"
OUTSIDE: dict[str, tuple[np.ndarray, str]] = {
    "integers too large": (np.full((3, 2, 2), 65536), f"integers from 65536 to 65536; {WITHIN} 0 to 65535"),
    "integers below zero": (np.full((3, 2, 2), -1, np.int8), f"integers from -1 to -1; {WITHIN} 0 to 65535"),
    "floats too large": (np.full((3, 2, 2), 255.5), f"floats from 255.5 to 255.5; {WITHIN} {FLOATS}"),
    "floats too small": (np.full((3, 2, 2), -1.5), f"floats from -1.5 to -1.5; {WITHIN} {FLOATS}"),
    "floats of mixed signs": (np.array([[[-1.0, 1.5]]] * 3), f"floats from -1 to 1.5; {WITHIN} {FLOATS}"),
    "two channels": (
        np.zeros((3, 4, 5, 2)), "images of shape (4, 5, 2); must have 1 channel (grey) or 3 (colour), first or last",
    ),
    "four channels": (
        np.zeros((3, 4, 5, 4)), "images of shape (4, 5, 4); must have 1 channel (grey) or 3 (colour), first or last",
    ),
    "five channels": (
        np.zeros((3, 5, 4, 4)), "images of shape (5, 4, 4); must have 1 channel (grey) or 3 (colour), first or last",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_no_image_is_told(name: str, tmp_path: Path) -> None:
    array, message = OUTSIDE[name]
    assert told(npz(tmp_path, samples=array)) == message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_told_by_its_number(value: float, tmp_path: Path) -> None:
    images = rng().random((9, 3, 3))
    images[7, 1, 2] = images[8, 0, 0] = value
    what = "(counted from 0) holds a value that is not finite"
    for num_train, num_test in ((8, 1), (2, 6)):  # in training and in test, its number in the file
        assert told(npz(tmp_path, samples=images), num_train, num_test) == f"image 7 {what}"
    load_dataset(npz(tmp_path, samples=images), 5, 2)  # which does not come so far
    assert told(npz(tmp_path, train=images[:3], test=images), 3, 9) == f"test: image 7 {what}"
    assert told(npz(tmp_path, train=images, test=images[:3]), 9, 3) == f"train: image 7 {what}"
    with pytest.raises(DataError, match=r"a\.npz: image 7 \(counted from 0\) holds a value that is not finite"):
        load_samples(npz(tmp_path, samples=images), None)


# --- own images: axes, splits, sizes


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_come_first(channels: int, tmp_path: Path) -> None:
    images = rng().integers(0, 256, (5, 6, 7, channels), dtype=np.uint8)
    last = load_dataset(npz(tmp_path, samples=images), 3, 2, (4, 4))
    first = load_dataset(npz(tmp_path, samples=images.transpose(0, 3, 1, 2)), 3, 2, (4, 4))
    assert last.image_shape == first.image_shape == ((4, 4) if channels == 1 else (4, 4, 3))
    np.testing.assert_array_equal(last.train.numpy(), first.train.numpy())
    np.testing.assert_array_equal(last.test.numpy(), first.test.numpy())
    if channels == 1:
        without = load_dataset(npz(tmp_path, samples=images[..., 0]), 3, 2, (4, 4))
        np.testing.assert_array_equal(without.train.numpy(), last.train.numpy())


def test_the_first_and_the_next_of_one_array_the_first_of_two(tmp_path: Path) -> None:
    images = rng().random((12, 3, 3)).astype(np.float32)
    one = load_dataset(npz(tmp_path, samples=images), 5, 4)
    np.testing.assert_array_equal(one.train.numpy().reshape(-1, 3, 3), images[:5])
    np.testing.assert_array_equal(one.test.numpy().reshape(-1, 3, 3), images[5:9])
    two = load_dataset(npz(tmp_path, train=images[:8], test=images[8:]), 5, 4)
    np.testing.assert_array_equal(two.train.numpy().reshape(-1, 3, 3), images[:5])
    np.testing.assert_array_equal(two.test.numpy().reshape(-1, 3, 3), images[8:])
    for split, expected in zip(SPLITS, (images[:8], images[8:]), strict=True):
        samples = load_samples(npz(tmp_path, train=images[:8], test=images[8:]), None, split=split)
        np.testing.assert_array_equal(samples.x.numpy().reshape(-1, 3, 3), expected)


def test_the_same_images_are_the_same_data_from_every_kind_of_file(tmp_path: Path) -> None:
    for number, channels in enumerate(((), (3,))):
        images = rng(number).integers(0, 256, (6, 4, 5, *channels), dtype=np.uint8)
        images.flat[:2] = 0, 255
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("train", data=images[:4], compression="gzip")
            file["test"] = images[4:]
        for index, image in enumerate(images):
            place = tmp_path / f"folder{number}" / ("train" if index < 4 else "test")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index}.png")
        found = [
            load_dataset(name, 4, 2)
            for name in (
                npz(tmp_path, train=images[:4], test=images[4:]), npz(tmp_path, samples=images),
                str(tmp_path / "a.h5"), str(tmp_path / f"folder{number}"),
            )
        ]  # fmt: skip
        for other in found:
            np.testing.assert_array_equal(other.train.numpy(), images[:4].reshape(4, -1).astype(np.float32) / 255)
            np.testing.assert_array_equal(other.test.numpy(), images[4:].reshape(2, -1).astype(np.float32) / 255)
            assert other.image_shape == (4, 5, *channels)


def test_fewer_than_asked_for_are_told(tmp_path: Path) -> None:
    images = np.zeros((5, 2, 2))
    name = npz(tmp_path, samples=images)
    for numbers, split, held, asked in (((6, 1), "train", 4, 6), ((4, 2), "train", 3, 4), ((1, 5), "test", 4, 5)):
        with pytest.raises(TooFewImagesError) as caught:
            load_dataset(name, *numbers)
        assert str(caught.value) == f"{name} has {held} {split} images, fewer than the {asked} asked for"
    with pytest.raises(TooFewImagesError, match="has 5 test rows, fewer than the 6 asked for"):
        load_samples(npz(tmp_path, samples=rng().random((5, 2))), 6, None, None, Standardisation.of(
            rng().random((5, 2)), ("x1", "x2")))  # fmt: skip


def test_splits_of_several_sizes_are_told(tmp_path: Path) -> None:
    found = told(npz(tmp_path, train=np.zeros((3, 2, 2)), test=np.zeros((3, 2, 3))))
    assert found == "its images are (2, 2) in training, (2, 3) in test"
    found = told(npz(tmp_path, train=np.zeros((3, 2, 2)), test=np.zeros((3, 2, 2, 3))))
    assert found == "its images are (2, 2) in training, (2, 2, 3) in test"
    load_dataset(npz(tmp_path, train=np.zeros((3, 2, 2)), test=np.zeros((3, 2, 3))), 2, 1, (4, 4))


def test_a_table_and_images_in_one_file_are_told(tmp_path: Path) -> None:
    images, table = rng().random((3, 2, 2)), rng().random((3, 4))
    found = told(npz(tmp_path, train=images, test=table))
    assert found == "train and test are of shapes (2, 2, 2) and (1, 4): a table and images"
    found = told(npz(tmp_path, train=table, test=images))
    assert found == "train and test are of shapes (2, 4) and (1, 2, 2): a table and images"


def test_tables_of_several_widths_are_told(tmp_path: Path) -> None:
    for width in (2, 4, 1):
        found = told(npz(tmp_path, train=rng().random((3, 3)), test=rng().random((3, width))))
        assert found == f"has 3 columns in training, {width} in test"


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


@pytest.mark.parametrize("size", [(4, 4), (9, 3), (20, 30)])
def test_colours_are_resized_one_by_one(size: tuple[int, int], tmp_path: Path) -> None:
    images = rng().random((5, 8, 6, 3))
    found = load_dataset(npz(tmp_path, samples=images), 3, 2, size)
    assert found.image_shape == (*size, 3)
    rows, columns = triangle(8, size[0]), triangle(6, size[1])
    expected = np.einsum("yh,nhwc,xw->nyxc", rows, images[:3], columns)
    np.testing.assert_allclose(found.train.numpy().reshape(3, *size, 3), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [None, (14, 14), (9, 11), (40, 33)])
@pytest.mark.parametrize("value", [0, 51, 255])
def test_constant_images_stay_constant(value: int, size: tuple[int, int] | None, tmp_path: Path) -> None:
    images = np.full((3, 28, 28), value, np.uint8)
    images[2, 0, 0] = 255  # so that these are bytes, no truth values
    found = load_dataset(npz(tmp_path, samples=images), 2, 1, size)
    np.testing.assert_allclose(found.train.numpy(), value / 255, atol=1e-6)
    assert found.train.max() <= 1


# --- tables


def table(rows: int = 40, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal((rows, 3)) * [1, 1e-3, 500] + [0, 4, -1e4]


def csv(path: Path, array: np.ndarray, names: str = "height,weight,age") -> str:
    lines = [names] if names else []
    (path / "a.csv").write_text("\n".join([*lines, *(",".join(map(repr, row)) for row in array.tolist())]) + "\n")
    return str(path / "a.csv")


def test_a_table_is_standardised_by_its_training_rows(tmp_path: Path) -> None:
    x = table()
    found = load_dataset(csv(tmp_path, x), 30, 10)
    expected = (x - x[:30].mean(0)) / x[:30].std(0)
    np.testing.assert_allclose(found.train.numpy(), expected[:30], atol=1e-6)
    np.testing.assert_allclose(found.test.numpy(), expected[30:], atol=1e-6)
    np.testing.assert_allclose(found.train.double().mean(0).numpy(), 0, atol=1e-6)
    np.testing.assert_allclose(found.train.double().std(0, correction=0).numpy(), 1, atol=1e-6)
    assert found.standardisation is not None
    assert found.standardisation.columns == ("height", "weight", "age")
    np.testing.assert_allclose(found.standardisation.restore(found.test.numpy()), x[30:], rtol=1e-6)
    assert found.log_volume == pytest.approx(np.log(x[:30].std(0)).sum())
    assert (found.image_shape, found.what) == ((3,), "rows")
    assert str(found) == f"{tmp_path}/a.csv, 3 columns, 30 rows, columns standardised"


def test_the_same_table_is_the_same_data_from_every_kind_of_file(tmp_path: Path) -> None:
    x = table()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["whatever"] = x
    names = [
        csv(tmp_path, x),
        npz(tmp_path, samples=x),
        npz(tmp_path, train=x[:30], test=x[30:]),
        str(tmp_path / "a.h5"),
    ]
    found = [load_dataset(name, 30, 10) for name in names[:1]]
    for save, name in ((lambda: npz(tmp_path, samples=x), names[1]),
                       (lambda: npz(tmp_path, train=x[:30], test=x[30:]), names[2]),
                       (lambda: str(tmp_path / "a.h5"), names[3])):  # fmt: skip
        assert save() == name
        found.append(load_dataset(name, 30, 10))
    for other in found:
        np.testing.assert_array_equal(other.train.numpy(), found[0].train.numpy())
        np.testing.assert_array_equal(other.test.numpy(), found[0].test.numpy())
    columns = [other.standardisation.columns for other in found if other.standardisation]
    assert columns == [("height", "weight", "age"), *[("x1", "x2", "x3")] * 3]


def test_other_rows_are_standardised_as_those_of_training(tmp_path: Path) -> None:
    trained = load_dataset(csv(tmp_path, table()), 30, 10).standardisation
    assert trained is not None
    other = table(20, seed=1)
    for name in (csv(tmp_path, other), csv(tmp_path, other, ""), npz(tmp_path, test=other, train=table())):
        found = load_samples(name, None, None, None, trained)
        np.testing.assert_allclose(found.x.numpy(), (other - trained.mean) / trained.std, atol=1e-5)
        assert found.shape == (3,)
        few = load_samples(name, 7, None, None, trained)
        np.testing.assert_array_equal(few.x.numpy(), found.x.numpy()[:7])


def test_another_table_than_the_models_is_told(tmp_path: Path) -> None:
    trained = load_dataset(csv(tmp_path, table()), 30, 10).standardisation

    def refused(name: str, standardisation: Standardisation | None = trained) -> str:
        with pytest.raises(DataError) as caught:
            load_samples(name, None, None, None, standardisation)
        assert str(caught.value).startswith(f"{name}: ")
        return str(caught.value).removeprefix(f"{name}: ")

    expected = "its columns are {}, the model's height, weight, age"
    assert refused(csv(tmp_path, table(), "weight,height,age")) == expected.format("weight, height, age")
    assert refused(csv(tmp_path, table(), "Height,weight,age")) == expected.format("Height, weight, age")
    assert refused(csv(tmp_path, table()[:, :2], "height,weight")) == "has 2 columns, the model 3"
    assert refused(npz(tmp_path, samples=table()[:, :2])) == "has 2 columns, the model 3"
    assert refused(npz(tmp_path, samples=UNIT)) == "holds images, the model was trained with a table"
    assert refused("MNIST") == "holds images, the model was trained with a table"
    assert refused(csv(tmp_path, table()), None) == "holds a table, the model was trained with images"


def test_a_constant_column_is_told_by_its_name(tmp_path: Path) -> None:
    x = table()
    x[:30, 1] = 0.1
    assert told(csv(tmp_path, x), 30, 10) == "the column weight is constant (0.1 in all 30 rows)"
    assert told(npz(tmp_path, samples=x), 30, 10) == "the column x2 is constant (0.1 in all 30 rows)"
    x = table()
    x[30:, 1] = 0.1  # of test rows it may be
    load_dataset(csv(tmp_path, x), 30, 10)


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "has no value"), (np.inf, "is infinite"), (-np.inf, "is infinite")]
)
def test_a_missing_value_is_told_by_column_and_row(value: float, what: str, tmp_path: Path) -> None:
    x = table()
    x[33, 2] = x[34, 0] = value
    expected = f"the column x3 {what} in row 33 (counted from 0); fill or drop it"
    for num_train, num_test in ((34, 6), (30, 10)):
        assert told(npz(tmp_path, samples=x), num_train, num_test) == expected
    assert told(npz(tmp_path, train=x[:30], test=x), 30, 40) == f"test: {expected}"
    load_dataset(npz(tmp_path, samples=x), 30, 3)


def test_rows_that_single_precision_cannot_hold_are_told(tmp_path: Path) -> None:
    x = table()
    x[:, 1] *= 1e300
    assert told(csv(tmp_path, x), 30, 10) == (
        "the column weight holds numbers too large for single precision: change its unit"
    )
    x = table()
    x[35, 1] = 1e80
    assert told(csv(tmp_path, x), 30, 10) == (
        "the column weight holds 1e+80, too far from the rows that the model is trained with"
    )


def test_a_table_of_other_numbers_is_a_table_of_numbers(tmp_path: Path) -> None:
    counts = rng().integers(0, 9, (20, 2))
    for array in (counts.astype(np.int8), counts > 4, counts.astype(np.float16), counts.astype(">u8")):
        found = load_dataset(npz(tmp_path, samples=array), 15, 5)
        x = array.astype(float)
        np.testing.assert_allclose(found.test.numpy(), ((x - x[:15].mean(0)) / x[:15].std(0))[15:], atol=1e-6)


def test_labels_are_known_of_the_named_only() -> None:
    for name, split in (("nothing", "train"), ("MNIST", "validation")):
        with pytest.raises(
            DataError, match=rf"\A{name}: its labels are not read; those of MNIST, FMNIST, CIFAR10, SVHN are\Z"
        ):
            load_labels(name, split, 1)
