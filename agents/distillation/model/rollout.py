"""Several steps of a feature draft at every position at once, as it will be used.

At its first step the draft has the target's true features; from the second on it goes on from its own, while its
attention still sees true rows for the committed text and its own rows for the tokens it guessed. Training on these
later steps too is the training-time test of EAGLE-3 (Li et al. 2025, arXiv 2503.01840).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention

from specgym.env.drafts.network import FeatureDraftNetwork


def rollout(
    network: FeatureDraftNetwork, tokens: torch.Tensor, features: torch.Tensor, steps: int
) -> Iterator[torch.Tensor]:
    """The draft's features after 1, 2, … `steps` steps of its own, for every row.

    Row r holds token r + 1 of the text and, at step 1, the target's feature at r. At step s it holds the feature that
    the draft itself carried there from row r - s + 1, so its first s - 1 rows have no meaning.

    Args:
        network: the draft.
        tokens: token embeddings of rows, `[batch, rows, hidden]`.
        features: the target's states before each row's token, `[batch, rows, feature_width]`.
        steps: how many.

    Yields:
        Output features, `[batch, rows, hidden]`, one a step.
    """
    rows = tokens.shape[1]
    positions = torch.arange(rows, device=tokens.device)
    distance = positions[:, None] - positions[None, :]  # [query row, key row]
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in network.blocks]  # keys and values by step
    features = network.reduce(features)
    for step in range(1, steps + 1):
        # True rows up to where the target's text ends; then one own row for every step since, the last being itself.
        masks = [distance >= step - 1] + [distance == step - own for own in range(2, step + 1)]
        mask = torch.cat(masks, dim=1)
        stream = network.begin(tokens, features)
        rotation = network.rotary(positions, stream.dtype)
        for layer, states in zip(network.blocks, seen, strict=True):
            query, key, value = layer.project(stream, rotation)
            states.append((key, value))
            stream = layer.finish(stream, _attend(query, states, mask))
        output: torch.Tensor = network.output_norm(stream)
        yield output
        features = output.roll(1, dims=1)


def _attend(query: torch.Tensor, states: list[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor) -> torch.Tensor:
    """Attention over the keys and values of all steps so far, side by side."""
    keys, values = (torch.cat(parts, dim=2) for parts in zip(*states, strict=True))
    group = query.shape[1] // keys.shape[1]
    return scaled_dot_product_attention(
        query, keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1), attn_mask=mask
    )
