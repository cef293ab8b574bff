"""What a controller may see at the start of a round."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Observation"]


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of a request, free of charge: nothing here costs a forward."""

    position: int
    """absolute position of the root, the last committed token [tokens]"""
    generated: int
    """tokens generated so far [tokens]"""
    remaining: int
    """tokens that may still come before a limit is met [tokens]"""
    last_drafted: int = 0
    """nodes of the last round's tree, without the root; 0 before the first round [nodes]"""
    last_depth: int = 0
    """depth of the last round's tree [tokens]"""
    last_accepted: int = 0
    """draft tokens accepted in the last round [tokens]"""
    lookup_match: int = 0
    """longest earlier text, at most 16 tokens, that ends as the text does now; 0 if prompt lookup has none [tokens]"""
    lookup_rate: float = 0.0
    """how likely the token that followed it there comes next, by how lookup has fared in this text; 0 if there is none
    [probability]"""
