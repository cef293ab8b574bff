"""Controllers judged on recorded texts: every one of them from plain decoding up to the clairvoyant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import numpy as np

from specgym.controllers.evaluation.ladder.bounds import Playback, clairvoyant, collect_choices, myopic, play_static
from specgym.controllers.evaluation.results.schema import CLAIRVOYANT, MYOPIC, PromptRow
from specgym.controllers.registry import BASELINE, make_controller
from specgym.controllers.rules.phases import StaticController
from specgym.controllers.run import run
from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import ParameterError
from specgym.env.common.processes import map_on_cores
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.decoder import ReplayDecoder
from specgym.env.replay.sources import find_profile, playable, text_request
from specgym.env.replay.tables.action_table import OutcomeTable
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.tree.parameters import TreeParameters

BEST_STATIC = "best_static"
BOUNDS = (MYOPIC, CLAIRVOYANT)
_PLAYERS = {MYOPIC: myopic, CLAIRVOYANT: clairvoyant}
_TOGETHER = 32  # choices that are played side by side
_FEW_TOKENS = 10_000  # of all texts and controllers: fewer are not worth further processes

Progress = Callable[[str], None]
"""`progress(name)`: a step of this name is done"""


Job = tuple[str, LatencyProfile, "TreeParameters | None"]
"""a controller's name, the machine, and parameters that never change, which are played in place of a controller"""


def ladder_names(controllers: Sequence[str]) -> list[str]:
    """Returns the rungs: plain decoding, the best static parameters, the controllers, the bounds.

    Raises:
        UnknownNameError: no such controller or option.
        ParameterError: a value that an option cannot take.
    """
    for name in controllers:
        if name not in (BEST_STATIC, *BOUNDS):
            make_controller(name)
    rest = [name for name in controllers if name not in (BASELINE, BEST_STATIC, *BOUNDS)]
    return list(dict.fromkeys([BASELINE, BEST_STATIC, *rest, *BOUNDS]))


def ladder_steps(names: Sequence[str], profiles: int, grid: Collection[TreeParameters]) -> int:
    """Returns how often `judge_ladder` calls `progress`."""
    return 4 * len(grid) + profiles * (len(names) - len(BOUNDS))


def judge_ladder(
    judged: Sequence[TraceText],
    train: Sequence[TraceText],
    header: TraceHeader,
    *,
    names: Sequence[str],
    profiles: Mapping[str, LatencyProfile],
    grid: Collection[TreeParameters],
    progress: Progress = lambda name: None,
) -> tuple[dict[str, list[PromptRow]], dict[str, TreeParameters]]:
    """Judges every rung on every machine.

    Args:
        judged: the texts to judge on, all greedy or all sampled.
        train: the texts to choose the best static parameters by.
        header: of their trace.
        names: of the rungs, see `ladder_names`.
        profiles: machines by name.
        grid: the choices there are.
        progress: called `ladder_steps` times.

    Returns:
        Rows of every rung, and the best static parameters, by machine.

    Raises:
        UnmeasuredError, UnrecordedError: a profile or the trace does not cover a choice.
    """
    evaluation, machines = LadderEvaluation(judged, header), list(profiles.values())
    costs = [profile.costs(judged[0].settings.greedy) for profile in machines]
    static = dict(zip(profiles, best_static(train, header, costs, grid, progress), strict=True))
    bounds = dict(zip(profiles, evaluation.bounds(machines, grid, progress), strict=True))
    jobs = {
        (profile, name): (name, profiles[profile], static[profile] if name == BEST_STATIC else None)
        for profile in profiles
        for name in names
        if name not in BOUNDS
    }
    played = dict(zip(jobs, evaluation.controllers(list(jobs.values()), progress), strict=True))
    rows = {
        profile: [row for name in names for row in (bounds[profile][name] if name in BOUNDS else played[profile, name])]
        for profile in profiles
    }
    return rows, static


