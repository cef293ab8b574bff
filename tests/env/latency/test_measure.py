"""Measuring runs real rounds of exactly the planned rows, and counts all of their time once."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from specgym.env.common.errors import ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.drafts import MergedDraft
from specgym.env.latency.fit import Sample, fit_profile
from specgym.env.latency.measure import Grid, TimedDraft, ladder, longest_text, measure, plan, shape
from specgym.env.models.target import TargetModel
from specgym.env.tree.parameters import PLAIN, TreeParameters
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_models import DRAFT_KINDS, causal_draft, chain, generate, make_draft, make_prompt, tiny_target

GRID = Grid((24, 96), most_owed=4, most_expanded=8, most_verified=12)
TEXT = make_prompt(3, 400)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target(max_position_embeddings=512)


class TestPlan:
    def test_rows_grow_in_about_even_proportion(self) -> None:
        assert ladder(64) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
        assert ladder(20) == (1, 2, 3, 4, 6, 8, 12, 16, 20)
        assert ladder(1) == (1,)

    @pytest.mark.parametrize("grid", [Grid(), GRID, Grid((99,), most_expanded=1, most_verified=128)])
    @pytest.mark.parametrize("seed", range(5))
    def test_every_number_of_rows_is_planned(self, grid: Grid, seed: int) -> None:
        shapes = plan(grid, random.Random(seed))
        assert {each.node_budget + 1 for each in shapes} >= set(ladder(grid.most_verified)) - {1}
        assert {each.frontier_width for each in shapes} == set(ladder(grid.most_expanded))

    @pytest.mark.parametrize("expanded", [1, 2, 3, 6, 8, 12])
    @pytest.mark.parametrize("nodes", [1, 2, 5, 23, 40])
    def test_a_forced_tree_has_exactly_the_requested_rows(self, target: TargetModel, expanded: int, nodes: int) -> None:
        for sampling in (SamplingSettings(), SamplingSettings(1.0, seed=nodes)):
            decoder = LiveDecoder(target, causal_draft(target))
            decoder.start(Request(make_prompt(nodes), 400, sampling))
            outcome = decoder.round(shape(expanded, nodes))
            assert outcome.drafted == nodes
            assert expanded in outcome.level_rows[1:]
            assert max(outcome.level_rows[1:]) == expanded
            assert set(outcome.level_rows[1:]) <= set(ladder(16))


class TestTimedDraft:
    @pytest.mark.parametrize("kind", DRAFT_KINDS)
    @pytest.mark.parametrize("source", ["model", "lookup", "both"])
    def test_the_levels_of_a_round_are_recorded_and_nothing_is_changed(
        self, target: TargetModel, kind: str, source: str
    ) -> None:
        request = Request(make_prompt(1, 12), 60, SamplingSettings(1.0, top_k=3, seed=2))
        whole = generate(target, make_draft(kind, target), request).tokens
        decoder = LiveDecoder(target, make_draft(kind, target))
        decoder.merged = draft = TimedDraft(decoder.draft)
        tokens, levels = list(decoder.start(request).tokens), 0
        while decoder.under_way:
            outcome = decoder.round(TreeParameters(3, 3, 2, 2, 2, source=source))  # type: ignore[arg-type]
            tokens += outcome.tokens
            assert tuple(level.rows for level in draft.levels if level.rows) == outcome.level_rows
            assert sum(level.lookup_nodes for level in draft.levels) == outcome.lookup_nodes
            assert bool(outcome.lookup_nodes) == (bool(draft.levels) and (source != "model" or kind == "lookup"))
            assert 0 <= sum(level.seconds for level in draft.levels) <= outcome.seconds.draft
            levels += len(draft.levels)
        assert tokens == whole
        assert levels > 0, "the test would be vacuous"

    def test_a_plain_round_has_no_levels(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, causal_draft(target))
        decoder.merged = draft = TimedDraft(decoder.draft)
        decoder.start(Request(make_prompt(1), 60))
        decoder.round(chain(3))
        assert len(draft.levels) == 3
        outcome = decoder.round(PLAIN)
        assert (draft.levels, outcome.lookup_nodes) == ([], 0)


class TestMeasure:
    @pytest.mark.parametrize("kind", DRAFT_KINDS)
    def test_every_cell_is_measured_in_both_modes_at_every_context_and_fits_a_profile(
        self, target: TargetModel, kind: str
    ) -> None:
        visits: list[str] = []
        decoder = LiveDecoder(target, make_draft(kind, target))
        before = decoder.merged
        samples = measure(decoder, TEXT, GRID, repeats=2, progress=visits.append)
        assert decoder.merged is before
        assert Counter(visits) == {f"{mode}, {size} tokens": 2 for mode in ("greedy", "sampled") for size in (24, 96)}
        model = kind != "lookup"
        expected = {("verify", rows) for rows in ladder(12)} | {("plain", 1), ("overhead", 1), ("lookup", 1)}
        if model:
            expected |= {("level", rows) for rows in ladder(8)}
        for greedy in (True, False):
            for bucket in (24, 96):
                cell = [each for each in samples if (each.greedy, each.bucket) == (greedy, bucket)]
                assert {(each.stage, each.rows) for each in cell} >= expected
                assert all(each.seconds >= 0 and each.context >= bucket for each in cell)
                assert sum(each.stage == "prompt" for each in cell) == 2 * model
        profile = fit_profile(samples, GRID.knots(model), {})
        for costs in (profile.greedy, profile.sampled):
            assert costs.verify.most == 12
            assert costs.level.most == (8 if model else 1)
            assert costs.round_seconds(50, (2, 4, 8) if model else (), 12, 4) > costs.overhead > 0

    def test_a_seed_decides_what_is_measured(self, target: TargetModel) -> None:
        def cells(samples: list[Sample]) -> list[tuple[object, ...]]:
            return [(each.greedy, each.stage, each.bucket, each.context, each.rows) for each in samples]

        runs = [
            cells(measure(LiveDecoder(target, causal_draft(target)), TEXT, GRID, repeats=1, seed=seed))
            for seed in (1, 1, 2)
        ]
        assert runs[0] == runs[1] != runs[2]

    def test_when_time_is_up_every_context_has_been_visited_once(self, target: TargetModel) -> None:
        decoder, visits = LiveDecoder(target, make_draft("lookup", target)), []
        samples = measure(decoder, TEXT, GRID, repeats=50, seconds=0.0, progress=visits.append)
        assert len(visits) == 4 * 50
        assert sum(each.stage == "plain" for each in samples) == 4 * 4

    def test_the_decoder_is_free_between_visits(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, causal_draft(target))
        before, told = decoder.merged, list[int]()

        def between(left: int) -> None:
            assert decoder.merged is before
            told.append(left)

        measure(decoder, TEXT, GRID, repeats=2, between=between)
        assert told == [7, 6, 5, 4, 3, 2, 1, 0]

    def test_a_text_that_ends_early_is_measured_as_far_as_it_goes(self) -> None:
        target = tiny_target(max_position_embeddings=152)
        decoder = LiveDecoder(target, causal_draft(target, 0.0))  # every path is accepted to its end
        samples = measure(decoder, TEXT, Grid((24,)), repeats=1)
        assert 140 < max(each.context for each in samples) < 152

    def test_the_draft_comes_back_after_an_interrupt(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, causal_draft(target))

        def stop(visited: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure(decoder, TEXT, GRID, progress=stop)
        assert type(decoder.merged) is MergedDraft


class TestRefusals:
    @pytest.mark.parametrize(
        ("contexts", "most", "message"),
        [
            ((100, 120), {}, r"contexts must ascend by 64 tokens or more.* got \(100, 120\)"),
            ((), {}, "contexts must ascend"),
            ((0,), {}, "contexts must ascend"),
            ((16,), {}, "the last one past most_owed=16"),
            ((64,), {"most_owed": 0}, "most_owed must be 1 or more; got 0"),
            ((64,), {"most_expanded": 0}, "most_expanded must be 1 or more; got 0"),
            ((64,), {"most_verified": 2}, "most_verified must be 3 or more; got 2"),
        ],
    )
    def test_an_impossible_grid_is_refused(self, contexts: tuple[int, ...], most: dict[str, int], message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            Grid(contexts, **most)

    def test_contexts_that_the_pair_cannot_read_are_refused_before_any_round(self, target: TargetModel) -> None:
        decoder = LiveDecoder(target, make_draft("lookup", target))
        with pytest.raises(ParameterError, match=r"leave 128 tokens of the 512 .* got \(64, 400\).* 384 or less"):
            measure(decoder, make_prompt(1, 600), Grid((64, 400)))
        with pytest.raises(ParameterError, match="a text of more than 96 tokens; got 96"):
            measure(decoder, TEXT[:96], GRID)
        assert decoder.tokens == []

    def test_only_contexts_that_fit_are_kept(self, target: TargetModel) -> None:
        assert Grid().fitting(1152).contexts == (128, 512, 1024)
        assert Grid().fitting(1151).contexts == (128, 512)
        with pytest.raises(ParameterError, match="leave 128 tokens of the 200"):
            Grid().fitting(200)

    def test_a_draft_with_a_shorter_context_than_its_target_decides(self, target: TargetModel) -> None:
        shorter = tiny_target(max_position_embeddings=256)
        assert longest_text(LiveDecoder(target, make_draft("lookup", target))) == 512
        assert longest_text(LiveDecoder(target, causal_draft(shorter))) == 256
