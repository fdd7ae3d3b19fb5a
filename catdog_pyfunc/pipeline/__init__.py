"""Training, evaluation and the model registry; needs the [train] extra and never travels with a model.

    >>> from catdog_pyfunc import pipeline
    >>> result = pipeline.train(pipeline.TrainingConfig(data="images"))
    >>> pipeline.promote(pipeline.Promotion(version=result.version), pipeline.Thresholds(min_accuracy=0.95))

What `__all__` lists is the public interface; whatever else is in this package may change. Importing it loads neither torch
nor MLflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from catdog_pyfunc.errors import (
    AccessDenied,
    CatDogError,
    EnginesDisagree,
    InvalidData,
    InvalidSetting,
    InvalidWeights,
    JobFailed,
    ModelFailed,
    PromotionLost,
    PromotionRefused,
    RegistryError,
    TrackingError,
)

if TYPE_CHECKING:
    from catdog_pyfunc.pipeline.auditing.audit import AuditResult, audit
    from catdog_pyfunc.pipeline.auditing.config import AuditConfig
    from catdog_pyfunc.pipeline.data.catalog import load_dataset
    from catdog_pyfunc.pipeline.data.corrections import Corrections, read_corrections
    from catdog_pyfunc.pipeline.data.dataset import Dataset, Example
    from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage
    from catdog_pyfunc.pipeline.evaluation.intervals import Estimate
    from catdog_pyfunc.pipeline.evaluation.metrics import Reliability
    from catdog_pyfunc.pipeline.evaluation.runs import EvaluationConfig, evaluate_model
    from catdog_pyfunc.pipeline.labelling.select import Selection, SelectionConfig, select
    from catdog_pyfunc.pipeline.monitoring.comparison import Comparison
    from catdog_pyfunc.pipeline.monitoring.config import DriftConfig
    from catdog_pyfunc.pipeline.monitoring.drift import DriftReport, check_drift
    from catdog_pyfunc.pipeline.registry.audit_log import Entry
    from catdog_pyfunc.pipeline.registry.checks import Check
    from catdog_pyfunc.pipeline.registry.gate import GateReport, Thresholds
    from catdog_pyfunc.pipeline.registry.promotion import Promotion, promote
    from catdog_pyfunc.pipeline.registry.reconcile import history, roll_back
    from catdog_pyfunc.pipeline.registry.versions import register
    from catdog_pyfunc.pipeline.scoring.config import ScoringConfig
    from catdog_pyfunc.pipeline.scoring.score import ScoringResult, score
    from catdog_pyfunc.pipeline.scoring.summary import Summary
    from catdog_pyfunc.pipeline.training.config import TrainingConfig
    from catdog_pyfunc.pipeline.training.train import TrainingResult, train

__all__ = [
    "AccessDenied",
    "AuditConfig",
    "AuditResult",
    "CatDogError",
    "Check",
    "Comparison",
    "Corrections",
    "Dataset",
    "DriftConfig",
    "DriftReport",
    "EnginesDisagree",
    "Entry",
    "Estimate",
    "Evaluation",
    "EvaluationConfig",
    "Example",
    "GateReport",
    "InvalidData",
    "InvalidSetting",
    "InvalidWeights",
    "JobFailed",
    "LabelledImage",
    "ModelFailed",
    "Promotion",
    "PromotionLost",
    "PromotionRefused",
    "RegistryError",
    "Reliability",
    "ScoringConfig",
    "ScoringResult",
    "Selection",
    "SelectionConfig",
    "Summary",
    "Thresholds",
    "TrackingError",
    "TrainingConfig",
    "TrainingResult",
    "audit",
    "check_drift",
    "evaluate_model",
    "history",
    "load_dataset",
    "promote",
    "read_corrections",
    "register",
    "roll_back",
    "score",
    "select",
    "train",
]
_MODULES = {
    "auditing.audit": ("AuditResult", "audit"),
    "auditing.config": ("AuditConfig",),
    "data.catalog": ("load_dataset",),
    "data.corrections": ("Corrections", "read_corrections"),
    "data.dataset": ("Dataset", "Example"),
    "evaluation.evaluation": ("Evaluation", "LabelledImage"),
    "evaluation.intervals": ("Estimate",),
    "evaluation.metrics": ("Reliability",),
    "evaluation.runs": ("EvaluationConfig", "evaluate_model"),
    "labelling.select": ("Selection", "SelectionConfig", "select"),
    "monitoring.comparison": ("Comparison",),
    "monitoring.config": ("DriftConfig",),
    "monitoring.drift": ("DriftReport", "check_drift"),
    "registry.audit_log": ("Entry",),
    "registry.checks": ("Check",),
    "registry.gate": ("GateReport", "Thresholds"),
    "registry.promotion": ("Promotion", "promote"),
    "registry.reconcile": ("history", "roll_back"),
    "registry.versions": ("register",),
    "scoring.config": ("ScoringConfig",),
    "scoring.score": ("ScoringResult", "score"),
    "scoring.summary": ("Summary",),
    "training.config": ("TrainingConfig",),
    "training.train": ("TrainingResult", "train"),
}
"""Module → the public names that are imported from it on first use."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
