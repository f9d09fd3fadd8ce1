"""`lvkam train CONFIG`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import (
    config_argument,
    data_dir_option,
    output_folder_option,
    overwrite_option,
    seed_option,
    set_option,
)


@click.command("train")
@config_argument
@set_option
@output_folder_option
@overwrite_option
@seed_option
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU if use_gpu and there is one.")
@data_dir_option
def command(
    config: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    seed: int | None,
    device: str | None,
    data_dir: Path | None,
) -> None:
    """Train the model of an INI file and write its run folder: losses, checkpoint, images.

    The folder's name goes to standard output, everything else to standard error.
    """
    from lvkam.config import load_config

    if seed is not None:
        overrides = (*overrides, f"TRAINING.seed={seed}")
    resolved = load_config(config, overrides)

    from lvkam.experiment import run_experiment

    folder = run_experiment(resolved, output, overwrite=overwrite, device=device, data_dir=data_dir)
    click.echo(folder)
