"""Whatever ends a training, at whatever moment: its checkpoint is whole, and it goes on to the same bits."""

from __future__ import annotations

import collections
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reliability.harness import (
    SOAK,
    assert_no_traceback,
    info,
    outcome,
    report,
    run,
    scaled,
    start,
    train_command,
    wait_for,
    working_folder,
)

NUM_KILLS, NUM_SIGNALS = scaled(3, 200), scaled(3, 60)
NUMBERS = [signal.SIGINT, signal.SIGTERM]
CHAINS = scaled(1, 2)
"""Runs side by side, on as many processors."""


class Chain:
    """A training, stopped and resumed until it has come to its end; then the next one."""

    def __init__(self, folder: Path, seed: int, undisturbed: dict[str, str]):
        self.folder, self.random, self.undisturbed = folder, random.Random(seed), undisturbed
        self.stopped: collections.Counter[str] = collections.Counter()
        self.finished = 0
        self.begin()

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        working_folder(self.folder)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def stop(self, process: subprocess.Popen[str], numbers: list[int]) -> tuple[int, str]:
        """Send signals at a random moment: some while the program starts, most while it trains or writes."""
        lines: list[str] = []
        when = self.random.random()
        if when < 0.2:  # as soon as a checkpoint is being written, the so-many-th
            lines = wait_for(process, "kernels not compiled")
            for _ in range(self.random.randrange(1, 8)):
                self.wait_for_part(process)
        elif when < 0.9:
            lines = wait_for(process, "kernels not compiled")
            time.sleep(self.random.uniform(0, 1.2))
        else:
            time.sleep(self.random.uniform(0, 3))
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.002)
        _, rest = process.communicate(timeout=120)
        return process.returncode, "".join(lines) + rest

    def wait_for_part(self, process: subprocess.Popen[str]) -> None:
        """Until a checkpoint begins to be written, if one does."""
        before = set(self.run.glob(".ckpt.h5.*"))
        until = time.monotonic() + 2
        while process.poll() is None and time.monotonic() < until and set(self.run.glob(".ckpt.h5.*")) <= before:
            pass

    def check(self) -> str:
        """The checkpoint is whole, or not there yet; where the run was."""
        parts = list(self.run.glob(".ckpt.h5.*")) + list(self.run.glob(".best.h5.*"))
        checkpoint = self.run / "ckpt.h5"
        if not checkpoint.exists():
            return "before the first checkpoint"
        told = info(checkpoint)
        assert told.returncode == 0, told.stderr
        described = json.loads(told.stdout)
        assert described["verified"]
        if parts:
            return "while a checkpoint was written"
        return "after the last step" if described["epoch"] == 4 else "between"

    def conclude(self) -> None:
        assert outcome(self.run) == self.undisturbed
        # nothing half written is left, and no name of a process that holds the folder
        assert [p.name for p in self.run.iterdir() if p.name.startswith(".")] == [".lock"]
        self.finished += 1
        self.begin()

    def finish(self) -> None:
        """Let the training that is under way come to its end, undisturbed."""
        done = run(train_command("--resume"), self.folder)
        assert done.returncode == 0, done.stderr
        self.conclude()


