"""What a checkpoint is used for gives the figures and images that its model gives by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvkam.build import load_model
from lvkam.checkpoint import CheckpointError
from lvkam.data import DataError, load_dataset
from lvkam.evidence import annealed_log_evidence, importance_log_evidence
from lvkam.experiment import run_experiment
from lvkam.inference import evaluate_checkpoint, plot_temperatures, sample_checkpoint
from lvkam.run_folder import OutputError
from lvkam.training import random_stream
from tests.conftest import h5_arrays, small_config


@pytest.fixture(scope="module", params=["bernoulli", "l2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    likelihood = [
        f"KAN_LIKELIHOOD.likelihood_model={request.param}",
        "KAN_LIKELIHOOD.generator_variance=0.3",
        "TRAINING.N_epochs=1",
    ]
    config = small_config(*likelihood)
    return run_experiment(config, tmp_path_factory.mktemp("inference") / "run", say=lambda _: None) / "ckpt.h5"


def test_the_evaluation_is_that_of_the_model(checkpoint: Path) -> None:
    found = evaluate_checkpoint(checkpoint, 50, 500)
    images = load_dataset("MNIST", 1, 50, (7, 7)).test
    evidence = importance_log_evidence(load_model(checkpoint), images, 500, random_stream(1, "evaluation"))
    assert found["nll_nats"] == -evidence.log_evidence.mean().item()
    assert found["nll_stderr"] == evidence.mean_standard_error > 0
    assert found["bits_per_dim"] == pytest.approx(found["nll_nats"] / 49 / math.log(2))
    assert found["effective_sample_size"] == pytest.approx(evidence.effective_sample_size.mean().item())
    assert (found["num_images"], found["num_samples"], found["estimator"]) == (50, 500, "importance")
    assert evaluate_checkpoint(checkpoint, 50, 500, seed=2)["nll_nats"] != found["nll_nats"]


def test_the_annealed_evaluation_is_that_of_the_model(checkpoint: Path) -> None:
    found = evaluate_checkpoint(checkpoint, 4, 6, estimator="annealed", num_temps=7, moves=2)
    images = load_dataset("MNIST", 1, 4, (7, 7)).test
    rng = random_stream(1, "evaluation")
    evidence = annealed_log_evidence(load_model(checkpoint), images, 6, rng, num_temps=7, moves=2)
    assert found["nll_nats"] == -evidence.log_evidence.mean().item()
    assert found["nll_stderr"] == evidence.mean_standard_error > 0
    assert found["acceptance"] == evidence.acceptance
    assert (found["num_samples"], found["num_temps"], found["estimator"]) == (6, 7, "annealed")


def test_temperatures_are_drawn_and_nothing_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")):
        assert plot_temperatures(checkpoint, tmp_path / name, num_images=2).read_bytes()[:5] in {
            start,
            start + b"\r",
            start + b"-",
        }
    with pytest.raises(OutputError, match=r"a\.png: exists already"):
        plot_temperatures(checkpoint, tmp_path / "a.png")
    with pytest.raises(OutputError, match=r"a\.jpg: must end in \.png, \.pdf or \.svg"):
        plot_temperatures(checkpoint, tmp_path / "a.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PDF", "a.png", "a.svg"]


def test_the_figures_of_each_image_make_up_the_mean(checkpoint: Path, tmp_path: Path) -> None:
    found = evaluate_checkpoint(checkpoint, 20, 100, per_image=tmp_path / "images.csv")
    with (tmp_path / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Image"] for row in rows] == [str(i) for i in range(20)]
    mean = np.mean([float(row["Log Evidence (nats)"]) for row in rows])
    assert -mean == pytest.approx(found["nll_nats"], abs=1e-6)
    with pytest.raises(OutputError, match=r"images\.csv: exists already"):
        evaluate_checkpoint(checkpoint, 20, 100, per_image=tmp_path / "images.csv")


def test_more_samples_begin_with_the_same_ones(checkpoint: Path, tmp_path: Path) -> None:
    few, _ = sample_checkpoint(checkpoint, 7, tmp_path / "few.h5")
    many, _ = sample_checkpoint(checkpoint, 45, tmp_path / "many.h5")
    own = h5_arrays(checkpoint.with_name("generated_images.h5"))["samples"]
    assert np.array_equal(h5_arrays(many)["samples"][:30], own)
    assert np.array_equal(h5_arrays(few)["samples"], own[:7])


def test_samples_are_the_runs_own_unless_another_seed_is_given(checkpoint: Path, tmp_path: Path) -> None:
    output, grid = sample_checkpoint(checkpoint, 30, tmp_path / "a.h5")
    assert (output, grid) == (tmp_path / "a.h5", tmp_path / "a.png")
    own = h5_arrays(checkpoint.with_name("generated_images.h5"))["samples"]
    drawn = h5_arrays(output)
    assert set(drawn) == {"samples"}
    np.testing.assert_array_equal(drawn["samples"], own)
    with Image.open(grid) as picture:
        assert picture.format == "PNG"
    other, _ = sample_checkpoint(checkpoint, 30, tmp_path / "b.h5", tmp_path / "c.picture", seed=2, save_latents=True)
    assert (tmp_path / "c.picture").is_file()
    arrays = h5_arrays(other)
    assert not np.array_equal(arrays["samples"], own)
    with torch.no_grad():
        decoded = load_model(checkpoint).decode(torch.from_numpy(arrays["latents"])).clamp(0, 1)
    # matrix products of 30 rows at once, of 20 and 10 before
    np.testing.assert_allclose(arrays["samples"].reshape(30, 49), decoded.numpy(), atol=1e-6)


def test_nothing_is_overwritten_unasked(checkpoint: Path, tmp_path: Path) -> None:
    output, grid = sample_checkpoint(checkpoint, 3, tmp_path / "a.h5")
    with pytest.raises(OutputError, match=r"a\.h5: exists already; give --overwrite"):
        sample_checkpoint(checkpoint, 4, output)
    output.unlink()
    with pytest.raises(OutputError, match=r"a\.png: exists already; give --overwrite"):
        sample_checkpoint(checkpoint, 4, output)
    assert not output.exists()
    sample_checkpoint(checkpoint, 4, output, overwrite=True)
    assert len(h5_arrays(output)["samples"]) == 4
    assert grid.is_file()


def test_bad_places_and_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, Path("/"), Path(".")):
        with pytest.raises(OutputError, match=r"is a folder"):
            sample_checkpoint(checkpoint, 1, folder)
    with pytest.raises(OutputError, match=r"cannot be written"):
        sample_checkpoint(checkpoint, 1, tmp_path / ("a" * 300))
    with pytest.raises(OutputError, match=r"/proc/a\.h5: cannot be written"):
        sample_checkpoint(checkpoint, 1, Path("/proc/a.h5"))
    with pytest.raises(OutputError, match=r"is the checkpoint itself"):
        sample_checkpoint(checkpoint, 1, checkpoint, tmp_path / "a.png", overwrite=True)
    with pytest.raises(OutputError, match=r"is the checkpoint itself"):
        evaluate_checkpoint(checkpoint, 1, 2, per_image=checkpoint, overwrite=True)
    with pytest.raises(OutputError, match=r"there is no folder .*nowhere"):
        sample_checkpoint(checkpoint, 1, tmp_path / "nowhere" / "a.h5")
    with pytest.raises(OutputError, match=r"must be different files"):
        sample_checkpoint(checkpoint, 1, tmp_path / "a.png")
    with pytest.raises(CheckpointError, match=r"missing\.h5: no such file"):
        sample_checkpoint(tmp_path / "missing.h5", 1, tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"MNIST has 10000 test images, fewer than the 10001 asked for"):
        evaluate_checkpoint(checkpoint, 10001, 2)
    assert list(tmp_path.iterdir()) == []
