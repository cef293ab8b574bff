"""A feature draft: the network of `network.py` with its caches and its place in the tree, and its fast forward.

The fast forward does without the network's modules, which cost more time than reading their weights (see
`specgym.env.models.fast.lean`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.common.errors import PairError
from specgym.env.drafts.base import Draft
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.drafts.network import DecoderLayer, FeatureDraftNetwork
from specgym.env.kernels.moving import to_device_async
from specgym.env.models.cache import KeyValueBuffer, Rows
from specgym.env.models.fast.lean import LeanForward
from specgym.env.models.fast.native import Fusion, LayerShape
from specgym.env.models.fast.packed import Packing, Projection, best_packing
from specgym.env.models.fast.stack import LeanLayer, LeanNorm, LeanStack, RotaryTables, state_dtype
from specgym.env.tree.growth import Candidates
from specgym.env.tree.rounds import Stopwatch
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import NO_NODES, TokenTree

_PART = 256  # most tokens of a text in one forward, which bounds its working memory


class LeanDraft(LeanForward):
    """The forward of a network. Later changes of the network's weights have no effect.

    Args:
        network: the network, on its device and in its precision.
        table: the target's embeddings, on the same device and in the same precision, `[vocabulary, hidden]`.
        eight_bits: whether linear layers keep their weights in eight bits.

    Raises:
        ParameterError: this machine cannot multiply weights of eight bits.
    """

    def __init__(self, network: FeatureDraftNetwork, table: torch.Tensor, *, eight_bits: bool = False) -> None:
        config, weight = network.config, network.fuse.weight
        linears = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        device, widths = weight.device, {linear.in_features for linear in linears}
        packing = best_packing(weight.dtype, device, config.head_dim, *widths, eight_bits=eight_bits)
        dtype = state_dtype(weight.dtype, device)
        self._reduce = Projection([network.reduce], packing) if isinstance(network.reduce, torch.nn.Linear) else None
        self._token_norm = LeanNorm(network.token_norm.weight, config.norm_eps)
        self._feature_norm = LeanNorm(network.feature_norm.weight, config.norm_eps)
        self._fuse, table = Projection([network.fuse], packing), table.detach()
        norms, matrix = (self._token_norm.weight, self._feature_norm.weight), self._fuse.native
        super().__init__(
            table,
            RotaryTables(lambda positions: network.rotary(positions, dtype), dtype, device),
            LeanStack([_layer(block, packing) for block in network.blocks], dtype),
            LeanNorm(network.output_norm.weight, config.norm_eps),
            Projection([network.head], packing),
            fusion=None if matrix is None else Fusion(*norms, matrix),
            has_features=True,
        )

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Fuses the target's states of several layers, `[rows, feature_width]`, into one, `[rows, hidden]`."""
        return features if self._reduce is None else self._reduce(features)

    def _begin(self, tokens: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        assert features is not None, "a feature draft begins with features"
        embedded = self._table[tokens]
        return self._fuse(torch.cat([self._token_norm(embedded), self._feature_norm(features)], dim=-1))


def _layer(block: DecoderLayer, packing: Packing) -> LeanLayer:
    config = block.config
    linears = (block.query_key_value, block.attention_output, block.gate_up, block.down)
    return LeanLayer(
        [block.attention_norm.weight.detach(), block.feed_forward_norm.weight.detach()],
        [Projection([linear], packing) for linear in linears],
        LayerShape(config.heads, config.kv_heads, config.head_dim, config.norm_eps, config.head_dim**-0.5),
    )


class FeatureDraft(Draft):
    """Drafts from the target's hidden states, its *features* (see `network.py`).

    Row r of the cache holds token r + 1 of the text, since the first token has no feature before it.

    Args:
        network: the trained network; moved to the embedding's device and precision.
        embedding: the target's token embedding.
        context_limit: the target's context limit, which is the draft's too [tokens].
        calibrator: the calibrator for this draft and its target, if there is one.
        eight_bits: whether linear layers keep their weights in eight bits.

    Raises:
        ParameterError: this machine cannot multiply weights of eight bits.
        PairError: the network reads hidden states of another width.
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
        self.feature_layers, self.context_limit = network.config.feature_layers, context_limit
        self.caches = [KeyValueBuffer() for _ in range(network.config.layers)]

    def fork(self) -> FeatureDraft:
        """See `Draft.fork`."""
        fork = copy.copy(self)
        fork.lean, fork.caches = self.lean.fork(), [KeyValueBuffer() for _ in self.caches]
        return fork

    def start(self, chooser: TokenChooser) -> None:
        """See `Draft.start`."""
        self.chooser = chooser
        for cache in self.caches:
            cache.reset()
        self.committed = 0  # rows of the cache that hold committed tokens
        self.pending: list[int] = []
        self.pending_features: list[torch.Tensor] = []  # the target's features before them
        self.expanded = NO_NODES  # nodes of the tree, in the order of their rows after the committed ones

    def commit(self, tokens: Sequence[int], features: torch.Tensor | None, path: IntArray) -> None:
        """Drops the rows of the tree, which hold predicted features. The next forward reads the target's features."""
        assert features is not None, "a feature draft needs the target's hidden states"
        for cache in self.caches:
            cache.keep(self.committed)
        self.pending.extend(tokens[len(tokens) - len(features) :])
        self.pending_features.append(features)
        self.expanded = NO_NODES

    def expand(self, tree: TokenTree, nodes: IntArray, k: int, entropy: bool = False) -> Candidates:
        """See `Draft.expand`."""
        watch = Stopwatch()
        output, logits = self._root() if self.pending else self._level(tree, nodes)
        self.forward_seconds += watch.lap()
        self.level, self.output = nodes, output
        # Row `committed - 1` holds the root, which has position `committed`. Its children come one position later.
        positions = (self.committed + 1 + tree.depth[nodes]).tolist()
        return self.chooser.rank(logits, positions, k, self.network.token_ids, entropy=entropy, branch=(tree, nodes))

    def _root(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads the pending tokens. Returns features and logits after the root, `[1, hidden]` and `[1, vocabulary]`."""
        tokens, features = np.array(self.pending), torch.cat(self.pending_features)
        self.pending, self.pending_features = [], []
        for first in range(0, len(tokens), _PART):
            part = tokens[first : first + _PART]
            states, rows = self.lean.reduce(features[first : first + _PART]), len(part)
            visible = np.tri(rows, dtype=np.bool_) if rows > 1 and self.committed else None
            positions = np.arange(self.committed, self.committed + rows)
            output, logits = self.forward(part, states, positions, visible, keep=int(first + rows == len(tokens)))
            self.committed += rows
        return output[-1:], logits

    def _level(self, tree: TokenTree, nodes: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads tree nodes. Returns features and logits after them, `[nodes, hidden]` and `[nodes, vocabulary]`."""
        self.expanded = np.concatenate([self.expanded, nodes])
        visible = tree.ancestors[np.ix_(nodes, self.expanded)]
        # Each node's feature is the output after its parent, which the previous level computed.
        parents = to_device_async(np.searchsorted(self.level, tree.parent[nodes]), self.device)
        positions = self.committed - 1 + tree.depth[nodes]
        return self.forward(tree.token[nodes], self.output[parents], positions, visible, keep=len(nodes))

    def forward(
        self, tokens: IntArray, features: torch.Tensor, positions: IntArray, visible: BoolArray | None, *, keep: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends rows to the caches, one a layer; raises as `LeanForward.run`.

        Args:
            tokens: `int64[rows]`.
            features: the states before the tokens, reduced or the draft's own, `[rows, hidden]`.
            positions: `int64[rows]`.
            visible: see `Rows`.
            keep: last rows whose logits are computed.

        Returns:
            The next features, `[rows, hidden]`, and logits `[keep, vocabulary]`.
        """
        return self.lean.run(Rows(tokens, positions, visible), self.caches, keep=keep, features=features)[:2]
