"""Published rules that stay as they are set: they decide inside a round, node by node, and that is the growth rule's.

The chains draft one token after another; their published forms have no least reach, see `FLOOR`.
"""

from __future__ import annotations

from specgym.controllers.rules.phases import StaticController
from specgym.controllers.rules.shapes import DEEPEST, FLOOR, chain, spreading
from specgym.env.common.errors import ParameterError
from specgym.env.tree.parameters import Source


def confidence_stop(threshold: float = 0.4, depth: int = DEEPEST, source: Source = "model") -> StaticController:
    """A chain that ends with the first token whose probability is under a threshold.

    The default of assisted generation in transformers (``assistant_confidence_threshold``, ``ConfidenceCriteria``),
    which goes on to 20 tokens; after Mamou et al. 2024, "Dynamic Speculation Lookahead Accelerates Speculative
    Decoding of Large Language Models".

    Args:
        threshold: that probability [probability].
        depth: most tokens [tokens].
        source: who proposes them, see `TreeParameters`.

    Raises:
        ParameterError: a value outside its range.
    """
    return StaticController(chain(depth, source, min_confidence=threshold))


def svip(threshold: float = 0.8, depth: int = DEEPEST, source: Source = "model") -> StaticController:
    """A chain that ends where the square root of the draft's entropy is over a threshold.

    Zhang et al. 2024, "Draft Model Knows When to Stop: A Self-Verification Length Policy for Speculative Decoding"
    (SVIP). The token drawn there is verified: it has been drafted.

    Args:
        threshold: of the square root, over 0 [square root of nats].
        depth: most tokens [tokens].
        source: who proposes them, see `TreeParameters`; only a draft model has an entropy.

    Raises:
        ParameterError: a value outside its range.
    """
    if not threshold > 0:
        raise ParameterError(f"threshold must be over 0, the square root of an entropy in nats; got {threshold}.")
    return StaticController(chain(depth, source, max_entropy=threshold**2))


def eagle2(
    width: int = 8, total: int = 60, depth: int = 6, source: Source = "model", early_stop: float = FLOOR
) -> StaticController:
    """The likeliest nodes of every level are expanded, then the likeliest of all are kept.

    Li et al. 2024, "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees". There 10 nodes of a level
    get 10 children each and 60 nodes are kept; here a node gets the 4 children that are recorded.

    Args:
        width: nodes expanded in a level [nodes].
        total: nodes verified [nodes].
        depth: levels [tokens].
        source: who proposes nodes, see `TreeParameters`.
        early_stop: reach under which a node is not expanded [probability].

    Raises:
        ParameterError: a value outside its range.
    """
    shape = spreading(depth, total, source, frontier_width=width, early_stop=early_stop, calibrated=False)
    return StaticController(shape)


def opt_tree(
    budget: int = 60, delta: float = 0.5, depth: int = DEEPEST, source: Source = "model", early_stop: float = FLOOR
) -> StaticController:
    """The tree of most expected accepted tokens at a node budget, as deep as a level brings enough of them.

    Wang et al. 2024, "OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure". There the next level is
    drafted if the last one added at least delta to the expected length; what it added is the summed reach of its
    nodes, of which here those count that would be expanded.

    Args:
        budget: nodes verified [nodes].
        delta: least gain of a level [tokens].
        depth: deepest level [tokens].
        source: who proposes nodes, see `TreeParameters`.
        early_stop: reach under which a node is not expanded [probability].

    Raises:
        ParameterError: a value outside its range.
    """
    return StaticController(
        spreading(depth, budget, source, early_stop=early_stop, min_level_reach=delta, calibrated=False)
    )
