"""How good a model's samples are: as far from real test images as their metrics say, beside controls.

A figure alone says little. So the same metrics, on as many points and against the same test images, are taken of real
training images, the best that can be; of these without one class, which recall and coverage notice; and of noise.

Letters: N samples, real or generated; D data dimensions, F features.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lvkam.build import LoadedModel
from lvkam.data import binarise, load_labels
from lvkam.errors import DataError, InputError
from lvkam.experiment import draw_samples, tell
from lvkam.features import (
    SMALLEST_SIDE,
    FeatureSet,
    inception_features,
    labelled_classifier,
    lenet_features,
    pca_features,
    split_for_classifier,
)
from lvkam.metrics import NEIGHBOURS, Estimate, Manifolds, fid, kid, manifolds, overlap
from lvkam.sources import SOURCES
from lvkam.training import random_stream

DISTANCES, OVERLAPS = {"kid": kid, "fid": fid}, Manifolds._fields
METRICS = (*DISTANCES, *OVERLAPS)
NUM_COMPARED = 2000
"""N, unless told."""
MISSING_CLASS = {"FMNIST": 1}
"""The class that the control leaves out, 0 elsewhere: one that lies apart, which alone is sure to lower recall."""


class Row(NamedTuple):
    """One figure."""

    set: str
    """Whose: the model's, or a control's."""
    features: str
    metric: str
    estimate: Estimate


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics asked for, `all` for all of them; raises InputError for an unknown name."""
    known = ("nll", *METRICS)
    unknown = [name for name in names if name not in known]
    if list(names) == ["all"]:
        return known
    if unknown or not names:
        raise InputError(f"metrics: {', '.join(unknown) or 'none'}; must be all, or out of {', '.join(known)}")
    return tuple(name for name in known if name in names)


class Reals(NamedTuple):
    """What generated samples are compared with, (N, D) each, and how all are seen."""

    test: Tensor
    controls: dict[str, Tensor]
    features: list[FeatureSet]
    accuracy: float | None
    """Of the classifier whose features are the first, if there is one."""


def real_images(
    test: Tensor,
    train: Tensor | None,
    *,
    data: str | None,
    image_shape: tuple[int, ...],
    seed: int,
    bits: bool = False,
    num_compared: int | None = None,
    data_dir: Path | None = None,
) -> Reals:
    """Real images, drawn out of the whole test split, whose first ones may be easier, as MNIST's are; and controls.

    Args:
        test: all that the model has not seen, (n, D).
        train: training ones, (n, D); if None, half of `test` takes their place.
        data: name of the data set, if it is one known by name: its labels are read.
        image_shape: (H, W) or (H, W, C); (D,) of a table.
        seed: of choices and noise.
        bits: whether the images are binarised; then the noise is too.
        num_compared: N; `NUM_COMPARED`, or as many as there are, if None.
        data_dir: where to look for the data first.

    Raises:
        DataError: there are fewer images or rows than asked for, or too few for neighbours.
        FeaturesError: the cached classifier is damaged.
    """
    rng = random_stream(seed, "quality")
    test = test[torch.randperm(len(test), generator=rng)]
    if train is None:
        train, test = test.tensor_split(2)
    features, labels, classifier = [pca_features(train)], None, None
    if data in SOURCES and min(image_shape[:2]) >= SMALLEST_SIDE:
        classifier = labelled_classifier(data, image_shape, data_dir, bits=bits, say=tell)
        features.insert(0, lenet_features(classifier))
        _, held = split_for_classifier(len(train))
        labels, train = load_labels(data, "train", len(train), data_dir)[held], train[held]
    of_table = len(image_shape) == 1
    if not of_table and (inception := inception_features(image_shape)) is not None:
        features.append(inception)
    order = torch.randperm(len(train), generator=rng)
    controls = {"real train": train[order]}
    if labels is not None:
        missing = MISSING_CLASS.get(str(data), 0)
        controls[f"without class {missing}"] = train[order][labels[order] != missing]
    n = _number(num_compared, min(map(len, (test, *controls.values()))))
    low, high = (train.amin(0), train.amax(0)) if of_table else (0, 1)
    noise = low + (high - low) * torch.rand(n, test.shape[1], generator=rng)
    controls = {name: x[:n] for name, x in controls.items()} | {"noise": binarise(noise, rng) if bits else noise}
    return Reals(test[:n], controls, features, None if classifier is None else classifier.accuracy)


def measure_quality(
    loaded: LoadedModel,
    test: Tensor,
    train: Tensor | None,
    names: Sequence[str],
    *,
    data: str | None,
    num_compared: int | None = None,
    seed: int | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Metrics of a model's samples and of the controls: part of the object of `lvkam evaluate --json`.

    Arguments and errors are those of `real_images`, with `names` out of `METRICS`; the seed is the run's own if None.
    """
    checkpoint, config, model = loaded
    seed, of_table = checkpoint.seed if seed is None else seed, checkpoint.standardisation is not None
    bits = config.training.binarize != "none"
    reals = real_images(
        test, train, data=data, image_shape=checkpoint.image_shape, seed=seed, bits=bits, num_compared=num_compared,
        data_dir=data_dir,
    )  # fmt: skip
    generated, _ = draw_samples(model, config, len(reals.test), seed, of_table=of_table)
    samples = generated if of_table else generated.clamp(0, 1)
    samples = binarise(samples, random_stream(seed, "generation", 1)) if bits else samples
    rows = measure_sets(reals, {"model": samples, **reals.controls}, names, seed)
    return {
        # the model's are the first of all
        **{row.metric: row.estimate.value for row in rows[: len(names)]},
        "features": reals.features[0].name,
        "classifier_accuracy": reals.accuracy,
        "num_compared": len(reals.test),
        "metrics": [
            {"set": row.set, "features": row.features, "metric": row.metric, **row.estimate._asdict()} for row in rows
        ],
    }


def _number(asked: int | None, available: int) -> int:
    found = min(NUM_COMPARED, available) if asked is None else asked
    if found > available:
        raise DataError(f"{found} samples cannot be compared: there are only {available} real ones of each kind")
    if found < NEIGHBOURS + 2:
        raise DataError(f"{found} samples are too few to compare: at least {NEIGHBOURS + 2}")
    return found


def measure_sets(reals: Reals, sets: Mapping[str, Tensor], names: Sequence[str], seed: int) -> list[Row]:
    """Each metric in `names` of each set of samples, (N, D), on each kind of features; `seed` is the bootstrap's."""
    rows = []
    bar = tqdm(total=len(reals.features) * len(sets), desc="metrics", leave=False, disable=not sys.stderr.isatty())
    with bar:
        for see in reals.features:
            x = see.of(reals.test)
            for name, samples in sets.items():
                y = see.of(samples)
                points = manifolds(x, y)._asdict() if set(names) & set(OVERLAPS) else {}
                for metric in names:
                    # a metric takes the same real images anew for every set, and whatever others are asked for
                    rng = random_stream(seed, "quality", 1 + METRICS.index(metric))
                    found = overlap(points[metric], rng) if metric in points else DISTANCES[metric](x, y, rng)
                    rows.append(Row(name, see.name, metric, found))
                bar.update()
    return rows
