"""SIGINT and SIGTERM: obeyed at once where nothing can be lost, and after the step where something could.

The first signal waits for the end of a `postponed` block, or raises `Interrupted` if there is none; a second one ends
the process, whatever it is doing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Asked to stop. Not an `Exception`: no handler of errors may take it for one."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    @property
    def exit_status(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, as shells have it."""
        return 128 + self.number

    def __str__(self) -> str:
        return "; ".join(["interrupted", *getattr(self, "__notes__", ())])


class Interruption:
    """The signal that has come, if one has."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_asked = False
        """Whether a signal of the system was the reason, and not this program's own wish."""
        self._postponed = False

    def listen(self) -> None:
        """Take the signals from now on; only the main thread can."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def ignore(self) -> None:
        """Take no more signals: what is left is the end of the process."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context: takes the signals, and gives them back; in other threads than the main one it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:  # one that Python has not set, and cannot set again
                    signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.is_asked:  # asked twice: at once, without any cleaning up
            os._exit(128 + number)
        self.number, self.is_asked = number, True
        if not self._postponed:
            raise Interrupted(number)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number)

    @contextmanager
    def postponed(self, postpone: bool = True) -> Iterator[None]:
        """Context in which a signal is only remembered; with False, one inside such a context that obeys again."""
        before, self._postponed = self._postponed, postpone
        try:
            if not postpone:
                self.check()
            yield
        finally:
            self._postponed = before
        if not before:
            self.check()
