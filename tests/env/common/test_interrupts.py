"""Ctrl-C waits for the end of a piece of work that must be whole, and never longer."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest

from specgym.env.common.interrupts import interrupts_held


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _handler() -> None:
    """Python's own, which a shell's background jobs lack, and which is there again afterwards."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_it_is_told_and_interrupts_at_the_end_of_the_block() -> None:
    told = []

    def work() -> None:
        with interrupts_held() as pressed:
            told.append(pressed())
            press_ctrl_c()
            told.append(pressed())
        told.append(None)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert told == [False, True], "the block goes on to its end, and nothing after it"


def test_without_it_nothing_happens() -> None:
    with interrupts_held() as pressed:
        pass
    assert not pressed()


def test_a_second_one_interrupts_at_once() -> None:
    told = []

    def work() -> None:
        with interrupts_held():
            press_ctrl_c()
            told.append(1)
            press_ctrl_c()
            told.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert told == [1]


@pytest.mark.parametrize("presses", [0, 1, 2])
def test_afterwards_ctrl_c_is_what_it_was(presses: int) -> None:
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


def test_the_inner_of_two_blocks_does_not_take_the_outer_ones() -> None:
    told = []

    def work() -> None:
        with interrupts_held() as outer:
            with contextlib.suppress(KeyboardInterrupt), interrupts_held():
                press_ctrl_c()
            told.append(outer())
            press_ctrl_c()
            told.append(outer())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert told == [False, True]


def test_other_threads_work_without_it() -> None:
    told = []

    def work() -> None:
        with interrupts_held() as pressed:
            told.append(pressed())
        told.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [False, True]
