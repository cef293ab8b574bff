"""The forward of models built like Llama, without what a single text does not need.

transformers' forward serves batches, training, caches and masks of every kind. For one row of a small model, most of
its time goes into that. This forward computes the same function of the same weights (Touvron et al. 2023, arXiv
2302.13971). Each layer has root mean square norms, rotary attention over a `TreeCache` and a gated feed-forward part.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from specgym.env.kernels.moving import release_pages, to_device_async
from specgym.env.models.cache import Buffers, Rows, TreeCache
from specgym.env.models.fast.fixed import FixedForward, FixedInputs, Results, Rotation, shape_for
from specgym.env.models.fast.graphs import has_fixed_shapes
from specgym.env.models.fast.native import Fusion, LayerShape
from specgym.env.models.fast.native_matrix import Linear
from specgym.env.models.fast.packed import Packing, Projection, best_packing
from specgym.env.models.fast.plain import PlainModel, is_plain
from specgym.env.models.fast.stack import Angles, LeanLayer, LeanNorm, LeanStack, RotaryTables, state_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from typing_extensions import Self

# Linear layers that read the same input become one projection.
_PROJECTIONS = ("self_attn.q", "self_attn.k", "self_attn.v"), ("self_attn.o",), ("mlp.gate", "mlp.up"), ("mlp.down",)
_LONG = 256  # a forward of more rows takes so long that 2 ms for returning pages do not matter

_known: weakref.WeakKeyDictionary[PreTrainedModel, tuple[PlainModel, LeanModel]] = weakref.WeakKeyDictionary()


class LlamaWeights(NamedTuple):
    """The weights and settings of a model built like Llama that the lean forward reads."""

    tensors: Mapping[str, Tensor]
    """weights by the names that transformers gives them"""
    embedding: nn.Embedding
    layers: int
    dim: int
    """width of an attention head"""
    epsilon: float
    """added to the mean square in norms"""
    scaling: float
    """factor of the products of queries and keys"""
    angles: Angles
    shared: bool = False
    """whether somebody else may change the weights; then they are read where they are, and never copied"""

    def linear(self, name: str) -> Linear:
        """Returns the weight and the bias of a linear layer."""
        return Linear(self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))


def lean_model(model: PreTrainedModel) -> LeanModel | None:
    """Returns the lean forward of a model, or None if the model needs transformers' own forward.

    The forward reads the model's own weights, so it follows every change of their numbers. It is made once for a model,
    and again when tensors, modules or functions were replaced since.
    """
    known = _known.get(model)
    if known is None or not known[0].holds(model):
        _known.pop(model, None)
        if not is_plain(model):
            return None
        _known[model] = known = PlainModel(model), LeanModel(weights_of(model))
    return known[1]


def weights_of(model: Any) -> LlamaWeights:
    """Returns the weights of a plain model, which it shares."""
    decoder, first = model.model, model.model.layers[0]
    precision = torch.empty(0, dtype=torch.float32, device=model.device)  # of cosines and sines

    def angles(positions: Tensor) -> Rotation:
        cos, sin = decoder.rotary_emb(precision, positions[None])
        half = sin.shape[-1] // 2
        return cos[0, :, :half], sin[0, :, :half]

    return LlamaWeights(
        model.state_dict(),
        decoder.embed_tokens,
        len(decoder.layers),
        int(first.self_attn.head_dim),
        float(first.input_layernorm.variance_epsilon),
        float(first.self_attn.scaling),
        angles,
        shared=True,
    )


class LeanForward:
    """A forward from tokens to logits, by the fastest way that the machine has.

    It keeps no text: that is in the buffers that a call is given. Subclasses define how the layers' input is made.

    Args:
        table: embeddings, `[vocabulary, hidden]`.
        rotary: tables of the rotary embedding.
        layers: the layers.
        norm: the norm after the layers.
        head: from the normed rows to logits.
        fusion: how compiled functions begin, if not with embeddings alone.
        has_features: whether rows begin with features besides tokens.
    """

    def __init__(
        self,
        table: Tensor,
        rotary: RotaryTables,
        layers: LeanStack,
        norm: LeanNorm,
        head: Projection,
        *,
        fusion: Fusion | None = None,
        has_features: bool = False,
    ) -> None:
        self.rotary, self.layers, self.norm, self.head = rotary, layers, norm, head
        self._table, self._has_features = table, has_features
        self._native = layers.native_forward(table, norm, head, fusion)
        self._fixed: FixedForward | None = None
        if self._native is None and has_fixed_shapes(table.device):
            self._fixed = FixedForward(self._run_fixed, table, rotary.up_to, features=has_features)

    def fork(self) -> Self:
        """Returns the same forward for other buffers: graphs belong to one place in memory each."""
        if self._fixed is None:
            return self
        fork = copy.copy(self)
        fork._fixed = fork._make_fixed()
        return fork

    def _make_fixed(self) -> FixedForward:
        return FixedForward(self._run_fixed, self._table, self.rotary.up_to, features=self._has_features)

    def _begin(self, tokens: Tensor, features: Tensor | None) -> Tensor:
        """Makes the layers' input `[rows, hidden]` from `int64[rows]` and features, `[rows, hidden]`."""
        raise NotImplementedError

    def room(self, inputs: Rows, length: int) -> int:
        """Returns for how many rows the buffers need room, behind the `length` rows that they hold."""
        rows = len(inputs.tokens)
        if self._fixed is None or not self._fixed.accepts(inputs):
            return rows
        return shape_for(rows, length).columns - length  # with padding

    def run(
        self, inputs: Rows, buffers: Buffers, *, keep: int, shown: Sequence[int] = (), features: Tensor | None = None
    ) -> Results:
        """Appends rows to the buffers, one buffer a layer.

        Args:
            inputs: the rows.
            buffers: one for each layer.
            keep: last rows whose logits are computed.
            shown: layers whose outputs are returned, counted from 0, ascending.
            features: what rows begin with besides tokens, `[rows, hidden]`.

        Raises:
            IndexError: a token that the model does not have.
            ValueError: several rows without `visible`, and the buffers are not empty.
        """
        device = self.rotary.device
        self.layers.reserve(buffers, inputs, device, self.room(inputs, buffers[0].length))
        if self._native is not None:
            rotation = self.rotary.up_to(int(inputs.positions.max()) + 1)
            return self._native(inputs, rotation, buffers, keep=keep, shown=shown, features=features)
        if self._fixed is not None and self._fixed.accepts(inputs):
            return self._fixed(inputs, buffers, keep=keep, shown=shown, features=features)
        stream = self._begin(to_device_async(inputs.tokens, device), features)
        window = self.layers.window(inputs, buffers[0].length, device)
        stream, outputs = self.layers(stream, self.rotary(inputs.positions), window, buffers, shown)
        final = self.norm(stream)
        kept = final[len(final) - keep :]
        logits = self.head(kept, is_text=inputs.visible is None) if keep else kept.new_empty(0, self.head.outs)
        return final, logits, outputs

    def _run_fixed(self, inputs: FixedInputs, buffers: Buffers, shown: Sequence[int]) -> Results:
        """See `FixedForward`."""
        stream = self._begin(inputs.tokens, inputs.features)
        rotation = inputs.cos[inputs.positions], inputs.sin[inputs.positions]
        stream, outputs = self.layers(stream, rotation, self.layers.fixed_window(inputs), buffers, shown)
        final = self.norm(stream)
        return final, self.head(final, is_text=False), outputs


