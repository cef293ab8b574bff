"""Plays cases on several processes, each of which is started anew where it ends or does not come to an end."""

from __future__ import annotations

import multiprocessing
import queue
import sys
import time
from multiprocessing.queues import Queue
from typing import Any, TypeAlias

from tests.fuzz.drawing.controllers import Counts
from tests.fuzz.verdict import play_seed, settle

_PATIENCE = 120  # longest time of one case, its description included [s]
_MOST_FAILURES = 20  # a fault that fails everywhere needs no more lines
_REPORT = 60  # time between two lines of progress [s]
Message: TypeAlias = tuple[int, int, Any]  # worker, seed of its case; nothing, counts or a failure


class Worker:
    """A process that plays every so many-th case.

    Args:
        number: number of the worker.
        seed: seed of its first case.
        step: distance of the seeds of its cases.
        messages: where it reports.
    """

    def __init__(self, number: int, seed: int, step: int, messages: Queue[Message]) -> None:
        self.number, self.seed, self.since = number, seed, time.monotonic()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_work, args=(number, seed, step, messages), daemon=True)
        self.process.start()

    def fault(self) -> str | None:
        """Returns why the worker does not go on, or None if it does."""
        if not self.process.is_alive():
            return f"the process ended with {self.process.exitcode}"
        return f"no end within {_PATIENCE} s" if time.monotonic() - self.since > _PATIENCE else None


def run(seed: int, rounds: int, workers: int) -> tuple[Counts, list[str]]:
    """Plays cases until there were enough rounds, or too many failures.

    Args:
        seed: seed of the first case; the next one has the next number.
        rounds: least number of rounds.
        workers: number of processes.

    Returns:
        The counts and the failures, one line each.
    """
    counts, failures, said = Counts(), [], time.monotonic()
    messages: Queue[Message] = multiprocessing.get_context("spawn").Queue()
    crew = [Worker(number, seed + number, workers, messages) for number in range(workers)]
    while counts.rounds < rounds and len(failures) < _MOST_FAILURES:
        result = _receive(messages, crew)
        if isinstance(result, Counts):
            counts.add(result)
        elif result is not None:
            failures.append(result)
        for worker in list(crew):
            if (fault := worker.fault()) is not None:
                failures.append(f"seed {worker.seed}: {fault}")
                worker.process.kill()
                crew[worker.number] = Worker(worker.number, worker.seed + workers, workers, messages)
        if time.monotonic() - said > _REPORT:
            said = time.monotonic()
            print(f"{counts.rounds:,} rounds, {len(failures)} differences", file=sys.stderr, flush=True)
    for worker in crew:
        worker.process.kill()
    return counts, failures


def _receive(messages: Queue[Message], crew: list[Worker]) -> Counts | str | None:
    """Waits a second for a message, and returns the result in it if there is one."""
    try:
        number, seed, result = messages.get(timeout=1)
    except queue.Empty:
        return None
    crew[number].seed, crew[number].since = seed, time.monotonic()
    if isinstance(result, str):
        print(result, flush=True)
    return result  # type: ignore[no-any-return]


def _work(number: int, seed: int, step: int, messages: Queue[Message]) -> None:
    """Plays cases until the process is stopped, or the one that started it has ended."""
    settle()
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        messages.put((number, seed, None))
        messages.put((number, seed, play_seed(seed)))
        seed += step
