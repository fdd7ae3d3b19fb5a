"""The `-C` options of the deployment target: what there is, what it means, and what is wrong with a value."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mlflow_catdog.deployments.errors import InvalidOption

EVERYWHERE, CONTAINER, ONCE = "everywhere", "create and update", "create and run-local"


def _option(default: Any, meaning: str, where: str = EVERYWHERE) -> Any:
    return field(default=default, metadata={"meaning": meaning, "where": where})


@dataclass(frozen=True)
class Options:
    """How a model is deployed. Read from strings (`-C name=value`) or from what a Python program gives."""

    host: str = _option("127.0.0.1", "address that the port is bound to; 0.0.0.0 lets other machines in", ONCE)
    port: int = _option(5001, "port on this machine", ONCE)
    workers: int = _option(0, "processes, each with the model in memory; 0: one a core")
    model_config: str = _option("", 'JSON object that the model gets, as {"threads": 1}')
    request_timeout_s: int = _option(60, "seconds that a request may take (504)")
    ready_timeout_s: int = _option(120, "seconds until the model must have answered a picture")
    max_body_mb: float = _option(100.0, "MiB that a request may have (413)", CONTAINER)
    memory: str = _option("", "limit of the container, as 1g; empty: none", CONTAINER)
    cpus: float = _option(0.0, "cores that the container may use; 0: all", CONTAINER)
    network: str = _option("none", "Docker network of the model; requests reach it without one", CONTAINER)
    base_image: str = _option("", "image to build on; empty: python:X.Y.Z-slim of the model's Python", CONTAINER)

    def changed(self, given: Mapping[str, Any] | None, verb: str) -> Options:
        """These options with others put in.

        Args:
            given: Name → value, as text or already of the option's type.
            verb: "create", "update" or "run-local".

        Returns:
            The new options.

        Raises:
            InvalidOption: A name is unknown or not for that verb, or a value can't be used.
        """
        known = {entry.name: entry for entry in fields(self)}
        values = {}
        for name, value in (given or {}).items():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(known)}"
                raise InvalidOption(f"unknown option {name!r}: {hint} (`mlflow deployments help -t catdog` tells of each)")
            where = known[name].metadata["where"]
            if (where is ONCE and verb == "update") or (where is CONTAINER and verb == "run-local"):
                raise InvalidOption(f"option {name!r} is for {where}, not for {verb}")
            values[name] = _read(name, value)
        return replace(self, **values)

    def to_json(self) -> str:
        """For a label."""
        return json.dumps(asdict(self))


def describe() -> str:
    """The options as text, a line each."""
    rows = [(entry.name, str(entry.default) or "-", entry.metadata) for entry in fields(Options)]
    return "\n".join(f"  {name:18} {default:10} {about['meaning']} [{about['where']}]" for name, default, about in rows)


def _read(name: str, value: Any) -> Any:
    try:
        return _TYPES.get(name, str)(value)
    except (TypeError, ValueError) as wrong:
        raise InvalidOption(f"option {name}={value!r} can't be used: {wrong}") from None


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = int(value) if not isinstance(value, (bool, float)) else -1
        if not least <= number <= most:
            raise ValueError(f"give a whole number from {least} to {most}")
        return number

    return read


def _number(least: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = float(value)
        if not least <= number < float("inf"):
            raise ValueError(f"give a number of at least {least:g}")
        return number

    return read


def _object(value: Any) -> str:
    read = json.loads(value or "{}") if isinstance(value, str) else value
    if not isinstance(read, Mapping):
        raise ValueError('give a JSON object, as {"threads": 1}')
    return json.dumps(dict(read)) if read else ""


def _memory(value: Any) -> str:
    if not re.fullmatch(r"(\d+[bkmg]?)?", str(value), re.IGNORECASE):
        raise ValueError("give bytes or a number with k, m or g, as 1g")
    return str(value)


_TYPES: Mapping[str, Callable[[Any], Any]] = {
    "port": _whole(1, 65535),
    "workers": _whole(0, 1024),
    "model_config": _object,
    "request_timeout_s": _whole(1, 86400),
    "ready_timeout_s": _whole(1, 86400),
    "max_body_mb": _number(0.001),
    "memory": _memory,
    "cpus": _number(0),
}
