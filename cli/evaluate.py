"""`lvkam evaluate CKPT`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from .options import checkpoint_argument, data_dir_option, data_option, json_option, overwrite_option, seed_option


@click.command("evaluate")
@checkpoint_argument
@click.option("--estimator", type=click.Choice(["importance", "annealed"]), default="importance", show_default=True,
              help="Prior samples shared by the images, or particles of each image's own, annealed.")  # fmt: skip
@click.option("--num-images", type=click.IntRange(1), show_default="1000, annealed: 100",
              help="How many, the first ones; of --data PATH: all.")  # fmt: skip
@click.option("--num-samples", type=click.IntRange(2), show_default="20000, annealed: 16",
              help="Prior samples, or particles of an image in each of 20 repetitions.")  # fmt: skip
@click.option("--num-temps", type=click.IntRange(1, 10**6), default=100, show_default=True,
              help="Temperatures, for annealing.")  # fmt: skip
@click.option("--moves", type=click.IntRange(0, 10**6), default=1, show_default=True,
              help="Metropolis moves at each temperature, for annealing.")  # fmt: skip
@click.option("--metrics", type=click.Choice(["nll"]), default="nll", show_default=True, expose_value=False,
              help="What to measure; there is one measure in this version.")  # fmt: skip
@data_option
@click.option("--per-image", type=click.Path(path_type=Path), help="CSV file for the figures of each image or row.")
@overwrite_option
@seed_option
@data_dir_option
@json_option
def command(
    checkpoint: Path,
    estimator: Literal["importance", "annealed"],
    num_images: int | None,
    num_samples: int | None,
    num_temps: int,
    moves: int,
    data: str | None,
    per_image: Path | None,
    overwrite: bool,
    seed: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Estimate the negative log-likelihood of test images, or of any data, under a trained model.

    The less evidence an image or row has, the less it is like the training data: --per-image writes that of each.
    """
    import json

    from lvkam.inference import LOWEST_SAMPLE_SIZE, evaluate_checkpoint

    summary = evaluate_checkpoint(
        checkpoint, num_images, num_samples, seed, data_dir,
        estimator=estimator, num_temps=num_temps, moves=moves, data=data, per_image=per_image, overwrite=overwrite,
    )  # fmt: skip
    what = summary["what"]
    if summary["images_not_to_trust"] > summary["num_images"] / 100:
        remedy = "--estimator annealed, or more --num-samples" if estimator == "importance" else "more --num-samples"
        click.echo(
            f"warning: {summary['images_not_to_trust']} of {summary['num_images']} {what}s have an effective sample "
            f"size under {LOWEST_SAMPLE_SIZE}, too low to trust the estimate or its error; try {remedy}",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    total = summary["num_samples"] * summary["num_repetitions"]
    named, article = "NLL     " if data else "test NLL", "an" if what == "image" else "a"
    click.echo(f"{named:<23}{summary['nll_nats']:.3f} +- {summary['nll_stderr']:.3f} nats {article} {what}")
    click.echo(f"bits per dimension     {summary['bits_per_dim']:.4f}")
    click.echo(f"effective sample size  {summary['effective_sample_size']:.1f} of {total} ({estimator})")
    if summary["acceptance"] is not None:
        click.echo(f"accepted moves         {100 * summary['acceptance']:.0f} %, at {num_temps} temperatures")
    click.echo(f"data                   {summary['num_images']} of {summary['data']}; {summary['values']}")
    click.echo(f"On average the estimate is an upper bound, by about half the squared standard errors of the {what}s.")
    if summary["likelihood"] == "bernoulli":
        click.echo("On grey values the Bernoulli log-likelihood is a cross-entropy: it does not compare")
        click.echo("with densities of discretised data.")
