"""Signals: the first one is obeyed at once or after what must not be cut, the second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lvkam.interruption import SIGNALS, Interrupted, Interruption


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """No test leaves a handler behind."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def send(number: int) -> None:
    """To this process, to be taken before the next line runs."""
    signal.raise_signal(number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_obeyed_at_once(number: int, status: int) -> None:
    interruption, after = Interruption(), []
    with pytest.raises(Interrupted) as caught, interruption.listening():  # noqa: PT012 - the signal comes inside
        send(number)
        after.append("too late")
    assert after == []
    assert interruption.number == caught.value.number == number
    assert caught.value.exit_status == status


def test_signals_are_those_that_ask_to_stop() -> None:
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM}


def test_an_interruption_is_no_error_that_a_handler_would_take() -> None:
    assert not issubclass(Interrupted, Exception)
    assert not issubclass(Interrupted, KeyboardInterrupt)


def test_its_text_is_all_that_was_added_to_it() -> None:
    stop = Interrupted(signal.SIGTERM)
    assert str(stop) == "interrupted"
    stop.add_note("saved in a")
    assert str(stop) == "interrupted; saved in a"
    stop.add_note("go on with b")
    assert str(stop) == "interrupted; saved in a; go on with b"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_postponed_signal_waits_for_the_blocks_end(number: int) -> None:
    interruption, done = Interruption(), []
    with interruption.listening():
        with pytest.raises(Interrupted) as caught, interruption.postponed():  # noqa: PT012 - the signal comes inside
            interruption.check()
            with interruption.postponed():  # the end of an inner one is not the end
                send(number)
            done.append("the rest of the step")
            assert interruption.number == number
        assert caught.value.number == number
        assert done == ["the rest of the step"]
        with pytest.raises(ValueError, match="mine"), interruption.postponed():  # what went wrong is told first
            raise ValueError("mine")
        with pytest.raises(Interrupted):
            interruption.check()


def test_within_a_postponed_block_one_that_obeys_again() -> None:
    interruption, done = Interruption(), []
    with interruption.listening(), pytest.raises(Interrupted), interruption.postponed():  # noqa: PT012 - likewise
        with pytest.raises(Interrupted), interruption.postponed(False):  # noqa: PT012 - the signal comes inside
            done.append("before")
            send(signal.SIGINT)
            done.append("too late")
        assert interruption.number == signal.SIGINT
        assert done == ["before"]
        # what came before such a block is obeyed where it begins
        with pytest.raises(Interrupted), interruption.postponed(False):
            done.append("never")
        assert done == ["before"]


def test_blocks_end_as_they_began() -> None:
    interruption, done = Interruption(), []
    with interruption.listening():
        with pytest.raises(Interrupted), interruption.postponed():  # noqa: PT012 - likewise
            with interruption.postponed(False):
                pass
            with interruption.postponed():
                pass
            with pytest.raises(ValueError, match="mine"), interruption.postponed(False):
                raise ValueError("mine")
            send(signal.SIGINT)  # postponed still
            done.append("postponed")
        assert done == ["postponed"]
    again = Interruption()
    with again.listening():
        with again.postponed():
            pass
        with pytest.raises(ValueError, match="mine"), again.postponed():
            raise ValueError("mine")
        with pytest.raises(Interrupted):
            send(signal.SIGINT)  # no longer


def test_nothing_has_come_nothing_is_raised() -> None:
    interruption = Interruption()
    interruption.check()
    with interruption.postponed(), interruption.postponed(False):
        interruption.check()
    assert interruption.number is None


@pytest.mark.parametrize("error", [None, ValueError, Interrupted])
def test_handlers_are_given_back_however_it_ends(error: type[BaseException] | None) -> None:
    def mine(number: int, frame: Any) -> None:
        raise AssertionError

    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGTERM, mine)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interruption = Interruption()
        try:
            with interruption.listening():
                assert signal.getsignal(signal.SIGTERM) not in {mine, signal.SIG_IGN}
                assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM)
                if error is Interrupted:
                    send(signal.SIGTERM)
                if error is ValueError:
                    raise ValueError("mine")
        except (ValueError, Interrupted):
            assert error is not None
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_other_threads_take_no_signals() -> None:
    found: list[object] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def work() -> None:
        interruption = Interruption()
        with interruption.listening(), interruption.postponed():
            found.append({number: signal.getsignal(number) for number in SIGNALS} == before)
            interruption.check()
        found.append(interruption.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, None]


PROGRAM = """
import os, signal, sys, time
from lvkam.interruption import Interruption

interruption = Interruption()
try:
    with interruption.listening(), interruption.postponed():
        signal.raise_signal(signal.Signals(int(sys.argv[1])))
        print("first", flush=True)
        try:
            signal.raise_signal(signal.Signals(int(sys.argv[2])))
            print("second", flush=True)
        finally:
            print("cleaned up", flush=True)
except BaseException:
    print("caught", flush=True)
print("end", flush=True)
"""


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(first: int, second: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(first)), str(int(second))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + second, "first\n", "")


IGNORING = """
import signal
from lvkam.interruption import SIGNALS, Interruption

interruption = Interruption()
interruption.listen()
try:
    signal.raise_signal(signal.SIGINT)
except BaseException as stop:
    print(stop)
interruption.ignore()
for number in SIGNALS:
    signal.raise_signal(number)
print("ended as it should")
"""


def test_what_ends_anyway_takes_no_more_signals() -> None:
    done = subprocess.run([sys.executable, "-c", IGNORING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\nended as it should\n", "")


def test_a_signal_of_another_process_is_taken_too() -> None:
    interruption = Interruption()
    with interruption.listening(), pytest.raises(Interrupted), interruption.postponed():  # noqa: PT012 - likewise
        subprocess.run(["kill", "-TERM", str(os.getpid())], check=True)
        for _ in range(10**6):  # it may be on its way
            if interruption.number is not None:
                break
    assert interruption.number == signal.SIGTERM
