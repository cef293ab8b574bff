"""Fits the calibrator of a draft to recorded texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specgym.controllers.evaluation.results.tables import Table
from specgym.env.common.files import check_writable
from specgym.scripts.common import main, say, show
from specgym.scripts.progress import waiting


@dataclass(frozen=True)
class FitCalibratorOptions:
    """Fits a draft's calibrator to the train and validation splits of a trace, and measures it on the test split.

    The draft's own calibrator is replaced. Traces that were recorded with it have to be recorded again.
    """

    trace: Path | None = None
    """trace of the draft; by default the shipped one"""
    draft: Path | None = None
    """folder that `specgym distill` wrote the draft to; by default that of the shipped draft"""


def fit_calibrator(options: FitCalibratorOptions) -> int:
    """Fits the calibrator, writes it and prints its errors; returns the exit status."""
    from specgym.agents.distillation.examination.calibration import fit_on_trace
    from specgym.agents.distillation.export import check_draft, export_calibration
    from specgym.env.decoding.pair import DEFAULT_TARGET, PAIRS
    from specgym.env.replay.sources import DEFAULT_TRACE, find_trace

    folder = options.draft or PAIRS[DEFAULT_TARGET]["feature"].parent
    check_writable(folder)
    trace = find_trace([options.trace or DEFAULT_TRACE])
    check_draft(trace, folder)
    with waiting("Fitting the calibrator"):
        calibration = fit_on_trace(trace)
    unseen = sum(text.split == "test" for text in trace.texts)
    origin = (
        f"fitted on {len(trace.texts) - unseen:,} recorded answers, measured on {unseen:,} answers to other prompts "
        "(`python -m scripts.fit_calibrator`)"
    )
    export_calibration(calibration, origin, folder)
    rows = [
        (name, error.depth, f"{error.children:,}", f"{error.raw:.3f}", f"{error.calibrated:.3f}")
        for name, errors in calibration.errors.items()
        for error in errors
    ]
    headers = ("decoding", "depth", "children", "own error", "calibrated")
    show(Table(headers, rows, "Expected calibration error"))
    say(f"Written to {folder}/. Traces of this draft used the earlier calibrator: record them again before replay.")
    return 0


if __name__ == "__main__":
    main(fit_calibrator)
