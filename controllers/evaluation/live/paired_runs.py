"""Running controllers over prompts, interleaved, and comparing what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

import torch

from specgym.controllers.evaluation.live.runners import ControllerRunner, Runner, RunnerError
from specgym.controllers.evaluation.results.schema import Failure, PromptRow
from specgym.controllers.run import Generation
from specgym.env.common.errors import LimitError, NumericalError
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.models.target import TargetModel
from specgym.env.prompts import Prompt
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings, TokenChooser

BASELINE = "autoregressive"

SUITES = {
    "phase1": ("autoregressive", "fixed_tree", "confidence"),
    "phase2": ("autoregressive", "confidence", "dynamic_depth"),
    "full": ("transformers", "autoregressive", "fixed_tree", "confidence", "dynamic_depth", "history", "goodput"),
}
"""the three comparisons of the project's plan: fixed against Phase 1, Phase 1 against Phase 2, and all phases; with
the last one the strongest rule"""

_WARM_UP_TOKENS = 12
_FAILURES = (LimitError, NumericalError, RunnerError)


@dataclass
class Measurements:
    """What has been measured so far."""

    rows: list[PromptRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class _Talk:
    """A conversation with one runner: the requests made and what came of them."""

    requests: list[Request]
    answers: list[Generation]


@dataclass(frozen=True)
class _Difference:
    """Where two talks part."""

    turn: int
    index: int


class Benchmark:
    """A comparison of runners.

    Args:
        pair: the models; used to encode prompts and to look into differences.
        runners: what is compared, the baseline among them.
        prompts: what to continue; the turns of a prompt follow each other, each with the answers before it.
        max_new_tokens: most tokens of an answer [tokens].
        sampling: how tokens are chosen; every prompt gets a seed of its own, the same for all runners.
        repeats: times that everything is measured.
        references: whose output a runner's is compared with, where that is not the baseline's.
        targets: the model that chose a runner's tokens, where that is not the pair's.
    """

    def __init__(
        self,
        pair: ModelPair,
        runners: Sequence[Runner],
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        sampling: SamplingSettings,
        repeats: int = 1,
        references: Mapping[str, str] | None = None,
        targets: Mapping[str, TargetModel] | None = None,
    ) -> None:
        self.pair, self.runners, self.prompts = pair, runners, prompts
        self.max_new_tokens, self.sampling, self.repeats = max_new_tokens, sampling, repeats
        self.references, self.targets = references or {}, targets or {}
        # Others' noise is another than ours.
        self._comparable = {each.name for each in runners if sampling.greedy or isinstance(each, ControllerRunner)}

    @property
    def steps(self) -> int:
        """Runs that `measure` makes, warm-up left out."""
        return len(self.runners) * len(self.prompts) * self.repeats

    def warm_up(self) -> None:
        """Runs everything once, briefly, so that no first call is measured."""
        prompt = encode_chat(self.pair.tokenizer, self.prompts[0].turns[:1])[-256:]
        for runner in self.runners:
            with contextlib.suppress(*_FAILURES):  # it will fail again, where failures are counted
                runner(Request(prompt, _WARM_UP_TOKENS, self.sampling))

    def measure(self, measured: Measurements, progress: Callable[[str], None] = lambda name: None) -> None:
        """Measures everything, prompt by prompt.

        The runners take turns at being first, so that none profits from its place.

        Args:
            measured: where the rows of a prompt are added as soon as all runners are through with it, so that an
                interrupt loses no more than the prompt under way.
            progress: told the runner's name after every run.
        """
        for repeat in range(self.repeats):
            for index, prompt in enumerate(self.prompts):
                first = (index + repeat) % len(self.runners)
                talks: dict[str, _Talk] = {}
                for runner in [*self.runners[first:], *self.runners[:first]]:
                    try:
                        talks[runner.name] = self._talk(runner, prompt, index)
                    except _FAILURES as error:
                        measured.failures.append(Failure(runner.name, prompt.identifier, repeat, str(error)))
                    progress(runner.name)
                for name, talk in talks.items():
                    measured.rows.append(
                        self._row(name, prompt, repeat, talk, talks.get(self.references.get(name, BASELINE)))
                    )

    def _talk(self, runner: Runner, prompt: Prompt, index: int) -> _Talk:
        talk = _Talk([], [])
        turns: list[str] = []
        sampling = replace(self.sampling, seed=self.sampling.seed + index)
        for turn in prompt.turns:
            turns.append(turn)
            request = Request(encode_chat(self.pair.tokenizer, turns), self.max_new_tokens, sampling)
            talk.requests.append(request)
            talk.answers.append(runner(request))
            turns.append(self.pair.tokenizer.decode(talk.answers[-1].tokens, skip_special_tokens=True) or " ")
        return talk

    def _row(self, name: str, prompt: Prompt, repeat: int, talk: _Talk, plain: _Talk | None) -> PromptRow:
        """The row of a talk, compared with plain decoding's where the two can be alike."""
        answers = talk.answers
        if name not in self._comparable:
            plain = None
        difference = None if plain is None else _first_difference(talk, plain)
        parts = {part for answer in answers for part in answer.seconds_by_part}
        return PromptRow(
            controller=name,
            prompt_id=prompt.identifier,
            category=prompt.category,
            repeat=repeat,
            prompt_tokens=sum(len(request.prompt) for request in talk.requests),
            tokens=sum(len(answer.tokens) for answer in answers),
            seconds=sum(answer.seconds for answer in answers),
            rounds=sum(answer.rounds for answer in answers),
            drafted=sum(answer.drafted for answer in answers),
            accepted=sum(answer.accepted for answer in answers),
            seconds_by_part={part: sum(answer.seconds_by_part[part] for answer in answers) for part in sorted(parts)},
            identical=None if plain is None else difference is None,
            first_difference=None if difference is None else difference.index,
            top2_gap=None if difference is None or plain is None else self._gap(name, difference, plain),
        )

    @torch.inference_mode()
    def _gap(self, name: str, difference: _Difference, plain: _Talk) -> float:
        """How far the target's best score leads the second best where plain decoding took another token."""
        request, answer = plain.requests[difference.turn], plain.answers[difference.turn]
        text = [*request.prompt, *answer.tokens[: difference.index]]
        target = self.targets.get(name, self.pair.target)
        target.cache.reset()
        logits = target.extend(text)
        chooser = TokenChooser(request.sampling, target.vocabulary, target.device)
        best, second = chooser.scores(logits, [len(text)])[0].float().topk(2).values.tolist()
        return float(best - second)


def _first_difference(talk: _Talk, plain: _Talk) -> _Difference | None:
    """Where two talks part; None if they never do. A text that merely ends early differs where it ends."""
    for turn, (mine, theirs) in enumerate(zip(talk.answers, plain.answers, strict=True)):
        if mine.tokens != theirs.tokens:
            pairs = zip_longest(mine.tokens, theirs.tokens)
            return _Difference(turn, next(index for index, (a, b) in enumerate(pairs) if a != b))
    return None
