"""Peers with their libraries and settings, and the messages between us and a worker: what both sides know.

Messages are one JSON object a line, a request and then its reply. Requests are `{"command": "version"}`,
`{"command": "open", "peer": NAME, "setup": {...}}` and `{"command": "generate", "peer": NAME, "task": {...}}`. A reply
is `{"answer": ...}`, or `{"error": TEXT}` with the reason. This module imports the standard library only: a worker's
Python may have nothing else of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Setup:
    """Settings that are the same for every task of a run."""

    target: str
    """folder of the target"""
    dtype: str
    """precision: bfloat16, float16 or float32"""
    threads: int
    """threads of one operation"""
    room: int
    """longest text of the run, answers included [tokens]"""
    end_tokens: list[int]
    """ids that end a text"""
    temperature: float
    """0 decodes greedily"""
    top_k: int
    """0 for all tokens"""
    top_p: float
    """1 for all tokens"""
    assistant: str | None = None
    """folder of a small model to draft with"""
    gguf: str | None = None
    """the target's weights as a GGUF file"""


@dataclass(frozen=True)
class Task:
    """One text to continue."""

    prompt: list[int]
    """the prompt's token ids"""
    max_new_tokens: int
    """most tokens to generate [tokens]"""
    seed: int
    """seed of the sampling noise"""


@dataclass(frozen=True)
class Answer:
    """A peer's output for a task."""

    tokens: list[int]
    """generated token ids; any after the end of the text are cut off later"""
    seconds: float
    """wall time, reading the prompt included [s]"""
    rounds: int
    """target forwards, the prompt's included"""
    drafted: int = 0
    """draft tokens verified [tokens]"""
    accepted: int = 0
    """draft tokens committed [tokens]"""


OpenPeer: TypeAlias = Callable[[Task], Answer]
"""a peer that is loaded; every adapter's `open_peer(name, setup)` returns one"""


@dataclass(frozen=True)
class Library:
    """A library with one or more peers, which share a worker."""

    name: str
    """its name here"""
    package: str
    """its name for pip"""
    adapter: str
    """the module in `libraries` that calls it"""
    baseline: str
    """the peer that decodes plainly: greedy outputs of all its peers are compared with that one's"""
    reads_gguf: bool = False
    """whether it reads the target's weights from a GGUF file"""


@dataclass(frozen=True)
class Peer:
    """One way of decoding that one library has."""

    name: str
    library: Library
    given: str
    """its models and settings, for the report"""
    assisted: bool = False
    """whether it drafts with a small model of its own"""


_TRANSFORMERS = Library("transformers", "transformers", "transformers_peers", "transformers")
_FLASHSPEC = Library("flashspec", "flashspec", "flashspec_peers", "transformers")
_ECONOMIZE = Library("economize", "economize", "economize_peers", "economize")
_LLAMA_CPP = Library("llama.cpp", "llama-cpp-python", "llama_cpp_peers", "llama.cpp", reads_gguf=True)

LIBRARIES = {library.name: library for library in (_TRANSFORMERS, _FLASHSPEC, _ECONOMIZE, _LLAMA_CPP)}

_COMPILED = "generate, no draft; decoding steps through torch.compile (Inductor, frozen weights) on a static cache"
_ASSISTED = "generate with the assistant, heuristic schedule, otherwise the library's settings"
_AUTO = "the assistant, strategy auto: prompt lookup of 6 where it finds something, else 2 tokens of the assistant"
_HYBRID = "hybrid: lookup, and where it finds nothing the assistant; cycles of 4 tokens"
_ADVISED = "LlamaPromptLookupDecoding(num_pred_tokens=2, max_ngram_size=2), which its manual advises for a CPU"

PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformers", _TRANSFORMERS, "generate, no draft"),
        Peer("transformers-compiled", _TRANSFORMERS, _COMPILED),
        Peer("transformers-assisted", _TRANSFORMERS, _ASSISTED, assisted=True),
        Peer("transformers-lookup", _TRANSFORMERS, "generate with prompt_lookup_num_tokens=10"),
        Peer("flashspec-assisted", _FLASHSPEC, _AUTO, assisted=True),
        Peer("flashspec-lookup", _FLASHSPEC, "prompt lookup alone, 4 tokens"),
        Peer("flashspec-bandit", _FLASHSPEC, "UCB1 over the assistant and prompt lookup, 4 tokens", assisted=True),
        Peer("economize", _ECONOMIZE, "plain decoding"),
        Peer("economize-assisted", _ECONOMIZE, "the assistant as draft_model, cycles of 4 tokens", assisted=True),
        Peer("economize-lookup", _ECONOMIZE, "lookup, cycles of 6 tokens"),
        Peer("economize-hybrid", _ECONOMIZE, _HYBRID, assisted=True),
        Peer("llama.cpp", _LLAMA_CPP, "plain decoding of a GGUF file in the same precision"),
        Peer("llama.cpp-lookup", _LLAMA_CPP, _ADVISED),
    )
}
"""every peer by name, in the order of the report"""
