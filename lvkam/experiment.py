"""From a configuration to a model and a run: the only place where strings become objects."""

from __future__ import annotations

import importlib.metadata
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from lvkam.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from lvkam.compilation import compiler_problem
from lvkam.config import Config, ConfigError, parse_config
from lvkam.data import DataError, Dataset, TooFewImagesError, load_dataset
from lvkam.errors import InputError
from lvkam.evidence import CHUNK
from lvkam.generator import OUTPUT_ACTIVATIONS, KANGenerator
from lvkam.model import LVKAM
from lvkam.objectives import ImportanceSampling, Objective, ThermodynamicIntegration
from lvkam.optimizers import build_optimizer
from lvkam.plots import save_loss_curve
from lvkam.prior import REFERENCE_DENSITIES, MixturePrior
from lvkam.run_folder import (
    RUN_FILES,
    append_loss,
    check_folder,
    default_folder,
    locked,
    results_in,
    save_images,
)
from lvkam.sections import UnivariateConfig
from lvkam.splines import BASES
from lvkam.training import EpochRecord, TrainingState, random_stream, train
from lvkam.univariate import ACTIVATIONS, FunctionFamily, UnivariateFunctions
from lvkam.univariate import CHUNK as FEATURES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of the generator's matrix products, by their names in the INI file."""

DEVICES = ("cpu", "cuda")
"""Kinds of devices that lvkam runs on."""


STEPS_THAT_REPAY, SECONDS_THAT_REPAY = 3000, 120
"""Length of a training from which on compiling repays: it takes half a minute the first time, some seconds once torch
has the kernels in its cache, and saves about 10 ms a step at the sizes of nist_config.ini."""


class DeviceError(InputError):
    """A device that is not there."""


def _family(section: UnivariateConfig, *, compiled: bool, precision: str = "fp32") -> FunctionFamily:
    return FunctionFamily(
        basis=BASES[section.spline_function],
        activation=ACTIVATIONS[section.base_activation],
        degree=section.spline_degree,
        grid_size=section.grid_size,
        grid_range=section.grid_range,
        grid_update_ratio=section.grid_update_ratio,
        epsilon_scale=section.epsilon_scale,
        mu_scale=section.mu_scale,
        sigma_base=section.sigma_base,
        sigma_spline=section.sigma_spline,
        bandwidth=section.initial_bandwidth,
        bandwidth_trainable=section.bandwidth_trainable,
        precision=PRECISIONS[precision],
        compiled=compiled,
    )


def build_model(config: Config, data_dim: int, *, compile: bool = False) -> LVKAM:
    """The model of a configuration, with initial values drawn from its seed.

    Args:
        config: the configuration.
        data_dim: D, the generator's outputs.
        compile: whether kernels are compiled, when first used, if a compiler works here; they run as they are
            otherwise. The configuration's own key `compile` is for training by `run_experiment`.
    """
    problem = compiler_problem() if compile else None
    if problem is not None:
        warnings.warn(f"kernels are not compiled: {problem}", stacklevel=2)
    return _build_model(config, data_dim, compiled=compile and problem is None)


@torch.inference_mode(False)  # parameters that are made in that mode could never be trained
def _build_model(config: Config, data_dim: int, *, compiled: bool) -> LVKAM:
    rng = random_stream(config.training.seed, "initial values")
    prior = MixturePrior(
        config.prior.latent_dim,
        config.prior.num_components,
        config.prior.layer_widths[-2:0:-1],  # written from the components to the coordinates
        _family(config.prior, compiled=compiled),
        REFERENCE_DENSITIES[config.prior.reference_density],
        config.prior.quadrature_points,
        rng,
    )
    generator_family = _family(config.generator, compiled=compiled, precision=config.training.precision)
    return LVKAM(
        prior,
        KANGenerator([*config.generator.widths, data_dim], generator_family, rng),
        config.generator.likelihood,
        OUTPUT_ACTIVATIONS[config.generator.output_activation],
        likelihood_std=config.generator.likelihood_std,
        noise_std=config.generator.noise_std,
    )


def build_objective(config: Config) -> Objective:
    """The loss that a configuration trains with."""
    training, settings = config.training, config.thermodynamic
    gradient_samples = None if training.gradient_samples == "all" else training.gradient_samples
    shared = (training.num_samples, config.prior.normalization, gradient_samples, training.gradient_selection)
    if settings.num_temps <= 1:
        return ImportanceSampling(*shared)
    return ThermodynamicIntegration(
        *shared,
        num_temps=settings.num_temps,
        exponent=settings.exponent,
        estimator=settings.estimator,
        resampler=settings.resampler,
        resampling_threshold=settings.resampling_threshold,
        moves_per_temperature=settings.moves_per_temperature,
    )


