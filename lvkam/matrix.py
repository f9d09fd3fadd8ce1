"""A matrix of experiments: reference densities x data sets x temperatures x seeds, and its summary.

Each cell is a run like any other, in a process and a folder of its own. Finished ones are skipped and others taken up
again, so that the whole can be stopped at any time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
from tqdm import tqdm

from lvkam.build import check_optimizer_memory, choose_compilation, choose_device
from lvkam.checkpoint import read_checkpoint
from lvkam.config import Config, ConfigError, parse_config
from lvkam.data import Samples
from lvkam.experiment import load_config_dataset
from lvkam.inference import evaluate_checkpoint
from lvkam.interruption import Interrupted, Interruption
from lvkam.plots import collage, drawn
from lvkam.processes import Command, run_side_by_side
from lvkam.resumption import resume_point
from lvkam.run_folder import RUN_FILES, OutputError
from lvkam.sections import write_value
from lvkam.sources import is_path
from lvkam.training import is_finished
from lvkam.writing import make_folder, write_picture, write_table, write_text

SUMMARY = ("summary.csv", "summary.md", "summary.png")

REFERENCE_SIZE = (14, 14)
"""What the reference's main script resizes images to."""

SHOWN = 25
"""Generated images of each cell in the picture."""

COLUMNS: tuple[str, ...] = (
    "Prior", "Data", "Method", "Seed", "Test NLL (nats)", "Standard Error", "Time (s)", "Images/s", "Status", "Folder",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """An experiment of the matrix."""

    config: Config
    folder: Path

    @property
    def method(self) -> str:
        """Vanilla, or Thermodynamic with its temperatures."""
        num_temps = self.config.thermodynamic.num_temps
        return f"Thermodynamic_{num_temps}" if num_temps > 1 else "Vanilla"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Reference density, data set, method, seed."""
        training = self.config.training
        return self.config.prior.reference_density, training.dataset, self.method, training.seed

    def __str__(self) -> str:
        prior, dataset, method, seed = self.key
        return f"{prior} {Path(dataset).stem} {method} {seed}"


def plan_cells(
    config: Config,
    output: Path,
    priors: Sequence[str],
    datasets: Sequence[str],
    temperatures: Sequence[int],
    seeds: Sequence[int],
) -> list[Cell]:
    """The cells of the matrix, in this order; images are resized as in the reference if the configuration does not.

    Raises:
        ConfigError: a value is not allowed, or contradicts the others.
        OutputError: two cells would have the same folder.
    """
    cells: dict[Path, Cell] = {}
    for prior, dataset, num_temps, seed in itertools.product(priors, datasets, temperatures, seeds):
        values = {
            "MIX_PRIOR.π_0": prior,
            "TRAINING.dataset": dataset,
            "THERMODYNAMIC_INTEGRATION.num_temps": num_temps,
            "TRAINING.seed": seed,
        }
        if config.training.img_resize is None and not is_path(dataset):
            values["TRAINING.img_resize"] = REFERENCE_SIZE
        changed = [f"{key}={write_value(value)}" for key, value in values.items()]
        cell = Cell(parse_config(config.to_ini(), config.source, changed), output)
        cell = replace(cell, folder=output / cell.method / prior / f"{Path(dataset).absolute().stem}_{seed}")
        if (other := cells.setdefault(cell.folder, cell)) is not cell:
            raise OutputError(f"{cell.folder}: would be the folder of two cells, {other.key} and {cell.key}")
    return list(cells.values())


def run_matrix(
    cells: Sequence[Cell],
    output: Path,
    *,
    jobs: int = 1,
    device: str | None = None,
    num_images: int = 1000,
    num_samples: int = 20000,
    data_dir: Path | None = None,
    say: Callable[[str], None],
    interruption: Interruption,
) -> list[dict[str, str]]:
    """Run what is not finished, evaluate, and write `summary.csv`, `summary.md` and `summary.png`.

    Args:
        cells: of `plan_cells`.
        output: folder of the summary.
        jobs: cells at a time; each gets its share of the threads.
        device: name of a torch device, as for `run_experiment`.
        num_images: of the test split, to evaluate each model with; of data of one's own at most `N_test`.
        num_samples: of the prior, for that.
        data_dir: where to look for the data first.
        say: takes a line of text for the user.
        interruption: signals; running cells are saved before they are obeyed.

    Returns:
        The rows of `summary.csv`.

    Raises:
        InputError: a cell's data, device or optimiser cannot be had, its folder holds another run, or the folder
            another's summary; nothing was run.
        WriteError: the summary cannot be written.
        Interrupted: by a signal.
    """
    _check_cells(cells, output, device, data_dir)
    left = [cell for cell in cells if not _is_finished(cell)]
    say(f"{len(cells)} cells, {len(cells) - len(left)} of them finished already")
    commands = []
    for cell in left:
        make_folder(cell.folder)
        written = cell.folder / "config.ini"  # which is what a run has that is begun
        write_text(written, cell.config.to_ini())
        # as a command of its own, so that threads can be divided and a crash takes no other cell along
        train = (sys.executable, "-m", "lvkam_cli", "train", str(written))
        options = [] if device is None else ["--device", device]
        if data_dir is not None:
            options += ["--data-dir", str(data_dir)]
        commands.append(Command(str(cell), (*train, "--output", str(cell.folder), "--resume", *options)))
    try:
        outcomes = run_side_by_side(commands, jobs, say, interruption)
    except Interrupted as stop:
        stop.add_note("the running cells are saved; the same command goes on")
        raise
    failures = {
        cell.folder: f"failed: {outcome.last_line or f'exit status {outcome.exit_status}'}"
        for cell, outcome in zip(left, outcomes, strict=True)
        if outcome.exit_status
    }
    rows = []
    for cell in tqdm(cells, desc="evaluating", unit="cell", leave=False, disable=not sys.stderr.isatty()):
        interruption.check()
        if cell.folder in failures:
            rows.append(_row(cell, failures[cell.folder]))
        else:
            evaluation = _evaluated(cell, num_images, num_samples, data_dir)
            rows.append(_row(cell, "done") | _figures(cell, evaluation))
    _write_summary(cells, rows, output)
    return rows


def _check_cells(cells: Sequence[Cell], output: Path, device: str | None, data_dir: Path | None) -> None:
    """Everything that would end a cell is found before the first one begins, and told at once."""
    summary = output / "summary.csv"
    theirs = [name for name in SUMMARY if (output / name).exists()]
    if theirs and not (summary.is_file() and summary.read_bytes().startswith(",".join(COLUMNS).encode())):
        raise OutputError(f"{output}: holds {', '.join(theirs)} of something else; give --output for another folder")
    problems: dict[str, None] = {}  # in order, each once
    sizes: dict[str, int | None] = {}  # of the data sets; None of one that cannot be had, which is not tried again
    for cell in cells:
        name, chosen = cell.config.training.dataset, choose_device(device, cell.config.training.use_gpu)
        try:
            if name not in sizes:
                sizes[name] = None
                sizes[name] = math.prod(load_config_dataset(cell.config, data_dir).image_shape)
            if (data_dim := sizes[name]) is None:
                continue
            check_optimizer_memory(cell.config, data_dim)
            if resume_point(cell.folder, cell.config, say=lambda _: None) is None:
                choose_compilation(cell.config, chosen)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))


def _is_finished(cell: Cell) -> bool:
    if not all((cell.folder / name).exists() for name in RUN_FILES if name != "best.h5"):
        return False
    return is_finished(read_checkpoint(cell.folder / "ckpt.h5").progress, cell.config.training)


def _row(cell: Cell, status: str) -> dict[str, str]:
    known = dict(zip(COLUMNS, map(str, cell.key), strict=False)) | {"Status": status, "Folder": str(cell.folder)}
    return dict.fromkeys(COLUMNS, "") | known


def _figures(cell: Cell, evaluation: dict[str, Any]) -> dict[str, str]:
    """What a finished run has come to."""
    progress, training = read_checkpoint(cell.folder / "ckpt.h5").progress, cell.config.training
    # the last epoch may have been cut short
    seen = progress.epoch * training.num_train + min(progress.batches * training.batch_size, training.num_train)
    return {
        "Test NLL (nats)": f"{evaluation['nll_nats']:.3f}",
        "Standard Error": f"{evaluation['nll_stderr']:.3f}",
        "Time (s)": f"{progress.seconds:.0f}",
        "Images/s": f"{seen / progress.seconds:.0f}",
    }


def _evaluated(cell: Cell, num_images: int, num_samples: int, data_dir: Path | None) -> dict[str, Any]:
    """The object of `lvkam evaluate --json`, kept beside the checkpoint as long as nothing changes."""
    kept, held_out = cell.folder / "evaluation.json", None
    if is_path(cell.config.training.dataset):
        dataset = load_config_dataset(cell.config, data_dir)
        held_out = Samples(dataset.test, dataset.image_shape, dataset.scaling)
        num_images = min(num_images, len(dataset.test))
    with (cell.folder / "ckpt.h5").open("rb") as file:
        # a file reads into buffers, which its stub leaves out
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    of = {"checkpoint_sha256": digest, "num_images": num_images, "num_samples": num_samples}
    with suppress(OSError, ValueError):  # there is none yet, or a spoiled one
        found = json.loads(kept.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found | of == found:
            return found
    found = evaluate_checkpoint(cell.folder / "ckpt.h5", num_images, num_samples, data_dir=data_dir, data=held_out)
    write_text(kept, json.dumps(found | of, indent=2))
    return found


def _write_summary(cells: Sequence[Cell], rows: Sequence[dict[str, str]], output: Path) -> None:
    write_table(output / "summary.csv", COLUMNS, rows)
    write_text(output / "summary.md", as_markdown(rows))
    panels = []
    for cell, row in zip(cells, rows, strict=True):
        if row["Status"] == "done":
            with h5py.File(cell.folder / "generated_images.h5", "r") as file:
                panels.append((f"{cell}: {row['Test NLL (nats)']} nats", file["samples"][:SHOWN]))  # pyright: ignore
    if panels:
        write_picture(output / "summary.png", drawn(collage(panels)))


def as_markdown(rows: Sequence[dict[str, str]]) -> str:
    """The summary as a table for people."""
    head = ("prior", "data", "method", "seed", "test NLL (nats)", "seconds", "images/s")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        done = row["Status"] == "done"
        nll = f"{row['Test NLL (nats)']} ± {row['Standard Error']}" if done else row["Status"].replace("|", "/")
        method = row["Method"].lower().replace("_", ", ")
        cells = (row["Prior"], row["Data"], method, row["Seed"], nll, row["Time (s)"], row["Images/s"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
