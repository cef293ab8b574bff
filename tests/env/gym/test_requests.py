"""The order of requests: the seed's, and every request of a list comes before one comes again."""

from __future__ import annotations

import numpy as np
import pytest

from specgym.env.common.errors import LimitError, ParameterError
from specgym.env.gym.requests import RequestQueue
from specgym.env.tree.rounds import Request

LIST = [Request((token,), 5) for token in range(1, 8)]


def drawn(queue: RequestQueue, seed: int, count: int) -> list[Request]:
    generator = np.random.default_rng(seed)
    return [queue.draw(generator) for _ in range(count)]


def test_a_list_is_drawn_completely_and_then_in_another_order() -> None:
    first, second = np.array_split(np.array([request.prompt[0] for request in drawn(RequestQueue(LIST), 0, 14)]), 2)
    assert sorted(first) == sorted(second) == list(range(1, 8))
    assert first.tolist() != second.tolist()


def test_the_seed_decides_the_order() -> None:
    assert drawn(RequestQueue(LIST), 3, 20) == drawn(RequestQueue(LIST), 3, 20)
    assert drawn(RequestQueue(LIST), 3, 7) != drawn(RequestQueue(LIST), 4, 7)


def test_a_restarted_queue_is_a_new_one() -> None:
    queue = RequestQueue(LIST)
    drawn(queue, 0, 3)
    queue.restart()
    assert drawn(queue, 1, 7) == drawn(RequestQueue(LIST), 1, 7)


def test_a_function_draws_from_the_generator_it_is_given() -> None:
    queue = RequestQueue(lambda generator: Request((int(generator.integers(1, 1000)),)))
    assert drawn(queue, 5, 4) == drawn(queue, 5, 4) != drawn(queue, 6, 4)


def test_a_request_is_picked_by_itself_or_by_its_index() -> None:
    queue = RequestQueue(LIST)
    assert queue.pick(2) == queue.pick(np.int64(2)) == LIST[2]
    assert queue.pick(Request((9,))) == Request((9,))


@pytest.mark.parametrize(
    ("wanted", "message"), [(7, "within 0 and 6; got 7"), (-1, "got -1"), ("first", "got 'first'"), (None, "got None")]
)
def test_an_invalid_choice_is_refused(wanted: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        RequestQueue(LIST).pick(wanted)
    with pytest.raises(ParameterError, match="index in a list"):
        RequestQueue(lambda generator: LIST[0]).pick(0)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(LimitError, match="one request or more; got an empty list"):
        RequestQueue([])


def test_its_number_of_draws_contains_every_request_of_a_list() -> None:
    for drawn_before in range(20):
        queue, generator = RequestQueue(LIST), np.random.default_rng(drawn_before)
        for _ in range(drawn_before):
            queue.draw(generator)
        assert {queue.draw(generator) for _ in range(queue.draws)} == set(LIST)
