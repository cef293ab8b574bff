"""The network of a feature draft: one decoder layer on the target's own last hidden states.

After EAGLE (Li et al. 2024, arXiv 2401.15077): the draft does not model text from scratch but carries the target's
last hidden state one token further. Row i holds token i and the target's state at i - 1; the output stands for the
state at i, from which a head over a trimmed vocabulary guesses token i + 1, and which takes the place of the target's
state when the draft goes on alone.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from env.errors import ModelFileError
from env.files import atomic_path
from env.models.attention import attend
from env.models.cache import KeyValueBuffer

__all__ = ["FeatureDraftConfig", "FeatureDraftNetwork", "load_network", "save_network"]

_FORMAT = "specgym feature draft 1"


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
    """tokens that the head knows [tokens]"""
    rope_theta: float = 10_000.0
    """base of the rotary position embedding (Su et al. 2021, arXiv 2104.09864)"""
    norm_eps: float = 1e-5
    """added to the mean square in RMS norms"""


class FeatureDraftNetwork(nn.Module):
    """Token and feature in, next feature and logits out.

    Args:
        config: its shape.
    """

    token_ids: torch.Tensor
    """the target's token id of each entry of the trimmed vocabulary, `int64[vocabulary]`"""

    def __init__(self, config: FeatureDraftConfig) -> None:
        super().__init__()
        self.config = config
        width, queries, states = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.token_norm = nn.RMSNorm(width, config.norm_eps)
        self.feature_norm = nn.RMSNorm(width, config.norm_eps)
        self.fuse = nn.Linear(2 * width, width, bias=False)
        self.attention_norm = nn.RMSNorm(width, config.norm_eps)
        self.query_key_value = nn.Linear(width, queries + 2 * states, bias=False)
        self.attention_output = nn.Linear(queries, width, bias=False)
        self.feed_forward_norm = nn.RMSNorm(width, config.norm_eps)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)
        self.output_norm = nn.RMSNorm(width, config.norm_eps)
        self.head = nn.Linear(width, config.vocabulary, bias=False)
        self.register_buffer("token_ids", torch.arange(config.vocabulary))

    def project(
        self, tokens: torch.Tensor, features: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What attention needs.

        Args:
            tokens: token embeddings, `[batch, rows, hidden]`.
            features: the target's (or the draft's own) state before each token, `[batch, rows, hidden]`.
            positions: of the rows, `int64[rows]`.

        Returns:
            The residual stream `[batch, rows, hidden]`, and query, key, value `[batch, heads, rows, head_dim]`.
        """
        config = self.config
        stream = self.fuse(torch.cat([self.token_norm(tokens), self.feature_norm(features)], dim=-1))
        joint = self.query_key_value(self.attention_norm(stream))
        joint = joint.unflatten(-1, (config.heads + 2 * config.kv_heads, config.head_dim)).transpose(1, 2)
        turned = self._rotate(joint[:, : -config.kv_heads], positions)
        query, key = turned[:, : config.heads], turned[:, config.heads :]
        return stream, query, key, joint[:, -config.kv_heads :]

    def finish(self, stream: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The next features `[batch, rows, hidden]` from the stream and attention's `[batch, heads, rows, dim]`."""
        stream = stream + self.attention_output(attended.transpose(1, 2).flatten(-2))
        gate, up = self.gate_up(self.feed_forward_norm(stream)).chunk(2, dim=-1)
        stream = stream + self.down(nn.functional.silu(gate) * up)
        output: torch.Tensor = self.output_norm(stream)
        return output

    def forward(
        self,
        tokens: torch.Tensor,
        features: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: KeyValueBuffer,
    ) -> torch.Tensor:
        """Appends rows to `cache` and returns the next features, `[batch, rows, hidden]`; see `project`, `attend`."""
        stream, query, key, value = self.project(tokens, features, positions)
        keys, values = cache.update(key, value)
        return self.finish(stream, attend(query, keys, values, mask))

    def _rotate(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotary position embedding of `[batch, heads, rows, dim]`, computed in float32."""
        half = self.config.head_dim // 2
        steps = torch.arange(half, device=states.device, dtype=torch.float32) / half
        angles = positions[:, None].float() * self.config.rope_theta**-steps  # [rows, half]
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        low, high = states.chunk(2, dim=-1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def save_network(network: FeatureDraftNetwork, path: Path, notes: dict[str, str]) -> None:
    """Writes the network in bfloat16 to one safetensors file, atomically.

    Args:
        network: what to save.
        path: the file.
        notes: more metadata, such as which target it was trained for.

    Raises:
        FileWriteError: see `atomic_path`.
    """
    tensors = {
        name: (tensor if tensor.dtype == torch.int64 else tensor.to(torch.bfloat16)).contiguous()
        for name, tensor in network.state_dict().items()
    }
    shape = json.dumps(dataclasses.asdict(network.config))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={**notes, "format": _FORMAT, "config": shape})


def load_network(path: Path) -> FeatureDraftNetwork:
    """Reads what `save_network` wrote, in bfloat16, ready for inference.

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
            network = FeatureDraftNetwork(FeatureDraftConfig(**json.loads(metadata["config"]))).to(torch.bfloat16)
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError, OSError) as error:
        raise ModelFileError(f"{path} is corrupt ({error}). Restore it, or train one with scripts.distill.") from error
    return network.eval()
