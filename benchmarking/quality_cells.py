"""The cells of `benchmarking.quality` in a file, a JSON object a line, so that a run can be stopped and taken up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from benchmarking.harness import machine
from lvkam.errors import InputError
from lvkam.writing import write_atomically, write_text

CONTROLS = "controls"
"""Stands for a model where real images and noise are measured."""
SHOWN = 49
"""Samples of each model that are kept to be shown."""
Record = dict[str, Any]


class Place(NamedTuple):
    """Which cell."""

    model: str
    data: str
    size: int
    """Pixels each way."""
    seconds: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.data}-{self.size}-{self.seconds:g}s-{self.seed}"

    def __str__(self) -> str:
        where = f"{self.data} {self.size}x{self.size}, {self.model}"
        return where if self.model == CONTROLS else f"{where}, {self.seconds:g} s, seed {self.seed}"


def place_of(record: Record) -> Place:
    return Place(*(record[field] for field in Place._fields))


class Cells:
    """All that have been measured.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, folder: Path):
        self.path, self.folder = folder / "cells.jsonl", folder / "quality-samples"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        try:
            self.records: list[Record] = [json.loads(line) for line in lines]
            self.places = {place_of(record): record for record in self.records}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: is not a file of cells ({error})") from error

    def holds(self, place: Place, settings: Record) -> bool:
        """Whether a cell is there; raises InputError if it was measured in another way."""
        if place not in self.places:
            return False
        before = self.places[place]["settings"]
        if before != settings:
            differ = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
            words = ", ".join(f"{key} = {before.get(key)}, now {settings.get(key)}" for key in differ)
            raise InputError(f"{self.path}: {place} was measured with {words}; give another --output, or remove it")
        return True

    def add(self, place: Place, settings: Record, figures: Record, samples: Tensor) -> None:
        """Keep a cell's figures, and its first samples (N, D): the file is there before and after, or with it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pixels = (255 * samples[:SHOWN].clamp(0, 1)).round().byte().view(-1, place.size, place.size).numpy()
        with write_atomically(self.folder / f"{place.name}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, samples=pixels)
        record = {**place._asdict(), "settings": settings, "machine": machine(), **figures}
        self.records.append(record)
        self.places[place] = record
        write_text(self.path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in self.records))

    def samples(self, place: Place) -> np.ndarray:
        """Those kept of a cell, (N, H, W), in [0, 1]."""
        with np.load(self.folder / f"{place.name}.npz") as arrays:
            return arrays["samples"] / np.float32(255)
