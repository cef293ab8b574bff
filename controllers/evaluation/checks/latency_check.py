"""Checks a latency profile on real texts, predicted against measured time, and shows it in tables and a figure.

A machine may be a tenth slower some minutes later, which says nothing about the profile. So texts are best played
between the measurements that the profile is made of. The speed may also change within seconds. So every text begins
and ends with plain rounds, and its time is also compared with theirs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from specgym.controllers.evaluation.results.figures import SERIES, new_figure, save_figure
from specgym.controllers.evaluation.results.tables import Table
from specgym.controllers.registry import make_controller
from specgym.env.common.arrays import FloatArray
from specgym.env.decoding.live import LiveDecoder
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import Check, LatencyProfile, Point
from specgym.env.tree.parameters import PLAIN
from specgym.env.tree.rounds import Request, RoundOutcome
from specgym.env.tree.sampling import SamplingSettings

_STAGES = {"root": "first draft level", "level": "further draft level", "verify": "verification"}
_ROWS = {"root": (1, 4, 16), "level": (1, 8, 32), "verify": (1, 8, 32, 64)}  # rows of each stage that are printed
_PLAINS = 8  # plain rounds before the controller's, and after them
FRAME = 2 * _PLAINS + 12
"""tokens of a text besides the controller's: plain rounds, a round that warms up, the excess of the last tree"""


