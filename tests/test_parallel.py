"""Several processes train one model: to the gradients of one, through kills, and on to other numbers of processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lvkam.errors import FailureError, InputError, StoppedError
from lvkam.experiment import run_experiment
from lvkam.parallel import ALONE, PeerError, World, joined
from lvkam.run_folder import JOB, OutputError
from tests.conftest import REPOSITORY, few_of_mnist, h5_arrays, small_config, small_overrides
from tests.parallel_worker import OF_IMAGES, Run, cases, outcome, run


class Job:
    """Processes of one job, started one by one; torchrun does as much, and takes longer."""

    def __init__(self, *arguments: object, size: int = 2, flag: str = "-m"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, flag, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, env=environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]  # fmt: skip

    def finish(self, seconds: float = 120) -> tuple[list[int], list[str], list[str]]:
        """Exit statuses, standard outputs, standard errors; killed if it takes too long."""
        try:
            said = [process.communicate(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], [out for out, _ in said], [err for _, err in said]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def done_together(*arguments: object) -> None:
    """Two processes of `parallel_worker` that end well."""
    statuses, _, errors = Job("tests.parallel_worker", *arguments).finish()
    assert statuses == [0, 0], errors


# gradients


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """All trainings at once, since to start processes takes longer than to train; they have the same bits themselves.

    In float64, of batches that leave one process less to do, or nothing: six steps, and the gradient of each.
    """
    path = tmp_path / "of_two.npz"
    done_together("steps", path)
    with np.load(path) as arrays:
        of_two = dict(arrays)
    for name, config in cases().items():
        alone = outcome(name, config)
        together = {key: of_two[f"{name}: {key}"] for key in alone}
        log, log_alone = together["log"], alone["log"]
        if "grids" in name:  # updated three times: in single precision, losses are those of one process
            assert alone["updates"] == together["updates"] == 45
            np.testing.assert_allclose(log[:, :2], log_alone[:, :2], rtol=1e-5)
        elif name == "binarised":  # by the same random numbers; bits are single precision
            np.testing.assert_allclose(log, log_alone, rtol=1e-5, err_msg=name)
        elif name in OF_IMAGES:  # by other random numbers, about the same
            assert np.abs(log[1:, 0] - log_alone[1:, 0]).max() > 0
            np.testing.assert_allclose(log[:, :2], log_alone[:, :2], rtol=0.1, err_msg=name)
        else:
            gradients = [array for key, array in alone.items() if key.startswith("gradients/")]
            assert all(len(of_steps) == 6 for of_steps in gradients)
            assert sum(np.abs(of_steps).max() > 1e-4 for of_steps in gradients) > 8
            for key, array in alone.items():
                np.testing.assert_allclose(together[key], array, rtol=0, atol=1e-10, err_msg=f"{name}: {key}")


# one process that talks to nobody


def test_alone_everything_is_its_own() -> None:
    x = torch.arange(3.0)
    assert torch.equal(ALONE.gather(x), x.unsqueeze(0))
    assert ALONE.total(1.5, 2) == ALONE.first(1.5, 2) == [1.5, 2.0]
    assert ALONE.spread_bytes(b"a\0b") == b"a\0b"
    assert ALONE.part(5) == (slice(0, 5), True)
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError


@pytest.mark.parametrize(("count", "size"), [(7, 2), (1, 2), (3, 5), (64, 4)])
def test_parts_are_all_there_is_once(count: int, size: int) -> None:
    parts = [World(rank, size).part(count) for rank in range(size)]
    assert [i for part, is_there in parts if is_there for i in range(count)[part]] == list(range(count))
    assert all(part == slice(1) for part, is_there in parts if not is_there)
    assert sum(is_there for _, is_there in parts) == min(count, size)


def test_errors_of_another_kind_than_a_lost_process_stay_what_they_are() -> None:
    world = World(0, 2)
    with pytest.raises(RuntimeError, match="shapes"), world.talking():
        raise RuntimeError("shapes do not match")
    with pytest.raises(PeerError, match="process 0 of 2: another process of the job has ended"), world.talking():
        raise RuntimeError("[../pair.cc:534] Connection closed by peer [127.0.0.1]:41255")


def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "zero")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="torchrun sets RANK, WORLD_SIZE, LOCAL_RANK to numbers"), joined():
        pass
    assert not dist.is_initialized()


def test_a_process_that_stops_without_a_word_has_failed() -> None:
    assert issubclass(StoppedError, FailureError)
    assert issubclass(PeerError, FailureError)


# run folders


def losses(folder: Path) -> np.ndarray:
    with (folder / "loss.csv").open() as file:
        return np.array([[float(row["Train Loss"]), float(row["Test NLL"])] for row in csv.DictReader(file)])


def together(tmp_path: Path, *runs: Run) -> None:
    """Runs by two processes, one after the other."""
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(runs))
    done_together("runs", path)


def test_a_job_goes_on_with_other_numbers_of_processes(tmp_path: Path) -> None:
    """Two epochs by two processes, by one and then two, by two and then one: the losses of one process."""
    one, two, one_two, two_one = (str(tmp_path / name) for name in ("one", "two", "one_two", "two_one"))
    run(Run(one, 2))
    run(Run(one_two, 1))
    together(tmp_path, Run(two, 2), Run(one_two, 2, True), Run(two_one, 1))
    run(Run(two_one, 2, True))
    for folder in map(Path, (two, one_two, two_one)):
        # without the name of the job that began it
        assert {path.name for path in folder.iterdir()} - {JOB} == {path.name for path in Path(one).iterdir()}
        np.testing.assert_allclose(losses(folder), losses(Path(one)), rtol=1e-4)


# the command


def overrides(*more: str) -> list[str]:
    return [part for value in (*small_overrides(), *more) for part in ("--set", value)]


def command(folder: Path, *more: str) -> list[str]:
    values = overrides("TRAINING.compile=false", *more)  # whatever the number of steps
    return ["lvkam", "train", str(REPOSITORY / "nist_config.ini"), "--output", str(folder), *values]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["TRAINING.seed=x"], "error: --set: [TRAINING] seed = x: must be an integer"),
        (
            ["OPTIMIZER.type=bfgs", "TRAINING.shard=samples", "TRAINING.MC_expectation_sample_size=15"],
            "[OPTIMIZER] type = bfgs: must be adam, adamw, sgd or rms, with 2 processes\nnist_config.ini: [TRAINING] "
            "MC_expectation_sample_size = 15: must be a multiple of 2, the number of processes",
        ),
    ],
)
def test_bad_input_is_told_once(more: list[str], message: str, tmp_path: Path) -> None:
    statuses, _, (first, second) = Job(*command(tmp_path / "run", *more)).finish()
    assert statuses == [2, 1]
    assert message in first.replace(f"{REPOSITORY}{os.sep}", "")
    assert second == ""
    assert "Traceback" not in first
    assert not (tmp_path / "run").exists()


def test_processes_with_different_data_are_told(tmp_path: Path) -> None:
    data = few_of_mnist(tmp_path / "data", 200, 20)
    code = (
        "import os, sys; from lvkam_cli.main import main; data = sys.argv.pop(1); "
        "os.environ.update({'LVKAM_DATA_DIR': data} if os.environ['RANK'] == '1' else {}); main()"
    )
    job = Job(code, data, *command(tmp_path / "run")[1:], flag="-c")
    statuses, _, (first, second) = job.finish()
    assert statuses == [2, 1]
    assert "MNIST: the processes have different images" in first
    assert second == ""


def epochs_done(folder: Path) -> int:
    return len((folder / "loss.csv").read_text().splitlines()) - 2 if (folder / "loss.csv").exists() else -1


def wait_for_epoch(folder: Path, epoch: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while epochs_done(folder) < epoch:
        assert time.monotonic() < end, f"epoch {epoch} has not come"
        time.sleep(0.05)


def test_a_signal_to_any_process_saves_and_ends_all(tmp_path: Path) -> None:
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    job = Job(*command(folder, "TRAINING.N_epochs=2000"))
    wait_for_epoch(folder, 2)
    job.processes[1].send_signal(signal.SIGTERM)
    statuses, _, (first, second) = job.finish(60)
    assert statuses == [143, 1]
    assert "saved in" in first
    assert second == ""
    done = epochs_done(folder) + 1
    run(Run(str(folder), done, True))
    run(Run(str(undisturbed), done))
    np.testing.assert_allclose(losses(folder), losses(undisturbed), rtol=1e-4)


# kills


def torchrun(folder: Path, epochs: int, restarts: int) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [f"--max-restarts={restarts}", "--monitor-interval=0.1", "-m"]
    return subprocess.Popen(
        [*launch, *options, *command(folder, f"TRAINING.N_epochs={epochs}")], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def workers(job: subprocess.Popen[str]) -> dict[int, int]:
    """Process numbers of a job by rank, while they are there."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            lines = entry.joinpath("environ").read_text().split("\0")
            variables = {name: value for name, _, value in (line.partition("=") for line in lines)}
        except (OSError, UnicodeDecodeError):  # it has just ended, or is another user's
            continue
        if parent == job.pid and "RANK" in variables:
            found[int(variables["RANK"])] = int(entry.name)
    return found


