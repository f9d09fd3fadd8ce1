"""Shared by all tests: small models, random streams, the folder with the real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lvkam.generator import OUTPUT_ACTIVATIONS, KANGenerator
from lvkam.model import LVKAM
from lvkam.prior import REFERENCE_DENSITIES, MixturePrior
from lvkam.univariate import FunctionFamily

REPOSITORY = Path(__file__).parents[1]


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds FashionMNIST, laid out as torchvision does."""
    folder = Path(os.environ.get("LVKAM_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "FashionMNIST" / "raw").is_dir():
        pytest.skip("FashionMNIST is not here: set LVKAM_DATA_DIR to a folder that holds FashionMNIST/raw")
    return folder