def best_static(
    texts: Sequence[TraceText],
    header: TraceHeader,
    machines: Sequence[RoundCosts],
    grid: Collection[TreeParameters],
    progress: Progress = lambda name: None,
) -> list[TreeParameters]:
    """Returns the parameters of a grid that are fastest if they never change, on each machine.

    Args:
        texts: the texts to choose by, all greedy or all sampled; not those to judge on.
        header: of their trace.
        machines: costs of the machines.
        grid: the choices there are.
        progress: called for each choice that is tabulated, and for each that is played.

    Raises:
        UnmeasuredError, UnrecordedError: a profile or the trace does not cover the grid.
    """
    if not grid:
        raise ParameterError("Expected a grid of one choice or more; got an empty one.")
    table = TraceTable(playable(texts), header)
    outcomes = OutcomeTable([table], list(grid))
    outcomes.tabulate_all(lambda done: progress(BEST_STATIC))

    def play(numbers: IntArray) -> FloatArray:
        choices = [outcomes.outcomes(number) for number in numbers.tolist()]
        return np.stack([play_static(table, costs, choices).seconds.sum(axis=1) for costs in machines])

    count = len(outcomes.choices)
    parts = np.array_split(np.arange(count), -(-count // _TOGETHER))
    totals = []
    for numbers, part in zip(parts, map_on_cores(play, parts, outcomes.cores), strict=True):
        totals.append(part)
        for _ in numbers:
            progress(BEST_STATIC)
    fastest = np.concatenate(totals, axis=1).argmin(axis=1)  # of equal ones the first
    return [outcomes.choices[number] for number in fastest.tolist()]


class LadderEvaluation:
    """A judgement on texts that are all greedy or all sampled.

    Times are predicted. They leave out the reading of the prompt and the first token, which no controller decides.
    """

    def __init__(self, texts: Sequence[TraceText], header: TraceHeader) -> None:
        self.texts, self.header = playable(texts), header

    def bounds(
        self,
        profiles: Sequence[LatencyProfile],
        grid: Collection[TreeParameters],
        progress: Progress = lambda name: None,
    ) -> list[dict[str, list[PromptRow]]]:
        """Returns the rows of the bounds, for each profile.

        Raises:
            UnmeasuredError, UnrecordedError: a profile or the trace does not cover the grid.
        """
        table = TraceTable(self.texts, self.header)
        machines = [profile.costs(table.greedy) for profile in profiles]
        outcomes = OutcomeTable([table], list(grid))
        outcomes.tabulate_all(lambda done: progress("bounds"))
        collected = collect_choices(outcomes, machines, lambda: progress("bounds"))
        return [
            {name: _bound_rows(name, self.texts, play(table, costs, choices)) for name, play in _PLAYERS.items()}
            for costs, choices in zip(machines, collected, strict=True)
        ]

    def controllers(self, jobs: Sequence[Job], progress: Progress = lambda name: None) -> list[list[PromptRow]]:
        """Returns the rows of several controllers, played on all cores. Raises as `controller` does."""
        tokens = sum(len(text.tokens) - text.prompt for text in self.texts) * len(jobs)
        played: list[list[PromptRow]] = []
        for rows in map_on_cores(lambda job: self.controller(*job), jobs, 1 if tokens < _FEW_TOKENS else None):
            progress(jobs[len(played)][0])
            played.append(rows)
        return played

    def controller(self, name: str, profile: LatencyProfile, static: TreeParameters | None = None) -> list[PromptRow]:
        """Returns the rows of a controller, or of parameters that never change, called `name`.

        Raises:
            UnmeasuredError, UnrecordedError: the profile or the trace does not cover its choices.
        """
        decoder = self._decoder
        decoder.profile = profile
        controller = make_controller(name) if static is None else StaticController(static)
        rows = []
        for text in self.texts:
            played = run(decoder, controller, text_request(text))
            seconds = sum(played.seconds_by_part[part] for part in ("draft", "verify", "commit"))
            rows.append(prompt_row(name, text, seconds, played.rounds - 1, (played.drafted, played.accepted)))
        return rows

    @cached_property
    def _decoder(self) -> ReplayDecoder:
        """One decoder for all controllers and machines, since it remembers the outcomes of rounds."""
        return ReplayDecoder(self.texts, self.header, find_profile())


def _bound_rows(name: str, texts: Sequence[TraceText], played: Playback) -> list[PromptRow]:
    columns = (column.tolist() for column in played)
    return [
        prompt_row(name, text, seconds, rounds, (drafted, accepted))
        for text, seconds, rounds, drafted, accepted in zip(texts, *columns, strict=True)
    ]


def prompt_row(name: str, text: TraceText, seconds: float, rounds: int, nodes: tuple[int, int]) -> PromptRow:
    """Returns the row of a text that was replayed to its end.

    Args:
        name: of the controller.
        text: the text.
        seconds: its predicted time [s].
        rounds: number of its rounds.
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
    )