def _layers(model: LVKAM) -> Iterator[tuple[str, UnivariateFunctions]]:
    for part, layers in (("prior", model.prior.layers), ("generator", model.generator.layers)):
        for index, layer in enumerate(layers):
            assert isinstance(layer, UnivariateFunctions)
            yield f"{part}/layers/{index}", layer


@torch.no_grad()
def model_arrays(model: LVKAM) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, by their paths in it."""
    tensors: dict[str, Tensor] = {"prior/mixture_logits": model.prior.mixture_logits}
    for path, layer in _layers(model):
        tensors[f"{path}/grid"] = layer.grid
        tensors[f"{path}/coef"] = layer.coef.transpose(1, 2)  # (I, K, O) here, (I, O, K) in files
        tensors[f"{path}/w_base"] = layer.w_base
        tensors[f"{path}/w_spline"] = layer.w_spline
        if layer.bandwidth is not None:
            # in float64, so that its logarithm is the parameter again, to the bit
            tensors[f"{path}/bandwidth"] = layer.log_bandwidth.double().exp()
    return {path: tensor.detach().cpu().numpy() for path, tensor in tensors.items()}


@torch.no_grad()
def set_model_arrays(model: LVKAM, arrays: dict[str, np.ndarray], source: str) -> None:
    """The reverse of `model_arrays`.

    Raises:
        CheckpointError: the arrays are not those of this model.
    """
    expected = model_arrays(model)
    for path in sorted(expected.keys() | arrays.keys()):
        found, meant = (_describe(a[path]) if path in a else "nothing" for a in (arrays, expected))
        if found != meant:
            raise CheckpointError(f"{source}: {path} holds {found}, its configuration means {meant}")
        if not np.isfinite(arrays[path]).all():
            raise CheckpointError(f"{source}: {path} holds numbers that are not finite")
    tensors = {path: torch.from_numpy(np.array(array)) for path, array in arrays.items()}
    model.prior.mixture_logits.copy_(tensors["prior/mixture_logits"])
    for path, layer in _layers(model):
        layer.grid.copy_(tensors[f"{path}/grid"])
        layer.coef.copy_(tensors[f"{path}/coef"].transpose(1, 2))
        layer.w_base.copy_(tensors[f"{path}/w_base"])
        layer.w_spline.copy_(tensors[f"{path}/w_spline"])
        if layer.bandwidth is not None:
            layer.log_bandwidth.copy_(tensors[f"{path}/bandwidth"].log())


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype.name} {array.shape}"


class LoadedModel(NamedTuple):
    """A checkpoint with its configuration and its model."""

    checkpoint: Checkpoint
    config: Config
    model: LVKAM


def load_checkpoint(path: Path | str, *, compile: bool = False) -> LoadedModel:
    """Read a checkpoint and rebuild its model, on the CPU; `compile` as for `build_model`.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one whose parts contradict each other.
    """
    checkpoint = read_checkpoint(Path(path))
    try:
        config = parse_config(checkpoint.config, f"{path} (config)")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    model = build_model(config, math.prod(checkpoint.image_shape), compile=compile)
    set_model_arrays(model, dict(checkpoint.arrays), str(path))
    return LoadedModel(checkpoint, config, model)


def load_model(path: Path | str, *, compile: bool = False) -> LVKAM:
    """The model of a checkpoint, on the CPU; arguments and errors are those of `load_checkpoint`."""
    return load_checkpoint(path, compile=compile).model


def choose_device(name: str | None, use_gpu: bool) -> torch.device:
    """The device asked for by name, else a GPU if one is wanted and there, else the CPU.

    Raises:
        DeviceError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type in DEVICES and torch.zeros(1, device=device).item() == 0:
            return device
    except (RuntimeError, AssertionError):  # what torch raises depends on the kind of device
        pass
    raise DeviceError(f"--device {name}: no such device here; must be cpu, or cuda or cuda:N where there is one")


def compilation_plan(config: Config) -> str | None:
    """Why a training does not compile its kernels, if a compiler works, or None if it does."""
    steps = config.training.num_epochs * math.ceil(config.training.num_train / config.training.batch_size)
    if config.training.compile == "false":
        return "compile = false"
    if config.training.compile == "auto" and steps < STEPS_THAT_REPAY:
        return f"{steps} steps would not repay it"
    if config.training.compile == "auto" and (config.training.max_seconds or math.inf) < SECONDS_THAT_REPAY:
        return f"{config.training.max_seconds:g} seconds would not repay it"
    return None


