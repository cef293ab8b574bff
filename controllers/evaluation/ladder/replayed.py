"""Controllers judged on recorded texts: every one of them from plain decoding up to the clairvoyant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from specgym.controllers.evaluation.ladder.bounds import Playback, clairvoyant, collect_choices, myopic, play_static
from specgym.controllers.evaluation.live.paired_runs import BASELINE
from specgym.controllers.evaluation.results.schema import PromptRow
from specgym.controllers.registry import make_controller
from specgym.controllers.rules.phases import StaticController
from specgym.controllers.run import run
from specgym.env.common.errors import ParameterError
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.sources import playable
from specgym.env.replay.tabulation import TraceTable
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request

BEST_STATIC, MYOPIC, CLAIRVOYANT = "best_static", "myopic", "clairvoyant"
BOUNDS = (MYOPIC, CLAIRVOYANT)

Progressed = Callable[[str], None]
"""`progress(name)`: a step of this name is done"""


def ladder_names(controllers: Sequence[str]) -> list[str]:
    """The rungs: plain decoding, the best static parameters, the controllers, the bounds.

    Raises:
        UnknownNameError: no such controller or option.
        ParameterError: an option's value that it cannot take.
    """
    for name in controllers:
        if name not in (BEST_STATIC, *BOUNDS):
            make_controller(name)
    rest = [name for name in controllers if name not in (BASELINE, BEST_STATIC, *BOUNDS)]
    return list(dict.fromkeys([BASELINE, BEST_STATIC, *rest, *BOUNDS]))


def best_static(
    texts: Sequence[TraceText],
    header: TraceHeader,
    machines: Sequence[RoundCosts],
    grid: Collection[TreeParameters],
    progress: Progressed = lambda name: None,
) -> list[TreeParameters]:
    """The parameters of a grid that are fastest if they never change, on each machine.

    Args:
        texts: the texts to choose by, all greedy or all sampled; not those to judge on.
        header: of their trace.
        machines: what rounds take.
        grid: the choices there are.
        progress: told after each.

    Raises:
        UnmeasuredError, UnrecordedError: a profile or the trace does not cover the grid.
    """
    corpus = TraceTable(playable(texts), header)
    best: list[tuple[float, TreeParameters | None]] = [(np.inf, None)] * len(machines)
    for parameters in grid:
        totals = [float(played.seconds.sum()) for played in play_static(corpus, machines, parameters)]
        best = [
            min(one, (total, parameters), key=lambda each: each[0]) for one, total in zip(best, totals, strict=True)
        ]
        progress(BEST_STATIC)
    chosen = [parameters for _, parameters in best if parameters is not None]
    if len(chosen) < len(machines):
        raise ParameterError("Expected a grid of one choice or more; got an empty one.")
    return chosen


@dataclass(frozen=True)
class LadderEvaluation:
    """A judgement on texts that are all greedy or all sampled.

    Times are predicted and leave the reading of the prompt and the first token out, which no controller decides.
    """

    texts: Sequence[TraceText]
    header: TraceHeader

    def bounds(
        self,
        profiles: Sequence[LatencyProfile],
        grid: Collection[TreeParameters],
        progress: Progressed = lambda name: None,
    ) -> list[dict[str, list[PromptRow]]]:
        """Rows of the bounds, for each profile.

        Raises:
            UnmeasuredError, UnrecordedError: a profile or the trace does not cover the grid.
        """
        texts = playable(self.texts)
        corpus = TraceTable(texts, self.header)
        machines = [profile.costs(corpus.greedy) for profile in profiles]
        collected = collect_choices(corpus, machines, grid, lambda: progress("bounds"))
        return [
            {
                MYOPIC: _bound_rows(MYOPIC, texts, myopic(corpus, costs, choices)),
                CLAIRVOYANT: _bound_rows(CLAIRVOYANT, texts, clairvoyant(corpus, costs, choices)),
            }
            for costs, choices in zip(machines, collected, strict=True)
        ]

    def controller(self, name: str, profile: LatencyProfile, static: TreeParameters | None = None) -> list[PromptRow]:
        """Rows of a controller, or of parameters that never change, called `name`.

        Raises:
            UnmeasuredError, UnrecordedError: the profile or the trace does not cover what it chooses.
        """
        texts = playable(self.texts)
        decoder = ReplayDecoder(texts, self.header, profile)
        controller = make_controller(name) if static is None else StaticController(static)
        rows = []
        for text in texts:
            request = Request(text.tokens[: text.prompt], text.max_new_tokens, text.settings)
            generation = run(decoder, controller, request)
            seconds = sum(generation.seconds_by_part[part] for part in ("draft", "verify", "commit"))
            rows.append(
                prompt_row(name, text, seconds, generation.rounds - 1, (generation.drafted, generation.accepted))
            )
        return rows


def _bound_rows(name: str, texts: Sequence[TraceText], played: Playback) -> list[PromptRow]:
    columns = (played.seconds, played.rounds, played.drafted, played.accepted)
    return [
        prompt_row(name, text, float(seconds), int(rounds), (int(drafted), int(accepted)))
        for text, seconds, rounds, drafted, accepted in zip(texts, *columns, strict=True)
    ]


def prompt_row(name: str, text: TraceText, seconds: float, rounds: int, nodes: tuple[int, int]) -> PromptRow:
    """The row of a text that was replayed to its end.

    Args:
        name: of the controller.
        text: the text.
        seconds: its predicted time [s].
        rounds: how many there were [rounds].
        nodes: drafted and accepted ones.
    """
    seed = "" if text.settings.greedy else f"#{text.settings.seed}"
    return PromptRow(
        controller=name,
        prompt_id=f"{text.identifier}{seed}",
        category=text.category,
        repeat=0,
        prompt_tokens=text.prompt,
        tokens=len(text.tokens) - text.prompt - 1,
        seconds=seconds,
        rounds=rounds,
        drafted=nodes[0],
        accepted=nodes[1],
        seconds_by_part={},
        identical=None,
        first_difference=None,
        top2_gap=None,
    )
