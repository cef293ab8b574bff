"""The forward of a feature draft at work: what `FeatureDraftNetwork` computes, for one text and without its modules.

As with the target (see `env.models.lean`), most of a module's forward of a few rows is not spent on reading weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from env.drafts.network import DecoderLayer, FeatureDraftNetwork
from env.models.cache import KeyValueBuffer
from env.models.lean import LeanLayer, LeanNorm, LeanStack, Turns, state_dtype
from env.models.packed import Packing, Projection, best_packing
from env.tree import IntArray

__all__ = ["LeanDraft"]


class LeanDraft:
    """The forward of one network, with its weights as they are now.

    Args:
        network: where and in the precision that it is to work in.
    """

    def __init__(self, network: FeatureDraftNetwork) -> None:
        config, weight = network.config, network.fuse.weight
        linears = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        device, widths = weight.device, {linear.in_features for linear in linears}
        packing = best_packing(weight.dtype, device, config.head_dim, *widths)
        self._dtype = state_dtype(weight.dtype, device)
        self._reduce = Projection([network.reduce], packing) if isinstance(network.reduce, torch.nn.Linear) else None
        self._token_norm = LeanNorm(network.token_norm.weight, config.norm_eps, packing)
        self._feature_norm = LeanNorm(network.feature_norm.weight, config.norm_eps, packing)
        self._fuse = Projection([network.fuse], packing)
        self._turns = Turns(lambda positions: network.rotary(positions, self._dtype), self._dtype, device)
        self._layers = LeanStack([_layer(block, packing) for block in network.blocks], self._dtype)
        self._output_norm = LeanNorm(network.output_norm.weight, config.norm_eps, packing)
        self.head = Projection([network.head], packing)
        """from features `[rows, hidden]` to logits `[rows, vocabulary]`"""

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """The target's states `[rows, feature_width]` as one, `[rows, hidden]`."""
        return features if self._reduce is None else self._reduce(features)

    def __call__(
        self,
        tokens: torch.Tensor,
        features: torch.Tensor,
        positions: IntArray,
        mask: torch.Tensor | None,
        caches: Sequence[KeyValueBuffer],
    ) -> torch.Tensor:
        """Appends rows to the caches, one a layer.

        Args:
            tokens: token embeddings, `[rows, hidden]`.
            features: the states before them, reduced or the draft's own, `[rows, hidden]`.
            positions: of the rows, `int64[rows]`.
            mask: additive, `[1, 1, rows, columns]`; None for one row, or for several without a prefix.
            caches: one for each layer.

        Returns:
            The next features, `[rows, hidden]`.
        """
        stream = self._fuse(torch.cat([self._token_norm(tokens), self._feature_norm(features)], dim=-1))
        turn = self._turns(positions)
        stream, _ = self._layers(stream, turn, mask, caches)
        return self._output_norm(stream)


def _layer(block: DecoderLayer, packing: Packing) -> LeanLayer:
    config = block.config
    linears = (block.query_key_value, block.attention_output, block.gate_up, block.down)
    return LeanLayer(
        [block.attention_norm, block.feed_forward_norm],
        config.norm_eps,
        [Projection([linear], packing) for linear in linears],
        heads=config.heads,
        kv_heads=config.kv_heads,
        dim=config.head_dim,
        scaling=config.head_dim**-0.5,
    )
