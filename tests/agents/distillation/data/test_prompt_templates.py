"""Texts and openings are many, suit their tasks, and are the same in every process of a Python version."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from specgym.agents.distillation.data.prompt_templates import (
    INSTRUCTIONS,
    KINDS,
    OPENINGS,
    SHARES,
    Turn,
    draw_turn,
    functions,
    passages,
)

TURNS = 4000


def draw(given_share: float, seed: int = 0, count: int = TURNS) -> list[Turn]:
    random = np.random.default_rng(seed)
    return [draw_turn(random, given_share) for _ in range(count)]


class TestTexts:
    def test_there_are_many(self) -> None:
        assert min(len(set(passages())), len(set(functions()))) > 200

    def test_they_are_long_enough_to_copy_from_and_short_enough_to_read(self) -> None:
        assert {500 <= len(text) <= 1300 for text in passages()} == {True}
        assert {250 <= len(text) <= 1100 for text in functions()} == {True}
        assert all(text.strip() for text in passages())

    def test_every_function_is_a_piece_of_python_that_stands_alone(self) -> None:
        for text in functions():
            (function,) = ast.parse(text).body
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)

    def test_another_process_gets_the_same_in_the_same_order(self) -> None:
        script = (
            "import hashlib; from specgym.agents.distillation.data.prompt_templates import functions, passages;"
            "print(hashlib.sha256(repr((passages(), functions())).encode()).hexdigest())"
        )
        command = [sys.executable, "-c", script]
        seeds = [{"PYTHONHASHSEED": seed} for seed in ("1", "2")]
        digests = {subprocess.run(command, env=seed, capture_output=True, check=True).stdout for seed in seeds}
        assert len(digests) == 1


class TestOpenings:
    def test_every_kind_has_a_share_and_openings(self) -> None:
        assert set(KINDS) == set(SHARES) == set(OPENINGS) >= set(INSTRUCTIONS)
        assert sum(SHARES.values()) == pytest.approx(1)

    def test_kinds_are_drawn_by_their_shares(self) -> None:
        counts = Counter(turn.kind for turn in draw(0.5))
        for kind, weight in SHARES.items():
            assert counts[kind] / TURNS == pytest.approx(weight, abs=0.03)

    @pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
    def test_texts_are_given_as_often_as_configured(self, share: float) -> None:
        given = [bool(turn.subject) for turn in draw(share) if turn.kind in INSTRUCTIONS]
        assert sum(given) / len(given) == pytest.approx(share, abs=0.05 * (0 < share < 1))

    def test_a_given_text_stands_whole_in_an_instruction_of_its_kind(self) -> None:
        texts = set(passages()) | set(functions())
        for turn in draw(1.0):
            if turn.kind not in INSTRUCTIONS:
                assert (turn.subject, turn.open) == ("", True)
                continue
            assert turn.subject in texts
            assert turn.text.replace(turn.subject, "{text}", 1) in INSTRUCTIONS[turn.kind]
            assert not turn.long
            # An unfinished question is for the target to end; a finished one is not.
            assert turn.open == (not turn.text.endswith((".", "```", turn.subject)))
        assert {turn.open for turn in draw(1.0) if turn.subject} == {True, False}

    def test_the_target_may_write_long_where_the_task_is_about_a_text_that_is_not_given(self) -> None:
        for turn in draw(0.0):
            assert turn.text in OPENINGS[turn.kind]
            assert turn.open
            assert turn.long == (turn.kind in INSTRUCTIONS)

    def test_a_seed_gives_its_turns_again(self) -> None:
        assert draw(0.6, 3, 50) == draw(0.6, 3, 50) != draw(0.6, 4, 50)
