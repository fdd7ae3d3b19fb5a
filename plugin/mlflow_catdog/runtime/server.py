"""The server: one model behind every contract that a client may speak; `routes` has one module for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from . import signature
from .errors import Refused
from .gateway import Gateway
from .metrics import Metrics
from .predictor import Predictor
from .routes import huggingface, invocations, operations, page, predict, v1, v2
from .service import Service
from .settings import Settings


def build(model: Any, scoring_app: ASGIApp, image_column: str, settings: Settings) -> tuple[ASGIApp, Gateway]:
    """Build the server.

    Args:
        model: An `mlflow.pyfunc.PyFuncModel`.
        scoring_app: MLflow's server around it.
        image_column: The model's column that takes images.
        settings: Limits and names.

    Returns:
        An ASGI application, and the gateway in it, which can be told to drain.
    """
    described = signature.read(model.metadata, image_column)
    metrics = Metrics(settings.name, settings.version, described.classes)
    service = Service(settings, described, Predictor(model, described, settings, metrics), metrics, scoring_app)
    title = f"{settings.name} {settings.version}".strip()
    # The gateway checks the key; this only lets /docs ask for it.
    keys = [Security(APIKeyHeader(name="X-API-Key", auto_error=False))] if settings.api_keys else []
    app = FastAPIOffline(
        redoc_url=None,
        static_url="/docs/static",
        title=title,
        version=settings.version or "0",
        dependencies=keys,
        redirect_slashes=False,  # a redirect would go to whatever host the request names
    )
    gateway = Gateway(app, settings, metrics)
    for routes in (predict, invocations, v2, v1, huggingface, page):
        app.include_router(routes.router(service))
    app.include_router(operations.router(service, lambda: not gateway.draining))
    _add_error_handlers(app)
    if not settings.cors_origins:
        return gateway, gateway
    exposed = ["X-Request-ID", "Retry-After"]
    with_cors = CORSMiddleware(gateway, settings.cors_origins, ["*"], ["*"], expose_headers=exposed)
    return with_cors, gateway


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is `{"error": text}`."""

    @app.exception_handler(Refused)
    async def refused(request: Request, failure: Refused) -> Response:
        return error(failure.status, str(failure), failure.headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, failure: HTTPException) -> Response:
        reasons = {404: f"there is no {request.scope['path']}: /docs lists what there is"}
        return error(failure.status_code, reasons.get(failure.status_code, failure.detail), failure.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, failure: Exception) -> Response:
        return error(500, "this server failed: its log has the reason")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, failure: RequestValidationError) -> Response:
        first = failure.errors()[0]
        return error(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response that says what was wrong."""
    return JSONResponse({"error": reason}, status, headers)
