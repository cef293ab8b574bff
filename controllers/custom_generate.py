"""Speculative decoding inside transformers: ``model.generate(**inputs, custom_generate=speculative_generate, …)``."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList, generation
from transformers.generation.streamers import BaseStreamer

from specgym.controllers.controller import Controller
from specgym.controllers.inside_generate.generate_outputs import StepRecord
from specgym.controllers.inside_generate.kept_arguments import keep_arguments
from specgym.controllers.inside_generate.request_account import check_positions, check_request
from specgym.controllers.inside_generate.stop_rules import Stopper, StopRules, sort_criteria
from specgym.controllers.inside_generate.text_rows import Batch, visible_tokens
from specgym.controllers.inside_generate.user_cache import CachedTarget, check_cache, extend_cache
from specgym.controllers.registry import DEFAULT, make_controller
from specgym.controllers.run import steer
from specgym.env.common.errors import LimitError, PairError, ParameterError
from specgym.env.decoding.learned_costs import LearnedCosts
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import LOOKUP, make_draft
from specgym.env.drafts import CausalDraft, Draft
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.processors import check_processors
from specgym.env.tree.rounds import FinishReason, Request, check_fits
from specgym.env.tree.sampling import SamplingSettings

_Listener = Callable[[Sequence[int]], object]


@keep_arguments
def speculative_generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    draft: str | os.PathLike[str] | PreTrainedModel | Draft | None = None,
    controller: str | Controller = DEFAULT,
    seed: int | None = None,
    on_tokens: _Listener | None = None,
    streamer: BaseStreamer | None = None,
    assistant_model: PreTrainedModel | None = None,
    tokenizer: object = None,
    **others: Any,
) -> torch.Tensor | generation.GenerateDecoderOnlyOutput:
    """Continues texts exactly as the model would by itself, only faster. The texts of a batch follow one another.

    Args:
        model: the target, as `generate` passes it.
        input_ids: prompts with padding on the left, `int64[texts, tokens]`.
        logits_processor: called once for each token, in this order.
        stopping_criteria: checked after every token; a text is cut at the first that is met.
        generation_config: every field that would change the text and is not supported is refused.
        draft: ``"lookup"``, a feature draft's file, a causal language model of the same vocabulary, or a draft.
            Prompt lookup by default.
        controller: a registered name, with options as in `make_controller`, or a controller.
        seed: seed of the sampling noise; drawn from torch's generator if None. Text number i of a batch has seed + i.
        on_tokens: called with the tokens of every round of a single text, as they are committed.
        streamer: given every token of a single text, as `generate` does.
        assistant_model: the draft, by transformers' own name.
        tokenizer: `generate` needs it for stop strings.
        others: further arguments that `generate` prepares for its own loops.

    Returns:
        Prompts and texts, `int64[texts, tokens]`, or an output object, with keys and values of a single text only.

    Raises:
        ParameterError: anything in the request that is not supported, by name.
        LimitError: padding elsewhere, a prompt that does not fit, or several texts where only one is possible.
        PairError: a model that is not supported, or two that do not fit each other.
    """
    config, cache = generation_config or model.generation_config, others.get("past_key_values")
    check_request(model, config, others, len(input_ids))
    check_cache(cache, config, input_ids, others.get("attention_mask"))
    visible = visible_tokens(input_ids, others.get("attention_mask"))
    check_positions(others.get("position_ids"), visible)
    batch = Batch(input_ids, visible, logits_processor or LogitsProcessorList())
    check_processors(batch.processors)
    rules = sort_criteria(stopping_criteria or StoppingCriteriaList())
    record = StepRecord(config, len(batch))
    listen = _listener(on_tokens, streamer, len(batch))
    chosen, sampling = _controller(controller), _sampling(config, seed)
    target = CachedTarget(model, rules.end_tokens, cache)
    decoder = LiveDecoder(target, _draft(draft, assistant_model, target), LearnedCosts())
    target.check_draft(decoder.draft)
    rows = _Texts(decoder, chosen, batch, sampling, record).decode_all(rules, listen)
    if cache is not None and len(rows) == 1 and _outlives(cache, config):
        extend_cache(cache, decoder.target, [*batch.prompt(0), *rows[0]])
    if streamer is not None:
        streamer.end()
    sequences = torch.cat([input_ids, _padded(rows, config).to(input_ids.device)], dim=1)
    return record.output(sequences, len(rows[0]), cache if len(rows) == 1 else None)


@dataclass
class _Texts:
    """Decodes the texts of a batch one after another."""

    decoder: LiveDecoder
    controller: Controller
    batch: Batch
    sampling: SamplingSettings
    record: StepRecord

    def decode_all(self, rules: StopRules, listen: _Listener | None) -> list[list[int]]:
        """Returns the new tokens of each text. All prompts are checked first."""
        for row in range(len(self.batch)):
            check_fits(len(self.batch.prompt(row)), self.decoder.context_limit)
        rows = [self.decode(row, rules, listen) for row in range(len(self.batch))]
        longest = max(map(len, rows))
        if rules.pads:
            return rows
        # `generate` goes on with a text until all have ended.
        rest = StopRules(self.batch.input_ids.shape[1] + longest)
        return [tokens if len(tokens) == longest else self.decode(row, rest) for row, tokens in enumerate(rows)]

    def decode(self, row: int, rules: StopRules, listen: _Listener | None = None) -> list[int]:
        """Returns the new tokens of one text."""
        stopper = Stopper(rules, self.batch.input_ids[row], self.record.scores)
        sampling = replace(self.sampling, seed=self.sampling.seed + row)
        processors = self.record.around(self.batch.processors_of(row))
        request = Request(self.batch.prompt(row), stopper.room, sampling, processors=processors)
        tokens: list[int] = []
        for step in steer(self.decoder, self.controller, request):
            fresh = stopper.cut(step.outcome.tokens)
            tokens.extend(fresh)
            if listen is not None:
                listen(fresh)
            if stopper.stopped:
                break
            if step.outcome.finished is FinishReason.CONTEXT_LIMIT:
                warnings.warn(
                    f"The text ends at {self.decoder.context_limit} tokens, the target's context. "
                    f"{stopper.room - len(tokens)} more were allowed.",
                    stacklevel=2,
                )
        return tokens


def _outlives(cache: Any, config: GenerationConfig) -> bool:
    """Whether the caller sees a cache again: it is the caller's own, or part of the output."""
    return bool(config.return_dict_in_generate or getattr(cache, "_is_user_defined", True))


