"""Metrics of samples on the real data: the controls come out in order, and what cannot be measured is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lvkam import features, metrics, quality
from lvkam.build import load_checkpoint
from lvkam.data import load_samples, static_bits
from lvkam.errors import DataError, InputError
from lvkam.experiment import draw_samples, run_experiment
from lvkam.inference import evaluate_checkpoint
from lvkam.quality import METRICS, check_metrics
from lvkam.training import random_stream
from tests.conftest import few_of_mnist, small_config, table_overrides, write_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config("TRAINING.N_epochs=1", "TRAINING.img_resize=14, 14")
    return run_experiment(config, tmp_path_factory.mktemp("quality") / "run", say=lambda _: None) / "ckpt.h5"


def table_of(found: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["set"], row["features"].partition("-")[0], row["metric"]): row for row in found["metrics"]}


@pytest.mark.parametrize("seeds", [(1,), pytest.param((1, 2, 3), marks=pytest.mark.slow)])
def test_the_controls_come_out_in_order(
    run: Path, seeds: tuple[int, ...], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = few_of_mnist(tmp_path / "data", 12_000, 3000)
    if seeds == (1,):  # with features of so few steps noise passes for precise samples by other seeds
        monkeypatch.setattr(features, "STEPS", 250)
    monkeypatch.setattr(metrics, "REPLICATES", 100)
    told = evaluate_checkpoint(run, 5, 50, metrics=["all"], num_generated=600, data_dir=few)
    for seed in seeds:
        found = evaluate_checkpoint(run, metrics=METRICS, num_generated=600, seed=seed, data_dir=few)
        if seed == 1:  # the run's own, and whatever else is measured
            assert {**told, **found} == told
            assert set(told) - set(found) >= {"nll_nats", "num_images"}
        assert (found["num_compared"], found["compared_with"]) == (600, "the test split")
        assert found["features"].startswith("lenet-")
        assert found["classifier_accuracy"] > 0.9
        json.dumps(found, allow_nan=False)
        rows = table_of(found)
        assert len(rows) == len(found["metrics"]) == 4 * 2 * 6
        for see in ("lenet", "pca50"):
            real, without, noise, model = (
                {metric: rows[name, see, metric] for metric in METRICS}
                for name in ("real train", "without class 0", "noise", "model")
            )
            for metric in ("kid", "fid"):
                assert real[metric]["low"] <= 0 <= real[metric]["high"], (seed, see, metric)
                assert real[metric]["corrected"] < without[metric]["corrected"], (seed, see, metric)
                assert noise[metric]["low"] > 3 * without[metric]["high"], (seed, see, metric)
            for metric in ("recall", "coverage"):
                assert noise[metric]["value"] < without[metric]["value"] < real[metric]["value"] - 0.02
            for metric in ("precision", "density"):
                assert noise[metric]["high"] < min(real[metric]["low"], without[metric]["low"])
            if see == "lenet":
                assert {metric: found[metric] for metric in METRICS} == {m: model[m]["value"] for m in METRICS}

    # a figure is that of the samples that `lvkam sample` draws
    loaded = load_checkpoint(run)
    test = load_samples("MNIST", None, (14, 14), few).x
    real = test[torch.randperm(len(test), generator=random_stream(1, "quality"))][:600]
    samples = draw_samples(loaded.model, loaded.config, 600, 1)[0].clamp(0, 1)
    see = features.lenet_features(features.labelled_classifier("MNIST", (14, 14))).of
    assert told["kid"] == metrics.kid(see(real), see(samples), random_stream(1, "quality", 1)).value


def test_a_model_of_bits_is_compared_in_bits(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cache.exists()
    monkeypatch.setattr(features, "STEPS", 20)
    few = few_of_mnist(tmp_path / "data", 1000, 200)
    config = small_config("TRAINING.N_epochs=1", "TRAINING.binarize=static")
    path = run_experiment(config, tmp_path / "run", data_dir=few, say=lambda _: None) / "ckpt.h5"
    compared: dict[str, torch.Tensor] = {}
    measure = quality.measure_sets

    def remember(reals: quality.Reals, sets: dict[str, torch.Tensor], *arguments: Any) -> list[quality.Row]:
        compared.update(sets, real=reals.test)
        return measure(reals, sets, *arguments)

    monkeypatch.setattr(quality, "measure_sets", remember)
    found = evaluate_checkpoint(path, metrics=["kid"], num_generated=100, data_dir=few)
    # on features of a classifier of bits
    assert found["features"] == features.labelled_classifier("MNIST", (7, 7), bits=True).name
    assert [p.name for p in (cache / "features").glob("*.h5")] == ["MNIST-7x7-bits.h5"]
    assert compared.keys() == {"model", "real train", "without class 0", "noise", "real"}
    assert all(set(x.unique().tolist()) == {0, 1} for x in compared.values())
    bits = static_bits(load_samples("MNIST", None, (7, 7), few).x, "test")
    assert torch.equal(compared["real"], bits[torch.randperm(200, generator=random_stream(1, "quality"))][:100])
    # samples are drawn from their means: 4,900 bits, so that a z beyond 6 is one in 10^9
    loaded = load_checkpoint(path)
    p = draw_samples(loaded.model, loaded.config, 100, 1)[0].double()
    assert abs((compared["model"].double() - p).sum() / (p * (1 - p)).sum().sqrt()) < 6


def test_of_ones_own_data_principal_components_are_compared(tmp_path: Path, cache: Path) -> None:
    write_table(path := tmp_path / "a.csv")
    table = run_experiment(small_config(*table_overrides(path)), tmp_path / "run", say=lambda _: None) / "ckpt.h5"
    found = evaluate_checkpoint(table, metrics=["fid", "recall"], data=str(path))
    assert (found["features"], found["num_compared"], found["classifier_accuracy"]) == ("pca3", 30, None)
    assert [row["set"] for row in found["metrics"][::2]] == ["model", "real train", "noise"]
    write_table(other := tmp_path / "b.csv", rows=80, seed=1)  # in one piece that the model has not seen
    assert evaluate_checkpoint(table, metrics=["kid"], data=str(other))["num_compared"] == 40
    with pytest.raises(DataError, match=r"\A41 samples cannot be compared: there are only 40 real ones"):
        evaluate_checkpoint(table, metrics=["kid"], data=str(other), num_generated=41)
    with pytest.raises(DataError, match=r"\A6 samples are too few to compare: at least 7"):
        evaluate_checkpoint(table, metrics=["kid"], data=str(other), num_generated=6)
    assert not cache.exists()


def test_metrics_are_known_by_name(tmp_path: Path) -> None:
    assert check_metrics(["all"]) == ("nll", *METRICS)
    assert check_metrics(["recall", "kid"]) == ("kid", "recall")
    message = r"\Ametrics: fud; must be all, or out of nll, kid, fid, precision, recall, density, coverage\Z"
    with pytest.raises(InputError, match=message):
        evaluate_checkpoint(tmp_path / "missing.h5", metrics=["kid", "fud"])
    with pytest.raises(InputError, match=r"the figures of each image are of nll"):
        evaluate_checkpoint(tmp_path / "missing.h5", metrics=["kid"], per_image=tmp_path / "a.csv")
