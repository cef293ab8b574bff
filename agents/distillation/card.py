"""The model card of a trained draft: written from what was measured, never by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from agents.distillation.agreement import Agreement
from agents.distillation.pipeline import DistillationConfig, Graduate
from env.drafts.network import save_network
from env.files import write_text

__all__ = ["export"]


def export(graduate: Graduate, config: DistillationConfig, target: str, command: str, folder: Path) -> None:
    """Writes ``draft.safetensors``, ``training.json`` and the card ``README.md``.

    Args:
        graduate: the draft and its marks.
        config: how it was trained.
        target: what the target is called.
        command: the command that made it.
        folder: where to.

    Raises:
        FileWriteError: a file could not be written.
    """
    save_network(graduate.network, folder / "draft.safetensors", {"target": target})
    parameters = sum(parameter.numel() for parameter in graduate.network.parameters())
    record = {
        "target": target,
        "command": command,
        "config": dataclasses.asdict(config),
        "parameters": parameters,
        "vocabulary_coverage": graduate.coverage,
        "training_tokens": graduate.training_tokens,
        "agreement": {name: dataclasses.asdict(part) for name, part in graduate.agreement.items()},
    }
    write_text(folder / "training.json", json.dumps(record, indent=2) + "\n")
    write_text(folder / "README.md", _card(graduate, config, target, command, parameters))


def _card(graduate: Graduate, config: DistillationConfig, target: str, command: str, parameters: int) -> str:
    network, training, generation = graduate.network.config, config.training, config.generation
    sections = [
        f"# A feature draft for {target}",
        "Guesses the next tokens of its target from the target's last hidden state and the token just chosen "
        "(EAGLE-style: one decoder layer, a head over a trimmed vocabulary). It is of no use without its target.",
        f"- **Size:** {parameters:,} parameters in bfloat16; the head knows {network.vocabulary:,} tokens, which cover "
        f"{_floor(100 * graduate.coverage, 1)} % of the training text. Token embeddings are the target's.\n"
        f"- **Data:** {graduate.training_tokens:,} tokens of conversations that the target wrote itself, user turns "
        f"(temperature {generation.user_temperature}) included; {round(100 * generation.greedy_share)} % of the "
        f"answers greedy, the others at temperature 1. Every {config.held_out}th conversation was held out.\n"
        f"- **Training:** {training.epochs} epochs, soft cross-entropy to the target's most probable tokens, every "
        f"second batch {training.steps} steps on the draft's own features, AdamW {training.learning_rate:g} with "
        f"cosine decay. Seed {training.seed}.\n"
        f"- **Command:** `{command}`\n"
        "- **Licence:** Apache-2.0, as the target's.",
        "## Agreement on held-out answers",
        "How often the draft's first guess (top-1), or one of its first four (top-4), is the target's most probable "
        "token. At step s the draft goes on from its own features for s - 1 tokens.",
        _agreement_table(graduate.agreement),
    ]
    return "\n\n".join(sections) + "\n"


def _agreement_table(agreement: dict[str, Agreement]) -> str:
    steps = len(next(iter(agreement.values())).top1)
    lines = [
        "| answers | positions | | " + " | ".join(f"step {step + 1}" for step in range(steps)) + " |",
        "|---|---|---|" + "---|" * steps,
    ]
    for name, part in agreement.items():
        for label, shares in (("top-1", part.top1), ("top-4", part.top4)):
            cells = " | ".join(_floor(share, 3) for share in shares)
            lines.append(f"| {name} | {part.positions:,} | {label} | {cells} |")
    return "\n".join(lines)


def _floor(value: float, digits: int) -> str:
    """Cut, never rounded up."""
    return f"{int(value * 10**digits) / 10**digits:.{digits}f}"