def assert_same_run(folder: Path, other: Path) -> None:
    """Parameters, and the figures of every epoch, to the bit."""
    ours, theirs = h5_arrays(folder / "ckpt.h5"), h5_arrays(other / "ckpt.h5")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        if name not in {"training/progress/seconds", "training/progress/log"}:  # which hold times
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    np.testing.assert_array_equal(losses(folder), losses(other))


def test_a_killed_process_ends_the_job_within_seconds(tmp_path: Path) -> None:
    """With a message; what was trained until the last checkpoint is there, and goes on."""
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    job = torchrun(folder, 2000, 0)
    wait_for_epoch(folder, 2)
    killed = time.monotonic()
    os.kill(workers(job)[1], signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert job.returncode == 1
    assert "failed: process 0 of 2: another process of the job has ended" in err
    done = epochs_done(folder) + 1
    together(tmp_path, Run(str(folder), done, True), Run(str(undisturbed), done))
    assert_same_run(folder, undisturbed)


def test_only_the_job_that_began_a_run_goes_on_with_it_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def train(epochs: int, restarts: int, job: str, **options: Any) -> None:
        world = World(0, 1, 0, restarts, job)
        run_experiment(small_config(f"TRAINING.N_epochs={epochs}"), folder, say=lambda _: None, world=world, **options)

    train(1, 0, "none")
    for restarts in (0, 1, 2):  # started once more by the same name: refused, and not to be had by a restart either
        with pytest.raises(OutputError, match="holds the results of a run"):
            train(2, restarts, "none")
    assert epochs_done(folder) == 1
    train(2, 0, "none", resume=True)
    train(3, 1, "none", resume=True)
    assert epochs_done(folder) == 3
    train(4, 2, "none", overwrite=True)  # a death later on: what has begun goes on
    assert epochs_done(folder) == 4
    for restarts, job in ((1, "another"), (1, "")):
        with pytest.raises(OutputError, match="holds the results of a run"):
            train(5, restarts, job)
    train(1, 1, "another", overwrite=True)  # one before anything was written: it is to be replaced
    assert epochs_done(folder) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[0], [1, 0] * 5], ids=["one", "ten"])
def test_kills_lose_nothing(ranks: list[int], tmp_path: Path) -> None:
    """Started again by torchrun each time, the job comes to the bits of one that nobody has touched."""
    folder, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    epochs = 20 * len(ranks)
    job = torchrun(folder, epochs, len(ranks))
    try:
        for rank in ranks:
            wait_for_epoch(folder, epochs_done(folder) + 2)
            before = workers(job)
            os.kill(before[rank], signal.SIGKILL)
            end = time.monotonic() + 60
            while len(now := workers(job)) < 2 or set(now.values()) & set(before.values()):
                assert time.monotonic() < end, "torchrun has not started the job again"
                time.sleep(0.05)
        out, err = job.communicate(timeout=240)
    finally:
        job.kill()
    assert job.returncode == 0, err
    assert out.splitlines()[-1] == str(folder)
    assert epochs_done(folder) == epochs
    together(tmp_path, Run(str(undisturbed), epochs))
    assert_same_run(folder, undisturbed)
