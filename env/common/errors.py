"""Errors that name what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecGymError(Exception):
    """Anything that a user of SpecGym can set right; scripts print it without a traceback."""


class UnknownNameError(SpecGymError, ValueError):
    """A name that no registry knows; the message offers the closest ones.

    Args:
        what: the kind of thing that was looked for, such as ``"controller"``.
        name: what came.
        known: the names there are.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(names)}."
        super().__init__(f"Unknown {what} {name!r}. {hint}")


class ParameterError(SpecGymError, ValueError):
    """A setting outside its range."""


class LimitError(SpecGymError, ValueError):
    """A request that does not fit: empty or too long a prompt, or limits that are not positive."""


class PromptError(SpecGymError, ValueError):
    """A prompt file that cannot be read; the message names the file and the line."""


class PairError(SpecGymError, ValueError):
    """A target, or a target and a draft, that cannot work here; the message says why."""


class ModelFileError(SpecGymError):
    """Files of a model that are missing, corrupt or cannot be fetched."""


class NumericalError(SpecGymError, ArithmeticError):
    """A model returned NaN or infinite logits; the caches of the request are discarded."""


class TraceError(SpecGymError):
    """A trace that is missing, corrupt, of another version or of another pair; the message names the file."""


class UnrecordedError(SpecGymError, LookupError):
    """A request for something that a trace does not hold: replay is exact or an error."""
