"""All private and undocumented names of MLflow and torchvision that this package relies on.

`tests/unit/test_contracts.py` checks each against the installed version: an upgrade that changes one fails there
and is fixed here. `mlflow_catdog.runtime.internals` does the same for deployments' containers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Environment variables of MLflow's scoring server.
IN_SCORING_SERVER = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # "true" in the server, and while an input example is validated
SERVED_MODEL = "__pyfunc_model_path__"  # set only in the server's own process
SERVING_MODEL_CONFIG = "SERVING_MODEL_CONFIG"  # JSON, passed to the model as `model_config`

# Tags that MLflow's UI interprets.
NOTE_TAG = "mlflow.note.content"
RUN_NAME_TAG = "mlflow.runName"
USER_TAG = "mlflow.user"
PARENT_RUN_TAG = "mlflow.parentRunId"
DATASET_CONTEXT_TAG = "mlflow.data.context"
SHARED_VIEW_TAG = "mlflow.sharedViewState.{name}"  # written by "Share view"

# The pytorch flavor refuses to load without this file, which names the module that unpickles.
PICKLE_MODULE_FILE = ("pickle_module_info.txt", "mlflow.pytorch.pickle_module")


def is_generated_run_name(name: str) -> bool:
    """Whether MLflow generated a run's name ("brawny-carp-123"): one of its predicates, one of its nouns and a number."""
    from mlflow.utils import name_utils

    predicate, noun, number = ([*name.split("-"), "", "", ""])[:3]
    return (
        name.count("-") == 2
        and predicate in name_utils._GENERATOR_PREDICATES
        and noun in name_utils._GENERATOR_NOUNS
        and number.isdecimal()
    )


def registered_version(client: MlflowClient, model_uri: str) -> tuple[str, str]:
    """The name and current version that `models:/<name>/<version>` or `models:/<name>@<alias>` refers to."""
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    name, version = get_model_name_and_version(client, model_uri)  # type: ignore[no-untyped-call]
    return str(name), str(version)


def user_name() -> str | None:
    """The name that MLflow sends to the tracking server: from the environment or `~/.mlflow/credentials`."""
    from mlflow.utils.credentials import read_mlflow_creds

    name: str | None = read_mlflow_creds().username
    return name


def current_user(tracking_uri: str, max_retries: int | None = None) -> str | None:
    """The name of the user whom a tracking server with MLflow's `basic-auth` has let in; None from any other server."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    endpoint = "/api/2.0/mlflow/users/current"
    credentials = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
    response = http_request(credentials, endpoint, "GET", max_retries=max_retries)  # type: ignore[no-untyped-call]
    if response.status_code == 401:
        verify_rest_response(response, endpoint)
    try:
        return str(response.json()["user"]["username"])
    except (ValueError, KeyError, TypeError):
        return None


def local_model(model_uri: str) -> Path | None:
    """The folder of a model whose artifacts are on this machine; None if they have to be downloaded.

    `download_artifacts` returns such a folder as it is, but only if no destination is given, in which case it leaves
    downloads behind in the temporary folder.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
    from mlflow.tracking.artifact_utils import _get_root_uri_and_artifact_path

    if Path(model_uri).is_dir():
        return Path(model_uri)
    root, path = _get_root_uri_and_artifact_path(model_uri)  # type: ignore[no-untyped-call]
    repository = get_artifact_repository(root)
    if isinstance(repository, ModelsArtifactRepository):
        repository = repository.repo
    return Path(repository.get_local_path(path)) if isinstance(repository, LocalArtifactRepository) else None


def oxford_pets(pets: Any) -> list[tuple[Path, str]]:
    """Files and classes of torchvision's `OxfordIIITPet`, whose public interface only returns decoded images."""
    return [
        (Path(path), str(pets.bin_classes[label]).lower())
        for path, label in zip(pets._images, pets._bin_labels, strict=True)
    ]
