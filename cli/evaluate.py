"""`lvkam evaluate CKPT`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import checkpoint_argument, data_dir_option, json_option, overwrite_option, seed_option


@click.command("evaluate")
@checkpoint_argument
@click.option("--estimator", type=click.Choice(["importance"]), default="importance", show_default=True)
@click.option("--num-images", type=click.IntRange(1), default=1000, show_default=True,
              help="How many images, the first of the test split.")  # fmt: skip
@click.option("--num-samples", type=click.IntRange(2), default=20000, show_default=True,
              help="Prior samples, shared by the images.")  # fmt: skip
@click.option("--metrics", type=click.Choice(["nll"]), default="nll", show_default=True, expose_value=False,
              help="What to measure; there is one measure in this version.")  # fmt: skip
@click.option("--per-image", type=click.Path(path_type=Path), help="CSV file for the figures of each image.")
@overwrite_option
@seed_option
@data_dir_option
@json_option
def command(
    checkpoint: Path,
    estimator: str,
    num_images: int,
    num_samples: int,
    per_image: Path | None,
    overwrite: bool,
    seed: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Estimate the negative log-likelihood of test images under a trained model."""
    import json

    from lvkam.inference import evaluate_checkpoint

    summary = evaluate_checkpoint(
        checkpoint, num_images, num_samples, seed, data_dir, per_image=per_image, overwrite=overwrite
    )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    click.echo(f"test NLL               {summary['nll_nats']:.3f} +- {summary['nll_stderr']:.3f} nats an image")
    click.echo(f"bits per dimension     {summary['bits_per_dim']:.4f}")
    click.echo(f"effective sample size  {summary['effective_sample_size']:.1f} of {num_samples} ({estimator})")
    click.echo(f"images                 {num_images}, the first of the test split")
    if summary["likelihood"] == "bernoulli":
        click.echo("On grey values the Bernoulli log-likelihood is a cross-entropy: it does not compare")
        click.echo("with densities of discretised data. On average the estimate is an upper bound.")
