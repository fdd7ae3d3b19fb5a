"""README and docs/ agree with the code: parameters and defaults, links, pages."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.runtime import gateway
from mlflow_catdog.runtime.metrics import Metrics
from mlflow_catdog.runtime.routes.predict import REFUSALS
from mlflow_catdog.runtime.settings import Settings
from prometheus_client.parser import text_string_to_metric_families

from catdog_pyfunc.pipeline.auditing.config import AuditConfig
from catdog_pyfunc.pipeline.evaluation.runs import EvaluationConfig
from catdog_pyfunc.pipeline.labelling.select import SelectionConfig
from catdog_pyfunc.pipeline.monitoring.config import DriftConfig
from catdog_pyfunc.pipeline.registry.gate import Thresholds
from catdog_pyfunc.pipeline.registry.promotion import Promotion
from catdog_pyfunc.pipeline.scoring.config import ScoringConfig
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pyfunc_model import DEFAULT_MODEL_CONFIG
from tests.docs import pages, tables
from tests.project import REPOSITORY


def defaults(dataclass: type) -> dict[str, str]:
    return {field.name: shown(field.default) for field in fields(dataclass)}


def shown(default: object) -> str:
    """A default as the tables write it."""
    if default is MISSING:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.10g}" if isinstance(default, float) else str(default)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("training.md", defaults(TrainingConfig)),
        ("audit.md", defaults(AuditConfig)),
        ("evaluation.md", defaults(EvaluationConfig)),
        ("scoring.md", defaults(ScoringConfig)),
        ("labelling.md", defaults(SelectionConfig)),
        ("drift.md", defaults(DriftConfig)),
        ("registry-and-gate.md", defaults(Promotion)),
        ("registry-and-gate.md", defaults(Thresholds)),
        ("operations.md", defaults(Options)),
        ("serving.md", {name: shown(value) for name, value in DEFAULT_MODEL_CONFIG.items()}),
    ],
    ids=[
        "training",
        "audit",
        "evaluation",
        "scoring",
        "selection",
        "drift",
        "promotion",
        "gate",
        "deployment",
        "model_config",
    ],
)
def test_a_table_of_the_docs_has_every_parameter_and_default(page: str, expected: dict[str, str]):
    written = [{row[0]: row[1] for row in table[1:]} for table in tables(page)]
    assert expected in written


def first_cells(page: str) -> str:
    """The first column of all tables of a page."""
    return "\n".join(row[0] for table in tables(page) for row in table[1:])


def server_source() -> str:
    return "".join(file.read_text() for file in (REPOSITORY / "plugin" / "mlflow_catdog" / "runtime").rglob("*.py"))


def test_the_operations_page_has_every_variable_of_the_server():
    variables = set(re.findall(r'"((?:AIP|CATDOG|MLFLOW|OTEL|PROMETHEUS)_[A-Z_]+)"', server_source()))
    written = set(re.findall(r"`([A-Z_]+)`", (REPOSITORY / "docs" / "operations.md").read_text()))
    assert variables - written == set()


def test_the_operations_page_has_every_default_of_the_server():
    variables = {
        "CATDOG_MAX_BODY_MB": Settings.max_body_mb,
        "CATDOG_MAX_FILES": Settings.max_files,
        "CATDOG_MAX_QUEUE": Settings.max_queue,
        "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": Settings.request_timeout_s,
    }
    written = {row[0]: row[2] for table in tables("operations.md") for row in table[1:] if len(row) > 2}
    assert {name: written[name] for name in variables} == {name: shown(value) for name, value in variables.items()}


def test_the_operations_page_has_every_status_of_the_server():
    statuses = {str(status) for status in REFUSALS} | set(re.findall(r"Refused\(\s*(\d{3})", server_source()))
    assert statuses - set(re.findall(r"\d{3}", first_cells("operations.md"))) == set()


def test_the_operations_page_has_every_metric_with_its_labels():
    metrics = Metrics("CatDogClassifier", "1")
    metrics.duration.labels("POST", "/predict", "200").observe(0.1)
    metrics.count([{"label": "cat"}], [b"image"])
    counted = {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in text_string_to_metric_families(metrics.render().decode())
        if not family.name.endswith("_created")
    }
    (table,) = [table for table in tables("operations.md") if table[0][0] == "metric"]
    assert {row[0]: set(filter(None, row[1].split(", "))) for row in table[1:]} == counted


def test_the_security_page_has_every_path_that_is_open_without_a_key():
    (table,) = [table for table in tables("../SECURITY.md") if table[0] == ["path", "tells"]]
    assert {path for row in table[1:] for path in row[0].split(", ")} == set(gateway._OPEN)


def test_readme_fits_on_two_screens():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_the_navigation():
    assert sorted(pages()[1:]) == sorted((REPOSITORY / "docs").glob("*.md"))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_somewhere(name: str):
    """Those of the site are checked by `mkdocs build --strict`."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", (REPOSITORY / name).read_text())
    assert [link for link in links if not Path(REPOSITORY / link).exists()] == []
