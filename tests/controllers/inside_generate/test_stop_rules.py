"""A text ends where `generate` ends it, whatever criteria the user gives, and in whatever form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StoppingCriteria, StoppingCriteriaList

from specgym.controllers.inside_generate.stop_rules import sort_criteria
from specgym.env.common.errors import ParameterError
from tests.controllers.inside_generate.conftest import Compared

END = 46  # a token of the text
FORMS = {
    "int": END,
    "list": [1, END],
    "tuple": (END,),
    "nested list": [[END]],
    "tensor": torch.tensor(END),
    "tensor of one": torch.tensor([END]),
    "two-dimensional tensor": torch.tensor([[END, 1]]),
    "int32 tensor": torch.tensor([END], dtype=torch.int32),
    "list of tensors": [torch.tensor(END)],
    "array": np.array([1, END]),
    "number": np.int64(END),
}


class Later(MaxLengthCriteria):  # type: ignore[misc]  # transformers is not typed
    """Allows two tokens more than its base class."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([input_ids.shape[1] >= self.max_length + 2])


class OnlySecond(EosTokenCriteria):  # type: ignore[misc]  # transformers is not typed
    """Ends a text where an end token comes for the second time."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.isin(input_ids, self.eos_token_id).sum(dim=1) >= 2


class Likely(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Ends a text after a token whose scores so far have a mean maximum above `most`."""

    def __init__(self, most: float) -> None:
        self.most, self.steps = most, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.steps += 1
        assert len(scores) == self.steps
        return torch.tensor([sum(float(step.max()) for step in scores) / len(scores) > self.most and self.steps > 3])


@pytest.mark.parametrize("where", ["argument", "configuration"])
@pytest.mark.parametrize("form", FORMS)
def test_end_tokens_end_the_text_in_every_form(compared: Compared, form: str, where: str) -> None:
    end = FORMS[form]
    if where == "argument":
        text = compared.assert_same(eos_token_id=end, pad_token_id=0)
    else:
        config = compared.model.generation_config
        before, config.eos_token_id = config.eos_token_id, end
        try:
            text = compared.assert_same(pad_token_id=0)
        finally:
            config.eos_token_id = before
    assert text[0, -1] == END
    assert text.shape[1] < compared.plain(eos_token_id=None).shape[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: [MaxLengthCriteria(max_length=13)],
        lambda: [MaxLengthCriteria(max_length=3)],  # shorter than the prompt
        lambda: [EosTokenCriteria(eos_token_id=[END])],
        lambda: [EosTokenCriteria(eos_token_id=38), MaxLengthCriteria(max_length=11)],
        lambda: [Later(11)],
        lambda: [OnlySecond([END])],
        lambda: [MaxTimeCriteria(max_time=0.0, initial_timestamp=0.0)],
    ],
    ids=["length", "short", "end", "both", "own length", "own end", "time"],
)
def test_the_users_own_criteria_are_kept(compared: Compared, make: Any) -> None:
    plain = compared.plain(stopping_criteria=StoppingCriteriaList(make()))
    ours = compared.ours(stopping_criteria=StoppingCriteriaList(make()))
    assert ours.tolist() == plain.tolist()
    assert plain.shape[1] < compared.plain(eos_token_id=None).shape[1]


def test_a_time_limit_ends_the_text_after_a_token(compared: Compared) -> None:
    assert compared.ours(max_time=1e-9).shape[1] == compared.prompt.shape[1] + 1


def test_criteria_are_given_scores_where_generate_gives_them(compared: Compared) -> None:
    request = {"return_dict_in_generate": True, "output_scores": True}
    plain = compared.plain(stopping_criteria=StoppingCriteriaList([Likely(3.0)]), **request)
    ours = compared.ours(stopping_criteria=StoppingCriteriaList([Likely(3.0)]), **request)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert len(ours.scores) == ours.sequences.shape[1] - compared.prompt.shape[1]


def test_a_request_without_a_limit_is_refused() -> None:
    with pytest.raises(ParameterError, match="limit on the length"):
        sort_criteria(StoppingCriteriaList([EosTokenCriteria(eos_token_id=3)]))
