"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lvkam.config import Config


def read_config(path: Path, overrides: tuple[str, ...], seed: int | None) -> Config:
    """The configuration with what the command line changes in it."""
    from lvkam.config import load_config

    return load_config(path, overrides if seed is None else (*overrides, f"TRAINING.seed={seed}"))


def _verified(_: click.Context, __: click.Parameter, path: Path) -> Path:
    """A checkpoint is verified at once, before anything as large as torch is imported."""
    from lvkam.checkpoint import read_checkpoint

    read_checkpoint(path)
    return path


config_argument = click.argument("config", type=click.Path(path_type=Path))
checkpoint_argument = click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path), callback=_verified)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated."
)
seed_option = click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the random numbers.")
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder to look for data sets in first.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")
output_folder_option = click.option(
    "--output", type=click.Path(path_type=Path), help="Run folder; default logs/METHOD/PRIOR/DATASET_SEED."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
