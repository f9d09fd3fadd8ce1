"""`lvkam data NAME`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import checked_data, data_dir_option, overwrite_option


@click.command("data")
@click.argument("name", metavar="NAME|PATH", callback=checked_data)
@click.option(
    "--output", type=click.Path(path_type=Path), help="PNG file for its first images; default: NAME.png here."
)
@overwrite_option
@data_dir_option
def command(name: str, output: Path | None, overwrite: bool, data_dir: Path | None) -> None:
    """Fetch or verify a data set, and draw its first images: MNIST, FMNIST, CIFAR10, SVHN, or files of your own.

    Files of your own are a .npz or .h5 file (arrays `train` and `test`, or `samples`, or one array only; images or the
    rows of a table), a .csv file, or a folder of images.
    """
    from lvkam.description import describe_data

    picture = output or Path(f"{Path(name).absolute().stem}.png")
    described = describe_data(name, picture, data_dir, overwrite=overwrite)
    width = max(map(len, described))
    for key, value in described.items():
        click.echo(f"{key:<{width}}  {value}")
