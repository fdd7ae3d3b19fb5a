"""The Open Inference Protocol (V2) of KServe, Triton and Seldon: one BYTES input, an image per element."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from .. import bodies
from ..errors import Refused, brief
from ..service import Service
from .predict import REFUSALS

_JSON_LENGTH = "inference-header-content-length"  # of the JSON part, if binary tensors follow it


def router(service: Service) -> APIRouter:
    """The routes; health is in `operations`."""
    routes, settings, signature = APIRouter(tags=["V2"]), service.settings, service.signature
    versions = [settings.version] if settings.version else []
    described = {
        "name": settings.name,
        "versions": versions,
        "platform": "mlflow_pyfunc",
        "inputs": [{"name": signature.column, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in _outputs(signature.outputs).items()
        ],
    }

    @routes.get("/v2", summary="The server")
    async def server() -> Response:
        version = settings.version or "0"
        return JSONResponse({"name": "mlflow-catdog", "version": version, "extensions": ["binary_tensor_data"]})

    @routes.get("/v2/models", summary="The model's name")
    async def models() -> Response:
        return JSONResponse({"models": [settings.name]})

    async def model() -> Response:
        return JSONResponse(described)

    async def ready() -> Response:
        return JSONResponse({"name": settings.name, "ready": True})

    async def infer(request: Request) -> Response:
        """One BYTES tensor of images, in base64 or as a binary tensor; `parameters` may have `explain`."""
        body = await service.read(request)
        inference, binary = await _split(request, body)
        images = _images(inference, binary)
        parameters = inference.get("parameters")
        explain = isinstance(parameters, dict) and parameters.get("explain") is True
        rows = await service.predict(images, explain)
        response = {"model_name": settings.name, "outputs": _tensors(rows, signature.outputs, _requested(inference))}
        if settings.version:
            response["model_version"] = settings.version
        if isinstance(inference.get("id"), str):
            response["id"] = inference["id"].encode("utf-8", "replace").decode()  # JSON can have half a character
        return JSONResponse(response)

    paths = [f"/v2/models/{settings.name}", *(f"/v2/models/{settings.name}/versions/{version}" for version in versions)]
    for path in paths:
        routes.get(path, summary="Inputs and outputs")(model)
        routes.get(f"{path}/ready", summary="Ready?")(ready)
        routes.post(f"{path}/infer", summary="Classify images (V2)", responses=REFUSALS)(infer)
    return routes


async def _split(request: Request, body: bytes) -> tuple[Mapping[str, Any], bytes]:
    """The JSON part, and the binary tensors behind it."""
    length = request.headers.get(_JSON_LENGTH)
    if length is None:
        return await bodies.parse_json(request, body), b""
    if not length.isdecimal() or int(length) > len(body):
        raise Refused(400, f"Inference-Header-Content-Length {length!r} is not the length of the body's JSON part")
    return await bodies.parse_json(request, body[: int(length)]), body[int(length) :]


def _images(inference: Mapping[str, Any], binary: bytes) -> Sequence[bytes | str]:
    """The elements of the one input tensor."""
    tensors = inference.get("inputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise Refused(422, "`inputs` is not a list with one tensor, the images")
    tensor = tensors[0]
    if (datatype := tensor.get("datatype")) != "BYTES":
        raise Refused(422, f"the input's datatype is {brief(datatype)}: send BYTES, one image file per element")
    parameters = tensor.get("parameters")
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        if parameters["binary_data_size"] != len(binary):
            raise Refused(400, f"binary_data_size is not the {len(binary)} bytes that follow the JSON part")
        return _elements(binary)
    return bodies.as_images(tensor.get("data"), "`data`")


def _elements(binary: bytes) -> list[bytes]:
    """Split a binary BYTES tensor: each element has its length before it, a little-endian uint32."""
    elements, start = [], 0
    while start < len(binary):
        end = start + 4
        if end <= len(binary):
            end += struct.unpack_from("<I", binary, start)[0]
        if end > len(binary):
            raise Refused(400, "the binary tensor ends within an element")
        elements.append(binary[start + 4 : end])
        start = end
    return elements


def _outputs(known: Mapping[str, str]) -> Mapping[str, str]:
    return known or {"prediction": "BYTES"}


def _requested(inference: Mapping[str, Any]) -> list[Any] | None:
    """Names of the outputs that the client wants; None for all."""
    outputs = inference.get("outputs")
    if not isinstance(outputs, list):
        return None
    return [output.get("name") for output in outputs if isinstance(output, dict)] or None


def _tensors(rows: list[Any], known: Mapping[str, str], requested: list[Any] | None) -> list[dict[str, Any]]:
    """One tensor for each column of the rows; without known columns, one with each row as JSON."""
    columns = _outputs(known)
    for name in requested or ():
        if not isinstance(name, str) or name not in columns:
            raise Refused(422, f"there is no output {brief(name)}: choose from {', '.join(columns)}")
    if not known:
        rows = [{"prediction": json.dumps(row)} for row in rows]
    return [
        {
            "name": name,
            "datatype": columns[name],
            "shape": [len(rows)],
            "data": [_cell(row.get(name), columns[name]) for row in rows],
        }
        for name in requested or columns
    ]


def _cell(value: Any, datatype: str) -> Any:
    """A value that clients can put into an array: numpy turns null into NaN, but only among floats."""
    if datatype == "BYTES":
        return value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return False if value is None and datatype == "BOOL" else value
