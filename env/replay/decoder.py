"""Rounds on recordings: the outcome of every choice without a model, and its time by a latency profile.

The target's text does not depend on the controller. A round's tree depends only on the text before it and on the tree
parameters. So a recorded text answers exactly every round that its trace covers, and refuses every other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, cached_property, lru_cache

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import UnrecordedError
from specgym.env.decoding.session import DecodingSession
from specgym.env.drafts.merged import LOOK_AHEAD, MergedDraft
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.tables.growing import TreeGrower
from specgym.env.replay.tables.player import unread_after
from specgym.env.replay.tables.trace_table import TraceTable
from specgym.env.replay.traces.recorded_trees import RecordedDraft, WholeTextLookup
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.tree.growth import grow_tree
from specgym.env.tree.observation import ROOT_CHILDREN, Observation
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request, RoundOutcome, RoundSeconds
from specgym.env.tree.sampling import SamplingSettings
from specgym.env.tree.tree import NO_NODES, TokenTree

_KEPT_OUTCOMES = 1024  # of a text: a controller's own ones, not those of every choice


class _RecordedMergedDraft(MergedDraft):
    """Drafts from a recording, at any position of its text."""

    def __init__(self, text: TraceText, model: RecordedDraft, lookup: WholeTextLookup) -> None:
        super().__init__(model)
        self.recorded = model
        self.lookup = self.whole_text = lookup
        self.greedy = text.settings.greedy

    def seek(self, position: int) -> None:
        """Makes the token at `position` the root."""
        self.length = position + 1
        self.whole_text.seek(position + 1)
        self.recorded.seek(position)
        self._new_round()


class TextReplay:
    """A recorded text and its rounds. The latest ones are kept.

    Args:
        text: the text.
        header: of its trace.

    Attributes:
        outcome: `outcome(position, parameters)` is the outcome of a choice, and how many accepted nodes the draft model
            need not read again.
        root: `root(position)` are the draft model's guesses, see `Observation.root_log_probs`.
        match: `match(position)` is prompt lookup's longest match, see `Observation.lookup_match`.
    """

    def __init__(self, text: TraceText, header: TraceHeader) -> None:
        self.text, self.header = text, header
        self.table = TraceTable([text], header)
        self.grower = TreeGrower.of(self.table)
        self.outcome = lru_cache(_KEPT_OUTCOMES)(self._outcome)
        self.root = cache(self._root)
        self.match = cache(self.grower.match if self.grower else self._match)

    @cached_property
    def draft(self) -> _RecordedMergedDraft:
        """The draft, at any position of the text."""
        limit = self.header.context_limits[1]
        model = RecordedDraft(self.table.trees, self.header.draft_kind, self.table.calibrator, limit)
        return _RecordedMergedDraft(self.text, model, self.table.lookups[0])

    def tree(self, position: int, parameters: TreeParameters) -> tuple[TokenTree, IntArray]:
        """Returns the verified tree, and which node of the grown tree each of its nodes was. Raises as `outcome`."""
        self.draft.seek(position)
        grown = grow_tree(self.text.tokens[position], parameters, self.draft.expander(parameters))
        nodes = grown.likeliest(parameters.node_budget)
        return grown.select(nodes), nodes

    def choices(self, position: int, tree: TokenTree) -> IntArray:
        """Returns the target's token after each node, `int64[nodes]`; -1 off its path and past the text's end."""
        tokens = self.text.tokens
        choices = np.full(len(tree), -1, np.int64)
        node = 0
        for depth, token in enumerate(tokens[position + 1 : position + 2 + int(tree.depth.max())]):
            choices[node] = token
            right = np.flatnonzero((tree.parent == node) & (tree.token == token))
            if not len(right):
                break
            node = int(right[0])
            assert tree.depth[node] == depth + 1, "a tree grows from its root"
        return choices

    def _root(self, position: int) -> tuple[float, ...]:
        """Returns the draft model's guesses there, see `Observation.root_log_probs`. Raises `UnrecordedError`."""
        trees, limit = self.table.trees, self.header.context_limits[1]
        row = int(trees.roots(np.array(position)))
        if row >= 0 and trees.columns >= LOOK_AHEAD and (limit is None or position < limit):
            return tuple(value for value in trees.log_probs[row, :ROOT_CHILDREN].tolist() if value > -np.inf)
        self.draft.seek(position)
        return tuple(self.draft.look_ahead(self.text.tokens[position])[:ROOT_CHILDREN].tolist())

    def _match(self, position: int) -> tuple[int, float]:
        """Returns prompt lookup's longest match there and how likely it goes on, see `Observation.lookup_match`."""
        self.draft.whole_text.seek(position + 1)
        return self.draft.lookup.at_root()

    def _outcome(self, position: int, parameters: TreeParameters) -> tuple[RoundOutcome, int]:
        """Returns the outcome of a round whose root is the token at `position`, whatever the rounds before.

        Its tokens may go on past an end token, and its first level has 0 rows.

        Raises:
            UnrecordedError: the trace does not cover the tree.
        """
        limit = self.header.context_limits[1]
        readable = limit is None or position + parameters.max_depth <= limit
        grown = self.grower.outcome(position, parameters) if self.grower and readable else None
        if grown is not None:
            (accepted, drafted, depth, asked, lookup_nodes, kept, *deeper), (drafted_lookup, accepted_lookup) = grown
            level_rows = (0, *filter(None, deeper)) if asked else ()
        else:
            tree, nodes = self.tree(position, parameters)
            path = tree.accepted_path(self.choices(position, tree))[1:]
            accepted, drafted, depth = len(path), len(tree) - 1, int(tree.depth.max())
            level_rows, lookup_nodes = tuple(self.draft.level_rows), self.draft.lookup_nodes
            kept = self.draft.recorded.kept(nodes[path])
            drafted_lookup, accepted_lookup = int(tree.from_lookup.sum()), int(tree.from_lookup[path].sum())
        outcome = RoundOutcome(
            self.text.tokens[position + 1 : position + 2 + accepted],
            drafted=drafted,
            depth=depth,
            accepted=accepted,
            drafted_lookup=drafted_lookup,
            accepted_lookup=accepted_lookup,
            level_rows=level_rows,
            lookup_nodes=lookup_nodes,
        )
        return outcome, kept


