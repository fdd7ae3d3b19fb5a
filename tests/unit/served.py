"""Servers around small models, and requests to them without a network."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import mlflow
from mlflow.models import Model, ModelSignature
from mlflow_catdog.runtime import internals, server
from mlflow_catdog.runtime.gateway import Gateway
from mlflow_catdog.runtime.settings import Settings
from starlette.types import ASGIApp

from catdog_pyfunc.pyfunc_model import signature

CONFIDENCES = {b"cat": 0.75, b"dog": 0.25}
_CODE = """
import mlflow
import pandas as pd

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        cells = list(model_input["photo"])
        {predicting}

mlflow.models.set_model(Model())
"""


class FakeModel:
    """Like a loaded model of this project; its images are texts, and the one that says `damaged` cannot be read."""

    def __init__(self, predicting: Callable[[], object] = lambda: None) -> None:
        """Predict.

        Args:
            predicting: Called before each prediction.
        """
        self.metadata = Model(signature=signature(["cat", "dog"]))
        self._predicting = predicting

    def unwrap_python_model(self) -> FakeModel:
        return self

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        return self.predict_images(list(data["image"]), bool(params and params["explain"]))

    def predict_images(self, images: Sequence[bytes | str], explain: bool = False) -> list[dict[str, Any]]:
        self._predicting()
        return [self._row(image.encode() if isinstance(image, str) else image, explain) for image in images]

    def _row(self, image: bytes, explain: bool) -> dict[str, Any]:
        if image == b"damaged":
            nothing = {"label": None, "confidence": None, "probabilities": {"cat": None, "dog": None}, "in_domain": None}
            return {**nothing, "error": "not an image", "domain_score": None, "heatmap": None}
        cat = CONFIDENCES.get(image, 0.6)
        return {
            "label": "cat" if cat > 0.5 else "dog",
            "confidence": max(cat, 1 - cat),
            "probabilities": {"cat": cat, "dog": 1 - cat},
            "error": None,
            "in_domain": image in CONFIDENCES,
            "domain_score": 0.5,
            "heatmap": "cG5n" if explain else None,
        }


def load_saved(folder: Path, predicting: str, signature: ModelSignature) -> Any:
    """A third-party model, saved and loaded by MLflow.

    Args:
        folder: To make the model in.
        predicting: Statement that returns the prediction for the list `cells` of the column `photo`.
        signature: Of the model.
    """
    code = folder / "third_party.py"
    code.write_text(_CODE.format(predicting=predicting))
    mlflow.pyfunc.save_model(
        str(folder / "model"), python_model=str(code), signature=signature, pip_requirements=["mlflow-skinny"]
    )
    return mlflow.pyfunc.load_model(str(folder / "model"))


def build(model: Any, column: str = "image", **settings: Any) -> tuple[ASGIApp, Gateway]:
    """The server around a loaded model, as `app.load` builds it, and the gateway in it."""
    own = copy.copy(model)  # the server replaces its `predict`
    return server.build(own, internals.scoring_app(own), column, Settings(**settings))


def serve(model: Any, column: str = "image", **settings: Any) -> ASGIApp:
    """The server around a loaded model."""
    return build(model, column, **settings)[0]


def client(application: ASGIApp) -> httpx.AsyncClient:
    """Sends requests to an application, for use within its event loop."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://server", timeout=60)  # type: ignore[arg-type]


def run(application: ASGIApp, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """The result of requests that run together."""

    async def main() -> Any:
        async with client(application) as requests:
            return await asyncio.wait_for(scenario(requests), 60)

    return asyncio.run(main())


def request(application: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """The response to one request."""
    response: httpx.Response = run(application, lambda requests: requests.request(method, path, **options))
    return response


def get(application: ASGIApp, path: str, **options: Any) -> httpx.Response:
    """The response to a GET."""
    return request(application, "GET", path, **options)


def post(application: ASGIApp, path: str, **options: Any) -> httpx.Response:
    """The response to a POST."""
    return request(application, "POST", path, **options)
