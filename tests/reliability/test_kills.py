"""Whatever ends a training, at whatever moment: its checkpoint is whole, and it goes on to the same bits."""

from __future__ import annotations

import collections
import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.reliability.harness import (
    assert_no_traceback,
    info,
    outcome,
    report,
    run,
    scaled,
    start,
    train_command,
    working_folder,
)

NUM_KILLS, NUM_SIGNALS = scaled(8, 200), scaled(8, 100)
CHAINS = scaled(1, 2)
"""Runs side by side, on as many processors."""


def wait_for(process: subprocess.Popen[str], text: str) -> list[str]:
    """Lines of standard error, up to one that holds the text or the last one."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            break
    return lines


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
        if self.random.random() < 0.9:
            lines = wait_for(process, "kernels not compiled")
            time.sleep(self.random.uniform(0, 1.2))
        else:
            time.sleep(self.random.uniform(0, 3))
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.002)
        _, rest = process.communicate(timeout=120)
        return process.returncode, "".join(lines) + rest

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
        assert_no_traceback(stderr)
        if status == 0:
            runs.conclude()
            continue
        # before Python listens, a signal does what the system has it do
        early = status == -number and not stderr
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("line", "delay"), [("kernels not compiled", 0.0), ("epoch 1/4", 0.02), ("epoch 3/4", 0.0), ("epoch 4/4", 0.05)]
)
def test_signalled_in_a_known_phase(
    number: signal.Signals, line: str, delay: float, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    folder = working_folder(tmp_path / "user")
    process = start(train_command(), folder)
    wait_for(process, line)
    time.sleep(delay)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert_no_traceback(stderr)
    assert process.returncode in {0, 128 + number}  # 0: it was over when the signal came
    done = run(train_command("--resume"), folder)
    assert done.returncode == 0, done.stderr
    assert outcome(folder / "run") == undisturbed
