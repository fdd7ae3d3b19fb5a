"""MLflow runs: how they start and end, their names, parameters and datasets."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.dataset import Dataset as MlflowDataset
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from catdog_pyfunc import access, internals
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import TrackingError, first_line
from catdog_pyfunc.pipeline import interrupted
from catdog_pyfunc.pipeline.data.dataset import ALL, Dataset
from catdog_pyfunc.pipeline.data.mlflow_source import ImageFolderSource
from catdog_pyfunc.pipeline.processes import sigterm_as_interrupt

EXPERIMENT = "catdog"
_CONTEXTS = {"train": "training", "val": "validation", "test": "testing", ALL: "evaluation"}


@contextlib.contextmanager
def run(name: str | None = None) -> Iterator[mlflow.ActiveRun]:
    """Start a run that always ends: as FINISHED, FAILED, or KILLED on Ctrl-C and SIGTERM.

    Under `mlflow run` this is the run that MLflow has created. Otherwise it belongs to the experiment in
    `MLFLOW_EXPERIMENT_NAME` or `MLFLOW_EXPERIMENT_ID`, by default "catdog".

    Args:
        name: Name of the run, unless `mlflow run --run-name` gave one; None for a name that MLflow generates.

    Yields:
        The active run.

    Raises:
        TrackingError: The tracking store cannot be reached or written.
        AccessDenied: The tracking server wants a sign-in, or a permission.
    """
    under_mlflow_run = "MLFLOW_RUN_ID" in os.environ  # MLflow removes it from the environment when the run starts
    with sigterm_as_interrupt():
        active = _start(name, under_mlflow_run)
        try:
            with _failing_with_errors(), access.explained():
                if name:
                    name_run(name)
                yield active
        except KeyboardInterrupt:
            if under_mlflow_run:  # first, as a second signal may cut off what follows
                interrupted.mark_killed(active.info.run_id)
            killed = RunStatus.to_string(RunStatus.KILLED)
            if mlflow.active_run():
                mlflow.end_run(killed)
            else:  # the signal has cut off the `end_run` of a failure
                mlflow.MlflowClient().set_terminated(active.info.run_id, killed)
            raise
        mlflow.end_run()


@contextlib.contextmanager
def _failing_with_errors() -> Iterator[None]:
    """End the active run as FAILED, with the reason, on whatever is raised but `KeyboardInterrupt`."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        with contextlib.suppress(MlflowException):  # the failure may be the store's own
            mlflow.set_tag("failure", first_line(failure))
        mlflow.end_run(RunStatus.to_string(RunStatus.FAILED))
        raise


def _start(name: str | None, under_mlflow_run: bool) -> mlflow.ActiveRun:
    try:
        user = access.signed_in_user()
        if not under_mlflow_run and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
        active = mlflow.start_run(run_name=name, log_system_metrics=False)
        if user:  # MLflow names the login
            mlflow.set_tag(internals.USER_TAG, user)
        return active
    except (MlflowException, OSError) as error:
        access.check(error)
        raise TrackingError(
            f"cannot use the tracking store {mlflow.get_tracking_uri()} ({first_line(error)}): "
            "check MLFLOW_TRACKING_URI and that you may write there"
        ) from None


@contextlib.contextmanager
def active_or_new_run() -> Iterator[mlflow.ActiveRun]:
    """Work in the active run; without one, start a run as `run` does and end it with the block.

    Yields:
        The active run.

    Raises:
        TrackingError: The tracking store cannot be reached or written.
    """
    active = mlflow.active_run()
    with contextlib.nullcontext(active) if active else run() as current:
        yield current


def run_of_project(name: str) -> contextlib.AbstractContextManager[object]:
    """Start and name the run that `mlflow run` has created for an entry point; do nothing outside `mlflow run`."""
    return run(name) if "MLFLOW_RUN_ID" in os.environ else contextlib.nullcontext()


def name_run(name: str) -> None:
    """Name the active run, if there is one whose user has not named it. May be called again with a better name."""
    active = mlflow.active_run()
    if active and internals.is_generated_run_name(active.info.run_name):  # the name it started with, whatever it is now
        mlflow.set_tag(internals.RUN_NAME_TAG, name)


def set_parent_run(run_id: str | None) -> None:
    """Nest the active run, if any, under the training run of its model in the UI's list of runs."""
    active = mlflow.active_run()
    if active is None or not run_id:
        return
    with contextlib.suppress(MlflowException):  # the run was deleted, or is in another store
        if mlflow.MlflowClient().get_run(run_id).info.experiment_id == active.info.experiment_id:
            mlflow.set_tag(internals.PARENT_RUN_TAG, run_id)


def active_run_id() -> str:
    """The active run's id; "" if there is none."""
    active = mlflow.active_run()
    return str(active.info.run_id) if active else ""


def log_params(params: Mapping[str, Any]) -> None:
    """Log parameters to the active run, except for those that `mlflow run` has logged already."""
    logged = mlflow.MlflowClient().get_run(active_run_id()).data.params
    mlflow.log_params({key: value for key, value in params.items() if key not in logged})


class _SplitDataset(MlflowDataset):
    """One split of a dataset as MLflow stores it: source, digest and image counts per class."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        self._counts = dataset.counts(split)
        digest = dataset.digest(split)
        # MLflow keeps one source for each name and digest in an experiment, so the name says which folder it is.
        source = ImageFolderSource(dataset.source, split, digest, dataset.corrected_by)
        super().__init__(source, f"{Path(dataset.source).name}/{split}", digest)

    def _compute_digest(self) -> str:
        raise NotImplementedError("the digest is always passed in")

    @property
    def profile(self) -> dict[str, Any]:
        """Number of images, in total and per class."""
        return {"images": sum(self._counts.values()), "classes": self._counts}

    @property
    def schema(self) -> None:
        """None: a folder of images has no columns."""

    def to_dict(self) -> dict[str, str]:
        """Name, digest, source and profile, as MLflow stores them."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


def log_dataset(dataset: Dataset, split: str) -> MlflowDataset:
    """Log one split of a dataset, or "all", as an input of the active run.

    Returns:
        The dataset as MLflow knows it, for `mlflow.log_metrics`.
    """
    logged = _SplitDataset(dataset, split)
    mlflow.log_input(logged, context=_CONTEXTS[split])
    return logged


def environment_params() -> dict[str, str]:
    """Machine and versions, as parameters of a run."""
    import onnxruntime
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system.python": platform.python_version(),
        "system.platform": platform.platform(),
        "system.cores": str(available_cores()),
        "system.gpu": gpu,
        "system.torch": torch.__version__,
        "system.onnxruntime": onnxruntime.__version__,
        "system.mlflow": mlflow.__version__,
    }
