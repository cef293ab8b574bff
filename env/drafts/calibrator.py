"""From a draft's probability to the probability of acceptance.

A draft is surer than it should be here and less sure there: trained weights, a trimmed vocabulary and the steps on its
own features all shift its probabilities. Reach is a product of them, so small errors multiply. The calibrator maps the
probability of each ranked child to the share of such children that the target really chooses.

The map is a beta calibration (Kull, Silva Filho and Flach 2017), ``logit c = a ln p - b ln(1 - p) + m * margin + o``
with a, b >= 0, so that it never falls as the probability rises. It has slopes a and b and a margin's weight m for every
rank, an offset o for every depth and rank, all of these once for greedy decoding and once for sampling.
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

_FORMAT = "specgym calibrator 1"
_EDGE = 1e-6  # probabilities are kept this far from 0 and 1


@dataclass(frozen=True)
class CalibrationMap:
    """The map for one way of decoding. Ranks and depths past the last one are treated as the last one."""

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
        ranks = self._ranks(log_probs.shape[1])
        likely = np.exp(log_probs)
        inside = np.minimum(np.maximum(likely, _EDGE), 1 - _EDGE)
        logits = (
            self.slope_low[ranks] * np.log(inside)
            - self.slope_high[ranks] * np.log1p(-inside)
            + self.margin[ranks] * _leads(likely)[:, None]
            + self.offset[min(depth, len(self.offset)) - 1, ranks]
        )
        calibrated: FloatArray = np.where(log_probs > -np.inf, -np.logaddexp(0, -logits), -np.inf)
        return calibrated

    def _ranks(self, count: int) -> slice | IntArray:
        """Where the tables have the first `count` ranks."""
        if count <= len(self.slope_low):
            return slice(count)
        return np.minimum(np.arange(count), len(self.slope_low) - 1)


@dataclass(frozen=True)
class Calibrator:
    """Maps for greedy decoding and for sampling."""

    greedy: CalibrationMap
    sampled: CalibrationMap

    def calibrate(self, log_probs: FloatArray, depth: int, greedy: bool) -> FloatArray:
        """Log-probabilities of acceptance, given that the node above is reached.

        Args:
            log_probs: the draft's log-probabilities of the children of some nodes, best first, `float64[nodes, k]`;
                minus infinity, no offer, stays so.
            depth: of the children, 1 for those of the root.
            greedy: whether the target decodes greedily.

        Returns:
            `float64[nodes, k]`, never falling as a probability rises and its node's margin stays.
        """
        return (self.greedy if greedy else self.sampled).calibrate(log_probs, depth)

    def save(self, path: Path) -> None:
        """Writes the calibrator as JSON. Raises `FileWriteError`."""
        write_text(path, json.dumps(self.record(), indent=1) + "\n")

    def record(self) -> dict[str, Any]:
        """The calibrator as JSON knows it, rounded to six decimals."""
        maps = {
            way: {name: np.round(values, 6).tolist() for name, values in tables.items()}
            for way, tables in asdict(self).items()
        }
        return {"format": _FORMAT, **maps}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Calibrator:
        """What `record` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no such record.
        """
        if record["format"] != _FORMAT:
            raise ValueError(f"expected {_FORMAT!r}, got {record['format']!r}")
        return cls(_map(record["greedy"]), _map(record["sampled"]))


def margins(log_probs: FloatArray) -> FloatArray:
    """By how much the best child leads the second best, `float64[nodes]`, of log-probabilities `float64[nodes, k]`."""
    return _leads(np.exp(log_probs))


def _leads(probabilities: FloatArray) -> FloatArray:
    """The same of probabilities."""
    if probabilities.shape[1] == 1:
        return np.asarray(probabilities[:, 0])
    return np.asarray(probabilities[:, 0] - probabilities[:, 1])


def load_calibrator(path: Path) -> Calibrator:
    """Reads what `Calibrator.save` wrote.

    Raises:
        ModelFileError: the file is missing, corrupt or of another format.
    """
    try:
        return Calibrator.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path} is missing or corrupt ({error}). Restore it, or run scripts.distill.") from error


def _map(record: dict[str, Any]) -> CalibrationMap:
    arrays = {name: np.array(values, np.float64) for name, values in record.items()}
    made = CalibrationMap(**arrays)
    ranks = len(made.slope_low)
    if not (made.slope_high.shape == made.margin.shape == (ranks,) and made.offset.shape[1:] == (ranks,) and ranks):
        raise ValueError("its tables differ in length")
    if (made.slope_low < 0).any() or (made.slope_high < 0).any():
        raise ValueError("a slope is negative")
    return made
