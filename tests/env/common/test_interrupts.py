"""Ctrl-C waits for the end of a piece of work that must be complete, and never longer."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest

from specgym.env.common.processes import interrupts_held


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _handler() -> None:
    """Installs Python's own handler, which background jobs of a shell lack, and restores the handler afterwards."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_is_reported_and_interrupts_at_the_end_of_the_block() -> None:
    events = []

    def work() -> None:
        with interrupts_held() as pressed:
            events.append(pressed())
            press_ctrl_c()
            events.append(pressed())
        events.append(None)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert events == [False, True], "the block runs to its end, and nothing after it"


def test_without_ctrl_c_nothing_happens() -> None:
    with interrupts_held() as pressed:
        pass
    assert not pressed()


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    events = []

    def work() -> None:
        with interrupts_held():
            press_ctrl_c()
            events.append(1)
            press_ctrl_c()
            events.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert events == [1]


@pytest.mark.parametrize("presses", [0, 1, 2])
def test_ctrl_c_works_as_before_after_the_block(presses: int) -> None:
    def own(number: int, frame: object) -> None:
        pass

    signal.signal(signal.SIGINT, own)
    try:
        with interrupts_held():
            for _ in range(presses):
                press_ctrl_c()
    except KeyboardInterrupt:
        assert presses
    assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_error_in_the_block_is_not_hidden() -> None:
    def work() -> None:
        with interrupts_held():
            press_ctrl_c()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_inner_block_leaves_the_outer_blocks_interrupt() -> None:
    events = []

    def work() -> None:
        with interrupts_held() as outer:
            with contextlib.suppress(KeyboardInterrupt), interrupts_held():
                press_ctrl_c()
            events.append(outer())
            press_ctrl_c()
            events.append(outer())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert events == [False, True]


def test_the_block_does_nothing_in_other_threads() -> None:
    events = []

    def work() -> None:
        with interrupts_held() as pressed:
            events.append(pressed())
        events.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert events == [False, True]
