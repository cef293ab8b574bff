"""Speculative decoding inside transformers: ``model.generate(**inputs, custom_generate=speculative_generate, …)``.

transformers passes on only the extra arguments that the function names. It drops its own ``streamer=`` and
``assistant_model=`` without a word; use ``on_tokens=`` and ``draft=`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList, generation

from specgym.controllers.controller import Controller
from specgym.controllers.registry import DEFAULT, make_controller
from specgym.controllers.run import steer
from specgym.env.common.errors import LimitError, PairError, ParameterError
from specgym.env.decoding.learned_costs import LearnedCosts
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import make_draft
from specgym.env.drafts import CausalDraft, Draft
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings

_WARPERS = {
    generation.TemperatureLogitsWarper: "temperature",
    generation.TopKLogitsWarper: "top_k",
    generation.TopPLogitsWarper: "top_p",
}
_OWN_CRITERIA = (generation.MaxLengthCriteria, generation.EosTokenCriteria)  # the decoder keeps these itself


def speculative_generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    draft: str | PreTrainedModel | Draft = "lookup",
    controller: str | Controller = DEFAULT,
    seed: int | None = None,
    on_tokens: Callable[[Sequence[int]], None] | None = None,
    **others: Any,
) -> torch.Tensor | generation.GenerateDecoderOnlyOutput:
    """Continues one text exactly as the model would by itself, only faster.

    Args:
        model: the target, as `generate` passes it.
        input_ids: the prompt, `int64[1, tokens]`.
        logits_processor: temperature, top-k and top-p; any other processor is refused.
        stopping_criteria: checked after every token; the text is cut at the first that is met.
        generation_config: limits, end-of-sequence tokens and sampling settings.
        draft: ``"lookup"``, a feature draft's file, a causal language model of the same vocabulary, or a draft.
        controller: a registered name, with options as in `make_controller`, or a controller.
        seed: seed of the sampling noise; drawn from torch's generator if None.
        on_tokens: called with the tokens of every round, as they are committed.
        others: further arguments that `generate` prepares for its own loops. Only the attention mask is read: it must
            not hide anything, since there is one text only.

    Returns:
        Prompt and text, `int64[1, tokens]`, in an output object if the configuration wants one.

    Raises:
        LimitError: more than one text, beams, padding, or a prompt that does not fit.
        ParameterError: a logits processor that is not supported.
        PairError: a model that is not supported, or two that do not fit each other.
    """
    config = generation_config or model.generation_config
    _check_request(input_ids, others.get("attention_mask"), config)
    sampling = _sampling(config, logits_processor or LogitsProcessorList(), seed)
    tokens = input_ids[0].tolist()
    request = Request(tuple(tokens), config.max_length - len(tokens), sampling)
    criteria = StoppingCriteriaList(rule for rule in stopping_criteria or [] if not isinstance(rule, _OWN_CRITERIA))
    with ExitStack() as cleanup:
        end = config.eos_token_id
        target = TargetModel(model, frozenset([end] if isinstance(end, int) else end or ()))
        cleanup.callback(target.restore)
        decoder = LiveDecoder(target, _draft(draft, target, cleanup), LearnedCosts())
        for step in steer(decoder, make_controller(controller) if isinstance(controller, str) else controller, request):
            fresh, stopped = _cut(criteria, tokens, step.outcome.tokens, input_ids.device)
            tokens.extend(fresh)
            if on_tokens is not None:
                on_tokens(fresh)
            if stopped:
                break
    sequences = torch.tensor([tokens], device=input_ids.device)
    return generation.GenerateDecoderOnlyOutput(sequences=sequences) if config.return_dict_in_generate else sequences


def _check_request(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, config: GenerationConfig) -> None:
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:  # `generate` makes a batch of these
        raise LimitError("Expected num_beams=1 and num_return_sequences=1: speculation follows one text.")
    if input_ids.shape[0] != 1:
        raise LimitError(f"Expected one text at a time; got a batch of {input_ids.shape[0]}. Call generate for each.")
    if attention_mask is not None and not bool(attention_mask.all()):
        raise LimitError("Expected a prompt without padding; the attention mask hides some of it. Leave padding out.")


def _sampling(config: GenerationConfig, processors: LogitsProcessorList, seed: int | None) -> SamplingSettings:
    refused = [type(processor).__name__ for processor in processors if type(processor) not in _WARPERS]
    if refused:
        raise ParameterError(
            f"Not supported with speculation: {', '.join(refused)}. A tree holds several pasts at once, and these "
            "would have to run for each. Temperature, top_k and top_p work; switch the others off."
        )
    if not config.do_sample:
        return SamplingSettings()
    if seed is None:
        seed = int(torch.randint(2**62, (1,)))
    settings = {(name := _WARPERS[type(processor)]): getattr(processor, name) for processor in processors}
    return SamplingSettings(**{"temperature": 1.0, "seed": seed} | settings)


def _draft(draft: str | PreTrainedModel | Draft, target: TargetModel, cleanup: ExitStack) -> Draft:
    """Returns the draft, with a model of the caller's own restored by `cleanup`."""
    if isinstance(draft, str):
        return make_draft(draft, target)
    if not isinstance(draft, PreTrainedModel):
        return draft
    cached = CachedModel(draft)
    cleanup.callback(cached.restore)  # runs before the target's, which may be the same model
    if cached.device != target.device:
        raise PairError(f"The draft is on {cached.device}, the target on {target.device}; put them on one device.")
    return CausalDraft(cached, target.vocabulary)


def _cut(
    criteria: StoppingCriteriaList, before: list[int], fresh: Sequence[int], device: torch.device
) -> tuple[list[int], bool]:
    """Returns the `fresh` tokens up to where a criterion stops the text, and whether one does."""
    for count in range(1, len(fresh) + 1) if criteria else ():
        text = torch.tensor([before + list(fresh[:count])], device=device)
        if bool(torch.as_tensor(criteria(text, None)).all()):
            return list(fresh[:count]), True
    return list(fresh), False
