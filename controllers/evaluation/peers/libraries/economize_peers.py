"""economize: plain decoding, chains of a model, of prompt lookup, and of both. Its trees need Medusa heads."""

from __future__ import annotations

from typing import Any

import economize
import torch
from economize.techniques.draft_model import DraftModelConfig
from economize.techniques.hybrid import HybridConfig
from economize.techniques.lookup import LookupConfig

from specgym.controllers.evaluation.peers.libraries.transformers_peers import load_model
from specgym.controllers.evaluation.peers.messages import Answer, OpenPeer, Setup, Task, cut_at_end, timed

_CYCLES = {"economize": 1, "economize-lookup": 6, "economize-assisted": 4, "economize-hybrid": 4}
"""tokens of a cycle, the exact one included: the library's default, for lookup what its manual shows [tokens]"""


def open_peer(name: str, setup: Setup) -> OpenPeer:
    """Loads one of economize's peers.

    Raises:
        ValueError: sampling among the k likeliest tokens only, which economize's own sampler cannot do.
    """
    if setup.temperature > 0 and setup.top_k:
        raise ValueError("economize's sampler has no top_k")
    torch.set_num_threads(setup.threads)
    verifier = "rejection" if setup.temperature > 0 and _CYCLES[name] > 1 else None
    decoding = economize.DecodeConfig(cycle_length=_CYCLES[name], verifier=verifier)
    # A copy for each: a technique is attached to its model.
    model = economize.apply(load_model(setup.target, setup.dtype, name), *_techniques(name, setup), decoding=decoding)
    return _Economize(model, setup)


def _techniques(name: str, setup: Setup) -> list[Any]:
    if name == "economize":
        return []
    if name == "economize-lookup":
        return [LookupConfig()]
    assert setup.assistant is not None
    assistant = DraftModelConfig(model=setup.assistant)
    return [assistant if name == "economize-assisted" else HybridConfig(fallback=assistant)]


class _Economize:
    """A model with techniques attached."""

    def __init__(self, model: Any, setup: Setup) -> None:
        self.model, self.setup = model, setup

    def __call__(self, task: Task) -> Answer:
        prompt = torch.tensor(task.prompt)
        with timed() as watch:
            result = self.model.decode(
                prompt, task.max_new_tokens, selector=self._selector(task.seed), stop=self.setup.end_tokens or None
            )
            tokens = result.tokens.tolist()
        return Answer(
            cut_at_end(tokens, self.setup.end_tokens, task.max_new_tokens),
            watch.seconds,
            rounds=result.cost.count("exact"),
            drafted=sum(drafted for drafted, _ in result.acceptance),
            accepted=sum(accepted for _, accepted in result.acceptance),
        )

    def _selector(self, seed: int) -> Any:
        if self.setup.temperature == 0:
            return None
        return economize.TopPSampler(self.setup.temperature, self.setup.top_p, seed)