class _KeptCosts:
    """Costs in observations, computed once for each context."""

    def __init__(self, costs: RoundCosts) -> None:
        self.costs = costs
        self.level_cost, self.row_cost = cache(costs.level_cost), cache(costs.row_cost)
        self.plain_seconds = cache(costs.plain_seconds)


class ReplayDecoder(DecodingSession):
    """Replays the texts of a trace, with the same rounds and observations as a `LiveDecoder`.

    Reading a prompt takes no time here, because latency profiles hold times of rounds only.

    Args:
        texts: the texts that can be requested.
        header: of their trace.
        profile: of the machine.
    """

    def __init__(self, texts: Iterable[TraceText], header: TraceHeader, profile: LatencyProfile) -> None:
        super().__init__(header.context_limits[0], frozenset(header.end_tokens))
        self.header, self.profile = header, profile
        self._unit_costs = _KeptCosts(profile.greedy)
        self.texts = {(text.tokens[: text.prompt], text.settings): text for text in texts}
        self.replays: dict[tuple[tuple[int, ...], SamplingSettings], TextReplay] = {}

    def start(self, request: Request) -> RoundOutcome:
        """Begins a recorded text with its first token.

        Raises:
            UnrecordedError: the trace has no such text, or only its beginning.
        """
        if request.processors is not None:
            raise UnrecordedError("Traces hold texts without logits processors; this request has some. Leave them out.")
        key = (request.prompt, request.sampling)
        text = self.texts.get(key)
        if text is None:
            raise UnrecordedError(
                f"The trace holds no text for this prompt of {len(request.prompt)} tokens with {request.sampling}. "
                "Record it with specgym record, or request a text of the trace."
            )
        ended = text.tokens[-1] in self.header.end_tokens
        if request.ignore_end or (request.max_new_tokens > text.max_new_tokens and not ended):
            raise UnrecordedError(
                f"The trace holds {text.max_new_tokens} tokens of this text, up to its end; got "
                f"max_new_tokens={request.max_new_tokens}, ignore_end={request.ignore_end}."
            )
        if key not in self.replays:
            self.replays[key] = TextReplay(text, self.header)
        self.replay = self.replays[key]
        self._open(request)
        self.costs: RoundCosts = self.profile.costs(request.sampling.greedy)
        if self._unit_costs.costs is not self.costs:  # another mode, or a profile that was set since
            self._unit_costs = _KeptCosts(self.costs)
        self.observed, self.root_position = False, -1
        committed = self._take([text.tokens[text.prompt]])
        # Committed tokens that the draft has not read; a feature draft has no row for the first.
        self.unread = len(self.tokens) - (self.header.draft_kind == "feature")
        return self._close_round(RoundOutcome(tuple(committed), finished=self._finish_reason()))

    def observe(self, draft: bool = False) -> Observation:
        """Returns what a controller may see now, see `Decoder.observe`.

        Raises:
            RuntimeError: there is no text.
            UnrecordedError: the trace lacks the draft's guesses here.
        """
        if self.last.finished is None:
            self._check_under_way()
        position = len(self.tokens) - 1
        root = self.replay.root(position) if draft and self.under_way else ()
        self.observed |= bool(root)
        return self._observation(root, self.replay.match(position), self._unit_costs)

    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """Plays the round of these parameters.

        Raises:
            RuntimeError: there is no text under way.
            UnrecordedError: the trace does not cover the tree.
        """
        self._check_under_way()
        parameters = parameters.capped(self._deepest())
        position = len(self.tokens) - 1
        outcome, kept = self.replay.outcome(position, parameters)
        asked = bool(outcome.level_rows) or self.observed
        rows = (self.unread, *outcome.level_rows[1:]) if asked else ()
        took = self.costs.round_seconds(position, rows, 1 + outcome.drafted, outcome.lookup_nodes)
        committed = self._take(list(outcome.tokens))
        self.unread = unread_after(self.unread, asked, len(committed), kept)
        self.parameters, self.root_position, self.observed = parameters, position, False
        return self._close_round(
            RoundOutcome(
                tuple(committed),
                drafted=outcome.drafted,
                depth=outcome.depth,
                accepted=outcome.accepted,
                drafted_lookup=outcome.drafted_lookup,
                accepted_lookup=outcome.accepted_lookup,
                level_rows=rows,
                lookup_nodes=outcome.lookup_nodes,
                finished=self._finish_reason(),
                seconds=RoundSeconds(verify=took),
            )
        )

    def plain_seconds(self) -> float:
        """Returns the time of a plain round at this root [s]."""
        return self._unit_costs.plain_seconds(len(self.tokens) - 1)

    @property
    def tree(self) -> TokenTree:
        """The tree that the last round verified; only a root, the prompt's last token, after `start`."""
        if self.root_position < 0:
            return TokenTree(self.request.prompt[-1])
        return self.replay.tree(self.root_position, self.parameters)[0]

    @property
    def accepted(self) -> IntArray:
        """Nodes of the tree that were committed, `int64[accepted]`."""
        if self.root_position < 0:
            return NO_NODES
        tree = self.tree
        return tree.accepted_path(self.replay.choices(self.root_position, tree))[1:]
