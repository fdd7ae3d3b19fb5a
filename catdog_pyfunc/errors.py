"""Everything this project raises on purpose.

CatDogError
├── InvalidImage (ValueError)         one image is corrupt, or beyond a limit
├── InvalidSetting (ValueError)       a parameter, an option or a model_config key is wrong
├── InvalidBundle (ValueError)        a stored model is damaged, incomplete or from a newer version
├── InvalidData (ValueError)          the user's images or labels cannot be used
├── InvalidWeights (ValueError)       pretrained weights are not available, or belong to another network
├── EnginesDisagree                   PyTorch and ONNX Runtime differ: nothing was saved
├── TrackingError                     the tracking store cannot be reached or written
├── AccessDenied                      the tracking server wants a sign-in, a permission, or a certificate that is trusted
├── RegistryError                     a run, a model or a version does not exist
├── JobFailed                         an output or the cache cannot be written, or a cluster gave up
├── ModelFailed                       a model cannot be loaded, raises, hangs, or returns unusable predictions
├── PromotionRefused                  a version did not pass the gate: no alias was moved
├── PromotionLost                     somebody else moved the alias first: this promotion was not made
└── MissingDependency (ImportError)   an optional package is not installed
"""

from __future__ import annotations


def first_line(error: BaseException, limit: int = 500) -> str:
    """The first non-empty line of an exception's message, or its type's name if it has none; at most `limit` characters."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:limit]


class CatDogError(Exception):
    """The base of all: catch it to catch whatever this project raises on purpose."""


class InvalidImage(CatDogError, ValueError):
    """One image is corrupt, or beyond a limit; its row says why and the others stand."""


class InvalidSetting(CatDogError, ValueError):
    """A parameter, an option or a `model_config` key has a value that cannot be used."""


class InvalidBundle(CatDogError, ValueError):
    """A stored model is damaged, incomplete or written by a newer version."""


class InvalidData(CatDogError, ValueError):
    """The user's images or labels cannot be used; never what a model returned (that is `ModelFailed`)."""


class InvalidWeights(CatDogError, ValueError):
    """Pretrained weights are not available, or belong to another network."""


class EnginesDisagree(CatDogError):
    """PyTorch and ONNX Runtime differ on the same images: nothing was saved."""


class TrackingError(CatDogError):
    """The tracking store cannot be reached or written."""


class AccessDenied(CatDogError):
    """The tracking server wants a sign-in, a permission, or a certificate that is trusted; the message says what to set."""


class RegistryError(CatDogError):
    """A run, a registered model or a version does not exist."""


class ModelFailed(CatDogError):
    """A model cannot be loaded, raises, hangs, or returns predictions that cannot be used."""


class JobFailed(CatDogError):
    """An output or the cache cannot be written, or a cluster gave up; what was written stays, and a second call goes on."""


class PromotionRefused(CatDogError):
    """A version did not pass the gate: no alias was moved."""


class PromotionLost(CatDogError):
    """Somebody else moved the alias while this promotion was being decided: it was not made."""


class MissingDependency(CatDogError, ImportError):
    """An optional package is not installed; the message is the command that installs it."""
