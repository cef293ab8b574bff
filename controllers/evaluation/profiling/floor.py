"""The least time that a forward can take on a machine: what it must read, and what it must compute.

Whatever a forward does, it reads all of its weights and the keys and values of the context once, and it multiplies
every row by every matrix. The longer of the two times is its floor. Activations, masks and choices are left out, and
states count in the model's own precision, so that the floor does not depend on how a forward is programmed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from specgym.controllers.evaluation.profiling.rates import MachineRates
from specgym.env.drafts import CausalDraft, Draft, FeatureDraft
from specgym.env.drafts.network import FeatureDraftNetwork
from specgym.env.models.fast.lean import state_dtype
from specgym.env.models.target import CachedModel


@dataclass(frozen=True)
class Work:
    """What has to be done."""

    bytes: float
    """read from memory, each byte once [bytes]"""
    operations: float
    """floating-point operations, a multiplication and an addition being two"""

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations)

    def seconds(self, rates: MachineRates) -> float:
        """The least time that it takes [s]."""
        return max(self.bytes / rates.read_bytes_per_second, self.operations / rates.operations_per_second)

    def bound(self, rates: MachineRates) -> str:
        """What holds it up: ``memory`` or ``arithmetic``."""
        reading = self.bytes / rates.read_bytes_per_second
        return "memory" if reading >= self.operations / rates.operations_per_second else "arithmetic"


@dataclass(frozen=True)
class ForwardShape:
    """What the forward of one model works with."""

    weight_bytes: int
    """weights that every forward reads: matrices, head, norms and biases, but no table of embeddings [bytes]"""
    table_bytes: int
    """further weights, of which a forward reads a few rows [bytes]"""
    matrices: int
    """numbers that every row is multiplied by, the head left out"""
    head: int
    """numbers of the head, which is multiplied by those rows only whose logits are wanted"""
    state_bytes: int
    """keys and values of one token, all layers together [bytes]"""
    kept_bytes: int
    """the same in the precision that the cache keeps [bytes]"""
    attention: int
    """operations of attention for one row and one column, all layers together"""

    def work(self, rows: float, context: float, kept: float | None = None) -> Work:
        """Of one forward.

        Args:
            rows: rows read.
            context: tokens in the cache before it [tokens].
            kept: rows whose logits are wanted; all if None.
        """
        kept = rows if kept is None else kept
        products = 2 * (self.matrices * rows + self.head * kept)
        return Work(self.weight_bytes + self.state_bytes * context, products + self.attention * rows * (context + 1))


def model_shape(model: CachedModel) -> ForwardShape:
    """Of a transformers model, counted on a bare copy: what was done to the loaded weights does not matter."""
    config = copy.deepcopy(model.model.config)
    with torch.device("meta"):
        bare = type(model.model)(config)
    text = config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    head = bare.get_output_embeddings().weight
    layers = int(text.num_hidden_layers)
    state, attention = 2 * layers * kv_heads * dim, 4 * layers * heads * dim
    precisions = _Precisions.of(model, model.state_dtype)
    return _shape(bare, head, precisions, state=state, attention=attention)


def draft_shape(draft: Draft) -> ForwardShape | None:
    """Of a draft that has a forward; None for one without. What a feature draft fuses its features by is left out."""
    if isinstance(draft, CausalDraft):
        return model_shape(draft.model)
    if not isinstance(draft, FeatureDraft):
        return None
    config = draft.network.config
    with torch.device("meta"):
        bare = FeatureDraftNetwork(config)
    bare.reduce = nn.Identity()  # reads the target's features at the first level only
    dims = config.layers * config.head_dim
    state, attention = 2 * dims * config.kv_heads, 4 * dims * config.heads
    precisions = _Precisions.of(draft, state_dtype(draft.dtype, draft.device))
    return _shape(bare, bare.head.weight, precisions, state=state, attention=attention)


class _Precisions(NamedTuple):
    matrices: torch.dtype
    rest: torch.dtype
    kept: torch.dtype
    """of keys and values in the cache"""

    @classmethod
    def of(cls, model: CachedModel | FeatureDraft, kept: torch.dtype) -> _Precisions:
        return cls(torch.int8 if model.eight_bits else model.dtype, model.dtype, kept)


def _shape(bare: nn.Module, head: torch.Tensor, precisions: _Precisions, *, state: int, attention: int) -> ForwardShape:
    """What a bare model adds up to; `state` are the numbers that it keeps of a token."""
    # A head may share its weights with the table of embeddings; then they are read as the head.
    modules = (module for module in bare.modules() if isinstance(module, nn.Embedding))
    tables = {id(weight): weight for module in modules for weight in module.parameters() if weight is not head}
    read = [weight for weight in bare.parameters() if id(weight) not in tables]
    sizes = precisions.matrices.itemsize, precisions.rest.itemsize
    return ForwardShape(
        weight_bytes=sum(weight.numel() * sizes[weight.ndim < 2] for weight in read),
        table_bytes=sum(weight.numel() for weight in tables.values()) * precisions.rest.itemsize,
        matrices=sum(weight.numel() for weight in read if weight.ndim > 1 and weight is not head),
        head=head.numel(),
        state_bytes=state * precisions.rest.itemsize,
        kept_bytes=state * precisions.kept.itemsize,
        attention=attention,
    )
