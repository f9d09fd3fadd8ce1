"""The training loop: every batch of every epoch, grid updates at their cadence, one record an epoch.

Grids adapt at iteration 1 and whenever `period` iterations have passed since; after each update past the first

    period <- floor(period * (2 - decay)^iteration)

The exponent compounds, as in the reference: with its defaults (50, 0.99) updates fall on the iterations 1, 51,
134, 448, and then hardly ever again.

Several processes take each step together: all draw the same samples of the prior and the same order of images, each
computes its share of the loss (`lvkam.shares`), gradients are summed over them, and every process takes the same step.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from lvkam.config import Config
from lvkam.data import Dataset, binarise
from lvkam.descent import FunctionOptimizer
from lvkam.evidence import importance_log_evidence
from lvkam.interruption import Interrupted, Interruption
from lvkam.model import LVKAM
from lvkam.objectives import Estimate, Frozen, Objective
from lvkam.optimizers import rate_factor
from lvkam.parallel import ALONE, World
from lvkam.progress import EpochRecord, TrainingState
from lvkam.sections import TrainingConfig
from lvkam.shares import Share

LONGEST_PERIOD = 10**9
"""Cap of the grid-update period, which otherwise grows past every number."""

NLL_SAMPLES = 2048
"""Prior samples behind the `Test NLL` of each epoch's record."""

STREAMS = {
    "initial values": 0, "training": 1, "evaluation": 2, "generation": 3, "features": 4, "quality": 5, "inspection": 6,
    "images": 7,
}  # fmt: skip
"""Random streams of a run, independent of one another: evaluating more often changes no training step."""


