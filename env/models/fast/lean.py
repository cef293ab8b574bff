"""A forward for models built like Llama that does for one text what has to be done, and nothing else.

transformers' forward serves batches, training, caches and masks of every kind; for a single row of a small model, most
of its time goes into that. This one computes the same function of the same weights: embedding, and for every layer
root mean square norm, rotary attention over a `TreeCache` and a gated feed-forward part (Touvron et al. 2023, arXiv
2302.13971). Half precision is rounded where transformers rounds it, but for attention: on a CPU, keys, values and the
weights of attention are float32, which costs no time there, and leaves less to the order of additions.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from specgym.env.common.arrays import BoolArray, IntArray
from specgym.env.kernels.transfer import to_device_async
from specgym.env.models.attention import additive_mask
from specgym.env.models.cache import KeyValueBuffer, TreeCache, reserve_all
from specgym.env.models.fast.fixed import FixedForward, FixedInputs, Results
from specgym.env.models.fast.graphs import has_fixed_shapes
from specgym.env.models.fast.layer import as_written, has_kernel, layer_function
from specgym.env.models.fast.native import Fusion, LayerShape, NativeForward, NativeLayer
from specgym.env.models.fast.packed import Packing, Projection, best_packing
from specgym.env.models.fast.resident import return_pages

_FAMILIES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
# Whose angle at a position does not depend on the length of the text.
_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})

_LONG = 256  # rows whose forward takes so long that looking after pages, some 2 ms, is no part of it

Angles: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Turn: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""cosines `[rows, dim]` and sines `[rows, dim / 2]`"""

_known: weakref.WeakKeyDictionary[PreTrainedModel, tuple[tuple[object, ...], LeanModel]] = weakref.WeakKeyDictionary()


