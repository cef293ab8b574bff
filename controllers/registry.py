"""Finding a controller by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from controllers.base import Controller
from controllers.history import HistoryController
from controllers.static import autoregressive, confidence, dynamic_depth, fixed_tree
from env.errors import ParameterError, UnknownNameError

__all__ = ["controller_names", "make_controller", "register"]

_FACTORIES: dict[str, Callable[..., Controller]] = {
    "autoregressive": autoregressive,
    "fixed_tree": fixed_tree,
    "confidence": confidence,
    "dynamic_depth": dynamic_depth,
    "history": HistoryController,
}


def controller_names() -> tuple[str, ...]:
    """The registered names, in the order of registration."""
    return tuple(_FACTORIES)


def register(name: str, factory: Callable[..., Controller]) -> None:
    """Makes a controller known by `name`. The factory's keyword arguments become its options.

    Raises:
        ParameterError: the name is taken by another factory.
    """
    if _FACTORIES.get(name, factory) is not factory:
        raise ParameterError(f"There is a controller {name!r} already; choose another name.")
    _FACTORIES[name] = factory


def make_controller(specification: str) -> Controller:
    """Makes a controller from its name and, after colons, its options: ``fixed_tree:branch=3:depth=2``.

    Raises:
        UnknownNameError: no such controller; the message offers the closest names.
        ParameterError: no such option, or a value that the option cannot take.
    """
    name, *settings = specification.split(":")
    if name not in _FACTORIES:
        raise UnknownNameError("controller", name, _FACTORIES)
    factory = _FACTORIES[name]
    known = inspect.signature(factory).parameters
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
        if not equals:
            raise ParameterError(f"Expected {option}=VALUE in {specification!r}; got {setting!r}.")
        options[option] = _convert(option, text, known[option].default)
    return factory(**options)


def _convert(option: str, text: str, default: object) -> object:
    """`text` in the type of the option's default."""
    try:
        return type(default)(text)  # type: ignore[call-arg]
    except ValueError:
        kind = type(default).__name__
        raise ParameterError(f"Option {option} needs a value of type {kind}, such as {default}; got {text!r}.") from None
