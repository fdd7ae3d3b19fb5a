"""Everything this project raises on purpose.

CatDogError
├── InvalidImage (ValueError)      one picture can't be read, or is beyond a limit
├── InvalidSetting (ValueError)    a parameter, an option or a model_config key is wrong
├── InvalidBundle (ValueError)     a stored model is damaged, incomplete or from another version
├── InvalidData (ValueError)       a folder of photos can't be trained on
├── InvalidWeights (ValueError)    weights can't be had, or belong to another network
├── EnginesDisagree                PyTorch and ONNX Runtime answer differently: nothing was saved
├── TrackingError                  the tracking store can't be reached or written
├── RegistryError                  a run, a model or a version isn't there
├── ModelFailed                    a model can't be loaded, or fails while it answers
├── PromotionRefused               a version didn't pass the gate: no alias was moved
├── PromotionLost                  somebody else moved the alias first: this move was not made
└── MissingDependency (ImportError)   an optional package isn't installed
"""

from __future__ import annotations


class CatDogError(Exception):
    """The base of all: catch it to catch whatever this project raises on purpose."""


class InvalidImage(CatDogError, ValueError):
    """One picture can't be read, or is beyond a limit; its row says why and the others stand."""


class InvalidSetting(CatDogError, ValueError):
    """A parameter, an option or a `model_config` key has a value that can't be used."""


class InvalidBundle(CatDogError, ValueError):
    """A stored model is damaged, incomplete or written by a newer version."""


class InvalidData(CatDogError, ValueError):
    """A folder of photos can't be trained on."""


class InvalidWeights(CatDogError, ValueError):
    """Pretrained weights can't be had, or belong to another network."""


class EnginesDisagree(CatDogError):
    """PyTorch and ONNX Runtime answer differently on the same pictures: nothing was saved."""


class TrackingError(CatDogError):
    """The tracking store can't be reached or written."""


class RegistryError(CatDogError):
    """A run, a registered model or a version isn't there."""


class ModelFailed(CatDogError):
    """A model can't be loaded, or fails while it answers."""


class PromotionRefused(CatDogError):
    """A version didn't pass the gate: no alias was moved."""


class PromotionLost(CatDogError):
    """Somebody else moved the alias while this move was being decided: it was not made."""


class MissingDependency(CatDogError, ImportError):
    """An optional package isn't installed; the message is the command that installs it."""
