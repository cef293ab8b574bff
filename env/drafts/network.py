"""The network of a feature draft: one or two decoder layers on the target's own hidden states.

After EAGLE (Li et al. 2024, arXiv 2401.15077) and EAGLE-3 (Li et al. 2025, arXiv 2503.01840): the network predicts the
target's state one token ahead. Row i reads token i and the target's state at i - 1, which may be fused from several
layers. The output predicts the state at i, and a head over a trimmed vocabulary predicts token i + 1 from it. Deeper in
a tree, the predicted state takes the place of the target's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from specgym.env.common.checkpoint import write_sorted
from specgym.env.common.errors import ModelFileError
from specgym.env.common.files import atomic_path
from specgym.env.common.reading import WRONG_VALUES, check_types, parse_json

_FORMAT = "specgym feature draft 2"
_WEIGHT_TYPES = ("BF16", "F16", "F32", "F64")  # the names of a safetensors file
_MOST_LAYERS = 256  # of a file's draft, and of the target's layers that it reads


@dataclass(frozen=True)
class FeatureDraftConfig:
    """Shape of the network."""

    hidden_size: int
    """width of the target's hidden states and token embeddings [numbers]"""
    heads: int
    """attention heads"""
    kv_heads: int
    """key/value heads; divides `heads`"""
    head_dim: int
    """width of a head, even [numbers]"""
    intermediate_size: int
    """width of the gated feed-forward part [numbers]"""
    vocabulary: int
    """tokens that the head can propose [tokens]"""
    layers: int = 1
    """decoder layers"""
    feature_layers: tuple[int, ...] = ()
    """layers of the target, counted from 0, whose outputs are fused with its last hidden state"""
    rope_theta: float = 10_000.0
    """base of the rotary position embedding (Su et al. 2021, arXiv 2104.09864)"""
    norm_eps: float = 1e-5
    """added to the mean square in RMS norms"""

    @property
    def feature_width(self) -> int:
        """Width of the target's features at a position: `feature_layers` and the last hidden state together."""
        return (len(self.feature_layers) + 1) * self.hidden_size


