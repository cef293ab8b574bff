"""What rounds brought and took, as a controller can tell it from what it observes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import LEVEL_PRIOR, ROW_PRIOR, Observation, PastRound
from specgym.env.tree.parameters import Source


@dataclass(frozen=True)
class MachineCosts:
    """What a bit more speculation costs."""

    level: float
    """one more level of draft forwards [plain steps]"""
    row: float
    """one more row of a verification [plain steps]"""

    def steps(self, past: PastRound, source: Source) -> float:
        """Predicted time of a round [plain steps]: the target's forward, the draft's levels, the verified nodes.

        What a round costs besides is not observed and left out.
        """
        levels = 0 if source == "lookup" else past.depth
        return 1 + self.level * levels + self.row * past.drafted


_UNKNOWN = MachineCosts(LEVEL_PRIOR, ROW_PRIOR)


def machine_costs(observation: Observation) -> MachineCosts:
    """The machine's prices; where it tells neither of them, `LEVEL_PRIOR` and `ROW_PRIOR`."""
    if observation.level_cost == observation.row_cost == 0:
        return _UNKNOWN
    return MachineCosts(observation.level_cost, observation.row_cost)


def last_round(observation: Observation) -> PastRound | None:
    """The last round that was chosen for this request; None before the first."""
    return observation.recent[-1] if observation.recent else None


class Throughput:
    """What rounds have brought and taken, which count less the longer ago they were.

    Args:
        window: rounds after which a round counts less by a factor of e [rounds].
        prior: rounds of plain decoding that it begins with [rounds].

    Raises:
        ParameterError: a value outside its range.
    """

    def __init__(self, window: int, prior: float = 4.0) -> None:
        if window < 1:
            raise ParameterError(f"window must be 1 or more; got {window}.")
        self.keep = 1 - 1 / window
        self.rounds = self.tokens = self.steps = prior

    def note(self, tokens: float, steps: float) -> None:
        """Takes a round into account."""
        self.rounds = self.keep * self.rounds + 1
        self.tokens, self.steps = self.keep * self.tokens + tokens, self.keep * self.steps + steps

    @property
    def rate(self) -> float:
        """Tokens per plain step; that of plain decoding is 1."""
        return self.tokens / self.steps

    def profit(self, price: float) -> float:
        """Tokens that a round brought beyond a plain one, on average, less what its further time was worth."""
        return self.tokens / self.rounds - 1 - price * (self.steps / self.rounds - 1)


class Gate:
    """Whether to go on with what must pay: shut for a while when it has not paid, and longer every time again.

    It is judged by tokens per plain step, which have to exceed plain decoding's 1: over `window` rounds, or after a
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
        self.rounds: deque[tuple[float, float]] = deque(maxlen=window)
        self.needed, self.pause, self.left = window, rest, 0

    @property
    def shut(self) -> bool:
        """Whether there is a break now."""
        return self.left > 0

    def wait(self) -> None:
        """A round of a break goes by."""
        self.left -= 1

    def note(self, tokens: float, steps: float) -> None:
        """Takes a round into account, and begins a break if those that count have not paid."""
        self.rounds.append((tokens, steps))
        if len(self.rounds) < self.needed:
            return
        brought, took = (sum(column) for column in zip(*self.rounds, strict=True))
        if brought <= took:
            self.left, self.pause = self.pause, min(2 * self.pause, self.longest)
            self.rounds.clear()
            self.needed = self.probe
        elif len(self.rounds) == self.window:
            self.needed, self.pause = self.window, self.rest
