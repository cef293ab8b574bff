"""Fitting a draft's calibrator anew on a trace: far more text than is held out from training, of prompts as they come.

A trace holds the draft's own probabilities and what the target chose, so the same examples can be read from it that
`specgym.agents.distillation.examination.calibration` collects by asking the draft.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from specgym.agents.distillation.examination.calibration import DEPTHS, RANKS, Calibration, Examples
from specgym.env.common.arrays import BoolArray, FloatArray, IntArray
from specgym.env.common.errors import TraceError
from specgym.env.replay.sources import playable
from specgym.env.replay.traces.file import Trace
from specgym.env.replay.traces.records import TraceHeader, TraceText


def fit_on_trace(trace: Trace) -> Calibration:
    """A calibrator fitted on the train and validation splits, with its errors on the test split.

    Raises:
        TraceError: greedy or sampled texts are missing on either side.
    """
    parts: dict[bool, dict[str, Examples]] = {}
    for unseen in (False, True):
        texts = [text for text in playable(trace.texts) if (text.split == "test") == unseen]
        parts[unseen] = {
            "greedy": trace_examples(_chosen(texts, True, unseen), trace.header),
            "sampled": trace_examples(_chosen(texts, False, unseen), trace.header),
        }
    return Calibration.fitted(parts[False], parts[True])


def trace_examples(texts: Sequence[TraceText], header: TraceHeader) -> Examples:
    """What was recorded at nodes that the target reached, up to depth `DEPTHS`.

    What a feature draft guesses after a branch goes by its own features; after unlikely branches it is not recorded. A
    causal draft guesses after a branch what it guesses after a text that ends so, which is recorded at every position.
    """
    parts = [part for text in texts for part in _examples(text, header.draft_kind == "causal")]
    return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _examples(text: TraceText, causal: bool) -> Iterator[tuple[FloatArray, IntArray, BoolArray]]:
    """Of one text, depth by depth along what the target chose."""
    table, tokens = text.guesses, np.array(text.tokens)
    rows = np.flatnonzero((table.parent < 0) & (table.position < len(tokens) - 1))
    root_at = np.full(len(tokens), -1)
    root_at[table.position[rows]] = rows
    following = table.position[rows] + 1  # index of the token that the target chose below each node
    for depth in range(1, DEPTHS + 1):
        known = following < len(tokens)
        rows, following = rows[known], following[known]
        accepted = table.tokens[rows] == tokens[following][:, None]
        ranks = slice(RANKS)
        yield table.log_probs[rows, ranks], np.full(len(rows), depth), accepted[:, ranks]
        nodes = root_at[following] if causal else table.child[rows, accepted.argmax(1)]
        below = np.where(accepted.any(1), nodes, -1)
        rows, following = below[below >= 0], following[below >= 0] + 1


def _chosen(texts: Sequence[TraceText], greedy: bool, unseen: bool) -> list[TraceText]:
    """Those of a way of decoding. Raises `TraceError` if there are none."""
    chosen = [text for text in texts if (text.settings.temperature == 0) == greedy]
    if not chosen:
        raise TraceError(
            f"Expected {'greedy' if greedy else 'sampled'} texts in the {'test split' if unseen else 'other splits'} "
            "of the trace, to calibrate by; it has none. Record some with scripts.record."
        )
    return chosen
