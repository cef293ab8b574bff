"""The goodput rule: speculate as far as it pays at the machine's costs and the current price of time."""

from __future__ import annotations

from typing import Literal, get_args

from specgym.controllers.rules.shapes import DEEPEST, FLOOR, spreading
from specgym.controllers.rules.throughput import Gate, MachineCosts, Throughput, last_round, machine_costs
from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation, PastRound
from specgym.env.tree.parameters import PLAIN, Source, TreeParameters

Choice = Literal["auto", "model", "lookup", "both"]

CAPTURE = 0.5
"""share of the reach of expanded nodes that their children are expected to have"""


class GoodputController:
    """Grows a tree while a node, and a level, bring more expected tokens than their time is worth.

    Of the family of TurboSpec (Liu et al. 2024, "Optimizing Speculative Decoding for Serving Large Language Models
    Using Goodput"), CaDDTree and CAST, as average reward: throughput is E[tokens] / E[time], and it is greatest if all
    time is spent where it brings more than the throughput itself. So a plain step costs as many tokens as this
    controller has lately got for one, and a node is verified if its reach exceeds that times `row_cost`. A node passes
    on the share `capture` of its reach. It is expanded if that would pay for a row, and a level is drafted if what all
    its nodes pass on pays for `level_cost` and for a row, which is the least that a level brings.

    It decodes plainly where not even the first level can pay, and while rounds that asked the draft model have not
    paid, see `Gate`. With the source ``"auto"`` it leaves the draft model out of a round where prompt lookup rates
    itself so high that the tokens of its chain, less the price of their rows, exceed what rounds with the model have
    brought on average. What it has learned it keeps from request to request. Of machines that tell no costs see
    `machine_costs`.

    Args:
        price: tokens that a plain step is worth; 0 follows the controller's own throughput [tokens per plain step].
        capture: share of the reach of expanded nodes that their children are expected to have, over 0 and at most 1;
            the default did best on the train split of the shipped trace, over all shipped machines.
        depth: deepest level [tokens].
        node_budget: most nodes verified [nodes].
        source: who proposes nodes, see `TreeParameters`, or ``"auto"``.
        window: rounds that the price remembers [rounds].
        early_stop: least reach of a node that is expanded, however cheap it would be [probability].

    Raises:
        ParameterError: a value outside its range.
    """

    observes_draft = False

    def __init__(
        self,
        *,
        price: float = 0.0,
        capture: float = CAPTURE,
        depth: int = DEEPEST,
        node_budget: int = 31,
        source: Choice = "auto",
        window: int = 200,
        early_stop: float = FLOOR,
    ) -> None:
        if not (price >= 0 and 0 < capture <= 1):
            raise ParameterError(
                f"price must be 0 or more, capture over 0 and at most 1; got price={price} and capture={capture}."
            )
        if source not in get_args(Choice):
            raise ParameterError(f"Expected source to be one of {', '.join(get_args(Choice))}; got {source!r}.")
        self.fixed, self.capture, self.depth, self.node_budget = price, capture, depth, node_budget
        self.source, self.early_stop = source, early_stop
        spreading(depth, node_budget, early_stop=early_stop)
        # Trees are cut to pay, so a window that does not is rare, and in few rounds it is chance.
        self.all_rounds, self.gate = Throughput(window), Gate(window=64, probe=16)
        self.model_rounds = Throughput(window)
        self.chosen = PLAIN

    def reset(self) -> None:
        """What was learned is kept."""

    @property
    def price(self) -> float:
        """What a plain step is worth now; plain decoding, which is always there, gets one for it [tokens]."""
        return self.fixed or max(self.all_rounds.rate, 1.0)

    def act(self, observation: Observation) -> TreeParameters:
        """Takes the last round into account and chooses."""
        prices, past = machine_costs(observation), last_round(observation)
        if past is not None:
            self._learn(past, prices)
        self.chosen = self._choose(observation, prices)
        return self.chosen

    def _learn(self, past: PastRound, prices: MachineCosts) -> None:
        tokens, steps = 1 + past.accepted, prices.steps(past, self.chosen.source)
        self.all_rounds.note(tokens, steps)
        if self.chosen.speculates and self.chosen.source != "lookup":
            self.model_rounds.note(tokens, steps)
            self.gate.note(tokens, steps)

    def _choose(self, observation: Observation, prices: MachineCosts) -> TreeParameters:
        looked_up = self._lookup_profit(observation, prices) if self.source in ("auto", "lookup") else 0.0
        if self.source == "lookup" or not self._model_may_pay(prices):
            return self._tree("lookup", prices) if looked_up > 0 else PLAIN
        if looked_up > max(self.model_rounds.profit(self.price), 0.0):
            return self._tree("lookup", prices)
        return self._tree("both" if self.source == "auto" else self.source, prices)

    def _model_may_pay(self, prices: MachineCosts) -> bool:
        if self.gate.shut:
            self.gate.wait()
            return False
        return self.capture > self._level_price(prices)

    def _lookup_profit(self, observation: Observation, prices: MachineCosts) -> float:
        """Tokens expected of prompt lookup's chain, less what its rows are worth."""
        row, reach, profit = self.price * prices.row, 1.0, 0.0
        for _ in range(self.depth):
            reach *= observation.lookup_rate
            if reach <= max(row, self.early_stop):
                break
            profit += reach - row
        return profit

    def _level_price(self, prices: MachineCosts) -> float:
        """What a level is worth, with the row that it brings at least [tokens]."""
        return self.price * (prices.level + prices.row)

    def _tree(self, source: Source, prices: MachineCosts) -> TreeParameters:
        row = min(self.price * prices.row, 1.0)
        if source == "lookup":  # a chain that rates itself, and whose levels are free
            return spreading(self.depth, self.node_budget, source, early_stop=max(self.early_stop, row), min_reach=row)
        return spreading(
            self.depth,
            self.node_budget,
            source,
            early_stop=max(self.early_stop, min(row / self.capture, 1.0)),
            min_reach=row,
            min_level_reach=self._level_price(prices) / self.capture,
        )
