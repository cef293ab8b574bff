"""Measures how many rounds a second replay plays on this machine."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from controllers.evaluation.provenance import run_facts, shareable
from controllers.evaluation.replay_speed import Speed, single_speeds, vector_speeds
from env.files import check_writable, write_text
from env.recordings import DEFAULT_PROFILE, DEFAULT_TRACE, choose_texts, find_profile, find_trace
from env.rounds import check_limit
from env.vector import ReplayVectorEnv
from scripts.common import console, main


@dataclass(frozen=True)
class ReplaySpeedOptions:
    """Plays recorded texts as fast as it can, one at a time and many together. Let nothing else run meanwhile."""

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profile: str = DEFAULT_PROFILE
    """latency profile: a name, or a file of scripts.calibrate"""
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
    output: Path = Path("results/replay_speed")
    """folder that results.json is written to"""


def replay_speed(options: ReplaySpeedOptions) -> int:
    """Measures and writes; returns the exit status."""
    for name in ("episodes", "steps", "repeats"):
        check_limit(name, getattr(options, name))
    started = datetime.datetime.now(datetime.timezone.utc)
    profile, trace = find_profile(options.profile), find_trace(options.traces or None)
    texts = choose_texts(trace.texts, options.split)
    check_writable(options.output)
    with console.status("Playing texts one at a time"):
        speeds = single_speeds(trace, texts, profile, options.controller, options.repeats)
    with console.status("Playing texts together"):
        envs = ReplayVectorEnv(options.episodes, traces=trace, profile=profile, split=options.split)
        speeds += vector_speeds(envs, options.steps, options.repeats)
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
    table = Table("replay", "rounds", "seconds", "rounds a second")
    for speed in speeds:
        table.add_row(speed.what, f"{speed.rounds:,}", f"{speed.seconds:.2f}", f"{int(speed.per_second):,}")
    return table


if __name__ == "__main__":
    main(ReplaySpeedOptions, replay_speed)
