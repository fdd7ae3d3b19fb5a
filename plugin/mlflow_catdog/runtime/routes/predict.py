"""`POST /predict`: images in, one row for each out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ..service import Service


class Row(BaseModel):
    """The result for one image, as this project's models return it; other models return what they do."""

    model_config = ConfigDict(extra="allow")

    label: str | None = Field(None, description="The most probable class; null if the image could not be read.")
    confidence: float | None = Field(None, description="That class's probability, 0 to 1.")
    probabilities: dict[str, float | None] | None = Field(None, description="Class name → probability.")
    error: str | None = Field(None, description="What is wrong with the image, and what to send instead.")
    in_domain: bool | None = Field(None, description="False: the image probably shows none of the classes.")
    domain_score: float | None = Field(None, description="Similarity to the training images, at most 1.")
    heatmap: str | None = Field(None, description="A PNG in base64, if `explain` was asked for.")


class Predictions(BaseModel):
    """One row per image, in the order of the request."""

    predictions: list[Row]


class Error(BaseModel):
    """Every response that is no prediction."""

    error: str


_FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "description": "An image file in base64, or a data URI."}
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"files": {"type": "array", "items": _FILE}}, "required": ["files"]}
        },
        "image/*": {"schema": _FILE},
        "application/octet-stream": {"schema": _FILE},
        "application/json": {
            "schema": {"type": "object", "properties": {"image": _BASE64, "images": {"type": "array", "items": _BASE64}}}
        },
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The body is damaged"},
    401: {"model": Error, "description": "No valid API key"},
    408: {"model": Error, "description": "The body took too long to arrive"},
    413: {"model": Error, "description": "The body is too large"},
    415: {"model": Error, "description": "The body's type is not supported"},
    422: {"model": Error, "description": "No image, or too many"},
    429: {"model": Error, "description": "Too many requests are waiting; `Retry-After` says for how long to wait"},
    500: {"model": Error, "description": "The model failed"},
    504: {"model": Error, "description": "The prediction took too long"},
}


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["predict"])

    @routes.post(
        "/predict",
        summary="Classify images",
        responses={200: {"model": Predictions}, **REFUSALS},
        openapi_extra={"requestBody": REQUEST_BODY},
    )
    async def predict(request: Request, explain: bool = False) -> JSONResponse:
        """Send an image file as the body, a form with one or many files, or JSON with base64.

        An image that cannot be read has an `error` in its row; the others have their predictions.
        """
        images = await service.read_images(request)
        return JSONResponse({"predictions": await service.predict(images, explain)})

    return routes
