"""Draws the tree of a round, as text for a terminal or as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specgym.env.common.arrays import FloatArray, IntArray
from specgym.env.tree.rounds import RoundOutcome
from specgym.env.tree.tree import TokenTree

_COLOURS = {"root": "#4c4c4c", "accepted": "#2a9d4a", "lookup": "#e9a23b", "model": "#9db4d6"}
_LONGEST_NAME = 14
_MOST_NAMES = 48  # more do not fit into the picture


class Tokenizer(Protocol):
    """The part of a tokenizer that drawing needs."""

    def decode(self, token_ids: list[int]) -> str:
        """Returns the text of tokens."""


def token_names(tokenizer: Tokenizer | None) -> Callable[[int], str]:
    """Returns a function that names tokens: by their text in quotation marks, or without a tokenizer by their ids."""
    if tokenizer is None:
        return lambda token: f"#{token}"
    return lambda token: repr(tokenizer.decode([token]))


def draw_text(tree: TokenTree, accepted: IntArray, outcome: RoundOutcome, name: Callable[[int], str]) -> str:
    """Draws the tree as lines of text: each node with its token, its probability given its parent and its reach.

    Args:
        tree: the tree that was verified.
        accepted: its nodes that were committed, `int64[accepted]`.
        outcome: the outcome of the round.
        name: returns the name of a token.
    """
    lines = [_headline(outcome) + "   (* accepted, ~ by lookup alone)", name(int(tree.token[0]))]
    committed, reach, probability = set(accepted.tolist()), tree.reach, np.exp(tree.log_prob)
    for node, indent in _walk(tree):
        marks = ("*" if node in committed else " ") + ("~" if tree.from_lookup[node] else " ")
        lines.append(f"{indent}{marks}{name(int(tree.token[node]))}  p={probability[node]:.2f} reach={reach[node]:.3f}")
    lines += [f"+ {name(token)}  the target's own" for token in outcome.tokens[len(accepted) :]]
    return "\n".join(lines) + "\n"


def _headline(outcome: RoundOutcome) -> str:
    end = f", {outcome.finished.value}" if outcome.finished else ""
    return (
        f"{outcome.drafted} nodes to depth {outcome.depth}: {outcome.accepted} accepted, "
        f"{len(outcome.tokens)} committed{end}"
    )


def _walk(tree: TokenTree, node: int = 0, indent: str = "") -> Iterator[tuple[int, str]]:
    """Yields every node below `node`, depth first, with the branches to draw in front of it."""
    children = np.flatnonzero(tree.parent == node).tolist()
    for child in children:
        last = child == children[-1]
        yield child, indent + ("└─" if last else "├─")
        yield from _walk(tree, child, indent + ("   " if last else "│  "))


def draw_image(
    tree: TokenTree, accepted: IntArray, outcome: RoundOutcome, name: Callable[[int], str]
) -> npt.NDArray[np.uint8]:
    """Draws the tree as a picture, `uint8[500, 900, 3]`: depth from left to right, nodes as large as their reach.

    Arguments as for `draw_text`.
    """
    figure = Figure(figsize=(9, 5), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.9))
    axes.set_axis_off()
    axes.set_title(_headline(outcome) + "   (green: accepted, orange: by lookup alone)", fontsize=9)
    height, committed = _heights(tree), {0, *accepted.tolist()}
    for node in range(1, len(tree)):
        ends = [int(tree.parent[node]), node]
        colour, width = (_COLOURS["accepted"], 3) if node in committed else (_COLOURS["model"], 1)
        axes.plot(tree.depth[ends], height[ends], color=colour, linewidth=width, zorder=1)
    kinds = np.where(tree.from_lookup, "lookup", "model").tolist()
    kinds = ["root", *("accepted" if node in committed else kinds[node] for node in range(1, len(tree)))]
    axes.scatter(tree.depth, height, s=30 + 170 * tree.reach, c=[_COLOURS[kind] for kind in kinds], zorder=2)
    for node in range(len(tree)) if len(tree) <= _MOST_NAMES else sorted(committed):
        text, at = name(int(tree.token[node]))[:_LONGEST_NAME], (tree.depth[node], height[node])
        axes.annotate(text, at, (6, 5), textcoords="offset points", fontsize=7, parse_math=False)
    axes.margins(0.08)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # tokens come in every script
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[:, :, :3].copy()


def _heights(tree: TokenTree) -> FloatArray:
    """Returns the height of each node: leaves one below the other, all others in the middle of their children."""
    height = np.zeros(len(tree))
    parents = set(tree.parent.tolist())
    leaves = [node for node in [0, *(node for node, _ in _walk(tree))] if node not in parents]
    height[leaves] = -np.arange(len(leaves))
    for node in reversed(range(len(tree))):
        if node in parents:
            height[node] = height[tree.parent == node].mean()
    return height
