"""`lvkam check CONFIG`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import (
    config_argument,
    data_dir_option,
    output_folder_option,
    read_config,
    seed_option,
    set_option,
)


@click.command("check")
@config_argument
@set_option
@output_folder_option
@seed_option
@data_dir_option
def command(
    config: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    seed: int | None,
    data_dir: Path | None,
) -> None:
    """Make every check that training makes, print the resolved run, and train nothing."""
    resolved = read_config(config, overrides, seed)

    from lvkam.description import describe_run

    for name, value in describe_run(resolved, output, data_dir).items():
        click.echo(f"{name:<12} {value}")
    click.echo(f"\n{resolved.to_ini()}", nl=False)
