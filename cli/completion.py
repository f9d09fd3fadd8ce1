"""`lvkam completion SHELL`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = {
    "bash": "~/.local/share/bash-completion/completions/lvkam",
    "zsh": "a file that .zshrc sources",
    "fish": "~/.config/fish/completions/lvkam.fish",
}
"""Where each looks for completions, or can be told to."""


@click.command("completion", epilog="Put it into " + "; ".join(f"{place} ({name})" for name, place in SHELLS.items()))
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Write the script by which a shell completes commands, options, files and the keys of --set."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "lvkam", "_LVKAM_COMPLETE").source())
