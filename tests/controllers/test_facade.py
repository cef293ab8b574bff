"""The facade answers as the loop does, and `import specgym` offers it."""

from __future__ import annotations

import pytest
import torch

import specgym
from specgym.controllers import custom_generate, facade
from specgym.controllers.controller import Controller
from specgym.controllers.registry import make_controller
from specgym.controllers.rules.phases import PHASE_1, StaticController
from specgym.controllers.run import run
from specgym.env.common.errors import LimitError, UnknownNameError
from specgym.env.decoding.pair import encode_chat
from specgym.env.tree.rounds import Request
from specgym.env.tree.sampling import SamplingSettings
from tests.support.tiny_pair import TinyFolders

QUESTION = "Say it again: ha ha ha"
TOKENS = 24


@pytest.fixture(scope="module")
def pair(folders: TinyFolders) -> facade.Pair:
    return specgym.load(str(folders.target), str(folders.draft), "float32")


def expected(pair: facade.Pair, prompt: tuple[int, ...], sampling: SamplingSettings) -> str:
    """The text of plain decoding."""
    generation = run(pair.decoder(), make_controller("autoregressive"), Request(prompt, TOKENS, sampling))
    return str(pair.tokenizer.decode(generation.tokens, skip_special_tokens=True))


def test_the_package_offers_the_facade() -> None:
    assert specgym.load is facade.load
    assert specgym.Pair is facade.Pair
    assert specgym.generate is custom_generate.speculative_generate
    with pytest.raises(AttributeError, match="no attribute 'loads'; it offers Pair, generate, load"):
        specgym.loads  # noqa: B018


@pytest.mark.parametrize("controller", ["goodput", StaticController(PHASE_1)], ids=["a name", "an object"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_returns_the_text_of_plain_decoding(
    pair: facade.Pair, controller: str | Controller, temperature: float
) -> None:
    text = pair.generate(QUESTION, controller, max_new_tokens=TOKENS, temperature=temperature, seed=3)
    sampling = SamplingSettings(temperature, seed=3)
    assert text == expected(pair, encode_chat(pair.tokenizer, [QUESTION]), sampling) != ""


def test_a_raw_text_is_continued_without_the_chat_template(pair: facade.Pair) -> None:
    text = pair.generate(QUESTION, raw=True, max_new_tokens=TOKENS)
    assert text == expected(pair, tuple(pair.tokenizer.encode(QUESTION)), SamplingSettings())
    assert text != pair.generate(QUESTION, max_new_tokens=TOKENS), "the test would be vacuous"


def test_an_empty_text_and_an_unknown_controller_are_refused(pair: facade.Pair) -> None:
    with pytest.raises(LimitError):
        pair.generate("")
    with pytest.raises(UnknownNameError, match="Did you mean history"):
        pair.generate(QUESTION, "histori")


def test_generate_follows_the_settings_that_come_with_the_target(
    pair: facade.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pair.generate(QUESTION, max_new_tokens=TOKENS)
    monkeypatch.setattr(pair.target.model.generation_config, "repetition_penalty", 1.5)
    text = pair.generate(QUESTION, max_new_tokens=TOKENS)
    with pair.target.lent() as model:
        prompt = torch.tensor([encode_chat(pair.tokenizer, [QUESTION])])
        theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, pad_token_id=0)
    assert text == pair.tokenizer.decode(theirs[0, prompt.shape[1] :], skip_special_tokens=True) != plain
