"""Private and undocumented names of MLflow and torchvision, each in this one place; `tests/unit/test_contracts.py` holds them.

What a new version changes shows there, and is mended here. `mlflow_catdog.runtime.internals` does the same for containers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Environment of MLflow's scoring server.
IN_SCORING_SERVER = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # "true" also while a model's input example is validated
SERVED_MODEL = "__pyfunc_model_path__"  # only in the server's own process
SERVING_MODEL_CONFIG = "SERVING_MODEL_CONFIG"  # JSON: becomes `model_config`

# Tags that MLflow's UI reads.
NOTE_TAG = "mlflow.note.content"
RUN_NAME_TAG = "mlflow.runName"
PARENT_RUN_TAG = "mlflow.parentRunId"
DATASET_CONTEXT_TAG = "mlflow.data.context"
SHARED_VIEW_TAG = "mlflow.sharedViewState.{name}"  # what "Share view" writes

# The pytorch flavor: a file beside the weights that names the module which unpickles; without it loading fails.
PICKLE_MODULE_FILE = ("pickle_module_info.txt", "mlflow.pytorch.pickle_module")

VALIDATION_LOGGER = "mlflow.models.evaluation.validation"  # two lines for each comparison


def is_generated_run_name(name: str) -> bool:
    """Whether MLflow made a run's name up ("brawny-carp-123"): one of its predicates, one of its nouns, a number."""
    from mlflow.utils import name_utils

    predicate, noun, number = ([*name.split("-"), "", "", ""])[:3]
    return (
        name.count("-") == 2
        and predicate in name_utils._GENERATOR_PREDICATES
        and noun in name_utils._GENERATOR_NOUNS
        and number.isdecimal()
    )


def registered_version(client: MlflowClient, model_uri: str) -> tuple[str, str]:
    """Name and version behind `models:/<name>/<version>` or `models:/<name>@<alias>`, as the registry knows it now."""
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    name, version = get_model_name_and_version(client, model_uri)  # type: ignore[no-untyped-call]
    return str(name), str(version)


def oxford_pets(pets: Any) -> list[tuple[Path, str]]:
    """Files and classes of torchvision's `OxfordIIITPet`, which itself only gives decoded images."""
    return [
        (Path(path), str(pets.bin_classes[label]).lower())
        for path, label in zip(pets._images, pets._bin_labels, strict=True)
    ]
