"""The benchmark measures every runner on every prompt, compares what came out, and makes no row of a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import torch

from specgym.controllers.evaluation.live.paired_runs import Benchmark, Measurements
from specgym.controllers.evaluation.live.runners import (
    ControllerRunner,
    Runner,
    make_runner,
)
from specgym.controllers.evaluation.results.schema import PromptRow
from specgym.controllers.registry import BASELINE
from specgym.controllers.run import Generation
from specgym.env.common.errors import NumericalError
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.drafts import LookupDraft
from specgym.env.models.target import TargetModel
from specgym.env.prompts import Prompt
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import GumbelNoise, SamplingSettings
from tests.support.tiny_pair import CONTEXT, END, tiny_chat_model, tiny_tokenizer

NAMES = ("transformers", BASELINE, "fixed_tree:branch=3", "history")
ONE_TURN = (Prompt("p/1", "greeting", ("hello",)), Prompt("p/2", "sums", ("2 + 2 = ",)))
TWO_TURNS = Prompt("p/3", "talk", ("hello", "and now?"))
PROMPTS = (*ONE_TURN, TWO_TURNS)
TOO_LONG = Prompt("p/long", "talk", ("a" * CONTEXT,))
TOKENS = 12

Change = Callable[[list[int]], list[int]]


class WatchedRunner(ControllerRunner):
    """Remembers its requests and answers."""

    def __init__(self, name: str, decoder: LiveDecoder) -> None:
        super().__init__(name, decoder)
        self.requests: list[Request] = []
        self.answers: list[Generation] = []

    def __call__(self, request: Request) -> Generation:
        self.requests.append(request)
        self.answers.append(super().__call__(request))
        return self.answers[-1]


class ChangedRunner(WatchedRunner):
    """Decodes plainly and then changes the answer."""

    def __init__(self, decoder: LiveDecoder, change: Change) -> None:
        super().__init__(BASELINE, decoder)
        self.name, self.change = "changed", change

    def __call__(self, request: Request) -> Generation:
        answer = super().__call__(request)
        answer.tokens = self.change(answer.tokens)
        return answer


def other_token(tokens: list[int], index: int = 5) -> list[int]:
    return [*tokens[:index], (tokens[index] + 1) % 90 + 5, *tokens[index + 1 :]]


def plan(
    pair: ModelPair,
    runners: list[Runner],
    prompts: tuple[Prompt, ...] = PROMPTS,
    sampling: SamplingSettings | None = None,
    repeats: int = 1,
) -> Benchmark:
    sampling = sampling or SamplingSettings()
    return Benchmark(pair, runners, prompts, max_new_tokens=TOKENS, sampling=sampling, repeats=repeats)


def measure(benchmark: Benchmark) -> Measurements:
    measured = Measurements()
    benchmark.measure(measured)
    return measured


def make_runners(pair: ModelPair) -> list[Runner]:
    decoder = pair.decoder()
    return [make_runner(name, decoder) for name in NAMES]


def rows_of(measured: Measurements, name: str) -> list[PromptRow]:
    return [row for row in measured.rows if row.controller == name]


class TestRows:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_every_runner_has_a_row_for_every_prompt_and_repeat(self, pair: ModelPair, temperature: float) -> None:
        benchmark = plan(pair, make_runners(pair), sampling=SamplingSettings(temperature, seed=2), repeats=2)
        finished: list[str] = []
        measured = Measurements()
        benchmark.measure(measured, finished.append)
        identifiers = [prompt.identifier for prompt in PROMPTS]
        assert Counter((row.controller, row.prompt_id, row.repeat) for row in measured.rows) == Counter(
            product(NAMES, identifiers, range(2))
        )
        assert measured.failures == []
        assert benchmark.steps == len(finished) == len(measured.rows) == 24
        assert {row.prompt_id: row.category for row in measured.rows} == {
            prompt.identifier: prompt.category for prompt in PROMPTS
        }

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_outputs_are_identical_to_plain_decodings(self, pair: ModelPair, temperature: float) -> None:
        measured = measure(plan(pair, make_runners(pair), sampling=SamplingSettings(temperature, seed=2)))
        flags = {(row.controller, row.identical, row.first_difference, row.top2_gap) for row in measured.rows}
        transformers = True if temperature == 0 else None  # it draws other noise
        assert flags == {(name, transformers if name == "transformers" else True, None, None) for name in NAMES}
        for name in NAMES[2:]:
            rows = rows_of(measured, name)
            assert 0 < sum(row.accepted for row in rows) < sum(row.drafted for row in rows), "would be vacuous"

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_all_runners_follow_the_settings_of_the_target(
        self, pair: ModelPair, temperature: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repeated = []
        for size in (0, 1):
            monkeypatch.setattr(pair.target.model.generation_config, "no_repeat_ngram_size", size)
            watched = WatchedRunner(BASELINE, pair.decoder())
            others = [runner for runner in make_runners(pair) if runner.name != BASELINE]
            measured = measure(plan(pair, [watched, *others], sampling=SamplingSettings(temperature)))
            assert {row.identical for row in measured.rows} == ({True} if temperature == 0 else {True, None})
            repeated.append(sum(len(answer.tokens) - len(set(answer.tokens)) for answer in watched.answers))
        assert repeated[0] > repeated[1] == 0

    def test_a_runner_of_another_library_is_measured_without_the_settings_of_the_target(
        self, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests: list[Request] = []

        class Other:
            name, baseline, target = "other", None, None

            def __call__(self, request: Request) -> Generation:
                requests.append(request)
                return make_runner(BASELINE, pair.decoder())(request)

        monkeypatch.setattr(pair.target.model.generation_config, "repetition_penalty", 1.3)
        with pytest.warns(UserWarning, match=r"Not followed .*: repetition_penalty=1.3"):
            measure(plan(pair, [Other(), make_runner(BASELINE, pair.decoder())]))
        assert {request.processors for request in requests} == {None}

    def test_a_row_is_the_sum_of_its_generations(self, pair: ModelPair) -> None:
        decoder = pair.decoder()
        runners = [WatchedRunner(name, decoder) for name in (BASELINE, "history")]
        measured = measure(plan(pair, [*runners], (TWO_TURNS,)))
        for row, runner in zip(measured.rows, runners, strict=True):
            first, second = runner.answers
            assert row.controller == runner.name
            assert row.prompt_tokens == sum(len(request.prompt) for request in runner.requests)
            assert row.tokens == len(first.tokens) + len(second.tokens)
            for count in ("rounds", "drafted", "accepted", "seconds"):
                assert getattr(row, count) == getattr(first, count) + getattr(second, count)
            assert row.seconds_by_part == {
                part: first.seconds_by_part[part] + second.seconds_by_part[part] for part in first.seconds_by_part
            }
            assert row.tokens == row.rounds + row.accepted, "a round commits what it accepts and one token more"

    def test_every_prompt_has_a_seed_of_its_own_the_same_for_all_runners(self, pair: ModelPair) -> None:
        decoder = pair.decoder()
        runners = [WatchedRunner(name, decoder) for name in (BASELINE, "history")]
        twins = (Prompt("p/a", "twin", ("hello",)), Prompt("p/b", "twin", ("hello",)))
        measure(plan(pair, [*runners], twins, SamplingSettings(1.0, seed=7), repeats=2))
        seeds = [[request.sampling.seed for request in runner.requests] for runner in runners]
        assert seeds == [[7, 8, 7, 8]] * 2
        texts = [answer.tokens for answer in runners[0].answers]
        assert texts[0] == texts[2] != texts[1] == texts[3]

    def test_runners_take_turns_at_being_first(self, pair: ModelPair) -> None:
        runners = make_runners(pair)[:3]
        order: list[str] = []
        plan(pair, runners, repeats=2).measure(Measurements(), order.append)
        first, second, third = NAMES[:3]
        rotated = [first, second, third, second, third, first, third, first, second]
        assert order == [*rotated, *rotated[3:], *rotated[:3]]

    def test_the_warm_up_runs_everything_briefly_and_leaves_no_row(self, pair: ModelPair) -> None:
        decoder = pair.decoder()
        runners = [WatchedRunner(name, decoder) for name in (BASELINE, "history")]
        benchmark = plan(pair, [*runners], ONE_TURN)
        benchmark.warm_up()
        assert [len(runner.answers) for runner in runners] == [1, 1]
        assert all(len(runner.answers[0].tokens) <= 12 for runner in runners)
        assert len(measure(benchmark).rows) == benchmark.steps == 4


class TestTurns:
    def test_every_runner_reads_its_own_answers(self, pair: ModelPair) -> None:
        decoder = pair.decoder()
        runners = [WatchedRunner(BASELINE, decoder), ChangedRunner(decoder, other_token)]
        measure(plan(pair, [*runners], (TWO_TURNS,)))
        for runner in runners:
            answer = pair.tokenizer.decode(runner.answers[0].tokens, skip_special_tokens=True)
            turns = [TWO_TURNS.turns[0], answer, TWO_TURNS.turns[1]]
            assert [request.prompt for request in runner.requests] == [
                encode_chat(pair.tokenizer, turns[:1]),
                encode_chat(pair.tokenizer, turns),
            ]
        assert runners[0].requests[1] != runners[1].requests[1], "the test would be vacuous"

    @pytest.mark.parametrize("answer", [[END], [tiny_tokenizer().encode(" ")[0]]], ids=["nothing", "a space"])
    def test_an_answer_without_text_does_not_end_the_talk(self, pair: ModelPair, answer: list[int]) -> None:
        decoder = pair.decoder()
        measured = measure(
            plan(pair, [WatchedRunner(BASELINE, decoder), ChangedRunner(decoder, lambda tokens: answer)], (TWO_TURNS,))
        )
        assert measured.failures == []
        assert [row.controller for row in measured.rows] == [BASELINE, "changed"]


class TestDifferences:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_difference_has_a_place_and_a_gap(self, pair: ModelPair, temperature: float) -> None:
        sampling = SamplingSettings(temperature, seed=2)
        decoder = pair.decoder()
        baseline, changed = WatchedRunner(BASELINE, decoder), ChangedRunner(decoder, other_token)
        measured = measure(plan(pair, [baseline, changed], ONE_TURN[:1], sampling))
        (row,) = rows_of(measured, "changed")
        assert (row.identical, row.first_difference) == (False, 5)
        assert row.top2_gap == pytest.approx(self.gap(pair, baseline, 0, 5), rel=1e-3)
        assert rows_of(measured, BASELINE)[0].identical

    @staticmethod
    def gap(pair: ModelPair, baseline: WatchedRunner, turn: int, index: int) -> float:
        """By how much plain decoding's token led, by transformers' own forward and this request's noise."""
        request, answer = baseline.requests[turn], baseline.answers[turn]
        text = [*request.prompt, *answer.tokens[:index]]
        with pair.target.lent() as model, torch.inference_mode():
            logits = model(torch.tensor([text])).logits[0, -1]
        if not request.sampling.greedy:
            noise = GumbelNoise(request.sampling.seed, len(logits), logits.device).row(len(text))
            logits = logits / request.sampling.temperature + noise
        best, second = logits.topk(2).values.tolist()
        assert int(logits.argmax()) == answer.tokens[index]
        return float(best - second)

    @pytest.mark.parametrize(
        ("change", "place"),
        [
            (lambda tokens: tokens[:4], 4),
            (lambda tokens: [*tokens, 7], TOKENS),
            (lambda tokens: other_token(other_token(tokens, 9), 3), 3),
        ],
        ids=["shorter", "longer", "the first of two"],
    )
    def test_texts_part_where_the_first_of_them_ends_or_differs(
        self, pair: ModelPair, change: Change, place: int
    ) -> None:
        decoder = pair.decoder()
        measured = measure(plan(pair, [WatchedRunner(BASELINE, decoder), ChangedRunner(decoder, change)], ONE_TURN[:1]))
        (row,) = rows_of(measured, "changed")
        assert (row.identical, row.first_difference) == (False, place)
        assert row.top2_gap is not None
        assert row.top2_gap > 0

    def test_a_difference_in_the_second_turn_counts_within_that_turn(self, pair: ModelPair) -> None:
        class SecondAnswer(ChangedRunner):
            def __call__(self, request: Request) -> Generation:
                self.change = other_token if len(self.answers) % 2 else list
                return super().__call__(request)

        decoder = pair.decoder()
        baseline = WatchedRunner(BASELINE, decoder)
        measured = measure(plan(pair, [SecondAnswer(decoder, list), baseline], (TWO_TURNS,)))
        (row,) = rows_of(measured, "changed")
        assert row.first_difference == 5
        assert row.top2_gap == pytest.approx(self.gap(pair, baseline, 1, 5), rel=1e-3)


