"""Where a training stands, written and read to the bit."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from lvkam.progress import RANDOM_STATE_SIZE, EpochRecord, TrainingState
from tests.conftest import stream

NAMES = {
    "seconds", "batches", "loss_sum", "sample_size_sum", "grid_updated", "cut_short", "last_grid_update",
    "grid_update_period",
    "skipped_grid_updates", "best_nll", "stream", "epoch_stream", "log",
}  # fmt: skip
COUNTS = ("batches", "last_grid_update", "grid_update_period", "skipped_grid_updates")


def record(epoch: int) -> EpochRecord:
    return EpochRecord(0.1 + epoch, epoch, -1 / 3 * epoch, 1e-300, epoch % 2 == 1, math.pi, 5e-324)


def state(epochs: int = 3) -> TrainingState:
    """One in which no number is what it would be anyway."""
    rng = np.random.default_rng(epochs)
    return TrainingState(
        epoch=epochs,
        iteration=2**62 + 1,
        seconds=0.1 + 0.2,
        batches=2**53 + 1,
        loss_sum=-1 / 3,
        sample_size_sum=1e300,
        grid_updated=True,
        cut_short=True,
        last_grid_update=17,
        grid_update_period=10**9,
        skipped_grid_updates=4,
        best_nll=-math.pi,
        stream=rng.integers(0, 256, RANDOM_STATE_SIZE, dtype=np.uint8),
        epoch_stream=rng.integers(0, 256, RANDOM_STATE_SIZE, dtype=np.uint8),
        log=[record(n) for n in range(epochs + 1)],
    )


def fields(state: TrainingState) -> dict[str, object]:
    """All that it holds, with the types, comparable to the bit."""
    values = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {
        name: (type(value), value.tobytes() if isinstance(value, np.ndarray) else repr(value))
        for name, value in values.items()
    }


@pytest.mark.parametrize("epochs", [0, 1, 3, 50])
def test_what_was_written_is_read_to_the_bit(epochs: int) -> None:
    before = state(epochs)
    after = TrainingState.from_arrays(before.epoch, before.iteration, before.to_arrays())
    assert fields(after) == fields(before)
    for row, expected in zip(after.log, before.log, strict=True):
        assert list(map(type, row)) == list(map(type, expected)) == [float, int, float, float, bool, float, float]


@pytest.mark.parametrize("value", [math.inf, -0.0, 5e-324, 1e308])
def test_every_kind_of_number_is_kept(value: float) -> None:
    before = dataclasses.replace(state(), best_nll=value, loss_sum=value, log=[record(0)._replace(test_nll=value)])
    before = dataclasses.replace(before, epoch=0)
    assert fields(TrainingState.from_arrays(0, before.iteration, before.to_arrays())) == fields(before)


def test_all_but_epoch_and_iteration_is_an_array() -> None:
    assert set(state().to_arrays()) == NAMES
    assert {f.name for f in dataclasses.fields(TrainingState)} == NAMES | {"epoch", "iteration"}


@pytest.mark.parametrize("epochs", [0, 1, 2, 100])
def test_the_layout_is_that_of_the_arrays(epochs: int) -> None:
    arrays = state(epochs).to_arrays()
    assert TrainingState.layout(epochs) == {name: (array.dtype, array.shape) for name, array in arrays.items()}
    types = {name: dtype.name for name, (dtype, _) in TrainingState.layout(epochs).items()}
    floats = dict.fromkeys(("seconds", "loss_sum", "sample_size_sum", "best_nll", "log"), "float64")
    streams = dict.fromkeys(("stream", "epoch_stream"), "uint8")
    assert types == {**floats, **streams, **dict.fromkeys(COUNTS, "int64"), "grid_updated": "bool", "cut_short": "bool"}
    assert TrainingState.layout(epochs)["log"][1] == (epochs + 1, 7)


def test_a_new_training_has_an_empty_log() -> None:
    arrays = TrainingState().to_arrays()
    assert arrays["log"].shape == (0, 7)
    assert TrainingState().best_nll == math.inf
    arrays["grid_update_period"] = np.asarray(1)
    with pytest.raises(ValueError, match="its log is not that of 0 epochs"):
        TrainingState.from_arrays(0, 0, arrays)  # epoch 0 is recorded before any file is written


@pytest.mark.parametrize("name", COUNTS)
def test_a_negative_count_is_refused(name: str) -> None:
    arrays = {**state().to_arrays(), name: np.asarray(-1)}
    with pytest.raises(ValueError, match=r"^a count of its training is too small$"):
        TrainingState.from_arrays(3, 5, arrays)
    least = int(name == "grid_update_period")
    assert getattr(TrainingState.from_arrays(3, 5, {**arrays, name: np.asarray(least)}), name) == least


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seconds", -0.5, "a count of its training is too small"),
        ("seconds", math.nan, "a count of its training is too small"),
        ("grid_update_period", 0, "a count of its training is too small"),
        ("best_nll", math.nan, "its best test NLL is nan"),
        ("best_nll", -math.inf, "its best test NLL is -inf"),
    ],
)
def test_numbers_that_no_training_comes_to_are_refused(name: str, value: float, message: str) -> None:
    arrays = {**state().to_arrays(), name: np.asarray(value)}
    with pytest.raises(ValueError, match=f"^{message}$"):
        TrainingState.from_arrays(3, 5, arrays)


@pytest.mark.parametrize("epochs", [[], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 2], [1, 2, 3, 4], [3, 2, 1, 0],
                                    [0, 1, 2.5, 3], [0, 1, 2, np.nan], [0, 1, 2, np.inf]])  # fmt: skip
def test_a_log_of_other_epochs_is_refused(epochs: list[float]) -> None:
    log = np.zeros((len(epochs), 7))
    log[:, 1] = epochs
    with pytest.raises(ValueError, match=r"^its log is not that of 3 epochs$"):
        TrainingState.from_arrays(3, 5, {**state().to_arrays(), "log": log})


def test_a_generators_state_has_the_size_of_a_stream() -> None:
    rng = stream(1)
    bits = rng.get_state().numpy()
    assert (bits.shape, bits.dtype) == ((RANDOM_STATE_SIZE,), np.uint8)
    draws = torch.rand(5, generator=rng)
    again = TrainingState.from_arrays(3, 5, {**state().to_arrays(), "stream": bits}).stream
    other = stream(2)
    other.set_state(torch.from_numpy(again))
    assert torch.equal(torch.rand(5, generator=other), draws)


def test_a_row_of_the_log_is_text() -> None:
    assert EpochRecord(12.34567, 3, 1.23456789, -2e-7, True, 1e6, 17.123456).as_row() == {
        "Time (s)": "12.346", "Epoch": "3", "Train Loss": "1.234568", "Test Loss": "-0.000000",
        "Grid Updated": "true", "Test NLL": "1000000.000000", "Effective Sample Size": "17.1235",
    }  # fmt: skip
    assert EpochRecord(0, 0, 0, 0, False, 0, 0).as_row()["Grid Updated"] == "false"
