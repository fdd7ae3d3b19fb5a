"""MLflow's contract: its own server answers, but for bodies that it doesn't take, image files."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Message

from .. import bodies
from ..errors import Refused
from ..service import Service

_TEXT_LIMIT = 500  # characters of a message
_JSON_VALUES = 1_000_000  # in one body; other models may take pixels as numbers


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["mlflow"])

    @routes.post("/invocations", summary="Classify images, as MLflow's scoring server does")
    async def invocations(request: Request, explain: bool = False) -> Response:
        """MLflow's formats (`dataframe_split`, `instances` and the like in JSON, CSV, parquet), or an image file."""
        body = await service.read(request)
        if bodies.is_raw(bodies.media_type(request)):
            return JSONResponse({"predictions": await service.predict([body] if body else [], explain)})
        if bodies.media_type(request) == bodies.JSON:
            bodies.check_values(request, body, _JSON_VALUES)
        with service.predictor.place():
            return await _scored(service, request, body)

    @routes.get("/version", summary="MLflow's version")
    async def version(request: Request) -> Response:
        return await _scored(service, request, b"")

    return routes


async def _scored(service: Service, request: Request, body: bytes) -> Response:
    """The response of MLflow's own server."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await service.scoring_app(dict(request.scope), bodies.replay(body), send)
    except Exception as failure:  # it has a response for a model that fails, but not for each body that cannot be parsed
        raise Refused(400, f"the body cannot be read: {type(failure).__name__}: {failure}"[:_TEXT_LIMIT]) from None
    content = b"".join(message.get("body", b"") for message in sent)
    start = next(message for message in sent if message["type"] == "http.response.start")
    if start["status"] >= 400:
        content = _without_trace(content)
    response = Response(content, start["status"])
    length = (b"content-length", str(len(content)).encode())
    response.raw_headers = [*(header for header in start["headers"] if header[0] != length[0]), length]
    return response


def _without_trace(content: bytes) -> bytes:
    """MLflow's error, with the last line of the stack trace in its message, and without the others."""
    try:
        failure = json.loads(content)
        reason = failure.pop("stack_trace").strip().splitlines()[-1]
        return json.dumps({**failure, "message": f"{failure['message']} {reason}"}).encode()
    except (ValueError, TypeError, AttributeError, LookupError):  # there is none
        return content
