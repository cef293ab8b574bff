"""Drafts behind one interface: causal language model, feature draft, prompt lookup, and lookup merged with a model.

Their modules are imported on first use: some parts of this package need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specgym.env.drafts.base import Draft
    from specgym.env.drafts.causal import CausalDraft
    from specgym.env.drafts.feature import FeatureDraft
    from specgym.env.drafts.lookup import LookupDraft
    from specgym.env.drafts.merged import MergedDraft

__all__ = ["CausalDraft", "Draft", "FeatureDraft", "LookupDraft", "MergedDraft"]


def __getattr__(name: str) -> object:
    """Imports a kind of draft from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "base" if name == "Draft" else name.removesuffix("Draft").lower()
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
