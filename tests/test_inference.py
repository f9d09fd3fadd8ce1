"""What a checkpoint is used for gives the figures and images that its model gives by hand."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import multivariate_normal

from benchmarking.tables import PRESET, Mixture, area_under_curve, scores
from lvkam import load_config
from lvkam.build import load_checkpoint, load_model
from lvkam.checkpoint import CheckpointError, read_checkpoint
from lvkam.data import Samples, load_dataset, static_bits
from lvkam.errors import DataError
from lvkam.evidence import annealed_log_evidence, importance_log_evidence
from lvkam.experiment import load_config_dataset, run_experiment
from lvkam.inference import evaluate_checkpoint, load_split, sample_checkpoint
from lvkam.pictures import plot_checkpoint
from lvkam.run_folder import OutputError
from lvkam.standardisation import Standardisation
from lvkam.subject import Subject
from lvkam.training import random_stream
from lvkam.writing import WriteError
from tests.conftest import h5_arrays, small_config, table_overrides, within, write_table


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
    with pytest.raises(WriteError, match=r"/proc/a\.h5: cannot be written"):
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


# --- bits


@pytest.fixture(scope="module", params=["static", "dynamic"])
def of_bits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(f"TRAINING.binarize={request.param}", "TRAINING.N_epochs=1", "TRAINING.seed=3")
    return run_experiment(config, tmp_path_factory.mktemp("bits") / "run", say=lambda _: None) / "ckpt.h5"


def test_a_model_of_bits_is_evaluated_on_those_that_its_run_tested(of_bits: Path, tmp_path: Path) -> None:
    grey = load_dataset("MNIST", 200, 40, (7, 7))
    bits = static_bits(grey.test, "test")
    loaded = load_checkpoint(of_bits)
    assert torch.equal(load_config_dataset(loaded.config).test, bits[:20])
    test = load_split(of_bits, loaded, None, 40, None)
    assert (test.scaling, torch.equal(test.x, bits)) == ("values divided by 255, binarised", True)
    subject = Subject(of_bits, loaded, 1)
    assert torch.equal(subject.test(40).x, bits)
    assert torch.equal(subject.training(), static_bits(grey.train, "train"))
    assert load_split(of_bits, loaded, test, None, None) is not test
    assert load_split(of_bits, loaded, test, None, None).scaling == test.scaling  # said once
    found = evaluate_checkpoint(of_bits, 20, 2048)
    evidence = importance_log_evidence(loaded.model, bits[:20], 2048, random_stream(3, "evaluation"))
    assert found["nll_nats"] == -evidence.log_evidence.mean().item()
    assert found["bits_per_dim"] == pytest.approx(found["nll_nats"] / 49 / math.log(2))
    assert found["binarize"] == loaded.config.training.binarize
    # the figure of the run's last epoch, by other draws of the prior: twice the same error
    with (of_bits.parent / "loss.csv").open(newline="") as file:
        told = float(list(csv.DictReader(file))[-1]["Test NLL"])
    assert abs(found["nll_nats"] - told) < 6 * math.sqrt(2) * found["nll_stderr"]
    # grey images given are binarised alike, bits stay what they are
    np.savez(path := tmp_path / "grey.npz", grey.test[:20].reshape(-1, 7, 7).numpy())
    np.savez(other := tmp_path / "bits.npz", bits[:20].reshape(-1, 7, 7).numpy().astype(np.uint8))
    for given, words in ((path, "values as they are, binarised"), (other, "values as they are")):
        again = evaluate_checkpoint(of_bits, 20, 2048, data=str(given))
        assert (again["nll_nats"], again["values"]) == (pytest.approx(found["nll_nats"], abs=1e-9), words)


def test_the_probabilities_of_all_images_of_bits_sum_to_1(tmp_path: Path) -> None:
    config = small_config("TRAINING.binarize=static", "TRAINING.N_epochs=1", "TRAINING.img_resize=2, 2")
    path = run_experiment(config, tmp_path / "run", say=lambda _: None) / "ckpt.h5"
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    evaluate_checkpoint(path, None, 50, data=Samples(images, (2, 2), ""), per_image=tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        log_p = [float(row["Log Evidence (nats)"]) for row in csv.DictReader(file)]
    assert len(log_p) == 16
    assert math.fsum(map(math.exp, log_p)) == pytest.approx(1, abs=1e-5)  # six digits are written


# --- data of one's own


def test_other_images_are_evaluated_as_the_models_own(checkpoint: Path, tmp_path: Path) -> None:
    own = evaluate_checkpoint(checkpoint, 20, 100)
    images = np.round(load_dataset("MNIST", 1, 30).test.numpy() * 255).astype(np.uint8).reshape(-1, 28, 28)
    np.savez(path := tmp_path / "a.npz", images)
    given = evaluate_checkpoint(checkpoint, 20, 100, data=str(path))
    assert given["data"] == str(path)
    assert {k: v for k, v in given.items() if k != "data"} == {k: v for k, v in own.items() if k != "data"}
    assert evaluate_checkpoint(checkpoint, None, 100, data=str(path))["num_images"] == 30  # all there are
    assert evaluate_checkpoint(checkpoint, 20, 100, data="MNIST")["nll_nats"] == own["nll_nats"]
    write_table(table := tmp_path / "a.csv")
    for data, message in (
        (table, "a.csv: holds a table, the model was trained with images"),
        (tmp_path / "none.npz", "none.npz: no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_checkpoint(checkpoint, 20, 100, data=str(data))
    np.savez(path, np.zeros((3, 9, 9, 3)))
    with pytest.raises(DataError, match=r"ckpt\.h5: its model is of images \(7, 7\), not \(7, 7, 3\)"):
        evaluate_checkpoint(checkpoint, 1, 100, data=str(path))


@pytest.fixture(scope="module")
def of_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    write_table(folder / "a.csv")
    return run_experiment(small_config(*table_overrides(folder / "a.csv")), folder / "run", say=lambda _: None)


def standardised(table: np.ndarray) -> tuple[torch.Tensor, float]:
    """Rows as the model sees them, and the logarithm of the volume, from the rows of training alone."""
    trained = write_table(Path(os.devnull))[:200]
    x = (table - trained.mean(0)) / trained.std(0)
    return torch.from_numpy(x.astype(np.float32)), float(np.log(trained.std(0)).sum())


def test_the_evidence_of_rows_is_that_of_their_own_units(of_table: Path, tmp_path: Path) -> None:
    table = write_table(path := tmp_path / "b.csv", rows=40, seed=1)
    x, log_volume = standardised(table)
    model = load_model(of_table / "ckpt.h5")
    found = evaluate_checkpoint(of_table / "ckpt.h5", None, 500, data=str(path), per_image=tmp_path / "rows.csv")
    evidence = importance_log_evidence(model, x, 500, random_stream(1, "evaluation"))
    assert found["num_images"] == 40
    assert found["nll_nats"] == pytest.approx(log_volume - evidence.log_evidence.double().mean().item(), abs=1e-4)
    assert found["bits_per_dim"] == pytest.approx(found["nll_nats"] / 3 / math.log(2))
    assert found["nll_stderr"] == pytest.approx(evidence.mean_standard_error, rel=1e-3)
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Row"] for row in rows] == [str(n) for n in range(40)]
    np.testing.assert_allclose(
        [float(row["Log Evidence (nats)"]) for row in rows], evidence.log_evidence.numpy() - log_volume, atol=1e-4
    )


@pytest.mark.parametrize("estimator", ["importance", "annealed"])
def test_another_unit_changes_the_evidence_by_its_volume_and_nothing_else(
    estimator: Literal["importance", "annealed"], of_table: Path, tmp_path: Path
) -> None:
    factor, found = 2.0**10, []
    for name, scale in (("a", 1.0), ("b", factor)):
        write_table(path := tmp_path / f"{name}.csv", scale=scale)
        if scale == 1:
            checkpoint = of_table / "ckpt.h5"
        else:
            run = run_experiment(small_config(*table_overrides(path)), tmp_path / name, say=lambda _: None)
            checkpoint = run / "ckpt.h5"
        write_table(same := tmp_path / "same.csv", scale=scale)  # all of its rows: of its own file it has seen some
        found.append(evaluate_checkpoint(checkpoint, 10, 8, data=str(same), estimator=estimator, num_temps=5))
    one, other = found
    assert other["nll_nats"] - one["nll_nats"] == pytest.approx(3 * math.log(factor), abs=1e-5)
    for key in ("nll_stderr", "effective_sample_size", "acceptance", "images_not_to_trust", "num_images"):
        assert other[key] == one[key], key


def test_rows_far_from_the_table_have_less_evidence(of_table: Path, tmp_path: Path) -> None:
    write_table(near := tmp_path / "near.csv", rows=50, seed=1)
    nll = [evaluate_checkpoint(of_table / "ckpt.h5", None, 300, data=str(near))["nll_nats"]]
    for shift in (1, 10):
        table = write_table(tmp_path / "far.csv", rows=50, seed=1) + shift * np.array([1, 1, 300])
        (tmp_path / "far.csv").write_text("\n".join(",".join(map(repr, row)) for row in table.tolist()))
        nll.append(evaluate_checkpoint(of_table / "ckpt.h5", None, 300, data=str(tmp_path / "far.csv"))["nll_nats"])
    assert nll[0] < nll[1] < nll[2]


def test_other_columns_than_the_models_are_refused(of_table: Path, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            evaluate_checkpoint(of_table / "ckpt.h5", None, 10, data=str(path), per_image=tmp_path / "rows.csv")
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value).removeprefix(f"{path}: ")

    (path := tmp_path / "a.csv").write_text("width,length,$speed$\n1,2,3\n")
    assert refused(path) == "its columns are width, length, $speed$, the model's length, width, $speed$"
    path.write_text("length,width\n1,2\n")
    assert refused(path) == "has 2 columns, the model 3"
    path.write_text("length,width,$speed$\n1,2,3\n4,,6\n")
    assert refused(path) == "line 3: the column width has no value there; fill or drop it first"
    np.savez(tmp_path / "a.npz", np.zeros((3, 9, 9)))
    assert refused(tmp_path / "a.npz") == "holds images, the model was trained with a table"
    with pytest.raises(DataError, match="MNIST: holds images, the model was trained with a table"):
        evaluate_checkpoint(of_table / "ckpt.h5", 1, 10, data="MNIST")
    assert not (tmp_path / "rows.csv").exists()


def test_a_checkpoint_does_not_decide_which_files_are_opened(of_table: Path, tmp_path: Path) -> None:
    """Its data is where it says, but for anybody's checkpoint that may be any file: here one that is waited for."""
    path = of_table.parent / "a.csv"
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    message = r"ckpt\.h5: its model was trained with files of one's own: name the data with --data\Z"
    try:
        with within(20), pytest.raises(DataError, match=message):
            evaluate_checkpoint(of_table / "ckpt.h5", 1, 10)
        with within(20), pytest.raises(DataError, match=message):
            plot_checkpoint(of_table / "ckpt.h5", {"temperatures": tmp_path / "t.png"}, num_images=1)
    finally:
        path.unlink()
        path.write_bytes(content)
    assert not (tmp_path / "t.png").exists()
    plot_checkpoint(of_table / "ckpt.h5", {"temperatures": tmp_path / "t.png"}, num_images=1, data=str(path))
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_transform_is_the_checkpoints_not_the_datas(of_table: Path, tmp_path: Path) -> None:
    table = write_table(path := tmp_path / "b.csv", rows=12, seed=2)
    whole = evaluate_checkpoint(of_table / "ckpt.h5", None, 50, data=str(path), per_image=tmp_path / "all.csv")
    (tmp_path / "few.csv").write_text("\n".join(",".join(map(repr, row)) for row in table[:3].tolist()))
    evaluate_checkpoint(
        of_table / "ckpt.h5", None, 50, data=str(tmp_path / "few.csv"), per_image=tmp_path / "first.csv"
    )
    first, of_all = (np.loadtxt(tmp_path / f, delimiter=",", skiprows=1)[:, 1] for f in ("first.csv", "all.csv"))
    np.testing.assert_allclose(first, of_all[:3], atol=1e-3)
    own = Standardisation.of(table, ("length", "width", "$speed$"))
    assert whole["num_images"] == 12
    assert abs(own.log_volume - standardised(table)[1]) > 1e-3  # so that it would be seen


