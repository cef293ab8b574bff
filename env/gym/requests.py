"""What an environment generates: requests in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.tree.rounds import Request

Requests = Sequence[Request] | Callable[[np.random.Generator], Request]
"""a list, gone through in random order again and again, or a function that draws the next request"""

_DRAWS = 100  # of a function, before it is given up to find a request that will do


class RequestQueue:
    """Draws one request after the other.

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
        """Draws after which every request of a list has come, or as many as are enough of a function."""
        return _DRAWS if callable(self.requests) else 2 * len(self.requests)  # what is left of an order, and one more

    def restart(self) -> None:
        """Begins a new order."""
        self._order = []

    def draw(self, generator: np.random.Generator) -> Request:
        """The next request. A list comes in a new order each time that all of it has come."""
        if callable(self.requests):
            return self.requests(generator)
        if not self._order:
            self._order = generator.permutation(len(self.requests)).tolist()
        return self.requests[self._order.pop()]

    def pick(self, wanted: object) -> Request:
        """The request itself, or that of an index in the list.

        Raises:
            ParameterError: it is neither.
        """
        if isinstance(wanted, Request):
            return wanted
        if callable(self.requests) or not isinstance(wanted, int | np.integer):
            raise ParameterError(f"Expected a request, or its index in a list of them; got {wanted!r}.")
        if not 0 <= wanted < len(self.requests):
            raise ParameterError(
                f"Expected the index of a request, within 0 and {len(self.requests) - 1}; got {wanted}."
            )
        return self.requests[int(wanted)]
