"""What goes wrong while running, with numbers, disks, folders: one message, and the last checkpoint is whole."""

from __future__ import annotations

import ast
import math
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lvkam import univariate
from lvkam.checkpoint import read_checkpoint
from lvkam.config import parse_config
from lvkam.experiment import run_experiment
from lvkam.model import LVKAM
from lvkam.objectives import Estimate, ImportanceSampling
from tests.conftest import REPOSITORY
from tests.reliability.harness import (
    ENVIRONMENT,
    SOAK,
    TRAINING,
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

CONFIG = parse_config("", "test", [*TRAINING, "THERMODYNAMIC_INTEGRATION.num_temps=-1", "TRAINING.N_epochs=3"])


SOURCES = [*REPOSITORY.glob("lvkam/**/*.py"), *REPOSITORY.glob("cli/**/*.py")]


def quiet(_: str) -> None:
    pass


def whole(folder: Path) -> dict[str, str]:
    run_experiment(CONFIG, folder, say=quiet)
    return outcome(folder)


Poison = Callable[[pytest.MonkeyPatch, int], Any]


def after(calls: int, original: Callable[..., Any], spoil: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function itself, whose result is spoilt after so many steps."""
    count = 0

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += torch.is_grad_enabled()  # evaluations do not count
        result = original(*args, **kwargs)
        return spoil(result) if count > calls else result

    return function


def in_loss(patch: pytest.MonkeyPatch, calls: int) -> None:
    def spoil(estimate: Estimate) -> Estimate:
        return estimate._replace(loss=estimate.loss * math.nan)

    patch.setattr(ImportanceSampling, "estimate", after(calls, ImportanceSampling.estimate, spoil))


def in_gradient(patch: pytest.MonkeyPatch, calls: int) -> None:
    def spoil(estimate: Estimate) -> Estimate:
        poison = estimate.loss.detach() * 0
        return estimate._replace(loss=estimate.loss + (estimate.loss * 0 + poison).sqrt())

    patch.setattr(ImportanceSampling, "estimate", after(calls, ImportanceSampling.estimate, spoil))


def in_likelihood(patch: pytest.MonkeyPatch, calls: int) -> None:
    def spoil(log_likelihood: Tensor) -> Tensor:
        return log_likelihood.masked_fill(torch.eye(*log_likelihood.shape, dtype=torch.bool), math.nan)

    patch.setattr(LVKAM, "output_log_likelihood", after(calls, LVKAM.output_log_likelihood, spoil))


def in_parameters(patch: pytest.MonkeyPatch, calls: int) -> None:
    """A step of the optimiser that spoils what it changes."""

    original, count = torch.optim.Adam.step, 0

    def step(self: torch.optim.Adam, *args: Any) -> Any:
        nonlocal count
        count += 1
        result = original(self, *args)
        if count > calls:
            with torch.no_grad():
                self.param_groups[0]["params"][2][0, 0] = math.inf
        return result

    patch.setattr(torch.optim.Adam, "step", step)


@pytest.mark.parametrize(
    ("poison", "named"),
    [
        (in_loss, "the loss is nan; all before the loss is finite"),
        (in_gradient, "the gradient of prior.mixture_logits is not finite"),
        (in_likelihood, "the loss is nan; the first number that is not finite is in the log-likelihood"),
        (in_parameters, "holds numbers that are not finite; not saved"),
    ],
)
@pytest.mark.parametrize("calls", [0, 11] if SOAK else [11])
def test_numbers_that_are_not_finite_stop_the_run_and_spoil_nothing(
    poison: Poison, named: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(tmp_path / "whole")
    with monkeypatch.context() as patch:
        poison(patch, calls)
        with pytest.raises(FloatingPointError) as caught:
            run_experiment(CONFIG, tmp_path / "run", say=quiet)
    # 8 steps an epoch
    assert str(caught.value).startswith(f"epoch {calls // 8 + 1}, iteration {calls + 1}: ")
    assert named in str(caught.value)
    saved = tmp_path / "run" / "ckpt.h5"
    assert saved.exists() == (calls > 0)
    if calls:
        assert read_checkpoint(saved).iteration == calls
    run_experiment(CONFIG, tmp_path / "run", resume=True, say=quiet)
    assert outcome(tmp_path / "run") == expected
    report("NaN and infinities injected, told, and recovered from", 1)


@pytest.mark.parametrize(
    ("place", "spoil", "reason"),
    [
        ("fit_coefficients", lambda c: c * math.nan, "a new coefficient is not finite"),
        ("fit_coefficients", lambda c: c + 1e39, "a new coefficient is not finite"),
        ("adaptive_knots", lambda k: k * math.nan, "the new knots are not finite or not increasing"),
        ("adaptive_knots", lambda k: k.flip(1), "the new knots are not finite or not increasing"),
        ("adaptive_knots", lambda k: k * 0, "the new knots are not finite or not increasing"),
    ],
)
def test_a_grid_update_that_would_spoil_a_layer_is_skipped_and_counted(
    place: str, spoil: Callable[[Tensor], Tensor], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, lines = 0, []
    original = getattr(univariate, place)

    def spoilt(*args: Any) -> Tensor:
        nonlocal count
        count += 1
        # three layers an update: after the first update, the second layer of each
        return spoil(original(*args)) if count > 6 and count % 3 == 2 else original(*args)

    with monkeypatch.context() as patch:
        if place == "fit_coefficients":
            count = -3  # the initial values are fits as well
        patch.setattr(univariate, place, spoilt)
        run_experiment(CONFIG, tmp_path / "run", say=lines.append)
    warned = [line for line in lines if "grid update skipped" in line]
    assert warned
    assert all(f": grid update skipped: generator.layers.0: {reason}" in line for line in warned)
    assert warned[0].startswith("warning: epoch 1, iteration ")
    checkpoint = read_checkpoint(tmp_path / "run" / "ckpt.h5")
    assert checkpoint.progress.skipped_grid_updates == len(warned)
    assert f"warning: {len(warned)} grid updates of layers were skipped" in lines
    report("grid updates skipped and counted", len(warned))


def limited(command: list[str], cwd: Path, size: int) -> subprocess.CompletedProcess[str]:
    """Run with a limit on the size of files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=120, check=False, preexec_fn=limit
    )


def one_message(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert_no_traceback(done.stderr)
    told = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(told) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == told[0]
    return told[0]


def begun(folder: Path) -> bytes:
    """A training that was stopped in its second epoch: its checkpoint."""
    process = start(train_command(), working_folder(folder))
    wait_for(process, "epoch 1/4")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    return (folder / "run" / "ckpt.h5").read_bytes()


@pytest.mark.slow
def test_files_that_may_not_grow(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    before = begun(folder := tmp_path / "user")
    told = one_message(limited(train_command("--resume"), folder, len(before) // 2))
    assert told == "failed: run/ckpt.h5: cannot be written (File too large)"
    assert (folder / "run" / "ckpt.h5").read_bytes() == before
    assert info(folder / "run" / "ckpt.h5").returncode == 0
    assert run(train_command("--resume"), folder).returncode == 0
    assert outcome(folder / "run") == undisturbed
    report("writes that failed for want of space, recovered from", 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here, which a disk that fills needs")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, left: int) -> None:
    status = os.statvfs(disk)
    (disk / "junk").write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - left)))


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 4096, 40960, 100000] if SOAK else [40960])
def test_a_disk_that_is_full(left: int, small_disk: Path, undisturbed: dict[str, str]) -> None:
    before = begun(folder := small_disk / "user")
    fill(small_disk, left)
    told = one_message(run(train_command("--resume"), folder))
    assert told.endswith("cannot be written (No space left on device)")
    assert told.startswith("failed: run")
    assert (folder / "run" / "ckpt.h5").read_bytes() == before
    assert info(folder / "run" / "ckpt.h5").returncode == 0
    (small_disk / "junk").unlink()
    done = run(train_command("--resume"), folder)
    assert done.returncode == 0, done.stderr
    assert outcome(folder / "run") == undisturbed
    report("writes that failed for want of space, recovered from", 1)


def test_a_disk_that_fills_while_training(small_disk: Path) -> None:
    folder = working_folder(small_disk / "user")
    process = start(train_command(overrides=("TRAINING.N_epochs=1000", "TRAINING.compile=false")), folder)
    wait_for(process, "epoch 2/")
    fill(small_disk, 0)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert_no_traceback(stderr)
    assert stderr.splitlines()[-1].endswith("cannot be written (No space left on device)")
    assert info(folder / "run" / "ckpt.h5").returncode == 0
    assert not list((folder / "run").glob(".*.part"))
    report("disks that filled while training", 1)


@pytest.mark.slow
def test_a_folder_that_is_read_only(small_disk: Path) -> None:
    before = begun(folder := small_disk / "user")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for options in (["--resume"], ["--overwrite"]):
        told = one_message(run(train_command(*options), folder))
        assert told == "failed: run: cannot be written (Read-only file system)"
    assert (folder / "run" / "ckpt.h5").read_bytes() == before
    report("read-only folders told", 2)


@pytest.mark.parametrize("line", ["kernels", "epoch 0/", "epoch 2/"] if SOAK else ["epoch 2/"])
def test_a_folder_that_vanishes(line: str, tmp_path: Path) -> None:
    folder = working_folder(tmp_path / "user")
    process = start(train_command(overrides=("TRAINING.N_epochs=1000", "TRAINING.compile=false")), folder)
    wait_for(process, line)
    (folder / "run").rename(folder / "elsewhere")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert_no_traceback(stderr)
    assert stderr.splitlines()[-1].startswith("failed: run/")
    assert stderr.splitlines()[-1].endswith("cannot be written (there is no folder run)")
    assert not (folder / "run").exists()
    if line == "epoch 2/":
        assert info(folder / "elsewhere" / "ckpt.h5").returncode == 0
    report("vanished folders told", 1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--resume",)][: scaled(1, 2)])
@pytest.mark.parametrize("delay", [0.0, 0.3] * 5 if SOAK else [0.0])
def test_two_trainings_race_for_a_folder(
    options: tuple[str, ...], delay: float, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    folder = working_folder(tmp_path / "user")
    first = start(train_command(*options), folder)
    time.sleep(delay)
    second = start(train_command(*options), folder)
    told = [process.communicate(timeout=120)[1] for process in (first, second)]
    statuses = [process.returncode for process in (first, second)]
    for stderr in told:
        assert_no_traceback(stderr)
    if options and statuses == [0, 0]:  # one resumed when the other had finished
        assert any("finished already" in stderr for stderr in told)
    else:
        assert sorted(statuses) == [0, 2], told
        refusal = told[statuses.index(2)]
        winner = (first, second)[statuses.index(0)].pid
        assert (
            f"another training is writing here: process {winner} on " in refusal
            or "a process that has not given its name yet" in refusal
            or "holds the results of a run" in refusal
        ), refusal
    assert outcome(folder / "run") == undisturbed
    report("races for one folder", 1)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    folder = working_folder(tmp_path / "user")
    process = start(train_command(), folder)
    wait_for(process, "epoch 1/4")
    process.kill()
    process.communicate(timeout=60)
    done = run(train_command("--resume"), folder)
    assert done.returncode == 0, done.stderr
    assert f"run: its last training did not end by itself (process {process.pid} on " in done.stderr
    assert outcome(folder / "run") == undisturbed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_file_of_python_objects_is_ever_read(path: Path) -> None:
    """Neither pickle nor what unpickles: it would run what a file says."""
    code = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))  # without comments
    without_docstrings = re.sub(r'""".*?"""', "", code, flags=re.DOTALL)
    words = ("pickle", "torch.load", "torch.save", "joblib", "dill", "marshal", "shelve", "eval(", "exec(")
    assert not [word for word in words if word in without_docstrings.replace("allow_pickle=False", "")]


def test_without_its_last_checkpoint_a_run_goes_on_from_its_best(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    begun(folder := tmp_path / "user")
    (folder / "run" / "ckpt.h5").unlink()
    done = run(train_command("--resume"), folder)
    assert done.returncode == 0, done.stderr
    assert "run: no ckpt.h5: going on from best.h5" in done.stderr
    assert outcome(folder / "run") == undisturbed


@pytest.mark.parametrize("name", ["loss.csv", "config.ini"])
@pytest.mark.parametrize("content", [b"garbage", b"\xff\xfe\x00", b""])
def test_a_spoiled_file_beside_the_checkpoint_is_written_again(name: str, content: bytes, tmp_path: Path) -> None:
    expected = whole(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    run_experiment(CONFIG, tmp_path / "run", resume=True, say=quiet)
    assert outcome(tmp_path / "run") == expected
