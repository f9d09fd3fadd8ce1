"""Strings become the right objects; a run writes its files; a checkpoint is the model, to the bit."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.interpolate import BSpline
from scipy.stats import kstest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import Optimizer

import lvkam
from lvkam import univariate
from lvkam.build import (
    PRECISIONS,
    DeviceError,
    build_config_optimizer,
    build_model,
    build_objective,
    choose_device,
    load_checkpoint,
    load_model,
    model_arrays,
    optimizer_arrays,
)
from lvkam.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from lvkam.config import ConfigError, parse_config
from lvkam.data import Dataset, load_dataset, static_bits
from lvkam.descent import LBFGS
from lvkam.description import describe_run
from lvkam.errors import DataError
from lvkam.experiment import run_experiment
from lvkam.inference import sample_checkpoint
from lvkam.interruption import Interrupted
from lvkam.model import LVKAM
from lvkam.monitoring import frames_in
from lvkam.objectives import ImportanceSampling, ThermodynamicIntegration
from lvkam.run_folder import RUN_FILES, OutputError, locked
from lvkam.splines import BASES
from lvkam.training import random_stream, rehearse
from lvkam.univariate import ACTIVATIONS, UnivariateFunctions
from tests.conftest import (
    REPOSITORY,
    h5_arrays,
    require_compiler,
    small_config,
    stream,
    table_overrides,
    write_table,
)


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

    def changed(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
        return {**good.arrays, name: array}

    coef, grid = "generator/layers/0/coef", "generator/layers/0/grid"
    shape = r"float32 \(4, 6, 8\)"
    refused(r"prior/layers/0/coef holds float32 \(4, 3, 8\), its configuration means float32 \(4, 2, 8\)",
            config=good.config.replace("layer_widths = 3, 4", "layer_widths = 2, 4"),
            arrays=changed("prior/mixture_logits", good.arrays["prior/mixture_logits"][:, :2]))  # fmt: skip
    refused(r"prior/mixture_logits holds float32 \(4, 3\), its configuration means float32 \(4, 2\)",
            config=good.config.replace("layer_widths = 3, 4", "layer_widths = 2, 4"))  # fmt: skip
    refused(f"damaged: {coef} is missing", arrays={k: v for k, v in good.arrays.items() if k != coef})
    refused("holds prior/extra, which no such file does", arrays=changed("prior/extra", np.zeros(2)))
    refused(f"{coef} holds numbers that are not finite", arrays=changed(coef, good.arrays[coef] * np.float32("nan")))
    refused(f"{grid} holds knots that do not increase", arrays=changed(grid, good.arrays[grid] * np.float32(0)))
    refused(rf"{coef} holds float64 \(4, 6, 8\), its configuration means {shape}",
            arrays=changed(coef, good.arrays[coef].astype(float)))  # fmt: skip
    refused(r"\(config\): \[LINE_SEARCH\] nonsense: unknown key", config=good.config + "\nnonsense = 1\n")


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
    with pytest.raises(
        OutputError, match=r"holds the results of a run \(config\.ini, .*\); give --resume .*, --overwrite"
    ):
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
    few = describe_run(
        small_config("TRAINING.initial_sample_size=4", "TRAINING.max_seconds=9", "TRAINING.gradient_samples=2",
                     "THERMODYNAMIC_INTEGRATION.num_temps=1")
    )  # fmt: skip
    assert few["steps"] == "2 epochs of 8 steps of 25 images and 4 to 16 samples, at most 9 seconds"
    assert few["objective"] == ("importance sampling, gradient through 2 samples of each image of the largest weights")
    assert described["kernels"] == "not compiled: 16 steps would not repay it"
    assert describe_run(small_config("TRAINING.compile=true"))["kernels"] == "compiled, if a compiler works"
    assert described["folder"] == str(tmp_path / "run")
    assert json.dumps(described)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("overrides", "expected"), [
    ([], "adam, learning rate 0.005, schedule constant"),
    (["OPTIMIZER.schedule=step", "OPTIMIZER.warmup_steps=7"],
     "adam, learning rate 0.005, schedule step by 0.5 every 3 epochs, rising over 7 steps"),
    (["OPTIMIZER.prior_rate=0.1"], "adam, learning rate 0.005, schedule constant, 0.1 times that for the prior"),
    (["OPTIMIZER.type=l-bfgs", "OPTIMIZER.l-bfgs_memory=5", "LINE_SEARCH.c_2=0.25", "OPTIMIZER.schedule=cosine"],
     "l-bfgs, line search morethuente (c_1 = 0.0001, c_2 = 0.25), of 5 steps, learning rate 0.005, schedule cosine"),
    (["OPTIMIZER.type=gd", "LINE_SEARCH.type=backtrack"],
     "gd, line search backtrack (c_1 = 0.0001, rho = 0.5), learning rate 0.005, schedule constant"),
    (["OPTIMIZER.type=neldermead"], "neldermead, learning rate 0.005, schedule constant"),
])  # fmt: skip
def test_the_description_tells_the_optimiser(overrides: list[str], expected: str) -> None:
    assert describe_run(small_config(*overrides))["optimizer"] == expected


LARGE = ["MIX_PRIOR.layer_widths=50, 101", "KAN_LIKELIHOOD.expert_widths=101, 202"]


@pytest.mark.parametrize(("name", "bytes_a_number"), [
    ("newton", 40), ("interior-point", 24), ("bfgs", 12), ("neldermead", 16), ("l-bfgs", 24),
])  # fmt: skip
def test_a_step_that_could_not_fit_in_memory_is_refused(name: str, bytes_a_number: int, tmp_path: Path) -> None:
    """Before anything is written, by `check` as well; what there is, is told too."""
    config = small_config(f"OPTIMIZER.type={name}", "OPTIMIZER.l-bfgs_memory=1000000", *LARGE)
    count = sum(p.numel() for p in build_model(config, 49).parameters())
    numbers = {"l-bfgs": 10**6 * count, "neldermead": (count + 1) * count}.get(name, count**2)
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    expected = (
        f"test: [OPTIMIZER] type = {name}: must be one that needs less memory: a step with {count:,} parameters would "
        f"take {bytes_a_number * numbers / 2**30:,.1f} GiB, and half of what there is are {half / 2**30:,.1f} GiB"
    )
    for attempt in (lambda: run_experiment(config, tmp_path / "run"), lambda: describe_run(config, tmp_path / "run")):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert str(caught.value) == expected
    assert list(tmp_path.iterdir()) == []
    describe_run(small_config("OPTIMIZER.type=neldermead"), tmp_path / "run")  # this one fits


def test_every_key_of_the_optimisers_arrives() -> None:
    config = small_config("OPTIMIZER.type=l-bfgs", "OPTIMIZER.learning_rate=0.25", "OPTIMIZER.l-bfgs_memory=6",
                          "LINE_SEARCH.type=backtrack", "LINE_SEARCH.c_1=0.125", "LINE_SEARCH.c_2=0.5",
                          "LINE_SEARCH.rho=0.75")  # fmt: skip
    model = build_model(config, 9)
    optimizer = build_config_optimizer(config, model)
    assert isinstance(optimizer, LBFGS)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert (optimizer.line_search, optimizer.constants) == ("backtrack", (0.125, 0.5, 0.75))
    assert len(optimizer.state[model.prior.mixture_logits]["changes"]) == 6
    adam = build_config_optimizer(small_config("OPTIMIZER.learning_rate=0.25"), model)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["lr"] == 0.25


def test_the_device_is_the_one_asked_for() -> None:
    assert choose_device("cpu", use_gpu=True).type == "cpu"
    assert choose_device(None, use_gpu=False).type == "cpu"
    assert choose_device(None, use_gpu=True).type == ("cuda" if torch.cuda.is_available() else "cpu")


def require_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Two checkpoints' arrays, to the bit: only the time that they took may differ."""
    assert one.keys() == other.keys()
    for name in one.keys() - {"training/progress/seconds"}:
        arrays = (one[name], other[name])
        if name == "training/progress/log":
            arrays = (one[name][:, 1:], other[name][:, 1:])
        np.testing.assert_array_equal(*arrays, err_msg=name, strict=True)


