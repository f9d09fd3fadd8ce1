"""What distances between sets of images are measured on: features said by name.

`lenet-<hash>` is the last hidden layer of a small convolutional classifier, fitted once to a labelled data set at an
image size and kept in the user's cache; the hash is of its weights, so that figures of one name are comparable.
`pca<F>` are F principal components of training images, or rows of a table. `inception` is the network that papers
use, where the package torch-fidelity and its weights are there.

Letters: N images or rows, D data dimensions, F features, C channels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init
from tqdm import tqdm

from lvkam.data import load_labels, load_samples, static_bits
from lvkam.errors import DataError, InputError
from lvkam.hdf5 import (
    HDF5Error,
    Layout,
    check_names,
    digest,
    open_hdf5,
    read_array,
    read_integers,
    read_text,
    write_hdf5,
)
from lvkam.sources import SOURCES
from lvkam.training import random_stream
from lvkam.writing import WriteError

FORMAT, FORMAT_VERSION = "lvkam-features", 1
WIDTH = 64
"""F, of the classifier."""
STEPS, BATCH, LEARNING_RATE = 1200, 128, 0.01
"""Of the classifier's training: as long for any data set, about three epochs of MNIST."""
HELD_BACK = 10_000
"""Training images that no classifier is fitted to: at most a sixth of them."""
SMALLEST_SIDE = 4
"""Of an image that is halved twice."""
COMPONENTS, ROWS_OF_PCA = 50, 10_000
"""F, of the principal components, where there are as many dimensions; and how many training images they are of."""
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class FeaturesError(InputError):
    """A cached classifier that is damaged or another one's; the message says how to fit it anew."""


class FeatureSet(NamedTuple):
    """A way to see images or rows."""

    name: str
    of: Callable[[Tensor], Tensor]
    """(N, D) -> (N, F)."""


# the classifier


