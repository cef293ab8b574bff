"""Hidden states that a target computes between its layers, recorded for drafts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from specgym.env.common.errors import PairError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_feature_layers(layers: Sequence[int], count: int) -> None:
    """Refuses layers that a target of `count` layers does not have. Raises `PairError`."""
    if layers and not 0 <= min(layers) <= max(layers) < count:
        raise PairError(f"The draft reads hidden states of layers {list(layers)}; the target has {count}.")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Returns the model's decoder layers, whatever their name; an empty list if they are not in a `ModuleList`."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = (module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList))
    return next((blocks for blocks in lists if len(blocks) == count), nn.ModuleList())


def _decoder(model: PreTrainedModel) -> nn.Module:
    """Returns the part whose output is the last hidden state. Llama 4 calls the whole model its decoder."""
    decoder: nn.Module = model.get_decoder()
    return decoder if decoder is not model else getattr(model, "model", decoder)


class HiddenStates:
    """Records hidden states of every forward that the calling thread runs, until it is closed.

    Args:
        model: a causal language model.
        layers: layers whose outputs are recorded, counted from 0. The state after the final norm is always recorded, as
            the last one.

    Attributes:
        last: states of the last forward, side by side, `[batch, rows, (len(layers) + 1) * hidden]`; None before one.

    Raises:
        PairError: the model has no such layer.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int] = ()) -> None:
        self.last: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}
        blocks = decoder_layers(model)
        check_feature_layers(layers, len(blocks))
        self._hooks: list[tuple[nn.Module, Callable[..., None]]] = [
            (blocks[layer], partial(self._keep, layer)) for layer in layers
        ]
        self._hooks.append((_decoder(model), self._finish))
        self.open()

    def open(self) -> None:
        """Records again, after a pause."""
        self._thread = threading.get_ident()
        self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]

    def __enter__(self) -> None:
        self.open()

    def __exit__(self, *error: object) -> None:
        self.pause()

    def pause(self) -> None:
        """Takes all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()

    def close(self) -> None:
        """Stops recording, and forgets what was recorded."""
        self.pause()
        self.last = None

    def _keep(self, layer: int, module: nn.Module, inputs: object, output: Any) -> None:
        if threading.get_ident() == self._thread:
            self._outputs[layer] = output[0] if isinstance(output, tuple) else output

    def _finish(self, module: nn.Module, inputs: object, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        final: torch.Tensor = output.last_hidden_state
        # Layers ran in their order, so `_outputs` is in that order.
        self.last = torch.cat([*self._outputs.values(), final], dim=-1) if self._outputs else final
        self._outputs.clear()
