"""`lvkam sample CKPT`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import checkpoint_argument, overwrite_option, seed_option


@click.command("sample")
@checkpoint_argument
@click.option("-n", "num_images", type=click.IntRange(1), default=100, show_default=True, help="Number of images.")
@seed_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("samples.h5"), show_default=True,
              help="HDF5 file for the images (dataset `samples`).")  # fmt: skip
@click.option("--grid", type=click.Path(path_type=Path), help="PNG file for a grid of them; default: beside OUTPUT.")
@click.option("--save-latents", is_flag=True, help="Add the dataset `latents`.")
@overwrite_option
def command(
    checkpoint: Path,
    num_images: int,
    seed: int | None,
    output: Path,
    grid: Path | None,
    save_latents: bool,
    overwrite: bool,
) -> None:
    """Draw images from a trained model: an HDF5 file and a PNG grid.

    Without --seed it draws the images of the run's own `generated_images.h5`.
    """
    from lvkam.inference import sample_checkpoint

    for path in sample_checkpoint(
        checkpoint, num_images, output, grid, seed=seed, save_latents=save_latents, overwrite=overwrite
    ):
        click.echo(path)