class LeanModel(LeanForward):
    """The forward of a causal language model.

    Args:
        weights: of the model.
        eight_bits: whether weights of linear layers are rounded to eight bits, which needs copies.

    Attributes:
        packed: whether it has packed copies of the weights; otherwise later changes of the weights have an effect.

    Raises:
        ParameterError: eight bits are asked for, and this machine cannot compute with them.
    """

    def __init__(self, weights: LlamaWeights, eight_bits: bool = False) -> None:
        self.embedding = weights.embedding
        table = weights.embedding.weight.detach()
        self.dtype, device = state_dtype(table.dtype, table.device), table.device
        first = (tensor for name, tensor in weights.tensors.items() if name.startswith("model.layers.0."))
        widths = {tensor.shape[1] for tensor in first if tensor.ndim > 1}
        packing = best_packing(table.dtype, device, weights.dim, *widths, eight_bits=eight_bits)
        if weights.shared and not eight_bits:
            packing = "in place" if packing == "native" else "none"
        super().__init__(
            table,
            RotaryTables(weights.angles, self.dtype, device),
            LeanStack([_layer(weights, number, packing) for number in range(weights.layers)], self.dtype),
            LeanNorm(weights.tensors["model.norm.weight"], weights.epsilon),
            Projection([weights.linear("lm_head")], packing),
        )
        self.packed = packing not in {"in place", "none"}

    def __call__(
        self, inputs: Rows, cache: TreeCache, *, keep: int = 0, shown: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Appends rows to the cache; raises as `run`.

        Args:
            inputs: the rows.
            cache: the model's cache.
            keep: last rows whose logits are computed; 0 for all.
            shown: layers whose outputs are returned, counted from 0, ascending; None for no states at all.

        Returns:
            Logits `[rows kept, vocabulary]`, and the states after the layers in `shown` and after the final norm, side
            by side, `[rows, (len(shown) + 1) * hidden]`.
        """
        rows = len(inputs.tokens)
        if self.packed and rows > _LONG:  # no matrix product reads the table, so old pages need not stay in memory
            release_pages(self.embedding.weight)
        cache.make_room(self.room(inputs, cache.length))
        final, logits, outputs = self.run(inputs, cache.layers, keep=keep or rows, shown=shown or ())
        if shown is None:
            return logits, None
        return logits, torch.cat([*outputs, final], dim=-1) if outputs else final

    def _begin(self, tokens: Tensor, features: Tensor | None) -> Tensor:
        embedded: Tensor = self.embedding(tokens)
        return embedded


def _layer(weights: LlamaWeights, number: int, packing: Packing) -> LeanLayer:
    layer, tensors, dim = f"model.layers.{number}", weights.tensors, weights.dim
    norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    heads, kv_heads = (len(tensors[f"{layer}.self_attn.{name}_proj.weight"]) // dim for name in "qk")
    return LeanLayer(
        [tensors[name] for norm in norms if (name := f"{layer}.{norm}.weight") in tensors],
        [Projection([weights.linear(f"{layer}.{name}_proj") for name in names], packing) for names in _PROJECTIONS],
        LayerShape(heads, kv_heads, dim, weights.epsilon, weights.scaling),
    )
