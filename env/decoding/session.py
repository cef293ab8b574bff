"""What live decoding and replay share: the text under way, its limit, its rounds, and what a controller sees of it."""

from __future__ import annotations

from collections import deque

from specgym.env.tree.observation import WINDOW, Costs, Observation, PastRound
from specgym.env.tree.rounds import FinishReason, Request, RoundOutcome, check_fits


class DecodingSession:
    """A request, the text so far and the rounds that made it.

    Args:
        context_limit: longest text that the target reads [tokens].
        end_tokens: tokens that end a text.

    Attributes:
        request: the request that was started last.
        tokens: prompt and text so far [token ids].
        last: the last round.
        under_way: whether there is a text that can go on.
    """

    def __init__(self, context_limit: int, end_tokens: frozenset[int]) -> None:
        self.context_limit, self.end_tokens = context_limit, end_tokens
        self.request: Request
        self.tokens: list[int] = []
        self.last = RoundOutcome(())
        self.under_way = False

    def _open(self, request: Request) -> None:
        """Begins a text; nothing is under way until its first round is whole.

        Raises:
            LimitError: the prompt leaves no room in the target's context.
        """
        check_fits(len(request.prompt), self.context_limit)
        self.request, self.tokens = request, list(request.prompt)
        self.limit = min(len(request.prompt) + request.max_new_tokens, self.context_limit)
        self.recent: deque[PastRound] = deque(maxlen=WINDOW)
        self.last = RoundOutcome(())
        self.under_way = False

    def _check_under_way(self) -> None:
        if not self.under_way:
            raise RuntimeError("No text is under way: call start() with a request first.")

    def _deepest(self) -> int:
        """Most draft tokens on a path: the target adds one of its own, and the limit may not be overshot."""
        return max(self.limit - len(self.tokens) - 1, 0)

    def _observation(self, root: tuple[float, ...], match: tuple[int, float], costs: Costs | None) -> Observation:
        """What a controller may see; `root` and `match` are what draft model and prompt lookup say of the root."""
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
        """Adds tokens to the text, up to the first one that ends it; returns those added."""
        if not self.request.ignore_end:
            ends = [index for index, token in enumerate(tokens) if token in self.end_tokens]
            tokens = tokens[: ends[0] + 1] if ends else tokens
        self.tokens.extend(tokens)
        return tokens

    def _finish_reason(self) -> FinishReason | None:
        if not self.request.ignore_end and self.tokens[-1] in self.end_tokens:
            return FinishReason.END_OF_SEQUENCE
        if len(self.tokens) < self.limit:
            return None
        asked = len(self.request.prompt) + self.request.max_new_tokens
        return FinishReason.TOKEN_LIMIT if len(self.tokens) == asked else FinishReason.CONTEXT_LIMIT

    def _close_round(self, outcome: RoundOutcome) -> RoundOutcome:
        """Takes note of a round that is whole; the first one, which reads the prompt, is no part of the history."""
        if len(self.tokens) - len(outcome.tokens) > len(self.request.prompt):
            self.recent.append(PastRound(outcome.drafted, outcome.depth, outcome.accepted))
        self.last, self.under_way = outcome, outcome.finished is None
        return outcome
