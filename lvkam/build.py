"""From a configuration, or a checkpoint, to a model: the only place where strings become objects."""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from lvkam.checkpoint import (
    Checkpoint,
    CheckpointError,
    count_parameters,
    model_layout,
    problem_of,
    read_checkpoint,
    write_checkpoint,
)
from lvkam.compilation import compiler_problem
from lvkam.config import Config, ConfigError, parse_config
from lvkam.errors import InputError
from lvkam.generator import OUTPUT_ACTIVATIONS, KANGenerator
from lvkam.line_search import Constants
from lvkam.local_splines import kernel_problem
from lvkam.model import LVKAM
from lvkam.objectives import ImportanceSampling, Objective, ThermodynamicIntegration
from lvkam.optimizers import FIRST_ORDER, ParameterGroups, build_optimizer, memory_allowed, memory_needed
from lvkam.prior import REFERENCE_DENSITIES, MixturePrior
from lvkam.sections import UnivariateConfig
from lvkam.splines import BASES
from lvkam.training import random_stream
from lvkam.univariate import ACTIVATIONS, FunctionFamily, UnivariateFunctions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": None}
"""Of the generator's matrix products, by their names in the INI file."""

DEVICES = ("cpu", "cuda")
"""Kinds of devices that lvkam runs on."""


STEPS_THAT_REPAY, SECONDS_THAT_REPAY = 3000, 30
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

    >>> from lvkam.config import load_config
    >>> model = build_model(load_config("config/mnist_quality.ini"), data_dim=196)
    >>> sum(p.numel() for p in model.parameters())
    460486
    """
    problem = problem_of_compiling("cpu") if compile else None
    if problem is not None:
        warnings.warn(f"kernels are not compiled: {problem}", stacklevel=2)
    return assemble_model(config, data_dim, compiled=compile and problem is None)


@torch.inference_mode(False)  # parameters that are made in that mode could never be trained
def assemble_model(config: Config, data_dim: int, *, compiled: bool) -> LVKAM:
    """`build_model` for whoever knows already whether kernels can be compiled on the device meant."""
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
        KANGenerator([*config.generator.widths, data_dim], generator_family, rng, config.generator.hidden_grid_range),
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


def build_config_optimizer(config: Config, model: LVKAM) -> Optimizer:
    """The optimiser of a configuration, over a model's parameters."""
    settings, search = config.optimizer, config.line_search
    parameters: ParameterGroups = model.parameters()
    if settings.type in FIRST_ORDER and settings.prior_rate != 1:  # two groups take longer to step than one
        parameters = [
            {"params": list(model.generator.parameters())},
            {"params": list(model.prior.parameters()), "scale": settings.prior_rate},
        ]
    return build_optimizer(
        settings.type, parameters, settings.learning_rate, search.type,
        Constants(search.c_1, search.c_2, search.rho), settings.lbfgs_memory,
    )  # fmt: skip


def check_optimizer_memory(config: Config, data_dim: int) -> None:
    """Refuse an optimiser of whose steps not one would fit in memory.

    Raises:
        ConfigError: it says how many parameters there are, what a step needs and what there is.
    """
    count, allowed = count_parameters(config, data_dim), memory_allowed()
    needed = memory_needed(config.optimizer.type, count, config.optimizer.lbfgs_memory)
    if needed > allowed:
        message = (
            f"one that needs less memory: a step with {count:,} parameters would take {needed / 2**30:,.1f} GiB, "
            f"and half of what there is are {allowed / 2**30:,.1f} GiB"
        )
        raise ConfigError([config.problem("OPTIMIZER", "type", message)])


def layers_of(model: LVKAM) -> Iterator[tuple[str, UnivariateFunctions]]:
    """All layers of univariate functions, by their paths in a file."""
    for part, layers in (("prior", model.prior.layers), ("generator", model.generator.layers)):
        for index, layer in enumerate(layers):
            assert isinstance(layer, UnivariateFunctions)
            yield f"{part}/layers/{index}", layer


