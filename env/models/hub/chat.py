"""Renders chat templates: programs that come with a model, and may loop for ever or fill the memory.

The library's sandbox keeps a template from the machine, but not from its time. So a template that is not known to be
harmless is rendered in a process of its own, with limits. Forking takes about 10 ms a conversation.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from transformers import PreTrainedTokenizerBase

from specgym.env.common.errors import ModelFileError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_SECONDS = 10  # time of a rendering
_MEMORY = 2**29  # that a rendering may take beyond what the process has [bytes]
_LONGEST = 2**26  # conversation [bytes]
_SHOWN = 500  # most letters of an error
_KNOWN = frozenset({"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"})  # SmolLM2


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """Returns the text of a conversation that waits for an answer, by the tokenizer's chat template.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: ``role`` and ``content`` of each.

    Raises:
        ModelFileError: the template has an error, refuses the conversation, or exceeds its limits.
    """

    def render() -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    try:
        template = str(tokenizer.get_chat_template())
        is_known = hashlib.sha256(template.encode()).hexdigest() in _KNOWN
        return render() if is_known or resource is None else _render_apart(render)
    except Exception as error:  # templates and their library raise their own kinds
        raise ModelFileError(
            f"The model's chat template cannot be rendered ({type(error).__name__}: {error}). "
            "Correct its chat_template.jinja, or give the prompt without a template (--raw)."
        ) from error


def _render_apart(render: Callable[[], str]) -> str:
    """Calls `render` in a process of its own. Raises `RuntimeError` for any error there."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # about forking beside threads: the new process takes no lock of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        _answer_and_exit(render, writing)
    os.close(writing)
    try:
        answer = _read(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer[:1] != b"+":
        raise RuntimeError(answer[1:].decode(errors="replace") or "its process ended")
    return answer[1:].decode()


def _read(pipe: int) -> bytes:
    """Reads a pipe to its end. Raises `RuntimeError` if that takes too long, or there is too much."""
    parts, size, end = [], 0, time.monotonic() + _SECONDS
    while select.select([pipe], [], [], max(end - time.monotonic(), 0))[0]:
        parts.append(os.read(pipe, 2**20))
        size += len(parts[-1])
        if not parts[-1]:
            return b"".join(parts)
        if size > _LONGEST:
            raise RuntimeError(f"it makes a text of more than {_LONGEST:,} bytes")
    raise RuntimeError(f"it takes more than {_SECONDS} s")


def _answer_and_exit(render: Callable[[], str], pipe: int) -> NoReturn:
    """Writes the result of `render`, or its error, to a pipe, and ends this process."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that waits for this one
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        _limit_memory()
        answer = b"+" + render().encode()
    except BaseException as error:  # it must not go on as the parent
        answer = f"-{type(error).__name__}: {error}"[:_SHOWN].encode(errors="replace")
    try:
        while answer:
            answer = answer[os.write(pipe, answer) :]
    finally:
        os._exit(0)


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + _MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
