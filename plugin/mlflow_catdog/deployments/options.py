"""The `-C` options of the deployment target: names, meanings, defaults and validation."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from catdog_pyfunc import internals
from mlflow_catdog.deployments.errors import InvalidOption
from mlflow_catdog.runtime.settings import read_keys


class Scope(Enum):
    """The commands that take an option."""

    ANY = ("create", "update", "run-local")
    CONTAINER = ("create", "update")
    CREATE_ONLY = ("create", "run-local")  # cannot be changed later

    def __str__(self) -> str:
        """The commands, for a message."""
        return f"{', '.join(self.value[:-1])} and {self.value[-1]}"


def _option(default: Any, meaning: str, scope: Scope = Scope.ANY) -> Any:
    return field(default=default, metadata={"meaning": meaning, "scope": scope})


@dataclass(frozen=True)
class Options:
    """How a model is deployed; `mlflow deployments help -t catdog` lists every option."""

    host: str = _option("127.0.0.1", "address to bind the port to; 0.0.0.0 lets other machines connect", Scope.CREATE_ONLY)
    port: int = _option(5001, "port on this machine", Scope.CREATE_ONLY)
    workers: int = _option(0, "processes, each with its own copy of the model; 0: one per core")
    model_config: str = _option("", 'JSON object passed to the model, such as {"threads": 1}')
    request_timeout_s: int = _option(60, "seconds a request may take (then 504)")
    ready_timeout_s: int = _option(120, "seconds the model has to start and pass the smoke test")
    max_body_mb: float = _option(100.0, "MiB a request body may have (then 413)")
    max_files: int = _option(100, "images a request may have (then 422)")
    max_queue: int = _option(100, "requests that each worker holds at once (then 429)")
    api_keys_file: str = _option(
        "", "file with an API key per line, which requests must have one of (else 401); empty: none"
    )
    insecure: bool = _option(False, "true: other machines may connect without a key")
    cors_origins: str = _option("", "web pages that may call the server, such as https://shop.example; empty: none")
    otlp_endpoint: str = _option("", "where OpenTelemetry traces go, such as http://collector:4318; empty: nowhere")
    follow: bool = _option(False, "true: `catdog-follow` deploys what the model's alias points to", Scope.CONTAINER)
    memory: str = _option("", "memory limit of the container, such as 1g; empty: none", Scope.CONTAINER)
    cpus: float = _option(0.0, "cores the container may use; 0: all", Scope.CONTAINER)
    network: str = _option("none", "Docker network of the model; requests reach it without one", Scope.CONTAINER)
    base_image: str = _option("", "image to build on; empty: python:X.Y.Z-slim of the model's Python", Scope.CONTAINER)
    lock_file: str = _option("", "file with all that pip may install, with hashes; empty: no limit", Scope.CONTAINER)

    def updated(self, given: Mapping[str, Any] | None, verb: str) -> Options:
        """Replace some options.

        Args:
            given: Name → value, as text (`-C name=value`) or already of the option's type.
            verb: "create", "update" or "run-local".

        Returns:
            The new options.

        Raises:
            InvalidOption: A name is unknown or not for that verb, or a value cannot be used.
        """
        known = {entry.name: entry for entry in fields(self)}
        values = {}
        for name, value in (given or {}).items():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
                raise InvalidOption(f"unknown option {name!r}: {hint} (`mlflow deployments help -t catdog` describes them)")
            scope: Scope = known[name].metadata["scope"]
            if verb not in scope.value:
                raise InvalidOption(f"option {name!r} is for {scope}, not for {verb}")
            values[name] = _read(name, value)
        options = replace(self, **values)
        options._check_access()
        if options.lock_file and not Path(options.lock_file).is_file():
            raise InvalidOption(
                f"option lock_file={options.lock_file!r} cannot be used: there is no such file on this machine"
            )
        return options

    def _check_access(self) -> None:
        """Refuse what would let other machines in by mistake, and keys that nobody could use."""
        if self.api_keys_file:
            try:
                read_keys(Path(self.api_keys_file))
            except (OSError, ValueError) as failure:
                raise InvalidOption(f"option api_keys_file={self.api_keys_file!r} cannot be used: {failure}") from None
        elif not (self.insecure or _is_loopback(self.host)):
            raise InvalidOption(
                f"host {self.host} lets other machines connect, and no key is asked for: "
                "give -C api_keys_file=…, or -C insecure=true if something in front of it decides who may"
            )

    def environment(self) -> dict[str, str]:
        """The variables that tell the server all of this but its address and its keys."""
        values = {
            "CATDOG_WORKERS": self.workers,
            "CATDOG_MAX_BODY_MB": self.max_body_mb,
            "CATDOG_MAX_FILES": self.max_files,
            "CATDOG_MAX_QUEUE": self.max_queue,
            "CATDOG_CORS_ORIGINS": self.cors_origins,
            "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": self.request_timeout_s,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.otlp_endpoint,
            internals.SERVING_MODEL_CONFIG: self.model_config,
        }
        return {name: str(value) for name, value in values.items() if value != ""}

    def api_key(self) -> str:
        """A key that the deployment accepts; empty if it asks for none, or its file is not on this machine."""
        with contextlib.suppress(OSError, ValueError):
            return read_keys(Path(self.api_keys_file))[0] if self.api_keys_file else ""
        return ""

    def to_json(self) -> str:
        """Serialize for a container's label."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> tuple[Options, list[str]]:
        """Read options that any version stored.

        Args:
            text: What `to_json` returned.

        Returns:
            The options, and the names of those that this version does not have or cannot read; they get their defaults.
        """
        known = {entry.name for entry in fields(cls)}
        values, dropped = {}, []
        for name, value in json.loads(text).items():
            try:
                if name not in known:
                    raise InvalidOption(f"unknown option {name!r}")
                values[name] = _read(name, value)
            except InvalidOption:
                dropped.append(name)
        return cls(**values), dropped


