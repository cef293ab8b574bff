"""Progress of long work: bars on a terminal, elsewhere a line every ten seconds and at the end of a stage."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

from specgym.scripts.common import console, say

LINE_SECONDS = 10.0
"""time between two lines where there is no terminal [s]"""


class Stages:
    """Shows how far each stage of a command is. Call it with the stage and what is done of it.

    Args:
        bars: where the stages are drawn and kept.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._latest: Task | None = None

    def __call__(self, stage: str, done: float, total: float | None = None) -> None:
        """Updates a stage.

        Args:
            stage: its name, which may be followed by a comma and a note. A new name begins a new stage.
            done: steps that are done.
            total: steps in all; None if that is not known.
        """
        name = stage.split(",", maxsplit=1)[0]
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        task = next(task for task in self._bars.tasks if task.id == self._tasks[name])
        ended = task.finished
        self._bars.update(task.id, completed=done, total=total, description=stage)
        self._latest = task
        if task.finished and not ended and not console.is_terminal:
            say(self.line())

    def counter(self, name: str, total: int) -> Callable[[str], None]:
        """Begins a stage of `total` steps. Returns a function to be called after every step, with a note."""
        self(name, 0, total)
        steps = itertools.count(1)
        return lambda note: self(f"{name}, {note}" if note else name, next(steps), total)

    def line(self) -> str:
        """Describes the stage that was updated last."""
        task = self._latest
        if task is None:
            return "starting"
        total = "" if task.total is None else f" of {task.total:,.0f}"
        left = f", {_duration(task.time_remaining)} left" if task.time_remaining else ""
        return f"{task.description}: {task.completed:,.0f}{total}{left}"


@contextlib.contextmanager
def progress() -> Iterator[Stages]:
    """Shows stages while the block runs."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        stages = Stages(bars)
        with _lines(stages.line):
            yield stages


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Says what a block does that counts no steps. Yields a function that changes the text."""
    text = [what]
    with console.status(what) as status, _lines(lambda: f"{text[0]} …"):

        def change(what: str) -> None:
            text[0] = what
            status.update(what)

        yield change


@contextlib.contextmanager
def _lines(describe: Callable[[], str]) -> Iterator[None]:
    """Prints a line now and then while the block runs, where there is no terminal."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(LINE_SECONDS):
            say(describe())

    thread = threading.Thread(target=work, daemon=True)
    if not console.is_terminal:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
