"""The experiment page in the MLflow UI: a description, and a saved view with the columns that matter."""

from __future__ import annotations

import json
import time

import mlflow

from catdog_pyfunc import internals

_VIEW = "results"
_VIEW_TAG = internals.SHARED_VIEW_TAG.format(name=_VIEW)
_COLUMNS = (
    "attributes.`Models`",
    "metrics.`test/accuracy`",
    "metrics.`test/log_loss`",
    "metrics.`test/calibration_error`",
    "params.`backbone`",
    "params.`finetune.learning_rate`",
    "params.`seed`",
)


def set_up_experiment_page(experiment_id: str) -> None:
    """Add a description and a saved view to an experiment, unless it has its own.

    Args:
        experiment_id: Id of an experiment that holds training runs.
    """
    client = mlflow.MlflowClient()
    tags = client.get_experiment(experiment_id).tags
    link = f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}"
    wanted = {
        _VIEW_TAG: json.dumps(_view()),
        internals.NOTE_TAG: "Training runs of image classifiers, with their evaluations and promotions nested below. "
        f"[Results, best first]({link})",
    }
    for key, value in wanted.items():
        if key not in tags:
            client.set_experiment_tag(experiment_id, key, value)


def _view() -> dict[str, object]:
    now = int(time.time() * 1000)
    best = "metrics.`test/accuracy`"
    state = {
        "searchFilter": f"{best} >= 0",  # training and evaluation runs, but no promotions and no failed runs
        "orderByKey": best,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": _COLUMNS,
        "columnOrder": [],
        "columnWidths": {},
    }
    return {"name": "Results", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
