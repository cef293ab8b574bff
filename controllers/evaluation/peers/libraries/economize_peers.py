"""economize: plain decoding, and chains of a model, of prompt lookup, and of both. Its trees need Medusa heads."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

import economize
import torch
from economize.techniques.draft_model import DraftModelConfig
from economize.techniques.hybrid import HybridConfig
from economize.techniques.lookup import LookupConfig

from specgym.controllers.evaluation.peers.catalogue import Answer, OpenPeer, Setup, Task
from specgym.controllers.evaluation.peers.libraries.transformers_peers import load_model

_CYCLES = {"economize": 1, "economize-lookup": 6, "economize-assisted": 4, "economize-hybrid": 4}
"""tokens of a cycle, the exact one included: the library's default, for lookup what its manual shows [tokens]"""


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of economize's peers.

    Raises:
        ValueError: sampling with top-k, which economize's sampler lacks.
    """
    if setup.temperature > 0 and setup.top_k:
        raise ValueError("economize's sampler has no top_k")
    torch.set_num_threads(setup.threads)
    verifier = "rejection" if setup.temperature > 0 and _CYCLES[name] > 1 else None
    decoding = economize.DecodeConfig(cycle_length=_CYCLES[name], verifier=verifier)
    # A copy for each: a technique is attached to its model.
    model = economize.apply(load_model(setup.target, setup.dtype, name), *_techniques(name, setup), decoding=decoding)
    return partial(_decode, model, setup)


def _techniques(name: str, setup: Setup) -> list[Any]:
    if name == "economize":
        return []
    if name == "economize-lookup":
        return [LookupConfig()]
    assert setup.assistant is not None
    assistant = DraftModelConfig(model=setup.assistant)
    return [assistant if name == "economize-assisted" else HybridConfig(fallback=assistant)]


def _decode(model: Any, setup: Setup, task: Task) -> Answer:
    prompt = torch.tensor(task.prompt)
    selector = economize.TopPSampler(setup.temperature, setup.top_p, task.seed) if setup.temperature > 0 else None
    before = perf_counter()
    result = model.decode(prompt, task.max_new_tokens, selector=selector, stop=setup.end_tokens or None)
    tokens = result.tokens.tolist()
    return Answer(
        tokens,
        perf_counter() - before,
        rounds=result.cost.count("exact"),
        drafted=sum(drafted for drafted, _ in result.acceptance),
        accepted=sum(accepted for _, accepted in result.acceptance),
    )
