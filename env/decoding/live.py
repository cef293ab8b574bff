"""Tree speculative decoding on real models: `LiveDecoder.round` is one round, from parameters to committed tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specgym.env.common.arrays import IntArray
from specgym.env.decoding.learned_costs import LearnedCosts
from specgym.env.decoding.session import DecodingSession
from specgym.env.drafts.base import Draft
from specgym.env.drafts.merged import MergedDraft
from specgym.env.kernels.moving import to_device_async
from specgym.env.models.target import TargetModel
from specgym.env.tree.growth import grow_tree
from specgym.env.tree.observation import ROOT_CHILDREN, Costs, Observation
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request, RoundOutcome, RoundSeconds, Stopwatch, check_known
from specgym.env.tree.sampling import TokenChooser
from specgym.env.tree.tree import NO_NODES, TokenTree


class LiveDecoder(DecodingSession):
    """Tree speculative decoding of one text at a time.

    The caches of target and draft hold one text. A decoder that takes turns with another one needs its own, from
    `ModelPair.decoder` or `fork`. Between rounds, the target's cache holds every committed token except the last one,
    the root of the next tree.

    Args:
        target: the model whose output is wanted.
        draft: the draft that proposes nodes. The parameters of a round may add prompt lookup.
        costs: costs that observations report; zeros if None. `LearnedCosts` learn from the rounds.

    Attributes:
        tree: the tree that the last round verified; only a root after `start`.
        accepted: nodes of `tree` that were committed, `int64[accepted]`.
    """

    def __init__(self, target: TargetModel, draft: Draft, costs: Costs | None = None) -> None:
        super().__init__(target.context_limit, target.end_tokens)
        self.target, self.draft, self.costs = target, draft, costs
        self.merged = MergedDraft(draft)
        self.tree, self.accepted = TokenTree(0), NO_NODES

    @torch.inference_mode()
    def start(self, request: Request) -> RoundOutcome:
        """Reads the prompt and commits the first token, which needs no draft.

        Raises:
            LimitError: the prompt leaves no room in the target's context, holds a token that the target lacks, or is
                longer than the target's dynamic rotation allows.
            NumericalError: the target returned NaN or infinite logits.
        """
        self._open(request)
        self.target.start()
        check_known(request.prompt, self.target.vocabulary)
        if self.target.rotation is not None:
            self.target.rotation.check_prompt(len(request.prompt))
        numbers = self.target.vocabulary, self.target.device
        self.chooser = TokenChooser(request.sampling, *numbers, request.processors, request.prompt)
        self.target.show_features(self.draft.feature_layers)
        self.merged.start(self.chooser)
        self._session = self.target.session = self.draft.session = object()
        seconds, watch = RoundSeconds(), Stopwatch()
        tree = TokenTree(request.prompt[-1])
        choices = self._verify(tree, request.prompt, seconds, watch)
        committed = self._take(choices.tolist())
        self.merged.commit([*request.prompt, *committed], self.target.features, NO_NODES)
        seconds.commit = watch.lap()
        outcome = RoundOutcome(tuple(committed), finished=self._finish_reason(), seconds=seconds)
        return self._complete(outcome, tree, NO_NODES)

    def observe(self, draft: bool = False) -> Observation:
        """Returns what a controller may see before the next round, or at the end of a text.

        Args:
            draft: whether to run the draft model on the root, at most once a round (see `Decoder.observe`).

        Raises:
            RuntimeError: there is no text, or an error ended it, or its models hold another one.
            NumericalError: the draft model returned NaN; the text cannot go on.
        """
        if self.last.finished is None:
            self._check_under_way()
        root = self._look_ahead() if draft and self.under_way else ()
        return self._observation(root, self.merged.lookup.at_root(), self.costs)

    @torch.inference_mode()
    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """Drafts a tree, verifies it, and commits the accepted path and the target's next token.

        Raises:
            RuntimeError: no text is under way, or the models hold another one.
            ParameterError: more children a node than the observation of the draft kept (`LOOK_AHEAD`).
            NumericalError: a model returned NaN or infinite logits; the text cannot go on.
        """
        self._check_under_way()
        expand = self.merged.expander(parameters)
        self.under_way = False  # until the round is complete
        seconds, watch = self.ahead, Stopwatch()

        # Draft: grow a tree, one draft forward a level, and keep its likeliest nodes.
        forward_seconds = self.merged.forward_seconds
        grown = grow_tree(self.tokens[-1], parameters.capped(self._deepest()), expand)
        seconds.draft_forward += self.merged.forward_seconds - forward_seconds
        kept = grown.likeliest(parameters.node_budget)  # [nodes], indices into the grown tree
        tree = grown if len(kept) == len(grown) else grown.select(kept)
        level_rows, lookup_nodes = tuple(self.merged.level_rows), self.merged.lookup_nodes
        seconds.draft += watch.lap()

        # Verify: one target forward over all nodes gives the target's token after each of them.
        prefix = self.target.cache.length
        choices = self._verify(tree, self.tokens[-1:], seconds, watch)  # [nodes]

        # Commit: the longest path of the target's own choices, and its choice after the path.
        path = tree.accepted_path(choices)  # [1 + accepted], the root first
        committed = self._take([*tree.token[path[1:]].tolist(), int(choices[path[-1]])])
        accepted = path[1 : len(committed) + 1]
        path = path[: len(committed)]  # shorter only if the text ended within the path
        self.target.cache.keep_path(prefix, path)
        features = self.target.features  # [nodes, width], or None
        if features is not None:
            # index_select instead of [path]: torch takes twice as long to parse an index that is a NumPy array.
            features = features.index_select(0, to_device_async(path, features.device))  # [committed, width]
        self.merged.commit(committed, features, kept[path[1:]])
        seconds.commit = watch.lap()

        outcome = RoundOutcome(
            tuple(committed),
            drafted=len(tree) - 1,
            depth=int(tree.depth.max()),
            accepted=len(accepted),
            drafted_lookup=int(tree.from_lookup.sum()),
            accepted_lookup=int(tree.from_lookup[accepted].sum()),
            level_rows=level_rows,
            lookup_nodes=lookup_nodes,
            finished=self._finish_reason(),
            seconds=seconds,
        )
        if isinstance(self.costs, LearnedCosts):
            self.costs.note(outcome)
        return self._complete(outcome, tree, accepted)

    @torch.inference_mode()
    def _look_ahead(self) -> tuple[float, ...]:
        """Runs the draft model on the root. The time belongs to the next round, which uses the result."""
        self.under_way = False  # until the forward is complete
        forward_seconds, watch = self.merged.forward_seconds, Stopwatch()
        log_probs = self.merged.look_ahead(self.tokens[-1])
        self.ahead.draft += watch.lap()
        self.ahead.draft_forward += self.merged.forward_seconds - forward_seconds
        self.under_way = True
        return tuple(log_probs[:ROOT_CHILDREN].tolist())

    def _check_under_way(self) -> None:
        super()._check_under_way()
        if self.target.session is not self._session or self.draft.session is not self._session:
            raise RuntimeError(
                "Another text was started in the caches of this decoder's models. Give each user a decoder of its own: "
                "`pair.decoder()`, or `LiveDecoder(target.fork(), draft.fork())`."
            )

    def _deepest(self) -> int:
        """See `DecodingSession._deepest`. A tree also ends where the target's rotation changes for all its rows."""
        deepest, rotation = super()._deepest(), self.target.rotation
        return deepest if rotation is None else min(deepest, rotation.room(len(self.tokens) - 1))

    def _verify(self, tree: TokenTree, chain: Sequence[int], seconds: RoundSeconds, watch: Stopwatch) -> IntArray:
        """The target's choice after each node, `int64[nodes]`. A tree that is only a root stands for `chain`'s end."""
        prefix = self.target.cache.length
        if len(tree) == 1:
            logits = self.target.extend(chain)  # [1, vocabulary]
            positions = [prefix + len(chain)]
        else:
            logits = self.target.extend_tree(tree.token, prefix + tree.depth, tree.ancestors)  # [nodes, vocabulary]
            positions = (prefix + 1 + tree.depth).tolist()
        seconds.verify_forward = watch.lap()
        choices = self.chooser.choose_path(logits, positions, tree, self.ends)
        seconds.verify = seconds.verify_forward + watch.lap()
        return choices

    def _complete(self, outcome: RoundOutcome, tree: TokenTree, accepted: IntArray) -> RoundOutcome:
        """Ends a round with its tree and its accepted nodes."""
        self.tree, self.accepted = tree, accepted
        self.ahead = RoundSeconds()  # time spent on the next round before its parameters are chosen
        return self._close_round(outcome)
