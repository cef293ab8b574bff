"""The model card of a trained draft: written from its record, never by hand."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING
from typing import Any

from specgym.controllers.evaluation.results.plots import cut

_CALIBRATED_ON = "fitted on one half of the held-out prompts, measured on the other"


@dataclass(frozen=True)
class Provenance:
    """For whom a draft was made, and how to make it again."""

    target: str
    """what the target is called"""
    weights: str
    """which weights of the target taught it"""
    command: str
    """the command that made it"""
    device: str
    """where it was trained"""


def card(record: dict[str, Any]) -> str:
    """A model card in Markdown.

    Args:
        record: ``training.json``, see `export`.
    """
    config = record["config"]
    kind = config["kind"]
    describe = _feature if kind == "feature" else _causal
    generation, training = config["generation"], config[f"{kind}_training"]
    kinds = ", ".join(
        f"{name} {cut(100 * tokens / record['training_tokens'], 1)} %" for name, tokens in record["kinds"].items()
    )
    sections = [
        describe(record, config[kind]),
        f"- **Data:** {record['training_tokens']:,} tokens of conversations that the target wrote itself, user turns "
        f"(temperature {generation['user_temperature']}) included; {round(100 * generation['greedy_share'])} % of the "
        f"answers greedy, the others at temperature 1. By kind of task: {kinds}. One prompt in {config['held_out']} "
        "was held out. Some tasks are about a passage of Python's documentation or a function of its standard "
        f"library.\n"
        f"- **Teacher:** {record['weights']}\n"
        f"- **Training:** {_course(record, training)}, on {record['device']}; soft "
        f"cross-entropy to the target's most probable tokens{_rollout(kind, training)}; AdamW "
        f"{training['learning_rate']:g} with cosine decay. Seed {training['seed']}.{_beginning(record)}\n"
        f"- **Command:** `{record['command']}`\n"
        f"{_remark(record)}- **Licence:** Apache-2.0, as the target's.",
        "## Agreement on held-out answers",
        "How often the draft's first guess (top-1), or one of its first four (top-4), is the target's most probable "
        "token. At step s a feature draft goes on from its own features for s - 1 tokens.",
        _agreement_table(record["agreement"]),
        "## Calibration",
        "Expected calibration error (ten bins) of the probabilities of the first four children, by depth, before and "
        f"after calibration; {record.get('calibrated_on', _CALIBRATED_ON)}. First child: share of first children that "
        "the target chooses, given that the node above is reached; when sampling, draft and target share their noise.",
        _calibration_table(record["calibration"]),
        "![predicted against observed shares](calibration.png)",
    ]
    return "\n\n".join(sections) + "\n"


def _feature(record: dict[str, Any], shape: dict[str, Any]) -> str:
    fused = ", ".join(map(str, shape["feature_layers"]))
    states = (
        f"the target's last hidden state, fused with the outputs of its layers {fused},"
        if fused
        else ("the target's last hidden state")
    )
    return (
        f"# A feature draft for {record['target']}\n\n"
        f"Guesses the next tokens of its target from {states} and the token just chosen (EAGLE-style: "
        f"{shape['layers']} decoder layer{'s' * (shape['layers'] > 1)}, a head over a trimmed vocabulary). It is of no "
        "use without its target.\n\n"
        f"- **Size:** {record['parameters']:,} parameters in bfloat16; the head knows {shape['vocabulary']:,} tokens, "
        f"which cover {cut(100 * record['vocabulary_coverage'], 1)} % of the training text. Token embeddings are "
        "the target's."
    )


def _causal(record: dict[str, Any], shape: dict[str, Any]) -> str:
    return (
        f"# A standalone draft for {record['target']}\n\n"
        "A small causal language model with its target's tokenizer, for engines that draft with a model of its own: "
        "transformers' assisted generation takes it as `assistant_model`.\n\n"
        f"- **Size:** {record['parameters']:,} parameters in bfloat16: a Llama of {shape['layers']} layers, "
        f"{shape['hidden_size']} wide; most of it is the embedding of the whole vocabulary, which is also the head."
    )


def _beginning(record: dict[str, Any]) -> str:
    began = record["began"]
    if began is None:
        return ""
    return f" It began as an earlier draft (sha256 {began[:12]}…), whose own training is not counted here."


def _remark(record: dict[str, Any]) -> str:
    """What the command does not say."""
    return f"- **Remark:** {record['remark']}\n" if "remark" in record else ""


def _course(record: dict[str, Any], training: dict[str, Any]) -> str:
    """How long it learned: whole epochs, or so many batches."""
    size = f"{record['updates']:,} batches of at most {training['batch_tokens']:,} tokens"
    return size if training["updates"] is not None else f"{training['epochs']} epochs, {size}"


def _rollout(kind: str, training: dict[str, Any]) -> str:
    if kind == "causal":
        return ""
    return f"; every second batch {training['steps']} steps on the draft's own features"


def _agreement_table(agreement: dict[str, Any]) -> str:
    steps = len(next(iter(agreement.values()))["top1"])
    lines = [
        "| answers | positions | | " + " | ".join(f"step {step + 1}" for step in range(steps)) + " |",
        "|---|---|---|" + "---|" * steps,
    ]
    for name, part in agreement.items():
        for label, shares in (("top-1", part["top1"]), ("top-4", part["top4"])):
            cells = " | ".join(cut(share, 3) for share in shares)
            lines.append(f"| {name} | {part['positions']:,} | {label} | {cells} |")
    return "\n".join(lines)


def _calibration_table(calibration: dict[str, Any]) -> str:
    lines = ["| decoding | depth | children | first child | own error | calibrated |", "|---|---|---|---|---|---|"]
    for name, part in calibration.items():
        for each in part:
            first = cut(each["first"], 3)
            errors = " | ".join(cut(each[kind], 3, ROUND_CEILING) for kind in ("raw", "calibrated"))
            lines.append(f"| {name} | {each['depth']} | {each['children']:,} | {first} | {errors} |")
    return "\n".join(lines)
