"""A feature draft at work: the network, its caches and the tree that it is growing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import PairError
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.drafts.lean_network import LeanDraft
from specgym.env.drafts.network import FeatureDraftNetwork
from specgym.env.kernels.transfer import to_device_async
from specgym.env.models.cache import KeyValueBuffer
from specgym.env.tree.growth import Candidates
from specgym.env.tree.rounds import Stopwatch
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import TokenTree

_NOTHING: IntArray = np.empty(0, np.int64)
_PART = 256  # tokens of a text that are read at once: what a forward needs meanwhile grows with them


class FeatureDraft:
    """Drafts from the target's hidden states (see `network`).

    Row r of the cache holds token r + 1 of the text, since the first token has no feature before it.

    Args:
        network: the trained network; moved to the embedding's device and precision.
        embedding: the target's token embedding.
        context_limit: the target's, which the draft follows to its end.
        calibrator: fitted for it with its target, if there is one.
        eight_bits: whether the weights of its linear layers are rounded to eight bits.

    Raises:
        ParameterError: weights are to be rounded, and this machine cannot.
        PairError: the network is made for hidden states of another width.
    """

    kind = "feature"

    def __init__(
        self,
        network: FeatureDraftNetwork,
        embedding: nn.Embedding,
        context_limit: int,
        calibrator: Calibrator | None = None,
        *,
        eight_bits: bool = False,
    ) -> None:
        width = network.config.hidden_size
        if embedding.weight.shape[1] != width:
            raise PairError(
                f"The feature draft expects hidden states of {width} numbers; the target's have "
                f"{embedding.weight.shape[1]}. Use the draft that was trained for this target, or --draft lookup."
            )
        self.device, self.dtype = embedding.weight.device, embedding.weight.dtype
        self.network = network.to(self.device, self.dtype).eval()
        self.lean = LeanDraft(self.network, embedding.weight, eight_bits=eight_bits)
        self.embedding, self.calibrator, self.eight_bits = embedding, calibrator, eight_bits
        self.feature_layers: tuple[int, ...] | None = network.config.feature_layers
        self.context_limit: int | None = context_limit
        self.caches = [KeyValueBuffer() for _ in range(network.config.layers)]
        self.forward_seconds = 0.0

    @property
    def owed(self) -> int:
        """See `Draft.owed`."""
        return len(self.pending)

    def start(self, chooser: TokenChooser) -> None:
        """See `Draft.start`."""
        self.chooser = chooser
        for cache in self.caches:
            cache.reset()
        self.committed = 0  # rows of the cache that stand for committed tokens
        self.pending: list[int] = []
        self.pending_features: list[torch.Tensor] = []
        self.expanded = _NOTHING

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """Drops the rows of the tree, which hold the draft's own guesses of features, and owes the true ones."""
        assert features is not None, "a feature draft needs the target's hidden states"
        for cache in self.caches:
            cache.keep(self.committed)
        self.pending.extend(tokens[len(tokens) - len(features) :])
        self.pending_features.append(features)
        self.expanded = _NOTHING

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """See `Draft.expand`."""
        watch = Stopwatch()
        output, logits = self._root() if self.pending else self._level(tree, nodes)
        self.forward_seconds += watch.lap()
        self.level, self.output = nodes, output
        # Row `committed - 1` holds the root, which stands at position `committed`: its children are one further.
        positions = (self.committed + 1 + tree.depth[nodes]).tolist()
        return self.chooser.rank(logits, positions, k, self.network.token_ids, entropy=entropy)

    def _root(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Feeds what is owed; features and logits after the root, `[1, hidden]` and `[1, vocabulary]`."""
        tokens, features = np.array(self.pending), torch.cat(self.pending_features)
        self.pending, self.pending_features = [], []
        for first in range(0, len(tokens), _PART):
            part = slice(first, first + _PART)
            output, logits = self._feed(tokens[part], features[part], int(part.stop >= len(tokens)))
        return output[-1:], logits

    def _feed(self, tokens: IntArray, features: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends committed tokens to the caches; see `forward`."""
        rows = len(tokens)
        visible = np.tri(rows, dtype=np.bool_) if rows > 1 and self.committed else None
        positions = np.arange(self.committed, self.committed + rows)
        self.committed += rows
        return self.forward(tokens, self.lean.reduce(features), positions, visible, keep=keep)

    def _level(self, tree: TokenTree, nodes: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and logits after `nodes`, from the features after their parents."""
        self.expanded = np.concatenate([self.expanded, nodes])
        visible = tree.ancestors[np.ix_(nodes, self.expanded)]
        parents = to_device_async(np.searchsorted(self.level, tree.parent[nodes]), self.device)
        positions = self.committed - 1 + tree.depth[nodes]
        return self.forward(tree.token[nodes], self.output[parents], positions, visible, keep=len(nodes))

    def forward(
        self, tokens: IntArray, features: torch.Tensor, positions: IntArray, visible: BoolArray | None, *, keep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends rows to the caches; arguments and results as for `LeanDraft`."""
        return self.lean(tokens, features, positions, visible, self.caches, keep=keep)
