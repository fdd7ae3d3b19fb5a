"""What `/metrics` tells Prometheus, summed over all workers of a container."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it when it is imported
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one process; in a container they lie in files that every worker can sum up."""

    def __init__(self, name: str, version: str) -> None:
        """Start counting.

        Args:
            name: Of the model.
            version: Of the model.
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
        self._images = Counter("catdog_images", "Images that got a prediction", ("label",), **common)
        self._errors = Counter("catdog_image_errors", "Images that the model could not use", **common)
        self._outside = Counter("catdog_out_of_domain_images", "Images that resemble none of the classes", **common)
        model = Gauge("catdog_model_info", "The model that serves", ("name", "version"), multiprocess_mode="max", **common)
        model.labels(name, version).set(1)

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Measure the model's time."""
        with self._predict.time():
            yield

    def count(self, rows: Any) -> None:
        """Count the model's answers, if they look like rows of an image classifier."""
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("error"):
                self._errors.inc()
            elif isinstance(row, dict) and isinstance(row.get("label"), str):
                self._images.labels(row["label"]).inc()
                self._outside.inc(row.get("in_domain") is False)

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
