"""Undocumented names of MLflow's scoring server and of uvicorn, each in this one place.

`tests/unit/test_runtime_contracts.py` holds them for the versions installed here; `python -m runtime.internals` checks the
versions that a model pins, while its image is built.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

_MODEL_PATH = "__pyfunc_model_path__"  # environment variable: the model that MLflow's server loads
_SCORING_APP = "mlflow.pyfunc.scoring_server.app"


def scoring_app(model: str) -> Any:
    """Load a model and return MLflow's scoring server around it, an ASGI application.

    Args:
        model: Its folder.
    """
    os.environ[_MODEL_PATH] = model
    from mlflow.pyfunc.scoring_server.app import app  # this import loads the model

    return app


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

        usable = scoring_server._SERVER_MODEL_PATH == _MODEL_PATH and importlib.util.find_spec(_SCORING_APP) is not None
    except (ImportError, AttributeError):
        usable = False
    if not usable:
        found.append(f"{_version('mlflow-skinny')} has no usable {_SCORING_APP}: log the model again with mlflow>=3")
    try:
        from uvicorn import Server
        from uvicorn.server import ServerState

        usable = "sockets" in inspect.signature(Server.shutdown).parameters and hasattr(ServerState(), "connections")
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
