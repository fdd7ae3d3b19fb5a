"""From a folder of photos to a served, governed image classifier, inside MLflow's own commands.

    >>> import catdog_pyfunc
    >>> classifier = catdog_pyfunc.load_model("models:/CatDogClassifier@production")
    >>> classifier.predict([photo])[0].label
    'cat'

Importing this pulls in neither torch nor MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catdog_pyfunc.classifier import Classifier, Prediction

if TYPE_CHECKING:
    from catdog_pyfunc.flavor import load_model, log_model, save_model

__all__ = ["Classifier", "Prediction", "load_model", "log_model", "save_model"]
__version__ = "0.1.0"

_FLAVOR = ("load_model", "log_model", "save_model")  # these need MLflow, which takes 1.5 s to import


def __getattr__(name: str) -> Any:
    if name in _FLAVOR:
        from catdog_pyfunc import flavor

        return getattr(flavor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
