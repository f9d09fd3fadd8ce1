"""The reference of all commands, made from the commands themselves: `python docs/generate.py > docs/commands.md`."""

from __future__ import annotations

import inspect

import click
from lvkam_cli.main import COMMANDS, cli

HEAD = """\
# Commands

This page is generated: `python docs/generate.py > docs/commands.md`. Progress goes to standard error, results to
standard output. Exit status: 0 done, 1 failed while running, 2 bad input; 130 and 143 stopped by SIGINT and SIGTERM.
"""


def command_reference() -> str:
    """All commands as Markdown, in the order in which `lvkam --help` lists them."""
    group = click.Context(cli, info_name="lvkam", **cli.context_settings)
    parts = [HEAD, _section(cli, group)]
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        parts.append(_section(command, click.Context(command, info_name=name, parent=group)))
    return "\n".join(parts)


def _section(command: click.Command, context: click.Context) -> str:
    """Usage, help and options of one command; of a group, its commands."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", "```", usage, "```", ""]
    for text in (command.help, command.epilog):
        if text:
            lines += [inspect.cleandoc(text), ""]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:  # not in a table, where | in a choice would begin a cell
            declaration, meaning = record
            lines.append(f"- `{declaration}`: {' '.join(meaning.split())}")
    if isinstance(command, click.Group):
        lines += ["", *(f"- [`lvkam {name}`](#lvkam-{name}): {meaning}" for name, meaning in COMMANDS.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(command_reference(), end="")
