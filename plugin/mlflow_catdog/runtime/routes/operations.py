"""Whether the server lives, whether it is ready, and its metrics."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ..service import Service


def router(service: Service, is_ready: Callable[[], bool]) -> APIRouter:
    """The routes.

    Args:
        service: Has the metrics.
        is_ready: False while the server drains; before its model is loaded, it takes no connections.
    """
    routes = APIRouter(tags=["operations"])

    async def ready() -> Response:
        return JSONResponse({"ready": is_ready()}, 200 if is_ready() else 503)

    paths = {"/ping": "MLflow, SageMaker", "/health": "MLflow, Hugging Face", "/v2/health/ready": "KServe"}
    for path, who in {**paths, service.settings.health_route: "Vertex AI"}.items():
        if path:
            routes.get(path, summary=f"Ready? ({who})", responses={503: {"description": "Draining"}})(ready)

    @routes.get("/v2/health/live", summary="Alive? (KServe)")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @routes.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
