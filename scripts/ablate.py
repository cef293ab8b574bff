"""Trains variants of a feature draft for equal times and compares them, in agreement and in tokens per second."""

from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from specgym.agents.distillation.examination.ablation import Finding, Variant, train_variant, variants
from specgym.agents.distillation.examination.ablation_page import ablation_page
from specgym.agents.distillation.examination.agreement import Agreement
from specgym.agents.distillation.model.draft_shapes import FeatureShape
from specgym.agents.distillation.pipeline import Distillation, DistillationConfig
from specgym.controllers.evaluation.live.paired_runs import BASELINE, Benchmark, Measurements
from specgym.controllers.evaluation.live.runners import ControllerRunner
from specgym.controllers.evaluation.results.provenance import run_facts
from specgym.controllers.evaluation.results.statistics import summarise
from specgym.env.common.errors import ParameterError
from specgym.env.common.files import check_writable, write_text
from specgym.env.decoding.live import LiveDecoder
from specgym.env.decoding.pair import DEFAULT_TARGET, ModelPair, load_pair, make_draft
from specgym.env.models.hub.loading import load_causal_model, load_tokenizer
from specgym.env.models.hub.store import describe_weights, locate_model
from specgym.env.prompts import load_prompts
from specgym.env.tree.rounds import check_limit
from specgym.env.tree.sampling import SamplingSettings
from specgym.scripts.common import console, main


@dataclass(frozen=True)
class AblateOptions:
    """Trains variants of a feature draft on the text of a run of scripts.distill. Run it again after an interruption:
    variants that are done are kept.
    """

    target: str = DEFAULT_TARGET
    """target model: a registered name, a local folder or a Hugging Face hub id"""
    run: Path = Path("runs/distill")
    """run folder with text"""
    minutes: float = 3.0
    """training time of a variant [min]"""
    feature_layers: tuple[int, ...] = (2, 15, 27)
    """layers of the target that are fused by the variant that fuses"""
    controller: str = "dynamic_depth"
    """controller that the speeds are measured with"""
    prompts: str = "builtin"
    """prompts that the speeds are measured on"""
    limit: int = 14
    """number of prompts, balanced over the kinds of task"""
    max_new_tokens: int = 64
    """most tokens of an answer"""
    output: Path = Path("results/ablation")
    """folder that the results are written to"""
    config: DistillationConfig = field(default_factory=DistillationConfig)
    """settings of the run"""


def ablate(options: AblateOptions) -> int:
    """Trains, measures and writes; returns the exit status."""
    started = datetime.datetime.now(datetime.timezone.utc)
    if not options.minutes > 0:
        raise ParameterError(f"minutes must be over 0; got {options.minutes}.")
    check_limit("limit", options.limit)
    check_limit("max_new_tokens", options.max_new_tokens)
    check_writable(options.output)
    plan = variants(options.feature_layers)
    findings = _train(options, plan)
    rows = _speeds(options, plan)
    record = {
        **run_facts(started, "cpu"),
        "minutes": options.minutes,
        "feature_layers": options.feature_layers,
        "controller": options.controller,
        "prompt_count": options.limit,
        "max_new_tokens": options.max_new_tokens,
        "variants": [dataclasses.asdict(finding) | rows[finding.name] for finding in findings],
    }
    write_text(options.output / "results.json", json.dumps(record, indent=2) + "\n")
    write_text(options.output / "results.md", ablation_page(record))
    console.print(f"Written to {options.output}/", markup=False, soft_wrap=True)
    return 0


def _place(options: AblateOptions, variant: Variant, suffix: str) -> Path:
    return options.run / "ablation" / f"{variant.name.replace(' ', '-').replace(',', '')}.{suffix}"


def _train(options: AblateOptions, plan: list[Variant]) -> list[Finding]:
    """Trains the variants that are not there yet."""
    folder = locate_model(options.target)
    model = load_causal_model(folder, torch.bfloat16, torch.device("cpu"))
    config = dataclasses.replace(options.config, feature=FeatureShape(feature_layers=options.feature_layers))
    course = Distillation(model, load_tokenizer(folder), options.run, config, weights=describe_weights(folder))
    course.record_states()
    lessons = course.lessons()
    findings = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        for variant in plan:
            task = bar.add_task(variant.name, total=None)
            path = _place(options, variant, "json")
            if not path.exists():
                finding = train_variant(
                    variant,
                    model,
                    lessons,
                    60 * options.minutes,
                    _place(options, variant, "safetensors"),
                    teach=course.teach,
                    log=partial(_advance, bar, task),
                )
                write_text(path, json.dumps(dataclasses.asdict(finding), indent=2) + "\n")
            findings.append(_read(path))
    return findings


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _read(path: Path) -> Finding:
    record = json.loads(path.read_text(encoding="utf-8"))
    for part in ("agreement", "greedy"):
        record[part] = Agreement(tuple(record[part]["top1"]), tuple(record[part]["top4"]), record[part]["positions"])
    return Finding(**record)


def _speeds(options: AblateOptions, plan: list[Variant]) -> dict[str, dict[str, Any]]:
    """Speed-ups over plain decoding, all variants interleaved on the same prompts."""
    pair = load_pair(options.target, "lookup")
    runners = [ControllerRunner(BASELINE, pair.decoder())]
    runners += [_runner(options, pair, variant) for variant in plan]
    prompts = load_prompts(options.prompts, options.limit)
    bench = Benchmark(
        pair, runners, prompts, max_new_tokens=options.max_new_tokens, sampling=SamplingSettings(), repeats=1
    )
    measured = Measurements()
    with console.status("Measuring speeds"):
        bench.warm_up()
        bench.measure(measured)
    summaries = summarise(measured.rows, measured.failures, BASELINE, [runner.name for runner in runners])
    return {
        name: {
            "tokens_per_second": each.tokens_per_second,
            "speedup": each.speedup,
            "speedup_ci95": each.speedup_ci95,
            "mean_accepted_tokens": each.mean_accepted_tokens,
        }
        for name, each in summaries.items()
    }


def _runner(options: AblateOptions, pair: ModelPair, variant: Variant) -> ControllerRunner:
    draft = make_draft(str(_place(options, variant, "safetensors")), pair.target)
    return ControllerRunner(options.controller, LiveDecoder(pair.target, draft), variant.name)


if __name__ == "__main__":
    main(AblateOptions, ablate)
