"""`lvkam fit-features NAME`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import data_dir_option, overwrite_option


def _size(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """H,W as the configuration writes it."""
    if text is None:
        return None
    try:
        height, width = map(int, text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text}: must be two integers, H,W") from error
    if not all(4 <= side <= 1000 for side in (height, width)):
        raise click.BadParameter(f"{text}: must be from 4 to 1000")
    return height, width


def _labelled(_: click.Context, __: click.Parameter, name: str) -> str:
    """A data set with labels: those known by name have them."""
    from lvkam.sources import SOURCES

    if name not in SOURCES:
        raise click.BadParameter(f"{name!r} is not one of {', '.join(SOURCES)}.")
    return name


@click.command("fit-features")
@click.argument("name", callback=_labelled)
@click.option("--size", metavar="H,W", callback=_size, help="Size of the images; the native one by default.")
@click.option("--bits", is_flag=True, help="Binarise the images, for models that were trained so.")
@overwrite_option
@data_dir_option
def command(name: str, size: tuple[int, int] | None, bits: bool, overwrite: bool, data_dir: Path | None) -> None:
    """Fit a small classifier to MNIST, FMNIST, CIFAR10 or SVHN, and keep it in the user's cache.

    Its last hidden layer is what `lvkam evaluate --metrics all` measures samples on, which fits it when it is missing.
    """
    import time

    from lvkam.data import load_samples
    from lvkam.experiment import tell
    from lvkam.features import labelled_classifier

    start = time.perf_counter()
    shape = load_samples(name, 1, size, data_dir).shape
    classifier = labelled_classifier(name, shape, data_dir, bits=bits, overwrite=overwrite, say=tell)
    click.echo(f"name      {classifier.name}")
    click.echo(f"accuracy  {100 * classifier.accuracy:.2f} % of the test images")
    click.echo(f"file      {classifier.path}")
    click.echo(f"seconds   {time.perf_counter() - start:.1f}")
