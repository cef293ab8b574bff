"""Makes controllers by name.

Other packages can add controllers. An entry point of the group ``specgym.controllers`` names a function that registers
them; it is called when an unknown name, or the list of all names, is wanted.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from typing import Any

from specgym.controllers.controller import Controller
from specgym.controllers.rules import bandits, chains, goodput, phases, trees
from specgym.controllers.rules.guard import GuardedController
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.tree.parameters import PLAIN, TreeParameters

BASELINE = "autoregressive"
"""our own plain decoding, which controllers are compared with"""
DEFAULT = "goodput"
"""the controller where none is named: the best rule; learned controllers know only machines like those they saw"""

_ENTRIES: dict[str, tuple[Callable[..., Controller], Mapping[str, Any]]] = {}  # factory and defaults by option
_FINDERS: list[Callable[[str], Controller | None]] = []


def register(name: str, factory: Callable[..., Controller], defaults: Mapping[str, Any] | None = None) -> None:
    """Registers a controller by `name`.

    Args:
        name: a name that is not taken.
        factory: makes the controller; the options are its keyword arguments.
        defaults: the options' defaults; by default those in the factory's signature.

    Raises:
        ParameterError: the name is taken.
    """
    if name in _ENTRIES:
        raise ParameterError(f"There is a controller {name!r} already; choose another name.")
    _ENTRIES[name] = factory, _defaults(factory) if defaults is None else defaults


def _defaults(factory: Callable[..., Controller]) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters.values()
    return {option.name: option.default for option in parameters if option.default is not option.empty}


def register_finder(find: Callable[[str], Controller | None]) -> None:
    """Registers a function for specifications that begin with no registered name, such as the path of a policy's file.

    `find` returns a controller, or None for a specification that is not its own.
    """
    _FINDERS.append(find)


def _register_static(name: str, parameters: TreeParameters) -> None:
    register(name, lambda **changes: phases.StaticController(replace(parameters, **changes)), asdict(parameters))


_register_static("autoregressive", PLAIN)
register("fixed_tree", phases.fixed_tree)
_register_static("confidence", phases.PHASE_1)
_register_static("dynamic_depth", phases.PHASE_2)
register("history", phases.HistoryController)
register("heuristic", chains.HeuristicController)
register("confidence_stop", chains.confidence_stop)
register("svip", chains.svip)
register("adaedl", chains.AdaEdlController)
register("gammatune", chains.GammaTuneController)
register("eagle2", trees.eagle2)
register("opt_tree", trees.opt_tree)
register("banditspec", bandits.banditspec)
register("tapout", bandits.tapout)
register("goodput", goodput.GoodputController)

RULES = tuple(_ENTRIES)
"""names of the controllers that are not learned"""


def controller_names() -> tuple[str, ...]:
    """Returns the registered names, in the order of registration."""
    _load_entry_points()
    return tuple(_ENTRIES)


def make_controller(specification: str) -> Controller:
    """Makes a controller from its name and, after colons, its options: ``fixed_tree:branch=3:depth=2``.

    A guard and its options may follow after a plus: ``history:patience=3+guarded:window=20``.

    Raises:
        UnknownNameError: no such controller or option; the message offers the closest names.
        ParameterError: a value that the option cannot take.
        SpecGymError: an error of a finder.
    """
    inner, _, guard = specification.rpartition("+")
    if inner and guard.split(":")[0] == "guarded":
        return GuardedController(make_controller(inner), **_options(guard, _defaults(GuardedController)))
    name = specification.split(":", maxsplit=1)[0]
    if name not in _ENTRIES:
        _load_entry_points()
    if name not in _ENTRIES:
        for find in _FINDERS:
            if (controller := find(specification)) is not None:
                return controller
        raise UnknownNameError("controller", name, _ENTRIES)
    factory, defaults = _ENTRIES[name]
    return factory(**_options(specification, defaults))


@functools.cache
def _load_entry_points() -> None:
    """Lets other packages register their controllers, once."""
    for entry in entry_points(group="specgym.controllers"):
        entry.load()()


def _options(specification: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that follow a name; raises as `make_controller`."""
    name, *settings = specification.split(":")
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if option not in defaults:
            raise UnknownNameError(f"option of {name}", option, defaults)
        if not equals:
            raise ParameterError(f"Expected {option}=VALUE in {specification!r}; got {setting!r}.")
        options[option] = _convert(option, text, defaults[option])
    return options


def _convert(option: str, text: str, default: object) -> object:
    """Converts `text` to the type of the option's default."""
    if isinstance(default, bool):  # bool("false") is true
        if text not in ("true", "false"):
            raise ParameterError(f"Option {option} needs true or false; got {text!r}.")
        return text == "true"
    kind: Any = type(default)
    try:
        return kind(text)
    except ValueError:
        message = f"Option {option} needs a value of type {kind.__name__}, such as {default}; got {text!r}."
        raise ParameterError(message) from None
