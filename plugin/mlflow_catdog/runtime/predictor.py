"""Images → rows: the model, a pool of threads that run it, and a queue with an end."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from .errors import Refused, too_busy
from .metrics import Metrics
from .settings import Settings
from .signature import Signature

Row = Any  # whatever JSON the model makes of one image; of this project's models, a dict


class Predictor:
    """A loaded model, for several requests at once."""

    def __init__(self, model: Any, signature: Signature, settings: Settings, metrics: Metrics) -> None:
        """Start the threads.

        Args:
            model: An `mlflow.pyfunc.PyFuncModel`. If it wraps a `PythonModel` with a method
                `predict_images(images, explain)`, images go there directly; else to the column of a DataFrame.
            signature: Of the model.
            settings: Limits.
            metrics: Count what it predicts.
        """
        self._model, self._signature, self._settings, self._metrics = model, signature, settings, metrics
        self._direct = _direct_method(model)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="predict")
        self._lock = threading.Lock()
        self._held = 0
        _count_predictions(model, signature.column, metrics)

    async def predict(self, images: Sequence[bytes | str], explain: bool = False) -> list[Row]:
        """Classify images.

        Args:
            images: Files, or their base64.
            explain: Whether to ask for heat maps.

        Returns:
            One row per image, in the same order.

        Raises:
            Refused: 422 for no image or too many of them, 429 if too many requests wait, 504 if it took too long, 500 if the
                model failed.
        """
        if not images:
            raise Refused(422, "the request has no image: send the bytes of an image file")
        if len(images) > self._settings.max_files:
            raise Refused(422, f"the request has {len(images)} images: send at most {self._settings.max_files}")
        self._enter()
        job = self._pool.submit(self._run, images, explain)
        job.add_done_callback(self._leave)  # not when the client is told 504: the thread goes on until then
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), self._settings.request_timeout_s)
        except (TimeoutError, asyncio.TimeoutError):  # two classes in Python 3.10
            raise Refused(504, f"no prediction within {self._settings.request_timeout_s:g} s: send fewer images") from None

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue for a request that runs the model by itself.

        Raises:
            Refused: 429 if there is none.
        """
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._lock:
            if self._held >= self._settings.max_queue:
                raise too_busy(f"{self._held} requests are waiting for the model")
            self._held += 1
        self._metrics.queue.inc()

    def _leave(self, _: Future[Any] | None = None) -> None:
        with self._lock:
            self._held -= 1
        self._metrics.queue.dec()

    def _run(self, images: Sequence[bytes | str], explain: bool) -> list[Row]:
        try:
            if self._direct is None:
                return self._predict_table(images, explain)
            with self._metrics.predicting():
                rows: list[Row] = self._direct(images, explain)
            self._metrics.count(rows, images)
            return rows
        except Refused:
            raise
        except Exception as failure:
            traceback.print_exc()
            raise Refused(500, f"the model failed: {type(failure).__name__}: {failure}") from None

    def _predict_table(self, images: Sequence[bytes | str], explain: bool) -> list[Row]:
        import pandas as pd
        from mlflow.pyfunc.scoring_server import predictions_to_json

        cells = [_bytes(image) if self._signature.takes_bytes else _text(image) for image in images]
        table = pd.DataFrame({self._signature.column: cells})
        params = {"explain": True} if explain and self._signature.explains else None
        text = io.StringIO()
        predictions_to_json(self._model.predict(table, params=params), text)  # type: ignore[no-untyped-call]
        rows = json.loads(text.getvalue(), parse_constant=lambda _: None)["predictions"]  # JSON has no NaN
        if not isinstance(rows, list) or len(rows) != len(images):
            raise ValueError(f"it returned {len(rows) if isinstance(rows, list) else 1} rows for {len(images)} images")
        return rows


def _direct_method(model: Any) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return getattr(model.unwrap_python_model(), "predict_images", None)
    except MlflowException:  # not a `PythonModel`
        return None


def _count_predictions(model: Any, column: str, metrics: Metrics) -> None:
    """Let `model.predict` count, which MLflow's scoring server calls."""
    predict = model.predict

    def counted(data: Any, params: dict[str, Any] | None = None) -> Any:
        with metrics.predicting():
            rows = predict(data, params=params)
        metrics.count(rows, _cells(data, column))
        return rows

    model.predict = counted


def _cells(data: Any, column: str) -> Iterable[Any]:
    """The cells of a table's column; as many nothings for anything else."""
    cells = data.get(column) if hasattr(data, "get") else None
    return itertools.repeat(None) if cells is None else cells


def _bytes(image: bytes | str) -> bytes:
    try:
        return image if isinstance(image, bytes) else base64.b64decode(image, validate=True)
    except ValueError as failure:
        raise Refused(422, f"an image is not base64: {failure}") from None


def _text(image: bytes | str) -> str:
    return image if isinstance(image, str) else base64.b64encode(image).decode()
