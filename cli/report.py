"""`lvkam report PATH` and `lvkam report --compare PATH...`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from .options import data_dir_option, data_option, overwrite_option, seed_option


def _verified(_: click.Context, __: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Checkpoints are verified at once, before anything as large as torch is imported."""
    from lvkam.checkpoint import read_checkpoint
    from lvkam.run_folder import checkpoint_of

    for path in paths:
        read_checkpoint(checkpoint_of(path))
    return paths


@click.command("report")
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path), callback=_verified
)
@click.option("--compare", is_flag=True, help="Several runs side by side.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
              help="HTML file.")  # fmt: skip
@click.option("--metrics", type=click.Choice(["all", "nll", "none"]), show_default="all, compared: nll",
              help="What to measure on test data.")  # fmt: skip
@data_option
@overwrite_option
@seed_option
@data_dir_option
def command(
    paths: tuple[Path, ...],
    compare: bool,
    output: Path,
    metrics: Literal["all", "nll", "none"] | None,
    data: str | None,
    overwrite: bool,
    seed: int | None,
    data_dir: Path | None,
) -> None:
    """Write an HTML page about a run folder or a checkpoint: all in one file, which needs no network."""
    first, *others = paths
    if others and not compare:
        raise click.UsageError("several paths need --compare")
    from lvkam.report import write_comparison, write_report

    if compare:
        written = write_comparison(
            paths, output, metrics=metrics or "nll", data=data, data_dir=data_dir, seed=seed, overwrite=overwrite
        )
    else:
        written = write_report(
            first, output, metrics=metrics or "all", data=data, data_dir=data_dir, seed=seed, overwrite=overwrite
        )
    click.echo(written)