def lean_model(model: PreTrainedModel, *, eight_bits: bool = False) -> LeanModel | None:
    """The lean forward of a model, or None for one that has to go by transformers' own.

    It is made once for a model, and again when weights have changed since.

    Args:
        model: the model.
        eight_bits: whether its linear layers' weights are rounded to eight bits.

    Raises:
        ParameterError: they are to be, and this machine cannot.
    """
    if not _is_plain(model):
        return None
    # Weights that were loaded in inference mode do not say whether they have changed.
    weights = list(model.parameters())
    traceable = not any(weight.is_inference() for weight in weights)
    state = (eight_bits, *((weight.data_ptr(), weight._version) for weight in weights)) if traceable else ()
    known = _known.get(model)
    if known is None or known[0] != state or not traceable:
        _known[model] = known = (state, LeanModel(model, eight_bits))
    return known[1]


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether a model is one of the families, with layers as they were made: no adapters, quantisation or hooks."""
    if type(model).__name__ not in _FAMILIES or not type(model).__module__.startswith("transformers."):
        return False
    config = model.config
    if config.hidden_act != "silu" or model.model.rotary_emb.rope_type not in _ROTATIONS:
        return False
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return False
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            return False
    linears = (linear for layer in model.model.layers for linear in _linears(layer))
    return all(type(linear) is nn.Linear for linear in linears)


def _linears(layer: Any) -> tuple[nn.Module, ...]:
    attention, gated = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (*projections, gated.gate_proj, gated.up_proj, gated.down_proj)


class LeanModel:
    """The forward of one model. It keeps no text: the cache that it is given does.

    Args:
        model: of a family that `lean_model` knows.
        eight_bits: as there.
    """

    def __init__(self, model: PreTrainedModel, eight_bits: bool = False) -> None:
        decoder: Any = model.model
        packing = _packing(model, eight_bits)
        self.embedding: nn.Embedding = decoder.embed_tokens
        self.dtype = state_dtype(model.dtype, model.device)
        self.turns = RotaryTables(_angles(decoder.rotary_emb, self.dtype, model.device), self.dtype, model.device)
        self.layers = LeanStack([_layer(layer, packing) for layer in decoder.layers], self.dtype)
        self.norm = LeanNorm(decoder.norm.weight, float(decoder.norm.variance_epsilon))
        self.head = Projection([model.get_output_embeddings()], packing)
        self._native = self.layers.native_forward(self.embedding.weight.detach(), self.norm, self.head)
        self._fixed: FixedForward | None = None
        if self._native is None and has_fixed_shapes(model.device):
            self._fixed = FixedForward(self._run_fixed, self.embedding.weight, self.turns.up_to)
        # No matrix product reads the table: of its pages, those looked at long ago need not stay.
        self._returns = packing != "none"

    def __call__(
        self,
        tokens: IntArray,
        positions: IntArray,
        visible: BoolArray | None,
        cache: TreeCache,
        *,
        keep: int = 0,
        shown: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Appends rows to the cache.

        Args:
            tokens: `int64[rows]`.
            positions: `int64[rows]`.
            visible: which of the last columns, these rows' own included, each row sees, `bool[rows, columns]`; every
                column before them is seen. None for one row, or for several without a prefix.
            cache: of this model.
            keep: last rows whose logits are wanted; 0 for all.
            shown: layers whose outputs are wanted, counted from 0, ascending; None for no states at all.

        Returns:
            Logits `[rows kept, vocabulary]`, and the states after the layers in `shown` and after the final norm, side
            by side, `[rows, (len(shown) + 1) * hidden]`.

        Raises:
            IndexError: a token that the model does not have.
            ValueError: several rows without `visible`, and a prefix.
        """
        if self._returns and len(tokens) > _LONG:
            return_pages(self.embedding.weight)
        fixed = self._fixed if self._fixed is not None and self._fixed.takes(tokens, visible) else None
        rows, device = len(tokens), self.embedding.weight.device
        room = rows if fixed is None else fixed.room(rows, cache.length)
        cache.make_room(room)
        keep, wanted = keep or rows, shown or ()
        if self._native is not None:
            self.layers.reserve(cache.layers, rows, visible, device)
            turn = self.turns.tables(positions)
            final, logits, outputs = self._native(
                tokens, positions, turn, visible, cache.layers, keep=keep, shown=wanted
            )
        elif fixed is not None:
            self.layers.reserve(cache.layers, rows, visible, device, room)
            final, logits, outputs = fixed(tokens, positions, visible, cache.layers, keep=keep, shown=wanted)
        else:
            stream = self.embedding(to_device_async(tokens, device))
            stream, outputs = self.layers(stream, self.turns(positions), visible, cache.layers, wanted)
            final = self.norm(stream)
            logits = self.head(final[-keep:], text=visible is None)
        if shown is None:
            return logits, None
        return logits, torch.cat([*outputs, final], dim=-1) if outputs else final

    def _run_fixed(self, inputs: FixedInputs, buffers: Sequence[KeyValueBuffer], shown: Sequence[int]) -> Results:
        """See `FixedForward`."""
        stream, outputs = self.layers.run_fixed(self.embedding(inputs.tokens), inputs, buffers, shown)
        final = self.norm(stream)
        return final, self.head(final, text=False), outputs


class Window(NamedTuple):
    """What rows see of a buffer, and where they are written in it; see `decoder_layer`."""

    mask: torch.Tensor | None
    """additive, `[1, 1, group * rows, columns]`"""
    columns: int
    places: torch.Tensor | None = None


