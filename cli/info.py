"""`lvkam info CKPT`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option


@click.command("info")
@click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path))  # verified as it is described
@json_option
def command(checkpoint: Path, as_json: bool) -> None:
    """Show what a checkpoint holds and verify its checksums; a damaged one ends with status 2."""
    import json

    from lvkam.checkpoint import describe_checkpoint
    from lvkam.sections import write_value

    described = describe_checkpoint(checkpoint)
    if as_json:
        click.echo(json.dumps(described, ensure_ascii=False, indent=2))
        return
    config = described.pop("config")
    for name, value in described.items():
        click.echo(f"{name:<14} {value}")
    for section, keys in config.items():
        click.echo(f"\n[{section}]")
        for key, value in keys.items():
            click.echo(f"{key} = {write_value(value)}")
