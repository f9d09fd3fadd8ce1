"""Shared by all tests: small models, random streams, the folder with the real data."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import platformdirs
import pooch
import pytest
import torch

from lvkam import sources
from lvkam.build import layers_of, problem_of_compiling
from lvkam.config import Config, parse_config
from lvkam.generator import OUTPUT_ACTIVATIONS, KANGenerator
from lvkam.model import LVKAM
from lvkam.prior import REFERENCE_DENSITIES, MixturePrior
from lvkam.univariate import FunctionFamily

# The tensors are small and the tests run side by side: threads would only wait for one another.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def require_compiler() -> None:
    """Skip the test, with the reason, where nothing can be compiled."""
    problem = problem_of_compiling()
    if problem is not None:
        pytest.skip(f"nothing can be compiled here: {problem}")


def small_prior(
    latent_dim: int = 2,
    num_components: int = 3,
    hidden: tuple[int, ...] = (),
    reference: str = "uniform",
    family: FunctionFamily | None = None,
    points: int = 256,
    seed: int = 0,
) -> MixturePrior:
    return MixturePrior(
        latent_dim, num_components, hidden, family or FunctionFamily(),
        REFERENCE_DENSITIES[reference], points, stream(seed),
    )  # fmt: skip


def small_model(prior: MixturePrior, data_dim: int = 5, likelihood: str = "bernoulli", seed: int = 1) -> LVKAM:
    generator = KANGenerator([prior.latent_dim, 4, data_dim], FunctionFamily(grid_size=5), stream(seed))
    activation = OUTPUT_ACTIVATIONS["sigmoid" if likelihood == "bernoulli" else "none"]
    assert likelihood in {"bernoulli", "l2"}
    return LVKAM(prior, generator, "l2" if likelihood == "l2" else "bernoulli", activation)


def numbers_in(model: LVKAM) -> list[int]:
    """How many weights each layer of the generator has."""
    return [layer.weight().numel() for path, layer in layers_of(model) if path.startswith("generator")]


def small_overrides() -> list[str]:
    """`--set` values of a model that trains in a second."""
    return [
        "MIX_PRIOR.layer_widths=3, 4", "MIX_PRIOR.grid_size=5", "MIX_PRIOR.quadrature_points=64",
        "KAN_LIKELIHOOD.expert_widths=4, 6", "KAN_LIKELIHOOD.grid_size=5", "GRID_UPDATING.num_grid_updating_samples=32",
        "TRAINING.batch_size=25", "TRAINING.MC_expectation_sample_size=16",
        "TRAINING.N_train=200", "TRAINING.N_test=20", "TRAINING.num_generated_samples=30",
        "TRAINING.batch_size_for_gen=20", "TRAINING.N_epochs=2", "TRAINING.img_resize=7, 7",
    ]  # fmt: skip


def small_config(*overrides: str) -> Config:
    return parse_config("", "test", [*small_overrides(), *overrides])


def table_overrides(dataset: Path) -> list[str]:
    """`--set` values of a model of a table's rows that trains in a second."""
    return [
        *small_overrides(), f"TRAINING.dataset={dataset}", "TRAINING.img_resize=native",
        "KAN_LIKELIHOOD.likelihood_model=l2", "KAN_LIKELIHOOD.output_activation=none",
        "KAN_LIKELIHOOD.generator_variance=0.5", "TRAINING.N_epochs=1",
    ]  # fmt: skip


def write_table(path: Path, rows: int = 230, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """A CSV file of correlated columns, two modes in one of them: what it holds."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, 2))
    mode = rng.choice([-3.0, 3.0], rows)
    table = scale * np.stack([z[:, 0], 0.5 * z[:, 0] + z[:, 1] + 40, 100 * (mode + 0.3 * rng.standard_normal(rows))], 1)
    path.write_text("length,width,$speed$\n" + "".join(",".join(map(repr, row)) + "\n" for row in table.tolist()))
    return table


def fenced(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language on a page of Markdown."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def h5_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an HDF5 file by their paths in it, read by h5py alone."""
    arrays: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = np.asarray(item[()])

    with h5py.File(path) as file:
        file.visititems(keep)
    return arrays


def reseal(path: Path) -> None:
    """Make the seal of a sealed HDF5 file fit its bytes again, so that what is within it is looked at."""
    content = path.read_bytes()
    seal = f"lvkam: sealed HDF5 file of {len(content)} bytes\n"
    seal += f"sha256 of all after byte 512: {hashlib.sha256(content[512:]).hexdigest()}\n"
    path.write_bytes(seal.encode().ljust(512, b"\0") + content[512:])


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def few_of_mnist(folder: Path, num_train: int, num_test: int) -> Path:
    """A data folder with an MNIST of some of its images, drawn: its first test images are easier than the others."""
    (raw := folder / "MNIST" / "raw").mkdir(parents=True)
    for split, prefix, number in (("train", "train", num_train), ("test", "t10k", num_test)):
        images = sources.arrays_of("MNIST")[split]
        chosen = np.random.default_rng(0).permutation(images.shape[0])[:number]
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images.read(0, images.shape[0])[chosen]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(sources.labels_of("MNIST", split)[chosen]))
    return folder


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail, rather than wait for ever."""

    def stop(*_: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, none of the machine's own folders of data, no network: the folder of all data sets in it."""

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.delenv("LVKAM_DATA_DIR", raising=False)
    monkeypatch.setattr(sources, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(pooch, "retrieve", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path / "cache" / "lvkam"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds FashionMNIST, laid out as torchvision does."""
    # no part of the repository: where its files lie beside it, the tests that need them run too
    folder = Path(os.environ.get("LVKAM_DATA_DIR") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "FashionMNIST" / "raw").is_dir():
        pytest.skip("FashionMNIST is not here: set LVKAM_DATA_DIR to a folder that holds FashionMNIST/raw")
    return folder
