"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP all interrupt it, so that it keeps what it has."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

_STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_REPEATED = 1.0  # a scheduler may send several signals for one purpose within this time [s]


def exit_status(number: int) -> int:
    """Returns the exit status of a command that a signal ended, by the shells' convention."""
    return 128 + number


INTERRUPTED = exit_status(signal.SIGINT)
"""exit status after Ctrl-C"""


class Interrupts:
    """Turns signals into `KeyboardInterrupt`, as Ctrl-C does. A signal that was ignored before stays ignored.

    While something is imported there is nothing to keep, and an interrupt inside an import may be swallowed or become
    another error. The process then ends at once.

    Args:
        leave: called before the process ends at once.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave, self._owner = leave, os.getpid()
        self._first: tuple[int, float] | None = None  # signal and time
        self._handle({signal.SIGINT: self._interrupt, **dict.fromkeys(_STOPS, self._stop)})

    @property
    def status(self) -> int:
        """Exit status of an interrupted command, by the signal that came first."""
        return exit_status(self._first[0] if self._first else signal.SIGINT)

    def end(self, status: int) -> None:
        """Lets the process end with `status`: a signal that comes now only makes it end at once."""
        self._handle(dict.fromkeys((signal.SIGINT, *_STOPS), lambda number, frame: os._exit(status)))

    @staticmethod
    def _handle(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> None:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker keeps nothing
            os._exit(exit_status(number))
        self._first = self._first or (number, time.monotonic())
        if _imports(frame):
            self._leave()
            os._exit(self.status)
        raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first and now - self._first[1] < _REPEATED:
            return
        self._first = self._first or (number, now)
        handler = signal.getsignal(signal.SIGINT)  # work that must stay whole holds interrupts back
        (handler if callable(handler) and os.getpid() == self._owner else self._interrupt)(number, frame)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported at this moment."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
