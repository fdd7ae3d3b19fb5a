"""What the routes work with: a request's body and images, and the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp

from . import bodies
from .metrics import Metrics
from .predictor import Predictor, Row
from .settings import Settings
from .signature import Signature


@dataclass(frozen=True)
class Service:
    """One model and its limits.

    Attributes:
        settings: Limits and names.
        signature: Of the model.
        predictor: Runs the model.
        metrics: Count.
        scoring_app: MLflow's own server around the same model.
    """

    settings: Settings
    signature: Signature
    predictor: Predictor
    metrics: Metrics
    scoring_app: ASGIApp

    async def read(self, request: Request) -> bytes:
        """A request's body; see `bodies.read`."""
        return await bodies.read(request, self.settings)

    async def read_images(self, request: Request) -> Sequence[bytes | str]:
        """A request's images; see `bodies.images`."""
        return await bodies.images(request, await self.read(request), self.settings)

    async def predict(self, images: Sequence[bytes | str], explain: bool = False) -> list[Row]:
        """One row per image; see `Predictor.predict`."""
        return await self.predictor.predict(images, explain)
