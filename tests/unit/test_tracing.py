"""A span per request: named by its route, a child of the caller's, without anything of the request's content."""

from __future__ import annotations

import pytest
from mlflow_catdog.runtime import tracing
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.unit.served import FakeModel, build, post


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What the servers export that a test makes."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    return exporter


def test_a_span_is_named_by_its_route_and_continues_the_callers_trace(spans: InMemorySpanExporter):
    application, _ = build(FakeModel(), name="cats")
    caller = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    post(application, "/v1/models/cats:predict?secret=1", json={"instances": ["cat"]}, headers=caller)
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("POST /v1/models/cats:predict", SpanKind.SERVER)
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/models/cats:predict",
        "http.response.status_code": 200,
    }
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"


@pytest.mark.parametrize(("failing", "status"), [(False, StatusCode.UNSET), (True, StatusCode.ERROR)])
def test_only_the_servers_own_failures_are_errors(failing: bool, status: StatusCode, spans: InMemorySpanExporter):
    def predict() -> None:
        assert not failing

    application, _ = build(FakeModel(predict))
    post(application, "/predict", content=b"cat")
    post(application, "/predict", content=b"")
    assert [span.status.status_code for span in spans.get_finished_spans()] == [status, StatusCode.UNSET]


def test_without_an_endpoint_there_are_no_spans(monkeypatch: pytest.MonkeyPatch):
    for variable in tracing._ENDPOINTS:
        monkeypatch.delenv(variable, raising=False)
    assert tracing.tracer() is None