class LeanLayer:
    """The weights of one decoder layer, and how `decoder_layer` is called with them.

    Args:
        norms: before attention, before the feed-forward part, and maybe of queries and of keys.
        epsilon: added to the mean square in norms.
        parts: query, key and value; output; gate and up; down.
        heads: of queries.
        kv_heads: of keys and values; divides `heads`.
        dim: width of a head.
        scaling: factor of the products of queries and keys.
    """

    def __init__(
        self,
        norms: Sequence[Any],
        epsilon: float,
        parts: Sequence[Projection],
        *,
        heads: int,
        kv_heads: int,
        dim: int,
        scaling: float,
    ) -> None:
        self.group = heads // kv_heads
        self.row_shape = (1, kv_heads, 1, dim)  # of a row of keys or values
        weights, shape = [norm.weight.detach() for norm in norms], LayerShape(heads, kv_heads, dim, epsilon, scaling)
        matrices = [part.native for part in parts if part.native is not None]
        self.native = NativeLayer(weights, matrices, shape) if matrices else None
        self._run = layer_function(norms[0].weight.device.type)
        self._weights = (
            weights,
            epsilon,
            [part.weights for part in parts],
            [part.biases for part in parts],
            [part.least for part in parts],
        )
        self._attention = heads, scaling

    def __call__(self, stream: torch.Tensor, turn: Turn, window: Window, buffer: KeyValueBuffer) -> torch.Tensor:
        """The stream `[rows, hidden]` after the layer.

        Args:
            stream: before it.
            turn: of the rows' positions.
            window: of the buffer.
            buffer: of keys and values; the rows are already counted in.
        """
        mask, columns, places = window
        own, states = has_kernel(len(stream), mask is None), (buffer.keys, buffer.values)
        return self._run(stream, *turn, mask, *states, columns, places, *self._weights, own, *self._attention)


