"""Measures the time of rounds on this machine and writes a latency profile."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from specgym.controllers.registry import make_controller
from specgym.env.common.errors import ParameterError, check_limit
from specgym.env.common.files import check_writable
from specgym.env.prompts import load_prompts
from specgym.scripts.common import main, say, show
from specgym.scripts.options import Pair, PairOptions, RunOptions
from specgym.scripts.progress import progress

if TYPE_CHECKING:
    from specgym.controllers.evaluation.checks.latency_check import ProfileCheck
    from specgym.env.decoding.live import LiveDecoder
    from specgym.env.latency.fit import Sample
    from specgym.env.latency.measure import Grid

_PROMPTS = 28  # built-in prompts, balanced over the kinds of task, that texts are made of
_NEEDED = {"most_expanded": 8, "most_verified": 32}  # by the controllers of the check


@dataclass(frozen=True)
class MeasureLatencyOptions(RunOptions):
    """Measures the latency profile of a pair on this machine, in under three minutes for the default pair on two cores.

    Let nothing else run meanwhile. The profile holds greedy decoding and sampling at temperature 1.
    """

    pair: Pair = field(default_factory=PairOptions)
    contexts: tuple[int, ...] | None = None
    """lengths of the prompts, ascending; by default those of 128, 512, 1024 and 1792 that the pair can read [tokens]"""
    most_expanded: int = 64
    """maximum number of nodes that are expanded in a draft level [rows]"""
    most_verified: int = 128
    """maximum number of rows of a verification [rows]"""
    repeats: int = 3
    """visits of every context"""
    minutes: float = 2.5
    """time after which no visit begins any more, once every context was visited [min]"""
    check_prompts: int = 3
    """prompts that every controller continues, greedily and sampled, to check the profile; 0 for no check"""
    check_tokens: int = 32
    """length of the texts of the check [tokens]"""
    check_controllers: str = "autoregressive,fixed_tree,confidence,dynamic_depth,history"
    """comma-separated controllers of the check, with options as in fixed_tree:branch=3:depth=2"""
    seed: int = 0
    """seed of the order and of the sampling"""
    output: Path = Path("runs/latency")
    """folder for profile.json and profile.png"""


def measure_latency(options: MeasureLatencyOptions) -> int:
    """Measures, fits, checks and writes a profile; returns the exit status."""
    from specgym.controllers.evaluation.checks.latency_check import plot_profile, profile_tables
    from specgym.controllers.evaluation.results.provenance import device_name, pair_facts, run_facts
    from specgym.env.decoding.pair import LOOKUP, encode_chat
    from specgym.env.latency.fit import fit_profile
    from specgym.env.latency.measure import TEMPERATURE, longest_text

    grid, controllers = _grid(options), list(dict.fromkeys(options.check_controllers.split(",")))
    for name in controllers:
        make_controller(name)
    check_writable(options.output)
    pair = options.pair.load()
    decoder = pair.decoder()
    if options.contexts is None:
        grid = grid.fitting(longest_text(decoder))
    encoded = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in load_prompts("builtin", _PROMPTS)]
    samples, check = _measure(options, decoder, encoded, grid, controllers)
    origin = {
        **pair_facts(pair),
        "dtype": options.pair.dtype,
        **run_facts(options.started, device_name(pair.target.device)),
        "repeats": options.repeats,
        "temperature": TEMPERATURE,
        "seed": options.seed,
    }
    profile = fit_profile(samples, grid.knots(model=pair.draft.kind != LOOKUP), origin)
    profile.save(options.output / "profile.json")  # the measurements are kept whatever the check finds
    profile = dataclasses.replace(profile, checks=check.checks(profile))
    profile.save(options.output / "profile.json")
    plot_profile(profile, options.output / "profile.png")
    show(*profile_tables(profile))
    say(f"Written to {options.output}/")
    return 0


def _grid(options: MeasureLatencyOptions) -> Grid:
    """Rows and contexts to measure. Raises `LimitError` or `ParameterError` for an option out of range."""
    from specgym.env.latency.measure import Grid

    check_limit("repeats", options.repeats)
    check_limit("check_tokens", options.check_tokens)
    if not (math.isfinite(options.minutes) and options.minutes > 0):
        raise ParameterError(f"minutes must be over 0; got {options.minutes}.")
    if options.check_prompts < 0:
        raise ParameterError(f"check_prompts must be 0 or more; got {options.check_prompts}.")
    for name, least in _NEEDED.items() if options.check_prompts else ():
        if getattr(options, name) < least:
            raise ParameterError(
                f"{name} must be {least} or more for the controllers that check the profile; got "
                f"{getattr(options, name)}. Raise it, or use --check-prompts 0."
            )
    contexts = Grid.contexts if options.contexts is None else options.contexts
    return Grid(contexts, most_expanded=options.most_expanded, most_verified=options.most_verified)


def _measure(
    options: MeasureLatencyOptions,
    decoder: LiveDecoder,
    prompts: Sequence[tuple[int, ...]],
    grid: Grid,
    controllers: Sequence[str],
) -> tuple[list[Sample], ProfileCheck]:
    """Measures after texts of all lengths, cut from the prompts in a row. The texts of the check run in between."""
    from specgym.controllers.evaluation.checks.latency_check import FRAME, ProfileCheck
    from specgym.env.latency.measure import TEMPERATURE, measure

    length, seed = options.check_tokens, options.seed
    fitting = [prompt for prompt in prompts if len(prompt) <= decoder.target.context_limit - length - FRAME]
    few = fitting[: options.check_prompts]
    check = ProfileCheck(decoder, controllers, few, max_new_tokens=length, temperature=TEMPERATURE, seed=seed)
    text = list(itertools.islice(itertools.cycle(itertools.chain(*prompts)), 2 * grid.contexts[-1]))
    with progress() as stages:
        samples = measure(
            decoder,
            text,
            grid,
            repeats=options.repeats,
            seconds=60 * options.minutes,
            seed=seed,
            progress=stages.counter("measuring", 2 * len(grid.contexts) * options.repeats),
            between=lambda left: check.play(math.ceil(check.left / (left + 1))),
        )
    return samples, check


if __name__ == "__main__":
    main(measure_latency)
