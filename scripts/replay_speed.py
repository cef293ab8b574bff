"""Measures how fast this machine replays rounds and records positions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from specgym.controllers.evaluation.results.tables import Table
from specgym.env.common.errors import ParameterError, check_limit
from specgym.env.common.files import check_writable, write_text
from specgym.env.prompts import load_prompts
from specgym.scripts.common import main, say, show
from specgym.scripts.options import Pair, PairOptions, RunOptions
from specgym.scripts.progress import waiting


@dataclass(frozen=True)
class ReplaySpeedOptions(RunOptions):
    """Plays recorded texts as fast as possible, one at a time and many together, and records some. Nothing else should
    run meanwhile.
    """

    traces: tuple[Path, ...] = ()
    """traces of one pair, recorded with the same settings; by default the shipped one"""
    profile: str = "overhead_bound"
    """latency profile: a name, or a file of specgym measure-latency"""
    split: str = "test"
    """train, validation or test: the texts that are played"""
    controller: str = "history"
    """controller of the texts that are played one at a time"""
    episodes: int = 256
    """texts that are played together"""
    steps: int = 400
    """steps of all these texts in each measurement; one text at a time takes ten times as many"""
    repeats: int = 5
    """measurements; the median is reported"""
    pair: Pair = field(default_factory=PairOptions)
    prompts: str = "builtin"
    """prompts whose answers are recorded, greedy and sampled: builtin, human-eval, or a .jsonl file in Spec-Bench's
    form"""
    record_prompts: int = 28
    """number of these, balanced over the kinds of task; 0 to record none"""
    record_tokens: int = 72
    """most tokens of these answers"""
    output: Path = Path("runs/replay_speed")
    """folder for results.json"""


def replay_speed(options: ReplaySpeedOptions) -> int:
    """Measures and writes; returns the exit status."""
    import gymnasium as gym

    from specgym.controllers.evaluation.checks.replay_rate import (
        random_speeds,
        recording_speed,
        single_speeds,
        vector_speeds,
    )
    from specgym.controllers.evaluation.results.provenance import run_facts, shareable
    from specgym.env.replay.sources import DEFAULT_TRACE, choose_texts, find_profile, find_trace
    from specgym.env.replay.vector import ReplayVectorEnv

    for name in ("episodes", "steps", "repeats", "record_tokens"):
        check_limit(name, getattr(options, name))
    if options.record_prompts < 0:
        raise ParameterError(f"record_prompts must be 0 or more; got {options.record_prompts}.")
    profile, trace = find_profile(options.profile), find_trace(options.traces or None)
    texts = choose_texts(trace.texts, options.split)
    check_writable(options.output)
    # Wrong options of recording should show before minutes of playing.
    prompts = load_prompts(options.prompts, options.record_prompts) if options.record_prompts else []
    pair = options.pair.load() if options.record_prompts else None
    with waiting("Playing texts one at a time") as change:
        speeds = single_speeds(trace, texts, profile, options.controller, options.repeats)
        change("Playing texts one at a time, with random actions")
        env = gym.make("specgym/Replay-v0", traces=options.traces or None, profile=profile, split=options.split)
        speeds += random_speeds(env, options.steps * 10, options.repeats)
        change("Playing texts together")
        envs = ReplayVectorEnv(options.episodes, traces=trace, profile=profile, split=options.split)
        speeds += vector_speeds(envs, options.steps, options.repeats)
        if pair is not None:
            change("Recording texts")
            speeds.append(recording_speed(pair, prompts, options.record_tokens))
    record = {
        **run_facts(options.started, "replay"),
        "traces": [shareable(str(path)) for path in options.traces or [DEFAULT_TRACE.name]],
        "texts": len(texts),
        "actions": len(envs.replays.table.choices),
        "speeds": [asdict(speed) | {"per_second": speed.per_second} for speed in speeds],
    }
    write_text(options.output / "results.json", json.dumps(record, indent=2) + "\n")
    rows = [(speed.what, f"{speed.rounds:,}", f"{speed.seconds:.2f}", f"{int(speed.per_second):,}") for speed in speeds]
    show(Table(("replay", "rounds", "seconds", "a second"), rows))
    say(f"Written to {options.output}/")
    return 0


if __name__ == "__main__":
    main(replay_speed)
