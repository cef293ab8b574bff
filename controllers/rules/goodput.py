"""The goodput rule: speculate as far as it pays at the machine's costs and the current price of time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from specgym.controllers.controller import Rule
from specgym.controllers.rules.throughput import Gate, MachineCosts, Throughput, last_round, machine_costs
from specgym.controllers.rules.trees import DEPTH, MIN_REACH, reach_tree
from specgym.env.common.errors import ParameterError
from specgym.env.tree.observation import Observation, PastRound
from specgym.env.tree.parameters import PLAIN, Source, TreeParameters

Choice = Literal["auto", "model", "lookup", "both"]

CAPTURE = 0.5
"""share of the reach of expanded nodes that their children are expected to have"""


def goodput_tree(
    source: Source,
    min_reach: float,
    min_level_reach: float,
    *,
    depth: int = DEPTH,
    node_budget: int = 31,
    capture: float = CAPTURE,
    early_stop: float = MIN_REACH,
) -> TreeParameters:
    """Returns a tree whose nodes and levels pay for their time.

    Args:
        source: who proposes nodes. Lookup alone proposes a chain with a known reach, and its levels cost nothing.
        min_reach: least reach of a node, at most 1: the price of its row.
        min_level_reach: least summed reach of the nodes that a level expands [tokens].
        depth: deepest level [tokens].
        node_budget: most nodes verified [nodes].
        capture: see `CAPTURE`; a node is expanded if this share of its reach is at least `min_reach`.
        early_stop: least reach of an expanded node, however cheap it would be [probability].
    """
    if source == "lookup":
        capture, min_level_reach = 1.0, 0.0
    early_stop = max(early_stop, min(min_reach / capture, 1.0))
    return reach_tree(
        depth, node_budget, early_stop=early_stop, source=source, min_reach=min_reach, min_level_reach=min_level_reach
    )


@dataclass(eq=False, kw_only=True)
class GoodputController(Rule):
    """Grows a tree while the expected tokens of a node, and of a level, exceed the price of their time.

    Of the family of TurboSpec (Liu et al. 2024, "Optimizing Speculative Decoding for Serving Large Language Models
    Using Goodput"), CaDDTree and CAST, as average reward. Throughput is E[tokens] / E[time]. It is greatest if time is
    spent only where it yields more tokens than the throughput itself. So the price of a plain step is the number of
    tokens that this controller has lately got for one. A node is verified if its reach exceeds that price times
    `row_cost`. A node passes on the share `capture` of its reach. It is expanded if that share would pay for a row. A
    level is drafted if the shares of all its nodes pay for `level_cost` and for one row.

    It decodes plainly where even the first level cannot pay, and during breaks after rounds with the draft model that
    did not pay, see `Gate`. With the source ``"auto"`` a round leaves out the draft model where lookup alone is better.
    For that, the tokens expected of lookup's chain, less the price of their rows, must exceed the average profit of
    rounds with the model. What it has learned is kept from request to request. For machines that report no costs see
    `machine_costs`.

    Args:
        price: price of a plain step; 0 follows the controller's own throughput [tokens per plain step].
        capture: share of the reach of expanded nodes that their children are expected to have, over 0 and at most 1;
            the default did best on the train split of the shipped trace, over all shipped machines.
        depth: deepest level [tokens].
        node_budget: most nodes verified [nodes].
        source: who proposes nodes, see `TreeParameters`, or ``"auto"``.
        window: rounds over which the throughput is averaged [rounds].
        early_stop: least reach of a node that is expanded, however cheap it would be [probability].

    Raises:
        ParameterError: a value outside its range.
    """

    price: float = 0.0
    capture: float = CAPTURE
    depth: int = DEPTH
    node_budget: int = 31
    source: Choice = "auto"
    window: int = 200
    early_stop: float = MIN_REACH

    def __post_init__(self) -> None:
        if not (self.price >= 0 and 0 < self.capture <= 1):
            came = f"price={self.price} and capture={self.capture}"
            raise ParameterError(f"price must be 0 or more, capture over 0 and at most 1; got {came}.")
        if self.source not in get_args(Choice):
            raise ParameterError(f"Expected source to be one of {', '.join(get_args(Choice))}; got {self.source!r}.")
        tree = partial(goodput_tree, depth=self.depth, node_budget=self.node_budget)
        self.make_tree = partial(tree, capture=self.capture, early_stop=self.early_stop)
        self.make_tree("model", 0.0, 0.0)  # refuses values out of range now
        # Trees are cut to pay, so a window that does not pay is rare, and in few rounds it is chance.
        self.gate = Gate(window=64, probe=16)
        self.all_rounds, self.model_rounds = Throughput(self.window), Throughput(self.window)
        self.chosen = PLAIN

    @property
    def time_price(self) -> float:
        """Price of a plain step now, at least the one token that plain decoding always gets for it [tokens]."""
        return self.price or max(self.all_rounds.rate, 1.0)

    def act(self, observation: Observation) -> TreeParameters:
        """Learns from the last round and chooses."""
        costs, past = machine_costs(observation), last_round(observation)
        if past is not None:
            self._learn(past, costs)
        self.chosen = self._choose(observation, costs)
        return self.chosen

    def _learn(self, past: PastRound, costs: MachineCosts) -> None:
        tokens, steps = 1 + past.accepted, costs.steps(past, self.chosen.source)
        self.all_rounds.add(tokens, steps)
        if self.chosen.speculates and self.chosen.source != "lookup":
            self.model_rounds.add(tokens, steps)
            self.gate.add(tokens, steps)

    def _choose(self, observation: Observation, costs: MachineCosts) -> TreeParameters:
        lookup_profit = self._lookup_profit(observation, costs) if self.source in ("auto", "lookup") else 0.0
        if self.source == "lookup" or not self._model_may_pay(costs):
            return self._tree("lookup", costs) if lookup_profit > 0 else PLAIN
        if lookup_profit > max(self.model_rounds.profit(self.time_price), 0.0):
            return self._tree("lookup", costs)
        return self._tree("both" if self.source == "auto" else self.source, costs)

    def _model_may_pay(self, costs: MachineCosts) -> bool:
        if self.gate.closed:
            self.gate.wait()
            return False
        return self.capture > self._level_price(costs)

    def _lookup_profit(self, observation: Observation, costs: MachineCosts) -> float:
        """Returns the tokens expected of prompt lookup's chain, less the price of its rows."""
        row_price, reach, profit = self.time_price * costs.row, 1.0, 0.0
        for _ in range(self.depth):
            reach *= observation.lookup_rate
            if reach <= max(row_price, self.early_stop):
                break
            profit += reach - row_price
        return profit

    def _level_price(self, costs: MachineCosts) -> float:
        """Returns the price of a level and of the one row that it adds at least [tokens]."""
        return self.time_price * (costs.level + costs.row)

    def _tree(self, source: Source, costs: MachineCosts) -> TreeParameters:
        row_price = min(self.time_price * costs.row, 1.0)
        return self.make_tree(source, row_price, self._level_price(costs) / self.capture)
