"""Plays the case of a seed, with a line for a failure, and judges the counts of many cases."""

from __future__ import annotations

import time
import traceback
import warnings

import torch
import transformers

from tests.fuzz.cases import ENTRIES, Case, describe, draw_case, smaller
from tests.fuzz.drawing.arguments import ARGUMENTS
from tests.fuzz.drawing.controllers import Counts
from tests.fuzz.drawing.foreign import CHANGES_AND_FOREIGN, FOREIGN
from tests.fuzz.drawing.models import DRAFTS, FAMILIES
from tests.fuzz.play import DifferenceError, play

_MANY = 20_000  # rounds after which every kind has occurred


def settle() -> None:
    """Prepares a process: one thread, no warnings."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")


def play_seed(seed: int) -> Counts | str:
    """Plays the case of a seed. Returns its counts, or one line that describes the smallest case that fails."""
    case = draw_case(seed)
    try:
        return play(case)
    except Exception as error:
        kind = type(error)
        small = smaller(case, lambda candidate: isinstance(_failure(candidate), kind))
        return f"seed {seed}: {describe(small)}: {_line(_failure(small) or error)}"


def _failure(case: Case) -> Exception | None:
    try:
        play(case)
    except Exception as error:
        return error
    return None


def _line(error: Exception) -> str:
    """Returns an error in one line, with its place unless it is a difference."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:600]
    if isinstance(error, DifferenceError):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({place.filename.split('site-packages/')[-1]}:{place.lineno})"


def complaints(counts: Counts, rounds: int) -> list[str]:
    """Returns what makes the comparison say little: too few or too many tokens accepted, or kinds that did not occur.

    Args:
        counts: of all cases.
        rounds: the rounds that were wanted.
    """
    found = []
    if rounds > 1 and not 0.05 <= counts.acceptance <= 0.95:
        found.append(f"vacuous: {counts.accepted} of {counts.drafted} drafted tokens were accepted")
    expected = {*FAMILIES, *ENTRIES, *FOREIGN, *CHANGES_AND_FOREIGN, *ARGUMENTS, *(f"draft {kind}" for kind in DRAFTS)}
    if rounds >= _MANY and (missing := sorted(expected - set(counts.kinds))):
        found.append(f"vacuous: no case of {', '.join(missing)}")
    return found


def summary_line(counts: Counts, differences: int, seed: int, seconds: float) -> str:
    """Returns the figures in one line."""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} seed {seed}: {counts.rounds} rounds, {counts.texts} texts, "
        f"{differences} differences, {counts.ties} ties, {counts.rounded} in bfloat16, {counts.refused} refused, "
        f"{counts.accepted} of {counts.drafted} drafted tokens accepted ({counts.acceptance:.3f}), {seconds:.0f} s"
    )