def test_of_its_own_file_a_model_is_evaluated_with_what_it_has_not_seen(of_table: Path, tmp_path: Path) -> None:
    own = read_checkpoint(of_table / "ckpt.h5").dataset
    found = evaluate_checkpoint(of_table / "ckpt.h5", None, 300, data=own)
    assert found["num_images"] == 30  # of 230 rows, 200 of which it was trained with
    assert found["values"] == "columns standardised; without the first 200"
    lines = Path(own).read_text().splitlines(keepends=True)
    (rest := tmp_path / "rest.csv").write_text("".join([lines[0], *lines[201:]]))
    assert evaluate_checkpoint(of_table / "ckpt.h5", None, 300, data=str(rest))["nll_nats"] == found["nll_nats"]


@pytest.mark.slow
def test_a_known_density_is_learnt_and_outliers_have_the_least_evidence(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    mixture = Mixture.random(rng)
    train, held_out = mixture.sample(4000, rng), mixture.sample(500, rng)
    np.savez(tmp_path / "t.npz", train=train, test=held_out)
    np.savez(tmp_path / "o.npz", samples=rng.uniform(train.min(0), train.max(0), (500, 5)))
    settings = [f"TRAINING.dataset={tmp_path / 't.npz'}", "TRAINING.N_train=4000", "TRAINING.N_test=500",
                "TRAINING.N_epochs=8", "TRAINING.num_generated_samples=100"]  # fmt: skip
    run = run_experiment(load_config(PRESET, settings), tmp_path / "run", say=lambda _: None)
    log_p, _ = scores(run / "ckpt.h5", tmp_path / "t.npz", tmp_path / "t.csv", 5000)
    outliers, _ = scores(run / "ckpt.h5", tmp_path / "o.npz", tmp_path / "o.csv", 5000)
    gaussian = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(held_out)  # pyright: ignore
    truth = mixture.log_density(held_out).mean()
    # 0.06 with all rows, 20 epochs and more samples (docs/data.md)
    assert truth - 0.3 < log_p.mean() < truth
    assert log_p.mean() > gaussian.mean() + 1
    assert area_under_curve(outliers, log_p) > 0.95
