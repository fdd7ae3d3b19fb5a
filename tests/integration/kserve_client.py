"""Sends requests with kserve's own client, in an environment with kserve: `python kserve_client.py ADDRESS MODEL IMAGE…`.

Prints the responses as JSON: by both protocols, and with images as JSON and as binary tensors where there are both.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def request_v1(address: str, model: str, images: list[bytes]) -> dict[str, Any]:
    """Health, and predictions for instances as KServe's documentation writes them."""
    instances = [{"image": {"b64": base64.b64encode(image).decode()}} for image in images]
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        response = await client.infer(address, {"instances": instances}, model)
        return {
            "live": await client.is_server_live(address),
            "model ready": await client.is_model_ready(address, model),
            "rows": response["predictions"],
        }


async def request_v2(address: str, model: str, images: list[bytes]) -> dict[str, Any]:
    """Health, predictions, and the reason of a refusal."""
    texts = [base64.b64encode(image).decode() for image in images]
    in_json = InferInput("image", [len(images)], "BYTES", texts)
    binary = InferInput("image", [len(images)], "BYTES")
    binary.set_data_from_numpy(np.array(images, dtype=object), binary_data=True)
    pixels = InferInput("image", [1], "FP32", [0.5])
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        responses = {
            "live": await client.is_server_live(address),
            "ready": await client.is_server_ready(address),
            "model ready": await client.is_model_ready(address, model),
            "other ready": await client.is_model_ready(address, "Other"),
        }
        for name, tensor in (("JSON", in_json), ("binary", binary)):
            response = await client.infer(address, InferRequest(model, [tensor], "seven"), model)
            labels, probabilities = (response.get_output_by_name(name).data for name in ("label", "probabilities"))
            responses[name] = [
                {"label": label, "probabilities": json.loads(each)}
                for label, each in zip(labels, probabilities, strict=True)
            ]
            responses[f"{name}, id"] = response.id
        try:
            await client.infer(address, InferRequest(model, [pixels]), model)
        except httpx.HTTPStatusError as refused:
            responses["refusal"] = str(refused)
    return responses


async def main(address: str, model: str, *files: str) -> None:
    """Send the same images by both protocols."""
    images = [Path(file).read_bytes() for file in files]
    print(json.dumps({"v1": await request_v1(address, model, images), "v2": await request_v2(address, model, images)}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
