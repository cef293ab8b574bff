"""Plain decoding: transformers' own greedy loop, and sampling in a loop without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def gumbel_noise(seed: int, position: int, vocabulary: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns the noise of every token at a position, as `docs/exactness.md` and `env/tree/sampling.py` define it."""
    key = _mix64(_mix64((seed & _MASK) + _GOLDEN) + position * _GOLDEN & _MASK)
    tokens = np.arange(vocabulary, dtype=np.uint32)
    bits = _mix32(_mix32(tokens ^ np.uint32(key & 0xFFFFFFFF)) ^ np.uint32(key >> 32))
    uniform = ((bits ^ np.uint32(0x80000000)).astype(np.float64) + 0.5) / 2.0**32
    noise: np.ndarray[Any, np.dtype[np.float32]] = (-np.log(-np.log(uniform))).astype(np.float32)
    return noise


def _mix64(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def _mix32(bits: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B)
    return bits ^ (bits >> np.uint32(16))


class PlainSampling:
    """A loop for `custom_generate=`: every token by a forward over all tokens, with the processors and criteria given.

    Args:
        seeds: seed of the noise of each row.

    Attributes:
        scores: the scores that each token was the highest of, `float32[batch, vocabulary]` each.
    """

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds
        self.scores: list[torch.Tensor] = []

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **others: Any,
    ) -> torch.Tensor:
        """Returns the texts, `int64[batch, tokens]`."""
        mask = others.get("attention_mask")
        paddings = [0] * len(input_ids) if mask is None else (mask == 0).sum(dim=1).tolist()
        going = torch.ones(len(input_ids), dtype=torch.bool)
        while bool(going.any()):
            rows = [
                model(row[None, padding:], use_cache=False).logits[:, -1]
                for row, padding in zip(input_ids, paddings, strict=True)
            ]
            scores = logits_processor(input_ids, torch.cat(rows).to(torch.float32, copy=True))
            noises = [
                gumbel_noise(seed, input_ids.shape[1] - padding, scores.shape[1])
                for seed, padding in zip(self.seeds, paddings, strict=True)
            ]
            self.scores.append(scores + torch.from_numpy(np.stack(noises)))
            tokens = self.scores[-1].argmax(dim=-1)
            if any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
                tokens = torch.where(going, tokens, generation_config._pad_token_tensor)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            going &= ~stopping_criteria(input_ids, None)
        return input_ids


def plain_text(model: PreTrainedModel, inputs: dict[str, Any], seeds: list[int] | None) -> tuple[torch.Tensor, Any]:
    """Decodes plainly.

    Args:
        model: the target.
        inputs: arguments of `generate`.
        seeds: seed of the noise of each row; None for greedy decoding.

    Returns:
        Prompts and texts, `int64[batch, tokens]`, and the scores of each step.
    """
    if seeds is None:
        wanted = {"return_dict_in_generate": True, "output_scores": True}
        output = model.generate(**(inputs | {"do_sample": False} | wanted))
        return output.sequences, output.scores
    loop = PlainSampling(seeds)
    sequences = model.generate(**inputs, do_sample=True, custom_generate=loop)
    return sequences, loop.scores


def is_tie(scores: torch.Tensor, one: int, other: int) -> bool:
    """Whether two tokens are equally likely up to rounding.

    Args:
        scores: of all tokens, `float32[vocabulary]`.
        one: the token that plain decoding chose.
        other: another token.
    """
    finite = scores[scores.isfinite()]
    return bool((scores[one] - scores[other]).abs() <= 1e-5 * max(1.0, float(finite.abs().max())))


def worst_choice(model: PreTrainedModel, text: torch.Tensor, prompt: int) -> float:
    """Returns how far below the likeliest token the worst new token of a greedy text is, in spreads of the logits.

    Args:
        model: the target, in any precision.
        text: prompt and text, `int64[tokens]`.
        prompt: length of the prompt [tokens].
    """
    with torch.inference_mode():
        logits = model(text[None, :-1], use_cache=False).logits[0, prompt - 1 :].float()  # [new tokens, vocabulary]
    chosen = logits.gather(1, text[prompt:, None])[:, 0]
    return float(((logits.amax(dim=1) - chosen) / logits.std(dim=1)).max())
