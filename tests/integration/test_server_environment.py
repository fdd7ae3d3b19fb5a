"""What the environment tells a server: where traces go, and the port and paths of Vertex AI."""

from __future__ import annotations

import base64
import contextlib
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import requests
from mlflow_catdog.deployments import build

from catdog_pyfunc.pipeline.processes import free_port
from tests.integration.same_rows import assert_same
from tests.project import MODEL, URI, Project, make_project, run_local, running
from tests.waiting import await_condition

pytestmark = pytest.mark.slow


def test_spans_arrive_at_an_mlflow_server_in_the_callers_trace(project: Project, files: Sequence[Path], tmp_path: Path):
    store, port = make_project(tmp_path / "traces"), free_port()
    collector = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.tracking_uri, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    experiment = store.client().get_experiment_by_name("catdog")
    assert experiment is not None
    sent = {
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-mlflow-experiment-id={experiment.experiment_id}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    with (
        running(command, f"{collector}/health", tmp_path / "server-log", cwd=tmp_path),
        run_local(project, tmp_path / "log", "-m", URI, "-C", f"otlp_endpoint={collector}", **sent) as deployment,
    ):
        headers = {"traceparent": f"00-{trace}-{caller}-01"}
        assert requests.post(f"{deployment.address}/predict", data=files[0].read_bytes(), headers=headers, timeout=60).ok
        (span,) = awaited_spans(collector, trace)
    assert span.name == "POST /predict"
    assert span.parent_id == caller
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.route"] == "/predict"


def awaited_spans(collector: str, trace: str) -> list[mlflow.entities.Span]:
    client, found = mlflow.MlflowClient(collector), []

    def arrived() -> bool:
        with contextlib.suppress(mlflow.exceptions.MlflowException):
            found[:] = client.get_trace(f"tr-{trace}", display=False).data.spans
        return bool(found)

    await_condition(arrived)
    return found


def test_vertex_ai_names_port_and_paths(
    project: Project, files: Sequence[Path], in_process: Sequence[dict[str, Any]], tmp_path: Path
):
    mlflow.set_tracking_uri(project.tracking_uri)
    model = mlflow.artifacts.download_artifacts(f"models:/{MODEL}/2", dst_path=str(tmp_path / "model"))
    mlflow.set_tracking_uri(None)
    image = tmp_path / "image"
    image.mkdir()
    build.write_context(Path(model), image, f"models:/{MODEL}/2")
    port, health, predict = free_port(), "/v1/endpoints/3/deployedModels/4", "/v1/endpoints/3/deployedModels/4:predict"
    told = {"AIP_HTTP_PORT": str(port), "AIP_HEALTH_ROUTE": health, "AIP_PREDICT_ROUTE": predict, "CATDOG_WORKERS": "1"}
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "runtime.supervisor"]
    with running(command, f"{address}{health}", tmp_path / "log", cwd=image, env={**project.environment, **told}):
        listening = {each.laddr for each in psutil.net_connections("tcp") if each.status == "LISTEN"}
        assert ("0.0.0.0", port) in listening  # Vertex AI asks from outside the container
        instances = [{"b64": base64.b64encode(file.read_bytes()).decode()} for file in files]
        body = {"instances": instances, "parameters": {"explain": True}}
        rows = requests.post(f"{address}{predict}", json=body, timeout=60).json()["predictions"]
    assert_same(rows, in_process)
    assert all(row["heatmap"] for row in rows)
