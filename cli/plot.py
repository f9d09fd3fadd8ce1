"""`lvkam plot CKPT --what KIND`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import checkpoint_argument, data_dir_option, data_option, overwrite_option, seed_option


@click.command("plot")
@checkpoint_argument
@click.option("--what", type=click.Choice(["temperatures"]), required=True,
              help="temperatures: the integrand of thermodynamic integration, and power posteriors.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="PNG, PDF or SVG file; default: KIND.png here.")
@click.option("--num-images", type=click.IntRange(1), default=8, show_default=True,
              help="How many images, the first of the test split.")  # fmt: skip
@data_option
@overwrite_option
@seed_option
@data_dir_option
def command(
    checkpoint: Path,
    what: str,
    output: Path | None,
    num_images: int,
    data: str | None,
    overwrite: bool,
    seed: int | None,
    data_dir: Path | None,
) -> None:
    """Draw what a model has learnt."""
    from lvkam.inference import plot_temperatures

    click.echo(
        plot_temperatures(
            checkpoint,
            output or Path(f"{what}.png"),
            num_images=num_images,
            seed=seed,
            data=data,
            data_dir=data_dir,
            overwrite=overwrite,
        )
    )
