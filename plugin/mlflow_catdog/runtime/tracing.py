"""A span for each request, sent where OpenTelemetry's own environment variables say; off without them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracer() -> Any:
    """A tracer that exports in the background over OTLP/HTTP; None if no endpoint is set."""
    if not any(os.environ.get(variable) for variable in _ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "catdog")})
    provider = TracerProvider(resource=resource)  # ends with the process: what waits is sent then
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("mlflow_catdog")


@contextlib.contextmanager
def request_span(tracer: Any, method: str, headers: dict[str, str]) -> Iterator[Any]:
    """A server's span, a child of the caller's if `traceparent` names one; None without a tracer."""
    if tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(headers)
    with tracer.start_as_current_span(method, context=parent, kind=SpanKind.SERVER) as span:
        yield span


def describe(span: Any, method: str, route: str, status: int) -> None:
    """Name a span by its route, as OpenTelemetry's conventions for HTTP ask."""
    if span is None:
        return
    from opentelemetry.trace import StatusCode

    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_status(StatusCode.ERROR)
