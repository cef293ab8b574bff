"""Choosing tokens: greedy, or sampling with noise that depends only on seed, position and token.

At temperature T > 0 the token at position i is ``argmax(processed log p + gumbel(seed, i, token))``. This is an exact
sample of p by the Gumbel-max trick (Gumbel 1954; Maddison, Tarlow and Minka 2014, "A* Sampling"). The noise is a pure
function of (seed, position, token). So the sample is the same in plain decoding and in any tree, and the output never
depends on the controller. The draft ranks its candidates with the same noise, and so predicts the target's own sample.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.common.errors import NumericalError, ParameterError
from specgym.env.kernels.choosing import best, gumbel, noisy, ranked, to_candidates
from specgym.env.tree.growth import Candidates
from specgym.env.tree.processors import ProcessedText, Processor, read_no_text
from specgym.env.tree.tree import TokenTree


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of the choice of tokens from the target's distribution.

    Raises:
        ParameterError: a value outside its range.
    """

    temperature: float = 0.0
    """0 decodes greedily; otherwise logits are divided by the temperature"""
    top_k: int = 0
    """sample only among this many likeliest tokens; 0 for all [tokens]"""
    top_p: float = 1.0
    """sample among the likeliest tokens that hold this much probability [probability]"""
    seed: int = 0
    """seed of the noise; equal seeds give equal texts"""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ParameterError(f"temperature must be 0 (greedy) or a positive number; got {self.temperature}.")
        if self.top_k < 0:
            raise ParameterError(f"top_k must be 0 (all tokens) or a positive number of tokens; got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ParameterError(f"top_p must be over 0 and at most 1; got {self.top_p}.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def unprocessed(self) -> bool:
        """Whether logits are left as they are before noise is added."""
        return self.temperature in (0, 1) and self.top_k == 0 and self.top_p == 1


_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: successive positions get well-spread keys
_RANKED = 8  # candidates ranked, at least
_ENTROPY_STEP = 1 / 64  # [nats]
_KEPT_POSITIONS = 64  # rows of noise kept; a round needs far fewer


def _mix64(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): spreads every input bit over all 64 output bits."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


class GumbelNoise:
    """Standard Gumbel noise as a pure function of (seed, position, token), equal on every device.

    Args:
        seed: any integer.
        vocabulary: number of tokens.
        device: where the noise is computed and used.
    """

    def __init__(self, seed: int, vocabulary: int, device: torch.device) -> None:
        self.seed = seed & 0xFFFFFFFFFFFFFFFF
        self.vocabulary, self.device = vocabulary, device
        self._rows: dict[int, torch.Tensor] = {}

    def row(self, position: int) -> torch.Tensor:
        """Noise at a position, `float32[vocabulary]`, cached for the latest positions."""
        row = self._rows.get(position)
        if row is None:
            while len(self._rows) >= _KEPT_POSITIONS:
                del self._rows[min(self._rows)]
            key = _mix64(_mix64(self.seed + _GOLDEN) + position * _GOLDEN & 0xFFFFFFFFFFFFFFFF)
            self._rows[position] = row = gumbel(key, self.vocabulary, self.device)
        return row


class TokenChooser:
    """Turns logits into tokens: the target's choices and the draft's candidates.

    Args:
        settings: how tokens are chosen.
        vocabulary: number of tokens of the target.
        device: where the logits are.
        processors: logits processors in place of those that `settings` name; None for the latter.
        text: the text so far, which processors may read.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        vocabulary: int,
        device: torch.device,
        processors: Sequence[Processor] | None = None,
        text: Sequence[int] = (),
    ) -> None:
        self.settings = settings
        self.noise = None if settings.greedy else GumbelNoise(settings.seed, vocabulary, device)
        processors = _warpers(settings) if processors is None else processors
        self.warpers = LogitsProcessorList(processors if read_no_text(processors) else ())
        self.text = None if read_no_text(processors) else ProcessedText(processors, text, vocabulary, device)

    def choose(self, logits: torch.Tensor, positions: Sequence[int]) -> IntArray:
        """The target's token for each row.

        Args:
            logits: `float[rows, vocabulary]`, of any precision.
            positions: absolute position of the token that each row chooses.

        Returns:
            `int64[rows]`, copied to the host in one transfer.

        Raises:
            NumericalError: a row holds NaN or plus infinity, or only minus infinity.
        """
        values, indices = best(self._warped(logits), self._noise(positions))
        if not np.isfinite(values).all():
            self._check(values, logits)
        return indices

    def choose_path(
        self, logits: torch.Tensor, positions: Sequence[int], tree: TokenTree, end_tokens: Container[int]
    ) -> IntArray:
        """The target's token after each node of a tree, and -1 where no processor was called.

        Where processors read the text, only the nodes of the accepted path are processed, from the root on.

        Args:
            logits: `float[nodes, vocabulary]`.
            positions: absolute position of the token after each node.
            tree: its root is the last token of the text so far.
            end_tokens: tokens that end the text; nothing is processed after one.

        Raises:
            NumericalError: as `choose` does.
        """
        if self.text is None:
            return self.choose(logits, positions)
        choices, node = np.full(len(tree), -1), 0
        while node >= 0:
            row = slice(node, node + 1)
            choices[row] = self.choose(logits[row], positions[row])
            token = int(choices[node])
            self.text.append(token)
            node = -1 if token in end_tokens else tree.child(node, token)
        return choices

    def rank(
        self,
        logits: torch.Tensor,
        positions: Sequence[int],
        k: int,
        token_ids: torch.Tensor | None = None,
        *,
        entropy: bool = False,
        branch: tuple[TokenTree, IntArray] | None = None,
    ) -> Candidates:
        """The draft's k best candidates for each row, best first.

        With noise, a candidate's probability is the softmax of the perturbed scores. It says how clearly the candidate
        leads under this noise, which decides whether the target chooses it too.

        Log-probabilities are rounded to bfloat16 (by at most 0.4 %), the models' own precision, and entropies to 1/64
        nat. So recordings are small, and replay compares the same numbers as live decoding.

        Args:
            logits: `float[rows, draft vocabulary]`.
            positions: absolute position of the token that each row proposes.
            k: candidates a row.
            token_ids: the target's token id of each entry of a trimmed vocabulary, `int64[draft vocabulary]`.
            entropy: whether to compute the entropy of the distribution without noise too.
            branch: the tree and its nodes that the rows belong to, for processors that read the text before them.

        Raises:
            NumericalError: the draft returned NaN.
        """
        # The order of equal scores depends on how many are ranked: so always rank the same number, then cut.
        count = min(max(k, _RANKED), logits.shape[-1])
        warped, noise = self._drafted(logits, branch, token_ids), self._noise(positions)
        likeliest, indices, nats = ranked(warped, count, noise, token_ids, entropy=entropy)
        values, ids, nats_read = to_candidates(likeliest, indices, min(k, count), token_ids, nats)
        if np.isnan(values).any():
            raise NumericalError("The draft returned NaN. Its weights or the dtype are at fault: try --dtype float32.")
        entropies = None if nats_read is None else np.round(nats_read / _ENTROPY_STEP) * _ENTROPY_STEP
        return Candidates(ids, values, np.exp(values[:, 0]), entropy=entropies)

    def _check(self, values: FloatArray, logits: torch.Tensor) -> None:
        """Refuses chosen scores that are not finite. In greedy decoding a processor may force a token by infinity."""
        if self.text is None or bool((logits.isnan() | logits.isposinf()).any()):
            raise NumericalError(
                "The target returned NaN or infinite logits. Its weights or the dtype are at fault: "
                "try --dtype float32, or load the weights again."
            )
        if not (self.settings.greedy and (values > -np.inf).all()):
            raise NumericalError(
                f"No token is left to choose from after the logits processors {self.text.names}: every score is minus "
                "infinity, or one is NaN or infinite. Leave one of them out, or change its settings."
            )

    def scores(self, logits: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """The scores that `choose` maximises: the logits, or processed logits plus noise, `[rows, vocabulary]`."""
        return noisy(self._warped(logits), self._noise(positions))

    def _drafted(
        self, logits: torch.Tensor, branch: tuple[TokenTree, IntArray] | None, token_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """The draft's logits after the processors that pay there, `[rows, draft vocabulary]`."""
        if self.text is None:
            return self._warped(logits)
        return logits if branch is None else self.text.process_drafted(logits, *branch, token_ids)

    def _noise(self, positions: Sequence[int]) -> list[torch.Tensor] | None:
        """The noise of each position, `float32[vocabulary]` each; None in greedy decoding."""
        return None if self.noise is None else [self.noise.row(position) for position in positions]

    def _warped(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits after temperature, top-k and top-p, `[rows, vocabulary]`."""
        if self.text is not None:
            return self.text.process(logits)
        if len(self.warpers) == 0:
            return logits
        # These warpers ignore the tokens so far, so none are given.
        processed: torch.Tensor = self.warpers(torch.empty(0, dtype=torch.long, device=logits.device), logits.float())
        return processed


def _warpers(settings: SamplingSettings) -> list[Processor]:
    """The processors that settings name, in the order of `generate`."""
    warpers: list[Processor] = []
    if not settings.greedy:
        if settings.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            warpers.append(TopPLogitsWarper(settings.top_p))
    return warpers
