"""Shapes of drafts to be trained, and how a draft begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specgym.env.common.errors import PairError, ParameterError
from specgym.env.drafts.network import DecoderLayer, FeatureDraftConfig, FeatureDraftNetwork, load_network
from specgym.env.models.states import decoder_layers
from specgym.env.tree.rounds import check_limit

_EMBEDDING_SCALE = 0.05  # spread of a causal draft's embedding at first


@dataclass(frozen=True)
class FeatureShape:
    """A feature draft's shape and how it begins.

    Raises:
        LimitError: a count that is not positive.
        ParameterError: `begin` is nothing to begin with, or feature layers are out of order.
    """

    layers: int = 1
    """decoder layers"""
    feature_layers: tuple[int, ...] = ()
    """layers of the target, counted from 0, whose outputs are fused with its last hidden state"""
    vocabulary: int = 8192
    """tokens that the head knows, the most frequent ones [tokens]"""
    begin: str = "random"
    """weights at first: ``random`` ones, the ``target``'s last layers, or a feature draft's file to train further"""

    def __post_init__(self) -> None:
        check_limit("feature.layers", self.layers)
        check_limit("feature.vocabulary", self.vocabulary)
        if list(self.feature_layers) != sorted(set(self.feature_layers)):
            raise ParameterError(f"feature.feature_layers must rise from one to the next; got {self.feature_layers}.")
        if self.begin not in ("random", "target") and self.earlier is None:
            raise ParameterError(
                f"feature.begin must be random, target or a .safetensors file that is there; got {self.begin!r}."
            )

    @property
    def earlier(self) -> Path | None:
        """The draft that is trained further, if one is."""
        path = Path(self.begin)
        return path if path.suffix == ".safetensors" and path.is_file() else None


@dataclass(frozen=True)
class CausalShape:
    """A standalone draft's shape: a small Llama with the target's vocabulary.

    Raises:
        LimitError: a count that is not positive.
    """

    hidden_size: int = 160
    """width; the embedding of the whole vocabulary, which is also the head, takes most of the weights [numbers]"""
    layers: int = 4
    """decoder layers"""
    heads: int = 5
    """attention heads"""
    intermediate_size: int = 448
    """width of the gated feed-forward part [numbers]"""
    vocabulary: int = 8192
    """tokens that every batch weighs against each other: the most frequent ones [tokens]"""
    strangers: int = 1024
    """further tokens drawn for every batch, so that rare tokens learn to be rare [tokens]"""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "intermediate_size", "vocabulary", "strangers"):
            check_limit(f"causal.{name}", getattr(self, name))
        if self.hidden_size % self.heads or self.hidden_size // self.heads % 2:
            raise ParameterError(
                f"causal.hidden_size must be an even multiple of causal.heads; got {self.hidden_size} and {self.heads}."
            )


def new_network(
    target: PreTrainedModel, token_ids: torch.Tensor, shape: FeatureShape, seed: int
) -> FeatureDraftNetwork:
    """A network for `target` in its first state.

    Args:
        target: whose states it is to read.
        token_ids: tokens for its head, which begins as the target's own, cut to these, `int64[vocabulary]`; where a
            draft that is trained further knows a token, as that draft's.
        shape: its shape.
        seed: of random weights.

    Raises:
        ModelFileError: the draft to train further cannot be read.
        PairError: the target's layers, or the draft to train further, do not fit.
    """
    earlier = load_earlier(target, shape)
    if earlier is not None:
        return _further(earlier, target, token_ids)
    torch.manual_seed(seed)
    config = target.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    network = FeatureDraftNetwork(
        FeatureDraftConfig(
            config.hidden_size,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", config.num_attention_heads),
            head_dim,
            getattr(config, "intermediate_size", None) or 4 * config.hidden_size,  # GPT-2 does not say
            len(token_ids),
            shape.layers,
            shape.feature_layers,
            **(_target_details(target) if shape.begin == "target" else {}),
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    with torch.no_grad():
        for layer in network.blocks:
            for output in (layer.attention_output, layer.down):
                output.weight.mul_(0.5)  # a calm start: the residual stream dominates
        if shape.begin == "target":
            _copy_last_layers(network, target)
        network.head.weight.copy_(target.get_output_embeddings().weight[token_ids].float())
        norm = getattr(target.get_decoder(), "norm", None)
        if norm is not None:
            network.output_norm.weight.copy_(norm.weight.float())
    network.token_ids.copy_(token_ids)
    return network


def new_causal(target: PreTrainedModel, token_ids: torch.Tensor, shape: CausalShape, seed: int) -> PreTrainedModel:
    """A small Llama whose token embedding begins as the principal components of the target's.

    Args:
        target: whose vocabulary and end tokens it takes over.
        token_ids: the frequent tokens, whose embeddings the components are made to explain, `int64[frequent]`.
        shape: its shape.
        seed: of all other weights.

    Raises:
        ParameterError: see `check_width`.
    """
    torch.manual_seed(seed)
    config = target.config
    check_width(target, len(token_ids), shape)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=target.get_output_embeddings().weight.shape[0],
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    )
    with torch.no_grad():
        embedding = target.get_input_embeddings().weight.float().cpu()
        centred = embedding - embedding[token_ids].mean(0)
        _, _, components = torch.linalg.svd(centred[token_ids], full_matrices=False)
        small = centred @ components[: shape.hidden_size].T
        model.get_input_embeddings().weight.copy_(small / small[token_ids].std() * _EMBEDDING_SCALE)
    return model.to(target.device)


def load_earlier(target: PreTrainedModel, shape: FeatureShape) -> FeatureDraftNetwork | None:
    """The draft that is trained further, in float32; None if none is.

    Raises:
        ModelFileError: it cannot be read.
        PairError: it does not fit the target or the shape.
    """
    if shape.earlier is None:
        return None
    network = load_network(shape.earlier).float()
    config = network.config
    found = (config.hidden_size, config.layers, config.feature_layers)
    wanted = (target.config.hidden_size, shape.layers, shape.feature_layers)
    if found[:2] != wanted[:2] or config.feature_layers not in ((), shape.feature_layers):
        raise PairError(
            f"{shape.earlier} cannot be trained further for this target and shape: expected hidden size, layers and "
            f"feature layers {wanted}; got {found}."
        )
    return network if config.feature_layers == shape.feature_layers else _fusing(network, shape.feature_layers)


def _fusing(earlier: FeatureDraftNetwork, layers: tuple[int, ...]) -> FeatureDraftNetwork:
    """A draft that may read further layers of the target, and does not yet: it guesses as `earlier` does."""
    network = FeatureDraftNetwork(dataclasses.replace(earlier.config, feature_layers=layers))
    width = earlier.config.hidden_size
    reduce = torch.zeros(width, network.config.feature_width)
    reduce[:, -width:] = torch.eye(width)  # the last hidden state stands last
    network.load_state_dict(earlier.state_dict() | {"reduce.weight": reduce})
    return network


def _further(earlier: FeatureDraftNetwork, target: PreTrainedModel, token_ids: torch.Tensor) -> FeatureDraftNetwork:
    """An earlier draft with a head over other tokens."""
    network = FeatureDraftNetwork(dataclasses.replace(earlier.config, vocabulary=len(token_ids)))
    head = target.get_output_embeddings().weight.detach().float().clone()
    head[earlier.token_ids] = earlier.head.weight.detach().to(head.device)
    state = earlier.state_dict() | {"head.weight": head[token_ids].cpu(), "token_ids": token_ids.cpu()}
    network.load_state_dict(state)
    return network


def _target_details(target: PreTrainedModel) -> dict[str, float]:
    """What else the target's layers compute with, by its name in `FeatureDraftConfig`."""
    rope = getattr(target.config, "rope_parameters", None) or {}
    details = {"rope_theta": rope.get("rope_theta"), "norm_eps": getattr(target.config, "rms_norm_eps", None)}
    return {name: float(value) for name, value in details.items() if value is not None}


