"""Tiny real models, drafts and prompts: small enough for a forward in a millisecond, real enough to break.

Nothing here is a stand-in. The models are transformers models with random weights, spread wide enough that their
texts vary; the drafts are the engine's own, around such models. Everything is a function of its seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specgym.controllers.controller import Controller
from specgym.controllers.registry import make_controller
from specgym.controllers.run import Generation, run
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import CausalDraft, Draft, FeatureDraft, LookupDraft
from specgym.env.drafts.network import FeatureDraftConfig, FeatureDraftNetwork
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.parameters import SOURCES, TreeParameters
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings

DRAFT_KINDS = ("causal", "feature", "lookup")
VOCABULARY = 31
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # the usual 0.02 makes every token equally likely and every text the same
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""The shape of a tiny model, in the words of most transformers configurations."""


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """A Llama of random weights, with `changes` to `SHAPE`.

    In float64 a tree and a chain give the same logits up to 1e-14, so texts that differ differ for a reason.
    """
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | changes))).to(dtype).eval()


def noisy_copy(model: PreTrainedModel, amount: float = 0.1, seed: int = 1) -> PreTrainedModel:
    """A copy whose weights are off by `amount` of their spread: right often, and wrong often. 0 copies exactly."""
    generator = torch.Generator().manual_seed(seed)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in changed.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(amount * noise * weight.std().nan_to_num())
    return changed


def tiny_target(
    seed: int = 0, end_tokens: Iterable[int] = (), dtype: torch.dtype = torch.float64, **changes: Any
) -> TargetModel:
    """A tiny Llama as target, whose texts end at `end_tokens` only."""
    return TargetModel(tiny_llama(seed, dtype, **changes), frozenset(end_tokens))


def tiny_network(
    hidden_size: int = 32,
    vocabulary: int = 20,
    seed: int = 0,
    layers: int = 1,
    feature_layers: tuple[int, ...] = (),
) -> FeatureDraftNetwork:
    """A feature draft's network of random weights, whose head knows the first `vocabulary` tokens."""
    torch.manual_seed(seed)
    network = FeatureDraftNetwork(FeatureDraftConfig(hidden_size, 4, 2, 8, 48, vocabulary, layers, feature_layers))
    with torch.no_grad():
        network.head.weight.normal_(0, 0.3)  # as spread as the targets are
    return network.eval()


def causal_draft(target: TargetModel, amount: float = 0.1, seed: int = 1) -> CausalDraft:
    """A noisy copy of the target as its draft; with an `amount` of 0 the target accepts all it says."""
    with target.lent() as model:
        return CausalDraft(CachedModel(noisy_copy(model, amount, seed)), target.vocabulary)


def feature_draft(
    target: TargetModel, seed: int = 0, layers: int = 1, feature_layers: tuple[int, ...] = ()
) -> FeatureDraft:
    """An untrained feature draft with a head over every other of the target's tokens, in descending order."""
    embedding = target.model.get_input_embeddings()
    token_ids = torch.arange(target.vocabulary - 1, -1, -2)
    network = tiny_network(embedding.weight.shape[1], len(token_ids), seed, layers, feature_layers)
    network.token_ids.copy_(token_ids)
    return FeatureDraft(network, embedding, target.context_limit)


def make_draft(kind: str, target: TargetModel, seed: int = 1) -> Draft:
    """A draft of each of `DRAFT_KINDS` that is sometimes right."""
    makers: dict[str, Callable[[], Draft]] = {
        "causal": lambda: causal_draft(target, seed=seed),
        "feature": lambda: feature_draft(target, seed),
        "lookup": LookupDraft,
    }
    return makers[kind]()


def make_prompt(seed: int, length: int = 8, vocabulary: int = VOCABULARY) -> tuple[int, ...]:
    """A random prompt that says its first half twice, so that prompt lookup finds something."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(0, vocabulary, ((length + 1) // 2,), generator=generator).tolist()
    return tuple((half * 2)[:length])


def generate(
    target: TargetModel, draft: Draft, request: Request, controller: str | Controller = "autoregressive"
) -> Generation:
    """Continues a text on a new decoder, plainly unless another controller is given."""
    chosen = make_controller(controller) if isinstance(controller, str) else controller
    return run(LiveDecoder(target, draft), chosen, request)


def chain(depth: int) -> TreeParameters:
    """A tree without branches, always of full depth."""
    return TreeParameters(base_depth=depth, max_depth=depth, min_branch=1, mid_branch=1, max_branch=1)


def rounds_until_the_end(decoder: LiveDecoder, parameters: Sequence[TreeParameters]) -> None:
    """Plays `parameters` one round each, as long as the text goes on."""
    for choice in parameters:
        if decoder.under_way:
            decoder.round(choice)


STOPS: dict[str, st.SearchStrategy[float]] = {
    "min_reach": st.sampled_from([0.0, 0.0, 0.05, 0.2]),
    "min_confidence": st.sampled_from([0.0, 0.0, 0.3, 0.6]),
    "max_entropy": st.sampled_from([0.0, 0.0, 0.5, 1.5]),
    "min_level_reach": st.sampled_from([0.0, 0.0, 0.4, 0.8]),
}
"""The tree parameters that leave nodes out or stop branches; each often stops nothing."""


@st.composite
def tree_parameters(draw: st.DrawFn, deepest: int = 6) -> TreeParameters:
    """Any valid tree parameters, plain decoding included."""
    base_depth, max_depth = sorted((draw(st.integers(0, deepest)), draw(st.integers(0, deepest))))
    branches = sorted(draw(st.tuples(*[st.integers(1, 5)] * 3)))
    probability = st.floats(0, 1)
    low, high = sorted((draw(probability), draw(probability)))
    return TreeParameters(
        base_depth,
        max_depth,
        *branches,
        high_confidence=high,
        low_confidence=low,
        early_stop=draw(probability.map(lambda value: value**4)),  # small ones are the usual ones
        deep_expand=draw(probability.map(lambda value: value**2)),
        frontier_width=draw(st.integers(1, 10)),
        node_budget=draw(st.integers(1, 40)),
        source=draw(st.sampled_from(SOURCES)),
        calibrated=draw(st.booleans()),
        **draw(st.fixed_dictionaries(STOPS)),
    )


def sampling_settings() -> st.SearchStrategy[SamplingSettings]:
    """Greedy, or sampling of any kind."""
    warm = st.builds(
        SamplingSettings,
        temperature=st.sampled_from([0.5, 1.0, 1.7]),
        top_k=st.sampled_from([0, 1, 3, 10]),
        top_p=st.sampled_from([1.0, 0.9, 0.3]),
        seed=st.integers(-(2**40), 2**40),
    )
    return st.just(SamplingSettings()) | warm
