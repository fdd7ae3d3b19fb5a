"""Click options generated from the fields of a dataclass: name, type, default and help stand there, and only there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, get_type_hints

import click

Config = TypeVar("Config")
Function = TypeVar("Function", bound=Callable[..., Any])
_ATTRIBUTE = re.compile(r" {4}(\w+): (.+)")


@dataclass(frozen=True)
class Parameter:
    """One field of a dataclass, as a parameter of a command.

    Attributes:
        name: The field's name; the option is the same with dashes.
        type: `str`, `int`, `float` or `bool`.
        default: The field's default; None for a required field.
        help: What the dataclass's docstring says about it.
    """

    name: str
    type: type
    default: str | int | float | bool | None
    help: str

    @property
    def flag(self) -> str:
        """The option, such as `--image-size`."""
        return "--" + self.name.replace("_", "-")


def parameters(config: type) -> list[Parameter]:
    """List the fields of a dataclass, in order.

    Args:
        config: A dataclass whose fields are `str`, `int`, `float` or `bool`, each described under `Attributes:`.

    Returns:
        One parameter per field.
    """
    types, described = get_type_hints(config), attribute_docs(config)
    return [
        Parameter(field.name, types[field.name], None if field.default is MISSING else field.default, described[field.name])
        for field in fields(config)
    ]


def attribute_docs(documented: type) -> dict[str, str]:
    """Read the `Attributes:` section of a Google docstring: attribute → its description, on one line."""
    section = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    described: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if attribute := _ATTRIBUTE.fullmatch(line):
            name = attribute[1]
            described[name] = attribute[2]
        else:
            described[name] += f" {line.strip()}"
    return described


def options_from(config: type, **choices: Sequence[str]) -> Callable[[Function], Function]:
    """Decorate a click command with one option per field of a dataclass.

    A `bool` field takes a value (`--force true`) instead of being a switch, as MLproject can only pass values.

    Args:
        config: As for `parameters`.
        choices: Field → the values it can have, if not every value of its type.

    Returns:
        The decorator.
    """

    def decorate(function: Function) -> Function:
        for parameter in reversed(parameters(config)):
            name = parameter.name
            # Click takes `default=None` for a default, too.
            default = {"required": True} if parameter.default is None else {"default": parameter.default}
            function = click.option(
                parameter.flag,
                type=click.Choice(choices[name]) if name in choices else parameter.type,
                show_default=parameter.default not in (None, ""),
                help=parameter.help,
                **default,
            )(function)
        return function

    return decorate


def build(config: type[Config], options: Mapping[str, Any]) -> Config:
    """Make a dataclass from the values of its options; other options are ignored."""
    return config(**{parameter.name: options[parameter.name] for parameter in parameters(config)})
