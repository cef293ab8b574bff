"""Measures the parts of a round's time and compares them with the machine's limits."""

from __future__ import annotations

import dataclasses
import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from specgym.controllers.registry import make_controller
from specgym.env.common.errors import check_limit
from specgym.env.common.files import check_writable
from specgym.env.prompts import load_prompts
from specgym.scripts.common import main, say, show
from specgym.scripts.options import Pair, PairOptions, RunOptions
from specgym.scripts.progress import progress, waiting
from specgym.scripts.signals import INTERRUPTED

if TYPE_CHECKING:
    from specgym.controllers.evaluation.profiling.breakdown import Measurement

_CONTROLLER = "history"  # acts before every round, and steers the requests of the growth check
_PROMPTS = 28  # built-in prompts, balanced over the kinds of task, that texts are made of
_SHORT = 256  # maximum length of a prompt of the growth check [tokens]
_RATES = "Measuring the rates of the machine"


@dataclass(frozen=True)
class ProfileOptions(RunOptions):
    """Measures the parts of greedy rounds for several tree sizes and contexts, and checks the memory.

    Let nothing else run meanwhile. Rounds are timed first; other rounds are profiled afterwards.
    """

    pair: Pair = field(default_factory=PairOptions)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """rows of the verifications, ascending; 1 is a plain step [rows]"""
    contexts: tuple[int, ...] | None = None
    """lengths of the prompts, ascending; by default those of 128, 512 and 1024 that the pair can read [tokens]"""
    repeats: int = 3
    """visits of every context, each with three timed rounds of every size"""
    requests: int = 50
    """short requests after which the memory is compared; 1000 for a thorough check"""
    output: Path = Path("runs/profile")
    """folder for results.json, results.md and breakdown.png"""


def profile(options: ProfileOptions) -> int:
    """Measures and writes the breakdown; returns the exit status."""
    # The imports belong to the start of the process and not to the models' memory: all of them come first.
    import torch

    from specgym.controllers.evaluation.profiling import breakdown_report as report
    from specgym.controllers.evaluation.profiling import process
    from specgym.controllers.evaluation.profiling.breakdown import Measurement
    from specgym.controllers.evaluation.profiling.profiler import ProfileGrid, RoundProfiler
    from specgym.controllers.evaluation.results.provenance import device_name, pair_facts, typed_facts
    from specgym.env.decoding.pair import encode_chat
    from specgym.env.latency.measure import longest_text

    counts = {name: getattr(options, name) for name in ("repeats", "requests")}
    for name, count in counts.items():
        check_limit(name, count)
    grid = ProfileGrid(options.rows, ProfileGrid.contexts if options.contexts is None else options.contexts)
    prompts, controller = load_prompts("builtin", _PROMPTS), make_controller(_CONTROLLER)
    check_writable(options.output)
    age, before = process.process_age(), (process.memory_held(torch.device("cpu")), process.library_pages())
    pair, loading_seconds = process.without_compiling(options.pair.load)
    decoder = pair.decoder()
    if options.contexts is None:
        grid = grid.fitting(longest_text(decoder))
    encoded = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in prompts]
    text = list(itertools.islice(itertools.cycle(itertools.chain(*encoded)), 2 * grid.contexts[-1]))
    profiler = RoundProfiler(decoder, text, grid, controller)
    sizes = {"rows": list(grid.rows), "contexts": list(grid.contexts)}
    settings = dataclasses.asdict(options.pair) | pair_facts(pair) | {"temperature": 0.0, "controller": _CONTROLLER}
    facts = typed_facts(options.started, device_name(decoder.target.device)) | {
        "settings": settings | sizes | counts,
        "startup": process.measure_startup(decoder, controller, encoded[0], age, loading_seconds),
    }
    with waiting(_RATES):
        measurement = Measurement(profiler, facts, before)
    complete = _measure(options, measurement)
    if complete:  # once more: noise at the start would make the floor too high
        with waiting(_RATES):
            measurement.rates = measurement.rates.best(measurement.measure_rates())
    breakdown = measurement.breakdown(complete)
    report.write_breakdown(breakdown, options.output)
    show(*report.breakdown_tables(breakdown))
    show(*report.breakdown_notes(breakdown), markup=False)
    say(f"Written to {options.output}/")
    return 0 if complete else INTERRUPTED


def _measure(options: ProfileOptions, measurement: Measurement) -> bool:
    """Times, profiles and checks the memory, and writes the record now and then. Returns whether it came to its end."""
    from specgym.controllers.evaluation.profiling.breakdown_report import write_record
    from specgym.controllers.evaluation.profiling.process import MAX_NEW_TOKENS, WARM_UP, check_growth
    from specgym.env.latency.measure import longest_text

    profiler, contexts, order = measurement.profiler, measurement.profiler.grid.contexts, random.Random(0)
    with progress() as stages:
        try:
            step = stages.counter("timing", len(contexts) * options.repeats)
            for repeat in range(options.repeats):
                # In random order, so that a slow spell affects all contexts alike.
                for context in order.sample(contexts, len(contexts)):
                    measurement.timed += profiler.timed(context)
                    step(f"{context} tokens")
                if repeat == 0:
                    write_record(measurement.breakdown(complete=False), options.output)
            measurement.update_peak()  # before the profiler's own records
            step = stages.counter("profiling", len(contexts))
            for context in contexts:
                measurement.profiled += profiler.recorded(context)
                step(f"{context} tokens")
            write_record(measurement.breakdown(complete=False), options.output)
            step = stages.counter("short requests", WARM_UP + options.requests)
            # Short prompts of all lengths: memory that is kept for a length must show as growth.
            longest = max(1, min(_SHORT, longest_text(profiler.decoder) - MAX_NEW_TOKENS))
            lengths = random.Random(0).sample(range(1, longest + 1), longest)
            short = [tuple(profiler.text[:length]) for length in lengths]
            measurement.growth = check_growth(
                profiler.decoder, profiler.controller, short, options.requests, progress=lambda: step("")
            )
        except KeyboardInterrupt:
            if not measurement.profiled:
                measurement.update_peak()
            say("Interrupted: what was measured so far is kept and marked incomplete.")
            return False
    return True


if __name__ == "__main__":
    main(profile)
