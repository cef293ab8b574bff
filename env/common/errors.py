"""Errors, whose messages say what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LINES, _WIDTH = 3, 800  # most lines of a message, and most letters of a line


class SpecGymError(Exception):
    """An error that the user can correct; scripts print it without a traceback.

    Its message has at most three lines. What a message quotes from a file may be long, so long lines lose their middle,
    and control characters are shown as escapes.
    """

    def __str__(self) -> str:
        return shortened(super().__str__())


class UnknownNameError(SpecGymError, ValueError):
    """An unknown name; the message suggests the closest known ones.

    Args:
        what: the kind of thing, such as ``"controller"``.
        name: the unknown name.
        known: the known names.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.what, self.name = what, name
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(names)}."
        super().__init__(f"Unknown {what} {name!r}. {hint}")


class ParameterError(SpecGymError, ValueError):
    """A setting is outside its range."""


class LimitError(SpecGymError, ValueError):
    """A request does not fit: the prompt is empty or too long, or a limit is not positive."""


class PromptError(SpecGymError, ValueError):
    """A prompt file cannot be read; the message names the file and the line."""


class PairError(SpecGymError, ValueError):
    """A target, or a target and a draft, cannot work here; the message says why."""


class ModelFileError(SpecGymError):
    """Files of a model are missing, corrupt or cannot be fetched."""


class NumericalError(SpecGymError, ArithmeticError):
    """A model returned NaN or infinite logits; the text cannot go on."""


class TraceError(SpecGymError):
    """A trace is missing, corrupt, of another version or of another pair; the message names the file."""


class UnrecordedError(SpecGymError, LookupError):
    """A trace does not hold what was requested: replay is exact or an error."""


def shortened(message: str) -> str:
    """Returns a message for a user: its first two lines and its last one at most, and how much of it is left out."""
    first, *lines = message.split("\n")
    lines = [first, lines[0], lines[-1]] if len(lines) >= _LINES else [first, *lines]
    left = len(message) - sum(min(len(line), _WIDTH) for line in lines) - len(lines) + 1
    cut = (line if len(line) <= _WIDTH else f"{line[: _WIDTH // 2]} … {line[-_WIDTH // 2 :]}" for line in lines)
    text = "\n".join(cut) + (f" ({left:,} characters left out)" if left else "")
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def check_limit(name: str, value: int) -> None:
    """Refuses a limit that is not positive.

    Raises:
        LimitError: it is below 1.
    """
    if value < 1:
        raise LimitError(f"{name} must be 1 or more; got {value}.")
