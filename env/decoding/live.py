"""Rounds on real models."""

from __future__ import annotations

import numpy as np
import torch

from specgym.env.common.arrays import IntArray
from specgym.env.decoding.learned_costs import LearnedCosts
from specgym.env.decoding.session import DecodingSession
from specgym.env.drafts.base import Draft
from specgym.env.drafts.merged import MergedDraft
from specgym.env.kernels.transfer import to_device_async
from specgym.env.models.target import TargetModel
from specgym.env.tree.growth import Expand, grow_tree
from specgym.env.tree.observation import ROOT_CHILDREN, Costs, Observation
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request, RoundOutcome, RoundSeconds, Stopwatch
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import TokenTree

_NO_NODES: IntArray = np.empty(0, np.int64)


class LiveDecoder(DecodingSession):
    """Tree speculative decoding of one text at a time.

    Between rounds the target's cache holds every committed token but the last one, the root of the next tree.

    Args:
        target: the model whose output is wanted.
        draft: the one that guesses; prompt lookup joins it as the parameters of a round say.
        costs: what observations say of the machine; nothing if None. `LearnedCosts` learn from the rounds.

    Attributes:
        tree: the tree that the last round verified; only a root after `start`.
        accepted: nodes of it that were committed, `int64[accepted]`.
    """

    def __init__(self, target: TargetModel, draft: Draft, costs: Costs | None = None) -> None:
        super().__init__(target.context_limit, target.end_tokens)
        self.target, self.draft, self.costs = target, draft, costs
        self.merged = MergedDraft(draft)
        self.tree, self.accepted = TokenTree(0), _NO_NODES

    @torch.inference_mode()
    def start(self, request: Request) -> RoundOutcome:
        """Reads the prompt and commits the first token, which needs no draft.

        Raises:
            LimitError: the prompt leaves no room in the target's context.
            NumericalError: the target returned NaN or infinite logits.
        """
        self._open(request)
        self.chooser = TokenChooser(request.sampling, self.target.vocabulary, self.target.device)
        self.target.cache.reset()
        self.target.show_features(self.draft.feature_layers)
        self.merged.start(self.chooser)
        seconds, watch = RoundSeconds(), Stopwatch()
        tree = TokenTree(request.prompt[-1])
        choices = self._verify(tree, request.prompt, seconds, watch)
        committed = self._take(choices.tolist())
        self.merged.commit([*request.prompt, *committed], self.target.features, _NO_NODES)
        seconds.commit = watch.lap()
        return self._outcome(committed, tree, _NO_NODES, seconds)

    def observe(self, draft: bool = False) -> Observation:
        """What a controller may see now; at the end of a text, what it has come to.

        Args:
            draft: whether to ask the draft model about the root, once a round (see `Decoder.observe`).

        Raises:
            RuntimeError: there is no text, or it was left by an error.
            NumericalError: the draft model returned NaN; the text cannot go on.
        """
        if self.last.finished is None:
            self._check_under_way()
        root = self._look_ahead() if draft and self.under_way else ()
        return self._observation(root, self.merged.lookup.at_root(), self.costs)

    @torch.inference_mode()
    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """Drafts a tree, verifies it and commits the accepted path and the target's own next token.

        Raises:
            RuntimeError: there is no text under way.
            ParameterError: more children a node than an observation of the draft left room for (`LOOK_AHEAD`).
            NumericalError: a model returned NaN or infinite logits; the text cannot go on.
        """
        self._check_under_way()
        expand = self.merged.expander(parameters)
        self.under_way = False  # until the round is whole
        seconds, watch = self.ahead, Stopwatch()
        prefix = self.target.cache.length
        tree, nodes = self._draft(parameters.capped(self._deepest()), expand, seconds)
        work = tuple(self.merged.level_rows), self.merged.lookup_nodes
        seconds.draft += watch.lap()
        choices = self._verify(tree, self.tokens[-1:], seconds, watch)
        path = tree.accepted_path(choices)
        committed = self._take([*tree.token[path[1:]].tolist(), int(choices[path[-1]])])
        accepted = path[1 : len(committed) + 1]
        path = path[: len(committed)]  # shorter only where the text ended within the path
        self.target.cache.keep_path(prefix, path)
        features = self.target.features
        if features is not None:
            # Not by [path]: torch takes twice as long to make out what an array of NumPy's asks for.
            features = features.index_select(0, to_device_async(path, features.device))
        self.merged.commit(committed, features, nodes[path[1:]])
        seconds.commit = watch.lap()
        outcome = self._outcome(committed, tree, accepted, seconds, work)
        if isinstance(self.costs, LearnedCosts):
            self.costs.note(outcome)
        return outcome

    @torch.inference_mode()
    def _look_ahead(self) -> tuple[float, ...]:
        """The draft model's opinion of the root, on the coming round's account."""
        self.under_way = False  # until the forward is whole
        before, watch = self.merged.forward_seconds, Stopwatch()
        found = self.merged.look_ahead(self.tokens[-1])
        self.ahead.draft += watch.lap()
        self.ahead.draft_forward += self.merged.forward_seconds - before
        self.under_way = True
        return tuple(found[:ROOT_CHILDREN].tolist())

    def _draft(
        self, parameters: TreeParameters, expand: Expand[TokenTree], seconds: RoundSeconds
    ) -> tuple[TokenTree, IntArray]:
        """The tree to verify, and which node of the grown tree each of its nodes was."""
        before = self.merged.forward_seconds
        grown = grow_tree(self.tokens[-1], parameters, expand)
        seconds.draft_forward += self.merged.forward_seconds - before
        nodes = grown.likeliest(parameters.node_budget)
        return (grown if len(nodes) == len(grown) else grown.select(nodes)), nodes

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

    def _outcome(
        self,
        tokens: list[int],
        tree: TokenTree,
        accepted: IntArray,
        seconds: RoundSeconds,
        work: tuple[tuple[int, ...], int] = ((), 0),
    ) -> RoundOutcome:
        """A round that is whole; `work` is what the draft model and lookup were asked."""
        self.tree, self.accepted = tree, accepted
        self.ahead = RoundSeconds()  # of the next round, before it is chosen
        return self._close_round(
            RoundOutcome(
                tuple(tokens),
                drafted=len(tree) - 1,
                depth=int(tree.depth.max()),
                accepted=len(accepted),
                drafted_lookup=int(tree.from_lookup.sum()),
                accepted_lookup=int(tree.from_lookup[accepted].sum()),
                level_rows=work[0],
                lookup_nodes=work[1],
                finished=self._finish_reason(),
                seconds=seconds,
            )
        )
