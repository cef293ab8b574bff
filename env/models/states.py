"""Hidden states that a target shows on the way through its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from specgym.env.common.errors import PairError


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder layers, whatever its family calls them; empty if it does not hold them as a list."""
    wanted = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = (module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList))
    return next((blocks for blocks in lists if len(blocks) == wanted), nn.ModuleList())


class HiddenStates:
    """Records hidden states of every forward until it is closed.

    Args:
        model: a causal language model.
        layers: layers whose outputs are wanted, counted from 0. The last hidden state, after the final norm, is always
            recorded and stands behind them.

    Attributes:
        last: states of the last forward, side by side, `[batch, rows, (len(layers) + 1) * hidden]`; None before it.

    Raises:
        PairError: the model has no such layer.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int] = ()) -> None:
        self.last: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}
        blocks = decoder_layers(model)
        if layers and not 0 <= min(layers) <= max(layers) < len(blocks):
            raise PairError(f"The draft reads hidden states of layers {list(layers)}; the target has {len(blocks)}.")
        self._handles = [blocks[layer].register_forward_hook(self._keeper(layer)) for layer in layers]
        self._handles.append(model.get_decoder().register_forward_hook(self._finish))

    def close(self) -> None:
        """Records nothing any more."""
        for handle in self._handles:
            handle.remove()
        self.last = None

    def _keeper(self, layer: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            self._outputs[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def _finish(self, module: nn.Module, inputs: object, output: object) -> None:
        final: torch.Tensor = output.last_hidden_state  # type: ignore[attr-defined]
        # Layers ran in their order, so their outputs stand in it.
        self.last = torch.cat([*self._outputs.values(), final], dim=-1) if self._outputs else final
        self._outputs.clear()
