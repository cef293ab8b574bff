"""The forward of a feature draft at work: what `FeatureDraftNetwork` computes, for one text and without its modules.

As with the target (see `specgym.env.models.fast.lean`), reading weights is the smaller part of a module's forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.drafts.network import DecoderLayer, FeatureDraftNetwork
from specgym.env.kernels.transfer import to_device_async
from specgym.env.models.cache import KeyValueBuffer
from specgym.env.models.fast.fixed import FixedForward, FixedInputs, Results
from specgym.env.models.fast.graphs import has_fixed_shapes
from specgym.env.models.fast.lean import LeanLayer, LeanNorm, LeanStack, RotaryTables, state_dtype
from specgym.env.models.fast.native import Fusion
from specgym.env.models.fast.packed import Packing, Projection, best_packing


class LeanDraft:
    """The forward of one network, with its weights as they are now.

    Args:
        network: where and in the precision that it is to work in.
        table: of the target's embeddings, likewise, `[vocabulary, hidden]`.
        eight_bits: whether the weights of linear layers are rounded to eight bits.

    Raises:
        ParameterError: they are to be, and this machine cannot.
    """

    def __init__(self, network: FeatureDraftNetwork, table: torch.Tensor, *, eight_bits: bool = False) -> None:
        config, weight = network.config, network.fuse.weight
        linears = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        device, widths = weight.device, {linear.in_features for linear in linears}
        packing = best_packing(weight.dtype, device, config.head_dim, *widths, eight_bits=eight_bits)
        self._dtype = state_dtype(weight.dtype, device)
        self._reduce = Projection([network.reduce], packing) if isinstance(network.reduce, torch.nn.Linear) else None
        self._token_norm = LeanNorm(network.token_norm.weight, config.norm_eps)
        self._feature_norm = LeanNorm(network.feature_norm.weight, config.norm_eps)
        self._output_norm = LeanNorm(network.output_norm.weight, config.norm_eps)
        self._fuse = Projection([network.fuse], packing)
        self._turns = RotaryTables(lambda positions: network.rotary(positions, self._dtype), self._dtype, device)
        self._layers = LeanStack([_layer(block, packing) for block in network.blocks], self._dtype)
        self.head = Projection([network.head], packing)
        """from features `[rows, hidden]` to logits `[rows, vocabulary]`"""
        self._vocabulary, self._table = network.head.out_features, table.detach()
        norms, matrix = (self._token_norm.weight, self._feature_norm.weight), self._fuse.native
        fusion = None if matrix is None else Fusion(*norms, matrix)
        self._native = self._layers.native_forward(self._table, self._output_norm, self.head, fusion)
        self._fixed: FixedForward | None = None
        if self._native is None and has_fixed_shapes(device):
            self._fixed = FixedForward(self._run_fixed, self._table, self._turns.up_to, features=True)

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """The target's states `[rows, feature_width]` as one, `[rows, hidden]`."""
        return features if self._reduce is None else self._reduce(features)

    def __call__(
        self,
        tokens: IntArray,
        features: torch.Tensor,
        positions: IntArray,
        visible: BoolArray | None,
        caches: Sequence[KeyValueBuffer],
        *,
        keep: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends rows to the caches, one a layer.

        Args:
            tokens: `int64[rows]`.
            features: the states before them, reduced or the draft's own, `[rows, hidden]`.
            positions: of the rows, `int64[rows]`.
            visible: which of the last columns, these rows' own included, each row sees, `bool[rows, columns]`; every
                column before them is seen. None for one row, or for several without a prefix.
            caches: one for each layer.
            keep: last rows whose logits are wanted.

        Returns:
            The next features, `[rows, hidden]`, and logits `[keep, vocabulary]`.

        Raises:
            IndexError: a token that the target does not have.
            ValueError: several rows without `visible`, and a prefix.
        """
        if self._native is not None:
            self._layers.reserve(caches, len(tokens), visible, features.device)
            angles = self._turns.tables(positions)
            output, logits, _ = self._native(tokens, positions, angles, visible, caches, keep=keep, features=features)
            return output, logits
        if self._fixed is not None and self._fixed.takes(tokens, visible):
            room = self._fixed.room(len(tokens), caches[0].length)
            self._layers.reserve(caches, len(tokens), visible, features.device, room)
            output, logits, _ = self._fixed(tokens, positions, visible, caches, keep=keep, features=features)
            return output, logits
        stream = self._fused(to_device_async(tokens, self._table.device), features)
        stream, _ = self._layers(stream, self._turns(positions), visible, caches)
        output = self._output_norm(stream)
        wanted = output[len(output) - keep :]
        return output, self.head(wanted) if keep else wanted.new_empty(0, self._vocabulary)

    def _run_fixed(self, inputs: FixedInputs, buffers: Sequence[KeyValueBuffer], shown: Sequence[int]) -> Results:
        """See `FixedForward`."""
        assert inputs.features is not None, "a feature draft begins with features"
        stream = self._fused(inputs.tokens, inputs.features)
        stream, outputs = self._layers.run_fixed(stream, inputs, buffers, shown)
        output = self._output_norm(stream)
        return output, self.head(output, text=False), outputs

    def _fused(self, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """What the layers begin with, `[rows, hidden]`."""
        embedded = self._table[tokens]
        return self._fuse(torch.cat([self._token_norm(embedded), self._feature_norm(features)], dim=-1))


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
