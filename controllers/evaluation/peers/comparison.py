"""Our controllers beside the field: what the peers are given, and which of them can run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from specgym.controllers.evaluation.live.paired_runs import BASELINE
from specgym.controllers.evaluation.peers.catalogue import LIBRARIES, PEERS, Library, with_references
from specgym.controllers.evaluation.peers.client import PATIENCE, PeerError, Worker
from specgym.controllers.evaluation.peers.libraries.gguf_file import write_gguf
from specgym.controllers.evaluation.peers.messages import Setup, Task
from specgym.controllers.evaluation.peers.runner import PeerRunner
from specgym.controllers.evaluation.results.schema import PeerFacts
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.decoding.pair import PAIRS, ModelPair, encode_chat
from specgym.env.models.hub.compatibility import check_draft, check_vocabulary
from specgym.env.models.hub.loading import load_config, load_tokenizer
from specgym.env.models.hub.store import locate_model
from specgym.env.prompts import Prompt
from specgym.env.tree.sampling import SamplingSettings

OURS = "goodput"
"""our best rule, which every peer is measured against"""

_WARM_UP_PROMPT, _WARM_UP_TOKENS = 256, 12
_SPARE = 32  # an answer may have more tokens when it is read again than it had when it was written


@dataclass
class Field:
    """The peers as they were found."""

    runners: list[PeerRunner] = field(default_factory=list)
    """those that run here"""
    facts: dict[str, PeerFacts] = field(default_factory=dict)
    """what is known of each, those that do not run here included"""


def check_peers(names: str | None) -> list[str]:
    """The peers of a comma-separated list, all if None, each with its plain decoding, in the report's order.

    Raises:
        UnknownNameError: no such peer; the message offers the closest names.
    """
    chosen = list(PEERS) if names is None else [name for name in names.split(",") if name]
    for name in chosen:
        if name not in PEERS:
            raise UnknownNameError("peer", name, PEERS)
    return with_references(chosen)


def parse_pythons(pythons: str | None, for_all: str | None, own: str) -> dict[str, str]:
    """Which interpreter has which library.

    Args:
        pythons: comma-separated ``LIBRARY=PATH``.
        for_all: the interpreter of every other library but transformers; `own` if None.
        own: this program's.

    Raises:
        UnknownNameError: no such library; the message offers the closest names.
        ParameterError: an entry of another form, or a path that is no program.
    """
    chosen = {name: own if for_all is None or name == "transformers" else for_all for name in LIBRARIES}
    for entry in pythons.split(",") if pythons else ():
        name, equals, path = entry.partition("=")
        if not (equals and path):
            raise ParameterError(f"Expected interpreters as LIBRARY=PATH, comma-separated; got {entry!r}.")
        if name not in LIBRARIES:
            raise UnknownNameError("library", name, LIBRARIES)
        chosen[name] = path
    for name, path in chosen.items():
        if not Path(path).expanduser().is_file():
            raise ParameterError(f"There is no interpreter {path} for {name}. Expected the path of a Python program.")
        chosen[name] = str(Path(path).expanduser())
    return chosen


def find_assistant(assistant: str | None, target: str, tokenizer: PreTrainedTokenizerBase | None) -> Path | None:
    """The folder of the small model that peers draft with; None if none is named and none is shipped for the target.

    Args:
        assistant: its name, as for a target; by default the first causal draft that is shipped for `target`.
        target: the target's name.
        tokenizer: the target's, if it shall be made sure that the two fit.

    Raises:
        UnknownNameError: no such model.
        ModelFileError: a folder that does not exist or is incomplete.
        PairError: a model that cannot draft for the target.
    """
    if assistant is None:
        shipped = [path for path in PAIRS.get(target, {}).values() if path.suffix != ".safetensors"]
        if not shipped:
            return None
        assistant = str(shipped[0])
    folder = locate_model(assistant)
    check_draft(load_config(folder))
    if tokenizer is not None:
        check_vocabulary(tokenizer, load_tokenizer(folder))
    return folder.resolve()


def make_setup(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: SamplingSettings,
    dtype: str,
    assistant: Path | None,
) -> Setup:
    """What all peers are given."""
    longest = max(_longest(pair, prompt, max_new_tokens) for prompt in prompts)
    return Setup(
        target=str(locate_model(pair.target_name).resolve()),
        dtype=dtype,
        threads=torch.get_num_threads(),
        room=min(longest, pair.target.context_limit),
        end_tokens=sorted(pair.target.end_tokens),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        assistant=None if assistant is None else str(assistant),
    )


def start_workers(names: Iterable[str], pythons: Mapping[str, str], patience: float = PATIENCE) -> dict[str, Worker]:
    """A worker for every library that the named peers need, by the library's name. None is running yet."""
    libraries = {PEERS[name].library.name: PEERS[name].library for name in names}
    return {name: Worker(library, pythons[name], patience) for name, library in libraries.items()}


