"""What a server is told from outside: limits, keys, names. docs/operations.md lists the variables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import PORT

MIB = 1024**2
_SHORTEST_KEY = 16  # characters


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        max_body_mb: Largest request body, in MiB, also once it is decompressed.
        max_files: Most images in one request.
        max_queue: Requests that one worker holds at once, those in work included.
        request_timeout_s: Seconds for a body to arrive, and again for its prediction.
        api_keys: Any of them lets a request in; none: everybody may.
        cors_origins: Web pages of these origins may call this server; `*`: of all.
        threads: Requests in work at once.
        name: Of the model, in the V1 and V2 protocols.
        version: Of the model; empty if it isn't registered.
        predict_route: A further path for V1 requests, as Vertex AI asks for it; empty: none.
        health_route: A further path that tells whether the server is ready; empty: none.
    """

    max_body_mb: float = 100.0
    max_files: int = 100
    max_queue: int = 100
    request_timeout_s: float = 60.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    threads: int = 1
    name: str = "model"
    version: str = ""
    predict_route: str = ""
    health_route: str = ""

    @property
    def max_body(self) -> int:
        """Largest request body, in bytes."""
        return int(self.max_body_mb * MIB)


def from_environment(environment: Mapping[str, str], threads: int, served: Mapping[str, str]) -> Settings:
    """Read the settings of a container.

    Args:
        environment: Its variables.
        threads: Requests in work at once.
        served: `name` and `version` of the model.

    Returns:
        The settings.

    Raises:
        ValueError: A variable's value cannot be used.
    """

    def read(variable: str, convert: Callable[[str], Any], default: Any) -> Any:
        return read_variable(environment, variable, convert, default)

    return Settings(
        max_body_mb=read("CATDOG_MAX_BODY_MB", _positive(float), Settings.max_body_mb),
        max_files=read("CATDOG_MAX_FILES", _positive(int), Settings.max_files),
        max_queue=read("CATDOG_MAX_QUEUE", _positive(int), Settings.max_queue),
        request_timeout_s=read("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", _positive(float), Settings.request_timeout_s),
        api_keys=read("CATDOG_API_KEYS_FILE", lambda path: read_keys(Path(path)), ()),
        cors_origins=read("CATDOG_CORS_ORIGINS", lambda text: tuple(text.replace(",", " ").split()), ()),
        threads=threads,
        name=served["name"],
        version=served["version"],
        predict_route=read("AIP_PREDICT_ROUTE", _path, ""),
        health_route=read("AIP_HEALTH_ROUTE", _path, ""),
    )


def read_variable(environment: Mapping[str, str], variable: str, convert: Callable[[str], Any], default: Any) -> Any:
    """Read one variable.

    Args:
        environment: All variables.
        variable: Its name.
        convert: Makes its value of its text.
        default: If it is not set, or empty.

    Returns:
        Its value.

    Raises:
        ValueError: It cannot be converted; the message names it.
    """
    text = environment.get(variable, "")
    try:
        return convert(text) if text else default
    except (ValueError, OSError) as failure:
        raise ValueError(f"{variable}={text!r} cannot be used: {failure}") from None


def listen_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the workers, unless a listener holds the port: `CATDOG_LISTEN`, or Vertex AI's `AIP_HTTP_PORT`."""

    def split(text: str) -> tuple[str, int]:
        host, _, port = text.rpartition(":")
        return host, int(port)

    everywhere = "0.0.0.0", read_variable(environment, "AIP_HTTP_PORT", int, PORT)  # noqa: S104  # the container's own network
    address: tuple[str, int] = read_variable(environment, "CATDOG_LISTEN", split, everywhere)
    return address


def read_keys(path: Path) -> tuple[str, ...]:
    """Read API keys.

    Args:
        path: A file with one key per line; empty lines and those that start with # don't count.

    Returns:
        The keys.

    Raises:
        ValueError: There is none, or one that is too short or has spaces.
        OSError: The file cannot be read.
    """
    lines = (line.strip() for line in path.read_text().splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ValueError("the file has no key: write one per line")
    for number, key in enumerate(keys, 1):
        if len(key) < _SHORTEST_KEY or not key.isascii() or " " in key:
            raise ValueError(f"key {number} is not {_SHORTEST_KEY} or more ASCII characters without spaces")
    return keys


def available_cores() -> int:
    """The cores of this container."""
    from .cpu import available_cores  # type: ignore[import-not-found, unused-ignore]  # only images have this file

    return int(available_cores())


def read_served(path: Path) -> Mapping[str, str]:
    """The model's name and version, which `deployments.build` wrote."""
    served: Mapping[str, str] = json.loads(path.read_text())
    return served


def _positive(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        number = convert(text)
        if not 0 < number < float("inf"):
            raise ValueError("expected a positive number")
        return number

    return read


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("expected a path that starts with /")
    return text
