"""Published rules for chains, one draft token after another: how long the chain is, or where it ends.

Recordings bound all rules: the published forms of these have no least reach, see `MIN_REACH`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from specgym.controllers.controller import Rule
from specgym.controllers.rules.phases import StaticController, uniform_tree
from specgym.controllers.rules.trees import DEPTH, MIN_REACH
from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import Source, TreeParameters

_MAX_THRESHOLD = 0.99  # of AdaEDL: a threshold of 1 would end every chain


def chain(depth: int, source: Source = "model", **stops: Any) -> TreeParameters:
    """Returns a chain of at most `depth` tokens: the likeliest child of every node by the draft's own probabilities.

    Args:
        depth: most tokens [tokens].
        source: who proposes them, see `TreeParameters`.
        stops: fields of `TreeParameters` that end it earlier, such as `min_confidence`.

    Raises:
        ParameterError: a value outside its range.
    """
    return uniform_tree(1, depth, early_stop=MIN_REACH, source=source, calibrated=False, **stops)


def confidence_stop(threshold: float = 0.4, depth: int = DEPTH, source: Source = "model") -> StaticController:
    """Ends a chain with the first token whose probability is under a threshold.

    The default of assisted generation in transformers (``assistant_confidence_threshold``, ``ConfidenceCriteria``),
    which drafts up to 20 tokens; after Mamou et al. 2024, "Dynamic Speculation Lookahead Accelerates Speculative
    Decoding of Large Language Models".

    Args:
        threshold: least probability of a token after which the chain goes on [probability].
        depth: most tokens [tokens].
        source: who proposes them, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """
    return StaticController(chain(depth, source, min_confidence=threshold))


def svip(threshold: float = 0.8, depth: int = DEPTH, source: Source = "model") -> StaticController:
    """Ends a chain where the square root of the draft's entropy exceeds a threshold.

    Zhang et al. 2024, "Draft Model Knows When to Stop: A Self-Verification Length Policy for Speculative Decoding"
    (SVIP). The token drawn there is verified: it has been drafted.

    Args:
        threshold: greatest square root of the entropy, over 0 [square root of nats].
        depth: most tokens [tokens].
        source: who proposes them, see `TreeParameters`; only a draft model has an entropy.

    Raises:
        ParameterError: a value outside its range.
    """
    if not threshold > 0:
        raise ParameterError(f"threshold must be over 0, the square root of an entropy in nats; got {threshold}.")
    return StaticController(chain(depth, source, max_entropy=threshold**2))


class HeuristicController(Rule):
    """Lengthens the chain by 2 after one that was accepted whole, and shortens it by 1 after any other.

    The schedule ``"heuristic"`` of assisted generation in transformers, which began at 5 tokens in older versions and
    at 20 in newer ones; ``"heuristic_transient"`` starts anew with every request.

    Args:
        start: length of the first chain [tokens].
        longest: longest chain [tokens].
        transient: whether a request begins at `start`, rather than where the last one ended.
        source: who proposes tokens, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """

    def __init__(
        self, start: int = 5, longest: int = DEPTH, *, transient: bool = False, source: Source = "model"
    ) -> None:
        _check_chain(start, longest, source)
        self.start = self.length = start
        self.longest, self.transient, self.source = longest, transient, source

    def reset(self) -> None:
        """Starts anew if it is transient."""
        if self.transient:
            self.length = self.start

    def act(self, observation: Observation) -> TreeParameters:
        """Adjusts the length to the last round's outcome."""
        if observation.last_depth > 0:
            whole = observation.last_accepted == observation.last_depth
            self.length = min(self.length + 2, self.longest) if whole else max(self.length - 1, 1)
        return chain(self.length, self.source)


