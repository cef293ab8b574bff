"""Ctrl-C at a moment of one's own choosing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed, and raises `KeyboardInterrupt` for it at the block's end.

    So a piece of work that must be whole, such as an update of weights, is never cut in the middle. A second Ctrl-C
    cuts all the same. Outside the main thread, where Python handles no signals, nothing changes.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
