"""The replayed time of a controller on a trace."""

from __future__ import annotations

from pathlib import Path

from specgym.controllers.evaluation.ladder.replayed import LadderEvaluation
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.traces.file import read_trace
from specgym.env.tree.parameters import TreeParameters


def replayed_seconds(trace: Path, name: str, profile: LatencyProfile, static: TreeParameters | None = None) -> float:
    """Returns the total time of all greedy texts [s]."""
    replay = read_trace(trace)
    texts = [text for text in replay.texts if text.settings.greedy]
    return sum(row.seconds for row in LadderEvaluation(texts, replay.header).controller(name, profile, static))
