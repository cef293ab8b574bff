"""llama.cpp through llama-cpp-python: plain decoding, and prompt lookup. It exchanges token ids, never text."""

from __future__ import annotations

from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from specgym.controllers.evaluation.peers.catalogue import Answer, OpenPeer, Setup, Task

_LOOKUP_TOKENS = 2  # what the library's manual advises where there is no GPU


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of llama.cpp's peers."""
    assert setup.gguf is not None
    lookup = _CountedLookup() if name == "llama.cpp-lookup" else None
    model = _CountedLlama(
        setup.gguf,
        n_ctx=setup.room + 8,  # drafts may reach past the end of the longest text
        n_threads=setup.threads,
        n_threads_batch=setup.threads,
        n_gpu_layers=0,
        draft_model=lookup,
        verbose=False,
    )
    return partial(_generate, model, lookup, setup)


class _CountedLookup(LlamaPromptLookupDecoding):  # type: ignore[misc]
    """Prompt lookup that counts the tokens that it proposes."""

    def __init__(self) -> None:
        super().__init__(max_ngram_size=2, num_pred_tokens=_LOOKUP_TOKENS)
        self.proposed = 0

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        tokens = super().__call__(input_ids, **kwargs)
        self.proposed += len(tokens)
        return tokens


class _CountedLlama(Llama):  # type: ignore[misc]
    """A model that counts its forwards."""

    forwards = 0

    def eval(self, tokens: Any) -> None:
        """Reads tokens in one forward."""
        self.forwards += 1
        super().eval(tokens)


def _generate(model: _CountedLlama, lookup: _CountedLookup | None, setup: Setup, task: Task) -> Answer:
    model.forwards = 0
    if lookup is not None:
        lookup.proposed = 0
    model.set_seed(task.seed % 2**32)
    model.reset()  # else it would keep the prefix that this prompt shares with the last one
    options = {"temp": setup.temperature, "top_k": setup.top_k, "top_p": setup.top_p}
    stream = model.generate(task.prompt, **options, min_p=0.0, repeat_penalty=1.0)
    tokens: list[int] = []
    before = perf_counter()
    for token in islice(stream, task.max_new_tokens):
        tokens.append(token)
        if token in setup.end_tokens:
            break
    seconds = perf_counter() - before
    drafted = lookup.proposed if lookup is not None else 0
    accepted = min(max(len(tokens) - model.forwards, 0), drafted)
    return Answer(tokens, seconds, model.forwards, drafted, accepted)
