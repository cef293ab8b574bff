"""The requests of an environment, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.tree.rounds import Request

Requests = Sequence[Request] | Callable[[np.random.Generator], Request]
"""a list, which is shuffled for every pass, or a function that draws the next request"""

_FUNCTION_DRAWS = 100  # calls of a function before the search for a request with a round is given up


class RequestQueue:
    """Draws one request after another.

    Args:
        requests: a list or a function.

    Raises:
        LimitError: the list is empty.
    """

    def __init__(self, requests: Requests) -> None:
        if not callable(requests) and not requests:
            raise LimitError("Expected one request or more; got an empty list.")
        self.requests = requests
        self._order: list[int] = []

    @property
    def draws(self) -> int:
        """The number of draws that contain every request of a list, or a fixed number for a function."""
        # A list takes at most the rest of one pass and a whole new one.
        return _FUNCTION_DRAWS if callable(self.requests) else 2 * len(self.requests)

    def restart(self) -> None:
        """Begins a new pass through the list."""
        self._order = []

    def draw(self, generator: np.random.Generator) -> Request:
        """Returns the next request. A list is shuffled again after every pass."""
        if callable(self.requests):
            return self.requests(generator)
        if not self._order:
            self._order = generator.permutation(len(self.requests)).tolist()
        return self.requests[self._order.pop()]

    def pick(self, choice: object) -> Request:
        """Returns a request that is given itself, or by its index in the list.

        Raises:
            ParameterError: the choice is neither.
        """
        if isinstance(choice, Request):
            return choice
        if callable(self.requests) or not isinstance(choice, int | np.integer):
            raise ParameterError(f"Expected a request, or its index in a list of them; got {choice!r}.")
        last = len(self.requests) - 1
        if not 0 <= choice <= last:
            raise ParameterError(f"Expected the index of a request, within 0 and {last}; got {choice}.")
        return self.requests[int(choice)]
