"""What `/metrics` tells Prometheus, summed over all workers of a container."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it when it is imported
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Fixed before the model is known, so narrower towards 1, where confidences and similarities crowd; wider ones would hide
# shifts that 200 images can show (benchmarks/drift.py).
BUCKETS: dict[str, tuple[float, ...]] = {
    "confidence": tuple(round(1 - 0.7**k, 6) for k in range(1, 35)),  # 0.3 … 0.999995
    "domain_score": (
        *(k / 10 for k in range(-10, 0)),
        *(k / 50 for k in range(45)),
        *(round(1 - 0.1 * 0.9**k, 4) for k in range(45)),  # 0.9 … 0.999
    ),
    "image_bytes": tuple(round(1024 * 2 ** (k / 2)) for k in range(33)),  # 1 KiB … 64 MiB
}
"""Upper bounds of the histograms that `catdog drift` compares with the test split."""


class Metrics:
    """Counters of one process; in a container they lie in files that every worker can sum up."""

    def __init__(self, name: str, version: str, classes: Sequence[str] = ()) -> None:
        """Start counting.

        Args:
            name: Of the model.
            version: Of the model.
            classes: Labels that are counted from 0 on: Prometheus does not notice an increase to a label's first value.
        """
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        common: Any = {"registry": self._registry}
        self.duration = Histogram(
            "http_server_request_duration_seconds",
            "Time from a request's headers to the end of its response",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=_SECONDS,
            **common,
        )
        self.active = Gauge("http_server_active_requests", "Requests in progress", multiprocess_mode="livesum", **common)
        self.queue = Gauge(
            "catdog_queue_depth", "Requests that wait for the model or are with it", multiprocess_mode="livesum", **common
        )
        self._predict = Histogram(
            "request_predict_seconds", "Time in the model, waiting excluded", ("model_name",), buckets=_SECONDS, **common
        ).labels(name)
        served = ("model_name", "model_version")
        self._images = Counter("catdog_images", "Images that got a prediction", (*served, "label"), **common)
        self._served = name, version
        for label in classes:
            self._images.labels(name, version, label)

        def of_model(kind: Any, metric: str, meaning: str, **options: Any) -> Any:
            return kind(metric, meaning, served, **common, **options).labels(name, version)

        self._errors = of_model(Counter, "catdog_image_errors", "Images that the model could not use")
        self._outside = of_model(Counter, "catdog_out_of_domain_images", "Images that resemble none of the classes")
        self._histograms = {
            name: of_model(Histogram, f"catdog_{name}", meaning, buckets=BUCKETS[name])
            for name, meaning in (
                ("confidence", "Probability of the label"),
                ("domain_score", "Similarity to the training images"),
                ("image_bytes", "Size of the files that got a prediction"),
            )
        }
        model = Gauge("catdog_model_info", "The model that serves", ("name", "version"), multiprocess_mode="max", **common)
        model.labels(name, version).set(1)

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Measure the model's time."""
        with self._predict.time():
            yield

    def count(self, rows: Any, images: Iterable[Any]) -> None:
        """Count the model's answers, if they look like rows of an image classifier.

        Args:
            rows: The answers.
            images: What was asked about, one per row: a file's bytes or their base64; anything else has no size.
        """
        for row, image in zip(rows if isinstance(rows, list) else (), images, strict=False):
            if isinstance(row, dict) and row.get("error"):
                self._errors.inc()
            elif isinstance(row, dict) and isinstance(row.get("label"), str):
                self._count_prediction(row, image)

    def _count_prediction(self, row: dict[str, Any], image: Any) -> None:
        self._images.labels(*self._served, row["label"]).inc()
        self._outside.inc(row.get("in_domain") is False)
        size = len(image) if isinstance(image, bytes) else len(image) * 3 // 4 if isinstance(image, str) else None
        for name, value in {**row, "image_bytes": size}.items():
            if name in BUCKETS and isinstance(value, (int, float)) and math.isfinite(value):
                self._histograms[name].observe(value)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        if MULTIPROCESS_DIR not in os.environ:
            return bytes(generate_latest(self._registry))
        everything = CollectorRegistry()
        MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
        return bytes(generate_latest(everything))


@contextmanager
def shared_between_workers() -> Iterator[None]:
    """Let the processes that this one starts in the block count in one folder, which goes with the block."""
    with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
        os.environ[MULTIPROCESS_DIR] = folder
        yield


def forget_worker(pid: int) -> None:
    """A worker died: its gauges don't count any more; its counters do."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
