"""SpecGym: adaptive tree speculative decoding, and the gym where its controllers are built, trained and judged.

Importing this package registers the Gymnasium environments. Models and learning libraries are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import specgym._start  # noqa: F401  # before imports that take time
from specgym.env.gym.registration import register_environments

if TYPE_CHECKING:
    from specgym.controllers.custom_generate import speculative_generate as generate
    from specgym.controllers.facade import Pair, load

__all__ = ["Pair", "generate", "load"]

_LAZY = {
    "Pair": ("specgym.controllers.facade", "Pair"),
    "generate": ("specgym.controllers.custom_generate", "speculative_generate"),
    "load": ("specgym.controllers.facade", "load"),
}

register_environments()


def __getattr__(name: str) -> object:
    """Imports a name of the facade when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    module, attribute = _LAZY[name]
    value: object = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value
