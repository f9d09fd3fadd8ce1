"""The command `lvkam`: options become one call of the library, its errors one message and an exit status.

Exit status: 0 done, 1 failed while running, 2 bad input. Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.metadata import version
from typing import Any

import click

COMMANDS = {
    "train": "Train a model from an INI file.",
    "sample": "Draw images from a trained model.",
    "evaluate": "Estimate the likelihood of test images.",
    "info": "Show what a checkpoint holds, and verify it.",
    "check": "Resolve a configuration; train nothing.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they run; their one-line helps are known before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `lvkam_cli.<command>`, whose function `command` it is."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"lvkam_cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("lvkam"), prog_name="lvkam")
def cli() -> None:
    """LV-KAM: train, sample and inspect generative models made of univariate functions."""


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def main() -> None:
    """Run the command line and exit."""
    warnings.showwarning = _show_warning
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ValueError as error:
        if not _is_bad_input(error):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (FloatingPointError, OSError) as error:
        click.echo(f"failed: {error}", err=True)
        sys.exit(1)


def _is_bad_input(error: ValueError) -> bool:
    """Whether the library raised it about the user's input; asked of modules that are loaded already."""
    names = {
        "lvkam.config": "ConfigError",
        "lvkam.checkpoint": "CheckpointError",
        "lvkam.data": "DataError",
        "lvkam.experiment": "OutputError",
    }
    kinds = [getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules]
    return isinstance(error, tuple(kinds))
