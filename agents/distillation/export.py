"""A trained draft as files: weights, a record of how they were made, and a card written from it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.distillation.card import Provenance, card
from agents.distillation.pipeline import DistillationConfig, Graduate
from agents.distillation.students import CausalStudent, FeatureStudent
from env.drafts.network import save_network
from env.files import atomic_path, check_writable, write_text

__all__ = ["export"]


def export(
    graduate: Graduate,
    config: DistillationConfig,
    provenance: Provenance,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Writes the draft in bfloat16, its ``calibrator.json``, ``training.json`` and the card ``README.md``.

    A feature draft is ``draft.safetensors``; a causal one a folder as transformers reads it, tokenizer included.

    Args:
        graduate: the draft and its marks.
        config: how it was trained.
        provenance: for whom and by which command.
        tokenizer: the target's.
        folder: where to.

    Raises:
        FileWriteError: a file could not be written.
    """
    student = graduate.student
    if isinstance(student, FeatureStudent):
        save_network(student.module, folder / "draft.safetensors", {"target": provenance.target})
    elif isinstance(student, CausalStudent):
        _save_causal(student.module, tokenizer, folder)
    examination = graduate.examination
    examination.calibrator.save(folder / "calibrator.json")
    examination.draw(folder / "calibration.png")
    record = {
        **dataclasses.asdict(provenance),
        "config": dataclasses.asdict(config),
        "began": None if config.kind == "causal" else _checksum(config.feature.earlier),
        "parameters": sum(parameter.numel() for parameter in student.module.parameters()),
        "vocabulary_coverage": graduate.coverage,
        "training_tokens": graduate.training_tokens,
        "kinds": graduate.kinds,
        "updates": graduate.history.updates,
        "agreement": {name: dataclasses.asdict(part) for name, part in examination.agreement.items()},
        "calibration": {name: [dataclasses.asdict(each) for each in part] for name, part in examination.errors.items()},
    }
    write_text(folder / "training.json", json.dumps(record, indent=2) + "\n")
    write_text(folder / "README.md", card(record))


def _checksum(path: Path | None) -> str | None:
    """Of the draft that was trained further, if one was."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _save_causal(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Model and tokenizer, file by file into place."""
    check_writable(folder)
    with tempfile.TemporaryDirectory(prefix=".draft.", dir=folder) as temporary:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _compact(Path(temporary) / "tokenizer.json")
        for path in sorted(Path(temporary).iterdir()):
            with atomic_path(folder / path.name) as place:
                shutil.copyfile(path, place)


def _compact(path: Path) -> None:
    """Writes a JSON file without white space, which is half of a tokenizer's."""
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(record, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
