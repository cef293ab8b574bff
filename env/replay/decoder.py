"""Rounds on recordings: the outcome of every choice, without a model, and its time by a latency profile.

The target's text does not depend on the controller, and a round's tree depends on the text before it and on the tree
parameters alone. So a recorded text answers every round that its trace covers exactly, and refuses every other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from specgym.env.common.arrays import IntArray
from specgym.env.common.errors import UnrecordedError
from specgym.env.decoding.session import DecodingSession
from specgym.env.drafts.calibrator import Calibrator
from specgym.env.drafts.merged import MergedDraft
from specgym.env.latency.costs import RoundCosts
from specgym.env.latency.latency_profile import LatencyProfile
from specgym.env.replay.traces.recorded_trees import RecordedDraft
from specgym.env.replay.traces.records import TraceHeader, TraceText
from specgym.env.replay.traces.whole_text_lookup import WholeTextLookup
from specgym.env.tree.growth import grow_tree
from specgym.env.tree.observation import ROOT_CHILDREN, Observation
from specgym.env.tree.parameters import TreeParameters
from specgym.env.tree.rounds import Request, RoundOutcome, RoundSeconds
from specgym.env.tree.sampling import SamplingSettings
from specgym.env.tree.tree import TokenTree


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """What comes of a choice at a position, wherever the round before it began."""

    drafted: int = 0
    depth: int = 0
    accepted: int = 0
    drafted_lookup: int = 0
    accepted_lookup: int = 0
    asked: bool = False
    """whether the draft model was asked"""
    deeper_rows: tuple[int, ...] = ()
    """rows of each draft forward below the root"""
    lookup_nodes: int = 0
    """nodes that prompt lookup was asked about"""
    kept: int = 0
    """accepted nodes that need no further forward of the draft model"""


class _Drafting(MergedDraft):
    """Drafting from a recording, at any position of its text."""

    def __init__(self, text: TraceText, model: RecordedDraft) -> None:
        super().__init__(model)
        self.recorded, self.hindsight = model, WholeTextLookup(text.tokens)
        self.lookup = self.hindsight
        self.greedy = text.settings.greedy

    def seek(self, position: int) -> None:
        """Goes to where the token at `position` is the root."""
        self.length = position + 1
        self.hindsight.seek(position + 1)
        self.recorded.seek(position)
        self._new_round()


class TextReplay:
    """A recorded text and the outcome of every choice along it, remembered once it was asked for.

    Args:
        text: the text.
        header: of its trace.
    """

    def __init__(self, text: TraceText, header: TraceHeader) -> None:
        self.text, self.header = text, header
        calibrator = None if header.calibrator is None else Calibrator.of(header.calibrator)
        limit = header.context_limits[1]
        model = RecordedDraft(text.guesses, header.draft_kind, calibrator, limit)
        self.drafting = _Drafting(text, model)
        self.facts: dict[tuple[int, TreeParameters], RoundFacts] = {}
        self.roots: dict[int, tuple[float, ...]] = {}
        self.matches: dict[int, tuple[int, float]] = {}

    def outcome(self, position: int, parameters: TreeParameters) -> RoundFacts:
        """What comes of a round whose root is the token at `position`.

        Raises:
            UnrecordedError: the trace does not cover the tree.
        """
        key = (position, parameters)
        found = self.facts.get(key)
        if found is None:
            found = self.facts[key] = self._play(position, parameters)
        return found

    def tree(self, position: int, parameters: TreeParameters) -> tuple[TokenTree, IntArray]:
        """The tree that is verified, and which node of the grown tree each of its nodes was. Raises as `outcome`."""
        self.drafting.seek(position)
        grown = grow_tree(self.text.tokens[position], parameters, self.drafting.expander(parameters))
        nodes = grown.likeliest(parameters.node_budget)
        return grown.select(nodes), nodes

    def choices(self, position: int, tree: TokenTree) -> IntArray:
        """The target's token after each node, `int64[nodes]`; -1 off its path and past the text's end."""
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

    def root(self, position: int) -> tuple[float, ...]:
        """The draft model's opinion of the root there, see `Observation.root_log_probs`. Raises `UnrecordedError`."""
        if position not in self.roots:
            self.drafting.seek(position)
            found = self.drafting.look_ahead(self.text.tokens[position])
            self.roots[position] = tuple(found[:ROOT_CHILDREN].tolist())
        return self.roots[position]

    def match(self, position: int) -> tuple[int, float]:
        """Prompt lookup's longest match there and how likely it goes on, see `Observation.lookup_match`."""
        if position not in self.matches:
            self.drafting.hindsight.seek(position + 1)
            self.matches[position] = self.drafting.lookup.at_root()
        return self.matches[position]

    def _play(self, position: int, parameters: TreeParameters) -> RoundFacts:
        tree, nodes = self.tree(position, parameters)
        path = tree.accepted_path(self.choices(position, tree))[1:]
        rows = self.drafting.level_rows
        return RoundFacts(
            drafted=len(tree) - 1,
            depth=int(tree.depth.max()),
            accepted=len(path),
            drafted_lookup=int(tree.from_lookup.sum()),
            accepted_lookup=int(tree.from_lookup[path].sum()),
            asked=bool(rows),
            deeper_rows=tuple(rows[1:]),
            lookup_nodes=self.drafting.lookup_nodes,
            kept=self.drafting.recorded.kept(nodes[path]),
        )


