"""Rounds are timed and recorded whole, at exactly the sizes of the grid."""

from __future__ import annotations

import re

import pytest
import torch

from specgym.controllers.evaluation.profiling.profiler import PARTS, WORKING, ProfileGrid, RoundProfiler, tree_of
from specgym.controllers.registry import make_controller
from specgym.env.common.errors import ParameterError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.models.target import TargetModel
from specgym.env.tree.rounds import Request
from tests.support.tiny_models import (
    DRAFT_KINDS,
    causal_draft,
    make_draft,
    make_prompt,
    tiny_target,
)

GRID = ProfileGrid((1, 2, 8, 16), (24, 64))
TEXT = make_prompt(3, 400)


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return tiny_target(dtype=torch.float32, max_position_embeddings=256)


def profiler(target: TargetModel, kind: str, grid: ProfileGrid = GRID) -> RoundProfiler:
    return RoundProfiler(LiveDecoder(target, make_draft(kind, target)), TEXT, grid, make_controller("history"))


class TestRounds:
    @pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 16, 32, 64, 128])
    def test_a_tree_has_exactly_the_wanted_rows(self, target: TargetModel, rows: int) -> None:
        decoder = LiveDecoder(target, causal_draft(target))
        decoder.start(Request(make_prompt(rows), 200))
        outcome = decoder.round(tree_of(rows))
        assert outcome.drafted + 1 == rows
        assert len(outcome.level_rows) == tree_of(rows).max_depth

    @pytest.mark.parametrize("kind", DRAFT_KINDS)
    def test_every_size_is_timed_and_its_parts_are_the_whole(self, target: TargetModel, kind: str) -> None:
        subject = profiler(target, kind)
        before = subject.decoder.merged
        rounds = list(subject.timed(24))
        assert subject.decoder.merged is before
        assert sorted(round_.rows for round_ in rounds) == sorted(3 * GRID.rows)
        for round_ in rounds:
            assert tuple(round_.parts) == PARTS
            assert min(round_.parts.values()) >= 0
            assert round_.seconds == sum(round_.parts.values()) > 0
            assert 24 <= round_.position < 24 + GRID.room
            assert len(round_.levels) == tree_of(round_.rows).max_depth
            assert all((rows > 0) == (kind != "lookup") for rows, _ in round_.levels)
            assert sum(seconds for _, seconds in round_.levels) <= round_.parts["draft"] + 1e-6

    @pytest.mark.parametrize(
        ("dtype", "kind"),
        [(torch.float32, "causal"), (torch.float32, "lookup"), (torch.bfloat16, "feature")],
        ids=str,
    )
    def test_every_operator_of_a_round_has_a_group(self, dtype: torch.dtype, kind: str) -> None:
        """Includes the precision with its own operators on a CPU."""
        grid = ProfileGrid((1, 8), (24,))
        rounds = list(profiler(tiny_target(dtype=dtype), kind, grid).recorded(24))
        assert {round_.rows for round_ in rounds} == {1, 8}
        for round_ in rounds:
            assert round_.unknown == {}
            assert tuple(round_.groups) == WORKING
            assert sum(sum(groups.values()) for groups in round_.groups.values()) == pytest.approx(round_.seconds)
            assert round_.groups["verify"]["linears"] > 0
            assert round_.groups["verify"]["attention"] > 0
            assert round_.groups["verify"]["moves"] > 0
            assert (round_.groups["draft"]["linears"] > 0) == (round_.rows > 1 and kind != "lookup")
            assert round_.groups["commit"]["linears"] == 0

    def test_the_controller_acts_and_changes_nothing(self, target: TargetModel) -> None:
        subject = profiler(target, "causal", ProfileGrid((4,), (24,)))
        assert all(round_.parts["controller"] > 0 and round_.rows == 4 for round_ in subject.timed(24))

    @pytest.mark.parametrize("values", [(), (0, 1), (2, 2), (4, 1), (-1,)])
    @pytest.mark.parametrize("name", ["rows", "contexts"])
    def test_sizes_that_cannot_be_profiled_are_refused(self, name: str, values: tuple[int, ...]) -> None:
        with pytest.raises(ParameterError, match=f"{name} must be positive and ascend; got {re.escape(str(values))}"):
            ProfileGrid(**{name: values})

    def test_contexts_that_do_not_fit_are_refused_or_left_out(self, target: TargetModel) -> None:
        room = GRID.room
        with pytest.raises(ParameterError, match=f"contexts must leave {room} tokens of the {63 + room}"):
            GRID.check_fits(63 + room)
        assert GRID.fitting(63 + room).contexts == (24,)
        assert GRID.fitting(64 + room) == GRID
        with pytest.raises(ParameterError, match="Name fewer or smaller rows"):
            GRID.fitting(room)
        with pytest.raises(ParameterError, match="Expected a text of more than 64 tokens; got 64"):
            RoundProfiler(LiveDecoder(target, causal_draft(target)), TEXT[:64], GRID, make_controller("history"))
