"""The loop: every batch of every epoch, grid updates at their cadence, the same bits for the same seed."""

from __future__ import annotations

import copy
import math
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from lvkam.build import (
    build_config_optimizer,
    build_model,
    build_objective,
    model_arrays,
    optimizer_arrays,
    set_model_arrays,
    set_optimizer_arrays,
)
from lvkam.config import Config
from lvkam.data import Dataset, static_bits
from lvkam.descent import FunctionOptimizer
from lvkam.interruption import Interrupted, Interruption
from lvkam.model import LVKAM
from lvkam.objectives import Estimate, Frozen, ImportanceSampling, Objective
from lvkam.optimizers import SEARCHING, rate_factor
from lvkam.prior import MixturePrior
from lvkam.progress import EpochRecord, TrainingState
from lvkam.shares import Share
from lvkam.training import (
    LONGEST_PERIOD,
    Callbacks,
    is_finished,
    next_period,
    random_stream,
    rehearse,
    sample_size,
    train,
)
from lvkam.univariate import UnivariateFunctions
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
    dataset: Dataset | None = None,
) -> tuple[LVKAM, list[EpochRecord], list[str], TrainingState]:
    model = build_model(config, 9)
    spoil(model)
    records: list[EpochRecord] = []
    lines: list[str] = []
    state = train(
        model,
        objective or ImportanceSampling(config.training.num_samples),
        build_config_optimizer(config, model),
        dataset or made_dataset(),
        config,
        random_stream(config.training.seed, "training"),
        Callbacks(lambda log: records.append(log[-1]), on_checkpoint, on_best, lines.append),
    )
    return model, records, lines, state