class ReplayDecoder(DecodingSession):
    """Replays the texts of a trace; whoever drives it cannot tell it from a `LiveDecoder`.

    Reading a prompt takes no time here: latency profiles are of rounds.

    Args:
        texts: the texts that may be asked for.
        header: of their trace.
        profile: what rounds take.
    """

    def __init__(self, texts: Iterable[TraceText], header: TraceHeader, profile: LatencyProfile) -> None:
        super().__init__(header.context_limits[0], frozenset(header.end_tokens))
        self.header, self.profile = header, profile
        self.texts = {(text.tokens[: text.prompt], text.settings): text for text in texts}
        self.replays: dict[tuple[tuple[int, ...], SamplingSettings], TextReplay] = {}

    def start(self, request: Request) -> RoundOutcome:
        """Begins a recorded text with its first token.

        Raises:
            UnrecordedError: the trace has no such text, or only its beginning.
        """
        key = (request.prompt, request.sampling)
        text = self.texts.get(key)
        if text is None:
            raise UnrecordedError(
                f"The trace holds no text for this prompt of {len(request.prompt)} tokens with {request.sampling}. "
                "Record it with scripts.record, or ask for a text of the trace."
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
        self.owed, self.observed, self.root_position = 0, False, -1
        committed = self._take([text.tokens[text.prompt]])
        self.owed = len(self.tokens) - (self.header.draft_kind == "feature")
        return self._close_round(RoundOutcome(tuple(committed), finished=self._finish_reason()))

    def observe(self, draft: bool = False) -> Observation:
        """What a controller may see now, see `Decoder.observe`.

        Raises:
            RuntimeError: there is no text.
            UnrecordedError: the trace holds no draft's opinion here.
        """
        if self.last.finished is None:
            self._check_under_way()
        position = len(self.tokens) - 1
        root: tuple[float, ...] = ()
        if draft and self.under_way:
            root = self.replay.root(position)
            self.observed = self.observed or bool(root)
        return self._observation(root, self.replay.match(position), self.costs)

    def round(self, parameters: TreeParameters) -> RoundOutcome:
        """The round that these parameters bring about.

        Raises:
            RuntimeError: there is no text under way.
            UnrecordedError: the trace does not cover the tree.
        """
        self._check_under_way()
        parameters = parameters.capped(self._deepest())
        position = len(self.tokens) - 1
        facts = self.replay.outcome(position, parameters)
        rows: tuple[int, ...] = ()
        if facts.asked or self.observed:
            rows, self.owed = (self.owed, *facts.deeper_rows), 0
        took = self.costs.round_seconds(position, rows, 1 + facts.drafted, facts.lookup_nodes)
        committed = self._take(list(self.replay.text.tokens[position + 1 : position + 2 + facts.accepted]))
        self.owed += len(committed) - facts.kept
        self.parameters, self.root_position, self.observed = parameters, position, False
        return self._close_round(
            RoundOutcome(
                tuple(committed),
                drafted=facts.drafted,
                depth=facts.depth,
                accepted=facts.accepted,
                drafted_lookup=facts.drafted_lookup,
                accepted_lookup=facts.accepted_lookup,
                level_rows=rows,
                lookup_nodes=facts.lookup_nodes,
                finished=self._finish_reason(),
                seconds=RoundSeconds(verify=took),
            )
        )

    def plain_seconds(self) -> float:
        """What a plain round would take at this root [s]."""
        return self.costs.plain_seconds(len(self.tokens) - 1)

    @property
    def tree(self) -> TokenTree:
        """The tree that the last round verified; only a root, the prompt's last token, after `start`."""
        if self.root_position < 0:
            return TokenTree(self.request.prompt[-1])
        return self.replay.tree(self.root_position, self.parameters)[0]

    @property
    def accepted(self) -> IntArray:
        """Nodes of it that were committed, `int64[accepted]`."""
        tree = self.tree
        if self.root_position < 0:
            return np.empty(0, np.int64)
        return tree.accepted_path(self.replay.choices(self.root_position, tree))[1:]