class LeNet(nn.Module):
    """Two convolutions, each halved by its maxima, and two dense layers; (N, D) -> (N, number of classes)."""

    def __init__(self, image_shape: tuple[int, ...], num_classes: int):
        super().__init__()
        height, width, *channels = image_shape
        self.image_shape = (height, width, *channels, *([] if channels else [1]))
        # made without values, which torch would draw from its global random numbers
        self.conv1 = skip_init(nn.Conv2d, self.image_shape[2], 16, 3, padding=1)
        self.conv2 = skip_init(nn.Conv2d, 16, 32, 3, padding=1)
        self.dense = skip_init(nn.Linear, 32 * (height // 4) * (width // 4), WIDTH)
        self.classes = skip_init(nn.Linear, WIDTH, num_classes)

    def initialise(self, rng: torch.Generator) -> None:
        """Draw the initial weights."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=rng)
            else:
                nn.init.zeros_(parameter)

    def features(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, F), in (-1, 1)."""
        y = x.view(-1, *self.image_shape).permute(0, 3, 1, 2)  # (N, C, H, W), the channels last in memory
        y = F.max_pool2d(self.conv1(y).relu(), 2)
        y = F.max_pool2d(self.conv2(y).relu(), 2)
        # not relu: a third of its units would be zero for every image, and noise no further off than blurred digits
        return self.dense(y.flatten(1)).tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Before the softmax."""
        return self.classes(self.features(x))


class Classifier(NamedTuple):
    """A fitted classifier."""

    name: str
    """lenet- and the first 8 digits of the SHA-256 of its weights."""
    network: LeNet
    accuracy: float
    """On the test split."""
    path: Path


def fit(network: LeNet, x: Tensor, labels: Tensor, rng: torch.Generator, steps: int) -> None:
    """Fit a classifier to images (N, D) with labels (N,), by Adam with one cycle of the learning rate."""
    network.initialise(rng)
    epochs = math.ceil(steps / math.ceil(len(x) / BATCH))
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(x), generator=rng).split(BATCH)][:steps]
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
    for batch in tqdm(batches, desc="classifier", leave=False, disable=not sys.stderr.isatty()):
        loss = F.cross_entropy(network(x[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 1000) -> Tensor:
    return torch.cat([function(chunk) for chunk in x.split(size)])


def features_file(name: str, image_shape: tuple[int, ...], *, bits: bool = False) -> Path:
    """Where the classifier of a data set is kept."""
    import platformdirs

    stem = f"{name}-{'x'.join(map(str, image_shape))}{'-bits' if bits else ''}"
    return Path(platformdirs.user_cache_dir("lvkam")) / "features" / f"{stem}.h5"


def split_for_classifier(num_train: int) -> tuple[Tensor, Tensor]:
    """Which training images a classifier is fitted to, and which are held back, so that it knows them no better.

    They are drawn: MNIST's last 10,000 are not distributed as its test images are.
    """
    order = torch.randperm(num_train, generator=random_stream(0, "features", 1))
    num_held = min(HELD_BACK, num_train // 6)
    return order[num_held:], order[:num_held]


def labelled_classifier(
    name: str,
    image_shape: tuple[int, ...],
    data_dir: Path | None = None,
    *,
    bits: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Classifier:
    """The classifier of a data set known by name, from the cache, or fitted and put there.

    Args:
        name: MNIST, FMNIST, CIFAR10 or SVHN.
        image_shape: (H, W) or (H, W, 3), to which the images are resized.
        data_dir: where to look for the data first.
        bits: whether the images are binarised: one that has only seen smooth grey ones does not know these.
        overwrite: whether it is fitted anew in any case.
        say: is told when it is fitted, which takes some seconds.

    Raises:
        FeaturesError: what is kept is damaged, or of another version: it is not replaced unasked, since figures
            measured with it are named after it.
        DataError: the images or labels cannot be had, or the images are too small.
        WriteError: the cache cannot be written.
    """
    import filelock

    if name not in SOURCES:
        raise DataError(f"{name}: only {', '.join(SOURCES)} have labels to fit a classifier to")
    if min(image_shape[:2]) < SMALLEST_SIDE:
        raise DataError(f"{name}: images {image_shape}; a classifier needs {SMALLEST_SIDE} pixels each way")
    path = features_file(name, image_shape, bits=bits)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / f".{path.name}.lock"):  # two at a time would do the same twice
            if overwrite or not path.exists():
                of = f"{_seen(name, bits)} at {'x'.join(map(str, image_shape))}"
                say(f"fitting a classifier to {of}; it is kept in {path}")
                _fit_and_write(name, image_shape, data_dir, path, bits=bits)
            return _read(path, name, image_shape, bits=bits)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error


def _fit_and_write(name: str, image_shape: tuple[int, ...], data_dir: Path | None, path: Path, *, bits: bool) -> None:
    def images(split: Literal["train", "test"]) -> Tensor:
        x = load_samples(name, None, (image_shape[0], image_shape[1]), data_dir, split=split).x
        return static_bits(x, split) if bits else x

    x = images("train")
    labels = load_labels(name, "train", len(x), data_dir)
    fitted, _ = split_for_classifier(len(x))
    network, threads = LeNet(image_shape, int(labels.max()) + 1), torch.get_num_threads()
    torch.set_num_threads(1)  # the weights, and so the name, would depend on how many there are
    try:
        fit(network, x[fitted], labels[fitted], random_stream(0, "features"), STEPS)
    finally:
        torch.set_num_threads(threads)
    test = images("test")
    found = _in_chunks(lambda chunk: network(chunk).argmax(1), test)
    arrays = {name: value.detach().numpy() for name, value in network.named_parameters()}

    def fill(file: h5py.File) -> None:
        for each, array in arrays.items():
            file.create_dataset(each, data=array).attrs["sha256"] = digest(array)
        file.attrs.update({
            "format": FORMAT, "format_version": FORMAT_VERSION, "dataset": _seen(name, bits),
            "image_shape": np.asarray(image_shape, np.int64), "num_classes": int(labels.max()) + 1,
            "num_tested": len(test), "num_right": int((found == load_labels(name, "test", len(test), data_dir)).sum()),
        })  # fmt: skip

    write_hdf5(path, fill, seal=True)


def _seen(name: str, bits: bool) -> str:
    """What a classifier was fitted to, as its file says."""
    return f"{name}, binarised" if bits else name


def _read(path: Path, name: str, image_shape: tuple[int, ...], *, bits: bool) -> Classifier:
    text = {"format": FORMAT, "dataset": _seen(name, bits)}
    numbers = ("format_version", "num_classes", "num_tested", "num_right")
    try:
        with open_hdf5(path) as file:
            found = {key: read_integers(path, file, key, ())[0] for key in numbers}
            shape = read_integers(path, file, "image_shape")
            if any(read_text(path, file, key) != value for key, value in text.items()) or shape != image_shape:
                raise HDF5Error(f"{path}: not of {text['dataset']} at {image_shape}")
            if found["format_version"] != FORMAT_VERSION or not 1 <= found["num_classes"] <= 1000:
                raise HDF5Error(f"{path}: another version's")
            if not 0 <= found["num_right"] <= found["num_tested"] or not found["num_tested"]:
                raise HDF5Error(f"{path}: damaged: its counts contradict each other")
            network = LeNet(image_shape, found["num_classes"])
            layout: Layout = {each: (np.dtype(np.float32), tuple(p.shape)) for each, p in network.named_parameters()}
            check_names(path, file, (*text, *numbers, "image_shape"), layout)
            read = {each: read_array(path, file, each, *entry) for each, entry in layout.items()}
    except HDF5Error as error:
        size = f"{image_shape[0]},{image_shape[1]}{' --bits' if bits else ''}"
        raise FeaturesError(f"{error}. lvkam fit-features {name} --size {size} --overwrite fits it anew") from error
    network.load_state_dict({each: torch.from_numpy(array) for each, (array, _) in read.items()})
    sha256 = hashlib.sha256("".join(checksum for _, checksum in read.values()).encode()).hexdigest()
    return Classifier(f"lenet-{sha256[:8]}", network, found["num_right"] / found["num_tested"], path)


def lenet_features(classifier: Classifier) -> FeatureSet:
    """Those of a fitted classifier."""
    return FeatureSet(classifier.name, lambda x: _in_chunks(classifier.network.features, x))


# principal components


def pca_features(train: Tensor) -> FeatureSet:
    """The principal components of the first training images or rows, (N, D); each points to its largest part."""
    x = train[:ROWS_OF_PCA].double()
    mean = x.mean(0)
    vectors = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors.flip(1)[:, :COMPONENTS]  # (D, F)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    basis = vectors * largest.sign()
    return FeatureSet(f"pca{basis.shape[1]}", lambda x: (x.double() - mean) @ basis)


# the network of papers


def inception_features(image_shape: tuple[int, ...]) -> FeatureSet | None:
    """Those that papers measure FID on, or None where the extra `fid` or its weights are not there.

    The weights are never downloaded. They are pickled, and loaded by the package that they belong to: so only the
    bytes that are known are.

    Raises:
        FeaturesError: the file of the weights has other bytes.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if importlib.util.find_spec("torch_fidelity") is None or not weights.is_file():
        return None
    with weights.open("rb") as file:
        # a file reads into buffers, which its stub leaves out
        if hashlib.file_digest(file, "sha256").hexdigest() != INCEPTION_SHA256:  # pyright: ignore[reportArgumentType]
            raise FeaturesError(f"{weights}: has other bytes than the published weights: remove it, or fetch it anew")
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    height, width, *channels = image_shape

    def of(x: Tensor) -> Tensor:
        # bytes and colours; the network enlarges them itself, as TensorFlow 1 did
        pixels = (255 * x).round().to(torch.uint8).view(-1, height, width, *(channels or [1])).permute(0, 3, 1, 2)
        return network(pixels.expand(-1, 3, -1, -1))[0]

    return FeatureSet("inception", lambda x: _in_chunks(of, x, 50))
