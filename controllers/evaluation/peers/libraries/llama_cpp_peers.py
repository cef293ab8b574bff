"""llama.cpp through llama-cpp-python: plain decoding, and prompt lookup. It is asked for tokens, never for text."""

from __future__ import annotations

from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from specgym.controllers.evaluation.peers.messages import Answer, OpenPeer, Setup, Task, cut_at_end, timed

_LOOKUP_TOKENS = 2  # what the library's manual advises where there is no GPU


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of llama.cpp's peers."""
    assert setup.gguf is not None
    lookup = _CountedLookup() if name == "llama.cpp-lookup" else None
    model = Llama(
        setup.gguf,
        n_ctx=setup.room + 8,  # drafts may reach past the end of the longest text
        n_threads=setup.threads,
        n_threads_batch=setup.threads,
        n_gpu_layers=0,
        draft_model=lookup,
        verbose=False,
    )
    return _LlamaCpp(model, lookup, setup)


class _CountedLookup(LlamaPromptLookupDecoding):  # type: ignore[misc]
    """Prompt lookup that knows how much it has proposed."""

    def __init__(self) -> None:
        super().__init__(max_ngram_size=2, num_pred_tokens=_LOOKUP_TOKENS)
        self.proposed = 0

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        found = super().__call__(input_ids, **kwargs)
        self.proposed += len(found)
        return found


class _LlamaCpp:
    """A model, with or without lookup."""

    def __init__(self, model: Llama, lookup: _CountedLookup | None, setup: Setup) -> None:
        self.model, self.lookup, self.setup = model, lookup, setup
        self.forwards = 0
        self._eval = model.eval
        model.eval = self._counted_eval

    def __call__(self, task: Task) -> Answer:
        self.forwards = 0
        if self.lookup is not None:
            self.lookup.proposed = 0
        self.model.set_seed(task.seed % 2**32)
        self.model.reset()  # else it keeps what the last prompt has in common with this one
        ends = frozenset(self.setup.end_tokens)
        with timed() as watch:
            tokens = self._generate(task, ends)
        drafted = 0 if self.lookup is None else self.lookup.proposed
        accepted = min(max(len(tokens) - self.forwards, 0), drafted)
        return Answer(cut_at_end(tokens, ends, task.max_new_tokens), watch.seconds, self.forwards, drafted, accepted)

    def _generate(self, task: Task, ends: frozenset[int]) -> list[int]:
        tokens: list[int] = []
        for token in self.model.generate(
            task.prompt,
            temp=self.setup.temperature,
            top_k=self.setup.top_k,
            top_p=self.setup.top_p,
            min_p=0.0,
            repeat_penalty=1.0,
        ):
            tokens.append(token)
            if token in ends or len(tokens) == task.max_new_tokens:
                break
        return tokens

    def _counted_eval(self, tokens: Any) -> None:
        self.forwards += 1
        self._eval(tokens)
