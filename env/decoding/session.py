"""A text being decoded: its tokens, limits and past rounds, and what a controller sees. Base of live and replay."""

from __future__ import annotations

from collections import deque

from specgym.env.tree.observation import WINDOW, Costs, Observation, PastRound
from specgym.env.tree.rounds import FinishReason, Request, RoundOutcome, check_fits


class DecodingSession:
    """A request, its text so far and its past rounds.

    Args:
        context_limit: longest text that the target reads [tokens].
        end_tokens: tokens that end a text.

    Attributes:
        request: the latest request.
        tokens: prompt and text so far [token ids].
        last: the last round.
        under_way: whether there is a text to continue.
    """

    def __init__(self, context_limit: int, end_tokens: frozenset[int]) -> None:
        self.context_limit, self.end_tokens = context_limit, end_tokens
        self.request: Request
        self.tokens: list[int] = []
        self.last = RoundOutcome(())
        self.under_way = False

    def _open(self, request: Request) -> None:
        """Begins a text, which is under way once its first round is complete.

        Raises:
            LimitError: the prompt leaves no room in the target's context.
        """
        check_fits(len(request.prompt), self.context_limit)
        self.request, self.tokens = request, list(request.prompt)
        self.ends = frozenset[int]() if request.ignore_end else self.end_tokens
        self.limit = min(len(request.prompt) + request.max_new_tokens, self.context_limit)
        self.recent: deque[PastRound] = deque(maxlen=WINDOW)
        self.last = RoundOutcome(())
        self.under_way = False

    def _check_under_way(self) -> None:
        if not self.under_way:
            raise RuntimeError("No text is under way: call start() with a request first.")

    def _deepest(self) -> int:
        """Most draft tokens on a path: with the target's own token, the round may just reach the limit."""
        return max(self.limit - len(self.tokens) - 1, 0)

    def _observation(self, root: tuple[float, ...], match: tuple[int, float], costs: Costs | None) -> Observation:
        """Returns what a controller may see now.

        Args:
            root: the draft model's log-probabilities of the root's children; empty if it was not run.
            match: prompt lookup's longest match and its probability at the root.
            costs: costs to report; None for zeros.
        """
        length = len(self.tokens)
        return Observation(
            position=length - 1,
            generated=length - len(self.request.prompt),
            remaining=self.limit - length,
            last_drafted=self.last.drafted,
            last_depth=self.last.depth,
            last_accepted=self.last.accepted,
            lookup_match=match[0],
            lookup_rate=match[1],
            recent=tuple(self.recent),
            greedy=self.request.sampling.greedy,
            root_log_probs=root,
            level_cost=costs.level_cost(length) if costs else 0.0,
            row_cost=costs.row_cost(length) if costs else 0.0,
        )

    def _take(self, tokens: list[int]) -> list[int]:
        """Adds tokens to the text up to the first end token, and returns the added ones."""
        ends = [end for end, token in enumerate(tokens) if token in self.ends]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        self.tokens.extend(tokens)
        return tokens

    def _finish_reason(self) -> FinishReason | None:
        if self.tokens[-1] in self.ends:
            return FinishReason.END_OF_SEQUENCE
        if len(self.tokens) < self.limit:
            return None
        asked = len(self.request.prompt) + self.request.max_new_tokens
        return FinishReason.TOKEN_LIMIT if len(self.tokens) == asked else FinishReason.CONTEXT_LIMIT

    def _close_round(self, outcome: RoundOutcome) -> RoundOutcome:
        """Records a complete round. The first one, which reads the prompt, stays out of the history."""
        if len(self.tokens) - len(outcome.tokens) > len(self.request.prompt):
            self.recent.append(PastRound(outcome.drafted, outcome.depth, outcome.accepted))
        self.last, self.under_way = outcome, outcome.finished is None
        return outcome
