"""The default pair, in float32: its draft is useful, and the text is the target's own under every controller."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from specgym import env
from specgym.controllers.evaluation.checks.lossless import check_drafts, check_transformers
from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.run import run
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import DEFAULT_TARGET, ModelPair, encode_chat, load_pair
from specgym.env.drafts import CausalDraft, FeatureDraft
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request
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
    (case,) = check_drafts(pair.target, [other.draft], ["history"], [Request(prompt, TOKENS) for prompt in prompts])
    assert case.identical == len(TEXTS)
    assert 0 < case.accepted < case.drafted, "the test would be vacuous"


class Relay:
    """Controllers that take turns: each of them chooses the tree of every n-th round, whatever the text.

    Args:
        names: the controllers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.controllers = [make_controller(name) for name in names]
        self.drafted, self.accepted = [0] * len(names), [0] * len(names)
        self.turn = -1

    @property
    def observes_draft(self) -> bool:
        """Whether the controller of the next round wants the draft's opinion."""
        return self.controllers[(self.turn + 1) % len(self.controllers)].observes_draft

    def reset(self) -> None:
        """Begins a text; the turns go on."""
        for controller in self.controllers:
            controller.reset()

    def act(self, observation: Observation) -> TreeParameters:
        """Counts the last round for the controller that chose it, and lets the next one choose."""
        if observation.recent:
            self.drafted[self.turn] += observation.last_drafted
            self.accepted[self.turn] += observation.last_accepted
        self.turn = (self.turn + 1) % len(self.controllers)
        return self.controllers[self.turn].act(observation)


@pytest.mark.parametrize(("temperature", "texts"), [(0.0, slice(2)), (1.0, slice(1, 3))])
def test_whichever_controller_chooses_a_round_the_text_stays_as_it_is(
    pair: ModelPair, prompts: list[tuple[int, ...]], temperature: float, texts: slice
) -> None:
    """One text visits all controllers; tiny models decode whole texts with each (`checks/test_lossless.py`)."""
    names = [name for name in controller_names() if name != "autoregressive"]
    relay, decoder = Relay(names), LiveDecoder(pair.target, pair.draft)  # no costs: timing decides no choice
    for prompt in prompts[texts]:
        request = Request(prompt, 6 * TOKENS, SamplingSettings(temperature, seed=1), ignore_end=True)
        plain = run(decoder, make_controller("autoregressive"), request)
        steered = run(decoder, relay, request)
        assert steered.tokens == plain.tokens
    counts = zip(names, relay.accepted, relay.drafted, strict=True)
    assert [count for count in counts if not 0 < count[1] < count[2]] == [], "for these the test would be vacuous"


def test_plain_greedy_text_is_that_of_transformers(pair: ModelPair, prompts: list[tuple[int, ...]]) -> None:
    case = check_transformers(pair.target, pair.draft, prompts, TOKENS)
    assert case.identical == case.prompts == len(TEXTS)


def test_the_shipped_draft_guesses_nearly_every_other_token_and_its_card_says_so() -> None:
    agreement = json.loads((DRAFT / "training.json").read_text(encoding="utf-8"))["agreement"]["all"]
    assert agreement["top1"][0] >= 0.45
    assert agreement["positions"] > 1000
    card = (DRAFT / "README.md").read_text(encoding="utf-8")
    assert f"| all | {agreement['positions']:,} | top-1 | {int(1000 * agreement['top1'][0]) / 1000:.3f} |" in card
