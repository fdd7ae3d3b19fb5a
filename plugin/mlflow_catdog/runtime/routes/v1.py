"""The V1 protocol of KServe and TensorFlow Serving; Vertex AI speaks it on a path that it names."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from .. import bodies
from ..errors import Refused
from ..service import Service
from .predict import REFUSALS


def router(service: Service) -> APIRouter:
    """The routes."""
    routes, name = APIRouter(tags=["V1"]), service.settings.name

    async def predict(request: Request) -> Response:
        """`{"instances": [{"b64": …} | {"image": {"b64": …}} | {"image": …} | base64], "parameters": {"explain": true}}`."""
        content = await bodies.parse_json(request, await service.read(request))
        instances, parameters = content.get("instances"), content.get("parameters")
        if not isinstance(instances, list):
            raise Refused(422, "`instances` is not a list of images")
        images = bodies.as_images([_image(instance) for instance in instances], "`instances`")
        explain = isinstance(parameters, dict) and parameters.get("explain") is True
        return JSONResponse({"predictions": await service.predict(images, explain)})

    for path in filter(None, (f"/v1/models/{name}:predict", service.settings.predict_route)):
        routes.post(path, summary="Classify images (V1)", responses=REFUSALS)(predict)

    @routes.get("/v1/models", summary="The model's name")
    async def models() -> Response:
        return JSONResponse({"models": [name]})

    @routes.get(f"/v1/models/{name}", summary="Ready?")
    async def model() -> Response:
        return JSONResponse({"name": name, "ready": True})

    return routes


def _image(instance: Any) -> Any:
    """The base64 in an instance, or whatever stands there instead."""
    if isinstance(instance, dict):
        instance = instance.get("image", instance)
    return instance.get("b64") if isinstance(instance, dict) else instance
