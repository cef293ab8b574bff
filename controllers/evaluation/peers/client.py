"""Our side of a worker: a process that is started, asked, and reported on when it fails."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specgym.controllers.evaluation.live.runners import RunnerError
from specgym.controllers.evaluation.peers.catalogue import Library

PATIENCE = 900.0
"""longest that a worker may think about one question, loading and compiling included [s]"""

_SOURCE = Path(__file__).parents[3]
# Ctrl-C is for us alone; we end the worker. A session of its own would keep it away too, but there Linux would give it
# another share of a busy machine than ours. The package is made known by its folder alone: putting the folder's parent
# on the path would bring everything that is installed beside us into another Python.
_START = """
import runpy, signal, sys, types
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = filter(None, sys.path)
sys.modules["specgym"] = package = types.ModuleType("specgym")
package.__path__ = [sys.argv.pop(1)]
runpy.run_module("specgym.controllers.evaluation.peers.worker", run_name="__main__", alter_sys=True)
"""
_FOLDERS = re.compile(r"(?<![\w.:/])(?:~?/|[A-Za-z]:\\)[^\s'\"<>:,;()]+")


class PeerError(RunnerError):
    """A peer that could not be loaded, or that failed on a text; the message is the reason."""


class Worker:
    """A process that has one library's peers, started when it is first asked and again if it has died.

    Args:
        library: the library.
        python: the interpreter that has it.
        patience: longest that one answer may take [s].
    """

    def __init__(self, library: Library, python: str, patience: float = PATIENCE) -> None:
        self.library, self.python, self.patience = library, python, patience
        self.opened: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def has(self, peer: str) -> bool:
        """Whether the process that runs has this peer open."""
        return self.alive and peer in self.opened

    def ask(self, question: dict[str, Any]) -> Any:
        """Asks one question.

        Raises:
            PeerError: the worker could not be started, died, took too long, or answered with an error.
        """
        process = self._running()
        slow = threading.Event()

        def give_up() -> None:
            slow.set()
            process.kill()

        timer = threading.Timer(self.patience, give_up)
        timer.start()
        try:
            reply = self._exchange(process, question)
        finally:
            timer.cancel()
        if reply is None:
            cause = self._cause_of_death(process.wait())
            raise PeerError(f"no answer within {self.patience:g} s" if slow.is_set() else without_folders(cause))
        if "error" in reply:
            raise PeerError(without_folders(reply["error"]))
        return reply["answer"]

    def kill(self) -> None:
        """Ends the process at once, whatever it does; who waits for its answer is told."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process and forgets it."""
        self.kill()
        if self._process is not None:
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._process = None
        self.opened.clear()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self.alive:
            return self._process
        self.close()
        self._errors.seek(0)
        self._errors.truncate()
        try:
            self._process = subprocess.Popen(
                [self.python, "-c", _START, str(_SOURCE), self.library.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
            )
        except OSError as error:
            raise PeerError(f"its Python did not start: {error.strerror or error}") from error
        return self._process

    @staticmethod
    def _exchange(process: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any] | None:
        """The reply; None if the worker died before it was through."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            reply: dict[str, Any] = json.loads(process.stdout.readline())
        except (OSError, json.JSONDecodeError):
            process.kill()
            return None
        return reply

    def _cause_of_death(self, status: int) -> str:
        how = f"ended with status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-status).name}"
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return f"its process {how}" + (f"; its last words: {lines[-1].strip()[:300]}" if lines else "")


def without_folders(text: str) -> str:
    """`text` without this machine's folders: of each path only the last part."""
    return _FOLDERS.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


@contextlib.contextmanager
def closing(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Ends all workers when the block is left, however it is left."""
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()
