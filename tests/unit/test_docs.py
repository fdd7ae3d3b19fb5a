"""README and docs/ agree with the code: parameters and defaults, links, pages."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from mlflow_catdog.deployments.options import Options

from catdog_pyfunc.pipeline.evaluation.runs import EvaluationConfig
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
        ("evaluation.md", defaults(EvaluationConfig)),
        ("scoring.md", defaults(ScoringConfig)),
        ("registry-and-gate.md", defaults(Promotion)),
        ("registry-and-gate.md", defaults(Thresholds)),
        ("deployments.md", defaults(Options)),
        ("serving.md", {name: shown(value) for name, value in DEFAULT_MODEL_CONFIG.items()}),
    ],
    ids=["training", "evaluation", "scoring", "promotion", "gate", "deployment", "model_config"],
)
def test_a_table_of_the_docs_has_every_parameter_and_default(page: str, expected: dict[str, str]):
    written = [{row[0]: row[1] for row in table[1:]} for table in tables(page)]
    assert expected in written


def test_readme_fits_on_two_screens():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_the_navigation():
    assert sorted(pages()[1:]) == sorted((REPOSITORY / "docs").glob("*.md"))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str):
    """Those of the site are checked by `mkdocs build --strict`."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", (REPOSITORY / name).read_text())
    assert [link for link in links if not Path(REPOSITORY / link).exists()] == []