@dataclass
class _Text:
    """Rounds of a text, each with the length of the text before it."""

    steered: list[tuple[int, RoundOutcome]] = field(default_factory=list)
    plain: list[tuple[int, RoundOutcome]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the controller's rounds."""
        return sum(len(outcome.tokens) for _, outcome in self.steered)


class ProfileCheck:
    """Lets controllers decode texts, and predicts each of their rounds from its rows.

    Reading the prompt is no round and is left out. On each prompt the controllers take turns in random order.

    Args:
        decoder: of the pair that the profile is of.
        controllers: names, as for `make_controller`.
        prompts: token ids.
        max_new_tokens: tokens of a text that the controller decodes [tokens].
        temperature: of the sampled texts; every prompt is also continued greedily.
        seed: of the order and of the sampling.
    """

    def __init__(
        self,
        decoder: LiveDecoder,
        controllers: Sequence[str],
        prompts: Sequence[tuple[int, ...]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int = 0,
    ) -> None:
        order, modes = random.Random(seed), {True: SamplingSettings(), False: SamplingSettings(temperature, seed=seed)}
        kinds = [(name, greedy) for name in controllers for greedy in modes]
        self._decoder, self._wanted = decoder, max_new_tokens
        self._left = [
            (kind, Request(prompt, max_new_tokens + FRAME, modes[kind[1]], ignore_end=True))
            for prompt in prompts
            for kind in order.sample(kinds, len(kinds))
        ]
        self._texts: dict[tuple[str, bool], list[_Text]] = {kind: [] for kind in kinds}

    @property
    def left(self) -> int:
        """Number of texts that are not played yet."""
        return len(self._left)

    def play(self, texts: int) -> None:
        """Plays at most so many of the texts that are left."""
        for kind, request in self._left[:texts]:
            self._texts[kind].append(self._play(kind[0], request))
        del self._left[:texts]

    def checks(self, profile: LatencyProfile) -> tuple[Check, ...]:
        """Compares the profile with the texts played so far. Raises `UnmeasuredError` for rows it does not cover."""
        return tuple(_check(profile, *kind, texts) for kind, texts in self._texts.items() if texts)

    def _play(self, name: str, request: Request) -> _Text:
        decoder, controller, text = self._decoder, make_controller(name), _Text()
        controller.reset()
        decoder.start(request)
        outcome = decoder.round(PLAIN)  # warms up
        while outcome.finished is None and len(text.plain) < 2 * _PLAINS:
            context = len(decoder.tokens) - 1
            if len(text.plain) < _PLAINS or text.tokens >= self._wanted:
                outcome = decoder.round(PLAIN)
                text.plain.append((context, outcome))
            else:
                outcome = decoder.round(controller.act(decoder.observe(controller.observes_draft)))
                text.steered.append((context, outcome))
        return text


def _check(profile: LatencyProfile, name: str, greedy: bool, texts: list[_Text]) -> Check:
    costs = profile.costs(greedy)
    measured = np.array([sum(outcome.seconds.total for _, outcome in text.steered) for text in texts])
    predicted = np.array([sum(_predicted(costs, *steered) for steered in text.steered) for text in texts])
    contexts = [int(np.median([context for context, _ in text.steered])) for text in texts]
    plain_tokens = [costs.plain_seconds(context) * text.tokens for context, text in zip(contexts, texts, strict=True)]
    steps = predicted / plain_tokens  # plain steps a token
    # How many times slower than in its profile the machine was, by the plain rounds.
    slowdown = [
        np.median([outcome.seconds.total / _predicted(costs, context, outcome) for context, outcome in text.plain])
        for text in texts
    ]
    measured_steps = steps * measured / predicted / slowdown
    return Check(
        controller=name,
        greedy=greedy,
        texts=len(texts),
        rounds=sum(len(text.steered) for text in texts),
        measured=float(measured.sum()),
        predicted=float(predicted.sum()),
        error=_error(predicted, measured),
        measured_steps=float(np.median(measured_steps)),
        predicted_steps=float(np.median(steps)),
        steps_error=_error(steps, measured_steps),
    )


def _error(predicted: FloatArray, measured: FloatArray) -> float:
    return float(np.median(np.abs(predicted / measured - 1)))


def _predicted(costs: RoundCosts, context: int, outcome: RoundOutcome) -> float:
    return costs.round_seconds(context, outcome.level_rows, outcome.drafted + 1, outcome.lookup_nodes)


def profile_tables(profile: LatencyProfile) -> list[Table]:
    """Returns the costs of greedy and sampled rounds and, if the profile was checked, how well it predicts."""
    tables = [_costs_table(profile.greedy, "greedy"), _costs_table(profile.sampled, "sampled")]
    return [*tables, _checks_table(profile.checks), _ranks_table(profile.checks)] if profile.checks else tables


def _costs_table(costs: RoundCosts, mode: str) -> Table:
    """Parts of a round, by context."""
    lines = {"plain step, ms": [1e3 * costs.plain_seconds(context) for context in costs.contexts]}
    for stage, rows in _ROWS.items():
        curve = getattr(costs, stage)
        for number in rows:
            if number <= curve.most:
                lines[f"{stage}, {number} rows, ms"] = [1e3 * float(line[number]) for line in curve.table]
    lines["one more level, plain steps"] = list(map(costs.level_cost, costs.contexts))
    lines["one more row, plain steps"] = list(map(costs.row_cost, costs.contexts))
    lines["overhead of a round, ms"] = [1e3 * costs.overhead] * len(costs.contexts)
    lines["lookup of a node, ms"] = [1e3 * costs.lookup] * len(costs.contexts)
    cells = [(name, *(f"{v:.2f}" if v >= 1 else f"{v:.4f}" for v in values)) for name, values in lines.items()]
    return Table((mode, *(f"at {context:,}" for context in costs.contexts)), cells)


def _checks_table(checks: Sequence[Check]) -> Table:
    """Predicted and measured time: in seconds, and for a token in the plain steps of the same minute."""
    names = "rounds", "measured", "predicted", "error", "in plain steps", "predicted", "error"
    rows = []
    for check in checks:
        times = f"{check.measured:.2f} s", f"{check.predicted:.2f} s", f"{100 * check.error:.1f} %"
        steps = f"{check.measured_steps:.3f}", f"{check.predicted_steps:.3f}", f"{100 * check.steps_error:.1f} %"
        rows.append((check.controller, "greedy" if check.greedy else "sampled", check.rounds, *times, *steps))
    return Table(("controller", "", *names), rows)


def _ranks_table(checks: Sequence[Check]) -> Table:
    """Controllers from the fastest to the slowest, as measured and as predicted."""
    rows = []
    for mode, greedy in (("greedy", True), ("sampled", False)):
        same_mode = [check for check in checks if check.greedy == greedy]
        orders = [sorted(same_mode, key=attrgetter(f"{name}_steps")) for name in ("measured", "predicted")]
        for place, pair in enumerate(zip(*orders, strict=True), 1):
            rows.append((f"{mode}, {place}", *(check.controller for check in pair)))
    return Table(("from fast to slow", "measured", "predicted"), rows)


def plot_profile(profile: LatencyProfile, path: Path) -> None:
    """Draws time by rows as a PNG, with a panel for each stage, greedy above sampled.

    Curves are lines; points are dots that grow with the number of measurements.

    Raises:
        FileWriteError: the file could not be written.
    """
    figure, panels = new_figure(
        "Latency by rows", (12, 6.5), (2, len(_STAGES)), subtitle=_subtitle(profile.origin), sharex="col", sharey="col"
    )
    for greedy, line in zip((True, False), panels, strict=True):
        points = [point for point in profile.points if point.greedy == greedy]
        for stage, axes in zip(_STAGES, line, strict=True):
            _draw(axes, profile.costs(greedy), points, stage)
            axes.set_title(f"{_STAGES[stage]}, {'greedy' if greedy else 'sampled'}", loc="left", fontsize=10)
        line[0].set_ylabel("ms")
    for axes in panels[1]:
        axes.set_xlabel("rows")
        axes.set_xlim(left=0)  # a limit set before drawing would not hold
        axes.set_ylim(bottom=0)
    panels[0, -1].legend(title="context [tokens]", fontsize=8, frameon=False)
    save_figure(figure, path)


def _subtitle(origin: dict[str, Any]) -> str:
    if "family" in origin:
        return f"family {origin['family']}"
    machine = origin["machine"]
    place = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    return f"{origin['target']} with {origin['draft']} · {origin['dtype']} · {place}"


def _draw(axes: Axes, costs: RoundCosts, points: list[Point], stage: str) -> None:
    curve = getattr(costs, stage)
    for index, (context, seconds) in enumerate(zip(costs.contexts, curve.seconds, strict=True)):
        colour = SERIES[index % len(SERIES)]
        axes.plot(curve.rows, [1e3 * value for value in seconds], color=colour, linewidth=1.4, label=f"{context:,}")
        cells = [point for point in points if point.stage == stage and point.context == context]
        sizes = [15.0 * cell.count**0.5 for cell in cells]
        axes.scatter([p.rows for p in cells], [1e3 * p.seconds for p in cells], sizes, color=colour, alpha=0.5, lw=0)
