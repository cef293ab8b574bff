"""Shapes of drafts, and their weights before training."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specgym.agents.distillation.distillation_config import CausalShape, DistillationConfig, FeatureShape
from specgym.env.common.errors import PairError, ParameterError
from specgym.env.drafts.network import FeatureDraftConfig, FeatureDraftNetwork, load_network
from specgym.env.models.states import decoder_layers

_EMBEDDING_SCALE = 0.05  # standard deviation of a causal draft's first embedding


def new_network(
    target: PreTrainedModel, token_ids: torch.Tensor, shape: FeatureShape, seed: int
) -> FeatureDraftNetwork:
    """Makes a network for `target`, before training.

    Args:
        target: the model whose states the draft reads.
        token_ids: tokens that the head knows, `int64[vocabulary]`. Their rows are copied from the draft to train
            further, if it knows the token, or else from the target's head.
        shape: shape and first weights.
        seed: of random weights.

    Raises:
        ModelFileError: the draft to train further cannot be read.
        PairError: the target's layers or the draft to train further do not fit.
    """
    earlier = _load_earlier(target, shape)
    if earlier is not None:
        return _with_new_head(earlier, target, token_ids)
    torch.manual_seed(seed)
    config = target.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    draft_config = FeatureDraftConfig(
        config.hidden_size,
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", config.num_attention_heads),
        head_dim,
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size,  # GPT-2's config has none
        len(token_ids),
        shape.layers,
        shape.feature_layers,
        **(_target_details(target) if shape.begin == "target" else {}),
    )
    network = FeatureDraftNetwork(draft_config)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    with torch.no_grad():
        for layer in network.blocks:
            for output in (layer.attention_output, layer.down):
                output.weight.mul_(0.5)  # at first the residual stream dominates
        if shape.begin == "target":
            _copy_last_layers(network, target)
        network.head.weight.copy_(target.get_output_embeddings().weight[token_ids].float())
        norm = getattr(target.get_decoder(), "norm", None)
        if norm is not None:
            network.output_norm.weight.copy_(norm.weight.float())
    network.token_ids.copy_(token_ids)
    return network


def new_causal(target: PreTrainedModel, token_ids: torch.Tensor, shape: CausalShape, seed: int) -> PreTrainedModel:
    """Makes a small Llama whose token embedding holds principal components of the target's.

    Args:
        target: the model whose vocabulary and end tokens the draft takes over.
        token_ids: frequent tokens, whose embeddings the components explain best, `int64[frequent]`.
        shape: its shape.
        seed: of all other weights.

    Raises:
        ParameterError: the draft is wider than the target, or than the number of frequent tokens.
    """
    torch.manual_seed(seed)
    _check_width(target, len(token_ids), shape)
    shared = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    config = LlamaConfig(
        vocab_size=target.get_output_embeddings().weight.shape[0],
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        tie_word_embeddings=True,
        **{name: getattr(target.config, name) for name in shared},
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        embedding = target.get_input_embeddings().weight.float().cpu()
        centred = embedding - embedding[token_ids].mean(0)
        _, _, components = torch.linalg.svd(centred[token_ids], full_matrices=False)
        small = centred @ components[: shape.hidden_size].T
        model.get_input_embeddings().weight.copy_(small / small[token_ids].std() * _EMBEDDING_SCALE)
    return model.to(target.device)


def _load_earlier(target: PreTrainedModel, shape: FeatureShape) -> FeatureDraftNetwork | None:
    """Loads the draft to train further in float32; None without one. Raises as `new_network` does."""
    if shape.earlier is None:
        return None
    network = load_network(shape.earlier).float()
    config = network.config
    found = (config.hidden_size, config.layers, config.feature_layers)
    wanted = (target.config.hidden_size, shape.layers, shape.feature_layers)
    if found == wanted:
        return network
    if found != (*wanted[:2], ()):
        raise PairError(
            f"{shape.earlier} cannot be trained further for this target and shape: expected hidden size, layers and "
            f"feature layers {wanted}; got {found}."
        )
    # The draft reads the last hidden state, which stands last, and guesses as before until it is trained.
    width, layers = config.hidden_size, shape.feature_layers
    reduce = torch.cat([torch.zeros(width, len(layers) * width), torch.eye(width)], dim=1)
    return _changed(network, {"reduce.weight": reduce}, feature_layers=layers)


def _with_new_head(
    earlier: FeatureDraftNetwork, target: PreTrainedModel, token_ids: torch.Tensor
) -> FeatureDraftNetwork:
    """Returns an earlier draft with a head over other tokens."""
    head = target.get_output_embeddings().weight.detach().float().clone()
    head[earlier.token_ids] = earlier.head.weight.detach().to(head.device)
    changed = {"head.weight": head[token_ids].cpu(), "token_ids": token_ids.cpu()}
    return _changed(earlier, changed, vocabulary=len(token_ids))


def _changed(earlier: FeatureDraftNetwork, tensors: dict[str, torch.Tensor], **fields: Any) -> FeatureDraftNetwork:
    """Returns an earlier draft with other tensors, and with other fields of its configuration."""
    network = FeatureDraftNetwork(dataclasses.replace(earlier.config, **fields))
    network.load_state_dict(earlier.state_dict() | tensors)
    return network


def _target_details(target: PreTrainedModel) -> dict[str, float]:
    """Returns the target's rotary base and norm epsilon by their names in `FeatureDraftConfig`."""
    rope = getattr(target.config, "rope_parameters", None) or {}
    details = {"rope_theta": rope.get("rope_theta"), "norm_eps": getattr(target.config, "rms_norm_eps", None)}
    return {name: float(value) for name, value in details.items() if value is not None}


def _copy_last_layers(network: FeatureDraftNetwork, target: PreTrainedModel) -> None:
    """Copies the target's last layers to the draft's.

    Raises:
        PairError: the target's layers are not built as Llama's.
    """
    blocks: Any = decoder_layers(target)[-len(network.blocks) :]
    try:
        for layer, block in zip(network.blocks, blocks, strict=True):
            if len(list(block.parameters())) != 9:
                raise ValueError("they have further weights")  # e.g. biases
            attention, feed_forward = block.self_attn, block.mlp
            projections = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
            layer.query_key_value.weight.copy_(torch.cat(projections).float())
            layer.attention_output.weight.copy_(attention.o_proj.weight.float())
            layer.gate_up.weight.copy_(torch.cat([feed_forward.gate_proj.weight, feed_forward.up_proj.weight]).float())
            layer.down.weight.copy_(feed_forward.down_proj.weight.float())
            layer.attention_norm.weight.copy_(block.input_layernorm.weight.float())
            layer.feed_forward_norm.weight.copy_(block.post_attention_layernorm.weight.float())
    except (AttributeError, RuntimeError, ValueError) as error:
        raise PairError(
            f"The draft cannot begin as the target's layers: they are not built as Llama's ({error}). Use begin=random."
        ) from error


def check_fit(target: PreTrainedModel, config: DistillationConfig) -> None:
    """Refuses a draft that does not fit the target; raises as `new_network` and `new_causal` do."""
    if config.kind == "feature":
        _load_earlier(target, config.feature)
    else:
        _check_width(target, min(config.causal.vocabulary, target.get_input_embeddings().num_embeddings), config.causal)


def _check_width(target: PreTrainedModel, frequent: int, shape: CausalShape) -> None:
    """Refuses a causal draft that is wider than the target, or than the number of frequent tokens."""
    widest = min(target.config.hidden_size, frequent)
    if shape.hidden_size > widest:
        raise ParameterError(f"causal.hidden_size must be {widest} or less for this target; got {shape.hidden_size}.")