def told_run(
    folder: Path, *overrides: str, resume: bool = False, stop_at: str | None = None, tensorboard: bool = False
) -> list[str]:
    """What a run in the folder says; a signal comes with the first line that begins with `stop_at`."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if stop_at is not None and line.startswith(stop_at):
            signal.raise_signal(signal.SIGINT)

    # 6 intervals, so that kernels compiled for other tests serve here
    grids = ("MIX_PRIOR.grid_size=6", "KAN_LIKELIHOOD.grid_size=6")
    config = small_config("TRAINING.verbose=true", *grids, *overrides)
    run_experiment(config, folder, resume=resume, say=say, tensorboard=tensorboard)
    return said


def step_losses(said: list[str]) -> list[float]:
    """Of each iteration."""
    found = [re.match(r"iteration \d+: loss (-?\d+\.\d+), gradient norm (\d+\.\d+)$", line) for line in said]
    return [float(match[1]) for match in found if match]


def epoch_rows(folder: Path) -> list[list[str]]:
    """The rows of loss.csv, the time left out."""
    with (folder / "loss.csv").open(newline="") as file:
        return [row[1:] for row in csv.reader(file)]


COMPILED = "kernels are compiled before the training's clock starts, about half a minute the first time"


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
    monkeypatch.setattr("lvkam.build.STEPS_THAT_REPAY", 16)
    again = told_run(tmp_path / "again", "TRAINING.compile=auto")
    assert COMPILED in again
    assert step_losses(again) == step_losses(said)
    assert epoch_rows(tmp_path / "again") == epoch_rows(folder)
    one, other = (h5_arrays(path / "ckpt.h5") for path in (folder, tmp_path / "again"))
    require_same_arrays(one, other)
    monkeypatch.setattr("lvkam.build.STEPS_THAT_REPAY", 17)
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


def test_what_is_left_to_the_processor_trains_as_if_it_were_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {word: told_run(tmp_path / word, f"TRAINING.precision={word}") for word in ("fp32", "bf16")}
    for word, dtype in PRECISIONS.items():
        if dtype is not None:
            monkeypatch.setattr(univariate, "fastest_precision", lambda _, dtype=dtype: dtype)
            left = told_run(tmp_path / f"auto, {word}", "TRAINING.precision=auto")
            assert step_losses(left) == step_losses(said[word])
            assert any("bfloat16" in line for line in left) == (word == "bf16")


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


def test_a_compiled_run_goes_on_compiled_to_the_same_bits(
    compiled_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = compiled_run
    with pytest.raises(Interrupted):
        told_run(tmp_path / "run", "TRAINING.compile=true", stop_at="iteration 11: loss ")
    # the length of the run would have it otherwise; what was decided when it began is kept
    monkeypatch.setattr("lvkam.build.STEPS_THAT_REPAY", 1000)
    going_on = told_run(tmp_path / "run", "TRAINING.compile=auto", resume=True)
    assert "kernels compiled as when the run began: its first step is taken again for that" in going_on
    assert step_losses(going_on) == step_losses(said)[11:]
    assert epoch_rows(tmp_path / "run") == epoch_rows(folder)
    for name in ("ckpt.h5", "best.h5"):
        require_same_arrays(h5_arrays(tmp_path / "run" / name), h5_arrays(folder / name))


def test_the_step_that_compiles_leaves_no_trace(
    compiled_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it does to the model, its grids and the random numbers."""
    folder, said = compiled_run

    def spoil(model: LVKAM, *arguments: Any) -> None:
        rehearse(model, *arguments)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(1.0)
        torch.rand(3, generator=arguments[4])

    monkeypatch.setattr("lvkam.experiment.rehearse", spoil)
    again = told_run(tmp_path / "run", "TRAINING.compile=true")
    assert step_losses(again) == step_losses(said)
    require_same_arrays(h5_arrays(tmp_path / "run" / "ckpt.h5"), h5_arrays(folder / "ckpt.h5"))


