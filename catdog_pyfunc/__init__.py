"""From a folder of photos to a served, governed image classifier, inside MLflow's own commands.

    >>> import catdog_pyfunc
    >>> classifier = catdog_pyfunc.load_model("models:/CatDogClassifier@production")
    >>> classifier.predict([image])[0].label
    'cat'

The names in `__all__` are the public API for serving; `catdog_pyfunc.pipeline` has the one for training and evaluation.
Importing this package loads neither PyTorch nor MLflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from catdog_pyfunc.bundle import Bundle, Description
from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.errors import (
    AccessDenied,
    CatDogError,
    EnginesDisagree,
    InvalidBundle,
    InvalidImage,
    InvalidSetting,
    MissingDependency,
    RegistryError,
)
from catdog_pyfunc.preprocessing import Limits, Preprocess

if TYPE_CHECKING:
    from catdog_pyfunc.flavor import load_model, log_model, save_model
    from catdog_pyfunc.network import Network, build_network

__all__ = [
    "AccessDenied",
    "Bundle",
    "CatDogError",
    "Classifier",
    "Description",
    "EnginesDisagree",
    "InvalidBundle",
    "InvalidImage",
    "InvalidSetting",
    "Limits",
    "MissingDependency",
    "Network",
    "Prediction",
    "Preprocess",
    "RegistryError",
    "build_network",
    "load_model",
    "log_model",
    "save_model",
]
__version__ = "0.1.0"

# Imported on first use: MLflow takes 1.5 s to import, and PyTorch need not be installed.
_LAZY = {
    "Network": "catdog_pyfunc.network",
    "build_network": "catdog_pyfunc.network",
    "load_model": "catdog_pyfunc.flavor",
    "log_model": "catdog_pyfunc.flavor",
    "save_model": "catdog_pyfunc.flavor",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
