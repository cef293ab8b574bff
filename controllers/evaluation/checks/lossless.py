"""Is the output the target's own? Every controller and draft against plain decoding, and that against transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from specgym.controllers.evaluation.live.runners import TransformersRunner
from specgym.controllers.registry import make_controller
from specgym.controllers.run import run
from specgym.env.common.errors import PairError, ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import CausalDraft, Draft
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings


@dataclass(frozen=True)
class ExactnessCase:
    """One controller with one draft, or transformers, over all prompts."""

    runner: str
    """the controller's name, or ``transformers``"""
    draft: str
    """the draft's kind"""
    temperature: float
    """0 for greedy decoding"""
    seed: int
    """seed of the sampling noise"""
    prompts: int
    """texts compared"""
    identical: int
    """texts equal to plain decoding's, token for token"""
    drafted: int
    """draft tokens verified [tokens]"""
    accepted: int
    """draft tokens committed [tokens]"""

    @property
    def informative(self) -> bool:
        """Whether equal texts say something: some of what was drafted was accepted, and some was not."""
        return self.draft == "" or 0 < self.accepted < self.drafted

    @property
    def exact(self) -> bool:
        """Whether every text is equal, and that says something."""
        return self.identical == self.prompts > 0 and self.informative


def check_layers(layers: int, config: PretrainedConfig) -> None:
    """Refuses a number of layers that makes no shallow draft: none, or all of the target, which is never wrong.

    Args:
        layers: layers that `shallow_draft` shall keep.
        config: the target's configuration.

    Raises:
        PairError: the configuration does not tell how many layers the target has.
        ParameterError: `layers` is below 1, or not below the target's.
    """
    text = config.get_text_config(decoder=True)
    available = getattr(text, "num_hidden_layers", None)
    if available is None:
        raise PairError(
            f"The configuration of model type {text.model_type!r} names no num_hidden_layers, so no draft can be cut "
            "from it. Use another target."
        )
    if not 1 <= layers < available:
        raise ParameterError(
            f"layers must be 1 or more and fewer than the {available} that the target has; got {layers}."
        )


def shallow_draft(target: TargetModel, layers: int) -> CausalDraft:
    """The target cut off after its first layers, as a causal draft of the same vocabulary.

    Args:
        target: whose embedding, norm and head it shares.
        layers: layers kept.

    Raises:
        PairError, ParameterError: as in `check_layers`.
    """
    model = target.model
    check_layers(layers, model.config)
    with target.lent():
        shallow = copy.copy(model)
        shallow._modules = dict(model._modules)
        shallow.config = copy.deepcopy(model.config)
        decoder = copy.copy(model.model)
        decoder._modules = dict(decoder._modules)
        decoder.layers = torch.nn.ModuleList(list(decoder.layers)[:layers])
        decoder.config = shallow.config
        shallow.model = decoder
    shallow.config.num_hidden_layers = layers
    return CausalDraft(CachedModel(shallow), target.vocabulary)


def check_drafts(
    target: TargetModel,
    drafts: Sequence[Draft],
    controllers: Sequence[str],
    prompts: Sequence[tuple[int, ...]],
    *,
    sampling: SamplingSettings,
    max_new_tokens: int,
    progress: Callable[[str], None] = lambda name: None,
) -> list[ExactnessCase]:
    """Compares every controller and draft with plain decoding.

    Args:
        target: the model.
        drafts: the drafts.
        controllers: names of controllers that speculate.
        prompts: token ids of the prompts.
        sampling: how tokens are chosen.
        max_new_tokens: most tokens of a text [tokens].
        progress: told the name of every controller when it is through.
    """
    requests = [Request(prompt, max_new_tokens, sampling) for prompt in prompts]
    plain = LiveDecoder(target, drafts[0])
    expected = [run(plain, make_controller("autoregressive"), request).tokens for request in requests]
    progress("autoregressive")
    cases = []
    for draft in drafts:
        decoder = LiveDecoder(target, draft)
        for name in controllers:
            made = [run(decoder, make_controller(name), request) for request in requests]
            cases.append(
                ExactnessCase(
                    runner=name,
                    draft=draft.kind,
                    temperature=sampling.temperature,
                    seed=sampling.seed,
                    prompts=len(prompts),
                    identical=sum(a.tokens == b for a, b in zip(made, expected, strict=True)),
                    drafted=sum(each.drafted for each in made),
                    accepted=sum(each.accepted for each in made),
                )
            )
            progress(name)
    return cases


def check_transformers(
    target: TargetModel, draft: Draft, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> ExactnessCase:
    """Compares plain greedy decoding with transformers' `generate`. Arguments as for `check_drafts`."""
    decoder, reference = LiveDecoder(target, draft), TransformersRunner(target)
    requests = [Request(prompt, max_new_tokens) for prompt in prompts]
    identical = [
        run(decoder, make_controller("autoregressive"), request).tokens == reference(request).tokens
        for request in requests
    ]
    return ExactnessCase("transformers", "", 0.0, 0, len(prompts), sum(identical), 0, 0)