def choose_compilation(config: Config, device: torch.device) -> str | None:
    """Why a training on a device does not compile its kernels, or None if it does.

    Raises:
        ConfigError: `compile = true` where nothing can be compiled.
    """
    reason = compilation_plan(config)
    if reason is not None:
        return reason
    problem = compiler_problem(device.type)
    if problem is not None and config.training.compile == "true":
        raise ConfigError([config.problem("TRAINING", "compile", f"auto or false: no compiler works here ({problem})")])
    return None if problem is None else f"no compiler works here ({problem})"


def load_config_dataset(config: Config, data_dir: Path | None = None) -> Dataset:
    """The images that a configuration names.

    Raises:
        ConfigError: the images cannot be had, or are fewer than N_train or N_test.
    """
    settings = config.training
    try:
        return load_dataset(settings.dataset, settings.num_train, settings.num_test, settings.img_resize, data_dir)
    except TooFewImagesError as error:
        key = {"train": "N_train", "test": "N_test"}[error.split]
        message = f"at most {error.available}, the {error.split} images of {settings.dataset}"
        raise ConfigError([config.problem("TRAINING", key, message)]) from error
    except DataError as error:
        raise ConfigError([f"{config.source}: [TRAINING] dataset = {settings.dataset}: {error}"]) from error


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)  # above a progress bar, if there is one


def run_experiment(
    config: Config,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    device: str | None = None,
    data_dir: Path | None = None,
    say: Callable[[str], None] = _tell,
) -> Path:
    """Train a configuration from start to end and write its run folder.

    Args:
        config: what to run.
        output: the run folder; `default_folder` if None.
        overwrite: whether another run's results in that folder may be replaced.
        device: name of a torch device; else the configuration's `use_gpu` decides.
        data_dir: where to look for the data first.
        say: takes a line of text for the user; standard error by default.

    Returns:
        The run folder.

    Raises:
        InputError: bad configuration, data, folder or device; nothing was written.
        FloatingPointError: a loss, gradient or energy is not finite.
        OSError: a file could not be written.
    """
    folder = output or default_folder(config)
    check_folder(folder, overwrite)
    chosen = choose_device(device, config.training.use_gpu)
    dataset = load_config_dataset(config, data_dir)
    not_compiled = choose_compilation(config, chosen)
    model = _build_model(config, math.prod(dataset.image_shape), compiled=not_compiled is None).to(chosen)
    # nothing of an older run is lost before all that this one needs is there
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        check_folder(folder, overwrite)
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)
        _run(config, folder, dataset, model, not_compiled, say)
    return folder


def _run(
    config: Config,
    folder: Path,
    dataset: Dataset,
    model: LVKAM,
    not_compiled: str | None,
    say: Callable[[str], None],
) -> None:
    settings = config.training
    device = model.prior.mixture_logits.device
    (folder / "config.ini").write_text(config.to_ini(), encoding="utf-8")
    shown = min(settings.num_generated, len(dataset.train))
    save_images(folder / "real_images.h5", dataset.train[:shown].numpy(), dataset.image_shape)

    optimizer = build_optimizer(config.optimizer.type, model.parameters(), config.optimizer.learning_rate)
    rng = random_stream(settings.seed, "training")
    say(
        f"{dataset.name} {'x'.join(map(str, dataset.image_shape))}, {len(dataset.train)} images; "
        f"{sum(p.numel() for p in model.parameters())} parameters on {_device_name(device)}; writing to {folder}"
    )
    if not_compiled is None:
        say("kernels compiled: the first steps wait for the compiler, about half a minute the first time")
    else:
        say(f"kernels not compiled: {not_compiled}")

    def on_epoch(record: EpochRecord) -> None:
        append_loss(folder / "loss.csv", record.as_row())
        if not sys.stderr.isatty() or settings.verbose:
            speed = record.epoch * len(dataset.train) / record.seconds if record.seconds else 0.0
            say(
                f"epoch {record.epoch}/{settings.num_epochs}: train loss {record.train_loss:.3f}, "
                f"test loss {record.test_loss:.3f}, test NLL {record.test_nll:.2f} nats, "
                f"effective sample size {record.effective_sample_size:.1f}, "
                f"{record.seconds:.0f} s, {speed:.0f} images/s"
            )

    def on_checkpoint(state: TrainingState) -> None:
        checkpoint = Checkpoint(
            config=config.to_ini(),
            dataset=dataset.name,
            image_shape=dataset.image_shape,
            seed=settings.seed,
            epoch=state.epoch,
            iteration=state.iteration,
            lvkam_version=importlib.metadata.version("lvkam"),
            arrays=model_arrays(model),
            training=_training_arrays(model, optimizer, rng, state, compiled=not_compiled is None),
        )
        write_checkpoint(folder / "ckpt.h5", checkpoint)

    objective = build_objective(config)
    state = train(
        model, objective, optimizer, dataset, config, rng,
        on_epoch=on_epoch, on_checkpoint=on_checkpoint, say=say,
    )  # fmt: skip
    save_loss_curve(folder / "loss.csv", folder / "loss.png")
    # from the file and not compiled, as `lvkam sample` draws them: to the same bits
    images, _ = draw_images(load_model(folder / "ckpt.h5"), config, settings.num_generated, settings.seed)
    save_images(folder / "generated_images.h5", images.numpy(), dataset.image_shape)
    say(f"trained for {state.seconds:.0f} s; {len(images)} generated images in {folder / 'generated_images.png'}")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def _training_arrays(
    model: LVKAM, optimizer: Optimizer, rng: torch.Generator, state: TrainingState, *, compiled: bool
) -> dict[str, np.ndarray]:
    """What going on with a training needs, beside the model: the arrays of /training/."""
    arrays = {
        "training/random/training": rng.get_state().numpy(),
        "training/grid_update/last": np.asarray(state.last_grid_update),
        "training/grid_update/period": np.asarray(state.grid_update_period),
        "training/seconds": np.asarray(state.seconds),
        "training/threads": np.asarray(torch.get_num_threads()),
        "training/compiled": np.asarray(compiled),
    }
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                arrays[f"training/optimizer/{name}/{key}"] = value.detach().cpu().numpy()
    return arrays


