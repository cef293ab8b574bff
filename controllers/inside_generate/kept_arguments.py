"""Arguments that `generate` hands to its own decoding loops, but drops before it calls a custom function.

They are `streamer`, `tokenizer`, `assistant_model` and others. Without them the reader of a streamer waits for ever,
and stop strings find no tokenizer. transformers offers no other way to receive them than its method
`_extract_generation_mode_kwargs`. That method is wrapped here. The wrapper changes nothing for other functions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from transformers import GenerationMixin

_METHOD = "_extract_generation_mode_kwargs"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def keep_arguments(function: _Function) -> _Function:
    """Lets `generate` hand all its arguments to `function` when that is given as `custom_generate`.

    Args:
        function: a decoding function. A `functools.partial` of it counts as well.
    """
    original = getattr(GenerationMixin, _METHOD)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def extract(*arguments: Any, **named: Any) -> dict[str, Any]:
        given = signature.bind(*arguments, **named).arguments
        for_own_loops = original(**given | {"custom_generate": None, "kwargs": dict(given["kwargs"])})
        handed_over: dict[str, Any] = original(*arguments, **named)
        return handed_over | for_own_loops if _is(given["custom_generate"], function) else handed_over

    setattr(GenerationMixin, _METHOD, extract)
    return function


def _is(given: Any, function: Callable[..., Any]) -> bool:
    while isinstance(given, functools.partial):
        given = given.func
    return given is function
