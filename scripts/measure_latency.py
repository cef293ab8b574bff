"""Measures what rounds cost on this machine with one model pair, and writes a latency profile."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from specgym.controllers.evaluation.checks.latency_check import FRAME, ProfileCheck
from specgym.controllers.evaluation.checks.latency_plot import plot_profile
from specgym.controllers.evaluation.results.provenance import run_facts, shareable
from specgym.controllers.registry import make_controller
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import check_writable
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.drafts import LookupDraft
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.curve import Curve
from specgym.env.latency.fit import Sample, fit_profile
from specgym.env.latency.latency_profile import Check, LatencyProfile
from specgym.env.latency.measure import TEMPERATURE, Grid, longest_text, measure
from specgym.env.prompts import load_prompts
from specgym.env.tree.rounds import check_limit
from specgym.scripts.common import PairOptions, console, main

_SHOWN = {"root": (1, 4, 16), "level": (1, 8, 32), "verify": (1, 8, 32, 64)}  # rows shown
_PROMPTS = 28  # built-in ones, balanced over the kinds of task, that texts are made of
_NEEDED = {"most_expanded": 8, "most_verified": 32}  # by those


@dataclass(frozen=True)
class CalibrateOptions:
    """Measures the latency profile of a pair on this machine: in under three minutes for the default pair on two cores.

    Let nothing else run meanwhile. Greedy decoding and sampling at temperature 1 are measured, both into one profile.
    """

    pair: Annotated[PairOptions, tyro.conf.arg(name="")] = field(default_factory=PairOptions)
    contexts: tuple[int, ...] | None = None
    """lengths of the prompts to measure after, ascending; by default those of 128, 512, 1024 and 1792 that the pair can
    read [tokens]"""
    most_expanded: int = Grid.most_expanded
    """most nodes expanded in a draft level [rows]"""
    most_verified: int = Grid.most_verified
    """most rows of a verification [rows]"""
    repeats: int = 3
    """visits of every context"""
    minutes: float = 2.5
    """after this time no visit begins any more, once every context was visited [minutes]"""
    check_prompts: int = 3
    """prompts that every controller continues, greedily and sampled, to check the profile; 0 for no check"""
    check_tokens: int = 32
    """length of these texts [tokens]"""
    check_controllers: str = "autoregressive,fixed_tree,confidence,dynamic_depth,history"
    """comma-separated names of these controllers, with options as in fixed_tree:branch=3:depth=2"""
    seed: int = 0
    """seed of the order and of the sampling"""
    output: Path = Path("results/latency")
    """folder that profile.json and profile.png are written to"""


def calibrate(options: CalibrateOptions) -> int:
    """Measures, fits, checks and writes a profile; returns the exit status."""
    grid, controllers = _grid(options), _controllers(options.check_controllers)
    prompts = load_prompts("builtin", _PROMPTS)
    check_writable(options.output)
    started = datetime.datetime.now(datetime.timezone.utc)
    with console.status("Loading the models"):
        pair = options.pair.load()
    decoder = pair.decoder()
    if options.contexts is None:
        grid = grid.fitting(longest_text(decoder))
    grid.check_fits(longest_text(decoder))
    encoded = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in prompts]
    check = _check(options, controllers, decoder, encoded)
    samples = _measure(options, decoder, encoded, grid, check)
    knots = grid.knots(model=not isinstance(pair.draft, LookupDraft))
    profile = fit_profile(samples, knots, _origin(options, pair, started))
    profile.save(options.output / "profile.json")  # whatever becomes of the check does not cost the measurements
    profile = dataclasses.replace(profile, checks=check.checks(profile))
    profile.save(options.output / "profile.json")
    plot_profile(profile, options.output / "profile.png")
    for table in _tables(profile):
        Console().print(table)
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0


def _grid(options: CalibrateOptions) -> Grid:
    """What to measure. Raises `LimitError` or `ParameterError` for an option that cannot be."""
    check_limit("repeats", options.repeats)
    check_limit("check_tokens", options.check_tokens)
    if not (math.isfinite(options.minutes) and options.minutes > 0):
        raise ParameterError(f"minutes must be over 0; got {options.minutes}.")
    if options.check_prompts < 0:
        raise ParameterError(f"check_prompts must be 0 or more; got {options.check_prompts}.")
    if options.check_prompts:
        for name, least in _NEEDED.items():
            if getattr(options, name) < least:
                raise ParameterError(
                    f"{name} must be {least} or more for the controllers that check the profile; got "
                    f"{getattr(options, name)}. Raise it, or use --check-prompts 0."
                )
    contexts = Grid.contexts if options.contexts is None else options.contexts
    return Grid(contexts, most_expanded=options.most_expanded, most_verified=options.most_verified)


def _measure(
    options: CalibrateOptions,
    decoder: LiveDecoder,
    prompts: Sequence[tuple[int, ...]],
    grid: Grid,
    check: ProfileCheck,
) -> list[Sample]:
    """Measures after beginnings, of all lengths, of the prompts in a row, repeated until they are long enough; the
    texts of the check are played in between.
    """
    text = list(itertools.islice(itertools.cycle(itertools.chain(*prompts)), 2 * grid.contexts[-1]))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("warming up", total=2 * len(grid.contexts) * options.repeats)
        return measure(
            decoder,
            text,
            grid,
            repeats=options.repeats,
            seconds=60 * options.minutes,
            seed=options.seed,
            progress=lambda visited: progress.update(task, advance=1, description=visited),
            between=lambda left: check.play(math.ceil(check.left / (left + 1))),
        )


def _controllers(names: str) -> list[str]:
    """Those that check the profile. Raises `UnknownNameError` or `ParameterError` for one that there is not."""
    found = list(dict.fromkeys(names.split(",")))
    for name in found:
        make_controller(name)
    return found


def _check(
    options: CalibrateOptions, controllers: Sequence[str], decoder: LiveDecoder, prompts: Sequence[tuple[int, ...]]
) -> ProfileCheck:
    """The check of the profile, on those of the prompts that leave room."""
    room = decoder.target.context_limit - options.check_tokens - FRAME
    fitting = [prompt for prompt in prompts if len(prompt) <= room][: options.check_prompts]
    return ProfileCheck(
        decoder,
        controllers,
        fitting,
        max_new_tokens=options.check_tokens,
        temperature=TEMPERATURE,
        seed=options.seed,
    )


def _origin(options: CalibrateOptions, pair: ModelPair, started: datetime.datetime) -> dict[str, object]:
    """Where the numbers come from. Nothing in it names a user, a host or a folder."""
    cuda = pair.target.device.type == "cuda"
    place = torch.cuda.get_device_name(pair.target.device) if cuda else options.pair.device
    return {
        "target": shareable(pair.target_name),
        "target_weights": pair.weights,
        "draft": shareable(pair.draft_name),
        "draft_kind": pair.draft.kind,
        "dtype": options.pair.dtype,
        **run_facts(started, place),
        "repeats": options.repeats,
        "temperature": TEMPERATURE,
        "seed": options.seed,
    }


def _tables(profile: LatencyProfile) -> list[Table]:
    tables = [_costs_table(profile.greedy, "greedy"), _costs_table(profile.sampled, "sampled")]
    return [*tables, _checks_table(profile.checks), _ranks_table(profile.checks)] if profile.checks else tables


def _costs_table(costs: RoundCosts, mode: str) -> Table:
    """What rounds are made of, by context."""
    table = Table(mode, *(f"at {context:,}" for context in costs.contexts))
    lines = {"plain step, ms": [1e3 * costs.plain_seconds(context) for context in costs.contexts]}
    for stage, rows in _SHOWN.items():
        curve: Curve = getattr(costs, stage)
        for number in rows:
            if number <= curve.most:
                lines[f"{stage}, {number} rows, ms"] = [1e3 * float(line[number]) for line in curve.table]
    lines["one more level, plain steps"] = [costs.level_cost(context) for context in costs.contexts]
    lines["one more row, plain steps"] = [costs.row_cost(context) for context in costs.contexts]
    lines["overhead of a round, ms"] = [1e3 * costs.overhead]
    lines["lookup of a node, ms"] = [1e3 * costs.lookup]
    for name, values in lines.items():
        table.add_row(name, *(f"{value:.2f}" if value >= 1 else f"{value:.4f}" for value in values))
    return table


def _checks_table(checks: Sequence[Check]) -> Table:
    """Predicted against measured time, in seconds, and of a token in the plain steps of the same minute."""
    names = "rounds", "measured", "predicted", "error", "in plain steps", "predicted", "error"
    table = Table("controller", "", *names)
    for check in checks:
        mode = "greedy" if check.greedy else "sampled"
        times = f"{check.measured:.2f} s", f"{check.predicted:.2f} s", f"{100 * check.error:.1f} %"
        steps = f"{check.measured_steps:.3f}", f"{check.predicted_steps:.3f}", f"{100 * check.steps_error:.1f} %"
        table.add_row(check.controller, mode, str(check.rounds), *times, *steps)
    return table


def _ranks_table(checks: Sequence[Check]) -> Table:
    """The controllers from the fastest to the slowest: as measured, and as predicted."""
    table = Table("from fast to slow", "measured", "predicted")
    for greedy in (True, False):
        mine = [check for check in checks if check.greedy == greedy]
        orders = (
            sorted(mine, key=lambda check: check.measured_steps),
            sorted(mine, key=lambda check: check.predicted_steps),
        )
        for place, both in enumerate(zip(*orders, strict=True)):
            table.add_row(f"{'greedy' if greedy else 'sampled'}, {place + 1}", *(check.controller for check in both))
    return table


if __name__ == "__main__":
    main(CalibrateOptions, calibrate)
