"""The training loop: every batch of every epoch, grid updates at their cadence, one record an epoch.

Grids adapt at iteration 1 and whenever `period` iterations have passed since; after each update past the first

    period <- floor(period * (2 - decay)^iteration)

The exponent compounds, as in the reference: with its defaults (50, 0.99) updates fall on the iterations 1, 51,
134, 448, and then hardly ever again.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from lvkam.config import Config
from lvkam.data import Dataset
from lvkam.evidence import importance_log_evidence
from lvkam.model import LVKAM
from lvkam.objectives import Objective
from lvkam.sections import TrainingConfig

LONGEST_PERIOD = 10**9
"""Cap of the grid-update period, which otherwise grows past every number."""

NLL_SAMPLES = 2048
"""Prior samples behind the `Test NLL` of each epoch's record."""

STREAMS = {"initial values": 0, "training": 1, "evaluation": 2, "generation": 3}
"""Random streams of a run, independent of one another: evaluating more often changes no training step."""


def random_stream(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one of the `STREAMS`; `index` tells several of one kind apart."""
    state = np.random.SeedSequence([seed, STREAMS[stream], index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


class EpochRecord(NamedTuple):
    """A row of `loss.csv`; losses are in the units of the scaled likelihood, `test_nll` in nats."""

    seconds: float
    epoch: int
    train_loss: float
    test_loss: float
    grid_updated: bool
    test_nll: float
    effective_sample_size: float

    def as_row(self) -> dict[str, str]:
        """Columns of `loss.csv` and their text."""
        return {
            "Time (s)": f"{self.seconds:.3f}",
            "Epoch": str(self.epoch),
            "Train Loss": f"{self.train_loss:.6f}",
            "Test Loss": f"{self.test_loss:.6f}",
            "Grid Updated": "true" if self.grid_updated else "false",
            "Test NLL": f"{self.test_nll:.6f}",
            "Effective Sample Size": f"{self.effective_sample_size:.4f}",
        }


@dataclass
class TrainingState:
    """Where a training stands: together with parameters, optimiser and random numbers, all of it."""

    epoch: int = 0
    """Epochs completed."""
    iteration: int = 0
    """Steps taken."""
    seconds: float = 0.0
    """Time spent training, evaluation and files left out."""
    last_grid_update: int = 0
    grid_update_period: int = 0


def next_period(period: int, decay: float, iteration: int) -> int:
    """floor(period * (2 - decay)^iteration), at most `LONGEST_PERIOD`."""
    if math.log(period) + iteration * math.log(2 - decay) > math.log(LONGEST_PERIOD):
        return LONGEST_PERIOD
    return math.floor(period * (2 - decay) ** iteration)


def train(
    model: LVKAM,
    objective: Objective,
    optimizer: Optimizer,
    dataset: Dataset,
    config: Config,
    rng: torch.Generator,
    *,
    on_epoch: Callable[[EpochRecord], None],
    on_checkpoint: Callable[[TrainingState], None],
    say: Callable[[str], None],
) -> TrainingState:
    """Train for `N_epochs`, or until `max_seconds` have passed.

    Args:
        model: trained in place, on its device.
        objective: the loss.
        optimizer: over the model's parameters.
        dataset: images on the CPU.
        config: cadences, sizes and limits.
        rng: the training's stream: epoch order, prior samples, noise, grid updates.
        on_epoch: called with epoch 0, before any training, and after each epoch.
        on_checkpoint: called when it is time to save.
        say: takes a line of text for the user.

    Raises:
        FloatingPointError: a loss, gradient or test figure is not finite; nothing was saved after it arose.
    """
    settings = config.training
    device = next(model.parameters()).device
    images, test = dataset.train.to(device), dataset.test.to(device)
    state = TrainingState(grid_update_period=config.grid_update.frequency)
    on_epoch(_evaluate(model, objective, images, test, state, settings, grid_updated=False))

    saved_at = time.monotonic()
    bar = tqdm(
        total=settings.num_epochs * len(images),
        unit="image", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        while state.epoch < settings.num_epochs and not _out_of_time(state, settings.max_seconds):
            order = torch.randperm(len(images), generator=rng).to(device)
            losses, sizes, grid_updated = [], [], False
            for batch in order.split(settings.batch_size):
                start = time.perf_counter()
                state.iteration += 1
                if _grid_update_is_due(state, config):
                    grid_updated |= _update_grids(model, state, config, rng, say)
                estimate = objective.estimate(model, images[batch], rng)
                loss = _step(model, optimizer, estimate.loss, state, say if settings.verbose else None)
                losses.append(loss * len(batch))
                sizes.append(float(estimate.effective_sample_size) * len(batch))
                state.seconds += time.perf_counter() - start
                bar.set_postfix(epoch=state.epoch + 1, loss=f"{loss:.3f}", ess=f"{sizes[-1] / len(batch):.1f}",
                                refresh=False)  # fmt: skip
                bar.update(len(batch))
                if time.monotonic() - saved_at > 60 * settings.checkpoint_minutes:
                    on_checkpoint(state)
                    saved_at = time.monotonic()
                if _out_of_time(state, settings.max_seconds):
                    say(f"max_seconds = {settings.max_seconds:g} have passed: stopping in epoch {state.epoch + 1}")
                    break
            state.epoch += 1
            seen = min(len(losses) * settings.batch_size, len(images))
            record = _evaluate(
                model, objective, images, test, state, settings, grid_updated,
                train_loss=sum(losses) / seen, ess=sum(sizes) / seen,
            )  # fmt: skip
            on_epoch(record)
            ended = state.epoch == settings.num_epochs or _out_of_time(state, settings.max_seconds)
            if ended or state.epoch % settings.checkpoint_every == 0:
                on_checkpoint(state)
                saved_at = time.monotonic()
    return state


def _out_of_time(state: TrainingState, max_seconds: float | None) -> bool:
    return max_seconds is not None and state.seconds >= max_seconds


def _grid_update_is_due(state: TrainingState, config: Config) -> bool:
    if not (config.grid_update.update_prior or config.grid_update.update_generator):
        return False
    return state.iteration == 1 or state.iteration - state.last_grid_update >= state.grid_update_period


def _update_grids(
    model: LVKAM, state: TrainingState, config: Config, rng: torch.Generator, say: Callable[[str], None]
) -> bool:
    settings = config.grid_update
    model.update_grids(settings.num_samples, rng, prior=settings.update_prior, generator=settings.update_generator)
    if state.iteration > 1:
        state.grid_update_period = next_period(state.grid_update_period, settings.decay, state.iteration)
    state.last_grid_update = state.iteration
    if config.training.verbose:
        say(f"iteration {state.iteration}: grids updated, next in {state.grid_update_period} iterations")
    return True


def _step(
    model: LVKAM,
    optimizer: Optimizer,
    loss: Tensor,
    state: TrainingState,
    say: Callable[[str], None] | None,
) -> float:
    """One step of the optimiser, refused if the loss or a gradient is not finite."""
    where = f"epoch {state.epoch + 1}, iteration {state.iteration}"
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"{where}: the loss is {value}")
    optimizer.zero_grad()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not math.isfinite(norm):
        bad = (n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all())
        raise FloatingPointError(f"{where}: the gradient of {next(bad, 'the model')} is not finite")
    optimizer.step()
    if say is not None:
        say(f"iteration {state.iteration}: loss {value:.4f}, gradient norm {norm:.4f}")
    return value


def _mean_estimate(
    model: LVKAM, objective: Objective, images: Tensor, batch_size: int, rng: torch.Generator
) -> tuple[float, float]:
    """Loss and effective sample size, the mean over the images, a batch at a time as in training."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in images.split(batch_size):
        sums += len(batch) * torch.tensor([float(value) for value in objective.estimate(model, batch, rng)])
    loss, ess = (sums / len(images)).tolist()
    return loss, ess


@torch.no_grad()
def _evaluate(
    model: LVKAM,
    objective: Objective,
    images: Tensor,
    test: Tensor,
    state: TrainingState,
    settings: TrainingConfig,
    grid_updated: bool,
    train_loss: float | None = None,
    ess: float | None = None,
) -> EpochRecord:
    """An epoch's record; before any training, the losses of as many training images as there are test images."""
    rng, batch_size = random_stream(settings.seed, "evaluation", state.epoch), settings.batch_size
    if train_loss is None or ess is None:
        train_loss, ess = _mean_estimate(model, objective, images[: len(test)], batch_size, rng)
    test_loss, _ = _mean_estimate(model, objective, test, batch_size, rng)
    nll = -float(importance_log_evidence(model, test, NLL_SAMPLES, rng).log_evidence.mean())
    if not (math.isfinite(test_loss) and math.isfinite(nll)):
        raise FloatingPointError(f"epoch {state.epoch}: the test loss is {test_loss}, the test NLL {nll}")
    return EpochRecord(state.seconds, state.epoch, train_loss, test_loss, grid_updated, nll, ess)
