"""Runs controllers over prompts, interleaved, and compares their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TypeAlias

import torch

from specgym.controllers.evaluation.live.runners import ControllerRunner, Runner, TransformersRunner
from specgym.controllers.evaluation.results.schema import Failure, PromptRow
from specgym.controllers.registry import BASELINE
from specgym.controllers.run import Generation
from specgym.env.common.errors import SpecGymError
from specgym.env.decoding.own_settings import warn_of_own_settings
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.prompts import Prompt
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings, TokenChooser

SUITES = {
    "phase1": ("autoregressive", "fixed_tree", "confidence"),
    "phase2": ("autoregressive", "confidence", "dynamic_depth"),
    "full": ("transformers", "autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history", "goodput"),
}
"""the plan's comparisons: fixed against Phase 1, Phase 1 against Phase 2, and all phases beside the strongest rule"""

_WARM_UP_TOKENS = 12

_Conversation: TypeAlias = list[tuple[Request, Generation]]  # one runner's turns


@dataclass
class Measurements:
    """Rows and failures so far."""

    rows: list[PromptRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, rows: list[PromptRow], failures: list[Failure]) -> None:
        """Adds what all runners made of a prompt."""
        self.rows += rows
        self.failures += failures


@dataclass
class Benchmark:
    """A comparison of runners."""

    pair: ModelPair
    """the models, to encode prompts and to examine differences"""
    runners: Sequence[Runner]
    """the runners to compare, those that serve as baselines among them"""
    prompts: Sequence[Prompt]
    """texts to continue; each turn of a prompt is read after the turns and answers before it"""
    max_new_tokens: int
    """most tokens of an answer [tokens]"""
    sampling: SamplingSettings
    """how tokens are chosen; every prompt gets its own seed, the same for all runners"""
    repeats: int = 1
    """times that everything is measured"""

    @property
    def steps(self) -> int:
        """Runs that `measure` makes, without the warm-up."""
        return len(self.runners) * len(self.prompts) * self.repeats

    def warm_up(self) -> None:
        """Runs everything once, briefly, so that no first call is measured."""
        prompt = encode_chat(self.pair.tokenizer, self.prompts[0].turns[:1])[-256:]
        for runner in self.runners:
            with contextlib.suppress(SpecGymError):  # the measurement will fail again and count it
                runner(self._request(prompt, _WARM_UP_TOKENS, self.sampling))

    def measure(
        self, measured: Measurements, progress: Callable[[str], None] = lambda name: None, done: int = 0
    ) -> None:
        """Measures everything, prompt by prompt. The runners take turns at being first.

        Args:
            measured: gets the rows and failures of a prompt once all runners have run it, so that an interrupt loses
                one prompt at most.
            progress: called with the runner's name after every run.
            done: prompts that are measured already, those of earlier repeats included; they are left out.
        """
        todo = [(repeat, index) for repeat in range(self.repeats) for index in range(len(self.prompts))]
        for repeat, index in todo[done:]:
            measured.add(*self._measure(repeat, index, progress))

    def _measure(
        self, repeat: int, index: int, progress: Callable[[str], None]
    ) -> tuple[list[PromptRow], list[Failure]]:
        """Returns what all runners made of a prompt."""
        prompt, first, failures = self.prompts[index], (index + repeat) % len(self.runners), []
        finished: dict[str, tuple[Runner, _Conversation]] = {}
        for runner in [*self.runners[first:], *self.runners[:first]]:
            try:
                finished[runner.name] = runner, self._converse(runner, prompt, index)
            except SpecGymError as error:
                failures.append(Failure(runner.name, prompt.identifier, repeat, str(error)))
            progress(runner.name)
        rows = []
        for runner, conversation in finished.values():
            _, plain = finished.get(runner.baseline or BASELINE, (None, None))
            rows.append(self._row(runner, prompt, repeat, conversation, plain))
        return rows, failures

    def _request(self, prompt: tuple[int, ...], most: int, sampling: SamplingSettings) -> Request:
        """A request by the target's own settings, such as a repetition penalty, if all runners can follow them."""
        if all(isinstance(runner, ControllerRunner | TransformersRunner) for runner in self.runners):
            return self.pair.request(prompt, most, sampling)
        warn_of_own_settings(self.pair.target)
        return Request(prompt, most, sampling)

    def _converse(self, runner: Runner, prompt: Prompt, index: int) -> _Conversation:
        conversation: _Conversation = []
        turns: list[str] = []
        sampling = replace(self.sampling, seed=self.sampling.seed + index)
        for turn in prompt.turns:
            turns.append(turn)
            request = self._request(encode_chat(self.pair.tokenizer, turns), self.max_new_tokens, sampling)
            answer = runner(request)
            conversation.append((request, answer))
            turns.append(self.pair.tokenizer.decode(answer.tokens, skip_special_tokens=True) or " ")
        return conversation

    def _row(
        self, runner: Runner, prompt: Prompt, repeat: int, conversation: _Conversation, plain: _Conversation | None
    ) -> PromptRow:
        if not (self.sampling.greedy or isinstance(runner, ControllerRunner)):
            plain = None  # other libraries draw other noise
        difference = None if plain is None else _first_difference(conversation, plain)
        answers = [answer for _, answer in conversation]
        parts = {part for answer in answers for part in answer.seconds_by_part}
        counts = ("seconds", "rounds", "drafted", "accepted")
        return PromptRow(
            controller=runner.name,
            prompt_id=prompt.identifier,
            category=prompt.category,
            repeat=repeat,
            prompt_tokens=sum(len(request.prompt) for request, _ in conversation),
            tokens=sum(len(answer.tokens) for answer in answers),
            **{name: sum(getattr(answer, name) for answer in answers) for name in counts},
            seconds_by_part={part: sum(answer.seconds_by_part[part] for answer in answers) for part in sorted(parts)},
            identical=None if plain is None else difference is None,
            first_difference=difference[1] if difference else None,
            top2_gap=self._gap(runner, plain, *difference) if plain and difference else None,
        )

    @torch.inference_mode()
    def _gap(self, runner: Runner, plain: _Conversation, turn: int, index: int) -> float:
        """Returns by how much the target's best score exceeds the second best at a token of plain decoding."""
        request, answer = plain[turn]
        text = [*request.prompt, *answer.tokens[:index]]
        target = runner.target or self.pair.target
        target.start()
        chooser = TokenChooser(request.sampling, target.vocabulary, target.device, request.processors, text)
        best, second = chooser.scores(target.extend(text), [len(text)])[0].float().topk(2).values.tolist()
        return float(best - second)


def _first_difference(conversation: _Conversation, plain: _Conversation) -> tuple[int, int] | None:
    """Returns turn and index of the first difference, if any. A text that merely ends early differs where it ends."""
    for turn, ((_, answer), (_, expected)) in enumerate(zip(conversation, plain, strict=True)):
        for index, (token, other) in enumerate(zip_longest(answer.tokens, expected.tokens)):
            if token != other:
                return turn, index
    return None
