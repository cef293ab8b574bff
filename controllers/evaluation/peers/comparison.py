"""Prepares a comparison with other libraries: what the peers are given, and which of them run here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from specgym.controllers.evaluation.live.runners import parse_pairs
from specgym.controllers.evaluation.peers.catalogue import LIBRARIES, PEERS, Setup, Task
from specgym.controllers.evaluation.peers.client import PATIENCE, PeerError, PeerRunner, Worker
from specgym.controllers.evaluation.peers.libraries.gguf_file import write_gguf
from specgym.controllers.evaluation.results.schema import PeerFacts
from specgym.controllers.registry import BASELINE
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.decoding.pair import PAIRS, ModelPair, encode_chat
from specgym.env.models.hub.compatibility import check_draft, check_vocabulary
from specgym.env.models.hub.loading import load_config, load_tokenizer
from specgym.env.models.hub.store import locate_model
from specgym.env.prompts import Prompt
from specgym.env.tree.sampling import SamplingSettings

OURS = "goodput"
"""our best rule, which every peer is compared with"""

_WARM_UP_PROMPT, _WARM_UP_TOKENS = 256, 12
_SPARE = 32  # an answer that is encoded again may have more tokens than were generated


@dataclass
class OpenedPeers:
    """The peers of a comparison."""

    runners: list[PeerRunner] = field(default_factory=list)
    """the peers that run here"""
    facts: dict[str, PeerFacts] = field(default_factory=dict)
    """facts about every peer, also those that do not run here"""


def check_peers(names: str | None) -> list[str]:
    """Returns the peers of a comma-separated list, all if None, and their baselines, in the report's order.

    Raises:
        UnknownNameError: no such peer; the message offers the closest names.
    """
    chosen = list(PEERS) if names is None else [name for name in names.split(",") if name]
    for name in chosen:
        if name not in PEERS:
            raise UnknownNameError("peer", name, PEERS)
    wanted = {*chosen, *(PEERS[name].library.baseline for name in chosen)}
    return [name for name in PEERS if name in wanted]


def parse_pythons(pythons: str | None, for_all: str | None, own: str) -> dict[str, str]:
    """Returns the interpreter of each library.

    Args:
        pythons: comma-separated ``LIBRARY=PATH``.
        for_all: the interpreter of every other library but transformers; `own` if None.
        own: the interpreter of this program.

    Raises:
        UnknownNameError: no such library; the message offers the closest names.
        ParameterError: an entry of another form, or a path that is no program.
    """
    named = parse_pairs(pythons, "interpreters as LIBRARY=PATH")
    chosen = dict.fromkeys(LIBRARIES, for_all or own) | {"transformers": own} | named
    for name, path in chosen.items():
        if name not in LIBRARIES:
            raise UnknownNameError("library", name, LIBRARIES)
        if not Path(path).expanduser().is_file():
            raise ParameterError(f"There is no interpreter {path} for {name}. Expected the path of a Python program.")
    return {name: str(Path(path).expanduser()) for name, path in chosen.items()}


def find_assistant(assistant: str | None, target: str, tokenizer: PreTrainedTokenizerBase | None) -> Path | None:
    """Returns the folder of the small model that peers draft with; None if none is named or shipped for the target.

    Args:
        assistant: its name, as for a target; by default the first causal draft that is shipped for `target`.
        target: the target's name.
        tokenizer: the target's, to check that the two fit; None skips that check.

    Raises:
        UnknownNameError: no such model.
        ModelFileError: a folder that does not exist or is incomplete.
        PairError: a model that cannot draft for the target.
    """
    shipped = (str(path) for path in PAIRS.get(target, {}).values() if path.suffix != ".safetensors")
    assistant = next(shipped, None) if assistant is None else assistant
    if assistant is None:
        return None
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
    assistant: Path | None,
) -> Setup:
    """Returns the settings that all peers are given."""
    longest = max(_longest(pair, prompt, max_new_tokens) for prompt in prompts)
    return Setup(
        target=str(locate_model(pair.target_name).resolve()),
        dtype=pair.target.precision,
        threads=torch.get_num_threads(),
        room=min(longest, pair.target.context_limit),
        end_tokens=sorted(pair.target.end_tokens),
        **{name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")},
        assistant=None if assistant is None else str(assistant),
    )


def start_workers(names: Iterable[str], pythons: Mapping[str, str], patience: float = PATIENCE) -> dict[str, Worker]:
    """Returns a worker for every library that the named peers need, by the library's name. None is running yet."""
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
    progress: Callable[[str], None] = lambda text: None,
) -> OpenedPeers:
    """Loads every peer and lets it continue one text briefly. A failure is recorded, and the others go on.

    Args:
        names: the peers.
        workers: the worker of each library.
        setup: the settings that they are given.
        pair: the models.
        prompt: the text to continue.
        folder: where files for the peers are put.
        progress: called with a text before a peer is opened.
    """
    opened, context = OpenedPeers(), pair.target.context_limit
    text = encode_chat(pair.tokenizer, prompt.turns[:1])[-_WARM_UP_PROMPT:]
    warm_up = Task(list(text), max(min(_WARM_UP_TOKENS, context - len(text)), 1), seed=0)
    prepare = functools.cache(lambda library: _prepare(workers[library.name], setup, folder))
    for name in names:
        progress(f"Opening {name}")
        peer, library = PEERS[name], PEERS[name].library
        prepared, version, reason = prepare(library)
        if reason is None:
            runner = PeerRunner(peer, workers[library.name], prepared, context, warm_up)
            try:
                runner.open()
                opened.runners.append(runner)
            except PeerError as error:
                reason = str(error)
        opened.facts[name] = PeerFacts(library.package, version, peer.given, library.baseline, reason)
    return opened


def ours(controllers: str | None) -> list[str]:
    """Returns our controllers: plain decoding, the best rule, and those of a comma-separated list, each once."""
    return list(dict.fromkeys([BASELINE, OURS, *(controllers.split(",") if controllers else ())]))


def _prepare(worker: Worker, setup: Setup, folder: Path) -> tuple[Setup, str | None, str | None]:
    """Returns a library's own settings, its version, and why none of its peers can run, if so."""
    version, reason = None, None
    try:
        version = str(worker.call("version"))
        if worker.library.reads_gguf:
            setup = replace(setup, gguf=str(folder / "target.gguf"))
            write_gguf(Path(setup.target), setup.dtype, folder / "target.gguf")
    except PeerError as error:
        reason = str(error)
    return setup, version, reason


def _longest(pair: ModelPair, prompt: Prompt, max_new_tokens: int) -> int:
    """Returns the greatest length of a conversation [tokens]."""
    turns = [text for turn in prompt.turns for text in (turn, " ")][:-1]
    return len(encode_chat(pair.tokenizer, turns)) + len(prompt.turns) * (max_new_tokens + _SPARE)
