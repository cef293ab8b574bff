"""Compares plain decoding, a fixed tree and adaptive controllers on one model pair."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specgym.env.common.errors import ParameterError
from specgym.env.common.files import check_writable
from specgym.scripts.common import main
from specgym.scripts.paired import PairedOptions


@dataclass(frozen=True)
class BenchmarkOptions(PairedOptions):
    """Compares controllers on one model pair, prompt by prompt in turn, and writes the results."""

    suite: Literal["phase1", "phase2", "full"] = "full"
    """fixed tree and Phase 1, Phase 1 and Phase 2, or everything"""
    controllers: str | None = None
    """comma-separated controllers instead of the suite's, with options as in fixed_tree:branch=3:depth=2"""
    drafts: str | None = None
    """comma-separated further drafts, each as NAME=DRAFT with a draft as for --draft; every controller also runs with
    each of them, as controller@NAME"""
    also_dtype: str | None = None
    """second precision, as for --dtype; every controller also runs in it, as controller@PRECISION, and is compared with
    plain decoding in that precision"""
    output: Path = Path("runs/benchmark")
    """folder for the results"""


def benchmark(options: BenchmarkOptions) -> int:
    """Runs the benchmark; returns the exit status."""
    from specgym.controllers.evaluation.checks.precision_agreement import find_agreement
    from specgym.controllers.evaluation.live import paired_runs, runners
    from specgym.controllers.evaluation.results.provenance import shareable
    from specgym.controllers.registry import BASELINE
    from specgym.env.decoding.pair import encode_chat

    names = options.controllers.split(",") if options.controllers else list(paired_runs.SUITES[options.suite])
    names = list(dict.fromkeys(names if BASELINE in names else [BASELINE, *names]))
    for name in names:
        runners.check_runner(name)
    drafts, precision = runners.parse_pairs(options.drafts, "drafts as NAME=DRAFT"), options.also_dtype
    _check_precision(options)
    options.sampling.settings()
    prompts = options.load_prompts()
    check_writable(options.output)
    pair = options.pair.load()
    settings = options.settings(pair, prompts)
    settings |= {"rivals": options.drafts and shareable(options.drafts), "beside": precision}
    labels = runners.runner_labels(names)
    decoder, ours = pair.decoder(), [name for name in names if name != runners.TRANSFORMERS]
    compared = [runners.make_runner(name, decoder, labels[name]) for name in names]
    for label, draft in drafts.items():
        decoder = pair.with_draft(draft).decoder()
        compared += [
            runners.ControllerRunner(name, decoder, f"{labels[name]}@{label}") for name in ours if name != BASELINE
        ]
    if precision is not None:
        other = dataclasses.replace(options.pair, dtype=precision).load()
        decoder, baseline = other.decoder(), f"{BASELINE}@{precision}"
        compared += [runners.ControllerRunner(name, decoder, f"{labels[name]}@{precision}", baseline) for name in ours]
        # Measured before there is anything to lose.
        texts = [encode_chat(pair.tokenizer, prompt.turns[:1]) for prompt in prompts]
        settings["agreement"] = dataclasses.asdict(find_agreement(pair.target, other.target, texts))
    fields = {"kind": "benchmark", "suite": options.suite, "baseline": BASELINE, "settings": settings}
    return options.run(pair, compared, prompts, names=[runner.name for runner in compared], versions={}, **fields)


def _check_precision(options: BenchmarkOptions) -> None:
    from specgym.env.decoding.pair import DTYPES

    if options.also_dtype == options.pair.dtype:
        raise ParameterError(f"also_dtype must be another precision than dtype; got {options.also_dtype} for both.")
    if options.also_dtype not in (None, *DTYPES):
        raise ParameterError(f"also_dtype must be one of {', '.join(DTYPES)}; got {options.also_dtype!r}.")


if __name__ == "__main__":
    main(benchmark)
