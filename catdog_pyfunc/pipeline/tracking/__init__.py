"""MLflow runs, their interruption, and the experiment page."""

from catdog_pyfunc.pipeline.tracking.runs import (
    active_or_new_run,
    active_run_id,
    environment_params,
    log_dataset,
    log_params,
    name_run,
    run,
    run_of_project,
    set_parent_run,
)

__all__ = [
    "active_or_new_run",
    "active_run_id",
    "environment_params",
    "log_dataset",
    "log_params",
    "name_run",
    "run",
    "run_of_project",
    "set_parent_run",
]
