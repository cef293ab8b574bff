"""Finding a controller by its name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controllers.base import Controller
from controllers.history import HistoryController
from controllers.static import PHASE_1, PHASE_2, StaticController, fixed_tree
from env.errors import ParameterError, UnknownNameError
from env.parameters import PLAIN, TreeParameters

__all__ = ["controller_names", "make_controller", "register", "register_finder"]


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
    parameters = inspect.signature(factory).parameters
    _add(name, _Entry(factory, {option: parameter.default for option, parameter in parameters.items()}))


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


def controller_names() -> tuple[str, ...]:
    """The registered names, in the order of registration."""
    return tuple(_ENTRIES)


def make_controller(specification: str) -> Controller:
    """Makes a controller from its name and, after colons, its options: ``fixed_tree:branch=3:depth=2``.

    Raises:
        UnknownNameError: no such controller or option; the message offers the closest names.
        ParameterError: a value that the option cannot take.
        SpecGymError: whatever a finder raises at what it was asked for.
    """
    name, *settings = specification.split(":")
    if name not in _ENTRIES:
        for find in _FINDERS:
            if (controller := find(specification)) is not None:
                return controller
        raise UnknownNameError("controller", name, _ENTRIES)
    entry = _ENTRIES[name]
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if option not in entry.defaults:
            raise UnknownNameError(f"option of {name}", option, entry.defaults)
        if not equals:
            raise ParameterError(f"Expected {option}=VALUE in {specification!r}; got {setting!r}.")
        options[option] = _convert(option, text, entry.defaults[option])
    return entry.factory(**options)


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
