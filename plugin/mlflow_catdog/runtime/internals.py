"""Undocumented names of MLflow's scoring server and of uvicorn, each in this one place.

`tests/unit/test_runtime_contracts.py` holds them for the versions installed here; `python -m runtime.internals` checks the
versions that a model pins, while its image is built.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

_MODEL_PATH = "__pyfunc_model_path__"  # environment variable: tells a model that it is in a server


def load_model(model: str) -> Any:
    """Load a model as MLflow's scoring server does, with `SERVING_MODEL_CONFIG`; an `mlflow.pyfunc.PyFuncModel`.

    Args:
        model: Its folder.
    """
    os.environ[_MODEL_PATH] = model
    from mlflow.pyfunc import scoring_server

    return scoring_server.load_model_with_mlflow_config(model)  # type: ignore[no-untyped-call]


def scoring_app(loaded: Any) -> Any:
    """MLflow's scoring server around a loaded model, an ASGI application."""
    from mlflow.pyfunc import scoring_server

    return scoring_server.init(loaded)


def stop_accepting(server: Any, listeners: Sequence[socket.socket]) -> None:
    """Close a `uvicorn.Server`'s listening sockets; established connections stay open."""
    for asyncio_server in server.servers:
        asyncio_server.close()
    for listener in listeners:
        listener.close()


def open_connections(server: Any) -> int:
    """Count the connections of a `uvicorn.Server`."""
    return len(server.server_state.connections)


def incompatibilities() -> list[str]:
    """What the installed MLflow and uvicorn lack of the above, one message each, with the remedy."""
    found = []
    try:
        from mlflow.pyfunc import scoring_server

        names = ("init", "load_model_with_mlflow_config", "predictions_to_json")
        usable = scoring_server._SERVER_MODEL_PATH == _MODEL_PATH and all(hasattr(scoring_server, name) for name in names)
    except (ImportError, AttributeError):
        usable = False
    if not usable:
        found.append(f"{_version('mlflow-skinny')} has no usable scoring server: log the model again with mlflow>=3")
    try:
        from uvicorn import Server
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import ServerState

        callbacks = ("on_message_begin", "on_headers_complete", "on_body", "on_message_complete")
        usable = "sockets" in inspect.signature(Server.shutdown).parameters and hasattr(ServerState(), "connections")
        usable = usable and all(hasattr(HttpToolsProtocol, name) for name in callbacks)
    except (ImportError, AttributeError):
        usable = False
    if not usable:
        found.append(f"{_version('uvicorn')} cannot be drained: change the model's requirement to uvicorn>=0.30")
    return found


def _version(distribution: str) -> str:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution}, which the model's requirements do not install,"


if __name__ == "__main__":
    sys.exit("\n".join(incompatibilities()) or None)
