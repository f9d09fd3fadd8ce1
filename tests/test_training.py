"""The loop: every batch of every epoch, grid updates at their cadence, the same bits for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lvkam.build import build_model
from lvkam.config import Config
from lvkam.data import Dataset
from lvkam.model import LVKAM
from lvkam.objectives import Estimate, ImportanceSampling
from lvkam.optimizers import build_optimizer
from lvkam.progress import EpochRecord, TrainingState
from lvkam.training import LONGEST_PERIOD, Callbacks, next_period, random_stream, train
from tests.conftest import small_config, stream


def made_config(*overrides: str) -> Config:
    """For `made_dataset`."""
    return small_config("TRAINING.N_train=50", *overrides)


def made_dataset() -> Dataset:
    dark = torch.rand(70, 1, generator=stream(0)) < 0.5
    pixels = torch.where(dark, 0.1, 0.9).repeat(1, 9)
    pixels[:, 0] = torch.arange(70) / 70  # tells the images apart
    return Dataset("made", pixels[:50], pixels[50:], (3, 3))


def run(
    config: Config,
    objective: ImportanceSampling | None = None,
    on_checkpoint: Callable[[TrainingState], None] = lambda _: None,
    on_best: Callable[[TrainingState], None] = lambda _: None,
    spoil: Callable[[LVKAM], None] = lambda _: None,
) -> tuple[LVKAM, list[EpochRecord], list[str], TrainingState]:
    model = build_model(config, 9)
    spoil(model)
    records: list[EpochRecord] = []
    lines: list[str] = []
    state = train(
        model,
        objective or ImportanceSampling(config.training.num_samples),
        build_optimizer(config.optimizer.type, model.parameters(), config.optimizer.learning_rate),
        made_dataset(),
        config,
        random_stream(config.training.seed, "training"),
        Callbacks(records.append, on_checkpoint, on_best, lines.append),
    )
    return model, records, lines, state


class Recording(ImportanceSampling):
    """Remembers the first pixel of every image that it was trained on."""

    seen: list[list[float]]

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator) -> Estimate:
        estimate = super().estimate(model, x, rng)
        if torch.is_grad_enabled():
            self.seen.append(x[:, 0].tolist())
        return estimate


def test_every_image_once_an_epoch_in_a_new_order() -> None:
    objective = Recording(4)
    object.__setattr__(objective, "seen", [])
    _, records, _, state = run(made_config("TRAINING.N_epochs=3", "TRAINING.batch_size=16"), objective)
    assert [len(batch) for batch in objective.seen] == [16, 16, 16, 2] * 3
    epochs = [[x for batch in objective.seen[4 * e : 4 * e + 4] for x in batch] for e in range(3)]
    everything = made_dataset().train[:, 0].tolist()
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert (state.epoch, state.iteration) == (3, 12)
    assert [r.epoch for r in records] == [0, 1, 2, 3]
    assert all(math.isfinite(v) for r in records for v in r)
    assert all(a.seconds < b.seconds for a, b in zip(records[:-1], records[1:], strict=True))


def test_training_lowers_the_loss() -> None:
    _, records, _, _ = run(made_config("TRAINING.N_epochs=80", "OPTIMIZER.learning_rate=0.02"))
    # one coin and eight nearly certain pixels: an entropy of 0.7 + 8 * 0.33 + 0.6 nats, and 6.2 at first
    assert records[0].test_nll > 6
    assert records[-1].test_nll < 4.5
    assert records[-1].train_loss < records[0].train_loss - 0.5


@pytest.mark.parametrize("overrides", [(), ("KAN_LIKELIHOOD.generator_noise_var=0.1",), ("OPTIMIZER.type=sgd",)])
def test_the_same_seed_gives_the_same_bits(overrides: tuple[str, ...]) -> None:
    (a, first, _, _), (b, second, _, _) = run(made_config(*overrides)), run(made_config(*overrides))
    assert [r[1:] for r in first] == [r[1:] for r in second]  # all but the seconds
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    other, _, _, _ = run(made_config(*overrides, "TRAINING.seed=2"))
    assert not torch.equal(a.prior.mixture_logits, other.prior.mixture_logits)


def test_random_streams_differ_and_repeat() -> None:
    keys = [
        (1, "training", 0),
        (1, "evaluation", 0),
        (1, "evaluation", 1),
        (2, "training", 0),
        (2**63 - 1, "training", 0),
    ]
    draws = [tuple(torch.rand(4, generator=random_stream(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.rand(4, generator=random_stream(*key)).tolist()) for key in keys]


def test_the_cadence_of_grid_updates_compounds() -> None:
    """1, 51, 134, 448 for the reference's defaults, worked out by hand: 50 * 1.01^51 = 83.06, 83 * 1.01^134 = 314.9."""
    due, last, period = [1], 1, 50
    while len(due) < 4:
        iteration = last + period
        due.append(iteration)
        last, period = iteration, next_period(period, 0.99, iteration)
    assert due == [1, 51, 134, 448]
    assert next_period(50, 1.0, 10**6) == 50
    assert next_period(50, 0.0, 10**8) == LONGEST_PERIOD


