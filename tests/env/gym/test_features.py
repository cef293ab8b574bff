"""Features lie within 0 and 1 and have the values that their table describes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgym.env.gym.features import FEATURES, GROUPS, feature_columns, feature_table, feature_vector
from specgym.env.tree.observation import ROOT_CHILDREN, WINDOW, Observation, PastRound

NOTHING_YET = Observation(position=10, generated=1, remaining=50)


def named(observation: Observation) -> dict[str, float]:
    values = feature_vector(observation).tolist()
    return {feature.name: value for feature, value in zip(FEATURES, values, strict=True)}


@st.composite
def past_rounds(draw: st.DrawFn) -> PastRound:
    depth = draw(st.integers(0, 40))
    return PastRound(draw(st.integers(depth, depth * 8)), depth, draw(st.integers(0, depth)))


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Draws any observation that a decoder may make."""
    recent = draw(st.lists(past_rounds(), max_size=WINDOW))
    last = recent[-1] if recent else PastRound(0, 0, 0)
    count = draw(st.integers(0, ROOT_CHILDREN))
    odds = np.array(draw(st.lists(st.floats(1e-6, 1), min_size=count + 1, max_size=count + 1)))
    likeliest = np.sort(odds / odds.sum())[::-1][:count]
    cost = st.floats(0, 1e4)
    return Observation(
        position=draw(st.integers(0, 10**6)),
        generated=draw(st.integers(1, 10**6)),
        remaining=draw(st.integers(0, 10**6)),
        last_drafted=last.drafted,
        last_depth=last.depth,
        last_accepted=last.accepted,
        lookup_match=draw(st.integers(0, 16)),
        lookup_rate=draw(st.floats(0, 1)),
        recent=tuple(recent),
        greedy=draw(st.booleans()),
        root_log_probs=tuple(np.log(likeliest).astype(np.float16).astype(float).tolist()),
        level_cost=draw(cost),
        row_cost=draw(cost),
    )


@given(observations())
def test_every_entry_lies_within_0_and_1(observation: Observation) -> None:
    vector = feature_vector(observation)
    assert vector.dtype == np.float32
    assert vector.shape == (len(FEATURES),)
    assert ((vector >= 0) & (vector <= 1)).all(), dict(zip([f.name for f in FEATURES], vector, strict=True))


def test_before_the_first_round_nothing_is_known() -> None:
    seen = named(NOTHING_YET)
    assert {name for name, value in seen.items() if value == 0.5} == {
        "last_accepted",
        "accepted_of_depth",
        "accepted_of_nodes",
        *(f"accepted_to_{depth}" for depth in (1, 2, 3, 4, 6, 8)),
    }
    assert {name for name, value in seen.items() if value not in (0, 0.5)} == {"context", "generated", "remaining"}


def test_lengths_are_on_a_logarithmic_scale() -> None:
    seen = named(Observation(position=255, generated=15, remaining=2**20, greedy=False))
    assert (seen["context"], seen["generated"], seen["remaining"]) == (
        pytest.approx(8 / 15),
        pytest.approx(4 / 15),
        1.0,
    )
    assert seen["sampling"] == 1


def test_the_drafts_log_probabilities_become_probabilities() -> None:
    log_probs = tuple(math.log(p) for p in (0.5, 0.25, 0.125, 0.0625))
    seen = named(Observation(10, 1, 50, root_log_probs=log_probs))
    assert [seen[f"draft_{rank}"] for rank in range(1, 5)] == [0.5, 0.25, 0.125, 0.0625]
    assert (seen["draft_known"], seen["draft_margin"], seen["draft_rest"]) == (1, 0.25, 0.0625)
    lonely = named(Observation(10, 1, 50, root_log_probs=(math.log(0.75),)))
    assert (lonely["draft_margin"], lonely["draft_rest"], lonely["draft_2"]) == (0.75, 0.25, 0)


def test_past_rounds_show_how_often_trees_were_accepted_to_each_depth() -> None:
    recent = (PastRound(12, 4, 4), PastRound(6, 4, 1), PastRound(0, 0, 0), PastRound(2, 2, 0))
    seen = named(Observation(10, 9, 50, *recent[-1], recent=recent))
    assert seen["rounds"] == pytest.approx(0.4)
    assert seen["speculating"] == pytest.approx(0.3)
    assert seen["accepted_mean"] == pytest.approx(1.25 / 3.25)
    assert seen["accepted_of_depth"] == pytest.approx(5.5 / 11)
    assert seen["accepted_of_nodes"] == pytest.approx(5.5 / 21)
    assert seen["accepted_to_1"] == pytest.approx(2.5 / 4)
    assert seen["accepted_to_2"] == pytest.approx(1.5 / 4)
    assert seen["accepted_to_4"] == pytest.approx(1.5 / 3)
    assert seen["accepted_to_6"] == 0.5
    assert (seen["last_depth"], seen["last_drafted"]) == (pytest.approx(2 / 6), pytest.approx(2 / 18))
    assert seen["last_accepted"] == pytest.approx(0.5 / 3)


def test_costs_are_saturated() -> None:
    seen = named(Observation(10, 1, 50, level_cost=0.25, row_cost=0.05))
    assert (seen["level_cost"], seen["row_cost"]) == (0.5, 0.5)


def test_the_table_lists_every_feature_and_its_fields() -> None:
    rows = feature_table().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [str(index) for index in range(len(FEATURES))]
    names = [row.split("`")[1] for row in rows]
    assert names == [feature.name for feature in FEATURES]
    assert len(set(names)) == len(names)
    fields = set(Observation.__slots__)
    assert {field for feature in FEATURES for field in feature.fields} <= fields


def test_every_feature_is_in_one_group() -> None:
    columns = [column for group in GROUPS for column in feature_columns([group]).tolist()]
    assert sorted(columns) == list(range(len(FEATURES)))
    assert feature_columns(GROUPS).tolist() == list(range(len(FEATURES)))
