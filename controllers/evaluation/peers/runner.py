"""Peers as runners: what the benchmark calls, with a worker behind it."""

from __future__ import annotations

import dataclasses
from typing import Any

from specgym.controllers.evaluation.peers.catalogue import Peer
from specgym.controllers.evaluation.peers.client import PeerError, Worker
from specgym.controllers.evaluation.peers.messages import Answer, Setup, Task
from specgym.controllers.run import Generation
from specgym.env.tree.rounds import FinishReason, Request, check_fits


class PeerRunner:
    """A peer in a worker.

    A worker that dies under it takes its other peers along; they are opened anew when they are next asked, outside of
    the time that is measured. The one that it died of is not asked again.

    Args:
        peer: which.
        worker: the process that has its library.
        setup: what it is given.
        context: longest text that the target reads [tokens].
        warm_up: a text that it continues once when it is opened.
    """

    def __init__(self, peer: Peer, worker: Worker, setup: Setup, context: int, warm_up: Task) -> None:
        self.peer, self.worker, self.setup = peer, worker, setup
        self.context, self.warm_up = context, warm_up
        self.name = peer.name
        self._reason: str | None = None  # why it is not asked any more

    def open(self) -> None:
        """Loads the peer and lets it continue one text, as nothing else shows whether it can.

        Raises:
            PeerError: it cannot.
        """
        if self.peer.wants_assistant and self.setup.assistant is None:
            raise PeerError("it drafts with a small model of its own, and there is none: give one with --assistant")
        self._ask({"ask": "open", "setup": dataclasses.asdict(self.setup)})
        self._generate(self.warm_up)
        self.worker.opened.add(self.name)

    def __call__(self, request: Request) -> Generation:
        """Runs a request to its end.

        Raises:
            LimitError: the prompt leaves no room in the target's context.
            PeerError: the peer failed.
        """
        if self._reason is not None:
            raise PeerError(self._reason)
        check_fits(len(request.prompt), self.context)
        most = min(request.max_new_tokens, self.context - len(request.prompt))
        answer = self._answer(Task(list(request.prompt), most, request.sampling.seed))
        if not answer.tokens:
            raise PeerError("it generated nothing")
        return Generation(
            answer.tokens,
            self._finished(answer.tokens, len(request.prompt)),
            answer.seconds,
            answer.rounds,
            answer.drafted,
            answer.accepted,
            seconds_by_part={},
        )

    def _answer(self, task: Task) -> Answer:
        try:
            if not self.worker.has(self.name):
                self.open()
            return self._generate(task)
        except PeerError as error:
            if not self.worker.alive:
                self._reason = str(error)
            raise

    def _generate(self, task: Task) -> Answer:
        return Answer(**self._ask({"ask": "generate", "task": dataclasses.asdict(task)}))

    def _ask(self, question: dict[str, Any]) -> Any:
        return self.worker.ask({**question, "peer": self.name})

    def _finished(self, tokens: list[int], prompt: int) -> FinishReason:
        if tokens[-1] in self.setup.end_tokens:
            return FinishReason.END_OF_SEQUENCE
        full = prompt + len(tokens) == self.context
        return FinishReason.CONTEXT_LIMIT if full else FinishReason.TOKEN_LIMIT