@pytest.mark.parametrize(
    ("overrides", "updates"),
    [
        ([], [1, 4, 7, 10]),
        (["GRID_UPDATING.update_prior_grid=false"], [1, 4, 7, 10]),
        (["GRID_UPDATING.update_prior_grid=false", "GRID_UPDATING.update_llhood_grid=false"], []),
        (["GRID_UPDATING.grid_update_frequency=100"], [1]),
    ],
)
def test_grids_adapt_when_due(overrides: list[str], updates: list[int]) -> None:
    config = made_config(
        "TRAINING.verbose=true", "TRAINING.N_epochs=3", "TRAINING.batch_size=16",
        "GRID_UPDATING.grid_update_frequency=3", "GRID_UPDATING.grid_update_decay=1", *overrides,
    )  # fmt: skip
    _, records, lines, _ = run(config)
    found = [int(line.split(":")[0].removeprefix("iteration ")) for line in lines if "grids updated" in line]
    assert found == updates
    assert [r.grid_updated for r in records] == [
        False,
        *(any(4 * e < u <= 4 * e + 4 for u in updates) for e in range(3)),
    ]
    assert sum("gradient norm" in line for line in lines) == 12


def test_checkpoints_come_when_due() -> None:
    saved: list[int] = []
    config = made_config("TRAINING.N_epochs=5", "TRAINING.checkpoint_every=2")
    run(config, on_checkpoint=lambda state: saved.append(state.epoch))
    assert saved == [2, 4, 5]
    config = made_config("TRAINING.N_epochs=1", "TRAINING.batch_size=10", "TRAINING.checkpoint_minutes=1e-9")
    iterations: list[int] = []
    run(config, on_checkpoint=lambda state: iterations.append(state.iteration))
    assert iterations == [1, 2, 3, 4, 5, 5]


def test_training_stops_when_its_seconds_have_passed() -> None:
    _, records, lines, state = run(made_config("TRAINING.N_epochs=100000", "TRAINING.max_seconds=0.2"))
    assert 0.2 <= state.seconds < 5
    assert records[-1].epoch == state.epoch < 100000
    assert any(line.startswith("max_seconds = 0.2 have passed: stopping in epoch") for line in lines)


def test_figures_that_are_not_finite_stop_before_they_are_saved() -> None:
    saved: list[int] = []
    models: list[LVKAM] = []

    def spoil(model: LVKAM) -> None:
        with torch.no_grad():
            next(iter(model.generator.parameters())).fill_(torch.nan)

    def save_then_spoil(state: TrainingState) -> None:
        saved.append(state.epoch)
        spoil(models[0])

    with pytest.raises(FloatingPointError, match=r"^epoch 0: the test loss is nan, the test NLL nan$"):
        run(made_config(), spoil=spoil)
    overrides = ("GRID_UPDATING.update_llhood_grid=false", "TRAINING.N_epochs=3")
    with pytest.raises(FloatingPointError, match=r"^epoch 2, iteration 3: the loss is nan$"):
        run(made_config(*overrides), on_checkpoint=save_then_spoil, spoil=models.append)
    assert saved == [1]


class Poisoned(ImportanceSampling):
    """A finite loss whose gradient is not, as the square root of zero has it."""

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator) -> Estimate:
        estimate = super().estimate(model, x, rng)
        return estimate._replace(loss=estimate.loss + (model.prior.mixture_logits * 0).sum().sqrt())


def test_a_gradient_that_is_not_finite_names_its_parameter() -> None:
    with pytest.raises(FloatingPointError, match=r"^epoch 1, iteration 1: the gradient of prior.mixture_logits is not"):
        run(made_config(), Poisoned(4))
