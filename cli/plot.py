"""`lvkam plot CKPT --what KIND`."""

from __future__ import annotations

from pathlib import Path

import click

from lvkam.writing import make_folder

from .options import CommaList, checkpoint_argument, data_dir_option, data_option, overwrite_option, seed_option

KINDS = {
    "prior": "the density of each latent coordinate, its components, and samples",
    "functions": "the strongest functions of each layer, with their parts, knots and inputs",
    "network": "the generator as a network of these curves, pruned",
    "traversal": "images along the quantiles of the most active latent coordinates",
    "interpolation": "images between two draws",
    "posterior": "of test images: weights, posterior against prior, reconstruction",
    "loss": "losses, test NLL and effective sample size by epoch",
    "samples": "images drawn from the model",
    "nearest": "samples beside their nearest training images",
    "temperatures": "the integrand of thermodynamic integration, and power posteriors",
    "evolution": "a GIF of the samples that a training with gen_every left beside the checkpoint",
}


@click.command("plot", epilog="Kinds: " + "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items()) + ".")
@checkpoint_argument
@click.option("--what", type=CommaList(click.Choice([*KINDS, "all"]), "KIND,..."), required=True,
              help="Kinds of picture, separated by commas, or all that can be made.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), show_default="KIND.png",
              help="PNG, PDF or SVG file (evolution: GIF); of several kinds their folder.")  # fmt: skip
@click.option("--format", "ending", type=click.Choice(["png", "pdf", "svg"]), default="png", show_default=True,
              help="Of files that --output does not name.")  # fmt: skip
@click.option("--num-images", type=click.IntRange(1), show_default="by the kind",
              help="How many images are explained, drawn or compared.")  # fmt: skip
@click.option("--coordinates", type=CommaList(click.IntRange(0), "LIST"), show_default="the most active",
              help="Latent coordinates to draw.")  # fmt: skip
@data_option
@overwrite_option
@seed_option
@data_dir_option
def command(
    checkpoint: Path,
    what: list[str],
    output: Path | None,
    ending: str,
    num_images: int | None,
    coordinates: list[int] | None,
    data: str | None,
    overwrite: bool,
    seed: int | None,
    data_dir: Path | None,
) -> None:
    """Draw what a model has learnt: its files' names go to standard output."""
    kinds = list(KINDS) if "all" in what else what
    if len(kinds) == 1 and output is not None:
        files = {kinds[0]: output}
    else:
        folder = output or Path()
        if not folder.suffix and not folder.exists():  # with an ending it is a file's name by mistake
            make_folder(folder)
        files = {kind: folder / f"{kind}.{'gif' if kind == 'evolution' else ending}" for kind in kinds}

    from lvkam.pictures import plot_checkpoint

    def leave_out(reason: str) -> None:
        click.echo(f"left out: {reason}", err=True)

    for file in plot_checkpoint(
        checkpoint, files, num_images=num_images, coordinates=coordinates or (), seed=seed, data=data,
        data_dir=data_dir, overwrite=overwrite, leave_out=leave_out if "all" in what else None,
    ):  # fmt: skip
        click.echo(file)
