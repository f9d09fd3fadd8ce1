"""Commands side by side: what they say, how they end, how many run at once, and that a signal reaches all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lvkam.interruption import Interrupted, Interruption
from lvkam.processes import Command, num_threads, run_side_by_side


def python(name: str, code: str) -> Command:
    return Command(name, (sys.executable, "-c", code))


def run(*commands: Command, jobs: int = 2) -> tuple[list[tuple[int, str]], list[str]]:
    said: list[str] = []
    outcomes = run_side_by_side(commands, jobs, said.append, Interruption())
    return [(outcome.exit_status, outcome.last_line) for outcome in outcomes], said


def test_outcomes_come_in_the_order_of_the_commands() -> None:
    slow = python("slow", "import time, sys; time.sleep(0.5); print('last', file=sys.stderr)")
    outcomes, said = run(slow, python("bad", "import sys; print('no', file=sys.stderr); sys.exit(3)"), python("q", ""))
    assert outcomes == [(0, "last"), (3, "no"), (0, "")]
    assert sorted(said) == ["bad: no", "slow: last"]


def test_standard_output_is_not_shown_and_a_signal_is_a_negative_status() -> None:
    outcomes, said = run(python("loud", "print('x' * 10**6)"), python("dead", "import os; os.kill(os.getpid(), 9)"))
    assert outcomes == [(0, ""), (-9, "")]
    assert said == []


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_no_more_run_at_a_time_than_asked_for(jobs: int, tmp_path: Path) -> None:
    code = (
        "import os, sys, time; p = sys.argv[1]; open(f'{p}/{os.getpid()}', 'w').close(); time.sleep(0.3);"
        "print(len(os.listdir(p)), file=sys.stderr); os.remove(f'{p}/{os.getpid()}')"
    )
    commands = [Command(str(i), (sys.executable, "-c", code, str(tmp_path))) for i in range(5)]
    outcomes, _ = run(*commands, jobs=jobs)
    counts = [int(line) for _, line in outcomes]
    assert max(counts) <= jobs
    assert jobs == 1 or max(counts) > 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "jobs", "each"), [("8", 2, "4"), ("8", 3, "2"), ("1", 4, "1")])
def test_threads_are_divided(given: str, jobs: int, each: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS'], file=sys.stderr)"
    assert run(python("a", code), jobs=jobs)[0] == [(0, each)]


def test_threads_without_a_number_are_those_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert num_threads() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_those_that_run_and_starts_no_other(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, pathlib; me = pathlib.Path(sys.argv[1])\n"
        "def stop(n, _): me.with_suffix('.saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "me.touch(); time.sleep(60)"
    )
    commands = [Command(str(i), (sys.executable, "-c", code, str(tmp_path / str(i)))) for i in range(3)]
    interruption = Interruption()

    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    with interruption.listening():
        sender.start()
        with pytest.raises(Interrupted) as caught:
            run_side_by_side(commands, 2, lambda _: None, interruption)
    sender.join()
    assert caught.value.number == number
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "0.saved", "1", "1.saved"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_what_runs_is_asked_to_stop_when_the_parent_is_killed(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, sys, time; me = pathlib.Path(sys.argv[1])\n"
        "def stop(n, _): me.with_suffix('.saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); me.touch(); time.sleep(60)"
    )
    parent = (
        "import sys; from lvkam.interruption import Interruption\n"
        "from lvkam.processes import Command, run_side_by_side\n"
        f"run_side_by_side([Command('a', (sys.executable, '-c', {child!r}, sys.argv[1]))], 1, print, Interruption())"
    )
    place = tmp_path / "child"
    with subprocess.Popen([sys.executable, "-c", parent, str(place)]) as process:
        until = time.monotonic() + 60
        while not place.exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    while not place.with_suffix(".saved").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert place.with_suffix(".saved").exists()
