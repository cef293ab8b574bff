"""A draft that lacks the target's last tokens still drafts; a prompt with a token that the target lacks is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specgym.controllers.evaluation.live.runners import TransformersRunner
from specgym.env.common.errors import LimitError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import CausalDraft, LookupDraft
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.replay.recording.answers import write_answers
from specgym.env.replay.recording.recorder import Recorder, SupersetRule
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import VOCABULARY, generate, noisy_copy, tiny_target

OWN = 20
SETTINGS = [SamplingSettings(), SamplingSettings(1.0, seed=3), SamplingSettings(0.7, top_k=12, seed=1)]


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target(dtype=torch.float32)


@pytest.fixture(scope="module")
def draft(target: TargetModel) -> CausalDraft:
    """A noisy copy of the target without its last tokens, as beside a target whose vocabulary is padded."""
    with target.lent() as model:
        copy = noisy_copy(model)
    copy.resize_token_embeddings(OWN)
    return CausalDraft(CachedModel(copy), target.vocabulary)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("controller", ["fixed_tree", "dynamic_depth:source=both"])
@pytest.mark.parametrize("prompt", [(1, 5, 2, 5), (1, VOCABULARY - 1, 2, OWN)], ids=["known", "unknown"])
def test_a_draft_without_the_last_tokens_changes_no_text(
    target: TargetModel, draft: CausalDraft, sampling: SamplingSettings, controller: str, prompt: tuple[int, ...]
) -> None:
    request = Request(prompt, 48, sampling)
    plain = generate(target, LookupDraft(), request)
    drafted = generate(target, draft, request, controller)
    assert drafted.tokens == plain.tokens
    assert max(plain.tokens) >= OWN, "the test would be vacuous"
    assert drafted.accepted > 0


def test_a_text_with_unknown_tokens_is_recorded(target: TargetModel, draft: CausalDraft) -> None:
    request = Request((1, VOCABULARY - 1, 2, 5), 32, SETTINGS[1])
    tokens = (*request.prompt, *generate(target, LookupDraft(), request).tokens)
    table = Recorder(target, draft, SupersetRule(0.3, 4)).record(tokens, len(request.prompt), request.sampling)
    assert len(table) >= 31
    assert table.candidates(np.arange(len(table)), 2).tokens.max() < OWN


@pytest.mark.parametrize("token", [VOCABULARY, VOCABULARY + 1000, -1])
def test_a_prompt_with_a_token_that_the_target_lacks_is_refused(
    target: TargetModel, draft: CausalDraft, token: int
) -> None:
    """As after a token was added to the tokenizer alone."""
    request = Request((1, token, 2), 4)
    for answer in (
        lambda: LiveDecoder(target, draft).start(request),
        lambda: TransformersRunner(target)(request),
        lambda: list(write_answers(target, [Request((1, 2), 4), request])),
    ):
        with pytest.raises(LimitError, match=f"The prompt holds token {token}; this target has tokens 0 to 30"):
            answer()