def _tensors(model: LVKAM) -> dict[str, Tensor]:
    """Parameters and grids by their paths in a file."""
    tensors: dict[str, Tensor] = {"prior/mixture_logits": model.prior.mixture_logits}
    for path, layer in layers_of(model):
        tensors |= {f"{path}/{name}": getattr(layer, name) for name in ("grid", "coef", "w_base", "w_spline")}
        if layer.bandwidth is not None:
            tensors[f"{path}/bandwidth"] = layer.log_bandwidth
    return tensors


def _as_in_file(path: str, tensor: Tensor) -> Tensor:
    """The order of axes in a file, and back: coefficients are (I, O, K) there, (I, K, O) here."""
    return tensor.transpose(1, 2) if path.endswith("/coef") and tensor.ndim == 3 else tensor


def _to_array(path: str, tensor: Tensor) -> np.ndarray:
    return _as_in_file(path, tensor.detach()).cpu().numpy()


def _from_array(path: str, array: np.ndarray) -> Tensor:
    return _as_in_file(path, torch.from_numpy(array))


@torch.no_grad()
def model_arrays(model: LVKAM) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, by their paths in it."""
    # bandwidths in float64, so that their logarithms are the parameters again, to the bit
    return {
        path: _to_array(path, tensor.double().exp() if path.endswith("/bandwidth") else tensor)
        for path, tensor in _tensors(model).items()
    }


@torch.no_grad()
def set_model_arrays(model: LVKAM, arrays: Mapping[str, np.ndarray]) -> None:
    """The reverse of `model_arrays`, for arrays as `model_layout` has them."""
    for path, tensor in _tensors(model).items():
        value = _from_array(path, arrays[path])
        tensor.copy_(value.log() if path.endswith("/bandwidth") else value)


def optimizer_arrays(model: LVKAM, optimizer: Optimizer) -> dict[str, np.ndarray]:
    """What an optimiser remembers of each parameter, by paths below `training/optimizer/`."""
    return {
        f"{path}/{key}": _to_array(path, value)
        for path, tensor in _tensors(model).items()
        for key, value in optimizer.state.get(tensor, {}).items()
    }


def set_optimizer_arrays(model: LVKAM, optimizer: Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """The reverse of `optimizer_arrays`."""
    tensors, fused = _tensors(model), optimizer.param_groups[0].get("fused")
    for name, array in arrays.items():
        path, _, key = name.rpartition("/")
        # a copy of its own, laid out as the optimiser would have it; counts of steps stay where torch has them
        value = _from_array(path, array).clone(memory_format=torch.contiguous_format)
        state = optimizer.state[tensors[path]]
        if key in state:  # made with the optimiser, and shared between parameters
            state[key].copy_(value)
        else:
            device = tensors[path].device if key != "step" or fused else torch.device("cpu")
            state[key] = value.to(device)


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
    config = parse_config(checkpoint.config, f"{path} (config)")
    model = build_model(config, math.prod(checkpoint.image_shape), compile=compile)
    set_model_arrays(model, checkpoint.arrays)
    return LoadedModel(checkpoint, config, model)


def save_model(path: Path | str, model: LVKAM, config: Config, image_shape: tuple[int, ...]) -> None:
    """Write a model that a loop of one's own has trained, for `load_model` and the commands that take a checkpoint.

    It holds the model alone, so that `lvkam train --resume` has nothing to go on with.

    Args:
        path: the checkpoint, which is replaced if it is there.
        model: of `build_model(config, data_dim)`.
        config: what it was built from.
        image_shape: (H, W) or (H, W, 3), of D numbers.

    Raises:
        CheckpointError: another configuration's model or number of data dimensions, or numbers that are not finite.
        WriteError: it could not be written; a file that was there before is intact.
    """
    arrays = model_arrays(model)
    shapes = {name: array.shape for name, array in arrays.items()}
    layout = model_layout(config, math.prod(image_shape))
    if len(image_shape) < 2 or shapes != {name: shape for name, (_, shape) in layout.items()}:
        raise CheckpointError(f"{path}: the model is not the configuration's for images of {image_shape}")
    if problem := next((p for name, array in arrays.items() if (p := problem_of(name, array))), None):
        raise CheckpointError(f"{path}: {problem}; not saved")
    checkpoint = Checkpoint(
        config=config.to_ini(), dataset=config.training.dataset, image_shape=image_shape, seed=config.training.seed,
        epoch=0, iteration=0, lvkam_version=importlib.metadata.version("lvkam"), arrays=arrays,
    )  # fmt: skip
    write_checkpoint(Path(path), checkpoint)


def load_model(path: Path | str, *, compile: bool = False) -> LVKAM:
    """The model of a checkpoint, on the CPU; arguments and errors are those of `load_checkpoint`."""
    return load_checkpoint(path, compile=compile).model


def choose_device(name: str | None, use_gpu: bool, local_rank: int | None = None) -> torch.device:
    """The device asked for by name, else a GPU if one is wanted and there, else the CPU.

    Args:
        name: of torch's, or None.
        use_gpu: whether one is wanted.
        local_rank: of several processes on this machine, each of which has the GPU of its number; None if it is alone.

    Raises:
        DeviceError: there is no such device.
    """
    if name is None:
        name = "cuda" if use_gpu and torch.cuda.is_available() else "cpu"
        if local_rank is None:
            return torch.device(name)
    try:
        device = torch.device(name)
        if device.type == "cuda" and local_rank is not None:
            device = torch.device("cuda", local_rank)
        if device.type in DEVICES and torch.zeros(1, device=device).item() == 0:
            return device
    except (RuntimeError, AssertionError):  # what torch raises depends on the kind of device
        pass
    if local_rank is not None and name.startswith("cuda"):
        raise DeviceError(
            f"process {local_rank} of this machine has no GPU of its own: fewer processes, or --device cpu"
        )
    raise DeviceError(f"--device {name}: no such device here; must be cpu, or cuda or cuda:N where there is one")


def problem_of_compiling(device_type: str = "cpu") -> str | None:
    """Why not all kernels for a kind of device can be compiled, in one line, or None."""
    return compiler_problem(device_type) or (kernel_problem() if device_type == "cpu" else None)


def compilation_plan(config: Config) -> str | None:
    """Why a training does not compile its kernels, if a compiler works, or None if it does."""
    steps = config.training.num_epochs * config.training.steps_per_epoch
    if config.training.compile == "false":
        return "compile = false"
    if config.training.compile == "auto" and steps < STEPS_THAT_REPAY:
        return f"{steps} steps would not repay it"
    if config.training.compile == "auto" and (config.training.max_seconds or math.inf) < SECONDS_THAT_REPAY:
        return f"{config.training.max_seconds:g} seconds would not repay it"
    return None


def choose_compilation(config: Config, device: torch.device, before: bool | None = None) -> str | None:
    """Why a training on a device does not compile its kernels, or None if it does.

    Args:
        config: its key `compile` decides, unless it is `auto`.
        device: where the kernels are to run.
        before: what was decided when the run began, if it goes on: `auto` keeps to it.

    Raises:
        ConfigError: `compile = true`, or a run that began with a compiler, where nothing can be compiled.
    """
    keeps = before is not None and config.training.compile == "auto"
    reason = (None if before else "nor were they when the run began") if keeps else compilation_plan(config)
    if reason is not None:
        return reason
    problem = problem_of_compiling(device.type)
    if problem is not None and keeps:
        message = f"false, to go on without the compiler that the run began with ({problem}), not to the same bits"
        raise ConfigError([config.problem("TRAINING", "compile", message)])
    if problem is not None and config.training.compile == "true":
        raise ConfigError([config.problem("TRAINING", "compile", f"auto or false: no compiler works here ({problem})")])
    return None if problem is None else f"no compiler works here ({problem})"