@pytest.mark.parametrize(("first", "expected"), [("none", [16]), ("4", [4, 16])])
def test_a_rehearsal_meets_the_first_sample_size_and_the_last(
    first: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no kernel is compiled amid the training, once its samples become more."""
    config, seen = made_config(f"TRAINING.initial_sample_size={first}", "TRAINING.N_epochs=9"), []
    model, estimate = build_model(config, 9), Objective.estimate

    def watched(self: Objective, *arguments: Any) -> Estimate:
        if torch.is_grad_enabled():
            seen.append(self.num_samples)
        return estimate(self, *arguments)

    monkeypatch.setattr(Objective, "estimate", watched)
    optimizer, rng = build_config_optimizer(config, model), random_stream(1, "training")
    rehearse(model, build_objective(config), optimizer, made_dataset(), config, rng)
    assert seen == expected


class Recording(ImportanceSampling):
    """Remembers the first pixel, or other ones, of every image that it was trained on."""

    seen: list[list[Any]]
    column: int | slice = 0

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Estimate:
        estimate = super().estimate(model, x, rng, share)
        if torch.is_grad_enabled():
            self.seen.append(x[:, self.column].tolist())
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


def test_bits_are_drawn_anew_each_time_that_an_image_is_seen() -> None:
    grey = torch.linspace(0.05, 0.95, 9).repeat(70, 1)
    dataset = Dataset("made", grey[:50], grey[50:], (3, 3)).binarised(anew=True)
    objective = Recording(4)
    object.__setattr__(objective, "seen", [])
    object.__setattr__(objective, "column", slice(None))
    _, records, _, _ = run(made_config("TRAINING.N_epochs=60"), objective, dataset=dataset)
    seen = torch.tensor([image for batch in objective.seen for image in batch], dtype=torch.float64)
    assert seen.shape == (60 * 50, 9)
    assert set(seen.unique().tolist()) == {0, 1}
    p = grey[0].double()
    z = (seen.mean(0) - p) * (len(seen) / (p * (1 - p))).sqrt()
    assert chi2.sf(float(z.square().sum()), 9) > 1e-6  # the rate of false alarms
    # what is evaluated is not drawn anew
    still = replace(dataset, train=static_bits(dataset.train, "train"), is_drawn_anew=False)
    assert run(made_config("TRAINING.N_epochs=1"), objective, dataset=still)[1][0][1:] == records[0][1:]


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
    config = made_config("TRAINING.N_epochs=100000", "TRAINING.max_seconds=0.2", "TRAINING.batch_size=5")
    _, records, lines, state = run(config)
    assert 0.2 <= state.seconds < 5
    cut = 0 < state.batches < 10  # else the time was up between two epochs
    # an epoch cut short is recorded, but not complete: it may be taken up again
    assert records[-1].epoch == state.epoch + cut < 100000
    assert [r.epoch for r in state.log] == list(range(state.epoch + 1))
    assert state.iteration == 10 * state.epoch + state.batches
    told = f"max_seconds = 0.2 have passed: stopping in epoch {state.epoch + 1}"
    assert lines == ([told] if cut else [])


def spoiled(name: str, value: float = math.nan) -> Callable[[LVKAM], None]:
    """What makes one number of a parameter another."""

    def spoil(model: LVKAM) -> None:
        with torch.no_grad():
            dict(model.named_parameters())[name].view(-1)[0] = value

    return spoil


def test_figures_that_are_not_finite_stop_before_they_are_saved() -> None:
    name = "generator.layers.0.coef"
    place = rf"the first number that is not finite is in {name}$"
    with pytest.raises(
        FloatingPointError,
        match=rf"^epoch 0, iteration 0, evaluation: the training loss is nan, .* nan; {place}",
    ):
        run(made_config(), spoil=spoiled(name))
    saved: list[int] = []
    best: list[int] = []
    models: list[LVKAM] = []

    def save_then_spoil(state: TrainingState) -> None:
        saved.append(state.epoch)
        spoiled(name)(models[0])

    overrides = ("GRID_UPDATING.update_llhood_grid=false", "TRAINING.N_epochs=3")
    with pytest.raises(FloatingPointError, match=rf"^epoch 2, iteration 3: the loss is nan; {place}"):
        run(made_config(*overrides), None, save_then_spoil, lambda state: best.append(state.epoch), models.append)
    assert saved == best == [1]


class Poisoned(ImportanceSampling):
    """A finite loss whose gradient is not, as the square root of zero has it."""

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Estimate:
        estimate = super().estimate(model, x, rng, share)
        return estimate._replace(loss=estimate.loss + (model.prior.mixture_logits * 0).sum().sqrt())


def test_a_gradient_that_is_not_finite_names_its_parameter() -> None:
    saved: list[TrainingState] = []
    message = r"^epoch 1, iteration 1: the gradient of prior\.mixture_logits is not finite$"
    config = made_config("TRAINING.checkpoint_minutes=1e-9")
    with pytest.raises(FloatingPointError, match=message):
        run(config, Poisoned(4), on_checkpoint=saved.append)
    assert saved == []


FIRST = "the first number that is not finite is in "


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [n for n, _ in build_model(made_config(), 9).named_parameters()])
def test_a_parameter_that_is_not_finite_is_named(name: str, value: float) -> None:
    # before training it is the evaluation that finds it; the training's own step must as well
    with pytest.raises(FloatingPointError) as caught:
        run(made_config(), spoil=spoiled(name, value))
    assert re.fullmatch(rf"epoch 0, iteration 0, evaluation: .*; {FIRST}{re.escape(name)}", str(caught.value))
    models: list[LVKAM] = []
    config = made_config("TRAINING.checkpoint_minutes=1e-9", "TRAINING.batch_size=10")
    with pytest.raises(FloatingPointError) as caught:
        run(config, None, lambda s: spoiled(name, value)(models[0]) if s.iteration == 3 else None, spoil=models.append)
    assert re.fullmatch(rf"epoch 1, iteration 4: .*; {FIRST}{re.escape(name)}", str(caught.value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_that_is_not_finite_is_named(value: float) -> None:
    made = made_dataset()
    train_images, test_images = made.train.clone(), made.test.clone()
    train_images[40, 3] = value  # none of the first 20, on which epoch 0 is judged
    with pytest.raises(FloatingPointError) as caught:
        run(made_config("TRAINING.batch_size=10"), dataset=replace(made, train=train_images))
    told = re.fullmatch(rf"epoch 1, iteration (\d): the loss is .*; {FIRST}the images", str(caught.value))
    assert told is not None
    order = torch.randperm(50, generator=random_stream(1, "training")).tolist()
    assert int(told[1]) == order.index(40) // 10 + 1
    test_images[7, 3] = value
    with pytest.raises(FloatingPointError) as caught:
        run(made_config(), dataset=replace(made, test=test_images))
    assert re.fullmatch(
        rf"epoch 0, iteration 0, evaluation: the training loss is .*; {FIRST}the images", str(caught.value)
    )


def test_energies_outputs_and_likelihoods_that_are_not_finite_are_named() -> None:
    def told(name: str, value: float, *overrides: str) -> str:
        models: list[LVKAM] = []

        def spoil(state: TrainingState) -> None:
            with torch.no_grad():
                dict(models[0].named_parameters())[name].fill_(value)

        config = made_config("TRAINING.N_epochs=2", "GRID_UPDATING.update_prior_grid=false",
                             "GRID_UPDATING.update_llhood_grid=false", *overrides)  # fmt: skip
        with pytest.raises(FloatingPointError) as caught:
            run(config, None, spoil, spoil=models.append)
        where, found = str(caught.value).split("; ")
        assert where.startswith("epoch 2, iteration 3: ")
        return found

    finite = f"{FIRST}the prior's energies, all parameters being finite"
    assert told("prior.layers.0.coef", 3e38) == finite
    assert told("prior.layers.1.w_base", 3e38, "MIX_PRIOR.layer_widths=3, 5, 4") == finite
    assert told("generator.layers.0.w_base", 3e38) == f"{FIRST}the outputs of generator.layers.0"
    assert told("generator.layers.1.coef", 3e38) == f"{FIRST}the outputs of generator.layers.1"
    normal = ("KAN_LIKELIHOOD.likelihood_model=l2", "KAN_LIKELIHOOD.output_activation=none")
    assert told("generator.layers.1.w_base", 1e30, *normal) == f"{FIRST}the log-likelihood"


class Undefined(ImportanceSampling):
    """A loss that is not finite where all else is, in training only."""

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Estimate:
        estimate = super().estimate(model, x, rng, share)
        return estimate._replace(loss=estimate.loss * math.inf) if torch.is_grad_enabled() else estimate


def test_a_loss_that_alone_is_not_finite_is_told() -> None:
    with pytest.raises(FloatingPointError) as caught:
        run(made_config(), Undefined(4))
    assert re.fullmatch(r"epoch 1, iteration 1: the loss is -?inf; all before the loss is finite", str(caught.value))


def test_what_is_not_finite_when_grids_are_due_is_named() -> None:
    # the update comes before the loss, and draws from the prior
    models: list[LVKAM] = []
    config = made_config("TRAINING.N_epochs=2", "GRID_UPDATING.grid_update_frequency=2")
    with pytest.raises(FloatingPointError) as caught:
        run(config, None, lambda _: spoiled("prior.layers.0.coef")(models[0]), spoil=models.append)
    place = f"{FIRST}prior.layers.0.coef"
    assert re.fullmatch(rf"epoch 2, iteration 3: prior: .*; {re.escape(place)}", str(caught.value))


def test_a_grid_update_that_would_spoil_a_layer_is_skipped_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    update = UnivariateFunctions.update_grid
    calls = 0

    def sometimes(layer: UnivariateFunctions, x: Tensor) -> str | None:
        nonlocal calls
        calls += 1
        # prior.layers.0, generator.layers.0, generator.layers.1, and so on
        return "a reason" if calls in {2, 4, 5, 6} else update(layer, x)

    monkeypatch.setattr(UnivariateFunctions, "update_grid", sometimes)
    config = made_config("TRAINING.batch_size=16", "GRID_UPDATING.grid_update_frequency=3",
                         "GRID_UPDATING.grid_update_decay=1")  # fmt: skip
    saved: list[int] = []
    _, records, lines, state = run(config, on_checkpoint=lambda state: saved.append(state.skipped_grid_updates))
    assert calls == 3 * 3  # at iterations 1, 4 and 7
    assert lines == [
        "warning: epoch 1, iteration 1: grid update skipped: generator.layers.0: a reason",
        "warning: epoch 1, iteration 4: grid update skipped: prior.layers.0: a reason",
        "warning: epoch 1, iteration 4: grid update skipped: generator.layers.0: a reason",
        "warning: epoch 1, iteration 4: grid update skipped: generator.layers.1: a reason",
    ]
    assert state.skipped_grid_updates == 4
    assert saved == [4, 4]
    assert (state.epoch, state.iteration, state.last_grid_update) == (2, 8, 7)
    assert [r.epoch for r in records] == [0, 1, 2]
    assert all(math.isfinite(value) for r in records for value in r)


# --- the best epoch


def given_figures(monkeypatch: pytest.MonkeyPatch, figures: list[float]) -> None:
    """Let the test NLL of the epochs be these, from epoch 0 on."""
    values = iter(figures)

    def evidence(*_: object) -> SimpleNamespace:
        return SimpleNamespace(log_evidence=-torch.tensor([next(values)], dtype=torch.float64))

    monkeypatch.setattr("lvkam.training.importance_log_evidence", evidence)


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([5.0, 6.0, 5.5, 5.5, 7.0, 3.0], [1, 2, 5]),
        ([1.0, 2.0, 3.0], [1]),  # epoch 0 is before any training
        ([1.0, -1.0, -2.0, -2.0], [1, 2]),
        ([9.0, 8.0, 7.0, 6.0], [1, 2, 3]),
    ],
)
def test_the_best_is_told_when_it_comes(figures: list[float], best: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    given_figures(monkeypatch, figures)
    told: list[tuple[int, float]] = []
    order: list[str] = []
    config = made_config(f"TRAINING.N_epochs={len(figures) - 1}", "TRAINING.checkpoint_every=100")

    def on_best(state: TrainingState) -> None:
        told.append((state.epoch, state.best_nll))
        order.append("best")
        assert state.batches == 0

    _, _, _, state = run(config, on_checkpoint=lambda _: order.append("saved"), on_best=on_best)
    assert told == [(epoch, figures[epoch]) for epoch in best]
    assert order == ["best"] * len(best) + ["saved"]
    assert state.best_nll == min(figures[1:])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_the_best(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given_figures(monkeypatch, [5.0, 4.0, bad])
    best: list[int] = []
    saved: list[int] = []
    with pytest.raises(
        FloatingPointError,
        match=r"^epoch 2, iteration \d+, evaluation: .*, the test NLL -?(nan|inf); all",
    ):
        run(made_config(), None, lambda state: saved.append(state.epoch), lambda state: best.append(state.epoch))
    assert best == saved == [1]


# --- going on


class Clock:
    """Stands for `time`: every look at the clock takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now

    def monotonic(self) -> float:
        return self.now


@dataclass
class Copy:
    """All that a training goes on from, as it was at one moment."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    arrays: dict[str, np.ndarray]
    epoch: int
    iteration: int
    in_file: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


class Training:
    """A training whose every state can be kept, and gone on from."""

    def __init__(self, config: Config, objective: Objective | None = None, interruption: Interruption | None = None):
        self.config, self.interruption = config, interruption
        self.objective = objective or build_objective(config)
        self.model = build_model(config, 9)
        self.optimizer = build_config_optimizer(config, self.model)
        self.rng = random_stream(config.training.seed, "training")
        self.state: TrainingState | None = None
        self.records: list[EpochRecord] = []
        self.best: list[int] = []
        self.copies: list[Copy] = []
        self.lines: list[str] = []

    def keep(self, state: TrainingState) -> None:
        in_file = model_arrays(self.model), optimizer_arrays(self.model, self.optimizer)
        arrays = {name: array.copy() for name, array in state.to_arrays().items()}
        assert torch.equal(torch.from_numpy(arrays["stream"]), self.rng.get_state())
        self.copies.append(
            Copy(
                model=copy.deepcopy(self.model.state_dict()),
                optimizer=copy.deepcopy(self.optimizer.state_dict()),
                arrays=arrays,
                epoch=state.epoch,
                iteration=state.iteration,
                in_file=copy.deepcopy(in_file),
            )
        )

    def run(self, on_epoch: Callable[[EpochRecord], None] = lambda _: None) -> TrainingState:
        def record(log: Sequence[EpochRecord]) -> None:
            self.records.append(log[-1])
            on_epoch(log[-1])

        callbacks = Callbacks(record, self.keep, lambda state: self.best.append(state.epoch), self.lines.append)
        dataset = made_dataset()
        if self.config.training.binarize != "none":
            dataset = dataset.binarised(anew=self.config.training.binarize == "dynamic")
        self.state = train(
            self.model, self.objective, self.optimizer, dataset, self.config, self.rng, callbacks, self.state,
            self.interruption,
        )  # fmt: skip
        return self.state

    @staticmethod
    def resumed(config: Config, saved: Copy, objective: Objective | None = None, *, by_file: bool = False) -> Training:
        """Built anew, brought to where the copy was taken, and run to its end."""
        training = Training(config, objective)
        if by_file:
            arrays, of_optimizer = copy.deepcopy(saved.in_file)
            set_model_arrays(training.model, arrays)
            set_optimizer_arrays(training.model, training.optimizer, of_optimizer)
        else:
            training.model.load_state_dict(saved.model)
            training.optimizer.load_state_dict(saved.optimizer)
        training.state = TrainingState.from_arrays(saved.epoch, saved.iteration, copy.deepcopy(saved.arrays))
        training.rng.set_state(torch.from_numpy(training.state.stream.copy()))
        training.run()
        return training


def untimed(records: list[EpochRecord]) -> list[EpochRecord]:
    return [record._replace(seconds=0) for record in records]


def require_same(training: Training, expected: Training) -> None:
    """To the bit: model, optimiser, random numbers, state, log and best; only seconds may differ."""
    for one, other in ((training.model.state_dict(), expected.model.state_dict()),
                       (optimizer_arrays(training.model, training.optimizer),
                        optimizer_arrays(expected.model, expected.optimizer))):  # fmt: skip
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name
    states = [t.optimizer.state_dict()["state"] for t in (training, expected)]
    assert states[0].keys() == states[1].keys()
    for index, entry in states[0].items():
        assert {n: (v.dtype, v.device) for n, v in entry.items()} == {
            n: (v.dtype, v.device) for n, v in states[1][index].items()
        }
    assert torch.equal(training.rng.get_state(), expected.rng.get_state())
    one, other = training.state, expected.state
    assert one is not None
    assert other is not None
    assert untimed(one.log) == untimed(other.log)
    arrays = one.to_arrays(), other.to_arrays()
    for name in arrays[0].keys() - {"seconds", "log"}:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name], err_msg=name)
    assert (one.epoch, one.iteration) == (other.epoch, other.iteration)


def ragged_config(*overrides: str) -> Config:
    """2 epochs of 16, 16, 16 and 2 images; grids updated at iterations 1, 3, 5 and 8; saved at every step."""
    return made_config(
        "TRAINING.batch_size=16", "TRAINING.checkpoint_minutes=1e-9", "GRID_UPDATING.grid_update_frequency=2",
        "GRID_UPDATING.grid_update_decay=0.9", "KAN_LIKELIHOOD.generator_noise_var=0.1", *overrides,
    )  # fmt: skip


OBJECTIVES = {
    "vanilla": ("THERMODYNAMIC_INTEGRATION.num_temps=1", "TRAINING.gradient_samples=4",
                "TRAINING.gradient_selection=resampled"),
    "thermodynamic": ("THERMODYNAMIC_INTEGRATION.num_temps=4", "THERMODYNAMIC_INTEGRATION.estimator=steppingstone",
                      "THERMODYNAMIC_INTEGRATION.moves_per_temperature=1"),
}  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rms"])
def test_a_training_goes_on_to_the_same_bits_from_wherever_it_was_saved(optimizer: str, objective: str) -> None:
    config = ragged_config(f"OPTIMIZER.type={optimizer}", *OBJECTIVES[objective], "MIX_PRIOR.spline_function=RBF")
    undisturbed = Training(config)
    undisturbed.run()
    points = [(saved.iteration, saved.epoch, int(saved.arrays["batches"])) for saved in undisturbed.copies]
    assert points == [
        (1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 0, 4), (4, 1, 0), (5, 1, 1), (6, 1, 2), (7, 1, 3), (8, 1, 4), (8, 2, 0),
    ]  # fmt: skip
    updates = [int(saved.arrays["last_grid_update"]) for saved in undisturbed.copies]
    assert updates == [1, 1, 3, 3, 3, 5, 5, 5, 8, 8]
    for index, saved in enumerate(undisturbed.copies):
        going_on = Training.resumed(config, saved, by_file=index % 2 == 0)
        require_same(going_on, undisturbed)
        assert untimed(going_on.records) == untimed(undisturbed.records[saved.epoch + 1 :])
        assert going_on.best == [epoch for epoch in undisturbed.best if epoch > saved.epoch]


@pytest.mark.parametrize("optimizer", ["adam", "l-bfgs"])
def test_a_training_on_bits_drawn_anew_goes_on_to_the_same_bits(optimizer: str) -> None:
    config = ragged_config(f"OPTIMIZER.type={optimizer}", *OBJECTIVES["vanilla"], *TINY, "TRAINING.binarize=dynamic")
    undisturbed = Training(config)
    undisturbed.run()
    for index, saved in enumerate(undisturbed.copies):
        require_same(Training.resumed(config, saved, by_file=index % 2 == 0), undisturbed)


TINY = (
    "MIX_PRIOR.layer_widths=2, 2", "MIX_PRIOR.grid_size=2", "MIX_PRIOR.spline_degree=1",
    "KAN_LIKELIHOOD.expert_widths=2", "KAN_LIKELIHOOD.grid_size=2", "KAN_LIKELIHOOD.spline_degree=1",
    "MIX_PRIOR.spline_function=RBF", "MIX_PRIOR.quadrature_points=32", "TRAINING.MC_expectation_sample_size=8",
)  # fmt: skip
"""Of some hundred parameters, so that second derivatives and simplices are quick."""


COSINE = ("OPTIMIZER.schedule=cosine", "OPTIMIZER.warmup_steps=3")


@pytest.mark.parametrize(("optimizer", "schedule"), [*((o, ()) for o in SEARCHING), ("cg", COSINE), ("l-bfgs", COSINE)])
def test_one_that_lowers_functions_goes_on_to_the_same_bits(optimizer: str, schedule: tuple[str, ...]) -> None:
    config = ragged_config(f"OPTIMIZER.type={optimizer}", *OBJECTIVES["vanilla"], *TINY, "OPTIMIZER.l-bfgs_memory=3",
                           "OPTIMIZER.learning_rate=0.05", "GRID_UPDATING.grid_update_frequency=3",
                           *schedule)  # fmt: skip
    undisturbed = Training(config)
    undisturbed.run()
    updates = [int(saved.arrays["last_grid_update"]) for saved in undisturbed.copies]
    assert updates == [1, 1, 1, 4, 4, 4, 4, 4, 8, 8]
    for index, saved in enumerate(undisturbed.copies[:: 6 if optimizer == "neldermead" else 3]):  # it takes its time
        require_same(Training.resumed(config, saved, by_file=index % 2 == 0), undisturbed)
    if optimizer in {"cg", "bfgs", "l-bfgs"}:  # what it remembers matters, but where it starts afresh anyway

        def parameters(training: Training) -> torch.Tensor:
            return torch.nn.utils.parameters_to_vector(training.model.parameters())

        forgetful = []
        for saved in undisturbed.copies[5:8]:
            nothing = {name: np.zeros_like(array) for name, array in saved.in_file[1].items()}
            forgetful.append(
                Training.resumed(config, replace(saved, in_file=(saved.in_file[0], nothing)), by_file=True)
            )
        assert any(not torch.equal(parameters(t), parameters(undisturbed)) for t in forgetful)


def test_a_step_draws_the_same_random_numbers_whatever_the_optimiser() -> None:
    states = []
    for optimizer in ("adam", "l-bfgs", "newton"):
        training = Training(ragged_config(f"OPTIMIZER.type={optimizer}", *OBJECTIVES["vanilla"], *TINY))
        training.run()
        states.append(training.copies[0].arrays["stream"])
    assert (states[0] == states[1]).all()
    assert (states[0] == states[2]).all()


@pytest.mark.parametrize("optimizer", ["adam", "gd"])
def test_the_learning_rate_takes_its_course(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rates by hand, so that what the optimiser is told is looked at, step by step."""
    settings = ("OPTIMIZER.schedule=step", "OPTIMIZER.warmup_steps=3", "OPTIMIZER.step_every=1",
                "OPTIMIZER.step_factor=0.25", "OPTIMIZER.learning_rate=0.04", "TRAINING.batch_size=16")  # fmt: skip
    training = Training(made_config(f"OPTIMIZER.type={optimizer}", *settings, *TINY))
    kind, rates = type(training.optimizer), []
    step = kind.step

    def watched(self: Any, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(kind, "step", watched)
    training.run()
    assert rates == pytest.approx([0.04 / 3, 0.08 / 3, 0.04, 0.04, *[0.01] * 4])
    cosine = Training(made_config(f"OPTIMIZER.type={optimizer}", "OPTIMIZER.schedule=cosine", *settings[1:], *TINY))
    rates.clear()
    cosine.run()
    assert rates == [0.04 * rate_factor("cosine", i, 8, 4, warmup_steps=3) for i in range(1, 9)]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rms"])
@pytest.mark.parametrize("scale", [0.0, 0.25])
def test_the_prior_learns_at_its_own_rate(scale: float, optimizer: str) -> None:
    """A step moves its parameters by that share of what it would, the generator's as ever."""
    moved = []
    for factor in (1.0, scale):
        training = Training(made_config(f"OPTIMIZER.type={optimizer}", "THERMODYNAMIC_INTEGRATION.num_temps=1",
                                        "GRID_UPDATING.update_prior_grid=false", f"OPTIMIZER.prior_rate={factor}",
                                        "GRID_UPDATING.update_llhood_grid=false", "TRAINING.batch_size=50",
                                        "TRAINING.N_epochs=1"))  # fmt: skip
        before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
        training.run()
        moved.append({name: p.detach() - before[name] for name, p in training.model.named_parameters()})
    for name, whole in moved[0].items():
        assert whole.abs().max() > 0
        expected = scale * whole if name.startswith("prior") else whole
        torch.testing.assert_close(moved[1][name], expected, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize(("first", "last", "stages"), [
    (1, 8, [1, 2, 4, 8]), (8, 8, [8]), (3, 7, [3, 7]), (2, 7, [3, 7]), (500, 2000, [500, 1000, 2000]), (5, 9, [9]),
])  # fmt: skip
def test_samples_double_at_equal_intervals(first: int, last: int, stages: list[int]) -> None:
    sizes = [sample_size(first, last, done / 1000) for done in range(1001)]
    assert sorted(set(sizes)) == stages
    assert sizes == sorted(sizes)
    assert all(abs(sizes[:1000].count(size) - 1000 / len(stages)) <= 1 for size in stages)
    assert sample_size(first, last, 7.0) == last  # longer than it was to take


def test_samples_grow_while_a_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its steps, or by the clock if that is faster; test figures are of all samples; it resumes to the bit."""
    growing = ("THERMODYNAMIC_INTEGRATION.num_temps=1", "TRAINING.MC_expectation_sample_size=32",
               "TRAINING.initial_sample_size=8")  # fmt: skip
    config = ragged_config(*growing)
    seen: list[int] = []
    draw = MixturePrior.sample

    def watched(self: MixturePrior, num_samples: int, *arguments: Any) -> Tensor:
        if num_samples < 32:  # neither for an evaluation nor for a grid update
            seen.append(num_samples)
        return draw(self, num_samples, *arguments)

    monkeypatch.setattr(MixturePrior, "sample", watched)
    undisturbed = Training(config)
    undisturbed.run()
    assert seen == [8, 8, 8, 16, 16, 16]  # of 8 steps the last two have 32
    going_on = Training.resumed(config, undisturbed.copies[4], by_file=True)
    require_same(going_on, undisturbed)

    seen.clear()
    timed = Training(ragged_config(*growing, "TRAINING.max_seconds=1e6"))
    timed.state = TrainingState(grid_update_period=config.grid_update.frequency, seconds=5e5)
    timed.run()
    assert seen == [16] * 6


def test_memory_starts_afresh_when_grids_move() -> None:
    config = made_config("OPTIMIZER.type=l-bfgs", "TRAINING.batch_size=5", "GRID_UPDATING.grid_update_frequency=4",
                         "GRID_UPDATING.grid_update_decay=1", "TRAINING.checkpoint_minutes=1e-9", "TRAINING.N_epochs=1",
                         *TINY)  # fmt: skip
    training = Training(config)
    training.run()
    counts = [int(saved.in_file[1]["prior/mixture_logits/step"]) for saved in training.copies]
    iterations = [saved.iteration for saved in training.copies]
    assert all(counts[i - 1] <= (i - 1) % 4 + 1 for i in iterations)
    assert max(counts) >= 3


class Deceiving(ImportanceSampling):
    """A function without the loss's gradient, from the fourth call on: nothing can be found along it."""

    def freeze(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Frozen:
        frozen = super().freeze(model, x, rng, share)
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + torch.is_grad_enabled())
        if getattr(self, "calls", 0) < 4:
            return frozen
        return frozen._replace(function=lambda: frozen.function() * 0 + frozen.value)


def test_a_search_that_fails_is_told_once() -> None:
    config = made_config("OPTIMIZER.type=cg", "TRAINING.batch_size=10", "TRAINING.verbose=true", *TINY)
    training = Training(config, Deceiving(8))
    training.run()
    warnings = [line for line in training.lines if line.startswith("warning")]
    assert len(warnings) == 1
    assert re.fullmatch(
        r"warning: epoch 1, iteration 4: no step was acceptable after \d+ evaluations: the lowest one found was taken; "
        "the optimiser begins again, and its later failures are told at the end", warnings[0],
    )  # fmt: skip
    assert isinstance(training.optimizer, FunctionOptimizer)
    assert training.optimizer.failures == 7
    steps = [line for line in training.lines if line.startswith("iteration") and "loss" in line]
    pattern = r"iteration \d+: loss \S+, gradient norm \S+, step \S+ after \d+ evaluations"
    assert all(re.fullmatch(pattern, line) for line in steps)
    assert all("step 0 after" in line for line in steps[3:])


class Unbounded(ImportanceSampling):
    """A function whose second derivatives are not finite."""

    def freeze(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Frozen:
        frozen = super().freeze(model, x, rng, share)
        logits = model.prior.mixture_logits
        return frozen._replace(function=lambda: frozen.function() + (logits - logits.detach()).abs().pow(1.5).sum())


def test_second_derivatives_that_are_not_finite_are_told() -> None:
    with pytest.raises(FloatingPointError) as caught:
        Training(made_config("OPTIMIZER.type=newton", *TINY), Unbounded(8)).run()
    assert str(caught.value) == "epoch 1, iteration 1: a second derivative is not finite"


def test_files_serve_as_well_as_memory() -> None:
    config = ragged_config("MIX_PRIOR.spline_function=RSWAF", "MIX_PRIOR.layer_widths=3, 5, 4")
    undisturbed = Training(config)
    undisturbed.run()
    for saved in undisturbed.copies[1::4]:
        require_same(Training.resumed(config, saved, by_file=True), undisturbed)
        require_same(Training.resumed(config, saved, by_file=False), undisturbed)


def test_what_is_gone_on_with_matters() -> None:
    """The test above can fail: without any one of these the bits are others."""
    config = ragged_config()
    undisturbed = Training(config)
    undisturbed.run()
    saved = undisturbed.copies[5]
    require_same(Training.resumed(config, saved), undisturbed)
    other = undisturbed.copies[6]
    changes: dict[str, object] = {
        "stream": other.arrays["stream"],
        "epoch_stream": undisturbed.copies[0].arrays["epoch_stream"],
        "batches": other.arrays["batches"],
        "last_grid_update": saved.arrays["last_grid_update"] + 1,
        "grid_update_period": saved.arrays["grid_update_period"] + 1,
        "skipped_grid_updates": np.asarray(1),
        "loss_sum": saved.arrays["loss_sum"] + 1,
        "sample_size_sum": saved.arrays["sample_size_sum"] + 1,
        "best_nll": np.asarray(-100.0),
        "grid_updated": np.asarray(False),
        "log": saved.arrays["log"] + [0, 0, 1, 0, 0, 0, 0],
    }
    for name, value in changes.items():
        with pytest.raises(AssertionError):
            require_same(Training.resumed(config, replace(saved, arrays={**saved.arrays, name: value})), undisturbed)
    with pytest.raises(AssertionError):
        require_same(Training.resumed(config, replace(saved, model=other.model)), undisturbed)
    with pytest.raises(AssertionError):
        require_same(Training.resumed(config, replace(saved, optimizer=other.optimizer)), undisturbed)


class Signalling(ImportanceSampling):
    """Importance sampling during which a signal comes: at the n-th estimate in training, or in evaluation."""

    in_training: bool
    left: list[int]

    def estimate(self, model: LVKAM, x: Tensor, rng: torch.Generator, share: Share | None = None) -> Estimate:
        if torch.is_grad_enabled() == self.in_training:
            self.left[0] -= 1
            if self.left[0] == 0:
                signal.raise_signal(signal.SIGTERM)
        return super().estimate(model, x, rng, share)


def signalling(in_training: bool, count: int) -> Signalling:
    objective = Signalling(16)
    object.__setattr__(objective, "in_training", in_training)
    object.__setattr__(objective, "left", [count])
    return objective


def interrupted(
    config: Config, objective: Objective, on_epoch: Callable[[EpochRecord], None] | None = None
) -> Training:
    """A training that a signal ends."""
    interruption = Interruption()
    training = Training(config, objective, interruption)
    with interruption.listening(), pytest.raises(Interrupted) as caught:
        training.run(on_epoch or (lambda _: None))
    assert caught.value.number == signal.SIGTERM
    return training


def seldom(*overrides: str) -> Config:
    return ragged_config("TRAINING.checkpoint_minutes=1000", "TRAINING.checkpoint_every=1000", *overrides)


@pytest.mark.parametrize("step", range(1, 9))
def test_a_signal_during_a_step_is_obeyed_after_it(step: int) -> None:
    undisturbed = Training(seldom(), ImportanceSampling(16))
    undisturbed.run()
    assert len(undisturbed.copies) == 1  # at its end
    stopped = interrupted(seldom(), signalling(True, step))
    assert [(c.iteration, c.epoch) for c in stopped.copies] == [(step, (step - 1) // 4)]
    assert untimed(stopped.records) == untimed(undisturbed.records[: (step - 1) // 4 + 1])
    going_on = Training.resumed(seldom(), stopped.copies[0], ImportanceSampling(16))
    require_same(going_on, undisturbed)
    assert untimed(stopped.records + going_on.records) == untimed(undisturbed.records)


@pytest.mark.parametrize(("count", "epoch"), [(5, 1), (6, 1), (7, 2), (8, 2)])
def test_a_signal_during_an_evaluation_is_obeyed_at_once(count: int, epoch: int) -> None:
    # 20 test images are two batches; before epoch 1 as many of the training images are judged too
    undisturbed = Training(seldom(), ImportanceSampling(16))
    undisturbed.run()
    stopped = interrupted(seldom(), signalling(False, count))
    assert [(c.iteration, c.epoch, int(c.arrays["batches"])) for c in stopped.copies] == [(4 * epoch, epoch - 1, 4)]
    assert [r.epoch for r in stopped.records] == list(range(epoch))
    going_on = Training.resumed(seldom(), stopped.copies[0], ImportanceSampling(16))
    require_same(going_on, undisturbed)
    assert untimed(stopped.records + going_on.records) == untimed(undisturbed.records)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_signal_before_any_step_saves_nothing(count: int) -> None:
    stopped = interrupted(seldom(), signalling(False, count))
    assert stopped.copies == []
    assert stopped.records == []


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_while_an_epoch_is_recorded_is_obeyed_when_it_is_saved(epoch: int) -> None:
    undisturbed = Training(seldom(), ImportanceSampling(16))
    undisturbed.run()

    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == epoch:
            signal.raise_signal(signal.SIGTERM)

    stopped = interrupted(seldom(), ImportanceSampling(16), on_epoch)
    assert [(c.iteration, c.epoch, int(c.arrays["batches"])) for c in stopped.copies] == [(4 * epoch, epoch, 0)]
    assert stopped.best == [e for e in undisturbed.best if e <= epoch]
    require_same(Training.resumed(seldom(), stopped.copies[0], ImportanceSampling(16)), undisturbed)


def test_a_signal_while_a_file_is_written_waits_for_it() -> None:
    class Writing(Training):
        def keep(self, state: TrainingState) -> None:
            if state.iteration == 3:
                signal.raise_signal(signal.SIGTERM)
            super().keep(state)

    interruption = Interruption()
    training = Writing(ragged_config(), ImportanceSampling(16), interruption)
    with interruption.listening(), pytest.raises(Interrupted):
        training.run()
    assert [c.iteration for c in training.copies] == [1, 2, 3]


@pytest.mark.parametrize("seconds", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_training_cut_short_and_prolonged_is_the_undisturbed_one(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvkam.training.time", Clock())  # every step takes a second
    undisturbed = Training(seldom())
    undisturbed.run()
    short = Training(seldom(f"TRAINING.max_seconds={seconds}"))
    state = short.run()
    done = min(seconds, 8)
    epochs, batches = divmod(done, 4)
    assert (state.iteration, state.seconds, state.epoch, state.batches) == (done, done, epochs, batches)
    complete = undisturbed.records[: epochs + 1]
    assert short.records[: epochs + 1] == complete  # with the seconds, which the clock makes the same
    assert state.log == complete
    assert is_finished(state, short.config.training)
    assert short.copies[-1].iteration == done
    if batches:  # judged and told, of the images that it has seen
        assert [r.epoch for r in short.records] == [*range(epochs + 1), epochs + 1]
        assert short.records[-1].train_loss == state.loss_sum / (16 * batches)
        assert short.lines == [f"max_seconds = {seconds} have passed: stopping in epoch {epochs + 1}"]
    else:
        assert [r.epoch for r in short.records] == list(range(epochs + 1))
        assert short.lines == []
    # the best of the epochs that are complete: one cut short may be taken up again
    assert short.best == [epoch for epoch in undisturbed.best if epoch <= epochs]
    going_on = Training.resumed(seldom(), short.copies[-1])
    require_same(going_on, undisturbed)
    assert going_on.records == undisturbed.records[epochs + 1 :]
    assert short.best + going_on.best == undisturbed.best


def test_a_training_cut_short_again_and_again_is_the_undisturbed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvkam.training.time", Clock())
    undisturbed = Training(seldom())
    undisturbed.run()
    training = Training(seldom("TRAINING.max_seconds=1"))
    training.run()
    for seconds in range(2, 9):
        training = Training.resumed(seldom(f"TRAINING.max_seconds={seconds}"), training.copies[-1])
        assert len(training.copies) == 1
    require_same(training, undisturbed)


def test_a_training_that_is_done_takes_no_step() -> None:
    done = Training(ragged_config())
    done.run()
    again = Training.resumed(ragged_config(), done.copies[-1])
    require_same(again, done)
    assert (again.records, again.copies, again.best) == ([], [], [])
    assert done.state is not None
    assert is_finished(done.state, done.config.training)


def test_a_training_that_is_done_can_be_prolonged() -> None:
    longer = ragged_config("TRAINING.N_epochs=3")
    undisturbed = Training(longer)
    undisturbed.run()
    done = Training(ragged_config())
    done.run()
    require_same(Training.resumed(longer, done.copies[-1]), undisturbed)


@pytest.mark.parametrize("count", [5, 7])
def test_a_signal_while_the_last_epoch_of_ones_time_is_judged_leaves_it_to_be_judged(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is up and an epoch's steps are done, but not its record: that is something left to do."""
    monkeypatch.setattr("lvkam.training.time", Clock())
    for seconds in (4 * (count - 3) // 2, 4 * (count - 3) // 2 - 1):  # a whole epoch, or one cut short
        config = seldom(f"TRAINING.max_seconds={seconds}")
        undisturbed = Training(config, ImportanceSampling(16))
        undisturbed.run()
        stopped = interrupted(config, signalling(False, count))
        state = TrainingState.from_arrays(
            stopped.copies[-1].epoch, stopped.copies[-1].iteration, stopped.copies[-1].arrays
        )
        assert state.iteration == seconds
        assert not is_finished(state, config.training)
        going_on = Training.resumed(config, stopped.copies[-1], ImportanceSampling(16))
        require_same(going_on, undisturbed)
        assert untimed(stopped.records + going_on.records) == untimed(undisturbed.records)
