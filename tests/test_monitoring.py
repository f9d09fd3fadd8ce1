"""What is watched of a training: pictures at their epochs, TensorBoard's figures those of the log, nothing twice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lvkam.experiment import run_experiment
from lvkam.monitoring import MonitoringError, frames_in, watching
from lvkam.progress import EpochRecord
from lvkam.writing import WriteError
from tests.conftest import small_config


def record(epoch: int) -> EpochRecord:
    return EpochRecord(1.5 * epoch, epoch, 9.0 - epoch, 8.0 - epoch, epoch == 1, 7.25 - epoch, 3.0 + epoch)


def watch_epochs(
    folder: Path, epochs: range, gen_every: int, since: int | None = None, tensorboard: bool = False, shade: int = 0
) -> None:
    """Watch a training of these epochs, whose pictures show them."""
    drawn = iter(epochs)

    def draw() -> Image.Image:
        return Image.new("L", (5, 4), shade + next(drawn))

    if not tensorboard:  # only those are drawn that are written
        drawn = iter([epoch for epoch in epochs if gen_every and (epoch % gen_every == 0 or epoch == epochs[-1])])
    with watching(folder, draw, gen_every, since, tensorboard=tensorboard) as watch:
        for epoch in epochs:
            watch([record(n) for n in range(epoch + 1)], 0.5 / (epoch + 1), epoch == epochs[-1])


def shades(folder: Path) -> dict[int, int]:
    """Of each picture."""
    return {epoch: int(np.asarray(Image.open(path)).max()) for epoch, path in frames_in(folder).items()}


def test_pictures_stand_at_their_epochs_as_if_no_training_had_stopped(tmp_path: Path) -> None:
    watch_epochs(tmp_path, range(6), 2)
    assert shades(tmp_path) == {0: 0, 2: 2, 4: 4, 5: 5}
    assert [path.name for path in frames_in(tmp_path).values()][-1] == "epoch_00005.png"
    others = (tmp_path / "evolution" / "mine.png", tmp_path / "evolution" / "epoch_x.png")
    part = tmp_path / "evolution" / ".epoch_00004.png.abc.part"  # which a crash has left
    for path in (*others, part):
        path.touch()
    # from epoch 3 on: the last picture of the shorter training is none of the longer one's
    watch_epochs(tmp_path, range(4, 10), 2, since=3, shade=100)
    assert shades(tmp_path) == {0: 0, 2: 2, 4: 104, 6: 106, 8: 108, 9: 109}
    # on another cadence what was drawn stays, but for that end
    watch_epochs(tmp_path, range(10, 14), 4, since=9, shade=200)
    assert shades(tmp_path) == {0: 0, 2: 2, 4: 104, 6: 106, 8: 108, 12: 212, 13: 213}
    watch_epochs(tmp_path, range(10, 12), 0, since=9)
    assert shades(tmp_path).keys() == {0, 2, 4, 6, 8}
    watch_epochs(tmp_path, range(2), 0)
    assert shades(tmp_path) == {}
    assert all(path.exists() for path in others)
    assert not part.exists()
    # epochs sort as numbers, however many there are
    watch_epochs(tmp_path, range(99999, 100002), 1, since=7)
    assert list(frames_in(tmp_path)) == [99999, 100000, 100001]


def test_a_training_that_nobody_watches_draws_nothing(tmp_path: Path) -> None:
    watch_epochs(tmp_path, range(3), 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "evolution").touch()
    with pytest.raises(WriteError, match=r"evolution: cannot be written \(File exists\)"):
        watch_epochs(tmp_path, range(3), 1)


def test_tensorboard_holds_the_log_with_nothing_twice(tmp_path: Path) -> None:
    watch_epochs(tmp_path, range(4), 3, tensorboard=True)
    watch_epochs(tmp_path, range(3, 6), 3, since=2, tensorboard=True, shade=100)
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    columns = record(0).as_row().keys() - {"Epoch"}
    assert set(found.Tags()["scalars"]) == columns | {"Learning Rate"}
    for name in columns:
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == list(range(6))
        texts = [{"true": "1", "false": "0"}.get(text, text) for n in range(6) for text in [record(n).as_row()[name]]]
        assert [scalar.value for scalar in scalars] == pytest.approx(list(map(float, texts)), rel=1e-6)
    rates = [(scalar.step, scalar.value) for scalar in found.Scalars("Learning Rate")]
    assert rates == [(n, pytest.approx(0.5 / (n + 1))) for n in range(1, 6)]
    images = found.Images("Samples")
    assert [(image.step, image.width, image.height) for image in images] == [(n, 5, 4) for n in range(6)]
    # goes on within the first epoch, of which epoch 0 stays; and one that begins leaves nothing of others
    watch_epochs(tmp_path, range(1, 3), 0, since=0, tensorboard=True)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [scalar.step for scalar in found.Scalars("Test NLL")] == [0, 1, 2]
    watch_epochs(tmp_path, range(1), 0)
    assert list((tmp_path / "tensorboard").iterdir()) == []


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MonitoringError, match=r"^--tensorboard: .*tensorboard.*; pip install 'lvkam\[tensorboard\]'"):
        run_experiment(small_config(), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
