"""The floor of a forward: the least time that it can take on a machine; and the machine's rates, measured.

Every forward reads all of its weights and the keys and values of the context once, and multiplies every row by every
matrix. The longer of the two times is its floor. Activations, masks and choices are left out, and keys and values count
in the model's own precision. So the floor does not depend on how a forward is programmed.

Rates are the best of several measurements, never a mean: nothing may be faster than a floor computed from them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from specgym.controllers.evaluation.results.provenance import memory_bytes
from specgym.env.drafts import CausalDraft, Draft, FeatureDraft
from specgym.env.drafts.network import FeatureDraftNetwork
from specgym.env.models.fast.stack import state_dtype
from specgym.env.models.target import CachedModel

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE = 64 * 2**20  # assumed for the last-level cache where the system does not report it [bytes]
_TIMES_CACHE = 8  # size of the buffer that is read, in last-level caches
_SMALLEST_BUFFER = 2**28  # [bytes]
_READS = 5  # readings of the buffer by each operator
_SIDES = {"cpu": (256, 4096), "cuda": (1024, 16384)}  # smallest and largest matrices [rows]
_LONG_ENOUGH = 0.05  # a product that takes this long is a large one [s]
_PRODUCTS = 3  # products of each size


@dataclass(frozen=True)
class MachineRates:
    """The machine at its best, with the threads that torch uses."""

    read_bytes_per_second: float
    """bandwidth of reading memory [bytes/s]"""
    operations_per_second: float
    """operations of a large product in the models' precision, or in float32 if that is faster [1/s]"""
    buffer_bytes: int
    """the buffer that was read [bytes]"""
    cache_bytes: int
    """the last-level cache that it has to exceed [bytes]"""

    def best(self, other: MachineRates) -> MachineRates:
        """Returns the higher of both rates: noise only slows a machine down."""
        return MachineRates(*map(max, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Floor:
    """The least time of some work."""

    seconds: float  # [s]
    bound: str  # the bottleneck: "memory" or "arithmetic"
    bytes: float  # read from memory, each byte once [bytes]
    operations: float  # floating-point operations; a multiplication and an addition are two

    @classmethod
    def of(cls, read: float, operations: float, rates: MachineRates) -> Floor:
        """Computes the floor of work that reads `read` bytes and takes `operations`."""
        reading, computing = read / rates.read_bytes_per_second, operations / rates.operations_per_second
        bound = "memory" if reading >= computing else "arithmetic"
        return cls(max(reading, computing), bound, read, operations)


@dataclass(frozen=True)
class ForwardShape:
    """Sizes that determine the work of a model's forward."""

    weight_bytes: int
    """weights that every forward reads: matrices, head, norms and biases, but no table of embeddings [bytes]"""
    table_bytes: int
    """further weights, of which a forward reads a few rows [bytes]"""
    matrices: int
    """numbers that every row is multiplied by, the head left out"""
    head: int
    """numbers of the head, which multiplies only rows whose logits are wanted"""
    state_bytes: int
    """keys and values of one token, all layers together [bytes]"""
    kept_bytes: int
    """keys and values of one token in the precision of the cache, all layers together [bytes]"""
    attention: int
    """operations of attention for one row and one column, all layers together"""

    def floor(self, rates: MachineRates, rows: float, context: float, kept: float | None = None) -> Floor:
        """Returns the floor of one forward.

        Args:
            rates: the machine's.
            rows: rows read.
            context: tokens in the cache before it [tokens].
            kept: rows whose logits are wanted; all if None.
        """
        products = 2 * (self.matrices * rows + self.head * (rows if kept is None else kept))
        read = self.weight_bytes + self.state_bytes * context
        return Floor.of(read, products + self.attention * rows * (context + 1), rates)


def model_shape(model: CachedModel) -> ForwardShape:
    """Returns the shape of a transformers model, counted on an empty copy of it, without the loaded weights."""
    whole = model.model  # may be loaded anew, which must not happen on the meta device
    with torch.device("meta"):
        bare = type(whole)(copy.deepcopy(whole.config))
    text = whole.config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    head, dims = bare.get_output_embeddings().weight, int(text.num_hidden_layers) * dim
    return _shape(bare, head, model, heads=(heads, kv_heads), dims=dims)


def draft_shape(draft: Draft) -> ForwardShape | None:
    """Returns the shape of a draft, without a feature draft's fusing layer; None for a draft without forwards."""
    if not isinstance(draft, FeatureDraft):
        return model_shape(draft.model) if isinstance(draft, CausalDraft) else None
    config = draft.network.config
    with torch.device("meta"):
        bare = FeatureDraftNetwork(config)
    bare.reduce = nn.Identity()  # reads the target's features at the first level only
    heads, dims = (config.heads, config.kv_heads), config.layers * config.head_dim
    return _shape(bare, bare.head.weight, draft, heads=heads, dims=dims)


def _shape(
    bare: nn.Module, head: Tensor, model: CachedModel | FeatureDraft, *, heads: tuple[int, int], dims: int
) -> ForwardShape:
    """Counts the weights of `bare`, an empty copy of `model`.

    Args:
        bare: the copy.
        head: its output embeddings.
        model: the model.
        heads: heads of attention, and heads of keys and values.
        dims: dimensions of a head, all layers together.
    """
    state = 2 * dims * heads[1]  # numbers of a token's keys and values
    kept = model.state_dtype if isinstance(model, CachedModel) else state_dtype(model.dtype, model.device)
    # A head that shares its weights with the table of embeddings is counted as the head.
    modules = (module for module in bare.modules() if isinstance(module, nn.Embedding))
    tables = {id(weight): weight for module in modules for weight in module.parameters() if weight is not head}
    read = [weight for weight in bare.parameters() if id(weight) not in tables]
    size = model.dtype.itemsize  # [bytes]
    sizes = 1 if model.eight_bits else size, size  # of matrices, and of norms and biases
    return ForwardShape(
        weight_bytes=sum(weight.numel() * sizes[weight.ndim < 2] for weight in read),
        table_bytes=sum(weight.numel() for weight in tables.values()) * size,
        matrices=sum(weight.numel() for weight in read if weight.ndim > 1 and weight is not head),
        head=head.numel(),
        state_bytes=state * size,
        kept_bytes=state * kept.itemsize,
        attention=4 * dims * heads[0],
    )


def measure_rates(dtype: torch.dtype, device: torch.device) -> MachineRates:
    """Measures both rates in a few seconds, with products in `dtype`."""
    cache = last_level_cache(device)
    size = max(_TIMES_CACHE * cache, _SMALLEST_BUFFER)
    if device.type == "cpu" and (memory := memory_bytes()):
        size = min(size, max(memory // 8, 2 * cache))
    # A processor without instructions for half precision multiplies faster in float32.
    multiplies = max(multiply_rate(precision, device) for precision in {dtype, torch.float32})
    return MachineRates(read_rate(size, device), multiplies, size, cache)


def last_level_cache(device: torch.device) -> int:
    """Returns the size of the largest cache before memory [bytes]; a guess where the system does not report it."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or _UNKNOWN_CACHE
    sizes = [_size(path.read_text(encoding="ascii")) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=0) or _UNKNOWN_CACHE


def read_rate(size: int, device: torch.device) -> float:
    """Measures how fast the fastest operator reads a buffer of `size` bytes from end to end [bytes/s].

    The buffer is filled with random numbers first: unwritten pages all map to one page of zeros, which stays in cache.
    """
    buffer, vector = torch.rand(size // 4, device=device), torch.rand(4096, device=device)
    matrix = buffer[: len(buffer) // 4096 * 4096].view(-1, 4096)
    reads: tuple[Callable[[], object], ...] = (buffer.sum, buffer.max, lambda: matrix @ vector)
    return max(matrix.nbytes / _fastest(read, _READS) for read in reads)


def multiply_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measures products of square matrices, which grow until one takes long enough [operations/s]."""
    best, seconds, (side, largest) = 0.0, 0.0, _SIDES["cuda" if device.type == "cuda" else "cpu"]
    while seconds < _LONG_ENOUGH and side <= largest:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = _fastest(partial(torch.matmul, left, right), _PRODUCTS)
        best = max(best, 2 * side**3 / seconds)
        side *= 2
    return best


def _fastest(call: Callable[[], object], count: int) -> float:
    """Returns the least time of `count` calls [s]."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return min(timer.timeit(1).mean for _ in range(count))


def _size(text: str) -> int:
    """Reads a size as Linux writes it, such as ``32768K`` [bytes]."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(match[1]) * 1024 ** " KMG".index(match[2] or " ") if match else 0
