"""Finding a controller by its name.

Other packages may bring controllers: an entry point of the group ``specgym.controllers`` names a function that
registers them. It is called when a name is asked for that is not known, or all names are.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from specgym.controllers.controller import Controller
from specgym.controllers.guard import GuardedController
from specgym.controllers.rules.bandits import banditspec, tapout
from specgym.controllers.rules.chains import AdaEdlController, GammaTuneController, HeuristicController
from specgym.controllers.rules.goodput import GoodputController
from specgym.controllers.rules.phases import PHASE_1, PHASE_2, HistoryController, StaticController, fixed_tree
from specgym.controllers.rules.published import confidence_stop, eagle2, opt_tree, svip
from specgym.env.common.errors import ParameterError, UnknownNameError
from specgym.env.tree.parameters import PLAIN, TreeParameters

DEFAULT = "goodput"
"""the controller where none is named: the best of the rules; learned ones know only machines like those they saw"""
_GROUP = "specgym.controllers"


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., Controller]
    defaults: Mapping[str, Any]  # the options it takes


_ENTRIES: dict[str, _Entry] = {}
_FINDERS: list[Callable[[str], Controller | None]] = []


def register(name: str, factory: Callable[..., Controller]) -> None:
    """Makes a controller known by `name`. The factory's keyword arguments, all with defaults, become its options.

    Raises:
        ParameterError: the name is taken.
    """
    _add(name, _entry(factory))


def _entry(factory: Callable[..., Controller]) -> _Entry:
    parameters = inspect.signature(factory).parameters.values()
    return _Entry(factory, {each.name: each.default for each in parameters if each.default is not each.empty})


def register_finder(find: Callable[[str], Controller | None]) -> None:
    """Lets `find` answer specifications that begin with no registered name: with a controller, or None if it has none.

    So a controller may be named by the path of its file.
    """
    _FINDERS.append(find)


def _register_static(name: str, parameters: TreeParameters) -> None:
    def factory(**changes: Any) -> Controller:
        return StaticController(dataclasses.replace(parameters, **changes))

    _add(name, _Entry(factory, dataclasses.asdict(parameters)))


def _add(name: str, entry: _Entry) -> None:
    if name in _ENTRIES:
        raise ParameterError(f"There is a controller {name!r} already; choose another name.")
    _ENTRIES[name] = entry


_register_static("autoregressive", PLAIN)
register("fixed_tree", fixed_tree)
_register_static("confidence", PHASE_1)
_register_static("dynamic_depth", PHASE_2)
register("history", HistoryController)
register("heuristic", HeuristicController)
register("confidence_stop", confidence_stop)
register("svip", svip)
register("adaedl", AdaEdlController)
register("gammatune", GammaTuneController)
register("eagle2", eagle2)
register("opt_tree", opt_tree)
register("banditspec", banditspec)
register("tapout", tapout)
register("goodput", GoodputController)

_GUARD, _GUARD_ENTRY = "guarded", _entry(GuardedController)


def controller_names() -> tuple[str, ...]:
    """The registered names, in the order of registration."""
    _discover()
    return tuple(_ENTRIES)


def make_controller(specification: str) -> Controller:
    """Makes a controller from its name and, after colons, its options: ``fixed_tree:branch=3:depth=2``.

    After a plus comes a guard, which takes options in the same way: ``history:patience=3+guarded:window=20``.

    Raises:
        UnknownNameError: no such controller or option; the message offers the closest names.
        ParameterError: a value that the option cannot take.
        SpecGymError: whatever a finder raises at what it was asked for.
    """
    inner, _, guard = specification.rpartition("+")
    if inner and guard.split(":")[0] == _GUARD:
        return _GUARD_ENTRY.factory(make_controller(inner), **_options(guard, _GUARD_ENTRY))
    name = specification.split(":", maxsplit=1)[0]
    if name not in _ENTRIES:
        _discover()
    if name not in _ENTRIES:
        for find in _FINDERS:
            if (controller := find(specification)) is not None:
                return controller
        raise UnknownNameError("controller", name, _ENTRIES)
    return _ENTRIES[name].factory(**_options(specification, _ENTRIES[name]))


@functools.cache
def _discover() -> None:
    """Lets the packages that bring controllers register them, once."""
    for entry in entry_points(group=_GROUP):
        entry.load()()


def _options(specification: str, entry: _Entry) -> dict[str, Any]:
    """The options that follow a name. Raises as `make_controller`."""
    name, *settings = specification.split(":")
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if option not in entry.defaults:
            raise UnknownNameError(f"option of {name}", option, entry.defaults)
        if not equals:
            raise ParameterError(f"Expected {option}=VALUE in {specification!r}; got {setting!r}.")
        options[option] = _convert(option, text, entry.defaults[option])
    return options


def _convert(option: str, text: str, default: object) -> object:
    """`text` in the type of the option's default."""
    if isinstance(default, bool):  # bool("false") is true
        if text not in ("true", "false"):
            raise ParameterError(f"Option {option} needs true or false; got {text!r}.")
        return text == "true"
    kind: Any = type(default)
    try:
        return kind(text)
    except ValueError:
        raise ParameterError(
            f"Option {option} needs a value of type {kind.__name__}, such as {default}; got {text!r}."
        ) from None
