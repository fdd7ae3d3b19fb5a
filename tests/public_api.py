"""Holds a public interface to its rule: whatever a public signature names, an error included, is public itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, get_args, get_type_hints

from catdog_pyfunc import errors

_OURS = ("catdog_pyfunc", "mlflow_catdog")


def problems(module: ModuleType, *others: ModuleType) -> list[str]:
    """What keeps a module's `__all__` from being closed and typed; empty for nothing.

    Args:
        module: The one to check.
        others: Modules whose `__all__` users know as well.
    """
    public = {id(getattr(one, name)) for one in (module, *others) for name in one.__all__}
    found = []
    for name in module.__all__:
        for where, function in _signatures(name, getattr(module, name)):
            found += [
                f"{where}: {type_.__qualname__} is not public" for type_ in _types(function) if id(type_) not in public
            ]
            found += [
                f"{where}: raises {error.__name__}, not public" for error in _raised(function) if id(error) not in public
            ]
            found += [f"{where}: {reason}" for reason in _untyped(function)]
    return found


def _signatures(name: str, thing: object) -> Iterator[tuple[str, Any]]:
    """A public function; a class's public methods and properties, and a dataclass's fields, inherited ones included."""
    if not inspect.isclass(thing):
        yield name, thing
        return
    if is_dataclass(thing):
        yield name, thing
    elif "__init__" in vars(thing):
        yield name, thing.__init__
    for base in thing.__mro__:
        if base.__module__.startswith(_OURS):
            for member, value in vars(base).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{member}", function


def _types(function: Any) -> Iterator[type]:
    for name, hint in _hints(function).items():
        if not name.startswith("_"):
            yield from _ours_in(hint)


def _ours_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, list):  # the arguments of a Callable
        for one in hint:
            yield from _ours_in(one)
    if inspect.isclass(hint) and hint.__module__.startswith(_OURS):
        yield hint
    for one in get_args(hint):
        yield from _ours_in(one)


def _hints(function: Any) -> dict[str, Any]:
    """Type hints; a name that is only imported for type checkers is imported if it is ours, and otherwise Any."""
    namespace: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(function, localns=namespace)
        except NameError as unknown:
            namespace[unknown.name] = _imported_for_types(function.__module__, unknown.name)


def _imported_for_types(module: str, name: str) -> Any:
    for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(module)))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_OURS):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return getattr(importlib.import_module(str(node.module)), alias.name)
    return Any


def _raised(function: Callable[..., Any]) -> list[type]:
    section = inspect.cleandoc(function.__doc__ or "").partition("Raises:\n")[2].partition("\n\n")[0]
    return [getattr(errors, name) for name in re.findall(r"^ {4}(\w+):", section, re.MULTILINE) if hasattr(errors, name)]


def _untyped(function: Callable[..., Any]) -> list[str]:
    if inspect.isclass(function):
        return []
    given = inspect.signature(function).parameters.values()
    named = [one for one in given if one.name != "self" and one.name != "cls"]
    reasons = [f"**{one.name} hides what can be given" for one in named if one.kind is one.VAR_KEYWORD]
    return reasons + [f"{one.name} has no type" for one in named if one.annotation is one.empty]
