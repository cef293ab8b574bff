"""Arguments that `generate` drops before a custom function is called arrive here."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from specgym.controllers.custom_generate import speculative_generate
from specgym.env.common.errors import ParameterError
from tests.controllers.inside_generate.conftest import Compared
from tests.support.tiny_models import tiny_llama
from tests.support.tiny_pair import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class Heard(BaseStreamer):  # type: ignore[misc]  # transformers is not typed
    """Keeps what a streamer is given."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("limits", [{}, {"stop_strings": ["E"], "tokenizer": TOKENIZER}], ids=["long", "cut"])
def test_a_streamer_is_given_what_generate_gives(compared: Compared, limits: dict[str, Any]) -> None:
    theirs, ours = Heard(), Heard()
    compared.plain(streamer=theirs, **limits)
    compared.ours(streamer=ours, **limits)
    assert ours.calls == theirs.calls
    assert len(ours.calls) > 3


def test_a_reader_in_another_thread_does_not_wait(compared: Compared) -> None:
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=compared.ours, kwargs={"streamer": streamer})
    thread.start()
    heard = "".join(streamer)
    thread.join()
    assert heard == TOKENIZER.decode(compared.plain()[0, compared.prompt.shape[1] :])


@pytest.mark.parametrize("where", ["argument", "configuration"])
def test_stop_strings_find_the_tokenizer(compared: Compared, where: str) -> None:
    stop = TOKENIZER.decode(compared.plain()[0, 14:16])
    if where == "argument":
        output = compared.assert_same(stop_strings=[stop, "never"], tokenizer=TOKENIZER)
    else:
        compared.model.generation_config.stop_strings = [stop]
        try:
            output = compared.assert_same(tokenizer=TOKENIZER)
        finally:
            compared.model.generation_config.stop_strings = None
    assert output.shape[1] == 16


def test_stop_strings_without_a_tokenizer_are_refused(compared: Compared) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        compared.ours(stop_strings=["a"])


def test_an_assistant_is_the_draft(compared: Compared) -> None:
    rounds: list[Any] = []
    output = compared.ours(draft=None, assistant_model=compared.draft, on_tokens=rounds.append)
    assert output.tolist() == compared.plain().tolist()
    lookup: list[Any] = []
    compared.ours(draft=None, on_tokens=lookup.append)
    assert len(rounds) < len(lookup)


def test_two_drafts_and_an_assistant_of_another_vocabulary_are_refused(compared: Compared) -> None:
    with pytest.raises(ParameterError, match="got both"):
        compared.ours(assistant_model=compared.draft)
    tokenizers = {"tokenizer": TOKENIZER, "assistant_tokenizer": TOKENIZER}
    with pytest.raises(ParameterError, match="assistant_tokenizer"):
        compared.ours(draft=None, assistant_model=tiny_llama(), **tokenizers)


def test_a_partial_of_the_function_is_given_them_too(compared: Compared) -> None:
    heard = Heard()
    function = functools.partial(speculative_generate, draft="lookup")
    compared.plain(custom_generate=function, streamer=heard)
    assert heard.calls[-1] == "end"


def test_other_functions_are_called_as_before(compared: Compared) -> None:
    def other(model: Any, input_ids: torch.Tensor, mine: int = 0, **others: Any) -> list[str]:
        return [str(mine), *sorted(others)]

    arrived = compared.plain(custom_generate=other, mine=3, streamer=Heard(), tokenizer=TOKENIZER)
    assert arrived[0] == "3"
    assert not {"streamer", "tokenizer", "assistant_model"} & set(arrived)
