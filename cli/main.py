"""The command `lvkam`: options become one call of the library, its errors one message and an exit status.

Exit status: 0 done, 1 failed while running, 2 bad input. Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import warnings
from importlib.metadata import version
from typing import Any

import click

from lvkam.errors import FailureError, InputError, StoppedError
from lvkam.interruption import Interrupted, Interruption

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""What glibc calls the sizes from which memory at the heap's end is returned, and memory mapped by itself."""

COMMANDS = {
    "train": "Train a model from an INI file.",
    "sample": "Draw images from a trained model.",
    "evaluate": "Measure likelihood and quality.",
    "plot": "Draw what a model has learnt.",
    "report": "Write a page about a run, or compare several.",
    "info": "Show what a checkpoint holds, and verify it.",
    "check": "Resolve a configuration; train nothing.",
    "data": "Fetch or verify a data set, and draw it.",
    "fit-features": "Fit a classifier to measure samples with.",
    "experiments": "Train a matrix of models, and compare them.",
    "sweep": "Search settings for the best.",
    "completion": "Write a shell's completion script.",
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
        return importlib.import_module(f"lvkam_cli.{cmd_name.replace('-', '_')}").command

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
    keep_freed_memory()
    interruption = Interruption()
    interruption.listen()
    try:
        status = _run(interruption)
    except Interrupted as stop:
        click.echo(stop, err=True)
        status = stop.exit_status
    interruption.ignore()
    if status and "WORLD_SIZE" in os.environ:
        # Of several processes one that ends in disorder is at once over: torch's threads, which still hold connections
        # to others that have left, can abort an ordinary end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run(interruption: Interruption) -> int:
    """Run the command line, which takes the signals for its `obj`: the exit status."""
    try:
        cli.main(standalone_mode=False, obj=interruption)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:
        click.echo("aborted", err=True)
        return 1
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        return 2
    except (FailureError, FloatingPointError, OSError) as error:
        if not isinstance(error, StoppedError):  # of several processes, another says why
            click.echo(f"failed: {error}", err=True)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        click.echo("failed: out of memory; fewer samples, smaller batches or narrower widths need less", err=True)
        return 1
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """MemoryError, or what torch raises: a RuntimeError with these words on a CPU, OutOfMemoryError on a GPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(w in str(error) for w in words)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks rather than return them to the system.

    A training step frees and takes again tens of megabytes; having the system hand out and clear these pages
    anew each time cost up to half of the time. The process is the command's own: it ends with the command.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
