"""A small training setup, and an interrupt after some steps."""

from __future__ import annotations

import signal
from pathlib import Path

from specgym.agents.learning.config import LearningPlan
from specgym.agents.learning.setup import TrainingSetup
from specgym.agents.learning.training_history import TrainingHistory


def make_setup(folder: Path, plan: LearningPlan, held_out: tuple[str, ...] = ()) -> TrainingSetup:
    """Makes a setup on the trace and the two profiles that `save_tiny_world` saved to a folder."""
    profiles = [str(folder / "dear.json"), str(folder / "cheap.json")]
    return TrainingSetup([folder / "tiny.sgt"], profiles, plan, held_out=held_out)


class Interrupt:
    """Interrupts a run, as Ctrl-C does, after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, steps: int, history: TrainingHistory) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
