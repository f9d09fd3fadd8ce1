"""Data sets known by name: where their files are, who offers them, and what bytes they have.

Looked for in this order: the folder given, `LVKAM_DATA_DIR` (both laid out as torchvision does,
`MNIST/raw/train-images-idx3-ubyte`, plain or gzip), the package itself (MNIST), the folder of Debian's package
`dataset-fashion-mnist`; then downloaded into the user's cache, and verified before anything is parsed.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lvkam.config import Config, ConfigError
from lvkam.errors import DataError, InputError
from lvkam.formats import read_cifar, read_cifar_labels, read_idx, read_svhn, read_svhn_labels
from lvkam.readers import Rows, in_memory, own_arrays
from lvkam.writing import write_atomically


@dataclass(frozen=True)
class Source:
    """A data set known by name."""

    folders: tuple[str, ...]
    """Where its files lie within a data folder; the first one also within the cache."""
    images: Mapping[str, tuple[str, ...]]
    """Split -> its files."""
    read: Callable[[Path], np.ndarray]
    """The images of such a file."""
    checksums: Mapping[str, str]
    """File -> `sha256:` or `md5:` and the digest of its bytes, uncompressed if it is gzip: how a file is compressed
    differs from mirror to mirror."""
    mirrors: tuple[str, ...] = ()
    archive: str | None = None
    """What mirrors offer instead of the files in it; its checksum is of its bytes as they are."""
    is_trusting: bool = False
    """Whether `read` is for verified bytes only, from wherever they come."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> the files of its labels."""
    read_labels: Callable[[Path], np.ndarray] = read_idx
    """Those of such a file, (N,)."""


IDX_IMAGES = {"train": ("train-images-idx3-ubyte",), "test": ("t10k-images-idx3-ubyte",)}
IDX_LABELS = {"train": ("train-labels-idx1-ubyte",), "test": ("t10k-labels-idx1-ubyte",)}
CIFAR_FILES = {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)}
SVHN_FILES = {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)}

SOURCES = {
    "MNIST": Source(
        ("MNIST/raw",),
        IDX_IMAGES,
        read_idx,
        {
            "train-images-idx3-ubyte": "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        labels=IDX_LABELS,
    ),
    "FMNIST": Source(
        ("FashionMNIST/raw",),
        IDX_IMAGES,
        read_idx,
        {
            "train-images-idx3-ubyte": "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        (
            "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        labels=IDX_LABELS,
    ),
    "CIFAR10": Source(
        ("CIFAR10/cifar-10-batches-bin", "cifar-10-batches-bin"),
        CIFAR_FILES,
        read_cifar,
        {"cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530"},
        ("https://www.cs.toronto.edu/~kriz/", "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/"),
        archive="cifar-10-binary.tar.gz",
        labels=CIFAR_FILES,
        read_labels=read_cifar_labels,
    ),
    "SVHN": Source(
        ("SVHN", ""),
        SVHN_FILES,
        read_svhn,
        {
            "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
        },
        ("http://ufldl.stanford.edu/housenumbers/",),
        is_trusting=True,
        labels=SVHN_FILES,
        read_labels=read_svhn_labels,
    ),
}

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


def is_path(name: str) -> bool:
    """Whether a data set is somebody's own: whatever is no known name, and exists or looks like a path."""
    return name not in SOURCES and (os.path.exists(name) or "/" in name or Path(name).suffix != "")


def check_own(name: str) -> None:
    """Look at the heads of a data set of one's own; nothing where it is one known by name.

    Raises:
        DataError: it cannot be read, or holds something else than images or a table; or the name is not known.
    """
    if is_path(name):
        own_arrays(Path(name))
    else:
        _source(name)


def check_dataset(config: Config) -> None:
    """`check_own` of what a configuration names.

    Raises:
        ConfigError: what is wrong, with the key.
    """
    try:
        check_own(config.training.dataset)
    except InputError as error:
        raise dataset_error(config, error) from error


def dataset_error(config: Config, error: InputError) -> ConfigError:
    """What is wrong with the data that a configuration names, with the key."""
    return ConfigError([f"{config.source}: [TRAINING] dataset = {config.training.dataset}: {error}"])


def arrays_of(name: str, data_dir: Path | None = None) -> dict[str, Rows]:
    """What a data set holds: `train` and `test`, or `samples`.

    Args:
        name: a key of `SOURCES`, or a path.
        data_dir: where to look first for one known by name.

    Raises:
        DataError: an unknown name, or files that cannot be had or are not what they should be.
    """
    if is_path(name):
        return own_arrays(Path(name))
    source = _source(name)
    return {
        split: in_memory(_read_images(source, [_found(name, file, data_dir) for file in files]))
        for split, files in source.images.items()
    }


def _found(name: str, file: str, data_dir: Path | None) -> Path:
    """`find`, for a reader: one that trusts gets verified bytes only."""
    path = find(name, file, data_dir)
    if SOURCES[name].is_trusting:
        check_bytes(name, file, path)
    return path


def _read_images(source: Source, paths: Sequence[Path]) -> np.ndarray:
    parts = []
    for path in paths:
        parts.append(images := source.read(path))
        if images.ndim not in {3, 4}:
            raise DataError(f"{path}: holds an array of {images.ndim} dimensions, not images")
        if 0 in images.shape[1:]:
            raise DataError(f"{path}: holds images without pixels")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def labels_of(name: str, split: str, data_dir: Path | None = None) -> np.ndarray:
    """The labels of a split of a data set known by name, (N,); raises as `arrays_of`."""
    source, parts = _source(name), []
    for file in source.labels[split]:
        path = _found(name, file, data_dir)
        parts.append(source.read_labels(path))
        if parts[-1].ndim != 1:
            raise DataError(f"{path}: holds labels of {parts[-1].ndim} dimensions instead of 1")
    return np.concatenate(parts)


def files_of(name: str) -> list[str]:
    """The files with the images of a data set known by name; raises DataError for another name."""
    return [file for files in _source(name).images.values() for file in files]


def find(name: str, file: str, data_dir: Path | None = None) -> Path:
    """The file of a data set, from the first place that holds it; it is downloaded if none does.

    Raises:
        DataError: it cannot be had.
    """
    source = _source(name)
    places = list(_places(name, source, data_dir))
    for place in places:
        for path in (place / file, place / f"{file}.gz"):
            if path.is_file():
                return path
    return _download(name, source, file, places)


def check_bytes(name: str, file: str, path: Path) -> bool:
    """Compare a file of a data set with the published checksum; False where none of it is published.

    Raises:
        DataError: it has other bytes.
    """
    expected = SOURCES[name].checksums.get(file)
    if expected is not None and _checksum(path, expected) != expected:
        raise DataError(f"{path}: has other bytes than the published {file}: remove it, and it is fetched anew")
    return expected is not None


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name.upper(), SOURCES, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SOURCES)}, and files of one's own"
    raise DataError(f"unknown data set {name}; {hint}")


