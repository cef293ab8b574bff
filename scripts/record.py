"""Records traces: texts of a target, and the draft's guesses at every position."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from specgym.controllers.evaluation.results.tables import Table
from specgym.env.common.errors import ParameterError, check_limit
from specgym.env.common.files import check_writable
from specgym.env.prompts import BUILTIN_SOURCES, load_prompts
from specgym.scripts.common import main, say, show
from specgym.scripts.options import Pair, PairOptions
from specgym.scripts.progress import progress


@dataclass(frozen=True)
class RecordOptions:
    """Records texts into a trace. Run it again after an interruption or with more prompts: what is there is kept."""

    output: Path = Path("runs/trace.sgt")
    """file of the trace"""
    pair: Pair = field(default_factory=PairOptions)
    prompts: tuple[str, ...] = BUILTIN_SOURCES
    """builtin, human-eval, or .jsonl files in Spec-Bench's format"""
    limit: int | None = None
    """maximum number of prompts of a source, balanced over the kinds of task; by default all"""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 decodes greedily; more than 0 samples"""
    seeds: tuple[int, ...] = (0,)
    """seeds of the sampling noise; greedy texts need none"""
    max_new_tokens: int = 72
    """maximum length of a text [tokens]"""
    floor: float = 0.03
    """lowest early_stop that can be replayed"""
    max_depth: int = 10
    """deepest tree that can be replayed [tokens]"""
    static: bool = True
    """record the fixed tree and Phase 1's tree too, however improbable their nodes are"""
    slots: int = 32
    """answers that are written at a time"""
    packed: Path | None = None
    """file for a packed copy of the trace, which replays in the same way; its name ends with .sgt.xz"""


def record(options: RecordOptions) -> int:
    """Records what is missing; returns the exit status."""
    from specgym.controllers.rules.phases import PHASE_1, fixed_tree
    from specgym.env.replay.recording.jobs import plan_jobs, record_texts, trace_header
    from specgym.env.replay.recording.recorder import SupersetRule
    from specgym.env.replay.traces.file import TraceWriter
    from specgym.env.replay.traces.packing import PACKED, pack_trace
    from specgym.env.tree.sampling import SamplingSettings

    check_limit("max_new_tokens", options.max_new_tokens)
    check_limit("slots", options.slots)
    if options.packed is not None and options.packed.suffix != PACKED:
        raise ParameterError(f"packed must end with {PACKED}; got {options.packed}.")
    settings = [
        SamplingSettings(temperature, seed=seed)
        for temperature in options.temperatures
        for seed in (options.seeds if temperature else options.seeds[:1])
    ]
    if not (options.prompts and settings):
        raise ParameterError("Expected at least one source of prompts, temperature and seed; got none.")
    static = (fixed_tree().parameters, PHASE_1) if options.static else ()
    rule = SupersetRule(options.floor, options.max_depth, fixed=static)
    for output in filter(None, (options.output, options.packed)):
        check_writable(output.parent)
    prompts = [prompt for source in options.prompts for prompt in load_prompts(source, options.limit)]
    pair = options.pair.load()
    jobs = plan_jobs(pair, prompts, settings, options.max_new_tokens)
    with TraceWriter(options.output, trace_header(pair, rule)) as writer, progress() as stages:
        missing = sum(job.request.max_new_tokens for job in jobs if job.key not in writer.keys)
        done: Counter[str] = Counter()

        def advance(stage: str, tokens: int) -> None:
            done[stage] += tokens
            stages(stage, min(done[stage], missing), missing)  # an interrupted batch is answered again

        record_texts(pair, jobs, rule, writer, slots=options.slots, progress=advance)
    if options.packed is not None:
        pack_trace(options.output, options.packed)
    show(_table(options.output))
    say(f"Written to {options.output}{'' if options.packed is None else f' and {options.packed}'}")
    return 0


def _table(path: Path) -> Table:
    """Returns the numbers of texts and positions in a trace."""
    from specgym.env.replay.traces.file import read_trace

    texts: Counter[tuple[str, str]] = Counter()
    positions: Counter[tuple[str, str]] = Counter()
    for text in read_trace(path).texts:
        texts[text.split, text.category] += 1
        positions[text.split, text.category] += len(text.tokens) - text.prompt
    rows = [(*kind, f"{texts[kind]:,}", f"{positions[kind]:,}") for kind in sorted(texts)]
    rows.append(("all", "", f"{texts.total():,}", f"{positions.total():,}"))
    return Table(("split", "kind of task", "texts", "positions"), rows, path.name)


if __name__ == "__main__":
    main(record)
