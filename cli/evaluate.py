"""`lvkam evaluate CKPT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
@click.option("--metrics", metavar="nll|all|LIST", default="nll", show_default=True,
              help="Out of nll,kid,fid,precision,recall,density,coverage.")  # fmt: skip
@click.option("--num-generated", type=click.IntRange(1), show_default="2000, or as many as there are",
              help="Samples that are compared with as many real ones, for all but nll.")  # fmt: skip
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
    metrics: str,
    num_generated: int | None,
    data: str | None,
    per_image: Path | None,
    overwrite: bool,
    seed: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure a trained model: the negative log-likelihood of test images, or of any data, and how good samples are.

    The less evidence an image or row has, the less it is like the training data: --per-image writes that of each.

    KID, FID, precision, recall, density and coverage are of features, which the output names, and stand beside those
    of real images, of these without one class, and of noise.
    """
    import json

    from lvkam.inference import caution, evaluate_checkpoint

    summary = evaluate_checkpoint(
        checkpoint, num_images, num_samples, seed, data_dir,
        estimator=estimator, num_temps=num_temps, moves=moves, data=data, per_image=per_image, overwrite=overwrite,
        metrics=[name.strip() for name in metrics.split(",")], num_generated=num_generated,
    )  # fmt: skip
    if (doubt := caution(summary)) is not None:
        click.echo(f"warning: {doubt}", err=True)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    if "nll_nats" in summary:
        _print_evidence(summary, "NLL" if data else "test NLL")
    if "metrics" in summary:
        _print_quality(summary)


def _print_evidence(summary: dict[str, Any], named: str) -> None:
    what, total = summary["what"], summary["num_samples"] * summary["num_repetitions"]
    article = "an" if what == "image" else "a"
    click.echo(f"{named:<23}{summary['nll_nats']:.3f} +- {summary['nll_stderr']:.3f} nats {article} {what}")
    click.echo(f"bits per dimension     {summary['bits_per_dim']:.4f}")
    click.echo(f"effective sample size  {summary['effective_sample_size']:.1f} of {total} ({summary['estimator']})")
    if summary["acceptance"] is not None:
        temperatures = f"at {summary['num_temps']} temperatures"
        click.echo(f"accepted moves         {100 * summary['acceptance']:.0f} %, {temperatures}")
    click.echo(f"data                   {summary['num_images']} of {summary['data']}; {summary['values']}")
    click.echo(f"On average the estimate is an upper bound, by about half the squared standard errors of the {what}s.")
    if summary["binarize"] != "none":
        click.echo("Of bits drawn by grey values the likelihood is a probability: at the same size it compares")
        click.echo("with published figures of stochastically binarised images.")
    elif summary["likelihood"] == "bernoulli":
        click.echo("On grey values the Bernoulli log-likelihood is a cross-entropy: it does not compare")
        click.echo("with densities of discretised data.")


def _print_quality(summary: dict[str, Any]) -> None:
    """A line for each metric on each kind of features, a column for the model and each control."""
    rows = summary["metrics"]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    lines: dict[str, list[str]] = {}
    for row in rows:
        # what bootstrap finds of bias is taken out: only so does the figure lie in its interval
        cell = f"{row['corrected']:.4g} [{row['low']:.3g}, {row['high']:.3g}]"
        metric = row["metric"].upper() if row["metric"] in {"kid", "fid"} else row["metric"]
        lines.setdefault(f"{metric}({row['features']})", []).append(cell)
    table = [["", *sets], *([name, *cells] for name, cells in lines.items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    number, real = f"{summary['num_compared']} {summary['what']}s", summary["compared_with"]
    click.echo(f"{number} of each set against as many drawn out of all of {real};")
    click.echo("95 % intervals; KID and FID without the bias that bootstrap finds in them.")
    if summary["classifier_accuracy"] is not None:
        accuracy = f"{100 * summary['classifier_accuracy']:.2f} %"
        click.echo(f"{summary['features']} is a classifier fitted here, {accuracy} right on test images: compare these")
        click.echo("figures with those on the same features alone, and not with the FID of papers (docs/metrics.md).")
