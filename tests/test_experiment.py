"""Strings become the right objects; a run writes its files; a checkpoint is the model, to the bit."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.interpolate import BSpline

import lvkam
from lvkam.build import (
    DeviceError,
    build_model,
    build_objective,
    choose_device,
    load_checkpoint,
    load_model,
    model_arrays,
)
from lvkam.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from lvkam.config import ConfigError, parse_config
from lvkam.data import load_dataset
from lvkam.experiment import describe_run, run_experiment
from lvkam.inference import sample_checkpoint
from lvkam.objectives import ImportanceSampling, ThermodynamicIntegration
from lvkam.run_folder import RUN_FILES, OutputError
from lvkam.splines import BASES
from lvkam.training import random_stream
from lvkam.univariate import ACTIVATIONS, UnivariateFunctions
from tests.conftest import REPOSITORY, h5_arrays, require_compiler, small_config, stream


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "logs"
    return run_experiment(small_config(), folder, say=lambda _: None)


def test_the_names_of_the_package_are_there() -> None:
    assert set(lvkam.__all__) <= {name for name in lvkam.__all__ if getattr(lvkam, name)}
    config = lvkam.load_config(REPOSITORY / "nist_config.ini")
    model = lvkam.build_model(config, data_dim=196)
    objective = lvkam.build_objective(config)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lvkam.nothing  # noqa: B018 - looking is what raises
    loss = objective(model, torch.rand(8, 196, generator=stream(0)), stream(1))
    loss.backward()
    assert loss.shape == ()
    assert model.prior.sample(3, stream(2)).shape == (3, 101)
    assert model.prior.log_prob(model.prior.sample(3, stream(2))).shape == (3,)
    assert model.generator(torch.rand(3, 101)).shape == (3, 196)
    assert model.sample(3, stream(3)).shape == (3, 196)
    assert sum(p.numel() for p in model.parameters()) == 1110798


def test_every_key_of_the_model_arrives_in_it() -> None:
    config = small_config(
        "MIX_PRIOR.layer_widths=2, 5, 7, 4", "MIX_PRIOR.spline_function=RBF", "MIX_PRIOR.spline_degree=2",
        "MIX_PRIOR.base_activation=tanh", "MIX_PRIOR.grid_range=-1, 2", "MIX_PRIOR.grid_update_ratio=0.3",
        "MIX_PRIOR.init_η=1.5", "MIX_PRIOR.η_trainable=false", "MIX_PRIOR.π_0=gaussian", "MIX_PRIOR.ε_scale=0.2",
        "MIX_PRIOR.μ_scale=2", "MIX_PRIOR.σ_base=3", "MIX_PRIOR.σ_spline=4", "MIX_PRIOR.normalization=contrastive",
        "KAN_LIKELIHOOD.expert_widths=4, 6, 8", "KAN_LIKELIHOOD.spline_function=RSWAF",
        "KAN_LIKELIHOOD.likelihood_model=l2", "KAN_LIKELIHOOD.output_activation=tanh",
        "KAN_LIKELIHOOD.generator_variance=0.3", "KAN_LIKELIHOOD.generator_noise_var=0.2",
        "TRAINING.precision=bf16", "TRAINING.gradient_samples=3", "TRAINING.gradient_selection=resampled",
    )  # fmt: skip
    model, objective = build_model(config, 9), build_objective(config)
    layers = [layer for layer in model.prior.layers if isinstance(layer, UnivariateFunctions)]
    # widths are written from the components to the coordinates
    assert [(layer.num_inputs, layer.num_outputs) for layer in layers] == [(4, 7), (7, 5), (5, 2)]
    family = layers[2].family
    assert family.basis is BASES["RBF"]
    assert family.activation is ACTIVATIONS["tanh"]
    assert (family.degree, family.grid_size, family.grid_range, family.grid_update_ratio) == (2, 5, (-1, 2), 0.3)
    assert (family.epsilon_scale, family.mu_scale, family.sigma_base, family.sigma_spline) == (0.2, 2, 3, 4)
    assert (family.bandwidth, family.bandwidth_trainable) == (1.5, False)
    assert model.prior.reference.log_prob(torch.tensor(0.0)).item() == pytest.approx(-0.5 * math.log(2 * math.pi))
    layers = [layer for layer in model.generator.layers if isinstance(layer, UnivariateFunctions)]
    assert [(layer.num_inputs, layer.num_outputs) for layer in layers] == [(4, 6), (6, 8), (8, 9)]
    assert layers[0].family.basis is BASES["RSWAF"]
    assert (model.likelihood, model.likelihood_std, model.noise_std) == ("l2", 0.3, 0.2)
    assert model.output_activation is torch.tanh
    # the prior's densities are normalised, which takes more than half precision
    assert (family.precision, layers[0].family.precision) == (torch.float32, torch.bfloat16)
    assert (objective.num_samples, objective.normalization) == (16, "contrastive")
    assert (objective.gradient_samples, objective.gradient_selection) == (3, "resampled")
    assert build_objective(small_config()).gradient_samples is None


def test_every_key_of_the_temperatures_arrives_in_the_objective() -> None:
    assert isinstance(build_objective(small_config("THERMODYNAMIC_INTEGRATION.num_temps=1")), ImportanceSampling)
    objective = build_objective(
        small_config(
            "THERMODYNAMIC_INTEGRATION.num_temps=7", "THERMODYNAMIC_INTEGRATION.p=2",
            "THERMODYNAMIC_INTEGRATION.estimator=steppingstone", "THERMODYNAMIC_INTEGRATION.resampler=residual",
            "THERMODYNAMIC_INTEGRATION.resampling_threshold=0.3", "THERMODYNAMIC_INTEGRATION.moves_per_temperature=2",
            "TRAINING.gradient_samples=3", "TRAINING.gradient_selection=resampled",
        )
    )  # fmt: skip
    assert objective == ThermodynamicIntegration(
        16, "quadrature", 3, "resampled", num_temps=7, exponent=2, estimator="steppingstone", resampler="residual",
        resampling_threshold=0.3, moves_per_temperature=2,
    )  # fmt: skip
    default = build_objective(small_config())
    assert default == ThermodynamicIntegration(16, num_temps=69, exponent=5, estimator="trapezoid", resampler="none")
    # moves need a resampler
    moving = build_objective(small_config("THERMODYNAMIC_INTEGRATION.moves_per_temperature=1"))
    assert isinstance(moving, ThermodynamicIntegration)
    assert moving.resampler == "stratified"


def test_a_run_writes_its_files(run_folder: Path) -> None:
    assert sorted(p.name for p in run_folder.iterdir() if not p.name.startswith(".")) == sorted(RUN_FILES)
    with (run_folder / "loss.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "Time (s)", "Epoch", "Train Loss", "Test Loss", "Grid Updated", "Test NLL", "Effective Sample Size",
    ]  # fmt: skip
    assert [row[1] for row in rows[1:]] == ["0", "1", "2"]
    assert [row[4] for row in rows[1:]] == ["false", "true", "false"]
    assert all(math.isfinite(float(row[c])) for row in rows[1:] for c in (0, 2, 3, 5, 6))
    for name in ("real_images", "generated_images"):
        samples = h5_arrays(run_folder / f"{name}.h5")["samples"]
        assert (samples.shape, samples.dtype) == ((30, 7, 7), np.float32)
        assert samples.min() >= 0
        assert samples.max() <= 1
        assert samples.std() > 0.01
        with Image.open(run_folder / f"{name}.png") as picture:
            assert picture.format == "PNG"
    real = load_dataset("MNIST", 200, 20, (7, 7)).train[:30].reshape(30, 7, 7).numpy()
    np.testing.assert_array_equal(h5_arrays(run_folder / "real_images.h5")["samples"], real)
    resolved = parse_config((run_folder / "config.ini").read_text(encoding="utf-8"), "config.ini")
    assert resolved == small_config().model_copy(update={"source": "config.ini"})


def test_the_checkpoint_has_the_documented_layout(run_folder: Path) -> None:
    with h5py.File(run_folder / "ckpt.h5") as file:
        assert file.attrs["format"] == "lvkam-checkpoint"
        assert (file.attrs["format_version"], file.attrs["seed"], file.attrs["epoch"]) == (1, 1, 2)
        assert file.attrs["iteration"] == 16
        assert (file.attrs["dataset"], np.asarray(file.attrs["image_shape"]).tolist()) == ("MNIST", [7, 7])
        assert parse_config(str(file.attrs["config"]), "test").to_dict() == small_config().to_dict()
    arrays = h5_arrays(run_folder / "ckpt.h5")
    shapes = {name: array.shape for name, array in arrays.items() if not name.startswith("training/")}
    layers = {"prior": [(4, 3)], "generator": [(4, 6), (6, 49)]}
    expected: dict[str, tuple[int, ...]] = {"prior/mixture_logits": (4, 3)}
    for part, pairs in layers.items():
        for n, (i, o) in enumerate(pairs):
            expected |= {
                f"{part}/layers/{n}/grid": (i, 5 + 1 + 6),
                f"{part}/layers/{n}/coef": (i, o, 8),
                f"{part}/layers/{n}/w_base": (i, o),
                f"{part}/layers/{n}/w_spline": (i, o),
            }
    assert shapes == expected


@pytest.mark.parametrize("basis", ["B-spline", "RBF", "RSWAF"])
@pytest.mark.parametrize("widths", ["3, 4", "3, 5, 4"])
def test_a_model_written_and_read_draws_the_same_bits(tmp_path: Path, basis: str, widths: str) -> None:
    config = small_config(
        f"MIX_PRIOR.spline_function={basis}", f"KAN_LIKELIHOOD.spline_function={basis}",
        f"MIX_PRIOR.layer_widths={widths}", "MIX_PRIOR.π_0=gaussian", "TRAINING.N_epochs=1",
    )  # fmt: skip
    folder = run_experiment(config, tmp_path / "run", say=lambda _: None)
    loaded = load_checkpoint(folder / "ckpt.h5")
    arrays = model_arrays(loaded.model)
    written = h5_arrays(folder / "ckpt.h5")
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, written[name])
    generated = h5_arrays(folder / "generated_images.h5")["samples"]
    rng = random_stream(1, "generation")
    drawn = torch.cat([loaded.model.sample(20, rng) for _ in range(2)])[:30].clamp(0, 1).reshape(-1, 7, 7).numpy()
    np.testing.assert_array_equal(drawn, generated)


def numpy_layer(layer: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """sum_i Phi_io(x_i), cubic, with the silu as base, by scipy's B-splines: (N, I) -> (N, O)."""
    out = x / (1 + np.exp(-x)) @ layer["w_base"]
    steps = np.arange(1.0, 4.0)
    for grid, coef, w_spline, column in zip(layer["grid"], layer["coef"], layer["w_spline"], x.T, strict=True):
        # scipy wants splines without end conditions between the outermost knots: zeros beyond them
        knots = np.concatenate((grid[0] - steps[::-1], grid, grid[-1] + steps))
        spline = BSpline(knots, np.pad(coef.T, ((3, 3), (0, 0))), 3, extrapolate=False)
        out += w_spline * np.nan_to_num(spline(column))  # not a number beyond all knots, where it is zero
    return out


