"""Trains a feature draft for a target, from text that the target writes itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.distillation.card import export
from agents.distillation.pipeline import Distillation, DistillationConfig
from controllers.evaluation.provenance import command_line
from env.files import check_writable
from env.models.compatibility import check_target
from env.models.loading import load_causal_model, load_config, load_tokenizer
from env.models.store import locate_model
from env.pair import DEFAULT_TARGET
from scripts.common import console, main


@dataclass(frozen=True)
class DistillOptions:
    """Trains a feature draft for a target. Run it again to go on after an interruption: finished shards are kept."""

    target: str = DEFAULT_TARGET
    """target model: a registered name, a local folder or a Hugging Face hub id"""
    run: Path = Path("runs/distill")
    """folder for text and teacher states, about 1.4 KB a token"""
    output: Path = Path("runs/distill/draft")
    """folder that the draft and its card are written to"""
    device: str = "cpu"
    """where to generate and train: cpu or cuda"""
    config: DistillationConfig = field(default_factory=DistillationConfig)
    """how"""


def distill(options: DistillOptions) -> int:
    """Runs all stages; returns the exit status."""
    for folder in (options.run, options.output):
        check_writable(folder)
    folder = locate_model(options.target)
    check_target(load_config(folder))
    tokenizer = load_tokenizer(folder)
    model = load_causal_model(folder, torch.bfloat16, torch.device(options.device))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)
        graduate = Distillation(
            model,
            tokenizer,
            options.run,
            options.config,
            lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        ).run()
    export(graduate, options.config, Path(options.target).name, command_line(), options.output)
    shares = ", ".join(f"{share:.3f}" for share in graduate.agreement["all"].top1)
    console.print(
        f"Top-1 agreement on held-out answers by step: {shares}. Written to {options.output}/",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    main(DistillOptions, distill)
