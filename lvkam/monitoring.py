"""What can be watched of a training: pictures of its samples epoch by epoch, and TensorBoard.

Nothing here takes part in the training: with or without, it comes to the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lvkam.errors import InputError
from lvkam.progress import EpochRecord
from lvkam.run_folder import EVENTS, FRAMES
from lvkam.writing import make_folder, remove_parts, write_picture

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

SHOWN_IMAGES, SHOWN_ROWS = 64, 1000
"""Samples in a picture."""


class MonitoringError(InputError):
    """TensorBoard is asked for, and not installed."""


def summary_writer() -> type[SummaryWriter]:
    """The class that writes TensorBoard's files.

    Raises:
        MonitoringError: it is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise MonitoringError(f"--tensorboard: {error}; pip install 'lvkam[tensorboard]' brings it") from error
    return SummaryWriter


def frames_in(folder: Path) -> dict[int, Path]:
    """The pictures of a run's samples, by epochs and in their order; none if it wrote none."""
    found = ((re.fullmatch(r"epoch_([0-9]+)\.png", path.name), path) for path in (folder / FRAMES).glob("epoch_*.png"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _remove_stale(folder: Path, gen_every: int, since: int | None) -> None:
    """Remove what a training that begins, or goes on after `since` epochs, writes anew or would never have written."""
    remove_parts(folder / FRAMES, ["epoch_*"])
    for epoch, path in frames_in(folder).items():
        # off the cadence the last one is the end of a training that now goes on
        if since is None or epoch > since or (epoch == since and gen_every and epoch % gen_every):
            path.unlink(missing_ok=True)
    if since is None:
        for path in (folder / EVENTS).glob("events.out.tfevents.*"):
            path.unlink(missing_ok=True)


@contextmanager
def watching(
    folder: Path, draw: Callable[[], Image.Image], gen_every: int, since: int | None, *, tensorboard: bool
) -> Iterator[Callable[[Sequence[EpochRecord], float, bool], None]]:
    """Context: a function to call after each epoch, with all records, the learning rate, and whether it is the last.

    Args:
        folder: the run's, where nobody else writes; what another training left there is removed.
        draw: makes a picture of the model's samples as it stands.
        gen_every: epochs between pictures in `evolution/`, of which epoch 0 and the last have one; 0: none.
        since: epochs done if the training goes on, None if it begins.
        tensorboard: whether to write the records, and a picture each epoch, into `tensorboard/`.

    Raises:
        MonitoringError: TensorBoard is not installed.
        WriteError: nothing can be written there.
    """
    writer_class = summary_writer() if tensorboard else None
    _remove_stale(folder, gen_every, since)
    for name in [FRAMES] * (gen_every > 0) + [EVENTS] * tensorboard:
        make_folder(folder / name)
    # readers drop what an earlier part of the run wrote of the epochs that are to come again
    writer = (
        writer_class(str(folder / EVENTS), purge_step=None if since is None else since + 1) if writer_class else None
    )

    def watch(records: Sequence[EpochRecord], learning_rate: float, is_last: bool) -> None:
        epoch = records[-1].epoch
        framed = gen_every > 0 and (is_last or epoch % gen_every == 0)
        if not framed and writer is None:
            return
        picture = draw()
        if framed:
            write_picture(folder / FRAMES / f"epoch_{epoch:05}.png", picture)
        if writer is not None:
            row = records[-1].as_row()
            row["Grid Updated"] = str(int(records[-1].grid_updated))
            if epoch > 0:
                row["Learning Rate"] = str(learning_rate)
            for name in row.keys() - {"Epoch"}:
                writer.add_scalar(name, float(row[name]), epoch)
            layout = "HW" if picture.mode == "L" else "HWC"
            writer.add_image("Samples", np.asarray(picture), epoch, dataformats=layout)
            writer.flush()

    try:
        yield watch
    finally:
        if writer is not None:
            writer.close()
