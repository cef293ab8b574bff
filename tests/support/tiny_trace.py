"""Traces of tiny pairs, as files."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

from specgym.env.latency.families import CommonCosts, compute_bound, overhead_bound
from specgym.env.replay.traces.file import TraceWriter
from specgym.env.replay.traces.records import SPLITS
from tests.env.replay.test_decoder import RULE, record
from tests.env.replay.test_recording import CALIBRATOR
from tests.support.tiny_models import causal_draft, feature_draft, tiny_target


def save_tiny_world(folder: Path) -> Path:
    """Saves a trace, ``tiny.sgt``, and two machines, and returns the folder: one on which every row costs a plain step,
    ``dear.json``, and one on which nothing but the target costs, ``cheap.json``.
    """
    save_tiny_trace(folder / "tiny.sgt")
    compute_bound(fixed=0.0).save(folder / "dear.json")
    free = CommonCosts(draft_ratio=0.0, round_overhead=0.0, sampled_row=0.0)
    overhead_bound(free, row=0.0).save(folder / "cheap.json")
    return folder


def save_tiny_trace(path: Path, kind: str = "causal", prompts: int = 6) -> Path:
    """Writes a trace of texts after so many prompts, greedy and sampled, and of all splits; some end by themselves."""
    target = tiny_target(0, end_tokens=(4, 9))
    draft = causal_draft(target) if kind == "causal" else feature_draft(target, 1)
    draft.calibrator = CALIBRATOR
    replay = record(target, draft, prompts).replay
    header = dataclasses.replace(replay.header, rule=json.loads(json.dumps(dataclasses.asdict(RULE))))
    splits = itertools.cycle(("train", "train", "train", "train", *SPLITS[1:]))
    with TraceWriter(path, header) as writer:
        for text, split in zip(replay.texts.values(), splits, strict=False):
            writer.write(dataclasses.replace(text, split=split))
    return path