def draw_images(model: LVKAM, config: Config, num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, D), clipped to [0, 1], and their latents (N, Q), both on the CPU.

    Drawn `batch_size_for_gen` at a time, in whole batches: the same seed gives the same images, whoever asks for
    them, and asking for more does not change the first.
    """
    rng = random_stream(seed, "generation")
    size = config.training.generation_batch_size
    table = model.prior.table()
    latents = [model.prior.sample(size, rng, table) for _ in range(0, num_images, size)]
    images = [model.decode(z).clamp(0, 1).cpu() for z in latents]
    return torch.cat(images)[:num_images], torch.cat(latents).cpu()[:num_images]


def describe_run(config: Config, output: Path | None = None, data_dir: Path | None = None) -> dict[str, str]:
    """What a run would be, after every check that it would make; no run folder is written.

    Raises as `run_experiment` does for bad input, but where the folder holds another run, which is only told.
    """
    folder = output or default_folder(config)
    check_folder(folder, overwrite=True)
    dataset = load_config_dataset(config, data_dir)
    model = build_model(config, math.prod(dataset.image_shape))
    training = config.training
    steps = math.ceil(training.num_train / training.batch_size)
    return {
        "data": f"{dataset.name}, {'x'.join(map(str, dataset.image_shape))}, {len(dataset.train)} images",
        "prior": f"{config.prior.latent_dim} latent coordinates, {config.prior.num_components} components each, "
        f"{config.prior.reference_density} reference",
        "generator": " -> ".join(map(str, (*config.generator.widths, math.prod(dataset.image_shape)))),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "steps": f"{training.num_epochs} epochs of {steps} steps of {training.batch_size} images "
        f"and {training.num_samples} samples",
        "objective": _describe_objective(build_objective(config)),
        "kernels": f"not compiled: {plan}" if (plan := compilation_plan(config)) else "compiled, if a compiler works",
        "memory": f"about {_memory_estimate(model, config, dataset) / 2**20:.0f} MiB",
        "folder": f"{folder}{', which holds a run: --overwrite replaces it' if results_in(folder) else ''}",
    }


def _describe_objective(objective: Objective) -> str:
    if not isinstance(objective, ThermodynamicIntegration):
        return "importance sampling"
    particles = f", moves at each: {objective.moves_per_temperature}, of each image's own particles"
    return (
        f"thermodynamic integration, {objective.estimator}, {objective.num_temps} temperatures, "
        f"resampling: {objective.resampler}{particles if objective.moves_per_temperature else ''}"
    )


def _memory_estimate(model: LVKAM, config: Config, dataset: Dataset) -> float:
    """Bytes: the libraries, the images, parameters with gradients and Adam's two moments, and the step's tensors."""
    libraries = 350 * 2**20
    parameters = sum(p.numel() for p in model.parameters())
    batch, samples = config.training.batch_size, config.training.num_samples
    if config.thermodynamic.num_temps > 1 and config.thermodynamic.moves_per_temperature:
        samples *= batch  # each image has its own
    samples = max(samples, CHUNK)
    values = sum(layer.num_inputs + layer.num_outputs for _, layer in _layers(model)) + batch
    quadrature = config.prior.quadrature_points * config.prior.latent_dim * config.prior.num_components
    floats = dataset.train.numel() + 4 * parameters + 4 * samples * values + 6 * quadrature + 4 * FEATURES
    return libraries + 4 * floats
