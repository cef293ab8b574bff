"""Published rules that choose the length of a chain, or where it ends, by how the last rounds went."""

from __future__ import annotations

from specgym.controllers.rules.shapes import DEEPEST, chain
from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import Source, TreeParameters


class HeuristicController:
    """Two tokens more after a chain that was accepted whole, one fewer after any other.

    The schedule ``"heuristic"`` of assisted generation in transformers, which began at 5 tokens in older versions and
    at 20 in newer ones; ``"heuristic_transient"`` begins anew with every request.

    Args:
        start: length of the first chain [tokens].
        longest: longest chain [tokens].
        transient: whether a request begins at `start`, rather than where the last one ended.
        source: who proposes tokens, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """

    observes_draft = False

    def __init__(
        self, start: int = 5, longest: int = DEEPEST, *, transient: bool = False, source: Source = "model"
    ) -> None:
        _check_lengths(start, longest)
        self.start, self.longest, self.transient, self.source = start, longest, transient, source
        self.length = start
        chain(longest, source)

    def reset(self) -> None:
        """Begins anew if it is transient."""
        if self.transient:
            self.length = self.start

    def act(self, observation: Observation) -> TreeParameters:
        """Adjusts the length to the last round's outcome."""
        if observation.last_depth > 0:
            whole = observation.last_accepted == observation.last_depth
            self.length = min(self.length + 2, self.longest) if whole else max(self.length - 1, 1)
        return chain(self.length, self.source)


class GammaTuneController:
    """As many tokens as were accepted lately, and one more.

    After Gautam, Shrestha and Reddy 2025, "Token-Driven GammaTune: Adaptive Calibration for Enhanced Speculative
    Decoding": an exponential average of accepted lengths sets the draft length. A chain that was accepted whole may
    have been too short, so it counts as accepted further, by `slack`.

    Args:
        start: length before anything was seen [tokens].
        longest: longest chain [tokens].
        rate: weight of the last round in the average, over 0 and at most 1.
        slack: tokens drafted past the average [tokens].
        source: who proposes tokens, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """

    observes_draft = False

    def __init__(
        self, start: int = 4, longest: int = DEEPEST, *, rate: float = 0.3, slack: float = 1.0, source: Source = "model"
    ) -> None:
        _check_lengths(start, longest)
        if not (0 < rate <= 1 and 0 <= slack <= longest):
            raise ParameterError(
                f"rate must be over 0 and at most 1, slack within 0 and {longest}; got {rate} and {slack}."
            )
        self.longest, self.rate, self.slack, self.source = longest, rate, slack, source
        self.average = max(start - slack, 0.0)
        chain(longest, source)

    def reset(self) -> None:
        """The average goes on from request to request."""

    def act(self, observation: Observation) -> TreeParameters:
        """Takes the last round into the average and chooses."""
        if observation.last_depth > 0:
            whole = observation.last_accepted == observation.last_depth
            accepted = observation.last_accepted + (self.slack if whole else 0.0)
            self.average += self.rate * (accepted - self.average)
        return chain(min(max(round(self.average + self.slack), 1), self.longest), self.source)


class AdaEdlController:
    """A chain that ends where a bound of the acceptance, by the draft's entropy, is under a threshold that adapts.

    Agrawal et al. 2024, "AdaEDL: Early Draft Stopping for Speculative Decoding of Large Language Models via an
    Entropy-based Lower Bound on Token Acceptance Probability". The bound is ``1 - sqrt(gamma * entropy)``. The
    threshold rises by small steps while the averaged acceptance rate is under its target and falls otherwise, as in
    Zhang et al. 2023, "Draft & Verify". The token drawn at the end is verified: it has been drafted.

    Args:
        threshold: at first, 0 or more and under 1 [probability].
        gamma: weight of the entropy, over 0 [1/nats].
        target: acceptance rate aimed at.
        step: by how much the threshold is moved at most [probability].
        memory: weight of the past in the averaged acceptance rate.
        inertia: weight of the past in the threshold.
        depth: most tokens [tokens].
        source: who proposes tokens, see `TreeParameters`; only a draft model has an entropy.

    Raises:
        ParameterError: a value outside its range.
    """

    observes_draft = False

    def __init__(
        self,
        threshold: float = 0.4,
        gamma: float = 0.2,
        *,
        target: float = 0.9,
        step: float = 0.01,
        memory: float = 0.5,
        inertia: float = 0.9,
        depth: int = DEEPEST,
        source: Source = "model",
    ) -> None:
        shares = {"threshold": threshold, "target": target, "step": step, "memory": memory, "inertia": inertia}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ParameterError(f"{name} must be 0 or more and under 1; got {value}.")
        if not gamma > 0:
            raise ParameterError(f"gamma must be over 0; got {gamma}.")
        self.threshold, self.gamma, self.target, self.step = threshold, gamma, target, step
        self.memory, self.inertia, self.depth, self.source = memory, inertia, depth, source
        self.acceptance = target
        chain(depth, source)

    def reset(self) -> None:
        """The threshold goes on from request to request."""

    def act(self, observation: Observation) -> TreeParameters:
        """Adapts the threshold to the last round's acceptance and chooses."""
        if observation.last_depth > 0:
            rate = observation.last_accepted / observation.last_depth
            self.acceptance = self.memory * self.acceptance + (1 - self.memory) * rate
            moved = self.threshold + (self.step if self.acceptance < self.target else -self.step)
            self.threshold = self.inertia * self.threshold + (1 - self.inertia) * moved
            self.threshold = min(max(self.threshold, 0.0), _STRICTEST)
        return chain(self.depth, self.source, max_entropy=(1 - self.threshold) ** 2 / self.gamma)


_STRICTEST = 0.99  # at 1 no distribution at all would be sure enough


def _check_lengths(start: int, longest: int) -> None:
    if not 1 <= start <= longest:
        raise ParameterError(f"start must be within 1 and longest; got {start} and {longest}.")
