"""Whether a run can go on: from its own checkpoint, with its own configuration. No torch is needed to tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lvkam.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from lvkam.config import Config, ConfigError, load_config, parse_config
from lvkam.run_folder import OutputError, results_in
from lvkam.sections import write_value

ENDS = {("TRAINING", "N_epochs"), ("TRAINING", "max_seconds")}
"""Keys that tell when a training ends."""

FREE_KEYS = ENDS | {
    ("TRAINING", "checkpoint_every"),
    ("TRAINING", "checkpoint_minutes"),
    ("TRAINING", "gen_every"),
    ("TRAINING", "verbose"),
    ("TRAINING", "use_gpu"),
    ("TRAINING", "compile"),
    ("TRAINING", "shard"),
    ("TRAINING", "update_grid"),
    ("KAN_LIKELIHOOD", "gating_activation"),
}
"""Keys that may differ when a run goes on: they only prolong it, bring it elsewhere, or have no effect."""


def resume_point(folder: Path, config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that a run of this configuration goes on from, or None if it is yet to begin.

    Args:
        folder: the run folder; it may be missing.
        config: what is to be run.
        say: told that there is nothing to go on from.

    Raises:
        CheckpointError: the checkpoint is damaged, or of a model alone.
        ConfigError: the run has another configuration; every key that differs is named.
        OutputError: the folder holds results that belong to no run.
    """
    held, begun = results_in(folder), folder / "config.ini"
    # without the last state, that of the best epoch goes on just as well: it only has more steps before it
    if name := next((name for name in ("ckpt.h5", "best.h5") if name in held), None):
        path = folder / name
        checkpoint = read_checkpoint(path)
        if not checkpoint.training:
            raise CheckpointError(f"{path}: holds a model alone, nothing that a training could go on with")
        _refuse_another_run(config, parse_config(checkpoint.config, f"{path} (config)"), folder)
        done = checkpoint.epoch + (checkpoint.progress.batches > 0)
        if config.training.num_epochs < done:
            raise ConfigError([config.problem("TRAINING", "N_epochs", f"at least {done}, which are done or begun")])
        if name != "ckpt.h5":
            say(f"{folder}: no ckpt.h5: going on from {name}")
        return checkpoint
    if begun.exists():
        _refuse_another_run(config, load_config(begun), folder)
    elif held:
        raise OutputError(f"{folder}: holds {', '.join(held)}, but neither a checkpoint nor the run's configuration")
    say(f"{folder}: no checkpoint yet: starting afresh")
    return None


def _refuse_another_run(config: Config, before: Config, folder: Path) -> None:
    theirs = before.to_dict()
    # the end of its training bends the course of the cosine, and of the sample size, from the first step on
    bent = " and ".join(
        ["schedule = cosine"] * (before.optimizer.schedule == "cosine")
        + ["initial_sample_size"] * (before.training.initial_sample_size is not None)
    )
    free = FREE_KEYS - ENDS if bent else FREE_KEYS
    goes = f", by which its {bent} {'go' if ' and ' in bent else 'goes'}"
    differing = [
        f"{config.source}: [{section}] {key} = {write_value(value)}: the run in {folder} "
        f"has {write_value(theirs[section][key])}, and goes on with that only"
        f"{goes if (section, key) in FREE_KEYS else ''}"
        for section, keys in config.to_dict().items()
        for key, value in keys.items()
        if value != theirs[section][key] and (section, key) not in free
    ]
    if differing:
        raise ConfigError(differing)
