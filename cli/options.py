"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lvkam.config import Config


class CommaList(click.ParamType):
    """Values separated by commas, each of one type, none given twice."""

    def __init__(self, kind: click.ParamType, name: str):
        self.kind, self.name = kind, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """The values."""
        if not isinstance(value, str):
            return value
        values = [self.kind.convert(part.strip(), param, ctx) for part in value.split(",")]
        if len(set(values)) < len(values):
            self.fail(f"{value!r} names one twice", param, ctx)
        return values


def read_config(path: Path, overrides: tuple[str, ...], seed: int | None) -> Config:
    """The configuration with what the command line changes in it, and the heads of the data that it names looked at."""
    from lvkam.config import load_config
    from lvkam.sources import check_dataset

    config = load_config(path, overrides if seed is None else (*overrides, f"TRAINING.seed={seed}"))
    check_dataset(config)
    return config


def _verified(_: click.Context, __: click.Parameter, path: Path) -> Path:
    """A checkpoint is verified at once, before anything as large as torch is imported."""
    from lvkam.checkpoint import read_checkpoint

    read_checkpoint(path)
    return path


def checked_data(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """The heads of data are looked at before anything as large as torch is imported."""
    from lvkam.sources import check_own

    if name is not None:
        check_own(name)
    return name


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Context of imports that an extra of the package brings."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lvkam"):
            raise
        raise click.UsageError(f"{what}: {error}; pip install 'lvkam[{extra}]' brings it") from error


def _complete_key(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Keys of the configuration that begin like this, for a shell."""
    from lvkam.config import SECTIONS

    keys = (f"{name}.{key}=" for name, section in SECTIONS.items() for key in section.fields_by_key())
    return [key for key in keys if key.startswith(incomplete)]


config_argument = click.argument("config", type=click.Path(path_type=Path))
checkpoint_argument = click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path), callback=_verified)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", shell_complete=_complete_key,
    help="Override a key; may be repeated.",
)  # fmt: skip
seed_option = click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the random numbers.")
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder to look for data sets in first.",
)
data_option = click.option(
    "--data", metavar="NAME|PATH", callback=checked_data,
    help="Other data than the test split of the model's own: a name, a .npz, .h5 or .csv file, a folder of images.",
)  # fmt: skip
device_option = click.option(
    "--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU if use_gpu and there is one."
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 1024), default=1, show_default=True,
    help="How many run at a time; the threads are divided among them.",
)  # fmt: skip
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")
output_folder_option = click.option(
    "--output", type=click.Path(path_type=Path), help="Run folder; default logs/METHOD/PRIOR/DATASET_SEED."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
