"""A trained model that is looked at: what several pictures or charts of it need is computed once, and named alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lvkam.build import LoadedModel
from lvkam.data import Samples
from lvkam.errors import InputError
from lvkam.experiment import draw_samples
from lvkam.inference import load_split
from lvkam.inspection import (
    InspectedLayer,
    Posterior,
    PriorDensities,
    activities,
    inspect_layers,
    posterior,
    prior_densities,
)
from lvkam.training import random_stream

DRAWS = 1024
"""Draws of the prior that functions are looked at with, and pairs of draws that tell how active a coordinate is."""

POSTERIOR_SAMPLES = 20000
"""Draws of the prior that are weighted for a posterior."""


class PictureError(InputError):
    """A picture that cannot be made of this checkpoint."""


@dataclass(frozen=True)
class Subject:
    """A loaded checkpoint, and what is asked of it; what several pictures need is computed once."""

    path: Path
    loaded: LoadedModel
    seed: int
    data: str | None = None
    data_dir: Path | None = None
    num_images: int | None = None
    coordinates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        latent_dim = self.loaded.model.prior.latent_dim
        if beyond := [q for q in self.coordinates if q >= latent_dim]:
            raise PictureError(f"{self.path}: coordinate {beyond[0]}: its model has 0 to {latent_dim - 1}")

    @property
    def is_table(self) -> bool:
        """Whether it is a model of rows."""
        return self.loaded.checkpoint.standardisation is not None

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W) or (H, W, C); None of a table."""
        return None if self.is_table else self.loaded.checkpoint.image_shape

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a table's columns."""
        of = self.loaded.checkpoint.standardisation
        return of.columns if of is not None else ()

    def images(self, x: np.ndarray) -> np.ndarray:
        """(..., D) as images; rows of a table as they are."""
        return x if self.is_table else x.reshape(*x.shape[:-1], *self.loaded.checkpoint.image_shape)

    def rng(self, index: int) -> torch.Generator:
        """A stream of random numbers of its own for each use."""
        return random_stream(self.seed, "inspection", index)

    @cached_property
    def densities(self) -> PriorDensities:
        """Of the prior."""
        return prior_densities(self.loaded.model.prior)

    @cached_property
    def activities(self) -> np.ndarray:
        """Of the latent coordinates, (Q,)."""
        return activities(self.loaded.model, DRAWS, self.rng(0))

    @cached_property
    def layers(self) -> list[InspectedLayer]:
        """All layers, with their inputs."""
        model = self.loaded.model
        return inspect_layers(model, model.prior.sample(DRAWS, self.rng(1)))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The coordinates that were named, or all, the most active first."""
        return self.coordinates or tuple(np.argsort(-self.activities, kind="stable").tolist())

    def posterior(self, x: Tensor) -> Posterior:
        """The posterior of images, or rows, (B, D)."""
        return posterior(self.loaded.model, x, POSTERIOR_SAMPLES, self.rng(3))

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The model's first samples of the seed, as it sees data, (count, D), and their latents, (count, Q)."""
        _, config, model = self.loaded
        samples, latents = draw_samples(model, config, count, self.seed, of_table=self.is_table)
        return samples.numpy(), latents.double().numpy()

    def output_name(self, layer: str, index: int) -> str:
        """What an output of a layer is called."""
        if layer == f"prior.layers.{len(self.loaded.model.prior.layers) - 1}":
            return f"component {index}"
        if layer != self.layers[-1].name:
            return f"hidden {index}"
        if self.image_shape is None:
            return self.columns[index]
        place = np.unravel_index(index, self.image_shape)
        return f"pixel ({', '.join(map(str, place))})"

    def test(self, default: int) -> Samples:
        """The first test images, or rows."""
        return load_split(self.path, self.loaded, self.data, self.num_images or default, self.data_dir)

    def training(self) -> Tensor:
        """The images that it was trained with, (N, D)."""
        count = self.loaded.config.training.num_train
        return load_split(self.path, self.loaded, self.data, count, self.data_dir, "train").x
