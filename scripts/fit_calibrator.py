"""Fits a draft's calibrator anew on recorded texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from specgym.agents.distillation.examination.calibration import Calibration
from specgym.agents.distillation.examination.export import export_calibration
from specgym.agents.distillation.examination.trace_calibration import fit_on_trace
from specgym.env.common.errors import TraceError
from specgym.env.common.files import check_writable
from specgym.env.decoding.pair import DEFAULT_TARGET, PAIRS
from specgym.env.drafts.network import load_network
from specgym.env.models.hub.fingerprint import fingerprint
from specgym.env.models.hub.loading import load_causal_model
from specgym.env.replay.sources import DEFAULT_TRACE, find_trace
from specgym.env.replay.traces.file import Trace
from specgym.scripts.common import console, main


@dataclass(frozen=True)
class RecalibrateOptions:
    """Fits a draft's calibrator on the train and validation splits of a trace, and measures it on the test split.

    It takes the place of the draft's own. Traces go by the calibrator that they were recorded with: record anew.
    """

    trace: Path = DEFAULT_TRACE
    """the trace, of that draft"""
    draft: Path | None = None
    """folder that scripts.distill exported the draft to; by default that of the shipped one"""


def recalibrate(options: RecalibrateOptions) -> int:
    """Fits, writes and tells the errors; returns the exit status."""
    folder = options.draft or PAIRS[DEFAULT_TARGET]["feature"].parent
    check_writable(folder)
    trace = find_trace([options.trace])
    _check_draft(trace, folder)
    calibration = fit_on_trace(trace)
    texts = {unseen: sum((text.split == "test") == unseen for text in trace.texts) for unseen in (False, True)}
    origin = (
        f"fitted on {texts[False]:,} recorded answers, measured on {texts[True]:,} answers to other prompts "
        "(`python -m scripts.fit_calibrator`)"
    )
    export_calibration(calibration, origin, folder)
    Console().print(_table(calibration))
    told = (
        f"Written to {folder}/. Its traces went by the earlier calibrator: record them again before they are replayed."
    )
    console.print(told, markup=False, soft_wrap=True)
    return 0


def _check_draft(trace: Trace, folder: Path) -> None:
    """Refuses a trace of another draft. Raises `ModelFileError` for a folder that holds none, and `TraceError`."""
    weights = folder / "draft.safetensors"
    draft: nn.Module = (
        load_network(weights) if weights.exists() else load_causal_model(folder, torch.bfloat16, torch.device("cpu"))
    )
    if fingerprint(draft) != trace.header.draft:
        raise TraceError(
            f"{trace.path} was recorded with another draft than that in {folder}: expected {fingerprint(draft)}, got "
            f"{trace.header.draft} ({trace.header.names[1]}). Record one with scripts.record --draft."
        )


def _table(calibration: Calibration) -> Table:
    table = Table("decoding", "depth", "children", "own error", "calibrated", title="Expected calibration error")
    for name, errors in calibration.errors.items():
        for each in errors:
            table.add_row(name, str(each.depth), f"{each.children:,}", f"{each.raw:.3f}", f"{each.calibrated:.3f}")
    return table


if __name__ == "__main__":
    main(RecalibrateOptions, recalibrate)
