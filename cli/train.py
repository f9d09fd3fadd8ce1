"""`lvkam train CONFIG`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lvkam.interruption import Interruption

from .options import (
    config_argument,
    data_dir_option,
    device_option,
    output_folder_option,
    overwrite_option,
    read_config,
    seed_option,
    set_option,
)


@click.command("train")
@config_argument
@set_option
@output_folder_option
@overwrite_option
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, to the same bits as without a stop.")
@seed_option
@device_option
@data_dir_option
@click.option("--tensorboard", is_flag=True, help="Write each epoch's figures and samples for TensorBoard too.")
@click.pass_obj
def command(
    interruption: Interruption,
    config: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    resume: bool,
    seed: int | None,
    device: str | None,
    data_dir: Path | None,
    tensorboard: bool,
) -> None:
    """Train the model of an INI file and write its run folder: losses, checkpoints, images.

    The folder's name goes to standard output, everything else to standard error. Ctrl-C (or SIGTERM) saves before it
    stops; the same command with --resume goes on.

    Several processes train one model together: torchrun --nproc-per-node 2 -m lvkam train CONFIG. Started again by
    torchrun after one of them has died, they go on from the last checkpoint.
    """
    if overwrite and resume:
        raise click.UsageError("--overwrite and --resume exclude each other")

    # Bad input is told before torch is imported, unless there are several processes, of which one is to tell it.
    resolved = None if "WORLD_SIZE" in os.environ else read_config(config, overrides, seed)
    if resume and resolved is not None:
        from lvkam.resumption import resume_point
        from lvkam.run_folder import default_folder

        resume_point(output or default_folder(resolved), resolved, say=lambda _: None)

    from lvkam.experiment import run_experiment
    from lvkam.parallel import joined

    with joined() as world:
        if resolved is None:
            with world.together():
                resolved = read_config(config, overrides, seed)
        folder = run_experiment(
            resolved,
            output,
            overwrite=overwrite,
            resume=resume,
            device=device,
            data_dir=data_dir,
            interruption=interruption,
            tensorboard=tensorboard,
            world=world,
        )
    if world.is_first:
        click.echo(folder)
