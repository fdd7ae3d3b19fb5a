"""What a run leaves in MLflow: its end, parameters, data sets and system facts."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import mlflow
from mlflow.data.dataset import Dataset as TrackedDataset
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from catdog_pyfunc import internals
from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import TrackingError, first_line
from catdog_pyfunc.pipeline import interrupted
from catdog_pyfunc.pipeline.data.dataset import ALL, Dataset
from catdog_pyfunc.pipeline.data.mlflow_source import ImageFolderSource

EXPERIMENT = "catdog"
_MADE_UP = re.compile(r"[a-z]+-[a-z]+-\d+")  # "brawny-carp-123": MLflow's names for runs without one
_CONTEXTS = {"train": "training", "val": "validation", "test": "testing", ALL: "evaluation"}


@contextlib.contextmanager
def run(name: str | None = None) -> Iterator[mlflow.ActiveRun]:
    """Be in a run that ends as what happened: FINISHED, FAILED, or KILLED on Ctrl-C and SIGTERM; never left RUNNING.

    Args:
        name: The run's name, unless `mlflow run --run-name` gave one; None for one that MLflow makes up.

    Yields:
        The run.

    Raises:
        TrackingError: The tracking store can't be reached or written.
    """
    under_mlflow_run = "MLFLOW_RUN_ID" in os.environ  # MLflow takes it out of the environment when it starts the run
    with _terminated_as_interrupted():
        try:
            if not under_mlflow_run and "MLFLOW_EXPERIMENT_ID" not in os.environ:
                mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
            active = mlflow.start_run(run_name=name, log_system_metrics=False)
        except (MlflowException, OSError) as unreachable:
            raise TrackingError(
                f"the tracking store {mlflow.get_tracking_uri()} can't be used ({first_line(unreachable)}): "
                "check MLFLOW_TRACKING_URI and that you may write there"
            ) from None
        try:
            if name:
                name_run(name)
            yield active
        except KeyboardInterrupt:
            mlflow.end_run(RunStatus.to_string(RunStatus.KILLED))
            if under_mlflow_run:
                interrupted.mark_killed(active.info.run_id)
            raise
        except BaseException as failure:
            with contextlib.suppress(MlflowException):  # the failure itself may be the store's
                mlflow.set_tag("failure", first_line(failure)[:500])
            mlflow.end_run(RunStatus.to_string(RunStatus.FAILED))
            raise
        mlflow.end_run()


def run_of_project(name: str) -> contextlib.AbstractContextManager[object]:
    """Be in the run that `mlflow run` made for an entry point, and name it; without one, make none."""
    return run(name) if "MLFLOW_RUN_ID" in os.environ else contextlib.nullcontext()


def name_run(name: str) -> None:
    """Name the active run, if any, again if need be; not one that began with a name which MLflow didn't make up."""
    active = mlflow.active_run()
    if active and _MADE_UP.fullmatch(active.info.run_name):  # the name it began with, whatever it is called by now
        mlflow.set_tag(internals.RUN_NAME_TAG, name)


def set_parent_run(run_id: str | None) -> None:
    """Fold the active run away under the training whose model it is about, in the UI's list of runs."""
    active = mlflow.active_run()
    if active is None or not run_id:
        return
    with contextlib.suppress(MlflowException):  # a run that was deleted, or never was in this store
        if mlflow.MlflowClient().get_run(run_id).info.experiment_id == active.info.experiment_id:
            mlflow.set_tag(internals.PARENT_RUN_TAG, run_id)


def active_run_id() -> str:
    """The active run's id; "" if there is none."""
    active = mlflow.active_run()
    return str(active.info.run_id) if active else ""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C; after the first of either, let no second one disturb the run's ending."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, interrupt) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def log_params(params: Mapping[str, Any]) -> None:
    """Log parameters, but for those that `mlflow run` has logged already."""
    active = mlflow.active_run()
    assert active is not None
    known = mlflow.MlflowClient().get_run(active.info.run_id).data.params
    mlflow.log_params({key: value for key, value in params.items() if key not in known})


class _FolderDataset(TrackedDataset):
    """One split of a data set as MLflow shows it: where it is, its digest, and how many pictures each class has."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        self._counts = dataset.counts(split)
        digest = dataset.digest(split)
        # MLflow keeps one source for each name and digest of an experiment, so the name says which folder it is.
        super().__init__(ImageFolderSource(dataset.source, split, digest), f"{Path(dataset.source).name}/{split}", digest)

    def _compute_digest(self) -> str:
        raise NotImplementedError("the digest is always given")

    @property
    def profile(self) -> dict[str, Any]:
        """How many pictures, and how many of each class."""
        return {"pictures": sum(self._counts.values()), "classes": self._counts}

    @property
    def schema(self) -> None:
        """A folder of pictures has no columns."""

    def to_dict(self) -> dict[str, str]:
        """Name, digest, source and profile, as MLflow stores them."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


def log_dataset(dataset: Dataset, split: str) -> TrackedDataset:
    """Make one split of a data set, or all, an input of the run.

    Returns:
        The data set as MLflow knows it, for `mlflow.log_metrics`.
    """
    tracked = _FolderDataset(dataset, split)
    mlflow.log_input(tracked, context=_CONTEXTS[split])
    return tracked


def environment_params() -> dict[str, str]:
    """What machine and versions a run had."""
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
