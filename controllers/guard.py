"""A guard that any controller can wear: plain decoding while speculation does not pay."""

from __future__ import annotations

from specgym.controllers.controller import Controller
from specgym.controllers.rules.throughput import Gate, last_round, machine_costs
from specgym.env.tree.observation import Observation
from specgym.env.tree.parameters import PLAIN, TreeParameters


class GuardedController:
    """Lets another controller choose, but decodes plainly while that has brought fewer tokens than it would have.

    After Cascade (Saxena et al. 2025, "Utility-Driven Speculative Decoding for Mixture-of-Experts"), which measures
    gain over cost and turns speculation off where that is under 1. A round's cost is predicted from what was drafted
    and the observed `level_cost` and `row_cost`, see `machine_costs` for machines that tell none. What was found is
    remembered across requests. The other controller is not asked, and the draft not observed, during a break.

    Args:
        inner: who chooses.
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
        self.inner, self.gate = inner, Gate(window, probe, rest, longest)
        self.chosen = PLAIN
        self.observes_draft = inner.observes_draft

    def reset(self) -> None:
        """The other controller's; the guard's own account goes on."""
        self.inner.reset()

    def act(self, observation: Observation) -> TreeParameters:
        """Judges the last round and chooses."""
        past = last_round(observation)
        if past is not None and self.chosen.speculates:
            self.gate.note(1 + past.accepted, machine_costs(observation).steps(past, self.chosen.source))
        if self.gate.shut:
            self.gate.wait()
            self.chosen = PLAIN
        else:
            self.chosen = self.inner.act(observation)
        self.observes_draft = self.inner.observes_draft and not self.gate.shut
        return self.chosen