def open_peers(
    names: Sequence[str],
    workers: Mapping[str, Worker],
    setup: Setup,
    *,
    pair: ModelPair,
    prompt: Prompt,
    folder: Path,
    progress: Callable[[str], None] = lambda name: None,
) -> Field:
    """Loads every peer and lets it continue one text briefly. What goes wrong is noted, and the others go on.

    Args:
        names: the peers.
        workers: the worker of each library.
        setup: what they are given.
        pair: the models.
        prompt: the one to try.
        folder: where files for the peers are put.
        progress: told a peer's name before it is opened.
    """
    found = Field()
    text = encode_chat(pair.tokenizer, prompt.turns[:1])[-_WARM_UP_PROMPT:]
    room = max(min(_WARM_UP_TOKENS, pair.target.context_limit - len(text)), 1)
    prepared: dict[str, _Prepared] = {}
    for name in names:
        progress(name)
        peer = PEERS[name]
        library = peer.library
        if library.name not in prepared:
            prepared[library.name] = _prepare(library, workers[library.name], setup, folder)
        ready = prepared[library.name]
        reason = ready.reason
        if reason is None:
            task = Task(list(text), room, seed=0)
            runner = PeerRunner(peer, workers[library.name], ready.setup, pair.target.context_limit, task)
            try:
                runner.open()
                found.runners.append(runner)
            except PeerError as error:
                reason = str(error)
        found.facts[name] = PeerFacts(library.package, ready.version, peer.given, peer.reference, reason)
    return found


def references(runners: Iterable[PeerRunner]) -> dict[str, str]:
    """Whose output each peer's is compared with."""
    return {runner.name: runner.peer.reference for runner in runners}


def ours(controllers: str | None) -> list[str]:
    """Our controllers: plain decoding, the best rule, and those of a comma-separated list, each once."""
    return list(dict.fromkeys([BASELINE, OURS, *(controllers.split(",") if controllers else ())]))


@dataclass(frozen=True)
class _Prepared:
    """A library that was asked for its version, and its setup."""

    setup: Setup
    version: str | None = None
    reason: str | None = None
    """why none of its peers can run"""


def _prepare(library: Library, worker: Worker, setup: Setup, folder: Path) -> _Prepared:
    version: str | None = None
    try:
        version = str(worker.ask({"ask": "version"}))
        if library.reads_gguf:
            path = folder / "target.gguf"
            write_gguf(Path(setup.target), setup.dtype, path)
            setup = dataclasses.replace(setup, gguf=str(path))
    except PeerError as error:
        return _Prepared(setup, version, str(error))
    return _Prepared(setup, version)


def _longest(pair: ModelPair, prompt: Prompt, max_new_tokens: int) -> int:
    """Most tokens that a conversation can come to."""
    turns = [text for turn in prompt.turns for text in (turn, " ")][:-1]
    return len(encode_chat(pair.tokenizer, turns)) + len(prompt.turns) * (max_new_tokens + _SPARE)