def describe() -> str:
    """Render the options as text, one line each."""
    rows = [(entry.name, str(entry.default) or "-", entry.metadata) for entry in fields(Options)]
    return "\n".join(f"  {name:18} {default:10} {about['meaning']} [{about['scope']}]" for name, default, about in rows)


def _read(name: str, value: Any) -> Any:
    try:
        return _READERS.get(name, str)(value)
    except (TypeError, ValueError) as failure:
        raise InvalidOption(f"option {name}={value!r} cannot be used: {failure}") from None


def _integer(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = int(value) if not isinstance(value, (bool, float)) else -1
        if not least <= number <= most:
            raise ValueError(f"expected an integer from {least} to {most}")
        return number

    return read


def _number(least: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = float(value)
        if not least <= number < float("inf"):
            raise ValueError(f"expected a number of at least {least:g}")
        return number

    return read


def _boolean(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return str(value).lower() == "true"


def _absolute(value: Any) -> str:
    return str(Path(value).expanduser().absolute()) if value else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _json_object(value: Any) -> str:
    content = json.loads(value or "{}") if isinstance(value, str) else value
    if not isinstance(content, Mapping):
        raise ValueError('expected a JSON object, such as {"threads": 1}')
    return json.dumps(dict(content)) if content else ""


def _memory(value: Any) -> str:
    if not re.fullmatch(r"(\d+[bkmg]?)?", str(value), re.IGNORECASE):
        raise ValueError("expected bytes, or a number with k, m or g, such as 1g")
    return str(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "port": _integer(1, 65535),
    "workers": _integer(0, 1024),
    "model_config": _json_object,
    "request_timeout_s": _integer(1, 86400),
    "ready_timeout_s": _integer(1, 86400),
    "max_body_mb": _number(0.001),
    "max_files": _integer(1, 100_000),
    "max_queue": _integer(1, 100_000),
    "api_keys_file": _absolute,
    "insecure": _boolean,
    "follow": _boolean,
    "lock_file": _absolute,
    "memory": _memory,
    "cpus": _number(0),
}
