"""Tries out whether a model reads the branches of a tree apart. Models that the tests know are not tried."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch

from specgym.env.common.errors import PairError
from specgym.env.models.hub.compatibility import WHAT_WORKS, is_tested
from specgym.env.models.modes import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from specgym.env.models.target import CachedModel

_BRANCH = 3
_tried: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


def check_branches(model: CachedModel) -> None:
    """Refuses a model that reads a small tree otherwise than each of its branches alone. Once for each model object.

    Args:
        model: the model, whose cache is emptied.

    Raises:
        PairError: logits differ, or the model cannot read a tree.
    """
    if is_tested(model.model) or model.model in _tried:
        return
    try:
        errors = branch_errors(model)
    except Exception as error:  # whatever a model that nobody knows may raise
        raise _refusal(model, f"it fails on a tree ({error})") from error
    exact = model.dtype in (torch.float32, torch.float64)
    worst = float(errors.max() if exact else errors.median())  # a rounded router may choose other experts in some rows
    if not worst < (1e-3 if exact else 0.2):
        raise _refusal(model, "it reads branches of a tree otherwise than alone")
    _tried.add(model.model)


@torch.inference_mode()
def branch_errors(model: CachedModel, prefix: int = 6) -> torch.Tensor:
    """Compares logits on two branches of a tree with the model's own on each branch alone.

    Args:
        model: the model, whose cache is emptied.
        prefix: tokens before the branches.

    Returns:
        Differences relative to the logits' spread, one a row.
    """
    rows, device = 2 * _BRANCH, model.device
    text = np.arange(prefix + rows) % min(model.vocabulary, 23)
    branches = np.arange(rows) % 2  # rows of both branches take turns
    order = np.argsort(branches, kind="stable")  # rows as they are read alone
    alone = []
    places = torch.arange(prefix + _BRANCH, device=device)[None]  # some models number them otherwise by themselves
    with evaluating(model.model):
        for branch in range(2):
            tokens = np.concatenate([text[:prefix], text[prefix:][branches == branch]])
            ids = torch.from_numpy(tokens[None]).to(device)
            alone.append(model.model(ids, position_ids=places, use_cache=False).logits[0, prefix:])
    model.cache.reset()
    model.extend_tree(text[:prefix], np.arange(prefix), np.tri(prefix, dtype=np.bool_))
    visible = np.tri(rows, dtype=np.bool_) & (branches[:, None] == branches)
    tree = model.extend_tree(text[prefix:], prefix + np.arange(rows) // 2, visible)[torch.from_numpy(order)]
    model.cache.reset()
    expected = torch.cat(alone).float()
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    errors: torch.Tensor = (tree.float() - expected).norm(dim=-1) / spread
    return errors


def _refusal(model: CachedModel, reason: str) -> PairError:
    """The error for a model."""
    kind = model.model.config.model_type
    return PairError(f"{type(model.model).__name__} (model type {kind!r}) cannot work here: {reason}. {WHAT_WORKS}")
