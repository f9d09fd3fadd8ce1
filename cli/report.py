"""`lvkam report PATH` and `lvkam report --compare PATH...`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from .options import data_dir_option, data_option, needs, overwrite_option, seed_option


def _verified(_: click.Context, __: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Checkpoints are verified at once, before anything as large as torch is imported."""
    from lvkam.checkpoint import read_checkpoint
    from lvkam.run_folder import checkpoint_of, is_sweep

    for path in paths:
        if not is_sweep(path):
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
    """Write an HTML page about a run folder, a checkpoint or a sweep: all in one file, which needs no network."""
    from lvkam.run_folder import is_sweep

    first, *others = paths
    if others and not compare:
        raise click.UsageError("several paths need --compare")
    if any(map(is_sweep, paths)):
        if compare:
            raise click.UsageError("--compare takes runs, a sweep's own among them, not sweeps")
        with needs("report of a sweep", "sweep"):
            from lvkam.sweep_report import write_sweep_report
        click.echo(write_sweep_report(first, output, overwrite=overwrite))
        return
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
