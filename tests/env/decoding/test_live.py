"""Live decoding: limits and ends are kept to the token, and errors leave nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from specgym.controllers.registry import controller_names, make_controller
from specgym.controllers.run import run
from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import LimitError, NumericalError, ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import CausalDraft, Draft, LookupDraft
from specgym.env.drafts.calibrator import CalibrationMap, Calibrator
from specgym.env.models.target import CachedModel, TargetModel
from specgym.env.tree.growth import Candidates
from specgym.env.tree.observation import PastRound
from specgym.env.tree.parameters import PLAIN, SOURCES, Source, TreeParameters
from specgym.env.tree.rounds import FinishReason, Request
from specgym.env.tree.sampling import SamplingSettings
from specgym.env.tree.tree import TokenTree
from tests.support.tiny_models import (
    DRAFT_KINDS,
    VOCABULARY,
    causal_draft,
    chain,
    feature_draft,
    generate,
    make_draft,
    make_prompt,
    rounds_until_the_end,
    tiny_llama,
    tiny_target,
)

CONTROLLERS = pytest.mark.parametrize("controller", controller_names())
KINDS = pytest.mark.parametrize("kind", DRAFT_KINDS)
PROMPT = make_prompt(0)
DEEP = TreeParameters(base_depth=20, max_depth=20, min_branch=1, mid_branch=2, max_branch=2)
_CURVE = CalibrationMap(np.full(2, 0.7), np.full(2, 0.7), np.full(2, 0.4), np.array([[0.1, -0.9]]))
CALIBRATOR = Calibrator(greedy=_CURVE, sampled=_CURVE)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    """A target whose texts never end by themselves."""
    return tiny_target()


@pytest.fixture(scope="module")
def echo(target: TargetModel) -> CausalDraft:
    """A draft whose first candidate is always right."""
    return causal_draft(target, 0.0)


def tiny_gpt2(context: int) -> GPT2LMHeadModel:
    """A model that breaks when it is fed a position past its context, as learned positions do."""
    torch.manual_seed(1)
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": context}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape, initializer_range=0.3)).double().eval()


class TestLimits:
    @CONTROLLERS
    @pytest.mark.parametrize("wanted", range(1, 13))
    def test_the_text_has_the_requested_tokens_and_not_one_more(
        self, target: TargetModel, echo: Draft, controller: str, wanted: int
    ) -> None:
        whole = generate(target, echo, Request(PROMPT, 12)).tokens
        generation = generate(target, echo, Request(PROMPT, wanted), controller)
        assert generation.tokens == whole[:wanted]
        assert generation.finished is FinishReason.TOKEN_LIMIT

    @KINDS
    @pytest.mark.parametrize("length", [6, 19, 22, 23])
    def test_the_context_is_used_to_its_end_by_the_deepest_trees(self, kind: str, length: int) -> None:
        target = tiny_target(max_position_embeddings=24)
        draft = causal_draft(target, 0.0) if kind == "causal" else make_draft(kind, target)
        request = Request(make_prompt(3, length), 100)
        plain = generate(target, draft, request)
        decoder = LiveDecoder(target, draft)
        outcome = decoder.start(request)
        while outcome.finished is None:
            outcome = decoder.round(DEEP)
        assert outcome.finished is plain.finished is FinishReason.CONTEXT_LIMIT
        assert len(decoder.tokens) == 24
        assert decoder.tokens[length:] == plain.tokens

    def test_learned_positions_are_never_fed_past_the_context(self) -> None:
        target = TargetModel(tiny_gpt2(24), frozenset())
        generation = generate(target, causal_draft(target, 0.0), Request(make_prompt(3, 6), 100), "fixed_tree:depth=8")
        assert len(generation.tokens) == 18
        assert generation.accepted > 0, "the test would be vacuous"

    def test_a_draft_with_a_shorter_context_drafts_as_far_as_it_can_see(self, target: TargetModel) -> None:
        draft = CausalDraft(CachedModel(tiny_gpt2(20)), target.vocabulary)
        request = Request(PROMPT, 40)
        decoder = LiveDecoder(target, draft)
        decoder.start(request)
        drafted_at = {}
        while decoder.under_way:
            length = len(decoder.tokens)
            drafted_at[length] = decoder.round(DEEP).depth
        assert decoder.tokens[len(PROMPT) :] == generate(target, draft, request).tokens
        # The last row that it can read is that of the node at depth 20 - length, whose children are one deeper.
        assert max(length + depth for length, depth in drafted_at.items() if depth) == 21
        assert drafted_at[len(PROMPT) + 1] > 5
        assert drafted_at[max(drafted_at)] == 0

    def test_a_prompt_longer_than_the_drafts_context_is_decoded_plainly(self, target: TargetModel) -> None:
        draft = CausalDraft(CachedModel(tiny_gpt2(20)), target.vocabulary)
        request = Request(make_prompt(1, 30), 10)
        generation = generate(target, draft, request, "fixed_tree")
        assert generation.drafted == 0
        assert generation.tokens == generate(target, LookupDraft(), request).tokens

    @pytest.mark.parametrize(
        "sampling", [SamplingSettings(), SamplingSettings(1.0, seed=3)], ids=["greedy", "sampling"]
    )
    def test_past_the_drafts_context_lookup_continues_alone(
        self, target: TargetModel, sampling: SamplingSettings
    ) -> None:
        draft = CausalDraft(CachedModel(tiny_gpt2(20)), target.vocabulary)
        request = Request(make_prompt(1, 16), 90, sampling)
        decoder, sources = LiveDecoder(target, draft), itertools.cycle(SOURCES)
        decoder.start(request)
        past = {source: [] for source in SOURCES}
        while decoder.under_way:
            source, length, before = next(sources), len(decoder.tokens), draft.forward_seconds
            outcome = decoder.round(dataclasses.replace(DEEP, source=source))
            if length > 20:
                past[source].append(outcome)
                assert outcome.drafted_lookup == outcome.drafted
                assert draft.forward_seconds == before
        assert decoder.tokens[16:] == generate(target, draft, request).tokens
        assert sum(outcome.drafted for outcome in past["model"]) == 0 < len(past["model"])
        assert sum(outcome.drafted for outcome in past["lookup"]) > 0
        assert sum(outcome.drafted for outcome in past["both"]) > 0

    def test_a_prompt_that_fills_the_context_is_refused_with_the_most_that_fits(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, LookupDraft())
        with pytest.raises(LimitError, match=r"has 128 tokens; .* at most 128, .*Shorten the prompt to 127 tokens"):
            decoder.start(Request((3,) * 128))
        assert decoder.start(Request((3,) * 127)).finished is FinishReason.CONTEXT_LIMIT

    def test_an_empty_prompt_is_refused(self) -> None:
        with pytest.raises(LimitError, match="prompt is empty"):
            Request(())

    @pytest.mark.parametrize("limit", [0, -3])
    def test_a_limit_that_is_not_positive_is_refused(self, limit: int) -> None:
        with pytest.raises(LimitError, match=f"max_new_tokens must be 1 or more; got {limit}"):
            Request((1,), limit)

    @KINDS
    def test_a_prompt_of_one_token_is_enough(self, target: TargetModel, kind: str) -> None:
        draft, request = make_draft(kind, target), Request((5,), 20)
        assert generate(target, draft, request, "fixed_tree").tokens == generate(target, draft, request).tokens


class TestEndOfSequence:
    @pytest.mark.parametrize("depth", [1, 3, 7, 30])
    @KINDS
    def test_an_end_anywhere_in_an_accepted_path_is_the_end(self, kind: str, depth: int) -> None:
        """Every token of the text is tried as the end; the echo draft has it accepted with all that follows it."""
        target = tiny_target()
        draft = causal_draft(target, 0.0) if kind == "causal" else make_draft(kind, target)
        whole = generate(target, draft, Request(PROMPT, 30)).tokens
        cropped = 0
        for end_token in set(whole):
            target.end_tokens = frozenset({end_token})
            decoder = LiveDecoder(target, draft)
            outcome = decoder.start(Request(PROMPT, 30))
            generated, accepted, rounds = list(outcome.tokens), 0, 1
            while outcome.finished is None:
                outcome = decoder.round(chain(depth))
                generated += outcome.tokens
                accepted += outcome.accepted
                rounds += 1
            assert generated == whole[: whole.index(end_token) + 1]
            assert decoder.tokens == [*PROMPT, *generated]
            assert outcome.finished is FinishReason.END_OF_SEQUENCE
            assert target.cache.length == len(decoder.tokens) - 1
            # Where the end was itself a draft token, there is no bonus token after it.
            ended_within = outcome.accepted == len(outcome.tokens)
            assert accepted + rounds - ended_within == len(generated)
            cropped += ended_within
        assert cropped > 0 or kind != "causal", "the test would be vacuous"

    def test_a_text_that_ignores_its_end_goes_on(self, target: TargetModel, echo: Draft) -> None:
        whole = generate(target, echo, Request(PROMPT, 20)).tokens
        ending = TargetModel(tiny_llama(), frozenset(whole[:2]))
        for controller in ("autoregressive", "fixed_tree"):
            generation = generate(ending, echo, Request(PROMPT, 20, ignore_end=True), controller)
            assert generation.tokens == whole
            assert generation.finished is FinishReason.TOKEN_LIMIT
        assert generate(ending, echo, Request(PROMPT, 20), "fixed_tree").tokens == whole[:1]

    def test_the_ends_are_those_of_the_models_generation_settings(self) -> None:
        model = tiny_llama()
        assert TargetModel(model).end_tokens == frozenset()
        model.generation_config.eos_token_id = [4, 9]
        assert TargetModel(model).end_tokens == {4, 9}
        model.generation_config.eos_token_id = None
        model.config.eos_token_id = 7
        assert TargetModel(model).end_tokens == {7}


@contextlib.contextmanager
def interrupted(target: TargetModel) -> Iterator[None]:
    """The user presses Ctrl-C while the target is at work."""
    forward = target._forward

    def press(*arguments: object) -> None:
        forward(*arguments)
        raise KeyboardInterrupt

    target._forward = press  # type: ignore[assignment, method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        target._forward = forward  # type: ignore[method-assign]


def assert_refuses_to_go_on(decoder: LiveDecoder) -> None:
    for parameters in (PLAIN, TreeParameters()):
        with pytest.raises(RuntimeError, match=r"No text is under way: call start\(\)"):
            decoder.round(parameters)


class TestErrors:
    def test_a_round_needs_a_request(self, target: TargetModel, echo: Draft) -> None:
        decoder = LiveDecoder(target, echo)
        assert_refuses_to_go_on(decoder)
        decoder.start(Request(PROMPT, 1))
        assert_refuses_to_go_on(decoder)

    @pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(1.0)], ids=["greedy", "sampling"])
    def test_a_target_that_returns_nan_ends_the_text(self, sampling: SamplingSettings) -> None:
        target = tiny_target()
        weights = target.model.lm_head.weight
        decoder, whole = LiveDecoder(target, causal_draft(target)), weights.detach().clone()
        decoder.start(Request(PROMPT, 20, sampling))
        weights.data[5, 5] = torch.nan
        with pytest.raises(NumericalError, match="target returned NaN"):
            decoder.round(TreeParameters())
        assert_refuses_to_go_on(decoder)
        with pytest.raises(NumericalError, match="target returned NaN"):
            decoder.start(Request(PROMPT, 20, sampling))
        assert_refuses_to_go_on(decoder)
        weights.data.copy_(whole)
        self.assert_as_new(decoder)

    def test_a_draft_that_returns_nan_ends_the_text(self, target: TargetModel) -> None:
        draft = causal_draft(target)
        decoder = LiveDecoder(target, draft)
        decoder.start(Request(PROMPT, 20))
        weights = draft.model.model.lm_head.weight
        whole = weights.detach().clone()
        weights.data[5, 5] = torch.nan
        with pytest.raises(NumericalError, match="draft returned NaN"):
            decoder.round(TreeParameters())
        assert_refuses_to_go_on(decoder)
        weights.data.copy_(whole)
        self.assert_as_new(decoder)

    @KINDS
    @pytest.mark.parametrize("parameters", [PLAIN, TreeParameters()], ids=["plain", "tree"])
    def test_an_interrupted_round_cannot_be_continued(
        self, target: TargetModel, kind: str, parameters: TreeParameters
    ) -> None:
        decoder = LiveDecoder(target, make_draft(kind, target))
        decoder.start(Request(PROMPT, 20))
        decoder.round(parameters)
        with interrupted(target):
            decoder.round(parameters)
        assert_refuses_to_go_on(decoder)
        self.assert_as_new(decoder)

    def test_a_start_that_failed_leaves_no_text_under_way(self, target: TargetModel, echo: Draft) -> None:
        decoder = LiveDecoder(target, echo)
        with pytest.raises(LimitError):
            decoder.start(Request((3, VOCABULARY, 4)))
        assert_refuses_to_go_on(decoder)
        self.assert_as_new(decoder)

    @KINDS
    def test_an_abandoned_text_leaves_nothing_behind(self, target: TargetModel, kind: str) -> None:
        decoder = LiveDecoder(target, make_draft(kind, target))
        decoder.start(Request(make_prompt(9, 20), 100, SamplingSettings(1.3, top_k=4, seed=8)))
        rounds_until_the_end(decoder, [TreeParameters(), PLAIN, chain(3)])
        assert decoder.under_way
        self.assert_as_new(decoder)

    def assert_as_new(self, decoder: LiveDecoder) -> None:
        """The next texts are those of a decoder that did nothing before."""
        for sampling in (SamplingSettings(), SamplingSettings(1.0, seed=4)):
            request = Request(make_prompt(2), 25, sampling)
            expected = generate(tiny_target(), LookupDraft(), request)
            found = run(decoder, make_controller("confidence"), request)
            assert found.tokens == expected.tokens
            assert found.drafted > 0, "the test would be vacuous"


class UnaskedDraft(LookupDraft):
    """A draft that must not run."""

    def expand(self, tree: TokenTree, nodes: IntArray, k: int) -> Candidates:
        raise AssertionError("plain decoding asked the draft")


class TestSharing:
    def test_plain_decoding_never_asks_the_draft(self, target: TargetModel, echo: CausalDraft) -> None:
        before = echo.forward_seconds
        for draft in (UnaskedDraft(), echo):
            generation = generate(target, draft, Request(PROMPT, 10))
            assert (generation.drafted, generation.accepted, generation.rounds) == (0, 0, 10)
        assert echo.forward_seconds == before
        with pytest.raises(AssertionError, match="asked the draft"):
            generate(target, UnaskedDraft(), Request(PROMPT, 10), "fixed_tree")

    def test_decoders_with_different_drafts_can_take_turns_on_one_target(self, target: TargetModel) -> None:
        decoders = [LiveDecoder(target, make_draft(kind, target)) for kind in DRAFT_KINDS]
        request = Request(PROMPT, 20)
        texts = [run(decoder, make_controller("fixed_tree"), request).tokens for decoder in decoders * 2]
        assert texts == [generate(target, LookupDraft(), request).tokens] * 6

    def test_a_lent_target_is_unchanged_and_ready_afterwards(self) -> None:
        target = TargetModel(tiny_llama(), frozenset())
        draft, request, text = feature_draft(target), Request(PROMPT, 20), torch.tensor([PROMPT])
        before = generate(target, draft, request, "fixed_tree").tokens
        untouched = tiny_llama()
        with target.lent() as model, torch.inference_mode():
            assert model.config._attn_implementation == untouched.config._attn_implementation
            assert not model.get_decoder()._forward_hooks
            torch.testing.assert_close(model(text).logits, untouched(text).logits)
        assert generate(target, draft, request, "fixed_tree").tokens == before


class TestObservation:
    def test_it_shows_the_texts_position_and_the_last_round(self, target: TargetModel, echo: Draft) -> None:
        decoder = LiveDecoder(target, echo)
        decoder.start(Request(PROMPT, 20))
        seen = decoder.observe()
        assert (seen.position, seen.generated, seen.remaining) == (len(PROMPT), 1, 19)
        assert (seen.last_drafted, seen.last_depth, seen.last_accepted) == (0, 0, 0)
        outcome = decoder.round(TreeParameters(3, 3, 2, 2, 2, node_budget=5))
        assert (outcome.drafted, outcome.accepted, len(outcome.tokens)) == (5, outcome.depth, outcome.depth + 1)
        seen = decoder.observe()
        assert seen.position == len(decoder.tokens) - 1
        assert seen.generated + len(PROMPT) == len(decoder.tokens)
        assert seen.generated + seen.remaining == 20
        assert (seen.last_drafted, seen.last_depth, seen.last_accepted) == (5, outcome.depth, outcome.accepted)

    def test_it_shows_lookups_match_and_rate(self, target: TargetModel, echo: Draft) -> None:
        decoder, matches = LiveDecoder(target, echo), set()
        decoder.start(Request(make_prompt(1, 10), 60))
        before = echo.forward_seconds
        while decoder.under_way:
            seen, text = decoder.observe(), decoder.tokens
            ends = range(2, len(text))
            longest = max((m for end in ends for m in range(2, 17) if text[:end][-m:] == text[-m:]), default=0)
            assert seen.lookup_match == longest
            assert (0 < seen.lookup_rate < 1) if longest else seen.lookup_rate == 0
            matches.add(longest)
            decoder.round(PLAIN)
        assert echo.forward_seconds == before
        assert {0, 2, 3} <= matches, "the test would be vacuous"

    @KINDS
    def test_outcomes_count_the_nodes_that_lookup_alone_proposed(self, target: TargetModel, kind: str) -> None:
        decoder, sources = LiveDecoder(target, make_draft(kind, target)), itertools.cycle(SOURCES)
        told: dict[str, list[int]] = {source: [0] * 4 for source in SOURCES}
        for seed in range(6):
            decoder.start(Request(make_prompt(seed, 12), 90, SamplingSettings(1.0, top_k=2, seed=seed)))
            while decoder.under_way:
                source = next(sources)
                outcome = decoder.round(dataclasses.replace(DEEP, source=source))
                counts = outcome.drafted, outcome.drafted_lookup, outcome.accepted, outcome.accepted_lookup
                told[source] = [total + count for total, count in zip(told[source], counts, strict=True)]
                assert outcome.accepted_lookup <= min(outcome.drafted_lookup, outcome.accepted)
        for source, (drafted, drafted_lookup, accepted, accepted_lookup) in told.items():
            assert 0 < accepted < drafted, "the test would be vacuous"
            if source == "lookup" or kind == "lookup":
                assert (drafted_lookup, accepted_lookup) == (drafted, accepted)
            elif source == "model":
                assert (drafted_lookup, accepted_lookup) == (0, 0)
            else:
                assert 0 < drafted_lookup < drafted
                assert 0 < accepted_lookup < accepted

    def test_the_node_budget_bounds_the_verified_nodes(self, target: TargetModel, echo: Draft) -> None:
        decoder, rows = LiveDecoder(target, echo), []
        hook = target.model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: rows.append(output.shape[-2])
        )
        decoder.start(Request(PROMPT, 50))
        drafted = [
            decoder.round(TreeParameters(4, 4, 2, 2, 2, node_budget=budget)).drafted for budget in (1, 7, 29, 99)
        ]
        hook.remove()
        assert drafted == [1, 7, 29, 30]
        assert rows == [len(PROMPT), 2, 8, 30, 31]

    def test_it_remembers_the_last_ten_rounds(self, target: TargetModel) -> None:
        decoder, rounds = LiveDecoder(target, causal_draft(target)), []
        parameters = itertools.cycle([TreeParameters(), PLAIN, chain(2)])
        decoder.start(Request(PROMPT, 60, SamplingSettings(1.0)))
        while decoder.under_way:
            seen = decoder.observe()
            assert seen.recent == tuple(rounds[-10:])
            assert not seen.greedy
            outcome = decoder.round(next(parameters))
            rounds.append(PastRound(outcome.drafted, outcome.depth, outcome.accepted))
        assert len(rounds) > 12, "the test would be vacuous"
        decoder.start(Request(PROMPT, 60))
        assert (decoder.observe().recent, decoder.observe().greedy) == ((), True)

    def test_at_the_end_it_shows_the_finished_text(self, target: TargetModel, echo: Draft) -> None:
        decoder = LiveDecoder(target, echo)
        decoder.start(Request(PROMPT, 12))
        rounds_until_the_end(decoder, [chain(3)] * 12)
        before = echo.forward_seconds
        for draft in (False, True):
            seen = decoder.observe(draft)
            assert (seen.generated, seen.remaining, seen.root_log_probs) == (12, 0, ())
        assert echo.forward_seconds == before
        assert len(seen.recent) == 3

    def test_it_needs_a_text(self, target: TargetModel, echo: Draft) -> None:
        decoder = LiveDecoder(target, echo)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="No text is under way"):
                decoder.observe()
            decoder.start(Request(PROMPT, 20))
            with interrupted(target):
                decoder.round(PLAIN)

    def test_the_machines_costs_are_those_at_the_texts_length(self, target: TargetModel, echo: Draft) -> None:
        class Rates:
            def level_cost(self, context: int) -> float:
                return context / 100

            def row_cost(self, context: int) -> float:
                return context / 1000

        decoder = LiveDecoder(target, echo, Rates())
        decoder.start(Request(PROMPT, 20))
        seen = decoder.observe()
        assert (seen.level_cost, seen.row_cost) == (0.09, 0.009)
        unknown = LiveDecoder(target, echo)
        unknown.start(Request(PROMPT, 20))
        assert (unknown.observe().level_cost, unknown.observe().row_cost) == (0, 0)

    def test_the_last_tree_and_what_was_accepted_of_it_can_be_seen(self, target: TargetModel) -> None:
        decoder, accepted = LiveDecoder(target, causal_draft(target)), 0
        decoder.start(Request(PROMPT, 40))
        assert decoder.tree.token.tolist() == [PROMPT[-1]]
        while decoder.under_way:
            before = list(decoder.tokens)
            outcome = decoder.round(TreeParameters())
            assert decoder.tree.token[0] == before[-1]
            assert len(decoder.tree) == 1 + outcome.drafted
            path = decoder.tree.token[decoder.accepted].tolist()
            assert decoder.tokens[len(before) :][: len(path)] == path
            assert len(path) == outcome.accepted
            accepted += len(path)
        assert accepted > 0, "the test would be vacuous"


SETTINGS = pytest.mark.parametrize(
    "sampling", [SamplingSettings(), SamplingSettings(1.0, top_k=8, seed=3)], ids=["greedy", "sampling"]
)
SHAPES = (
    TreeParameters(base_depth=3, max_depth=3),
    PLAIN,
    TreeParameters(base_depth=4, max_depth=4, min_branch=2, mid_branch=2, max_branch=2, calibrated=False),
    chain(3),
    TreeParameters(base_depth=2, max_depth=2, min_branch=4, mid_branch=4, max_branch=4),
)


class TestObservedDraft:
    @KINDS
    @SETTINGS
    @pytest.mark.parametrize("source", SOURCES)
    def test_observing_the_draft_changes_no_token_and_no_tree(
        self, kind: str, sampling: SamplingSettings, source: Source
    ) -> None:
        target, trees = tiny_target(), {}
        for observed in (False, True):
            draft = make_draft(kind, target)
            draft.calibrator = None if kind == "lookup" else CALIBRATOR
            decoder, shapes = LiveDecoder(target, draft), itertools.cycle(SHAPES)
            trees[observed] = []
            for seed in range(3):
                decoder.start(Request(make_prompt(seed, 12), 60, sampling))
                while decoder.under_way:
                    seen = decoder.observe(observed)
                    assert bool(seen.root_log_probs) == (observed and kind != "lookup")
                    outcome = decoder.round(dataclasses.replace(next(shapes), source=source))
                    tree = decoder.tree
                    shape = tree.token.tolist(), tree.parent.tolist(), tree.log_prob.tolist()
                    trees[observed].append((outcome.tokens, outcome.accepted, *shape))
        assert trees[True] == trees[False]
        assert sum(accepted for _, accepted, *_ in trees[True]) > 0, "the test would be vacuous"

    @SETTINGS
    def test_it_shows_the_drafts_candidates_at_the_root(self, target: TargetModel, sampling: SamplingSettings) -> None:
        draft, compared = causal_draft(target), 0
        draft.calibrator = CALIBRATOR  # not seen in what is observed
        decoder = LiveDecoder(target, draft)
        decoder.start(Request(PROMPT, 30, sampling))
        raw = dataclasses.replace(chain(1), min_branch=4, mid_branch=4, max_branch=4, calibrated=False)
        while decoder.under_way:
            seen = decoder.observe(draft=True)
            assert list(seen.root_log_probs) == sorted(seen.root_log_probs, reverse=True)
            assert decoder.observe().root_log_probs == (), "it was not asked for"
            if decoder.round(raw).drafted:
                assert seen.root_log_probs == tuple(decoder.tree.log_prob[1:])
                compared += 1
        assert compared > 3, "the test would be vacuous"

    @pytest.mark.parametrize("kind", ["causal", "feature"])
    @pytest.mark.parametrize("parameters", [chain(2), PLAIN, dataclasses.replace(chain(2), source="lookup")])
    def test_its_forward_runs_once_and_counts_to_the_round(self, kind: str, parameters: TreeParameters) -> None:
        target = tiny_target()
        draft = make_draft(kind, target)
        decoder = LiveDecoder(target, draft)
        decoder.start(Request(PROMPT, 40))
        while decoder.under_way:
            if decoder.limit - len(decoder.tokens) < 3:
                break  # too few tokens are left for a tree
            before, owed = draft.forward_seconds, draft.owed
            decoder.observe(draft=True)
            after = draft.forward_seconds
            assert decoder.observe(draft=True).root_log_probs
            assert draft.forward_seconds == after > before, "asked twice, it is made once"
            outcome = decoder.round(parameters)
            assert outcome.seconds.draft_forward == pytest.approx(draft.forward_seconds - before)
            assert outcome.seconds.draft >= outcome.seconds.draft_forward > 0
            assert outcome.level_rows == ((owed, 1) if parameters == chain(2) else (owed,))

    def test_past_the_drafts_context_it_shows_nothing(self, target: TargetModel) -> None:
        draft = CausalDraft(CachedModel(tiny_gpt2(20)), target.vocabulary)
        decoder = LiveDecoder(target, draft)
        decoder.start(Request(PROMPT, 40))
        said = {}
        while decoder.under_way:
            said[len(decoder.tokens)] = decoder.observe(draft=True).root_log_probs
            decoder.round(PLAIN)
        assert [length for length, log_probs in said.items() if log_probs] == list(range(9, 21))
        assert {len(log_probs) for log_probs in said.values()} == {0, 4}

    def test_trees_wider_than_what_was_kept_are_refused_and_the_text_goes_on(
        self, target: TargetModel, echo: Draft
    ) -> None:
        decoder = LiveDecoder(target, echo)
        decoder.start(Request(PROMPT, 20))
        wide = dataclasses.replace(TreeParameters(), max_branch=5)
        decoder.observe(draft=True)
        with pytest.raises(ParameterError, match=r"max_branch of 4 or less .*got max_branch=5"):
            decoder.round(wide)
        assert decoder.round(dataclasses.replace(wide, source="lookup")).tokens
        assert decoder.round(wide).tokens, "it was not observed"

    def test_a_draft_that_returns_nan_ends_the_text(self, target: TargetModel) -> None:
        draft = causal_draft(target)
        decoder = LiveDecoder(target, draft)
        decoder.start(Request(PROMPT, 20))
        draft.model.model.lm_head.weight.data[5, 5] = torch.nan
        with pytest.raises(NumericalError, match="draft returned NaN"):
            decoder.observe(draft=True)
        assert_refuses_to_go_on(decoder)


class TestLevelRows:
    @pytest.mark.parametrize("kind", ["causal", "feature"])
    @pytest.mark.parametrize("observed", [False, True])
    def test_they_are_the_rows_of_the_draft_models_forwards(self, kind: str, observed: bool) -> None:
        target = tiny_target()
        draft, rows = make_draft(kind, target), []
        if isinstance(draft, CausalDraft):
            embedding = draft.model.model.get_input_embeddings()
            embedding.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[-2]))
        else:
            head = draft.lean.head
            draft.lean.head = lambda x, **options: rows.append(len(x)) or head(x, **options)
        decoder, told = LiveDecoder(target, draft), set()
        shapes = itertools.cycle([dataclasses.replace(shape, source=source) for shape in SHAPES for source in SOURCES])
        for seed in range(3):
            assert decoder.start(Request(make_prompt(seed, 12), 60)).level_rows == ()
            while decoder.under_way:
                rows.clear()
                owed, shape = draft.owed, next(shapes)
                decoder.observe(observed)
                found = decoder.round(shape).level_rows
                if kind == "causal":
                    assert list(found) == rows
                else:  # of the root's forward only the last row goes through the head
                    assert list(found[1:]) == rows[1:]
                    assert len(found) == len(rows)
                assert found[:1] in ((), (owed,))
                assert found or not observed
                if not observed and (shape == PLAIN or shape.source == "lookup"):
                    assert not found
                told.add(found[:1])
        assert len(told) > 3, "the test would be vacuous"

    def test_without_a_draft_model_there_are_none(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, LookupDraft())
        decoder.start(Request(PROMPT, 20))
        while decoder.under_way:
            decoder.observe(draft=True)
            assert decoder.round(TreeParameters(source="both")).level_rows == ()
