"""The other side: a process that loads one library's peers and answers questions about texts until its input ends.

Started as ``python -m specgym.controllers.evaluation.peers.worker LIBRARY`` by any Python that has the library.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from importlib import metadata
from typing import Any, TextIO

from specgym.controllers.evaluation.peers.catalogue import LIBRARIES, Library
from specgym.controllers.evaluation.peers.messages import OpenPeer, Setup, Task


class WorkerServer:
    """Answers questions about the peers of one library.

    Args:
        library: the library.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self.peers: dict[str, OpenPeer] = {}

    def answer(self, question: dict[str, Any]) -> Any:
        """The answer to one question; raises whatever the library raises."""
        ask = question["ask"]
        if ask == "version":
            self._adapter()  # the library may be installed and yet not load
            return metadata.version(self.library.package)
        if ask == "open":
            self.peers[question["peer"]] = self._adapter().open_peer(question["peer"], Setup(**question["setup"]))
            return None
        if ask == "generate":
            return asdict(self.peers[question["peer"]](Task(**question["task"])))
        raise ValueError(f"Expected ask to be version, open or generate, came {ask!r}.")

    def _adapter(self) -> Any:
        return importlib.import_module(f"specgym.controllers.evaluation.peers.libraries.{self.library.adapter}")


def serve(desk: WorkerServer, questions: TextIO, answers: TextIO) -> None:
    """Answers line by line until there are no more questions. An error is an answer too, and not the end."""
    for line in questions:
        answers.write(json.dumps(_reply(desk, line)) + "\n")
        answers.flush()


def _reply(desk: WorkerServer, line: str) -> dict[str, Any]:
    try:
        return {"answer": desk.answer(json.loads(line))}
    except Exception as error:  # what a foreign library raises is not for us to know; it is reported
        return {"error": _reason(error, desk.library)}


def _reason(error: Exception, library: Library) -> str:
    if isinstance(error, metadata.PackageNotFoundError):
        return f"{library.package} is not installed. Run `pip install {library.package}`."
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed. Run `pip install {library.package}`."
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    """Serves the library named on the command line."""
    # Libraries print; what they print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(WorkerServer(LIBRARIES[sys.argv[1]]), sys.stdin, answers)


if __name__ == "__main__":
    main()
