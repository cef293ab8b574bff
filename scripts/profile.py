"""Accounts for a round's time, part by part and operator by operator, and sets it against the machine's floor."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specgym.controllers.evaluation.profiling.breakdown import Account, Memory, make_cells, make_ratios
from specgym.controllers.evaluation.profiling.breakdown_report import (
    account_notes,
    account_tables,
    write_account,
    write_record,
)
from specgym.controllers.evaluation.profiling.floor import ForwardShape, draft_shape, model_shape
from specgym.controllers.evaluation.profiling.leak import MAX_NEW_TOKENS, WARM_UP, Growth, check_growth
from specgym.controllers.evaluation.profiling.memory import forget_peak, library_pages, memory_held, memory_peak
from specgym.controllers.evaluation.profiling.profiled_rounds import Accountant, AccountGrid, ProfiledRound, TimedRound
from specgym.controllers.evaluation.profiling.rates import MachineRates, measure_rates
from specgym.controllers.evaluation.profiling.startup import Startup, process_age, without_compiling
from specgym.controllers.evaluation.results.provenance import (
    command_line,
    git_revision,
    library_versions,
    machine,
    shareable,
)
from specgym.controllers.registry import make_controller
from specgym.controllers.run import run
from specgym.env.common.files import check_writable
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import ModelPair, encode_chat
from specgym.env.kernels.build import compile_seconds
from specgym.env.latency.measure import longest_text
from specgym.env.models.target import TargetModel
from specgym.env.prompts import load_prompts
from specgym.env.tree.rounds import Request, check_limit
from specgym.scripts.common import INTERRUPTED, PairOptions, console, main

_CONTROLLER = "history"  # is asked before every round, and steers the requests of the growth check
_PROMPTS = 28  # built-in ones, balanced over the kinds of task, that texts are made of
_SHORT = 256  # tokens of a prompt of the growth check, at most
_FIRST = 16  # tokens of the first text


@dataclass(frozen=True)
class ProfileOptions:
    """Accounts for the time of greedy rounds of several tree sizes and contexts, and checks the memory.

    Let nothing else run meanwhile. Rounds are timed first; others are profiled afterwards.
    """

    pair: Annotated[PairOptions, tyro.conf.arg(name="")] = field(default_factory=PairOptions)
    rows: tuple[int, ...] = AccountGrid.rows
    """rows of the verifications, ascending; 1 is a plain step [rows]"""
    contexts: tuple[int, ...] | None = None
    """lengths of the prompts, ascending; by default those of 128, 512 and 1024 that the pair can read [tokens]"""
    repeats: int = 3
    """visits of every context, each with three timed rounds of every size"""
    requests: int = 50
    """short requests after which the memory is compared; 1000 for a thorough check"""
    output: Path = Path("results/profile")
    """folder that results.json, results.md and account.png are written to"""


@dataclass
class _Found:
    """What was measured so far."""

    peak: int | None
    """most memory held so far [bytes]"""
    code: int | None
    """code of libraries that was held before the models were loaded [bytes]; None if it does not count"""
    libraries: int | None = None
    """code of libraries that was first run since [bytes]"""
    timed: list[TimedRound] = field(default_factory=list)
    profiled: list[ProfiledRound] = field(default_factory=list)
    growth: Growth | None = None

    def look_at_peak(self, decoder: LiveDecoder) -> None:
        """Takes in the most memory that was held since it was forgotten last."""
        now = memory_peak(decoder.target.device)
        if now is not None:
            self.peak = max(now, self.peak or 0)
        code = library_pages()
        if code is not None and self.code is not None:
            self.libraries = code - self.code


def profile(options: ProfileOptions) -> int:
    """Measures and writes the account; returns the exit status."""
    grid, prompts = _grid(options), load_prompts("builtin", _PROMPTS)
    check_writable(options.output)
    started, age = datetime.datetime.now(datetime.timezone.utc), process_age()
    before, code = memory_held(torch.device("cpu")), library_pages()
    with console.status("Loading the models"):
        pair, loading_seconds = without_compiling(options.pair.load)
    target, decoder = pair.target, pair.decoder()
    if options.contexts is None:
        grid = grid.fitting(longest_text(decoder))
    grid.check_fits(longest_text(decoder))
    prompted = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in prompts]
    startup = Startup(age, loading_seconds, *_first_texts(decoder, prompted[0]), compile_seconds())
    loading = memory_peak(target.device)
    rates = _measure_rates(target)
    forget_peak(target.device)
    cuda = target.device.type == "cuda"
    found = _Found(loading, None if cuda else code)
    shapes = model_shape(target), draft_shape(pair.draft)
    facts = Account(
        complete=False,
        started_at=started.isoformat(timespec="seconds"),
        command=command_line(),
        git_revision=git_revision(),
        versions=library_versions(),
        machine=machine(torch.cuda.get_device_name(target.device) if cuda else options.pair.device),
        settings=_settings(options, pair, grid),
        rates=rates,
        memory=_memory(shapes, grid, 0 if cuda else before),
        startup=startup,
    )

    def so_far(complete: bool) -> Account:
        cells = make_cells(grid, found.timed, found.profiled, shapes, rates)
        return dataclasses.replace(
            facts,
            complete=complete,
            rates=rates,
            memory=dataclasses.replace(facts.memory, peak=found.peak, libraries=found.libraries),
            growth=found.growth,
            cells=cells,
            ratios=make_ratios(cells, found.timed, shapes[1], rates),
        )

    complete = _measure(
        options,
        decoder,
        prompted,
        grid,
        found=found,
        keep=lambda: write_record(so_far(complete=False), options.output),
    )
    if complete:  # once more: a spell of noise at the start would make the floor too high
        rates = rates.best(_measure_rates(target))
    account = so_far(complete)
    for table in account_tables(account):
        Console().print(table)
    for note in account_notes(account):
        Console().print(note, markup=False, highlight=False)
    write_account(account, options.output)
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0 if complete else INTERRUPTED


def _first_texts(decoder: LiveDecoder, prompt: tuple[int, ...]) -> tuple[float, float]:
    """How long a new process takes for its first text, and for the same once more [s]."""
    length = max(1, min(_SHORT, longest_text(decoder) - _FIRST))
    request, controller = Request(prompt[:length], _FIRST, ignore_end=True), make_controller(_CONTROLLER)
    first, same = (without_compiling(lambda: run(decoder, controller, request))[1] for _ in range(2))
    return first, same


def _measure_rates(target: TargetModel) -> MachineRates:
    with console.status("Measuring what the machine can do"):
        return measure_rates(target.dtype, target.device)


def _grid(options: ProfileOptions) -> AccountGrid:
    """What to account for. Raises `LimitError` or `ParameterError` for an option that cannot be."""
    check_limit("repeats", options.repeats)
    check_limit("requests", options.requests)
    return AccountGrid(options.rows, AccountGrid.contexts if options.contexts is None else options.contexts)


def _measure(
    options: ProfileOptions,
    decoder: LiveDecoder,
    prompts: Sequence[tuple[int, ...]],
    grid: AccountGrid,
    *,
    found: _Found,
    keep: Callable[[], None],
) -> bool:
    """Runs everything under a progress bar into `found`, which `keep` writes now and then; whether that was all."""
    text = list(itertools.islice(itertools.cycle(itertools.chain(*prompts)), 2 * grid.contexts[-1]))
    accountant = Accountant(decoder, text, grid, make_controller(_CONTROLLER))
    visits = len(grid.contexts) * (options.repeats + 1)
    with _progress() as progress:
        task = progress.add_task("timing", total=visits + WARM_UP + options.requests)
        try:
            for visit, context in enumerate(_in_turns(grid.contexts, options.repeats), start=1):
                for timed in accountant.timed(context):
                    found.timed.append(timed)
                progress.update(task, advance=1, description=f"timing, {context} tokens")
                if visit == len(grid.contexts):
                    keep()
            found.look_at_peak(decoder)  # before the profiler's own records
            for context in grid.contexts:
                for profiled in accountant.profiled(context):
                    found.profiled.append(profiled)
                progress.update(task, advance=1, description=f"profiling, {context} tokens")
            keep()
            progress.update(task, description="short requests")
            found.growth = check_growth(
                decoder,
                make_controller(_CONTROLLER),
                _of_all_lengths(text, longest_text(decoder) - MAX_NEW_TOKENS),
                options.requests,
                progress=lambda: progress.update(task, advance=1),
            )
        except KeyboardInterrupt:
            if not found.profiled:
                found.look_at_peak(decoder)
            console.print("Interrupted: what was measured so far is kept and marked incomplete.")
            return False
    return True


def _in_turns(contexts: Sequence[int], repeats: int) -> Iterator[int]:
    """All contexts as often as asked for, in random order each time: a slow spell falls on all of them alike."""
    order = random.Random(0)
    return itertools.chain(*(order.sample(contexts, len(contexts)) for _ in range(repeats)))


def _of_all_lengths(text: Sequence[int], longest: int) -> list[tuple[int, ...]]:
    """Short prompts, of which no two have the same length: what is kept for a length shall show as growth."""
    most = max(1, min(_SHORT, longest))
    return [tuple(text[:length]) for length in random.Random(0).sample(range(1, most + 1), most)]


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _memory(shapes: tuple[ForwardShape, ForwardShape | None], grid: AccountGrid, before: int | None) -> Memory:
    models = [shape for shape in shapes if shape is not None]
    return Memory(
        before=before,
        peak=None,
        libraries=None,
        weights=sum(shape.weight_bytes + shape.table_bytes for shape in models),
        states=sum(shape.kept_bytes for shape in models) * (grid.contexts[-1] + grid.room),
    )


def _settings(options: ProfileOptions, pair: ModelPair, grid: AccountGrid) -> dict[str, object]:
    return dataclasses.asdict(options.pair) | {
        "target": shareable(pair.target_name),
        "target_weights": pair.weights,
        "draft": shareable(pair.draft_name),
        "draft_kind": pair.draft.kind,
        "temperature": 0.0,
        "controller": _CONTROLLER,
        "rows": list(grid.rows),
        "contexts": list(grid.contexts),
        "repeats": options.repeats,
        "requests": options.requests,
    }


if __name__ == "__main__":
    main(ProfileOptions, profile)
