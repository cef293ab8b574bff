"""Work on all usable cores, in processes that share this one's memory, and Ctrl-C that waits for complete work."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import FrameType
from typing import Any, TypeVar

from specgym.env.common.errors import SpecGymError

Item = TypeVar("Item")
Result = TypeVar("Result")

_GRACE = 5  # time that a worker lives on after SIGTERM, so that its parent ends first [s]

_inherited: tuple[Callable[[Any], Any], Sequence[Any]]  # work and items of the pool that is being started
_forked = False  # whether this process came from a fork of one that had imported this module


def _note_fork() -> None:
    global _forked  # noqa: PLW0603  # the module's own state
    _forked = True


if hasattr(os, "register_at_fork"):  # no such call on Windows
    os.register_at_fork(after_in_child=_note_fork)


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    # Not every system can tell which processors a process may use, and some Python versions lack the call.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def map_on_cores(work: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> Iterator[Result]:
    """Calls `work` with every item and yields the results in the order of the items.

    Processes are forked, so that they share all memory and only results travel. Where forking is unsafe (all systems
    but Linux), or for one item or worker, everything is done here. Each process uses one thread.

    Args:
        work: a function whose results can be pickled.
        items: what it is called with.
        workers: processes; one for each usable core if None.

    Raises:
        SpecGymError: what `work` raises, for the first such item.
    """
    workers = min(usable_cores() if workers is None else workers, len(items))
    if workers < 2 or sys.platform != "linux":
        yield from map(work, items)
        return
    global _inherited  # noqa: PLW0603  # by fork: neither work nor items are pickled
    _inherited = work, items
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin)
    try:
        with warnings.catch_warnings():  # about forking beside threads: the new processes take no lock of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            futures = deque(pool.submit(_call, number) for number in range(len(items)))
        for item in items:
            done, result = futures.popleft().result()
            yield result if done else work(item)  # an error is raised here, where it need not be pickled
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_thread_if_forked() -> None:
    """Lets torch work in one thread if this process was forked.

    Only the thread that calls fork goes on in the new process. If torch had started others before, the new process
    would wait for them for ever.
    """
    if _forked and (torch := sys.modules.get("torch")):
        torch.set_num_threads(1)


def _begin() -> None:
    # A signal to the group ends the process that waits for these, and these with it. The pool itself sends SIGTERM.
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a process that was started"
    parent.join()
    os._exit(1)  # nobody waits for results any more


def _call(number: int) -> tuple[bool, Any]:
    work, items = _inherited
    try:
        return True, work(items[number])
    except SpecGymError:
        return False, None


@contextlib.contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Delays `KeyboardInterrupt` to the end of the block. Yields a function that says whether Ctrl-C was pressed.

    Work that must be complete, such as an update of weights, is not interrupted in the middle. A second Ctrl-C
    interrupts at once. Outside the main thread, where Python handles no signals, nothing changes.
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
