"""Commands side by side: so many processes at a time, the machine's threads divided among them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lvkam.interruption import Interrupted, Interruption

POLL_SECONDS = 0.1


class Command(NamedTuple):
    """A process to be."""

    name: str
    """Shown before each line that it writes."""
    arguments: Sequence[str]
    """The program and what it is given."""


class Outcome(NamedTuple):
    """How a process ended."""

    exit_status: int
    last_line: str
    """Of its standard error."""


def num_threads() -> int:
    """Threads that this process may use: `OMP_NUM_THREADS`, or as many as there are processors for it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent dies."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_side_by_side(
    commands: Sequence[Command], jobs: int, say: Callable[[str], None], interruption: Interruption
) -> list[Outcome]:
    """Run all commands, `jobs` of them at a time; one that fails does not stop the others.

    They have process groups of their own, so that Ctrl-C comes to them by way of this process alone: SIGTERM, once. On
    Linux they get it too when this process dies, however it does.

    Args:
        commands: what to run; what it writes to standard output is not shown.
        jobs: how many at a time.
        say: takes each line that one writes to standard error, after its name.
        interruption: signals; on the first one all are asked to stop, and waited for.

    Raises:
        Interrupted: by a signal, when all have ended.
    """
    waiting = list(enumerate(commands))[::-1]
    running: dict[int, tuple[subprocess.Popen[str], threading.Thread]] = {}
    last_lines = [""] * len(commands)
    outcomes: dict[int, Outcome] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, num_threads() // jobs))}

    def listen(index: int, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                last_lines[index] = line.rstrip()
                say(f"{commands[index].name}: {line.rstrip()}")

    try:
        with interruption.postponed():  # none is started that would not be stopped
            while waiting or running:
                while waiting and len(running) < jobs:
                    index, command = waiting.pop()
                    process = subprocess.Popen(
                        command.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE, text=True, errors="replace", env=environment, start_new_session=True,
                        preexec_fn=_end_with_parent,  # noqa: PLW1509 a system call, and no more
                    )  # fmt: skip
                    thread = threading.Thread(target=listen, args=(index, process), daemon=True)
                    thread.start()
                    running[index] = process, thread
                for index, (process, thread) in list(running.items()):
                    if process.poll() is not None:
                        thread.join()
                        outcomes[index] = Outcome(process.returncode, last_lines[index])
                        del running[index]
                interruption.check()
                time.sleep(POLL_SECONDS)
    except Interrupted:
        for process, _ in running.values():
            process.terminate()
        for process, thread in running.values():
            process.wait()
            thread.join()
        raise
    return [outcomes[index] for index in range(len(commands))]