@pytest.mark.parametrize("chain", range(CHAINS))
def test_killed_at_any_moment(chain: int, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    runs = Chain(tmp_path / "user", chain, undisturbed)
    while runs.stopped.total() < NUM_KILLS // CHAINS:
        process = start(train_command("--resume"), runs.folder)
        status, stderr = runs.stop(process, [signal.SIGKILL])
        assert_no_traceback(stderr)
        if status == 0:
            runs.conclude()
            continue
        assert status == -signal.SIGKILL
        runs.stopped[runs.check()] += 1
    runs.finish()
    assert not SOAK or runs.stopped["while a checkpoint was written"] > 0
    for where, count in runs.stopped.items():
        report(f"SIGKILL {where}", count)
    report("runs resumed to the end, equal to the undisturbed one", runs.finished)


@pytest.mark.parametrize("chain", range(CHAINS))
def test_signalled_at_any_moment(chain: int, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    runs = Chain(tmp_path / "user", 100 + chain, undisturbed)
    while runs.stopped.total() < NUM_SIGNALS // CHAINS:
        number = runs.random.choice([signal.SIGINT, signal.SIGTERM])
        twice = runs.random.random() < 0.2
        process = start(train_command("--resume"), runs.folder)
        status, stderr = runs.stop(process, [number] * (1 + twice))
        # before the program listens, in its first tenth of a second, a signal does what Python has it do
        early = status == -number and "writing to" not in stderr
        if not early:
            assert_no_traceback(stderr)
        if status == 0:
            runs.conclude()
            continue
        assert early or status == 128 + number, (status, stderr)
        if not early and not twice:
            saved = runs.run / "ckpt.h5"
            means = (
                r"saved in run/ckpt\.h5; the same command with --resume goes on" if saved.exists() else "nothing was"
            )
            assert re.search(f"^interrupted(; {means}|$)", stderr, re.MULTILINE), stderr
        runs.stopped[f"{'twice ' if twice else ''}{runs.check()}"] += 1
    runs.finish()
    for where, count in runs.stopped.items():
        report(f"SIGINT or SIGTERM {where}", count)
    report("runs resumed to the end, equal to the undisturbed one", runs.finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "number"),
    [
        (line, number)
        for index, line in enumerate(("kernels not compiled", "epoch 1/4", "epoch 0/4", "epoch 3/4")[: scaled(2, 4)])
        for number in (NUMBERS if SOAK else NUMBERS[index % 2 :][:1])
    ],
)
def test_signalled_in_a_known_phase(
    number: signal.Signals, line: str, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """While the untrained model is evaluated, in the first epoch, between two, and in the last one."""
    folder = working_folder(tmp_path / "user")
    process = start(train_command(), folder)
    wait_for(process, line)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert_no_traceback(stderr)
    assert process.returncode == 128 + number
    assert stderr.splitlines()[-1].startswith("interrupted; ")
    done = run(train_command("--resume"), folder)
    assert done.returncode == 0, done.stderr
    assert outcome(folder / "run") == undisturbed


PHASES = {
    "data loading": (
        "lvkam.experiment",
        "load_config_dataset",
        "nothing was saved yet; the same command",
    ),
    "grid update": (
        "lvkam.univariate",
        "fit_coefficients",
        "saved in run/ckpt.h5; the same command",
    ),
    "generation": ("lvkam.experiment", "draw_samples", "saved in run/ckpt.h5; the same command"),
}
SLOWLY = """
import importlib, sys, time
place, name = sys.argv[1:3]
del sys.argv[1:3]
from lvkam_cli.main import main
module = importlib.import_module(place)
original = getattr(module, name)
calls = 0

def slowly(*args, **kwargs):
    global calls
    calls += 1
    if name != "fit_coefficients" or calls > 3:  # three are initial values
        print("now", file=sys.stderr, flush=True)
        time.sleep(0.3)
    return original(*args, **kwargs)

setattr(module, name, slowly)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "number"),
    [(phase, n) for i, phase in enumerate(PHASES) for n in (NUMBERS if SOAK else NUMBERS[i % 2 :][:1])],
)
def test_signalled_in_a_phase_made_slow(
    phase: str, number: signal.Signals, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    place, name, said = PHASES[phase]
    folder = working_folder(tmp_path / "user")
    process = start([sys.executable, "-c", SLOWLY, place, name, *train_command()[1:]], folder)
    wait_for(process, "now")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert_no_traceback(stderr)
    assert process.returncode == 128 + number, stderr
    assert said in stderr.splitlines()[-1]
    done = run(train_command("--resume"), folder)
    assert done.returncode == 0, done.stderr
    assert outcome(folder / "run") == undisturbed
    report("signals in data loading, grid update, generation", 1)
