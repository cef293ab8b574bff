"""Setting the knobs of rules as their authors would: by the throughput on texts that are not judged on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controllers.evaluation.replays import Evaluation
from env.errors import ParameterError, TraceError
from env.latency.profile import LatencyProfile
from env.traces.records import TraceHeader, TraceText

__all__ = ["KNOBS", "Tuned", "specifications", "tune"]

KNOBS: dict[str, dict[str, Sequence[object]]] = {
    "history": {"target": (0.3, 0.5, 0.7), "band": (0.05, 0.1)},
    "heuristic": {"start": (3, 5), "longest": (5, 7, 10)},
    "confidence_stop": {"threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)},
    "svip": {"threshold": (0.5, 0.8, 1.0, 1.3, 1.6)},
    "adaedl": {"threshold": (0.1, 0.4), "target": (0.3, 0.5, 0.7, 0.9)},
    "gammatune": {"rate": (0.1, 0.3, 0.6), "slack": (0.5, 1.0, 2.0)},
    "eagle2": {"width": (4, 8), "total": (8, 16, 30, 60), "depth": (4, 6, 8)},
    "opt_tree": {"budget": (8, 16, 30, 60), "delta": (0.1, 0.2, 0.3, 0.5, 0.7)},
    "banditspec": {"exploration": (0.05, 0.2, 0.5)},
    "tapout": {"exploration": (0.1, 0.3, 1.0)},
    "goodput": {"capture": (0.4, 0.5, 0.6), "node_budget": (15, 31, 60)},
}
"""what is tried of every rule's options"""


@dataclass(frozen=True)
class Tuned:
    """The best of what was tried."""

    specification: str
    """name and options, see `make_controller`"""
    throughput: float
    """tokens over predicted time, on the texts that it was chosen by [1/s]"""
    tried: dict[str, float]
    """the throughput of everything that was tried, in that order"""


def specifications(name: str, knobs: Mapping[str, Sequence[object]]) -> list[str]:
    """Every combination of some options' values as a controller's specification; a guard's suffix stays at the end.

    Raises:
        ParameterError: an option without a value to try.
    """
    if empty := [option for option, values in knobs.items() if not values]:
        raise ParameterError(f"Expected one value or more to try of {', '.join(empty)}; got none.")
    inner, plus, guard = name.partition("+")
    settings = itertools.product(*([f":{option}={value}" for value in values] for option, values in knobs.items()))
    return [inner + "".join(chosen) + plus + guard for chosen in settings]


def tune(
    name: str,
    texts: Sequence[TraceText],
    header: TraceHeader,
    profile: LatencyProfile,
    *,
    knobs: Mapping[str, Sequence[object]] | None = None,
    progress: Callable[[str], None] = lambda specification: None,
) -> Tuned:
    """The options of a controller with the greatest throughput, of equals the first.

    Args:
        name: the controller, to whose own options those tried are added.
        texts: the texts to choose by, all greedy or all sampled; not those to judge on.
        header: of their trace.
        profile: of the machine.
        knobs: values to try of every option; by default those of `KNOBS`, and nothing but the defaults of a name that
            is not there.
        progress: told every specification that has been tried.

    Raises:
        UnknownNameError: no such controller or option.
        ParameterError: a value that an option cannot take.
        TraceError: no text has a round to steer.
        UnrecordedError, UnmeasuredError: the trace or the profile does not cover what is chosen.
    """
    if knobs is None:
        knobs = KNOBS.get(name.partition("+")[0].partition(":")[0], {})
    evaluation = Evaluation(texts, header)
    tried: dict[str, float] = {}
    for specification in specifications(name, knobs):
        rows = evaluation.controller(specification, profile)
        if not rows:
            raise TraceError("Expected a text with a round to steer; got none. Record some with scripts.record.")
        tried[specification] = sum(row.tokens for row in rows) / sum(row.seconds for row in rows)
        progress(specification)
    best = max(tried, key=lambda specification: tried[specification])
    return Tuned(best, tried[best], tried)