class GammaTuneController(Rule):
    """Drafts as many tokens as were accepted lately, and a few more.

    After Gautam, Shrestha and Reddy 2025, "Token-Driven GammaTune: Adaptive Calibration for Enhanced Speculative
    Decoding": an exponential average of accepted lengths sets the draft length. A chain that was accepted whole may
    have been too short, so its accepted length counts as longer by `slack`. The average is kept from
    request to request.

    Args:
        start: length of the first chain [tokens].
        longest: longest chain [tokens].
        rate: weight of the last round in the average, over 0 and at most 1.
        slack: tokens drafted past the average [tokens].
        source: who proposes tokens, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """

    def __init__(
        self, start: int = 4, longest: int = DEPTH, *, rate: float = 0.3, slack: float = 1.0, source: Source = "model"
    ) -> None:
        _check_chain(start, longest, source)
        if not (0 < rate <= 1 and 0 <= slack <= longest):
            came = f"{rate} and {slack}"
            raise ParameterError(f"rate must be over 0 and at most 1, slack within 0 and {longest}; got {came}.")
        self.longest, self.rate, self.slack, self.source = longest, rate, slack, source
        self.average = max(start - slack, 0.0)

    def act(self, observation: Observation) -> TreeParameters:
        """Updates the average by the last round and returns a chain."""
        if observation.last_depth > 0:
            whole = observation.last_accepted == observation.last_depth
            accepted = observation.last_accepted + (self.slack if whole else 0.0)
            self.average += self.rate * (accepted - self.average)
        return chain(min(max(round(self.average + self.slack), 1), self.longest), self.source)


@dataclass(eq=False)
class AdaEdlController(Rule):
    """Ends a chain where an entropy-based bound of the acceptance falls under a threshold, which adapts.

    Agrawal et al. 2024, "AdaEDL: Early Draft Stopping for Speculative Decoding of Large Language Models via an
    Entropy-based Lower Bound on Token Acceptance Probability". The bound is ``1 - sqrt(gamma * entropy)``. The
    threshold rises by small steps while the averaged acceptance rate is under its target and falls otherwise, as in
    Zhang et al. 2023, "Draft & Verify". The token drawn at the end is verified: it has been drafted. The threshold is
    kept from request to request.

    Args:
        threshold: first threshold, 0 or more and under 1 [probability].
        gamma: weight of the entropy, over 0 [1/nats].
        target: acceptance rate aimed at.
        step: greatest move of the threshold [probability].
        memory: weight of the past in the averaged acceptance rate.
        inertia: weight of the past in the threshold.
        depth: most tokens [tokens].
        source: who proposes tokens, see `TreeParameters`; only a draft model has an entropy.

    Raises:
        ParameterError: a value outside its range.
    """

    threshold: float = 0.4
    gamma: float = 0.2
    _: KW_ONLY
    target: float = 0.9
    step: float = 0.01
    memory: float = 0.5
    inertia: float = 0.9
    depth: int = DEPTH
    source: Source = "model"

    def __post_init__(self) -> None:
        for name in ("threshold", "target", "step", "memory", "inertia"):
            if not 0 <= getattr(self, name) < 1:
                raise ParameterError(f"{name} must be 0 or more and under 1; got {getattr(self, name)}.")
        if not self.gamma > 0:
            raise ParameterError(f"gamma must be over 0; got {self.gamma}.")
        self.acceptance = self.target
        chain(self.depth, self.source)  # refuses an unknown source now

    def act(self, observation: Observation) -> TreeParameters:
        """Adapts the threshold to the last round's acceptance and returns a chain."""
        if observation.last_depth > 0:
            rate = observation.last_accepted / observation.last_depth
            self.acceptance = self.memory * self.acceptance + (1 - self.memory) * rate
            moved = self.threshold + (self.step if self.acceptance < self.target else -self.step)
            self.threshold = self.inertia * self.threshold + (1 - self.inertia) * moved
            self.threshold = min(max(self.threshold, 0.0), _MAX_THRESHOLD)
        return chain(self.depth, self.source, max_entropy=(1 - self.threshold) ** 2 / self.gamma)


def _check_chain(start: int, longest: int, source: Source) -> None:
    if not 1 <= start <= longest:
        raise ParameterError(f"start must be within 1 and longest; got {start} and {longest}.")
    chain(longest, source)  # refuses an unknown source now
