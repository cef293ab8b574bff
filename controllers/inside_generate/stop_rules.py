"""Where a text ends: at its longest length, at an end token, or where a criterion says so after a token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from specgym.env.common.errors import ParameterError


@dataclass(frozen=True)
class StopRules:
    """The stopping criteria of a request."""

    length: int
    """longest text, padding and prompt included [tokens]"""
    end_tokens: frozenset[int] = frozenset()
    """ids that end a text"""
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)
    """criteria that are asked after each token: all that are neither of the two"""
    pads: bool = False
    """whether `generate` writes padding after a text that has ended; otherwise it goes on until all have ended"""


def sort_criteria(criteria: StoppingCriteriaList) -> StopRules:
    """Sorts stopping criteria. Subclasses are asked after each token, since they may override anything.

    Raises:
        ParameterError: none of the criteria limits the length.
    """
    lengths = [int(rule.max_length) for rule in criteria if type(rule) is MaxLengthCriteria]
    if not lengths:
        raise ParameterError("Expected a limit on the length, such as max_new_tokens=256; got none.")
    ends = [rule for rule in criteria if type(rule) is EosTokenCriteria and not rule.eos_token_id.is_floating_point()]
    return StopRules(
        min(lengths),
        frozenset(token for rule in ends for token in rule.eos_token_id.flatten().tolist()),
        StoppingCriteriaList(r for r in criteria if type(r) is not MaxLengthCriteria and all(r is not e for e in ends)),
        any(hasattr(rule, "eos_token_id") for rule in criteria),
    )


class Stopper:
    """Cuts the new tokens of one text where a criterion ends it.

    Args:
        rules: the criteria. They are copied, so that a state which they keep begins anew for each text of a batch.
        input_ids: padding and prompt, `int64[tokens]`.
        scores: the scores of every token so far, which grow with the text; None if criteria get none.
    """

    def __init__(self, rules: StopRules, input_ids: torch.Tensor, scores: list[torch.Tensor] | None) -> None:
        self.criteria = StoppingCriteriaList(map(copy.copy, rules.criteria))
        self.room = max(rules.length - len(input_ids), 1)  # `generate` asks for the first time after a token
        self.stopped = False
        self._scores, self._new = scores, 0
        self._prompt = len(input_ids)
        self._text = torch.cat([input_ids, input_ids.new_empty(self.room)])[None] if self.criteria else input_ids[None]

    def cut(self, tokens: Sequence[int]) -> list[int]:
        """Adds tokens to the text until it ends, and returns those added."""
        if not self.criteria:
            return list(tokens)
        for count, token in enumerate(tokens, 1):
            self._text[0, self._prompt + self._new] = token
            self._new += 1
            scores = None if self._scores is None else tuple(self._scores[: self._new])
            if bool(torch.as_tensor(self.criteria(self._text[:, : self._prompt + self._new], scores)).all()):
                self.stopped = True
                return list(tokens[:count])
        return list(tokens)