class RMSNorm(nn.RMSNorm):
    """Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467) with its weight in the input's precision.

    Mixed-precision training has float32 weights and other inputs. For this mix torch has no fused kernel.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x / rms(x)` times the weight, in `x`'s shape and precision."""
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class DecoderLayer(nn.Module):
    """Attention and a gated feed-forward part, each applied to the normed stream and added to it (as in Llama).

    Attention itself happens between `project` and `finish`, so that training can use masks of its own.

    Args:
        config: shape of the network.
    """

    def __init__(self, config: FeatureDraftConfig) -> None:
        super().__init__()
        self.config = config
        width, queries, states = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.query_key_value = nn.Linear(width, queries + 2 * states, bias=False)
        self.attention_output = nn.Linear(queries, width, bias=False)
        self.feed_forward_norm = RMSNorm(width, config.norm_eps)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)

    def project(
        self, stream: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value, `[batch, heads, rows, head_dim]`, of a stream `[batch, rows, hidden]`.

        Args:
            stream: the layer's input.
            rotation: see `FeatureDraftNetwork.rotary`.
        """
        config = self.config
        joint = self.query_key_value(self.attention_norm(stream))
        joint = joint.unflatten(-1, (config.heads + 2 * config.kv_heads, config.head_dim)).transpose(1, 2)
        turned = _rotate(joint[:, : -config.kv_heads], rotation)
        return turned[:, : config.heads], turned[:, config.heads :], joint[:, -config.kv_heads :]

    def finish(self, stream: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output, from its input and the attention's result `[batch, heads, rows, dim]`."""
        stream = stream + self.attention_output(attended.transpose(1, 2).flatten(-2))
        gate, up = self.gate_up(self.feed_forward_norm(stream)).chunk(2, dim=-1)
        return stream.add(self.down(nn.functional.silu(gate) * up))


class FeatureDraftNetwork(nn.Module):
    """The weights of a feature draft. `begin`, the layers and `output_norm` compute the next feature.

    Inference runs the same function in `LeanDraft`, and training in a rollout over several steps.

    Args:
        config: shape of the network.
    """

    token_ids: torch.Tensor
    """the target's token id of each entry of the trimmed vocabulary, `int64[vocabulary]`"""

    def __init__(self, config: FeatureDraftConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.reduce = nn.Linear(config.feature_width, width, bias=False) if config.feature_layers else nn.Identity()
        self.token_norm = RMSNorm(width, config.norm_eps)
        self.feature_norm = RMSNorm(width, config.norm_eps)
        self.fuse = nn.Linear(2 * width, width, bias=False)
        self.blocks = [DecoderLayer(config) for _ in range(config.layers)]  # the decoder layers, first to last
        self.layers = nn.ModuleList(self.blocks)  # registers them under this name
        self.output_norm = RMSNorm(width, config.norm_eps)
        self.head = nn.Linear(width, config.vocabulary, bias=False)
        self.register_buffer("token_ids", torch.arange(config.vocabulary))

    def begin(self, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The input of the first layer, `[batch, rows, hidden]`.

        Args:
            tokens: token embeddings, `[batch, rows, hidden]`.
            features: the state before each token, `[batch, rows, hidden]`: the target's after `reduce`, or a
                predicted one.
        """
        stream: torch.Tensor = self.fuse(torch.cat([self.token_norm(tokens), self.feature_norm(features)], dim=-1))
        return stream

    def rotary(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary embedding at `int64[rows]`, `[rows, head_dim / 2]`, computed in float32."""
        half = self.config.head_dim // 2
        steps = torch.arange(half, device=positions.device, dtype=torch.float32) / half
        angles = positions[:, None].float() * self.config.rope_theta**-steps
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary position embedding of `[batch, heads, rows, dim]`."""
    cos, sin = rotation
    low, high = states.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def save_network(network: FeatureDraftNetwork, path: Path, notes: dict[str, str]) -> None:
    """Writes the network in bfloat16 to one safetensors file, atomically.

    Args:
        network: the network.
        path: the file.
        notes: more metadata, such as the target's name.

    Raises:
        FileWriteError: see `atomic_path`.
    """
    tensors = {name: _as_kept(tensor).contiguous() for name, tensor in network.state_dict().items()}
    shape = json.dumps(asdict(network.config))
    with atomic_path(path) as temporary:
        write_sorted(tensors, temporary, {**notes, "format": _FORMAT, "config": shape})


def load_network(path: Path) -> FeatureDraftNetwork:
    """Reads a file of `save_network`, in bfloat16, ready for inference.

    Raises:
        ModelFileError: the file is missing, corrupt or of another format.
    """
    if not path.is_file():
        raise ModelFileError(f"Expected a feature draft's weights at {path}; there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ModelFileError(
                    f"{path} is no feature draft: expected {_FORMAT!r}, got {metadata.get('format')!r}."
                )
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            config = _read_config(metadata["config"], len(slices))
            kinds = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            _check_tensors(config, kinds)
            network = FeatureDraftNetwork(config).to(torch.bfloat16)
            tensors = {name: _as_kept(file.get_tensor(name)) for name in slices}
            network.load_state_dict(tensors, assign=True)  # the mapped file's pages, which `Projection` can free
    except (SafetensorError, RuntimeError, OSError, *WRONG_VALUES) as error:
        raise ModelFileError(f"{path} is corrupt ({error}). Restore it or train one with `specgym distill`.") from error
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ModelFileError(f"{path} is corrupt: {wrong[0]} has numbers that are not finite. Restore the file.")
    return network.eval()


def _read_config(text: str, tensors: int) -> FeatureDraftConfig:
    """Returns the shape in a file's metadata, whose file has so many tensors. Raises `TypeError`, `ValueError`."""
    shape = parse_json(text)
    if not isinstance(shape, dict):
        raise ValueError(f"expected its config to be an object, got {type(shape).__name__}")
    layers = shape.get("feature_layers", [])
    config = FeatureDraftConfig(**shape | {"feature_layers": tuple(layers)})  # JSON knows lists only
    sizes = ("hidden_size", "heads", "kv_heads", "head_dim", "intermediate_size", "vocabulary", "layers")
    check_types(vars(config), **dict.fromkeys(sizes, int), rope_theta=float, norm_eps=float)
    if min(getattr(config, name) for name in sizes) < 1 or not all(type(at) is int and at >= 0 for at in layers):
        raise ValueError("a size in its config is below 1, or a layer of the target below 0")
    largest = max(getattr(config, name) for name in sizes)
    if config.layers > min(tensors, _MOST_LAYERS) or len(layers) > _MOST_LAYERS or largest >= 2**31:
        raise ValueError("its config claims sizes that its tensors do not have")
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise ValueError("expected heads of an even width in groups of one size")
    if config.rope_theta <= 0 or config.norm_eps < 0:
        raise ValueError("expected a positive rope_theta, and a norm_eps of 0 or more")
    return config


def _check_tensors(config: FeatureDraftConfig, found: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Compares types and shapes of a file's tensors with the network's, before memory is taken. Raises `ValueError`."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, states = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = {
        **dict.fromkeys(("attention_norm", "feed_forward_norm"), (width,)),
        "query_key_value": (queries + 2 * states, width),
        "attention_output": (width, queries),
        "gate_up": (2 * inner, width),
        "down": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("token_norm", "feature_norm", "output_norm"), (width,)),
        "fuse": (width, 2 * width),
        "head": (config.vocabulary, width),
        **({"reduce": (width, config.feature_width)} if config.feature_layers else {}),
        **{f"layers.{number}.{name}": shape for number in range(config.layers) for name, shape in layer.items()},
    }
    expected = {f"{name}.weight": shape for name, shape in shapes.items()} | {"token_ids": (config.vocabulary,)}
    for name in sorted(expected.keys() | found.keys()):
        shape, (kind, came) = expected.get(name), found.get(name, ("nothing", ()))
        kinds = ("I64",) if name == "token_ids" else _WEIGHT_TYPES
        if kind not in kinds or came != shape:
            raise ValueError(f"expected {name} of {kinds[0]} and {shape}, got {kind} and {came}")


def _as_kept(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in a file's precision: weights in bfloat16, token ids unchanged."""
    return tensor if tensor.dtype == torch.int64 else tensor.to(torch.bfloat16)
