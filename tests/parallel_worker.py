"""What each process of `tests/test_parallel.py` runs, and that test itself in one process: small trainings.

torchrun --nproc-per-node 2 -m tests.parallel_worker FILE.npz
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lvkam.build import build_config_optimizer, build_model, build_objective
from lvkam.config import Config
from lvkam.data import Dataset
from lvkam.experiment import run_experiment
from lvkam.parallel import ALONE, World, joined
from lvkam.training import Callbacks, random_stream, train
from tests.conftest import small_config, stream

EXACT = (
    "TRAINING.N_train=15", "TRAINING.batch_size=7", "TRAINING.N_test=5", "TRAINING.N_epochs=2", "OPTIMIZER.type=sgd",
    "TRAINING.MC_expectation_sample_size=16", "GRID_UPDATING.update_prior_grid=false",
    "GRID_UPDATING.update_llhood_grid=false",
)  # fmt: skip
"""Batches of 7, 7 and 1 images, so that one process has more than another, or none at all."""
METHODS = {
    "importance sampling": ("THERMODYNAMIC_INTEGRATION.num_temps=1",),
    "importance sampling, 3 best": ("THERMODYNAMIC_INTEGRATION.num_temps=1", "TRAINING.gradient_samples=3"),
    "with noise": ("THERMODYNAMIC_INTEGRATION.num_temps=1", "KAN_LIKELIHOOD.generator_noise_var=0.3"),
    "trapezoid": ("THERMODYNAMIC_INTEGRATION.num_temps=9",),
    "trapezoid, 3 best": ("THERMODYNAMIC_INTEGRATION.num_temps=9", "TRAINING.gradient_samples=3"),
    "stepping stone": (
        "THERMODYNAMIC_INTEGRATION.num_temps=9", "THERMODYNAMIC_INTEGRATION.estimator=steppingstone",
    ),
    "deep, RBF": (
        "THERMODYNAMIC_INTEGRATION.num_temps=1", "MIX_PRIOR.layer_widths=3, 5, 4",
        "MIX_PRIOR.spline_function=RBF", "KAN_LIKELIHOOD.spline_function=RSWAF",
        "MIX_PRIOR.base_activation=none", "KAN_LIKELIHOOD.base_activation=none",
    ),
}  # fmt: skip
OF_IMAGES = {
    "moves": (
        "THERMODYNAMIC_INTEGRATION.num_temps=3", "THERMODYNAMIC_INTEGRATION.resampler=systematic",
        "THERMODYNAMIC_INTEGRATION.moves_per_temperature=1",
    ),
    "resampled": ("TRAINING.gradient_samples=3", "TRAINING.gradient_selection=resampled"),
    "binarised": ("TRAINING.binarize=dynamic",),
}  # fmt: skip
"""Methods with random numbers of each image's own."""
GRIDS = (
    "TRAINING.N_train=50", "TRAINING.batch_size=10", "TRAINING.N_test=20", "TRAINING.N_epochs=11",
    "GRID_UPDATING.grid_update_frequency=20", "TRAINING.MC_expectation_sample_size=16",
)  # fmt: skip
"""55 steps, and grids updated at iterations 1, 21 and 45."""


def cases() -> dict[str, Config]:
    """All trainings by their names."""
    found = {
        f"{name}, {shard}": small_config(*EXACT, *method, f"TRAINING.shard={shard}")
        for name, method in METHODS.items()
        for shard in ("batch", "samples")
    }
    found |= {name: small_config(*EXACT, *method) for name, method in OF_IMAGES.items()}
    return found | {
        f"grids, {shard}": small_config(*GRIDS, f"TRAINING.shard={shard}") for shard in ("batch", "samples")
    }


def outcome(name: str, config: Config, world: World = ALONE) -> dict[str, np.ndarray]:
    """Parameters and grids after a training, the gradients of all its batches, and its log."""
    exact = "grids" not in name and name != "binarised"  # bits are single precision
    model = build_model(config, 9)
    pixels = torch.rand(80, 9, generator=stream(5))
    if exact:
        model, pixels = model.double(), pixels.double()
    settings = config.training
    images, tests = pixels[: settings.num_train], pixels[-settings.num_test :]
    dataset = Dataset("made", images, tests, (3, 3), is_drawn_anew=settings.binarize == "dynamic")
    optimizer = build_config_optimizer(config, model)
    gradients: dict[str, list[Tensor]] = defaultdict(list)

    def keep(*_: Any) -> None:
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[key].append(parameter.grad.clone())

    optimizer.register_step_pre_hook(keep)
    state = train(
        model, build_objective(config), optimizer, dataset, config, random_stream(settings.seed, "training"),
        Callbacks.none(), world=world,
    )  # fmt: skip
    found = {f"state/{key}": value.numpy() for key, value in model.state_dict().items()}
    found |= {f"gradients/{key}": torch.stack(of_steps).numpy() for key, of_steps in gradients.items()}
    log = np.array([record[2:4] + record[5:] for record in state.log])
    return found | {"log": log, "updates": np.asarray(state.last_grid_update)}


def steps(path: Path, world: World) -> None:
    """Run all cases, see that all processes have come to the same bits, and have the first one write them."""
    found: dict[str, np.ndarray] = {}
    for name, config in cases().items():
        arrays = outcome(name, config, world)
        for key, array in arrays.items():
            told = world.gather(torch.from_numpy(np.atleast_1d(array)))
            assert all(torch.equal(part, told[0]) for part in told), f"{name}: {key} differs between processes"
        found |= {f"{name}: {key}": array for key, array in arrays.items()}
    if world.is_first:
        np.savez(path, **found)  # pyright: ignore[reportArgumentType]  # its stub takes **kwds for a flag


class Run(NamedTuple):
    """One call of `run_experiment`."""

    folder: str
    epochs: int
    resume: bool = False


def run(of: Run, world: World = ALONE) -> None:
    """Train on MNIST at 7x7."""
    config = small_config(f"TRAINING.N_epochs={of.epochs}")
    run_experiment(config, Path(of.folder), resume=of.resume, say=lambda _: None, world=world)


def main() -> None:
    """What the command line says."""
    torch.set_num_threads(1)
    what, path = sys.argv[1], Path(sys.argv[2])
    with joined() as world:
        assert threads_of_the_group() or not Path("/proc/self/task").exists()
        if what == "steps":
            steps(path, world)
        for arguments in json.loads(path.read_text()) if what == "runs" else []:
            run(Run(*arguments), world)
    end = time.monotonic() + 5  # Linux lists a thread for a moment longer than it is waited for
    while threads_of_the_group() and time.monotonic() < end:
        time.sleep(0.01)
    assert not threads_of_the_group(), "a thread that is left can abort the process at its end"


def threads_of_the_group() -> list[str]:
    """Names of the threads of this process that carry messages between processes; told by Linux."""
    names: list[str] = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            names.append(path.read_text().strip())
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    main()