def random_stream(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one of the `STREAMS`; `index` tells several of one kind apart."""
    state = np.random.SeedSequence([seed, STREAMS[stream], index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def next_period(period: int, decay: float, iteration: int) -> int:
    """floor(period * (2 - decay)^iteration), at most `LONGEST_PERIOD`."""
    if math.log(period) + iteration * math.log(2 - decay) > math.log(LONGEST_PERIOD):
        return LONGEST_PERIOD
    return math.floor(period * (2 - decay) ** iteration)


def sample_sizes(first: int, last: int) -> list[int]:
    """All that `sample_size` comes to, in order."""
    halvings = (last // first).bit_length() - 1
    return [last >> k for k in range(halvings, -1, -1)]


def sample_size(first: int, last: int, done: float) -> int:
    """How many samples when a share of the training is done: `last`, halved as often as that leaves `first`, at the
    beginning, doubled at equal intervals.
    """
    sizes = sample_sizes(first, last)
    return sizes[min(len(sizes) - 1, int(done * len(sizes)))]


def is_out_of_time(state: TrainingState | EpochRecord, settings: TrainingConfig) -> bool:
    """Whether `max_seconds` have passed."""
    return settings.max_seconds is not None and state.seconds >= settings.max_seconds


def done_share(record: EpochRecord, settings: TrainingConfig) -> float:
    """How much of a training is done, in 0..1, when an epoch has been recorded."""
    return min(1.0, max(record.epoch / settings.num_epochs, record.seconds / (settings.max_seconds or math.inf)))


def is_finished(state: TrainingState, settings: TrainingConfig) -> bool:
    """Whether nothing is left to train."""
    recorded = state.batches == 0 or state.cut_short
    return state.epoch >= settings.num_epochs or (is_out_of_time(state, settings) and recorded)


class Loss(nn.Module):
    """A model's loss as a module's forward, where DistributedDataParallel expects it."""

    def __init__(self, model: LVKAM):
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, x: Tensor, rng: torch.Generator, share: Share) -> Estimate:
        """That of images (B, D), or this process's part of it."""
        return objective.estimate(self.model, x, rng, share)


class Callbacks(NamedTuple):
    """What a training tells its surroundings."""

    on_epoch: Callable[[Sequence[EpochRecord]], None]
    """Epoch 0, before any training; each epoch; one cut short by `max_seconds`: all records, its own the last."""
    on_checkpoint: Callable[[TrainingState], None]
    """It is time to save."""
    on_best: Callable[[TrainingState], None]
    """The epoch just recorded has the lowest test NLL so far."""
    say: Callable[[str], None]
    """A line of text for the user."""

    @classmethod
    def none(cls) -> Callbacks:
        """Tell nobody."""
        return cls(*[lambda _: None] * len(cls._fields))


def train(
    model: LVKAM,
    objective: Objective,
    optimizer: Optimizer,
    dataset: Dataset,
    config: Config,
    rng: torch.Generator,
    callbacks: Callbacks,
    state: TrainingState | None = None,
    interruption: Interruption | None = None,
    world: World = ALONE,
) -> TrainingState:
    """Train for `N_epochs`, or until `max_seconds` have passed.

    A training that goes on from a state that was saved takes the same steps, to the bit, as one that never stopped;
    where `max_seconds` bends the learning rate or the sample size, steps that the clock's noise alone tells apart.

    Args:
        model: trained in place, on its device.
        objective: the loss.
        optimizer: over the model's parameters.
        dataset: images on the CPU.
        config: cadences, sizes and limits.
        rng: the training's stream: epoch order, bits of images, prior samples, noise, grid updates.
        callbacks: what is told to whom.
        state: where it stands, if it goes on; model, optimiser and rng as they were then.
        interruption: signals; a step is finished and the state saved before they are obeyed.
        world: the processes that take the steps together, all of them given the same arguments.

    Raises:
        FloatingPointError: a loss, gradient or test figure is not finite; nothing was saved after it arose.
        Interrupted: by a signal, that any of the processes was sent.
        PeerError: another process is gone.
    """
    interruption = interruption or Interruption()
    state = state or TrainingState(grid_update_period=config.grid_update.frequency)
    training = _Training(model, objective, optimizer, dataset, config, rng, callbacks, state, interruption, world)
    training.loss = world.averaging_gradients(training.loss)
    training.run()
    return state


def rehearse(
    model: LVKAM,
    objective: Objective,
    optimizer: Optimizer,
    dataset: Dataset,
    config: Config,
    rng: torch.Generator,
    world: World = ALONE,
) -> None:
    """Begin a training as `train` begins one, so that kernels meet the sizes of an undisturbed run's first steps.

    Then, where later steps have more samples, those of the last one.

    A compiled kernel is made for the sizes that it meets first, and others can round differently. Model, optimiser and
    rng are those of a new run, and afterwards to be replaced by what was saved.
    """
    state = TrainingState(grid_update_period=config.grid_update.frequency, iteration=1)
    callbacks = Callbacks.none()
    training = _Training(model, objective, optimizer, dataset, config, rng, callbacks, state, Interruption(), world)
    training.evaluate()
    batch = training.order()[: config.training.batch_size]
    training.step(batch)
    if config.training.initial_sample_size is not None:  # later steps have more samples
        state.iteration = training._num_steps
        training.step(batch)
    # how many samples carry gradient changes on the way, and with it what is computed again, and in how many chunks
    for number in {config.training.initial_sample_size or config.training.num_samples, config.training.num_samples}:
        z = model.prior.sample(number, rng)
        for carried in (number, number // 2):
            model.generator(z)[:carried].sum().backward()


@dataclass
class _Training:
    """One call of `train`, with its arguments."""

    model: LVKAM
    objective: Objective
    optimizer: Optimizer
    dataset: Dataset
    config: Config
    rng: torch.Generator
    callbacks: Callbacks
    state: TrainingState
    interruption: Interruption
    world: World

    def __post_init__(self) -> None:
        self.settings = self.config.training
        self.loss: nn.Module = Loss(self.model)
        self._signal_of_any: int | None = None
        device = self.model.prior.mixture_logits.device
        self.images, self.test = self.dataset.train.to(device), self.dataset.test.to(device)
        self.saved_at = time.monotonic()
        self._steps_per_epoch = math.ceil(len(self.images) / self.settings.batch_size)
        self._num_steps = self.settings.num_epochs * self._steps_per_epoch

    def run(self) -> None:
        settings, state = self.settings, self.state
        if not state.log:
            state.log.append(self.evaluate())
            self.callbacks.on_epoch(state.log)
        done = min(state.batches * settings.batch_size, len(self.images))
        bar = tqdm(
            total=settings.num_epochs * len(self.images), initial=state.epoch * len(self.images) + done,
            unit="image", unit_scale=True, disable=not (sys.stderr.isatty() and self.world.is_first),
            dynamic_ncols=True,
        )  # fmt: skip
        with bar, self.interruption.postponed():
            while state.epoch < settings.num_epochs and not (state.batches == 0 and is_out_of_time(state, settings)):
                complete = self._take_steps(bar)
                seen = min(state.batches * settings.batch_size, len(self.images))
                record = self.evaluate((state.loss_sum / seen, state.sample_size_sum / seen))
                self._conclude(record, complete)
                if not complete:
                    break

    def _conclude(self, record: EpochRecord, complete: bool) -> None:
        """Record an epoch, and save what is due."""
        state, settings = self.state, self.settings
        best = complete and record.test_nll < state.best_nll
        state.cut_short = not complete
        if complete:  # one cut short may be taken up again, as if it had not been
            state.epoch, state.batches, state.loss_sum, state.sample_size_sum = record.epoch, 0, 0.0, 0.0
            state.grid_updated = False
            state.log.append(record)
            state.best_nll = min(state.best_nll, record.test_nll)
        self.callbacks.on_epoch(state.log if complete else [*state.log, record])
        state.stream = self.rng.get_state().numpy()
        if best:
            self.callbacks.on_best(state)
        self._agree()
        ended = not complete or state.epoch == settings.num_epochs or is_out_of_time(state, settings)
        if ended or self._signal or state.epoch % settings.checkpoint_every == 0:
            self._save()
        self._obey()

    @property
    def _signal(self) -> int | None:
        """That this process was sent or, of several, one of them until they last agreed."""
        return self.interruption.number if self.world.size == 1 else self._signal_of_any

    def _agree(self) -> None:
        """Have the first process's clock, and whichever process's signal, hold for all."""
        if self.world.size > 1:
            own = torch.tensor([self.state.seconds, self.interruption.number or 0], dtype=torch.float64)
            told = self.world.gather(own)
            self.state.seconds = float(told[0, 0])
            self._signal_of_any = int(told[:, 1].max()) or None

    def _obey(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._signal is not None:
            raise Interrupted(self._signal)

    def _save(self) -> None:
        self.state.stream = self.rng.get_state().numpy()
        self.callbacks.on_checkpoint(self.state)
        self.saved_at = time.monotonic()

    def _take_steps(self, bar: Any) -> bool:
        """The steps of an epoch that are left; whether all of them were taken before the time was up."""
        state, settings = self.state, self.settings
        batches = self.order().split(settings.batch_size)
        for batch in batches[state.batches :]:
            if is_out_of_time(state, settings):
                break
            start = time.perf_counter()
            state.iteration += 1
            loss, size = self.step(batch)
            state.batches += 1
            state.cut_short = False
            state.loss_sum += loss * len(batch)
            state.sample_size_sum += size * len(batch)
            state.seconds += time.perf_counter() - start
            self._agree()
            bar.set_postfix(epoch=state.epoch + 1, loss=f"{loss:.3f}", ess=f"{size:.1f}", refresh=False)
            bar.update(len(batch))
            if self._signal or time.monotonic() - self.saved_at > 60 * settings.checkpoint_minutes:
                self._save()
            self._obey()
        if state.batches < len(batches):
            self.callbacks.say(
                f"max_seconds = {settings.max_seconds:g} have passed: stopping in epoch {state.epoch + 1}"
            )
        return state.batches == len(batches)

    def order(self) -> Tensor:
        """The images' order in the present epoch; drawn again if it goes on within one."""
        rng = self.rng
        if self.state.batches == 0:
            self.state.epoch_stream = rng.get_state().numpy()
        else:
            rng = torch.Generator()
            rng.set_state(torch.from_numpy(self.state.epoch_stream))
        return torch.randperm(len(self.images), generator=rng).to(self.images.device)

    def step(self, batch: Tensor) -> tuple[float, float]:
        """One iteration, on the images of these indices: its loss and effective sample size."""
        images = self.images[batch]
        if self.dataset.is_drawn_anew:
            images = binarise(images, self.rng)
        optimizer, objective, frozen = self.optimizer, self._objective_now(), None
        before = self.rng.get_state()
        self._set_rate()
        try:
            if self._grid_update_is_due():
                self._update_grids()
            if isinstance(optimizer, FunctionOptimizer):  # it needs to know the loss elsewhere too
                frozen = objective.freeze(self.model, images, self.rng)
                loss, size = frozen.estimate
            else:
                share = Share(len(images), images_rng=self._images_rng())
                loss, size = self._part(objective, images, self.rng, share)
            value, effective = self.world.total(loss.item(), float(size))
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value}")
        except FloatingPointError as error:
            self.rng.set_state(before)
            first = _first_non_finite(self.model, images, objective.num_samples, self.rng)
            raise FloatingPointError(f"{self._where()}: {error}; {first}") from error
        self.optimizer.zero_grad()
        with self.world.talking():
            (loss if self.world.size == 1 else self.world.size * loss).backward()  # the gradients' mean is taken
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm):
            bad = (n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all())
            raise FloatingPointError(f"{self._where()}: the gradient of {next(bad, 'the model')} is not finite")
        searched = ""
        if frozen is None:
            self.optimizer.step()
        else:
            searched = self._search(frozen)
        if self.settings.verbose:
            self.callbacks.say(
                f"iteration {self.state.iteration}: loss {value:.4f}, gradient norm {norm:.4f}{searched}"
            )
        return value, effective

    def _images_rng(self) -> torch.Generator | None:
        """For random numbers of each image's own, of this process in this iteration; the training's if it is alone."""
        world = self.world
        index = self.state.iteration * world.size + world.rank
        return None if world.size == 1 else random_stream(self.settings.seed, "images", index)

    def _part(self, objective: Objective, images: Tensor, rng: torch.Generator, share: Share) -> Estimate:
        """This process's part of the loss and effective sample size of a batch, (B, D)."""
        world, (own, is_there) = self.world, self.world.part(len(images))
        if world.size > 1 and self.settings.shard == "samples":
            share = replace(share, rank=world.rank, size=world.size, gather=world.gather)
            own, is_there = slice(None), True
        with world.talking():
            part = self.loss(objective, images[own], rng, share)
        return part if is_there else Estimate(0 * part.loss, 0 * part.effective_sample_size)

    def _set_rate(self) -> None:
        settings = self.config.optimizer
        factor = rate_factor(
            settings.schedule, self.state.iteration, self._num_steps, self._steps_per_epoch, elapsed=self._elapsed,
            warmup_steps=settings.warmup_steps, step_every=settings.step_every, step_factor=settings.step_factor,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor * group.get("scale", 1.0)

    @property
    def _elapsed(self) -> float:
        """Share of the time allowed that has passed."""
        return self.state.seconds / (self.settings.max_seconds or math.inf)

    def _objective_now(self) -> Objective:
        """The objective, with fewer samples while the training is young."""
        settings, objective = self.settings, self.objective
        if settings.initial_sample_size is None:
            return objective
        done = max((self.state.iteration - 1) / self._num_steps, self._elapsed)
        return replace(objective, num_samples=sample_size(settings.initial_sample_size, objective.num_samples, done))

    def _search(self, frozen: Frozen) -> str:
        """A step of an optimiser that lowers a function, the parameters holding the gradient: how far, in words."""
        optimizer = self.optimizer
        assert isinstance(optimizer, FunctionOptimizer)
        failures = optimizer.failures
        try:
            optimizer.step(frozen.function, frozen.value.item())
        except FloatingPointError as error:
            raise FloatingPointError(f"{self._where()}: {error}") from error
        if optimizer.failures > failures == 0:
            self.callbacks.say(
                f"warning: {self._where()}: no step was acceptable after {optimizer.evaluations} evaluations: the "
                "lowest one found was taken; the optimiser begins again, and its later failures are told at the end"
            )
        return f", step {optimizer.length:.4g} after {optimizer.evaluations} evaluations"

    def _where(self) -> str:
        return f"epoch {self.state.epoch + 1}, iteration {self.state.iteration}"

    def _grid_update_is_due(self) -> bool:
        state, settings = self.state, self.config.grid_update
        if not (settings.update_prior or settings.update_generator):
            return False
        return state.iteration == 1 or state.iteration - state.last_grid_update >= state.grid_update_period

    def _update_grids(self) -> None:
        state, settings, said = self.state, self.config.grid_update, {}
        if self.world.is_first:  # its draws and fits are those of all
            said = self.model.update_grids(
                settings.num_samples, self.rng, prior=settings.update_prior, generator=settings.update_generator
            )
        stream = self.rng.get_state()
        self.world.spread([*self.model.state_dict().values(), stream])
        self.rng.set_state(stream)
        problems = {layer: problem for layer, problem in said.items() if problem is not None}
        for layer, problem in problems.items():
            self.callbacks.say(f"warning: {self._where()}: grid update skipped: {layer}: {problem}")
        skipped, layers = self.world.first(len(problems), len(said))
        state.skipped_grid_updates += int(skipped)
        if isinstance(self.optimizer, FunctionOptimizer):  # of other coefficients, the loss is another function
            self.optimizer.restart()
        if state.iteration > 1:
            state.grid_update_period = next_period(state.grid_update_period, settings.decay, state.iteration)
        state.last_grid_update = state.iteration
        state.grid_updated |= skipped < layers
        if self.settings.verbose:
            self.callbacks.say(
                f"iteration {state.iteration}: grids updated, next in {state.grid_update_period} iterations"
            )

    @torch.no_grad()
    def evaluate(self, of_training: tuple[float, float] | None = None) -> EpochRecord:
        """The record of the present epoch; a signal is obeyed at once, and the state before saved.

        Args:
            of_training: loss and effective sample size; before any training, if None, those of as many training
                images as there are to test.
        """
        state, settings = self.state, self.settings
        epoch = state.epoch + 1 if state.log else 0
        rng = random_stream(settings.seed, "evaluation", epoch)
        try:
            with self.interruption.postponed(self.world.size > 1):  # the others would wait for this process
                if of_training is None:
                    of_training = self._mean_estimate(self.dataset.shown(len(self.test)).to(self.test), rng)
                train_loss, ess = of_training
                test_loss, _ = self._mean_estimate(self.test, rng)
                nll = self.dataset.log_volume - self._mean_log_evidence(rng)
                if not all(map(math.isfinite, (train_loss, test_loss, nll))):
                    figures = f"the training loss is {train_loss}, the test loss {test_loss}, the test NLL {nll}"
                    raise FloatingPointError(figures)
        except Interrupted:
            if state.iteration:
                self._save()
            raise
        except FloatingPointError as error:
            place = _first_non_finite(self.model, self.test, NLL_SAMPLES, rng)
            where = f"epoch {epoch}, iteration {state.iteration}, evaluation"
            raise FloatingPointError(f"{where}: {error}; {place}") from error
        return EpochRecord(state.seconds, epoch, train_loss, test_loss, state.grid_updated, nll, ess)

    def _mean_estimate(self, images: Tensor, rng: torch.Generator) -> tuple[float, float]:
        """Loss and effective sample size, the mean over the images, a batch at a time as in training."""
        sums, images_rng = torch.zeros(2, dtype=torch.float64), self._images_rng()
        for batch in images.split(self.settings.batch_size):
            share = Share(len(batch), images_rng=images_rng)
            part = self._part(self.objective, batch, rng, share)
            sums += len(batch) * torch.tensor([float(value) for value in part], dtype=torch.float64)
        loss, ess = self.world.total(*(sums / len(images)).tolist())
        return loss, ess

    def _mean_log_evidence(self, rng: torch.Generator) -> float:
        """Of the test images."""
        own, is_there = self.world.part(len(self.test))
        images = self.test[own]
        evidence = importance_log_evidence(self.model, images, NLL_SAMPLES, rng).log_evidence
        (mean,) = self.world.total(float(evidence.mean()) * (is_there * len(images) / len(self.test)))
        return mean


@torch.no_grad()
def _first_non_finite(model: LVKAM, images: Tensor, num_samples: int, rng: torch.Generator) -> str:
    """Where numbers first stop being finite on the way from parameters to the likelihood, in words."""

    def found(name: str, tensor: Tensor) -> str | None:
        return None if tensor.isfinite().all() else f"the first number that is not finite is in {name}"

    for name, tensor in (("the images", images), *model.named_parameters(), *model.named_buffers()):
        if place := found(name, tensor):
            return place
    try:
        z = model.prior.sample(num_samples, rng)
    except FloatingPointError:
        return "the first number that is not finite is in the prior's energies, all parameters being finite"
    for index, layer in enumerate(model.generator.layers):
        z = layer(z)
        if place := found(f"the outputs of generator.layers.{index}", z):
            return place
    return found("the log-likelihood", model.output_log_likelihood(images, z)) or "all before the loss is finite"
