"""Batches: the rows of `generate`, in its order and with its padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList

from specgym.controllers.inside_generate.text_rows import visible_tokens
from specgym.env.common.errors import LimitError, ParameterError
from tests.controllers.inside_generate.conftest import Compared
from tests.support.tiny_pair import CONTEXT, SPECIAL

PAD = SPECIAL.index("<pad>")


def left_padded(*prompts: list[int]) -> dict[str, torch.Tensor]:
    """Prompts as a tokenizer with padding on the left returns them."""
    longest = max(map(len, prompts))
    inputs = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"inputs": inputs, "attention_mask": mask}


BATCH = left_padded([40, 41, 40, 41, 40], [9, 8, 7], [50, 60, 50, 60, 50, 60, 50], [20])


class NoEven(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Forbids even tokens in every second call, so that it depends on its calls so far."""

    calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls % 2:
            scores[:, ::2] = -torch.inf
        return scores


class Remembering(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Keeps all scores in a list, and adds a part of the last ones."""

    def __init__(self) -> None:
        self.history: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores + (0.3 * self.history[-1] if self.history else 0)
        self.history.append(scores)
        return scores


class OnToken(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Ends a text at tokens above 60."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, -1] > 60


class TestRows:
    @pytest.mark.parametrize(
        "request_of",
        [
            {},
            {"repetition_penalty": 1.4},
            {"encoder_repetition_penalty": 1.5},
            {"encoder_no_repeat_ngram_size": 1},
            {"no_repeat_ngram_size": 2, "min_new_tokens": 10},
            {"prefix_allowed_tokens_fn": lambda row, text: [30 + row, 40, int(text[-1]) // 2 + 30]},
            {"logits_processor": [NoEven()]},
            {"stopping_criteria": StoppingCriteriaList([OnToken()])},
            {"stopping_criteria": StoppingCriteriaList([OnToken()]), "eos_token_id": None},
            {"eos_token_id": [46, 38], "pad_token_id": 5},
            {"max_new_tokens": 1},
        ],
        ids=lambda request: "-".join(request) or "plain",
    )
    def test_rows_are_those_of_generate(self, compared: Compared, request_of: dict[str, Any]) -> None:
        """Rows that end early are padded, or go on where no end token is set, as in `generate`."""
        compared.assert_same(**(BATCH | request_of))

    def test_no_row_sees_what_a_processor_keeps_of_another(self, compared: Compared) -> None:
        texts = [call(**BATCH, logits_processor=[Remembering()]).tolist() for call in (compared.plain, compared.ours)]
        assert texts[0] == texts[1]

    def test_a_second_prompt_is_refused_before_the_first_row(self, compared: Compared) -> None:
        rounds: list[object] = []

        class Listening:
            observes_draft = False

            def reset(self) -> None:
                rounds.append(self)

            def act(self, observation: object) -> object:
                raise AssertionError

        with pytest.raises(ParameterError, match="guidance_scale"):
            compared.ours(**BATCH, guidance_scale=1.5, controller=Listening())
        assert rounds == []

    def test_some_rows_end_early(self, compared: Compared) -> None:
        output = compared.ours(**BATCH, stopping_criteria=StoppingCriteriaList([OnToken()]))
        assert len({int((row == PAD).sum()) for row in output}) > 2, "the test above would be vacuous"

    def test_a_row_is_the_text_of_its_prompt_alone(self, compared: Compared) -> None:
        rows = compared.ours(**BATCH, eos_token_id=None)
        for row, prompt, mask in zip(rows, BATCH["inputs"], BATCH["attention_mask"], strict=True):
            alone = compared.plain(inputs=prompt[mask != 0][None], eos_token_id=None)
            assert row[mask.shape[0] :].tolist() == alone[0, mask.sum() :].tolist()

    def test_a_mask_that_transformers_infers_counts(self, compared: Compared) -> None:
        compared.assert_same(inputs=BATCH["inputs"])

    def test_one_padded_text_is_taken(self, compared: Compared) -> None:
        one = {name: value[1:2] for name, value in BATCH.items()}
        compared.assert_same(**one, repetition_penalty=1.4, no_repeat_ngram_size=2)


class TestSeveralSequences:
    def sample(self, compared: Compared, **request: Any) -> list[list[int]]:
        options = {"do_sample": True, "seed": 5, "eos_token_id": None, "temperature": 2.0} | request
        output: list[list[int]] = compared.ours(**options).tolist()
        return output

    def test_sequences_of_a_prompt_follow_one_another_and_differ(self, compared: Compared) -> None:
        rows = self.sample(compared, **BATCH, num_return_sequences=3)
        width = BATCH["inputs"].shape[1]
        assert [row[:width] for row in rows] == BATCH["inputs"].repeat_interleave(3, dim=0).tolist()
        assert len({tuple(row[width:]) for row in rows}) == len(rows)

    def test_every_row_is_sampled_with_the_next_seed(self, compared: Compared) -> None:
        rows = self.sample(compared, num_return_sequences=3)
        assert rows == [self.sample(compared, seed=5 + row)[0] for row in range(3)]


class TestRefused:
    @pytest.mark.parametrize("hidden", [[1, 1, 0], [1, 0, 1], [0, 0, 0]], ids=["right", "middle", "all"])
    def test_padding_elsewhere_is_refused(self, compared: Compared, hidden: list[int]) -> None:
        with pytest.raises(LimitError, match="Expected padding on the left only"):
            compared.ours(inputs=torch.tensor([[9, 8, 7], [6, 5, 4]]), attention_mask=torch.tensor([[1] * 3, hidden]))

    @pytest.mark.parametrize(
        "mask",
        [torch.ones(1, 1, 3, 3).tril(), torch.tensor([[0.5, 1, 1]]), torch.ones(1, 5)],
        ids=["4D", "half", "wide"],
    )
    def test_other_masks_are_refused(self, mask: torch.Tensor) -> None:
        with pytest.raises(ParameterError, match="attention_mask of zeros and ones"):
            visible_tokens(torch.tensor([[9, 8, 7]]), mask)

    def test_a_prompt_that_does_not_fit_is_refused_before_the_others_are_read(self, compared: Compared) -> None:
        prompts = left_padded([9, 8], [9] * CONTEXT)
        forwards: list[object] = []
        hook = compared.model.register_forward_pre_hook(lambda *_: forwards.append(1))
        try:
            with pytest.raises(LimitError, match=f"has {CONTEXT} tokens"):
                compared.ours(**prompts)
        finally:
            hook.remove()
        assert not forwards

    def test_listeners_hear_one_text_only(self, compared: Compared) -> None:
        with pytest.raises(LimitError, match="one text with streamer or on_tokens; got 4"):
            compared.ours(**BATCH, on_tokens=print)
