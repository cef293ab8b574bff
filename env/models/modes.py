"""The settings that a model object needs while a tree is read: changed for the length of a forward, never longer.

Between two forwards, the object's user finds it as it was: its attention, and the training mode of every module.
Forwards of several threads may overlap. The first one changes the settings, and the last one undoes that.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from specgym.env.common.errors import PairError
from specgym.env.models.attention import ATTENTION, use_tree_attention
from specgym.env.models.fast.plain import attention_of, is_original

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_lock = threading.RLock()
_known: weakref.WeakKeyDictionary[PreTrainedModel, ReadingMode] = weakref.WeakKeyDictionary()


class ReadingMode:
    """A block in which a model attends by `ATTENTION`, and no module is in training mode.

    It holds no reference to the model itself.

    Raises:
        PairError: the model attends by a function that is not a part of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._users = 0
        self._training: list[dict[str, Any]] = []
        self.look(model)

    def look(self, model: PreTrainedModel) -> None:
        """Lists the model's parts anew. Raises as the class."""
        if self._users:  # somebody reads right now, and nothing was replaced that may be
            return
        _check_attention(model)
        self._dicts = [vars(module) for module in model.modules()]
        configs = {id(held["config"]): held["config"] for held in self._dicts if hasattr(held.get("config"), "to_dict")}
        before = [(config, config._attn_implementation) for config in _with_parts(list(configs.values()))]
        use_tree_attention(model)  # transformers decides which parts can be switched
        self._attention = [(config, name) for config, name in before if config._attn_implementation != name]
        self._attend(back=True)

    def __enter__(self) -> None:
        with _lock:
            self._users += 1
            if self._users == 1:
                self._attention = [(config, config._attn_implementation) for config, _ in self._attention]
                self._training = [held for held in self._dicts if held["training"]]
                self._attend()
                for held in self._training:
                    held["training"] = False

    def __exit__(self, *error: object) -> None:
        with _lock:
            self._users -= 1
            if not self._users:
                self._attend(back=True)
                for held in self._training:
                    held["training"] = True

    def _attend(self, *, back: bool = False) -> None:
        for config, name in self._attention:
            config._attn_implementation_internal = name if back else ATTENTION


def device_of(model: PreTrainedModel) -> torch.device:
    """Returns where a model computes. Weights that are elsewhere in between (offloaded) have no device of their own."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Keeps all modules out of training mode for the length of a block."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reading_mode(model: PreTrainedModel) -> ReadingMode:
    """Returns the one mode of a model that all its readers share. Raises as `ReadingMode`."""
    with _lock:
        if model in _known:
            _known[model].look(model)
        else:
            _known[model] = ReadingMode(model)
        return _known[model]


def _with_parts(configs: list[Any]) -> list[Any]:
    """Returns configurations with those of their parts, such as the text part of a model of images, each once."""
    known = {id(config): config for config in configs}
    for config in configs:  # grows in the loop
        parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
        new = [part for part in parts if part is not None and id(part) not in known]
        known |= {id(part): part for part in new}
        configs += new
    return configs


def _check_attention(model: PreTrainedModel) -> None:
    name = model.config._attn_implementation
    own = [attention_of(model)]
    if name == "eager":
        homes = {type(module).__module__ for module in model.modules()}
        own = [vars(sys.modules[home]).get("eager_attention_forward") for home in homes if home in sys.modules]
    if not all(map(is_original, own)):
        raise PairError(
            f"The model attends by a function of its own ({name!r}), which may not follow the mask of a tree. "
            "Call model.set_attn_implementation('sdpa'), or decode without speculation."
        )
