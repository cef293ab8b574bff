"""Trains a draft for a target, from text that the target writes itself."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specgym.agents.distillation.examination.card import Provenance
from specgym.agents.distillation.examination.export import export
from specgym.agents.distillation.pipeline import Distillation, DistillationConfig
from specgym.controllers.evaluation.results.provenance import command_line
from specgym.env.common.files import check_writable
from specgym.env.decoding.pair import DEFAULT_TARGET, find_device
from specgym.env.models.hub.compatibility import check_target
from specgym.env.models.hub.loading import load_causal_model, load_config, load_tokenizer
from specgym.env.models.hub.store import describe_weights, locate_model
from specgym.scripts.common import console, main, set_threads


@dataclass(frozen=True)
class DistillOptions:
    """Trains a draft for a target. Run it again to go on after an interruption: nothing that is done is done again."""

    target: str = DEFAULT_TARGET
    """target model: a registered name, a local folder or a Hugging Face hub id"""
    run: Path = Path("runs/distill")
    """folder for text, teacher states and checkpoints, about 1.4 KB a token"""
    output: Path | None = None
    """folder that the draft and its card are written to; by default a folder of the run named after the kind"""
    device: str = "cpu"
    """where to generate and train: cpu or cuda"""
    threads: int | None = None
    """threads of one operation; torch's own choice by default"""
    config: DistillationConfig = field(default_factory=DistillationConfig)
    """how"""


def distill(options: DistillOptions) -> int:
    """Runs all stages; returns the exit status."""
    set_threads(options.threads)
    output = options.output or options.run / options.config.kind
    device = find_device(options.device)
    for folder in (options.run, output):
        check_writable(folder)
    folder = locate_model(options.target)
    check_target(load_config(folder))
    tokenizer = load_tokenizer(folder)
    model = load_causal_model(folder, torch.bfloat16, device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    weights = describe_weights(folder)
    bar = Progress(*columns, console=console)
    task = bar.add_task("starting", total=None)
    distillation = Distillation(
        model,
        tokenizer,
        options.run,
        options.config,
        weights=weights,
        progress=lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
    )
    with bar:
        graduate = distillation.run()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    provenance = Provenance(Path(options.target).name, weights, command_line(), name)
    export(graduate, options.config, provenance, tokenizer, output)
    shares = ", ".join(f"{share:.3f}" for share in graduate.examination.agreement["all"].top1)
    console.print(
        f"Top-1 agreement on held-out answers by step: {shares}. Written to {output}/", markup=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    main(DistillOptions, distill)
