"""Our side of a worker: its process, requests and failures, and the runners of its peers, which a benchmark calls."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specgym.controllers.evaluation.live.runners import RunnerError, finish_reason
from specgym.controllers.evaluation.peers.catalogue import Answer, Library, Peer, Setup, Task
from specgym.controllers.run import Generation
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request, check_fits

PATIENCE = 900.0
"""longest time for one reply of a worker, loading and compiling included [s]"""

_SOURCE = Path(__file__).parents[3]
# The worker ignores Ctrl-C: we end it. A session of its own would shield it too, but Linux would then schedule it apart
# from us on a busy machine. `specgym` is defined by its folder alone: with the folder's parent on the path, another
# Python would import everything that is installed beside us.
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
    """A peer could not be loaded, or failed on a text; the message is the reason."""


class Worker:
    """A process with one library's peers. It starts with the first request, and again if it has died.

    Args:
        library: the library.
        python: the interpreter that has it.
        patience: longest time for one reply [s].
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

    def call(self, command: str, **message: Any) -> Any:
        """Sends a request and returns the answer.

        Raises:
            PeerError: the worker could not be started, died, took too long, or replied with an error.
        """
        process, began = self._running(), time.monotonic()
        timer = threading.Timer(self.patience, process.kill)
        timer.start()
        assert process.stdout is not None
        try:
            print(json.dumps({"command": command, **message}), file=process.stdin, flush=True)
            reply = json.loads(process.stdout.readline())
        except (OSError, json.JSONDecodeError) as error:
            late = time.monotonic() - began >= self.patience
            process.kill()
            cause = self._cause_of_death(process.wait())
            raise PeerError(f"no answer within {self.patience:g} s" if late else cause) from error
        finally:
            timer.cancel()
        if "error" in reply:
            raise PeerError(without_folders(reply["error"]))
        return reply["answer"]

    def kill(self) -> None:
        """Ends the process at once; a call that waits for it raises."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process and forgets it."""
        self.kill()
        if self._process is not None:
            with contextlib.suppress(OSError), self._process:  # closes the pipes and waits
                pass
        self._process = None
        self.opened.clear()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self.alive:
            return self._process
        self.close()
        self._errors.seek(0)
        self._errors.truncate()
        command = [self.python, "-c", _START, str(_SOURCE), self.library.name]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        try:
            self._process = subprocess.Popen(command, **pipes, encoding="utf-8")
        except OSError as error:
            raise PeerError(f"its Python did not start: {error.strerror or error}") from error
        return self._process

    def _cause_of_death(self, status: int) -> str:
        names = {-number: f"was ended by {number.name}" for number in signal.Signals}
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        last = f"; its last words: {lines[-1].strip()[:300]}" if lines else ""
        return without_folders(f"its process {names.get(status, f'ended with status {status}')}{last}")


class PeerRunner:
    """Runs a peer in a worker.

    When a worker dies, its other peers are opened again at their next run, outside of the measured time. The peer
    during whose run it died is not run again.

    Args:
        peer: the peer.
        worker: the process that has its library.
        setup: the settings of the run.
        context: longest text that the target reads [tokens].
        warm_up: a text that the peer continues once when it is opened.
    """

    target: TargetModel | None = None

    def __init__(self, peer: Peer, worker: Worker, setup: Setup, context: int, warm_up: Task) -> None:
        self.peer, self.worker, self.setup, self.context, self.warm_up = peer, worker, setup, context, warm_up
        self.name = peer.name
        self.baseline: str | None = peer.library.baseline
        self._reason: str | None = None  # why it is not run any more

    def open(self) -> None:
        """Loads the peer and lets it continue one text: only a run shows whether it works.

        Raises:
            PeerError: it does not work.
        """
        if self.peer.assisted and self.setup.assistant is None:
            raise PeerError("it drafts with a small model of its own, and there is none: give one with --assistant")
        self._call("open", setup=self.setup)
        self._call("generate", task=self.warm_up)
        self.worker.opened.add(self.name)

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end.

        Raises:
            LimitError: the prompt leaves no room in the target's context.
            PeerError: the peer failed.
        """
        if self._reason is not None:
            raise PeerError(self._reason)
        length, ends = len(request.prompt), self.setup.end_tokens
        check_fits(length, self.context)
        most = min(request.max_new_tokens, self.context - length)
        task = Task(list(request.prompt), most, request.sampling.seed)
        try:
            if not (self.worker.alive and self.name in self.worker.opened):
                self.open()
            answer = Answer(**self._call("generate", task=task))
        except PeerError as error:
            self._reason = None if self.worker.alive else str(error)
            raise
        tokens = cut_at_end(answer.tokens, ends, most)
        if not tokens:
            raise PeerError("it generated nothing")
        finished = finish_reason(tokens, length, self.context, ends)
        return Generation(tokens, finished, answer.seconds, answer.rounds, answer.drafted, answer.accepted, {})

    def _call(self, command: str, **message: Setup | Task) -> Any:
        fields = {name: dataclasses.asdict(value) for name, value in message.items()}
        return self.worker.call(command, peer=self.name, **fields)


def cut_at_end(tokens: list[int], end_tokens: list[int], most: int) -> list[int]:
    """Returns the tokens up to the first that ends the text, that one included, and at most `most` of them."""
    ends = (index + 1 for index, token in enumerate(tokens[:most]) if token in end_tokens)
    return tokens[: next(ends, most)]


def without_folders(text: str) -> str:
    """Returns `text` with only the last part of each path, without this machine's folders."""
    return _FOLDERS.sub(lambda path: re.split(r"[/\\]", path[0].rstrip("/\\"))[-1], text)


@contextlib.contextmanager
def closing(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Ends all workers when the block ends, by an error or not."""
    with contextlib.ExitStack() as stack:
        for worker in workers.values():
            stack.callback(worker.close)
        yield workers
