"""Rounds on real models."""

from __future__ import annotations

import numpy as np
import torch

from env.drafts.base import Draft
from env.drafts.merged import MergedDraft
from env.growth import grow_tree
from env.models.target import TargetModel
from env.observation import Observation
from env.parameters import TreeParameters
from env.rounds import FinishReason, Request, RoundOutcome, RoundSeconds, Stopwatch, check_fits
from env.sampling import TokenChooser
from env.tree import IntArray, TokenTree

__all__ = ["LiveDecoder"]

_NO_NODES: IntArray = np.empty(0, np.int64)


class LiveDecoder:
    """Tree speculative decoding of one text at a time.

    Between rounds the target's cache holds every committed token but the last one, the root of the next tree.

    Args:
        target: the model whose output is wanted.
        draft: the one that guesses; prompt lookup joins it as the parameters of a round say.

    Attributes:
        tokens: prompt and text so far [token ids].
    """

    def __init__(self, target: TargetModel, draft: Draft) -> None:
        self.target, self.draft = target, draft
        self.merged = MergedDraft(draft)
        self.tokens: list[int] = []
        self.under_way = False

    @torch.inference_mode()
    def start(self, request: Request) -> RoundOutcome:
        """Reads the prompt and commits the first token, which needs no draft.

        Raises:
            LimitError: the prompt leaves no room in the target's context.
            NumericalError: the target returned NaN or infinite logits.
        """
        length, context = len(request.prompt), self.target.context_limit
        check_fits(length, context)
        self.request = request
        self.limit = min(length + request.max_new_tokens, context)
        self.tokens = list(request.prompt)
        self.last = RoundOutcome(())
        self.chooser = TokenChooser(request.sampling, self.target.vocabulary, self.target.device)
        self.under_way = False  # until a round is whole: after an error the caches are in between
        self.target.cache.reset()
        self.target.show_features(self.draft.feature_layers)
        self.merged.start(self.chooser)
        seconds, watch = RoundSeconds(), Stopwatch()
        choices = self._verify(TokenTree(0), request.prompt, seconds, watch)
        committed = self._take(choices.tolist())
        self.merged.commit([*request.prompt, *committed], self.target.features, _NO_NODES)
        seconds.commit = watch.lap()
        return self._outcome(committed, TokenTree(0), _NO_NODES, seconds)

    def observe(self) -> Observation:
        """What a controller may see now.

        Raises:
            RuntimeError: there is no text under way.
        """
        self._check_under_way()
        lookup_match, lookup_rate = self.merged.lookup.at_root()
        return Observation(
            position=len(self.tokens) - 1,
            generated=len(self.tokens) - len(self.request.prompt),
            remaining=self.limit - len(self.tokens),
            last_drafted=self.last.drafted,
            last_depth=self.last.depth,
            last_accepted=self.last.accepted,
            lookup_match=lookup_match,
            lookup_rate=lookup_rate,
        )

    @torch.inference_mode()
    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """Drafts a tree, verifies it and commits the accepted path and the target's own next token.

        Raises:
            RuntimeError: there is no text under way.
            NumericalError: a model returned NaN or infinite logits; the text cannot go on.
        """
        self._check_under_way()
        self.under_way = False  # until the round is whole
        seconds, watch = RoundSeconds(), Stopwatch()
        prefix = self.target.cache.length
        tree, nodes = self._draft(parameters.capped(self._deepest()), seconds)
        seconds.draft = watch.lap()
        choices = self._verify(tree, self.tokens[-1:], seconds, watch)
        path = tree.accepted_path(choices)
        committed = self._take([*tree.token[path[1:]].tolist(), int(choices[path[-1]])])
        accepted = path[1 : len(committed) + 1]
        path = path[: len(committed)]  # shorter only where the text ended within the path
        self.target.cache.keep_path(prefix, path)
        features = self.target.features
        if features is not None:
            features = features[path]
        self.merged.commit(committed, features, nodes[path[1:]])
        seconds.commit = watch.lap()
        return self._outcome(committed, tree, accepted, seconds)

    def _check_under_way(self) -> None:
        if not self.under_way:
            raise RuntimeError("No text is under way: call start() with a request first.")

    def _deepest(self) -> int:
        """Most draft tokens on a path: the target adds one of its own, and the limit may not be overshot."""
        return max(self.limit - len(self.tokens) - 1, 0)

    def _draft(self, parameters: TreeParameters, seconds: RoundSeconds) -> tuple[TokenTree, IntArray]:
        """The tree to verify, and which node of the grown tree each of its nodes was."""
        before = self.merged.forward_seconds
        grown = grow_tree(self.tokens[-1], parameters, self.merged.expander(parameters))
        seconds.draft_forward = self.merged.forward_seconds - before
        nodes = grown.likeliest(parameters.node_budget)
        return grown.select(nodes), nodes

    def _verify(
        self, tree: TokenTree, chain: tuple[int, ...] | list[int], seconds: RoundSeconds, watch: Stopwatch
    ) -> IntArray:
        """The target's choice after each node; a tree that is only a root is read as the end of `chain`."""
        prefix = self.target.cache.length
        if len(tree) == 1:
            logits = self.target.extend(chain)
            positions = [prefix + len(chain)]
        else:
            logits = self.target.extend_tree(tree.token, prefix + tree.depth, tree.ancestors)
            positions = (prefix + 1 + tree.depth).tolist()
        seconds.verify_forward = watch.lap()
        choices = self.chooser.choose(logits, positions)
        seconds.verify = seconds.verify_forward + watch.lap()
        return choices

    def _take(self, tokens: list[int]) -> list[int]:
        """Adds tokens to the text, up to the first one that ends it; returns those added."""
        if not self.request.ignore_end:
            ends = [index for index, token in enumerate(tokens) if token in self.target.end_tokens]
            tokens = tokens[: ends[0] + 1] if ends else tokens
        self.tokens.extend(tokens)
        return tokens

    def _finish_reason(self) -> FinishReason | None:
        if not self.request.ignore_end and self.tokens[-1] in self.target.end_tokens:
            return FinishReason.END_OF_SEQUENCE
        if len(self.tokens) < self.limit:
            return None
        asked = len(self.request.prompt) + self.request.max_new_tokens
        return FinishReason.TOKEN_LIMIT if len(self.tokens) == asked else FinishReason.CONTEXT_LIMIT

    def _outcome(self, tokens: list[int], tree: TokenTree, accepted: IntArray, seconds: RoundSeconds) -> RoundOutcome:
        finished = self._finish_reason()
        self.under_way = finished is None
        self.last = RoundOutcome(
            tuple(tokens),
            drafted=len(tree) - 1,
            depth=int(tree.depth.max()),
            accepted=len(accepted),
            drafted_lookup=int(tree.from_lookup.sum()),
            accepted_lookup=int(tree.from_lookup[accepted].sum()),
            finished=finished,
            seconds=seconds,
        )
        return self.last
