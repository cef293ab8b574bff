"""The worker: a process that loads one library's peers and serves requests until its input ends.

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

from specgym.controllers.evaluation.peers.catalogue import LIBRARIES, Library, OpenPeer, Setup, Task


class WorkerServer:
    """Serves requests to the peers of one library."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.peers: dict[str, OpenPeer] = {}

    def serve(self, requests: TextIO, replies: TextIO) -> None:
        """Replies line by line until there are no more requests. An error is a reply too, and not the end."""
        for line in requests:
            try:
                reply = {"answer": self._answer(**json.loads(line))}
            except Exception as error:  # a foreign library may raise anything; it is reported
                reply = {"error": self._reason(error)}
            print(json.dumps(reply), file=replies, flush=True)

    def _answer(self, command: str, peer: str = "", **message: Any) -> Any:
        if command == "version":
            self._adapter()  # an installed library may fail to load
            return metadata.version(self.library.package)
        if command == "open":
            self.peers[peer] = self._adapter().open_peer(peer, Setup(**message["setup"]))
            return None
        if command == "generate":
            return asdict(self.peers[peer](Task(**message["task"])))
        raise ValueError(f"Expected command to be version, open or generate; got {command!r}.")

    def _adapter(self) -> Any:
        return importlib.import_module(f"specgym.controllers.evaluation.peers.libraries.{self.library.adapter}")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ModuleNotFoundError):  # metadata's PackageNotFoundError is one
            return f"{error.name} is not installed. Run `pip install {self.library.package}`."
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    """Serves the library named on the command line."""
    # Libraries print to stdout, which would come between the replies: it becomes stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    WorkerServer(LIBRARIES[sys.argv[1]]).serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