def test_latents_and_checkpoint_reproduce_the_samples_without_lvkam(run_folder: Path, tmp_path: Path) -> None:
    output, _ = sample_checkpoint(run_folder / "ckpt.h5", 300, tmp_path / "s.h5", seed=5, save_latents=True)
    drawn, arrays = h5_arrays(output), h5_arrays(run_folder / "ckpt.h5")
    values = drawn["latents"].astype(float)
    assert values.shape == (300, 4)
    for n in range(2):
        names = ("grid", "coef", "w_base", "w_spline")
        layer = {name: arrays[f"generator/layers/{n}/{name}"].astype(float) for name in names}
        values = numpy_layer(layer, values)
    images = 1 / (1 + np.exp(-values))
    assert np.ptp(images) > 0.05
    np.testing.assert_allclose(drawn["samples"].reshape(300, 49), images, atol=2e-6)


def test_a_checkpoint_that_contradicts_itself_is_refused(run_folder: Path, tmp_path: Path) -> None:
    good = read_checkpoint(run_folder / "ckpt.h5")
    path = tmp_path / "bad.h5"

    def refused(message: str, **changes: object) -> None:
        write_checkpoint(path, type(good)(**{**vars(good), **changes}))
        with pytest.raises(CheckpointError, match=message):
            load_model(path)

    coef = "generator/layers/0/coef"
    refused(r"prior/layers/0/coef holds float32 \(4, 3, 8\), its configuration means float32 \(4, 2, 8\)",
            config=good.config.replace("layer_widths = 3, 4", "layer_widths = 2, 4"))  # fmt: skip
    refused(f"{coef} holds nothing", arrays={k: v for k, v in good.arrays.items() if k != coef})
    refused("extra holds .* its configuration means nothing", arrays={**good.arrays, "prior/extra": np.zeros(2)})
    refused(
        f"{coef} holds numbers that are not finite", arrays={**good.arrays, coef: good.arrays[coef] * np.float32("nan")}
    )
    refused(f"{coef} holds float64", arrays={**good.arrays, coef: good.arrays[coef].astype(float)})
    refused("unknown key", config=good.config + "\nnonsense = 1\n")


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    missing = small_config("TRAINING.dataset=MNISD")
    with pytest.raises(ConfigError, match=r"test: \[TRAINING\] dataset = MNISD: unknown data set MNISD; did you mean"):
        run_experiment(missing, tmp_path / "run")
    with pytest.raises(DeviceError, match="--device nonsense: no such device here"):
        run_experiment(small_config(), tmp_path / "run", device="nonsense")
    assert list(tmp_path.iterdir()) == []


