"""Tokens and time of past rounds, computed from observations."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import LEVEL_PRIOR, ROW_PRIOR, Observation, PastRound
from specgym.env.tree.parameters import Source


@dataclass(frozen=True)
class MachineCosts:
    """Costs of drafting and verifying a little more."""

    level: float
    """one more level of draft forwards [plain steps]"""
    row: float
    """one more row of a verification [plain steps]"""

    def steps(self, past: PastRound, source: Source) -> float:
        """Predicts the time of a round: the target's forward, the draft's levels, the verified nodes [plain steps].

        The overhead of a round is not observed and left out.
        """
        levels = 0 if source == "lookup" else past.depth
        return 1 + self.level * levels + self.row * past.drafted


def machine_costs(observation: Observation) -> MachineCosts:
    """Returns the observed costs, or `LEVEL_PRIOR` and `ROW_PRIOR` where the machine reports neither."""
    level, row = observation.level_cost, observation.row_cost
    return MachineCosts(LEVEL_PRIOR, ROW_PRIOR) if level == row == 0 else MachineCosts(level, row)


def last_round(observation: Observation) -> PastRound | None:
    """Returns the last round that was chosen for this request; None before the first."""
    return observation.recent[-1] if observation.recent else None


class Throughput:
    """Moving averages of tokens and time, in which older rounds count less.

    Args:
        window: rounds after which a round's weight has fallen to 1/e [rounds].
        prior: rounds of plain decoding to start with [rounds].

    Raises:
        ParameterError: a value outside its range.
    """

    def __init__(self, window: int, prior: float = 4.0) -> None:
        if window < 1:
            raise ParameterError(f"window must be 1 or more; got {window}.")
        self.keep = 1 - 1 / window
        self.rounds = self.tokens = self.steps = prior

    def add(self, tokens: float, steps: float) -> None:
        """Adds a round's tokens and time [plain steps]."""
        self.rounds = self.keep * self.rounds + 1
        self.tokens, self.steps = self.keep * self.tokens + tokens, self.keep * self.steps + steps

    @property
    def rate(self) -> float:
        """Tokens per plain step; plain decoding has 1."""
        return self.tokens / self.steps

    def profit(self, time_price: float) -> float:
        """Returns the average tokens of a round beyond a plain one, less the price of the round's extra time."""
        return self.tokens / self.rounds - 1 - time_price * (self.steps / self.rounds - 1)


class Gate:
    """Closes for a break when speculation has not paid, and for twice as long each time that it still does not.

    Speculation pays if it gets more tokens per plain step than plain decoding's 1: over `window` rounds, or after a
    break over `probe` rounds. Breaks double from `rest` to `longest` rounds, until a whole window has paid.

    Args:
        window: rounds that are judged together [rounds].
        probe: rounds of a trial after a break [rounds].
        rest: length of the first break [rounds].
        longest: length of the longest one [rounds].

    Raises:
        ParameterError: a value outside its range.
    """

    def __init__(self, window: int = 16, probe: int = 4, rest: int = 16, longest: int = 512) -> None:
        if not 1 <= probe <= window:
            raise ParameterError(f"probe must be within 1 and window; got {probe} and {window}.")
        if not 1 <= rest <= longest:
            raise ParameterError(f"rest must be within 1 and longest; got {rest} and {longest}.")
        self.window, self.probe, self.rest, self.longest = window, probe, rest, longest
        self.rounds: deque[tuple[float, float]] = deque(maxlen=window)  # tokens and plain steps
        self.rounds_needed, self.next_break, self.break_left = window, rest, 0

    @property
    def closed(self) -> bool:
        """Whether there is a break now."""
        return self.break_left > 0

    def wait(self) -> None:
        """Counts a round of the break."""
        self.break_left -= 1

    def add(self, tokens: float, steps: float) -> None:
        """Adds a speculative round, and starts a break if the rounds that count have not paid."""
        self.rounds.append((tokens, steps))
        if len(self.rounds) < self.rounds_needed:
            return
        tokens, steps = (sum(column) for column in zip(*self.rounds, strict=True))
        if tokens <= steps:
            self.break_left, self.next_break = self.next_break, min(2 * self.next_break, self.longest)
            self.rounds.clear()
            self.rounds_needed = self.probe
        elif len(self.rounds) == self.window:
            self.rounds_needed, self.next_break = self.window, self.rest