def _copy_last_layers(network: FeatureDraftNetwork, target: PreTrainedModel) -> None:
    """Lets the draft's layers begin as the target's last ones.

    Raises:
        PairError: the target's layers are not built as Llama's.
    """
    blocks = decoder_layers(target)[-len(network.blocks) :]
    try:
        for layer, block in zip(network.blocks, blocks, strict=True):
            _copy_layer(layer, block)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise PairError(
            f"The draft cannot begin as the target's layers: they are not built as Llama's ({error}). Use begin=random."
        ) from error


def _copy_layer(layer: DecoderLayer, block: Any) -> None:
    attention, feed_forward = block.self_attn, block.mlp
    if len(list(block.parameters())) != 9:
        raise ValueError("they have further weights")  # such as biases
    projections = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
    layer.query_key_value.weight.copy_(torch.cat(projections).float())
    layer.attention_output.weight.copy_(attention.o_proj.weight.float())
    layer.gate_up.weight.copy_(torch.cat([feed_forward.gate_proj.weight, feed_forward.up_proj.weight]).float())
    layer.down.weight.copy_(feed_forward.down_proj.weight.float())
    layer.attention_norm.weight.copy_(block.input_layernorm.weight.float())
    layer.feed_forward_norm.weight.copy_(block.post_attention_layernorm.weight.float())


def check_width(target: PreTrainedModel, frequent: int, shape: CausalShape) -> None:
    """Refuses a causal draft that is wider than the embedding of so many of the target's tokens has components.

    Raises:
        ParameterError: it is.
    """
    widest = min(target.config.hidden_size, frequent)
    if shape.hidden_size > widest:
        raise ParameterError(f"causal.hidden_size must be {widest} or less for this target; got {shape.hidden_size}.")
