"""Calibrators: from a draft's probability to the probability that the target accepts.

A draft's probabilities are biased: by its training, its trimmed vocabulary and the steps on its own features. Reach
multiplies them along a path, so small errors grow. A calibrator maps the probability of each ranked child to the share
of such children that the target accepts.

The map is a beta calibration (Kull, Silva Filho and Flach 2017), ``logit c = a ln p - b ln(1 - p) + m * margin + o``.
It has a, b >= 0, so it never falls as p rises. The *margin* is the best child's lead over the second. The slopes a and
b and the weight m depend on the rank, the offset o on depth and rank. Greedy decoding and sampling have maps of their
own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import ModelFileError
from specgym.env.common.files import write_text
from specgym.env.common.reading import WRONG_VALUES, read_json

_FORMAT = "specgym calibrator 1"
_EDGE = 1e-6  # probabilities are kept this far from 0 and 1
_LARGEST = 1e6  # a number of a map; larger ones make every probability 0 or 1


@dataclass(frozen=True)
class CalibrationMap:
    """The map for greedy decoding or for sampling. Higher ranks and depths than known use the last known one."""

    slope_low: FloatArray
    """a, by rank, `float64[ranks]`"""
    slope_high: FloatArray
    """b, by rank, `float64[ranks]`"""
    margin: FloatArray
    """m, by rank, `float64[ranks]`"""
    offset: FloatArray
    """o, by depth and rank, `float64[depths, ranks]`"""

    def calibrate(self, log_probs: FloatArray, depth: int) -> FloatArray:
        """See `Calibrator.calibrate`."""
        count, known = log_probs.shape[1], len(self.slope_low)
        ranks: slice | IntArray = slice(count) if count <= known else np.minimum(np.arange(count), known - 1)
        probabilities = np.exp(log_probs)
        inside = np.minimum(np.maximum(probabilities, _EDGE), 1 - _EDGE)
        logits = (
            self.slope_low[ranks] * np.log(inside)
            - self.slope_high[ranks] * np.log1p(-inside)
            + self.margin[ranks] * margins(probabilities)[:, None]
            + self.offset[min(depth, len(self.offset)) - 1, ranks]
        )
        return np.where(log_probs > -np.inf, -np.logaddexp(0, -logits), -np.inf)


def margins(probabilities: FloatArray) -> FloatArray:
    """The best child's lead over the second, `float64[nodes]`, of children `float64[nodes, k]`, best first."""
    second = probabilities[:, 1] if probabilities.shape[1] > 1 else 0.0
    return np.asarray(probabilities[:, 0] - second)


@dataclass(frozen=True)
class Calibrator:
    """Maps for greedy decoding and for sampling."""

    greedy: CalibrationMap
    sampled: CalibrationMap

    def calibrate(self, log_probs: FloatArray, depth: int, greedy: bool) -> FloatArray:
        """Log-probabilities that children are accepted, given that their node is reached.

        Args:
            log_probs: the draft's log-probabilities of the children of some nodes, best first, `float64[nodes, k]`.
                Minus infinity, an empty place, stays minus infinity.
            depth: depth of the children, 1 for children of the root.
            greedy: whether the target decodes greedily.

        Returns:
            `float64[nodes, k]`; never falls as a probability rises at a constant margin.
        """
        return (self.greedy if greedy else self.sampled).calibrate(log_probs, depth)

    def save(self, path: Path) -> None:
        """Writes the calibrator as JSON. Raises `FileWriteError`."""
        write_text(path, json.dumps(self.record(), indent=1) + "\n")

    def record(self) -> dict[str, Any]:
        """The calibrator as JSON values, rounded to six decimals."""
        maps = {
            mode: {name: np.round(values, 6).tolist() for name, values in tables.items()}
            for mode, tables in asdict(self).items()
        }
        return {"format": _FORMAT, **maps}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Calibrator:
        """Makes the calibrator of a `record`.

        Raises:
            KeyError, TypeError, ValueError: the record is invalid.
        """
        if not isinstance(record, dict) or record["format"] != _FORMAT:
            raise ValueError(f"expected {_FORMAT!r}, got {record['format']!r}")
        return cls(_map(record["greedy"]), _map(record["sampled"]))


def load_calibrator(path: Path) -> Calibrator:
    """Reads a file of `Calibrator.save`.

    Raises:
        ModelFileError: the file is missing, corrupt or of another format.
    """
    try:
        return Calibrator.of(read_json(path))
    except (OSError, *WRONG_VALUES) as error:
        raise ModelFileError(f"{path} is missing or corrupt ({error}). Restore it or run `specgym distill`.") from error


def _map(record: dict[str, Any]) -> CalibrationMap:
    made = CalibrationMap(**{name: _table(name, values) for name, values in record.items()})
    ranks = len(made.slope_low)
    if not (made.slope_high.shape == made.margin.shape == (ranks,) and made.offset.shape[1:] == (ranks,) and ranks):
        raise ValueError("its tables differ in length")
    if not len(made.offset):
        raise ValueError("its offsets are of no depth")
    if (made.slope_low < 0).any() or (made.slope_high < 0).any():
        raise ValueError("a slope is negative")
    return made


def _table(name: str, values: Any) -> FloatArray:
    """Returns the numbers of a record as an array. Raises `ValueError` for anything else."""
    rows = values if name == "offset" else [values]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"expected {name} to be a list")
    numbers = [number for row in rows for number in row]
    if not all(type(number) in (int, float) and abs(number) <= _LARGEST for number in numbers):
        raise ValueError(f"expected numbers of at most {_LARGEST:g} in {name}")
    return np.array(values, np.float64)
