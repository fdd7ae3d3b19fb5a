"""Hugging Face's image classification, as `InferenceClient(model=URL).image_classification(…)` asks for it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from .. import bodies
from ..errors import Refused, brief
from ..service import Service
from .predict import REFUSALS


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["Hugging Face"])

    @routes.post("/", summary="Classify an image (Hugging Face)", responses=REFUSALS)
    async def classify(request: Request) -> Response:
        """An image file, or `{"inputs": base64, "parameters": {"top_k": 1}}`; answers `[{"label", "score"}, …]`."""
        body = await service.read(request)
        if bodies.media_type(request) != bodies.JSON:
            return JSONResponse(_best(await service.predict([body] if body else []), None))
        content = await bodies.parse_json(request, body)
        parameters = content.get("parameters") or {}
        if not isinstance(parameters, dict) or parameters.get("function_to_apply") not in (None, "softmax"):
            raise Refused(422, "`parameters` can only have `top_k`, and `function_to_apply` with the value `softmax`")
        images = bodies.as_images([content.get("inputs")], "`inputs`")
        return JSONResponse(_best(await service.predict(images), parameters.get("top_k")))

    @routes.get("/info", summary="The model")
    async def info() -> Response:
        return JSONResponse({"model_id": service.settings.name, "sha": service.settings.version})

    return routes


def _best(rows: list[Any], top_k: Any) -> list[dict[str, Any]]:
    (row,) = rows
    if not isinstance(row, dict) or not isinstance(row.get("probabilities"), dict):
        raise Refused(422, "this model returns no `probabilities`: use /predict")
    if row.get("error"):
        raise Refused(422, row["error"])
    ranked = sorted(row["probabilities"].items(), key=lambda entry: -entry[1])
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise Refused(422, f"`top_k` is {brief(top_k)}: send a whole number of at least 1")
    return [{"label": label, "score": score} for label, score in ranked[:top_k]]
