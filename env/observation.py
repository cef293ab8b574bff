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