# --- going on


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that nothing disturbs, and what it said."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, told_run(folder, *PLAIN)


@pytest.fixture(scope="module")
def run_of_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits") / "run"
    said = told_run(folder, *OF_BITS)
    words = "values divided by 255, binarised, the training images in each batch anew; "
    assert said[0].startswith(f"MNIST, 7x7, 200 images, {words}")
    return folder


PLAIN = ("TRAINING.compile=false", "GRID_UPDATING.grid_update_frequency=4")
OF_BITS = (*PLAIN, "TRAINING.binarize=dynamic")


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file but the lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def require_same_run(folder: Path, expected: Path) -> None:
    assert contents(folder).keys() == contents(expected).keys() == set(RUN_FILES)
    assert epoch_rows(folder) == epoch_rows(expected)
    for name in ("ckpt.h5", "best.h5"):
        require_same_arrays(h5_arrays(folder / name), h5_arrays(expected / name))
        one, other = read_checkpoint(folder / name), read_checkpoint(expected / name)
        assert (one.epoch, one.iteration, one.config) == (other.epoch, other.iteration, other.config)
    for name in ("config.ini", "real_images.png", "generated_images.png"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()
    for name in ("real_images.h5", "generated_images.h5"):
        np.testing.assert_array_equal(h5_arrays(folder / name)["samples"], h5_arrays(expected / name)["samples"])


@pytest.mark.parametrize(
    ("line", "epochs", "batches", "iteration"),
    [
        ("iteration 1: loss ", 0, 1, 1),
        ("iteration 6: loss ", 0, 6, 6),
        ("iteration 8: loss ", 0, 8, 8),
        ("epoch 1/2: ", 1, 0, 8),
        ("iteration 9: grids updated", 1, 1, 9),
        ("iteration 16: loss ", 1, 8, 16),
        ("epoch 2/2: ", 2, 0, 16),
    ],
)
def test_a_run_that_a_signal_ended_goes_on_to_the_same_bits(
    line: str, epochs: int, batches: int, iteration: int, whole_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    expected, said = whole_run
    folder = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        told_run(folder, *PLAIN, stop_at=line)
    assert str(caught.value) == f"interrupted; saved in {folder / 'ckpt.h5'}; the same command with --resume goes on"
    assert caught.value.exit_status == 130
    checkpoint = read_checkpoint(folder / "ckpt.h5")
    assert (checkpoint.epoch, checkpoint.iteration, checkpoint.progress.batches) == (epochs, iteration, batches)
    assert not {"loss.png", "generated_images.h5", "generated_images.png"} & contents(folder).keys()
    going_on = told_run(folder, *PLAIN, resume=True)
    if epochs < 2:
        assert f"going on after {epochs} epochs and {batches} batches, iteration {iteration}" in going_on
        assert step_losses(going_on) == step_losses(said)[iteration:]
    require_same_run(folder, expected)


@pytest.mark.parametrize("line", ["iteration 6: loss ", "epoch 1/2: ", "iteration 16: loss "])
def test_a_run_on_bits_drawn_anew_goes_on_to_the_same_bits(line: str, run_of_bits: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        told_run(tmp_path / "run", *OF_BITS, stop_at=line)
    told_run(tmp_path / "run", *OF_BITS, resume=True)
    require_same_run(tmp_path / "run", run_of_bits)


def test_a_run_on_bits_shows_them_and_draws_their_means(run_of_bits: Path, run_folder: Path, tmp_path: Path) -> None:
    real = h5_arrays(run_of_bits / "real_images.h5")["samples"]
    grey = load_dataset("MNIST", 200, 20, (7, 7))
    bits = static_bits(grey.train[:30], "train").numpy()
    np.testing.assert_array_equal(real.reshape(30, 49), bits)
    static = told_run(tmp_path / "run", *PLAIN, "TRAINING.binarize=static")
    assert static[0].startswith("MNIST, 7x7, 200 images, values divided by 255, binarised; ")
    np.testing.assert_array_equal(h5_arrays(tmp_path / "run" / "real_images.h5")["samples"], real)
    generated = h5_arrays(run_of_bits / "generated_images.h5")["samples"]
    assert ((generated > 0) & (generated < 1)).any()
    # before any training all evaluate the same bits; then each learns from what it sees
    drawn, once, plain = (epoch_rows(folder) for folder in (run_of_bits, tmp_path / "run", run_folder))
    assert drawn[1] == once[1] != plain[1]
    assert drawn[2] != once[2]
    for folder, train in ((run_of_bits, grey.train), (tmp_path / "run", static_bits(grey.train, "train"))):
        held = b"".join(x.numpy().tobytes() for x in (train, static_bits(grey.test, "test")))
        digest = h5_arrays(folder / "ckpt.h5")["training/data_sha256"].tobytes()
        assert digest == hashlib.sha256(held).digest()
    with pytest.raises(ConfigError, match=r"binarize = static: the run in .* has dynamic"):
        told_run(run_of_bits, *PLAIN, "TRAINING.binarize=static", resume=True)


def test_a_signal_before_anything_is_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        told_run(tmp_path / "run", *PLAIN, stop_at="epoch 0/2: ")
    assert str(caught.value) == "interrupted; nothing was saved yet; the same command with --resume starts afresh"
    said = told_run(tmp_path / "run", *PLAIN, "TRAINING.N_epochs=1", resume=True)
    assert said[0] == f"{tmp_path / 'run'}: no checkpoint yet: starting afresh"
    assert [row[0] for row in epoch_rows(tmp_path / "run")[1:]] == ["0", "1"]


def copied(whole_run: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run[0], tmp_path / "run"))


def test_a_finished_run_lacks_nothing(whole_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copied(whole_run, tmp_path)
    before = contents(folder)
    said = told_run(folder, *PLAIN, resume=True)
    assert "finished already; nothing is missing" in said
    assert step_losses(said) == []
    assert contents(folder) == before


@pytest.mark.parametrize(
    "missing",
    [["loss.csv"], ["loss.png"], ["real_images.png"], ["generated_images.h5"], ["config.ini"],
     [name for name in RUN_FILES if name not in {"ckpt.h5", "best.h5"}]],
    ids=lambda names: names[0] if len(names) == 1 else "all",
)  # fmt: skip
def test_a_finished_run_is_given_what_it_lacks(
    missing: list[str], whole_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder = copied(whole_run, tmp_path)
    before = contents(folder)
    for name in missing:
        (folder / name).unlink()
    said = told_run(folder, *PLAIN, resume=True)
    assert f"finished already; missing: {', '.join(missing)}" in said
    assert step_losses(said) == []
    after = contents(folder)
    assert after.keys() == before.keys()
    # the very bytes, the times of the epochs too
    for name in before.keys() - {"real_images.h5", "generated_images.h5"}:
        assert after[name] == before[name], name
    for name in ("real_images.h5", "generated_images.h5"):
        np.testing.assert_array_equal(h5_arrays(folder / name)["samples"], h5_arrays(whole_run[0] / name)["samples"])


def test_a_best_checkpoint_that_is_lost_is_told(whole_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copied(whole_run, tmp_path)
    (folder / "best.h5").unlink()
    said = told_run(folder, *PLAIN, resume=True)
    assert "finished already; missing: best.h5" in said
    assert "best.h5 is missing: only training again can make it again" in said
    assert "finished already; nothing is missing" not in said
    assert not (folder / "best.h5").exists()


def test_a_finished_run_is_prolonged_to_the_same_bits(whole_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copied(whole_run, tmp_path)
    longer = (*PLAIN, "TRAINING.N_epochs=3")
    said = told_run(folder, *longer, resume=True)
    assert "going on after 2 epochs and 0 batches, iteration 16" in said
    told_run(tmp_path / "expected", *longer)
    require_same_run(folder, tmp_path / "expected")


def test_the_best_checkpoint_is_that_of_the_lowest_figure(whole_run: tuple[Path, list[str]]) -> None:
    folder, _ = whole_run
    best, last = read_checkpoint(folder / "best.h5"), read_checkpoint(folder / "ckpt.h5")
    figures = {record.epoch: record.test_nll for record in last.progress.log[1:]}
    assert figures[best.epoch] == min(figures.values()) == best.progress.best_nll == last.progress.best_nll
    load_model(folder / "best.h5")


def test_a_run_goes_on_with_its_own_configuration_and_images_only(
    whole_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(whole_run, tmp_path)
    before = contents(folder)
    with pytest.raises(ConfigError) as caught:
        told_run(folder, *PLAIN, "TRAINING.seed=2", "OPTIMIZER.learning_rate=0.5", resume=True)
    assert caught.value.problems == (
        f"test: [TRAINING] seed = 2: the run in {folder} has 1, and goes on with that only",
        f"test: [OPTIMIZER] learning_rate = 0.5: the run in {folder} has 0.005, and goes on with that only",
    )
    assert contents(folder) == before

    def others(*arguments: Any) -> Dataset:
        images = load_dataset(*arguments)
        images.train[17, 3] += 1e-6
        return images

    monkeypatch.setattr("lvkam.experiment.load_dataset", others)
    with pytest.raises(DataError) as mistaken:
        told_run(folder, *PLAIN, "TRAINING.N_epochs=3", resume=True)
    assert str(mistaken.value) == (f"{folder}: MNIST: these are not the images that the run has been trained with")
    assert contents(folder) == before


def changed_checkpoint(folder: Path, **changes: Any) -> None:
    """Replace attributes, or arrays of the training by their names with double underscores."""
    good = read_checkpoint(folder / "ckpt.h5")
    attributes = {name: changes.pop(name) for name in list(changes) if name in vars(good)}
    training = {**good.training, **{f"training/{name.replace('__', '/')}": a for name, a in changes.items()}}
    assert training.keys() == good.training.keys()
    write_checkpoint(folder / "ckpt.h5", Checkpoint(**{**vars(good), "training": training, **attributes}))


def test_what_differs_from_the_training_so_far_is_warned_of(whole_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copied(whole_run, tmp_path)
    assert not any("warning" in line for line in told_run(folder, *PLAIN, resume=True))
    changed_checkpoint(
        folder, threads=np.asarray(3), on_gpu=np.asarray(True), bfloat16=np.asarray(True), lvkam_version="0.0.9"
    )
    said = told_run(folder, *PLAIN, resume=True)
    assert [line for line in said if "warning" in line] == [
        "warning: trained on 3 threads so far, on 1 now: results may differ in their last bits "
        "(OMP_NUM_THREADS sets how many)",
        "warning: trained on a GPU so far, on a CPU now: results may differ by rounding",
        "warning: trained in bfloat16 so far, in single precision now: results may differ by rounding",
        "warning: trained by lvkam 0.0.9 so far: results may differ",
    ]


@pytest.mark.parametrize("name", ["stream", "epoch_stream"])
def test_no_state_of_random_numbers_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        told_run(folder, *PLAIN, stop_at="iteration 3: loss ")
    changed_checkpoint(folder, **{f"progress__{name}": np.full(5056, 255, np.uint8)})
    before = contents(folder)
    with pytest.raises(CheckpointError, match=rf"^{folder / 'ckpt.h5'}: no state of random numbers: "):
        told_run(folder, *PLAIN, resume=True)
    assert contents(folder)["ckpt.h5"] == before["ckpt.h5"]


def test_a_damaged_checkpoint_stops_the_run_and_stays(whole_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copied(whole_run, tmp_path)
    content = bytearray((folder / "ckpt.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "ckpt.h5").write_bytes(content)
    before = contents(folder)
    with pytest.raises(CheckpointError, match="damaged: its bytes do not match its seal"):
        told_run(folder, *PLAIN, resume=True)
    assert contents(folder) == before


def test_the_decision_not_to_compile_is_kept(
    tmp_path: Path, whole_run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(whole_run, tmp_path)
    monkeypatch.setattr("lvkam.build.STEPS_THAT_REPAY", 1)
    monkeypatch.setattr("lvkam.build.problem_of_compiling", lambda kind: None)
    automatic = ("TRAINING.compile=auto", "GRID_UPDATING.grid_update_frequency=4", "TRAINING.N_epochs=3")
    said = told_run(folder, *automatic, resume=True)
    assert "kernels not compiled: nor were they when the run began" in said
    told_run(tmp_path / "expected", *PLAIN, "TRAINING.N_epochs=3")
    assert epoch_rows(folder) == epoch_rows(tmp_path / "expected")


def test_what_a_crash_left_half_written_is_removed(whole_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copied(whole_run, tmp_path)
    before = contents(folder)
    (folder / ".ckpt.h5.abcdefgh.part").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    (folder / ".owner").write_text("process 1 on a machine")
    said = told_run(folder, *PLAIN, resume=True)
    assert said[0] == f"{folder}: its last training did not end by itself (process 1 on a machine); taking over"
    assert contents(folder) == {**before, "notes.txt": b"mine"}


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_another_training_writes_to_is_left(
    resume: bool, whole_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder = copied(whole_run, tmp_path)
    before = contents(folder)
    with locked(folder, lambda _: None):
        with pytest.raises(OutputError) as caught:
            run_experiment(small_config(), folder, resume=resume, overwrite=not resume)
        told = f"{folder}: another training is writing here: process {os.getpid()} on {socket.gethostname()}, since "
        assert str(caught.value).startswith(told)
    assert contents(folder) == before


def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an optimiser whose memory overflows while every parameter is still finite
    def spoilt(model: LVKAM, optimizer: Optimizer) -> dict[str, np.ndarray]:
        arrays = optimizer_arrays(model, optimizer)
        return {**arrays, "prior/mixture_logits/exp_avg_sq": np.full((4, 3), np.inf, np.float32)}

    monkeypatch.setattr("lvkam.experiment.optimizer_arrays", spoilt)
    with pytest.raises(FloatingPointError) as caught:
        told_run(tmp_path / "run", *PLAIN)
    assert str(caught.value) == (
        "epoch 1, iteration 8: training/optimizer/prior/mixture_logits/exp_avg_sq holds numbers that are not finite; "
        "not saved"
    )
    assert not {"ckpt.h5", "best.h5"} & contents(tmp_path / "run").keys()


def test_pictures_while_training_change_no_bit_of_it_and_do_not_mind_a_stop(
    whole_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    expected, said = whole_run
    overrides = (*PLAIN, "TRAINING.gen_every=1")
    assert step_losses(told_run(tmp_path / "run", *overrides, tensorboard=True)) == step_losses(said)
    with pytest.raises(Interrupted):
        told_run(tmp_path / "stopped", *overrides, stop_at="iteration 11: loss ", tensorboard=True)
    frame = tmp_path / "stopped" / "evolution" / "epoch_00002.png"  # written by a process that then was killed
    frame.write_bytes(b"?")
    told_run(tmp_path / "stopped", *overrides, resume=True, tensorboard=True)
    for name in ("run", "stopped"):
        folder = tmp_path / name
        assert epoch_rows(folder) == epoch_rows(expected)
        require_same_arrays(h5_arrays(folder / "ckpt.h5"), h5_arrays(expected / "ckpt.h5"))
        assert list(frames_in(folder)) == [0, 1, 2]
        for epoch, path in frames_in(folder).items():
            assert path.read_bytes() == frames_in(tmp_path / "run")[epoch].read_bytes()
        found = EventAccumulator(str(folder / "tensorboard")).Reload()
        scalars = [(scalar.step, pytest.approx(scalar.value, rel=1e-6)) for scalar in found.Scalars("Test NLL")]
        assert [(int(row[0]), float(row[4])) for row in epoch_rows(folder)[1:]] == scalars
        assert [image.step for image in found.Images("Samples")] == [0, 1, 2]
    # the last one shows what `lvkam sample` draws
    _, sheet = sample_checkpoint(tmp_path / "run" / "ckpt.h5", 64, tmp_path / "samples.h5")
    assert sheet.read_bytes() == frame.read_bytes()
    # a finished run is left as it is, whatever is asked for
    told_run(tmp_path / "run", *PLAIN, resume=True, tensorboard=True)
    assert list(frames_in(tmp_path / "run")) == [0, 1, 2]


def test_pictures_amid_a_compiled_training_change_no_bit_of_it(
    compiled_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, said = compiled_run
    assert step_losses(told_run(tmp_path / "run", "TRAINING.compile=true", "TRAINING.gen_every=1")) == step_losses(said)
    require_same_arrays(h5_arrays(tmp_path / "run" / "ckpt.h5"), h5_arrays(folder / "ckpt.h5"))
    assert len(frames_in(tmp_path / "run")) == 3


def test_a_training_cut_short_has_a_last_picture_that_a_longer_one_has_not(tmp_path: Path) -> None:
    overrides = (*PLAIN, "TRAINING.gen_every=2")
    told_run(tmp_path / "run", *overrides, "TRAINING.max_seconds=1e-9")
    assert list(frames_in(tmp_path / "run")) == [0, 1]
    told_run(tmp_path / "run", *overrides, resume=True)
    assert list(frames_in(tmp_path / "run")) == [0, 2]


def test_the_signal_handlers_are_given_back(whole_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = copied(whole_run, tmp_path)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    during: list[bool] = []

    def say(_: str) -> None:
        during.append(signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) != before[0])

    grids = ("MIX_PRIOR.grid_size=6", "KAN_LIKELIHOOD.grid_size=6", "TRAINING.verbose=true")
    run_experiment(small_config(*grids, *PLAIN), folder, resume=True, say=say)
    assert during
    assert all(during)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_model_of_ones_own_loop_is_saved_alone_and_loaded_to_the_bit(tmp_path: Path) -> None:
    config = small_config()
    model = build_model(config, 12)
    lvkam.save_model(tmp_path / "own.h5", model, config, (3, 4))
    loaded = load_model(tmp_path / "own.h5")
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))
    assert not read_checkpoint(tmp_path / "own.h5").training
    for wrong in ((3, 5), (12,)):
        with pytest.raises(CheckpointError, match="the model is not the configuration's for images of"):
            lvkam.save_model(tmp_path / "wrong.h5", model, config, wrong)
    with pytest.raises(CheckpointError, match="the model is not the configuration's"):
        lvkam.save_model(tmp_path / "wrong.h5", build_model(small_config("MIX_PRIOR.grid_size=6"), 12), config, (3, 4))
    with torch.no_grad():
        model.prior.mixture_logits[0, 0] = math.nan
    with pytest.raises(CheckpointError, match=r"prior/mixture_logits holds numbers that are not finite; not saved"):
        lvkam.save_model(tmp_path / "wrong.h5", model, config, (3, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["own.h5"]


# --- data of one's own


def test_the_same_images_give_the_same_bits_by_name_from_an_archive_and_from_a_folder(
    run_folder: Path, tmp_path: Path
) -> None:
    mnist = load_dataset("MNIST", 200, 20)
    train, test = (np.round(x.numpy() * 255).astype(np.uint8).reshape(-1, 28, 28) for x in (mnist.train, mnist.test))
    np.savez(tmp_path / "splits.npz", train=train, test=test)
    np.savez_compressed(tmp_path / "one.npz", images=np.concatenate([train, test])[..., None])
    for split, images in (("train", train), ("test", test)):
        (folder := tmp_path / "pictures" / split).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:03}.png")
    expected = h5_arrays(run_folder / "ckpt.h5")
    for name in ("splits.npz", "one.npz", "pictures"):
        config = small_config(f"TRAINING.dataset={tmp_path / name}")
        folder = run_experiment(config, tmp_path / f"run of {name}", say=lambda _: None)
        arrays = h5_arrays(folder / "ckpt.h5")
        assert arrays.keys() == expected.keys()
        for path, array in expected.items():
            if path == "training/progress/log":  # without the time
                np.testing.assert_array_equal(arrays[path][:, 1:], array[:, 1:])
            elif path != "training/progress/seconds":
                np.testing.assert_array_equal(arrays[path], array, strict=True, err_msg=path)
        for file in ("real_images.h5", "generated_images.h5"):
            found, samples = (h5_arrays(f / file)["samples"] for f in (folder, run_folder))
            np.testing.assert_array_equal(found, samples, strict=True)


def test_what_a_table_needs_is_told_all_at_once(tmp_path: Path) -> None:
    write_table(path := tmp_path / "a.csv")
    with pytest.raises(ConfigError) as caught:
        run_experiment(small_config(f"TRAINING.dataset={path}"), tmp_path / "run")
    assert caught.value.problems == (
        f"test: [KAN_LIKELIHOOD] likelihood_model = bernoulli: must be l2, since {path} is a table",
        f"test: [KAN_LIKELIHOOD] output_activation = sigmoid: must be none, since {path} is a table",
        f"test: [TRAINING] img_resize = 7, 7: must be native, since {path} is a table",
    )
    with pytest.raises(ConfigError) as caught:
        run_experiment(small_config(f"TRAINING.dataset={path}", "TRAINING.binarize=dynamic"), tmp_path / "run")
    assert f"test: [TRAINING] binarize = dynamic: must be none, since {path} is a table" == caught.value.problems[-1]
    with pytest.raises(ConfigError) as caught:
        run_experiment(small_config(*table_overrides(path), "TRAINING.N_train=231"), tmp_path / "run")
    # the 20 of the test are left out
    assert caught.value.problems == (f"test: [TRAINING] N_train = 231: must be at most 210, the train rows of {path}",)
    with pytest.raises(ConfigError) as caught:
        run_experiment(small_config(*table_overrides(path), "TRAINING.N_test=230"), tmp_path / "run")
    assert caught.value.problems == (f"test: [TRAINING] N_test = 230: must be at most 229, the test rows of {path}",)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_rows_are_written_in_their_own_units(tmp_path: Path) -> None:
    table = write_table(path := tmp_path / "a.csv")
    folder = run_experiment(small_config(*table_overrides(path)), tmp_path / "run", say=lambda _: None)
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == sorted(RUN_FILES)
    mean, std = table[:200].mean(0), table[:200].std(0)
    arrays = h5_arrays(folder / "ckpt.h5")
    np.testing.assert_allclose(arrays["data/mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(arrays["data/std"], std, rtol=1e-12)
    real = h5_arrays(folder / "real_images.h5")["samples"]
    assert (real.shape, real.dtype) == ((30, 3), np.float64)
    np.testing.assert_allclose(real, table[:30], rtol=1e-5, atol=1e-5)
    rng = random_stream(1, "generation")
    model = load_model(folder / "ckpt.h5")
    drawn = torch.cat([model.sample(20, rng) for _ in range(100)]).double().numpy()
    many, _ = sample_checkpoint(folder / "ckpt.h5", 2000, tmp_path / "many.h5")
    # the noise of the likelihood, whose standard deviation is 0.5 in those of the columns
    noise = ((h5_arrays(many)["samples"] - mean) / std - drawn) / 0.5
    assert kstest(noise.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.corrcoef(np.hstack((noise, drawn)).T)[:3], np.eye(3, 6), atol=0.1)
    generated = h5_arrays(folder / "generated_images.h5")["samples"]
    np.testing.assert_array_equal(generated, h5_arrays(many)["samples"][:30])
    for name in ("real_images.png", "generated_images.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 500  # 3 x 3 panels, no grid of images
    output, grid = sample_checkpoint(folder / "ckpt.h5", 30, tmp_path / "s.h5", tmp_path / "s.png")
    np.testing.assert_array_equal(h5_arrays(output)["samples"], generated)
    assert grid.read_bytes() == (folder / "generated_images.png").read_bytes()


def test_the_unit_of_a_table_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    # by a power of two, so that not a bit of what the model sees differs
    found = []
    for name, scale in (("a", 1.0), ("b", 2.0**10)):
        write_table(path := tmp_path / f"{name}.csv", scale=scale)
        folder = run_experiment(small_config(*table_overrides(path)), tmp_path / name, say=lambda _: None)
        found.append((h5_arrays(folder / "ckpt.h5"), h5_arrays(folder / "generated_images.h5")["samples"]))
    (one, samples), (other, scaled) = found
    for path in one:
        factor = 2.0**10 if path.startswith("data/") else 1
        if not path.startswith("training/progress/"):  # which hold times
            np.testing.assert_array_equal(other[path], factor * one[path], err_msg=path)
    np.testing.assert_array_equal(scaled, samples * 2**10)


def test_a_table_that_has_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    write_table(path := tmp_path / "a.csv")
    config = small_config(*table_overrides(path))
    folder = run_experiment(config, tmp_path / "run", say=lambda _: None)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    write_table(path, seed=1)
    longer = small_config(*table_overrides(path), "TRAINING.N_epochs=2")
    with pytest.raises(DataError, match=r"these are not the .* that the run has been trained with"):
        run_experiment(longer, folder, resume=True, say=lambda _: None)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