def test_results_are_replaced_only_when_asked(tmp_path: Path) -> None:
    config = small_config("TRAINING.N_epochs=1", "TRAINING.N_train=25")
    folder = run_experiment(config, tmp_path / "run", say=lambda _: None)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(OutputError, match=r"holds the results of another run .*--overwrite"):
        run_experiment(config, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    run_experiment(
        small_config("TRAINING.N_epochs=1", "TRAINING.N_train=50"), folder, overwrite=True, say=lambda _: None
    )
    assert (folder / "config.ini").read_bytes() != before["config.ini"]


def test_the_same_seed_gives_the_same_losses_and_images(tmp_path: Path) -> None:
    folders = [run_experiment(small_config(), tmp_path / name, say=lambda _: None) for name in "ab"]
    losses = [(f / "loss.csv").read_text().splitlines() for f in folders]
    assert [row.split(",")[1:] for row in losses[0]] == [row.split(",")[1:] for row in losses[1]]
    assert (folders[0] / "generated_images.png").read_bytes() == (folders[1] / "generated_images.png").read_bytes()


def test_the_description_of_a_run_is_that_of_its_model(tmp_path: Path) -> None:
    described = describe_run(small_config(), tmp_path / "run")
    assert described["parameters"] == f"{sum(p.numel() for p in build_model(small_config(), 49).parameters()):,}"
    assert described["generator"] == "4 -> 6 -> 49"
    assert described["steps"] == "2 epochs of 8 steps of 25 images and 16 samples"
    assert described["kernels"] == "not compiled: 16 steps would not repay it"
    assert describe_run(small_config("TRAINING.compile=true"))["kernels"] == "compiled, if a compiler works"
    assert described["folder"] == str(tmp_path / "run")
    assert json.dumps(described)
    assert not (tmp_path / "run").exists()


def test_the_device_is_the_one_asked_for() -> None:
    assert choose_device("cpu", use_gpu=True).type == "cpu"
    assert choose_device(None, use_gpu=False).type == "cpu"
    assert choose_device(None, use_gpu=True).type == ("cuda" if torch.cuda.is_available() else "cpu")


def told_run(folder: Path, *overrides: str) -> list[str]:
    """What a run in the folder says."""
    said: list[str] = []
    # 6 intervals, so that kernels compiled for other tests serve here
    grids = ("MIX_PRIOR.grid_size=6", "KAN_LIKELIHOOD.grid_size=6")
    run_experiment(small_config("TRAINING.verbose=true", *grids, *overrides), folder, say=said.append)
    return said


def step_losses(said: list[str]) -> list[float]:
    """Of each iteration."""
    found = [re.match(r"iteration \d+: loss (-?\d+\.\d+), gradient norm (\d+\.\d+)$", line) for line in said]
    return [float(match[1]) for match in found if match]


def epoch_rows(folder: Path) -> list[list[str]]:
    """The rows of loss.csv, the time left out."""
    with (folder / "loss.csv").open(newline="") as file:
        return [row[1:] for row in csv.reader(file)]


COMPILED = "kernels compiled: the first steps wait for the compiler, about half a minute the first time"


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with compiled kernels, and what it said."""
    require_compiler()
    folder = tmp_path_factory.mktemp("compiled") / "run"
    return folder, told_run(folder, "TRAINING.compile=true")


def test_a_compiled_run_is_the_plain_one(compiled_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, said = compiled_run
    plain = told_run(tmp_path / "plain", "TRAINING.compile=false")
    assert [line for line in said if line.startswith("kernels")] == [COMPILED]
    assert [line for line in plain if line.startswith("kernels")] == ["kernels not compiled: compile = false"]
    assert h5_arrays(folder / "ckpt.h5")["training/compiled"]
    assert not h5_arrays(tmp_path / "plain" / "ckpt.h5")["training/compiled"]
    before, expected_before = epoch_rows(folder)[1], epoch_rows(tmp_path / "plain")[1]
    for column in (1, 2, 4, 5):  # losses and test figures before any training
        assert float(before[column]) == pytest.approx(float(expected_before[column]), rel=1e-5)
    losses, expected = step_losses(said), step_losses(plain)
    assert len(losses) == len(expected) == 16
    # later, Adam has made of gradients of the size of rounding errors steps as long as all others
    np.testing.assert_allclose(losses[:8], expected[:8], rtol=1e-5)


def test_a_compiled_run_has_the_same_bits_again(
    compiled_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = compiled_run
    monkeypatch.setattr("lvkam.experiment.STEPS_THAT_REPAY", 16)
    again = told_run(tmp_path / "again", "TRAINING.compile=auto")
    assert COMPILED in again
    assert step_losses(again) == step_losses(said)
    assert epoch_rows(tmp_path / "again") == epoch_rows(folder)
    one, other = (h5_arrays(path / "ckpt.h5") for path in (folder, tmp_path / "again"))
    assert one.keys() == other.keys()
    for name in one.keys() - {"training/seconds"}:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    monkeypatch.setattr("lvkam.experiment.STEPS_THAT_REPAY", 17)
    assert describe_run(small_config())["kernels"] == "not compiled: 16 steps would not repay it"


def test_a_compiled_runs_checkpoint_serves_with_and_without_a_compiler(compiled_run: tuple[Path, list[str]]) -> None:
    folder, _ = compiled_run
    images = h5_arrays(folder / "generated_images.h5")["samples"]
    for compile in (True, False):
        model = load_model(folder / "ckpt.h5", compile=compile)
        rng = random_stream(1, "generation")
        drawn = torch.cat([model.sample(20, rng) for _ in range(2)])[:30].clamp(0, 1).reshape(-1, 7, 7).numpy()
        if compile:
            np.testing.assert_allclose(drawn, images, atol=1e-4)
        else:  # as `lvkam sample` draws them
            np.testing.assert_array_equal(drawn, images)


@pytest.mark.parametrize("compile", ["false", "true"])
def test_bf16_trains(compile: str, tmp_path: Path) -> None:
    if compile == "true":
        require_compiler()
    folder = tmp_path / "run"
    said = told_run(folder, "TRAINING.precision=bf16", f"TRAINING.compile={compile}")
    exact = told_run(tmp_path / "exact", "TRAINING.compile=false")
    losses, expected = step_losses(said), step_losses(exact)
    assert len(losses) == 16
    assert np.isfinite(losses).all()
    assert losses != expected
    # two layers round by a share of 2^-8 each
    np.testing.assert_allclose(losses[0], expected[0], rtol=2 * 2**-8)
    assert losses[-1] < losses[0]
    rows = epoch_rows(folder)
    assert float(rows[-1][4]) < float(rows[1][4])
    assert h5_arrays(folder / "ckpt.h5")["generator/layers/1/coef"].dtype == np.float32


@pytest.mark.parametrize("selection", ["top", "resampled"])
def test_a_few_samples_with_gradient_train(selection: str, tmp_path: Path) -> None:
    few = ("TRAINING.gradient_samples=2", f"TRAINING.gradient_selection={selection}")
    said = told_run(tmp_path / "run", *few, "TRAINING.N_epochs=4")
    losses, exact = step_losses(said), step_losses(told_run(tmp_path / "exact", "TRAINING.N_epochs=4"))
    assert len(losses) == 32
    # the likelihood in the loss is of all samples, the log-prior, about a nat, of those alone that carry gradient
    assert losses[0] == pytest.approx(exact[0], abs=0.5)
    assert losses[1:] != exact[1:]
    rows = epoch_rows(tmp_path / "run")
    assert all(math.isfinite(float(row[4])) for row in rows[1:])
    assert float(rows[-1][4]) < float(rows[1][4])


def test_a_model_built_in_inference_mode_draws_and_trains() -> None:
    with torch.inference_mode():
        model = build_model(small_config(), 9)
        assert model.sample(4, stream(0)).shape == (4, 9)
    loss = build_objective(small_config())(model, torch.rand(5, 9, generator=stream(1)), stream(2))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