def _places(name: str, source: Source, data_dir: Path | None) -> Iterator[Path]:
    environment = os.environ.get("LVKAM_DATA_DIR")
    for given in (data_dir, Path(environment) if environment else None):
        if given is not None:
            yield from (given / folder for folder in source.folders)
    if name == "MNIST":
        yield Path(__file__).parent / "datasets" / source.folders[0]
    if name == "FMNIST":
        yield DEBIAN_FOLDER
    yield _cache(source)


def _cache(source: Source) -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("lvkam")) / source.folders[0]


def _download(name: str, source: Source, file: str, places: list[Path]) -> Path:
    """Fetch a file, or the archive that holds it, from the first mirror that has the right bytes."""
    import filelock
    import pooch
    import requests

    folder = _cache(source)
    offered = source.archive or (f"{file}.gz" if source.read is read_idx else file)
    expected = source.checksums[source.archive or file]
    goal = folder / (file if source.archive else offered)
    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".{offered}.lock"):
            if goal.is_file():  # another process was quicker
                return goal
            for mirror in source.mirrors:
                url = f"{mirror}{offered}"
                try:
                    fetched = Path(pooch.retrieve(url, None, fname=f".{offered}.part", path=folder, progressbar=True))
                except (OSError, requests.RequestException) as error:
                    tried.append(f"{url} ({type(error).__name__})")
                    continue
                if _checksum(fetched, expected, unzip=source.archive is None) != expected:
                    fetched.unlink()
                    tried.append(f"{url} (wrong bytes)")
                elif source.archive is None:
                    return fetched.replace(goal)
                else:
                    _unpack(fetched, folder, files_of(name))
                    fetched.unlink()
                    return goal
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{name}: {folder} cannot be written ({getattr(error, 'strerror', None) or error})") from error
    looked = ", ".join(str(place) for place in places)
    raise DataError(
        f"{name}: {file} is missing. Looked in {looked}; tried {', '.join(tried) or 'no download'}. "
        f"Put {offered if source.archive is None else file} into one of these folders, "
        "or name another with --data-dir or LVKAM_DATA_DIR"
    )


def _unpack(archive: Path, folder: Path, names: list[str]) -> None:
    """Write files of an archive, whatever folder they have there, into this folder."""
    with tarfile.open(archive) as content:
        members = {Path(member.name).name: member for member in content if member.isfile()}
        for name in names:
            stream = content.extractfile(members[name])
            assert stream is not None
            with stream, write_atomically(folder / name) as temporary:
                temporary.write_bytes(stream.read())


def _checksum(path: Path, like: str, *, unzip: bool = True) -> str | None:
    """The checksum of a file's bytes, of the kind of another one; uncompressed if it is gzip."""
    kind = like.partition(":")[0]
    try:
        with path.open("rb") as raw:
            zipped = unzip and raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            # a file reads into buffers, which its stub leaves out
            return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"  # type: ignore[arg-type]
    except (EOFError, OSError, zlib.error):
        return None  # damaged gzip: wrong bytes, as the caller says
