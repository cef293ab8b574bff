"""A trained draft as files: weights, a record of how they were made, and a card written from it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specgym.agents.distillation.examination.calibration import Calibration
from specgym.agents.distillation.examination.card import Provenance, card
from specgym.agents.distillation.model.students import CausalStudent, FeatureStudent
from specgym.agents.distillation.pipeline import DistillationConfig, DistilledDraft
from specgym.env.common.errors import ModelFileError
from specgym.env.common.files import atomic_path, check_writable, write_text
from specgym.env.drafts.network import save_network


def export(
    graduate: DistilledDraft,
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
        save_network(student.network, folder / "draft.safetensors", {"target": provenance.target})
    elif isinstance(student, CausalStudent):
        _save_causal(student.module, tokenizer, folder)
    examination = graduate.examination
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
    }
    _write(folder, record, examination.calibration)


def export_calibration(calibration: Calibration, origin: str, folder: Path) -> None:
    """Gives an exported draft another calibrator, and its record and card the new errors.

    Args:
        calibration: the calibrator and its errors.
        origin: on what it was fitted, and on what its errors were measured, for the card.
        folder: where the draft was exported to.

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
            f"Expected the record of a draft that scripts.distill exported, {path}; it is missing or corrupt ({error})."
        ) from error
    _write(folder, record | {"calibrated_on": origin}, calibration)


def _write(folder: Path, record: dict[str, Any], calibration: Calibration) -> None:
    """The calibrator, its diagram, the record with its errors, and the card."""
    calibration.calibrator.save(folder / "calibrator.json")
    calibration.draw(folder / "calibration.png")
    errors = {name: [dataclasses.asdict(each) for each in part] for name, part in calibration.errors.items()}
    record = record | {"calibration": errors}
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
