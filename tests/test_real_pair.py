"""The default pair, in float32: its draft is worth its place, and the text is the target's own whatever steers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specgym import env
from specgym.controllers.evaluation.checks.lossless import check_drafts, check_transformers
from specgym.controllers.registry import controller_names
from specgym.env.decoding.pair import DEFAULT_TARGET, ModelPair, encode_chat, load_pair
from specgym.env.drafts import CausalDraft, FeatureDraft
from specgym.env.tree.sampling import SamplingSettings

pytestmark = pytest.mark.real_pair

DRAFT = Path(env.__file__).parent / "drafts" / "weights" / DEFAULT_TARGET
TEXTS = (
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "Translate to French: Where is the station?",
)
TOKENS = 16


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return load_pair(dtype="float32")


@pytest.fixture(scope="module")
def prompts(pair: ModelPair) -> list[tuple[int, ...]]:
    return [encode_chat(pair.tokenizer, [text]) for text in TEXTS]


def test_the_default_pair_is_the_target_and_the_draft_shipped_for_it(pair: ModelPair) -> None:
    assert pair.target_name == DEFAULT_TARGET
    assert isinstance(pair.draft, FeatureDraft)
    assert pair.draft_name == "feature"
    assert pair.tokenizer.eos_token_id in pair.target.end_tokens


def test_the_standalone_draft_leaves_the_text_as_it_is(pair: ModelPair, prompts: list[tuple[int, ...]]) -> None:
    other = pair.with_draft("standalone")
    assert isinstance(other.draft, CausalDraft)
    assert other.draft_name == "standalone"
    (case,) = check_drafts(
        pair.target, [other.draft], ["history"], prompts, sampling=SamplingSettings(), max_new_tokens=TOKENS
    )
    assert case.identical == len(TEXTS)
    assert 0 < case.accepted < case.drafted, "the test would be vacuous"


# Two texts each: every text is written one way or the other, the code both ways.
@pytest.mark.parametrize(("temperature", "texts"), [(0.0, slice(2)), (1.0, slice(1, 3))])
def test_every_controller_leaves_the_text_as_it_is(
    pair: ModelPair, prompts: list[tuple[int, ...]], temperature: float, texts: slice
) -> None:
    names = [name for name in controller_names() if name != "autoregressive"]
    sampling = SamplingSettings(temperature, seed=1)
    cases = check_drafts(pair.target, [pair.draft], names, prompts[texts], sampling=sampling, max_new_tokens=TOKENS)
    assert {case.runner: case.identical for case in cases} == dict.fromkeys(names, 2)
    assert all(0 < case.accepted < case.drafted for case in cases), "the test would be vacuous"


def test_plain_greedy_text_is_that_of_transformers(pair: ModelPair, prompts: list[tuple[int, ...]]) -> None:
    case = check_transformers(pair.target, pair.draft, prompts, TOKENS)
    assert case.identical == case.prompts == len(TEXTS)


def test_the_shipped_draft_guesses_nearly_every_other_token_and_its_card_says_so() -> None:
    agreement = json.loads((DRAFT / "training.json").read_text(encoding="utf-8"))["agreement"]["all"]
    assert agreement["top1"][0] >= 0.45
    assert agreement["positions"] > 1000
    card = (DRAFT / "README.md").read_text(encoding="utf-8")
    assert f"| all | {agreement['positions']:,} | top-1 | {int(1000 * agreement['top1'][0]) / 1000:.3f} |" in card
