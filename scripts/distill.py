"""Trains a draft for a target on text that the target writes itself."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

from specgym.agents.distillation.distillation_config import DistillationConfig
from specgym.env.common.files import check_writable, written_alone
from specgym.scripts.common import main, say
from specgym.scripts.options import TARGET, set_threads
from specgym.scripts.progress import progress


@dataclass(frozen=True)
class DistillOptions:
    """Trains a draft for a target. Run it again after an interruption: finished work is not repeated."""

    target: str = TARGET
    """target model: a registered name, a local folder or a Hugging Face hub id"""
    run: Path = Path("runs/distill")
    """folder for text, teacher states and checkpoints, about 1.4 KB a token"""
    output: Path | None = None
    """folder for the draft and its card; by default a folder of the run, named after the kind"""
    device: str = "cpu"
    """device of generation and training: cpu or cuda"""
    threads: int | None = None
    """threads of one operation; by default torch's own choice"""
    config: DistillationConfig = field(default_factory=DistillationConfig)
    """settings of the distillation"""


def distill(options: DistillOptions) -> int:
    """Runs all stages; returns the exit status."""
    import torch

    from specgym.agents.distillation.export import Provenance, export
    from specgym.agents.distillation.pipeline import Distillation
    from specgym.controllers.evaluation.results.provenance import command_line, device_name
    from specgym.env.decoding.pair import find_device
    from specgym.env.models.hub.compatibility import check_target
    from specgym.env.models.hub.loading import load_causal_model, load_config, load_tokenizer
    from specgym.env.models.hub.store import describe_weights, locate_model

    set_threads(options.threads)
    output = options.output or options.run / options.config.kind
    device = find_device(options.device)
    for folder in (options.run, output):
        check_writable(folder)
    folder = locate_model(options.target)
    check_target(load_config(folder))
    tokenizer, weights = load_tokenizer(folder), describe_weights(folder)
    model = load_causal_model(folder, torch.bfloat16, device)
    with written_alone(options.run), progress() as stages:
        distillation = Distillation(model, tokenizer, options.run, options.config, weights=weights, progress=stages)
        draft = distillation.run()
    name = device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    provenance = Provenance(Path(options.target).name, weights, command_line(), name)
    export(draft, options.config, provenance, tokenizer, output)
    shares = ", ".join(f"{share:.3f}" for share in draft.examination.agreement["all"].top1)
    say(f"Top-1 agreement on held-out answers by step: {shares}. Written to {output}/")
    return 0


if __name__ == "__main__":
    main(distill)
