"""`lvkam sweep CONFIG SPACE.ini`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lvkam.interruption import Interruption

from .options import config_argument, data_dir_option, device_option, jobs_option, needs, read_config, set_option


@click.command("sweep")
@config_argument
@click.argument("space", metavar="SPACE.ini", type=click.Path(path_type=Path))
@set_option
@click.option("--trials", type=click.IntRange(1, 10**6), default=20, show_default=True,
              help="How many in all, those of earlier and other processes counted in.")  # fmt: skip
@jobs_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("sweep"), show_default=True,
              help="Folder for the trials, a run folder each, and for their tables.")  # fmt: skip
@device_option
@data_dir_option
@click.pass_obj
def command(
    interruption: Interruption,
    config: Path,
    space: Path,
    overrides: tuple[str, ...],
    trials: int,
    jobs: int,
    output: Path,
    device: str | None,
    data_dir: Path | None,
) -> None:
    """Search settings: SPACE.ini has ranges (0.003 .. 0.1 log, 1 .. 8) and choices (fp32 | bf16) for values.

    Every trial is a run folder; what is worse than the median of the others is given up on the way. Stop it whenever
    you like: the same command goes on, and joins where other processes or machines work in the same folder. The best
    configuration's name goes to standard output; lvkam report FOLDER draws the search.
    """
    resolved = read_config(config, overrides, None)
    from lvkam.space import read_space

    dimensions = read_space(space, resolved)
    with needs("sweep", "sweep"):
        from lvkam.sweep import run_sweep
    from lvkam.experiment import tell

    options = [part for override in overrides for part in ("--set", override)]
    options += [] if device is None else ["--device", device]
    options += [] if data_dir is None else ["--data-dir", str(data_dir)]
    best = run_sweep(
        resolved, dimensions, output, trials, jobs=jobs, device=device, data_dir=data_dir, say=tell,
        join=(sys.executable, "-m", "lvkam_cli", "sweep", str(config), str(space), f"--trials={trials}",
              f"--output={output}", *options),
        interruption=interruption,
    )  # fmt: skip
    settings = ", ".join(f"{name} = {value}" for name, value in best.settings.items())
    tell(f"best of all: trial {best.number}, test NLL {best.nll:.3f} nats, {settings}")
    click.echo(best.config)
