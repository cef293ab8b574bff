"""Writes a trained draft to files: weights, a record of its training, and a card made from the record."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specgym.agents.distillation.distillation_config import DistillationConfig
from specgym.agents.distillation.examination.calibration import Calibration
from specgym.agents.distillation.model.students import FeatureStudent
from specgym.agents.distillation.pipeline import DistilledDraft
from specgym.controllers.evaluation.results.tables import Table, cut
from specgym.env.common.errors import ModelFileError, TraceError
from specgym.env.common.files import atomic_path, check_writable, write_text
from specgym.env.drafts.network import load_network, save_network
from specgym.env.models.hub.loading import fingerprint, load_causal_model
from specgym.env.replay.traces.file import Trace

_CALIBRATED_ON = "fitted on one half of the held-out prompts, measured on the other"


@dataclass(frozen=True)
class Provenance:
    """Target of a draft, and the command that makes it again."""

    target: str
    """name of the target"""
    weights: str
    """description of the target's weights"""
    command: str
    """command that made the draft"""
    device: str
    """device of the training"""


def export(
    draft: DistilledDraft,
    config: DistillationConfig,
    provenance: Provenance,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Writes the draft in bfloat16, its ``calibrator.json``, ``training.json`` and the card ``README.md``.

    The weights of a feature draft are ``draft.safetensors``; a causal draft is a folder that transformers reads.

    Args:
        draft: the draft and its results.
        config: settings of its training.
        provenance: its target and its command.
        tokenizer: the target's.
        folder: folder for the files.

    Raises:
        FileWriteError: a file could not be written.
    """
    student = draft.student
    if isinstance(student, FeatureStudent):
        save_network(student.network, folder / "draft.safetensors", {"target": provenance.target})
    else:
        _save_causal(student.module, tokenizer, folder)
    examination = draft.examination
    earlier = config.feature.earlier if config.kind == "feature" else None  # the draft that was trained further
    record = {
        **asdict(provenance),
        "config": asdict(config),
        "began": hashlib.sha256(earlier.read_bytes()).hexdigest() if earlier else None,
        "parameters": sum(parameter.numel() for parameter in student.module.parameters()),
        "vocabulary_coverage": draft.coverage,
        "training_tokens": draft.training_tokens,
        "kinds": draft.kinds,
        "updates": draft.history.updates,
        "agreement": {name: asdict(part) for name, part in examination.agreement.items()},
    }
    _write(folder, record, examination.calibration)


def check_draft(trace: Trace, folder: Path) -> None:
    """Refuses a trace of another draft than that in a folder.

    Raises:
        ModelFileError: the folder holds no draft.
        TraceError: the trace was recorded with another draft.
    """
    weights, cpu = folder / "draft.safetensors", torch.device("cpu")
    draft = fingerprint(load_network(weights) if weights.exists() else load_causal_model(folder, torch.bfloat16, cpu))
    if draft != trace.header.draft:
        raise TraceError(
            f"{trace.path} was recorded with another draft than that in {folder}: expected {draft}, got "
            f"{trace.header.draft} ({trace.header.names[1]}). Record one with `specgym record --draft`."
        )


def export_calibration(calibration: Calibration, origin: str, folder: Path) -> None:
    """Replaces an exported draft's calibrator, and writes the new errors to its record and card.

    Args:
        calibration: the calibrator and its errors.
        origin: texts that it was fitted and measured on, for the card.
        folder: folder of the exported draft.

    Raises:
        FileWriteError: a file could not be written.
        ModelFileError: the folder holds no record of a draft.
    """
    path = folder / "training.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        card(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"Expected the record of a draft that `specgym distill` wrote, {path}; it is missing or corrupt ({error})."
        ) from error
    _write(folder, record | {"calibrated_on": origin}, calibration)


def _write(folder: Path, record: dict[str, Any], calibration: Calibration) -> None:
    """Writes the calibrator, its diagram, the record with its errors, and the card."""
    calibration.calibrator.save(folder / "calibrator.json")
    calibration.draw(folder / "calibration.png")
    record["calibration"] = {name: [asdict(error) for error in part] for name, part in calibration.errors.items()}
    write_text(folder / "training.json", json.dumps(record, indent=2) + "\n")
    write_text(folder / "README.md", card(record))


def _save_causal(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes model and tokenizer; each file appears at once."""
    check_writable(folder)
    with tempfile.TemporaryDirectory(prefix=".draft.", dir=folder) as temporary:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        vocabulary = Path(temporary) / "tokenizer.json"
        if vocabulary.exists():  # half of the file is white space
            record = json.loads(vocabulary.read_text(encoding="utf-8"))
            vocabulary.write_text(json.dumps(record, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
        for path in sorted(Path(temporary).iterdir()):
            with atomic_path(folder / path.name) as place:
                shutil.copyfile(path, place)


def card(record: dict[str, Any]) -> str:
    """Returns a model card in Markdown.

    Args:
        record: ``training.json``, see `export`.
    """
    config, began, remark = record["config"], record["began"], record.get("remark")
    generation, training = config["generation"], config[f"{config['kind']}_training"]
    title, introduction, size, steps = (_feature if config["kind"] == "feature" else _causal)(record, config)
    length = f"{record['updates']:,} batches of at most {training['batch_tokens']:,} tokens"
    if training["updates"] is None:
        length = f"{training['epochs']} epochs, {length}"
    total = record["training_tokens"]
    kinds = ", ".join(f"{name} {cut(100 * tokens / total, 1)} %" for name, tokens in record["kinds"].items())
    facts = [
        f"**Size:** {record['parameters']:,} parameters in bfloat16. {size}",
        f"**Data:** {total:,} tokens of conversations that the target wrote itself, user turns "
        f"included (temperature {generation['user_temperature']}). {round(100 * generation['greedy_share'])} % of the "
        "answers are greedy, the others sampled at temperature 1. Some tasks are about a passage of Python's "
        f"documentation or a function of its standard library. One prompt in {config['held_out']} was held out.",
        f"**Tokens by kind of task:** {kinds}.",
        f"**Teacher:** {record['weights']}",
        f"**Training:** {length}, on {record['device']}. The loss is the cross-entropy to the target's most probable "
        f"tokens. {steps}AdamW, learning rate {training['learning_rate']:g}, cosine decay, seed {training['seed']}.",
        began and f"**First weights:** an earlier draft (sha256 {began[:12]}…), whose own training is not counted.",
        f"**Command:** `{record['command']}`",
        remark and f"**Remark:** {remark}",
        "**Licence:** Apache-2.0, as the target's.",
    ]
    sections = [
        f"# {title} for {record['target']}",
        introduction,
        "\n".join(f"- {fact}" for fact in facts if fact),
        "## Agreement on held-out answers",
        "How often the target's most probable token is the draft's first guess (top-1), or one of its first four "
        "(top-4). At step s a feature draft has read its own features for s - 1 tokens.",
        _agreement_table(record["agreement"]),
        "## Calibration",
        "Expected calibration error (ten bins) of the probabilities of the first four children, by depth, before and "
        f"after calibration. The calibrator was {record.get('calibrated_on', _CALIBRATED_ON)}. First child: share of "
        "first children that the target chooses if it reaches their parent. When sampling, draft and target share "
        "their noise.",
        _calibration_table(record["calibration"]),
        "![predicted against observed shares](calibration.png)",
    ]
    return "\n\n".join(sections) + "\n"


def _feature(record: dict[str, Any], config: dict[str, Any]) -> tuple[str, str, str, str]:
    """Returns title, introduction, size and steps of the training."""
    shape = config["feature"]
    layers = ", ".join(map(str, shape["feature_layers"]))
    fused = f" The outputs of the target's layers {layers} are fused with that state." if layers else ""
    return (
        "A feature draft",
        "Guesses the target's next tokens from the target's last hidden state and the token just chosen, as EAGLE "
        f"does.{fused} The draft has {shape['layers']} decoder layer{'s' * (shape['layers'] > 1)} and a head over a "
        "trimmed vocabulary. It cannot be used without its target.",
        f"The head knows {shape['vocabulary']:,} tokens, which cover {cut(100 * record['vocabulary_coverage'], 1)} % "
        "of the training text. Token embeddings are the target's.",
        f"Every second batch takes {config['feature_training']['steps']} steps on the draft's own features. ",
    )


def _causal(record: dict[str, Any], config: dict[str, Any]) -> tuple[str, str, str, str]:
    """Returns title, introduction, size and steps of the training."""
    return (
        "A standalone draft",
        "A small causal language model with its target's tokenizer, for engines whose draft is a model of its own. "
        "Transformers' assisted generation takes it as `assistant_model`.",
        f"It is a Llama of {config['causal']['layers']} layers, {config['causal']['hidden_size']} wide. Most "
        "parameters are in the embedding of the whole vocabulary, which is also the head.",
        "",
    )


def _agreement_table(agreement: dict[str, Any]) -> str:
    steps = range(1, len(next(iter(agreement.values()))["top1"]) + 1)
    rows = [
        (name, f"{part['positions']:,}", label, *(cut(share, 3) for share in part[key]))
        for name, part in agreement.items()
        for label, key in (("top-1", "top1"), ("top-4", "top4"))
    ]
    return Table(("answers", "positions", "guesses", *(f"step {step}" for step in steps)), rows).markdown()


def _calibration_table(calibration: dict[str, Any]) -> str:
    rows = []
    for mode, errors in calibration.items():
        for error in errors:
            shares = (cut(error[key], 3, ROUND_CEILING) for key in ("raw", "calibrated"))
            rows.append((mode, error["depth"], f"{error['children']:,}", cut(error["first"], 3), *shares))
    return Table(("decoding", "depth", "children", "first child", "own error", "calibrated"), rows).markdown()
