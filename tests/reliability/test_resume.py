"""N steps, a stop, and N more are 2N steps: the same bits in every array, figure and image."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lvkam.config import Config, parse_config
from lvkam.experiment import run_experiment
from lvkam.interruption import Interrupted, Interruption
from tests.conftest import require_compiler
from tests.reliability.harness import (
    SOAK,
    TRAINING,
    assert_no_traceback,
    outcome,
    report,
    run,
    start,
    train_command,
    wait_for,
    working_folder,
)

METHODS = {
    "vanilla": ("THERMODYNAMIC_INTEGRATION.num_temps=-1",),
    "thermodynamic": ("THERMODYNAMIC_INTEGRATION.num_temps=9",),
    "moves": ("THERMODYNAMIC_INTEGRATION.num_temps=3", "THERMODYNAMIC_INTEGRATION.moves_per_temperature=1"),
    "noise, few gradients": (
        "THERMODYNAMIC_INTEGRATION.num_temps=-1", "KAN_LIKELIHOOD.generator_noise_var=0.1",
        "TRAINING.gradient_samples=3", "TRAINING.gradient_selection=resampled", "MIX_PRIOR.π_0=gaussian",
        "MIX_PRIOR.spline_function=RBF", "MIX_PRIOR.layer_widths=3, 5, 4",
    ),
}  # fmt: skip
FIRST_ORDER = ["adam", "adamw", "sgd", "rms"]
SEARCHING = ["gd", "cg", "l-bfgs", "bfgs", "newton", "interior-point", "neldermead"]
TINY = (
    "MIX_PRIOR.layer_widths=2, 2", "MIX_PRIOR.grid_size=2", "MIX_PRIOR.spline_degree=1", "TRAINING.img_resize=3, 3",
    "KAN_LIKELIHOOD.expert_widths=2", "KAN_LIKELIHOOD.grid_size=2", "KAN_LIKELIHOOD.spline_degree=1",
    "OPTIMIZER.l-bfgs_memory=3",
)  # fmt: skip
"""Of 114 parameters: some steps cost as much as their square. Pairs are replaced by later ones."""
# of 8 steps an epoch, with grid updates before the steps 1, 4, 7, 10, 13, 16: right before one, right after it, in the
# middle, at an epoch's last step, whose evaluation is then still to come, and after it
STOPS = list(range(1, 16)) if SOAK else [3, 4, 6, 8, 9]


def configured(method: str, optimizer: str, *overrides: str) -> Config:
    return parse_config(
        "", "test", [*TRAINING, *METHODS[method], f"OPTIMIZER.type={optimizer}", "TRAINING.N_epochs=2", *overrides]
    )


def stopped(config: Config, folder: Path, after: int, resume: bool) -> None:
    """Run until a step, whose end a signal waits for."""
    interruption = Interruption()

    def say(line: str) -> None:
        if line.startswith(f"iteration {after}: loss"):
            interruption.number = signal.SIGTERM

    with pytest.raises(Interrupted):
        run_experiment(config, folder, resume=resume, say=say, interruption=interruption)


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [(m, o) for m in METHODS for o in FIRST_ORDER if SOAK or o == "adam" or (m, o) == ("vanilla", "rms")]
    # tests/test_training.py resumes each of these within a process
    + [("vanilla", o) for o in SEARCHING if SOAK or o == "l-bfgs"],
)
def test_stopped_and_resumed_is_undisturbed(method: str, optimizer: str, tmp_path: Path) -> None:
    tiny = () if optimizer in FIRST_ORDER else TINY
    config = configured(method, optimizer, "TRAINING.verbose=true", *tiny)  # so that steps are told
    run_experiment(config, tmp_path / "whole", say=lambda _: None)
    expected = outcome(tmp_path / "whole")
    for index, after in enumerate(STOPS):  # one run, stopped again and again
        stopped(config, tmp_path / "often", after, resume=index > 0)
    run_experiment(config, tmp_path / "often", resume=True, say=lambda _: None)
    assert outcome(tmp_path / "often") == expected
    for after in STOPS if SOAK else STOPS[:1]:  # and runs that are stopped once
        stopped(config, once := tmp_path / f"once{after}", after, resume=False)
        run_experiment(config, once, resume=True, say=lambda _: None)
        assert outcome(once) == expected
    report("stops at known steps, resumed to the same bits", len(STOPS) * (1 + SOAK) + (not SOAK))


@pytest.mark.parametrize("method", ["vanilla", "thermodynamic"])
def test_a_longer_training_is_one_that_was_prolonged(method: str, tmp_path: Path) -> None:
    short, long = configured(method, "adam"), configured(method, "adam", "TRAINING.N_epochs=3")
    run_experiment(long, tmp_path / "whole", say=lambda _: None)
    run_experiment(short, tmp_path / "prolonged", say=lambda _: None)
    run_experiment(long, tmp_path / "prolonged", resume=True, say=lambda _: None)
    assert outcome(tmp_path / "prolonged") == outcome(tmp_path / "whole")


def test_a_training_out_of_time_is_prolonged_to_the_same_bits(tmp_path: Path) -> None:
    config = configured("vanilla", "adam", "TRAINING.max_seconds=0.02")
    lines: list[str] = []
    run_experiment(config, tmp_path / "cut", say=lines.append)
    assert any("have passed: stopping in epoch" in line for line in lines)
    rows = (tmp_path / "cut" / "loss.csv").read_text().splitlines()
    run_experiment(config, tmp_path / "cut", resume=True, say=lines.append)  # nothing is left to do
    assert (tmp_path / "cut" / "loss.csv").read_text().splitlines() == rows
    whole = configured("vanilla", "adam")
    run_experiment(whole, tmp_path / "cut", resume=True, say=lines.append)
    run_experiment(whole, tmp_path / "whole", say=lines.append)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_compiled_training_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    require_compiler()
    overrides = ("TRAINING.compile=true", "TRAINING.N_epochs=2", "TRAINING.verbose=true")
    whole, cut = working_folder(tmp_path / "whole"), working_folder(tmp_path / "cut")
    done = run(train_command(overrides=overrides), whole, timeout=400)
    assert done.returncode == 0, done.stderr
    for after in (
        range(1, 16, 3) if SOAK else [7]
    ):  # 7: the next step's batch, the first after the resumption, is ragged
        process = start(train_command("--resume", overrides=overrides), cut)
        wait_for(process, f"iteration {after}: loss")
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=400)
        assert_no_traceback(rest)
        assert process.returncode == 128 + signal.SIGTERM, rest
    done = run(train_command("--resume", overrides=overrides), cut, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "kernels compiled as when the run began" in done.stderr
    assert outcome(cut / "run") == outcome(whole / "run")
