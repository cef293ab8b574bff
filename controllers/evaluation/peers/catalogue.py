"""Which peers there are, what each of them is given, and whose plain decoding its output is compared with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """A library that brings one or more peers; they share a worker."""

    name: str
    """what it is called here"""
    package: str
    """what pip calls it"""
    adapter: str
    """the module, in this folder, that knows how to call it"""
    reads_gguf: bool = False
    """whether it wants the target's weights as a GGUF file"""


@dataclass(frozen=True)
class Peer:
    """One way of decoding that one library has."""

    name: str
    library: Library
    reference: str
    """the peer that is its plain decoding: what its greedy output is compared with"""
    given: str
    """what it is given and how it is set, for the report"""
    wants_assistant: bool = False
    """whether it drafts with a small model of its own"""


_TRANSFORMERS = Library("transformers", "transformers", "transformers_peers")
_FLASHSPEC = Library("flashspec", "flashspec", "flashspec_peers")
_ECONOMIZE = Library("economize", "economize", "economize_peers")
_LLAMA_CPP = Library("llama.cpp", "llama-cpp-python", "llama_cpp_peers", reads_gguf=True)

LIBRARIES = {library.name: library for library in (_TRANSFORMERS, _FLASHSPEC, _ECONOMIZE, _LLAMA_CPP)}

PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformers", _TRANSFORMERS, "transformers", "generate, no draft"),
        Peer(
            "transformers-compiled",
            _TRANSFORMERS,
            "transformers",
            "generate, no draft; decoding steps through torch.compile (Inductor, frozen weights) on a static cache",
        ),
        Peer(
            "transformers-assisted",
            _TRANSFORMERS,
            "transformers",
            "generate with the assistant, heuristic schedule, otherwise the library's settings",
            wants_assistant=True,
        ),
        Peer("transformers-lookup", _TRANSFORMERS, "transformers", "generate with prompt_lookup_num_tokens=10"),
        Peer(
            "flashspec-assisted",
            _FLASHSPEC,
            "transformers",
            "the assistant, strategy auto: prompt lookup of 6 where it finds something, else 2 tokens of the assistant",
            wants_assistant=True,
        ),
        Peer("flashspec-lookup", _FLASHSPEC, "transformers", "prompt lookup alone, 4 tokens"),
        Peer(
            "flashspec-bandit",
            _FLASHSPEC,
            "transformers",
            "UCB1 over the assistant and prompt lookup, 4 tokens",
            wants_assistant=True,
        ),
        Peer("economize", _ECONOMIZE, "economize", "plain decoding"),
        Peer(
            "economize-assisted",
            _ECONOMIZE,
            "economize",
            "the assistant as draft_model, cycles of 4 tokens",
            wants_assistant=True,
        ),
        Peer("economize-lookup", _ECONOMIZE, "economize", "lookup, cycles of 6 tokens"),
        Peer(
            "economize-hybrid",
            _ECONOMIZE,
            "economize",
            "hybrid: lookup, and where it finds nothing the assistant; cycles of 4 tokens",
            wants_assistant=True,
        ),
        Peer("llama.cpp", _LLAMA_CPP, "llama.cpp", "plain decoding of a GGUF file in the same precision"),
        Peer(
            "llama.cpp-lookup",
            _LLAMA_CPP,
            "llama.cpp",
            "LlamaPromptLookupDecoding(num_pred_tokens=2, max_ngram_size=2), which its manual advises for a CPU",
        ),
    )
}
"""every peer by name, in the order of the report"""


def with_references(names: list[str]) -> list[str]:
    """These peers and the plain decoding of each, in the catalogue's order, each once."""
    wanted = {*names, *(PEERS[name].reference for name in names)}
    return [name for name in PEERS if name in wanted]
