"""`lvkam experiments CONFIG`."""

from __future__ import annotations

from pathlib import Path

import click

from lvkam.errors import FailureError
from lvkam.interruption import Interruption

from .options import CommaList, config_argument, data_dir_option, device_option, jobs_option, read_config, set_option


@click.command("experiments")
@config_argument
@set_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("experiments"), show_default=True,
              help="Folder for the cells, a run folder each, and for the summary.")  # fmt: skip
@click.option("--priors", type=CommaList(click.Choice(["uniform", "gaussian"]), "LIST"), default="uniform,gaussian",
              show_default=True, help="Reference densities.")  # fmt: skip
@click.option("--datasets", type=CommaList(click.STRING, "LIST"), default="MNIST,FMNIST", show_default=True,
              help="Data sets, by name or path.")  # fmt: skip
@click.option("--temps", type=CommaList(click.IntRange(0, 10**6), "LIST"), default="0,30", show_default=True,
              help="Numbers of temperatures; 0: importance sampling.")  # fmt: skip
@click.option("--seeds", type=CommaList(click.IntRange(0, 2**63 - 1), "LIST"), show_default="the file's",
              help="Seeds.")  # fmt: skip
@jobs_option
@click.option("--num-images", type=click.IntRange(1), default=1000, show_default=True,
              help="Test images to evaluate each model with.")  # fmt: skip
@click.option("--num-samples", type=click.IntRange(2), default=20000, show_default=True,
              help="Prior samples to evaluate it by.")  # fmt: skip
@device_option
@data_dir_option
@click.pass_obj
def command(
    interruption: Interruption,
    config: Path,
    overrides: tuple[str, ...],
    output: Path,
    priors: list[str],
    datasets: list[str],
    temps: list[int],
    seeds: list[int] | None,
    jobs: int,
    num_images: int,
    num_samples: int,
    device: str | None,
    data_dir: Path | None,
) -> None:
    """Train a matrix of models and compare them: by default the reference's, in eight cells.

    Images are resized to 14x14, as there, unless the file gives a size (img_resize).

    Stop it whenever you like: the same command skips what is finished and goes on with the rest. The summary goes to
    standard output, and to summary.csv, summary.md and summary.png in the folder.
    """
    resolved = read_config(config, overrides, None)

    from lvkam.experiment import tell
    from lvkam.matrix import as_markdown, plan_cells, run_matrix

    counts = list(dict.fromkeys(0 if number <= 1 else number for number in temps))  # 1 is importance sampling too
    cells = plan_cells(resolved, output, priors, datasets, counts, seeds or [resolved.training.seed])
    rows = run_matrix(
        cells, output, jobs=jobs, device=device, num_images=num_images, num_samples=num_samples, data_dir=data_dir,
        say=tell, interruption=interruption,
    )  # fmt: skip
    click.echo(as_markdown(rows), nl=False)
    if failed := sum(row["Status"] != "done" for row in rows):
        raise FailureError(f"{failed} of {len(rows)} cells; the same command tries them again")
