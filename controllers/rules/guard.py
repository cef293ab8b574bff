"""A guard for any controller: it decodes plainly while speculation does not pay."""

from __future__ import annotations

from specgym.controllers.controller import Controller
from specgym.controllers.rules.throughput import Gate, last_round, machine_costs
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters


class GuardedController:
    """Lets another controller choose, and decodes plainly for a while where its trees have not paid.

    After Cascade (Saxena et al. 2025, "Utility-Driven Speculative Decoding for Mixture-of-Experts"), which measures
    gain over cost and turns speculation off where the ratio is under 1. The time of a round is predicted from its tree
    and the observed `level_cost` and `row_cost`; for machines that report none see `machine_costs`. Results are kept
    from request to request. During a break the other controller does not act, and the draft is not observed.

    Args:
        inner: the other controller.
        window: rounds with a tree that are judged together [rounds].
        probe: rounds of a trial after a break [rounds].
        rest: length of the first break, doubled with every further one in a row [rounds].
        longest: length of the longest break [rounds].

    Raises:
        ParameterError: a value outside its range.
    """

    def __init__(
        self, inner: Controller, *, window: int = 16, probe: int = 4, rest: int = 16, longest: int = 512
    ) -> None:
        self.inner, self.observes_draft = inner, inner.observes_draft
        self.gate, self.chosen = Gate(window, probe, rest, longest), PLAIN

    def reset(self) -> None:
        """Resets the other controller; the guard keeps its own results."""
        self.inner.reset()

    def act(self, observation: Observation) -> TreeParameters:
        """Judges the last round and chooses."""
        past = last_round(observation)
        if past is not None and self.chosen.speculates:
            self.gate.add(1 + past.accepted, machine_costs(observation).steps(past, self.chosen.source))
        if self.gate.closed:
            self.gate.wait()
            self.chosen = PLAIN
        else:
            self.chosen = self.inner.act(observation)
        self.observes_draft = self.inner.observes_draft and not self.gate.closed
        return self.chosen