class TestFailures:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_prompt_that_is_too_long_is_a_failure_and_no_row(self, pair: ModelPair, temperature: float) -> None:
        prompts = (ONE_TURN[0], TOO_LONG, ONE_TURN[1])
        measured = measure(plan(pair, make_runners(pair), prompts, SamplingSettings(temperature), repeats=2))
        assert Counter((failure.controller, failure.prompt_id, failure.repeat) for failure in measured.failures) == (
            Counter(product(NAMES, [TOO_LONG.identifier], range(2)))
        )
        assert all(f"this target reads at most {CONTEXT}" in failure.error for failure in measured.failures)
        assert Counter(row.prompt_id for row in measured.rows) == dict.fromkeys(("p/1", "p/2"), 2 * len(NAMES))

    def test_a_second_turn_that_does_not_fit_leaves_no_half_row(self, pair: ModelPair) -> None:
        prompt = Prompt("p/grows", "talk", ("hello", "a" * CONTEXT))
        measured = measure(plan(pair, make_runners(pair), (prompt,)))
        assert measured.rows == []
        assert [failure.controller for failure in measured.failures] == list(NAMES)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_nan_is_a_failure_and_no_row(self, temperature: float) -> None:
        model = tiny_chat_model()
        tokenizer = tiny_tokenizer()
        with torch.no_grad():
            model.model.embed_tokens.weight[tokenizer.encode("~")[0]] = torch.nan
        pair = ModelPair(TargetModel(model), LookupDraft(), tokenizer, "tiny", "lookup", "memory")
        prompts = (ONE_TURN[0], Prompt("p/nan", "talk", ("~",)))
        benchmark = plan(pair, make_runners(pair), prompts, SamplingSettings(temperature))
        measured = measure(benchmark)
        assert [failure.prompt_id for failure in measured.failures] == ["p/nan"] * len(NAMES)
        assert [row.prompt_id for row in measured.rows] == ["p/1"] * len(NAMES)
        with pytest.raises(NumericalError, match="NaN"):
            pair.decoder().start(Request(encode_chat(tokenizer, ["~"])))

    @pytest.mark.parametrize("prompt", [TOO_LONG, Prompt("p/short", "talk", ("hello",))], ids=["long", "short"])
    def test_the_warm_up_leaves_failures_to_the_measurement(self, prompt: Prompt) -> None:
        model = tiny_chat_model()
        with torch.no_grad():
            model.lm_head.weight.fill_(torch.nan)
        pair = ModelPair(TargetModel(model), LookupDraft(), tiny_tokenizer(), "tiny", "lookup", "memory")
        benchmark = plan(pair, make_runners(pair), (prompt,))
        benchmark.warm_up()
        measured = measure(benchmark)
        assert measured.rows == []
        assert len(measured.failures) == len(NAMES)