class LeanStack:
    """Decoder layers, one after the other.

    Args:
        layers: of one shape.
        dtype: in which keys and values are kept.
    """

    def __init__(self, layers: Sequence[LeanLayer], dtype: torch.dtype) -> None:
        self._layers, self._dtype = layers, dtype

    def native_forward(
        self, table: torch.Tensor, norm: LeanNorm, head: Projection, fusion: Fusion | None = None
    ) -> NativeForward | None:
        """All that a model does in one function, with what goes before and after these layers (see `NativeForward`);
        None where weights are not packed for it. All norms besides the layers' have the epsilon of `norm`.
        """
        natives = [layer.native for layer in self._layers if layer.native is not None]
        if not natives or head.native is None:
            return None
        return NativeForward(natives, table, norm.weight, head.native, epsilon=norm.epsilon, fusion=fusion)

    def reserve(
        self,
        buffers: Sequence[KeyValueBuffer],
        rows: int,
        visible: BoolArray | None,
        device: torch.device,
        room: int = 0,
    ) -> None:
        """Appends rows to the buffers, one a layer, which are yet to be written.

        Args:
            buffers: one for each layer.
            rows: how many.
            visible: see `LeanModel`.
            device: where buffers are made.
            room: rows that there is to be room for, if more.

        Raises:
            ValueError: several rows of which it is not said what each sees, and a prefix.
        """
        if visible is None and buffers[0].length and rows > 1:
            raise ValueError(f"Without a mask, {rows} rows need an empty cache; it holds {buffers[0].length}.")
        length = buffers[0].length
        reserve_all(buffers, max(rows, room), self._layers[0].row_shape, self._dtype, device)
        if room > rows:
            for buffer in buffers:
                buffer.keep(length + rows)

    def run_fixed(
        self, stream: torch.Tensor, inputs: FixedInputs, buffers: Sequence[KeyValueBuffer], shown: Sequence[int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As a call, in fixed shapes."""
        mask = torch.zeros(inputs.seen.shape, dtype=self._dtype, device=stream.device)
        mask = mask.masked_fill_(inputs.seen.logical_not(), torch.finfo(self._dtype).min)
        mask = mask.repeat(self._layers[0].group, 1)[None, None]
        places = inputs.start + torch.arange(len(stream), device=stream.device)
        turn = inputs.cos[inputs.positions], inputs.sin[inputs.positions]
        return self._through(stream, turn, Window(mask, inputs.shape.columns, places), buffers, shown)

    def __call__(
        self,
        stream: torch.Tensor,
        turn: Turn,
        visible: BoolArray | None,
        buffers: Sequence[KeyValueBuffer],
        shown: Sequence[int] = (),
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Appends rows to the buffers by the library's operators.

        Args:
            stream: `[rows, hidden]`.
            turn: of the rows' positions.
            visible: see `LeanModel`.
            buffers: one for each layer.
            shown: layers whose outputs are wanted, counted from 0, ascending.

        Returns:
            The stream after the last layer, and after each of those in `shown`.

        Raises:
            ValueError: as `reserve`.
        """
        self.reserve(buffers, len(stream), visible, stream.device)
        mask, length = None, buffers[0].length
        if visible is not None:
            mask = additive_mask(length - visible.shape[1], visible, self._dtype, stream.device)
            mask = mask.repeat(1, 1, self._layers[0].group, 1)
        return self._through(stream, turn, Window(mask, length), buffers, shown)

    def _through(
        self,
        stream: torch.Tensor,
        turn: Turn,
        window: Window,
        buffers: Sequence[KeyValueBuffer],
        shown: Sequence[int],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The stream after the last layer, and after each of those in `shown`."""
        outputs = []
        with as_written():
            for number, (layer, buffer) in enumerate(zip(self._layers, buffers, strict=True)):
                stream = layer(stream, turn, window, buffer)
                if number in shown:
                    outputs.append(stream)
        return stream, outputs


def _packing(model: PreTrainedModel, eight_bits: bool) -> Packing:
    """The best for a model of one of the families."""
    layer: Any = model.model.layers[0]
    linears = (linear for linear in _linears(layer) if isinstance(linear, nn.Linear))
    widths = {linear.in_features for linear in linears}
    return best_packing(model.dtype, model.device, int(layer.self_attn.head_dim), *widths, eight_bits=eight_bits)


def _layer(layer: Any, packing: Packing) -> LeanLayer:
    """Of a layer of one of the families."""
    attention, gated = layer.self_attn, layer.mlp
    dim = int(attention.head_dim)
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
    parts = (
        Projection([attention.q_proj, attention.k_proj, attention.v_proj], packing),
        Projection([attention.o_proj], packing),
        Projection([gated.gate_proj, gated.up_proj], packing),
        Projection([gated.down_proj], packing),
    )
    return LeanLayer(
        norms,
        float(norms[0].variance_epsilon),
        parts,
        heads=attention.q_proj.out_features // dim,
        kv_heads=attention.k_proj.out_features // dim,
        dim=dim,
        scaling=float(attention.scaling),
    )


class LeanNorm:
    """A root mean square norm.

    Args:
        weight: `[width]`.
        epsilon: added to the mean square.
    """

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = weight.detach(), epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, width]`."""
        return rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


class RotaryTables:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864), kept by position.

    Args:
        angles: cosines and sines at `int64[positions]`, `[positions, dim / 2]` each.
        dtype: precision in which they are needed.
        device: where.
    """

    def __init__(self, angles: Angles, dtype: torch.dtype, device: torch.device) -> None:
        self.angles, self.dtype, self.device = angles, dtype, device
        self.cos = self.sin = torch.empty(0)

    def tables(self, positions: IntArray) -> Turn:
        """Of all up to the last of `int64[rows]`, as `up_to`."""
        return self.up_to(int(positions.max()) + 1)

    def up_to(self, needed: int) -> Turn:
        """Of that many positions at least: cosines `[positions, dim]` and sines `[positions, dim / 2]`."""
        if needed > len(self.cos):
            count = max(needed, 2 * len(self.cos), 256)
            cos, sin = self.angles(torch.arange(count, device=self.device))
            self.cos, self.sin = torch.cat([cos, cos], dim=-1).to(self.dtype), sin.to(self.dtype).contiguous()
        return self.cos, self.sin

    def __call__(self, positions: IntArray) -> Turn:
        """Of `int64[rows]`, for each row."""
        cos, sin = self.tables(positions)
        where = to_device_async(positions, self.device)
        return cos[where], sin[where]


def state_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision that keys and values are kept in, see the module's head."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and device.type == "cpu" else dtype


def _angles(rotary: nn.Module, dtype: torch.dtype, device: torch.device) -> Angles:
    """Those of a transformers model."""
    reference = torch.empty(0, dtype=dtype, device=device)

    def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = rotary(reference, positions[None])
        half = sin.shape[-1] // 2
        return cos[0, :, :half], sin[0, :, :half]

    return angles
