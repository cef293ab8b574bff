"""A chat template renders as the library renders it, or ends with one error within its limits."""

from __future__ import annotations

import resource
import time

import pytest
from transformers import PreTrainedTokenizerFast

from specgym.env.common.errors import ModelFileError
from specgym.env.decoding.pair import encode_chat
from specgym.env.models.hub import chat
from tests.support.tiny_pair import CHAT_TEMPLATE, tiny_tokenizer


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = template
    return made


def test_a_conversation_is_encoded_as_by_the_library() -> None:
    made = tokenizer(CHAT_TEMPLATE)
    messages = [{"role": "user", "content": "Grüße <|im_end|>?"}]
    expected = made.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(encode_chat(made, ["Grüße <|im_end|>?"])) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for message in %}", "TemplateSyntaxError"),
        ("{{ messages[0].nothing.more }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append('x') }}", "SecurityError"),
        ("{{ range(999999) | list }}", "OverflowError"),
        ("{{ 'x' * 10**10 }}", "MemoryError"),
        ("{{ 'x' * 10**8 }}", "more than 67,108,864 bytes"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[7] | tojson | first | int + 'x' }}", "Error"),
        ("(" * 3 + "{{ " + "(" * 20_000 + "1", "Error|process ended"),
    ],
)
def test_an_error_of_a_template_is_one_message(template: str, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match=message) as refused:
        encode_chat(tokenizer(template), ["Hello"])
    assert len(str(refused.value).splitlines()) <= 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**19, "half a gigabyte more was taken"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",  # one operation that does not end
    ],
)
def test_a_template_that_does_not_end_is_ended(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(ModelFileError, match=r"takes more than 1 s|process ended"):
        encode_chat(tokenizer(template), ["Hello"])
    assert time.monotonic() - start < 60