def _padded(rows: Sequence[Sequence[int]], config: GenerationConfig) -> torch.Tensor:
    """Returns texts as one tensor, `int64[texts, longest]`."""
    longest = max(map(len, rows))
    pad = getattr(config, "_pad_token_tensor", None)
    filler = 0 if pad is None else int(pad.flatten()[0])  # without one, all texts have one length
    return torch.tensor([[*tokens, *[filler] * (longest - len(tokens))] for tokens in rows], device="cpu")


def _listener(on_tokens: object, streamer: BaseStreamer | None, texts: int) -> _Listener | None:
    """Returns a function that hands on new tokens; None if nobody listens."""
    if on_tokens is not None and not callable(on_tokens):
        raise ParameterError(f"Expected on_tokens to be a function of a list of tokens; got {on_tokens!r}.")
    if on_tokens is None and streamer is None:
        return None
    if texts > 1:
        raise LimitError(f"Expected one text with streamer or on_tokens; got {texts}. Call generate for each.")

    def listen(tokens: Sequence[int]) -> None:
        if callable(on_tokens):
            on_tokens(tokens)
        if streamer is not None:
            for token in tokens:
                streamer.put(torch.tensor([token], device="cpu"))

    return listen


def _controller(controller: Any) -> Controller:
    if isinstance(controller, str):
        return make_controller(controller)
    if not (callable(getattr(controller, "act", None)) and callable(getattr(controller, "reset", None))):
        raise ParameterError(f"Expected controller to be a name, or an object with act and reset; got {controller!r}.")
    return controller  # type: ignore[no-any-return]


def _sampling(config: GenerationConfig, seed: object) -> SamplingSettings:
    """Returns whether to sample, and the seed. The processors hold all other settings."""
    if seed is None:
        seed = int(torch.randint(2**62, (1,), device="cpu")) if config.do_sample else 0
    try:
        number = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise ParameterError(f"Expected seed to be an integer; got {seed!r}.") from None
    return SamplingSettings(temperature=1.0 if config.do_sample else 0.0, seed=number)


def _draft(draft: Any, assistant: PreTrainedModel | None, target: TargetModel) -> Draft:
    """Returns the draft. One of the caller's own may be in use for another text, so it gets caches of its own."""
    if draft is not None and assistant is not None:
        raise ParameterError("Expected draft or assistant_model; got both. They name the same thing.")
    draft = next((each for each in (draft, assistant) if each is not None), LOOKUP)
    if isinstance(draft, str | os.PathLike):
        return make_draft(os.fspath(draft), target)
    if not isinstance(draft, PreTrainedModel):
        if not callable(getattr(draft, "expand", None)):
            raise ParameterError(f"Expected draft to be 'lookup', a file, a model or a draft; got {draft!r:.80}.")
        return draft.fork() if hasattr(draft, "fork") else draft  # type: ignore[no-any-return]
    cached = CachedModel(draft)
    if cached.device != target.device:
        raise PairError(f"The draft is on {cached.device}, the target on {target.device}; put them on one device.")
    return CausalDraft(cached, target.vocabulary)
