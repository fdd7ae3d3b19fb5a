"""Pretrained backbones: the networks and weights that `backbone=` and `weights=` select."""

from __future__ import annotations

import contextlib
import hashlib
import math
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from catdog_pyfunc.bundle import TIMM
from catdog_pyfunc.errors import InvalidWeights, first_line
from catdog_pyfunc.network import Network, build_network
from catdog_pyfunc.pipeline.training.config import IMAGENET, NONE
from catdog_pyfunc.preprocessing import Preprocess
from catdog_pyfunc.timm_backbone import TimmFeatures, create_timm_model, timm_size

_CHOICES = "give weights=imagenet (downloaded once), a path to a state_dict of this backbone, or weights=none"


@dataclass(frozen=True)
class Backbone:
    """A network that is ready to be trained.

    Attributes:
        name: Model name in `torchvision.models`, or `timm/<name>`.
        network: Pretrained features and the classifier that they were trained with (or random features), and a randomly
            initialised head.
        weights: "imagenet", "none" or the name of the weights file.
        digest: 16 hex digits over name and feature weights: equal networks have equal digests.
        preprocess: The preprocessing that the pretrained weights expect.
    """

    name: str
    network: Network
    weights: str
    digest: str
    preprocess: Preprocess

    @property
    def pretrained(self) -> bool:
        """Whether the features were trained before, so that a linear head can use them as they are."""
        return self.weights != NONE


def load_backbone(name: str, weights: str, n_classes: int, seed: int, image_size: int | None = None) -> Backbone:
    """Build a network and load its weights.

    Args:
        name: A classification model of `torchvision.models` that ends in globally pooled features, or `timm/<name>`.
        weights: "imagenet" (torchvision's or timm's, downloaded and cached), a path to a state_dict, or "none".
        n_classes: Number of outputs of the head.
        seed: Seed of the random weights: of the head, and of the whole network if `weights` is "none".
        image_size: Side of the square input in pixels; None for the backbone's own.

    Returns:
        The backbone.

    Raises:
        InvalidSetting: The backbone is unknown, has no globally pooled features or takes no images of this size.
        InvalidWeights: The weights cannot be downloaded or read, or belong to another network.
        MissingDependency: The backbone is one of timm's, which is not installed.
    """
    torch.manual_seed(seed)
    network = build_network(name, n_classes, image_size, pretrained_head=weights != NONE)
    preprocess, label = _preprocess(name, network, image_size), weights
    if weights == IMAGENET:
        _load_pretrained(network, _download(name, preprocess.size), f"published for {name}")
    elif weights != NONE:
        _load_pretrained(network, _read(Path(weights)), weights)
        label = Path(weights).name
    return Backbone(name, network, label, _digest(name, network), preprocess)


def _published_module(network: Network) -> nn.Module:
    """The part of the features whose tensors have the names that torchvision or timm gives them."""
    return network.features.model if isinstance(network.features, TimmFeatures) else network.features


def _download(name: str, image_size: int) -> Mapping[str, torch.Tensor]:
    try:
        if name.startswith(TIMM):
            return dict(create_timm_model(name, image_size, pretrained=True).state_dict())
        weights = models.get_model_weights(name)["DEFAULT"]
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, KeyError, RuntimeError) as error:
        raise InvalidWeights(f"cannot download weights for {name} ({first_line(error)}): {_CHOICES}") from None


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InvalidWeights(f"weights {path} is not a file: {_CHOICES}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InvalidWeights(f"cannot read weights {path} as a state_dict ({first_line(error)}): {_CHOICES}") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InvalidWeights(f"weights {path} contains {type(content).__name__}, not a state_dict of tensors: {_CHOICES}")
    return content


def _misfits(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    reshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    return [*(f"{key} is missing" for key in missing), *(f"{key} has another shape" for key in reshaped)]


def _converted(network: Network, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Convert weights for another image size, or of an older version, as timm does with those that it downloads."""
    module = _published_module(network)
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert and _misfits(module.state_dict(), state):
        with contextlib.suppress(AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # of another network
            return dict(convert(dict(state), module))
    return state


def _load_pretrained(network: Network, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load the feature weights, all of which must be there in their shapes, and the pretrained head if it is there."""
    module = _published_module(network)
    state = _converted(network, state)
    expected = module.state_dict()
    misfits = _misfits(expected, state)
    if misfits:
        raise InvalidWeights(
            f"weights {source} belong to another network: {len(misfits)} of {len(expected)} tensors do not "
            f"fit ({', '.join(misfits[:3])}, …); name the backbone they come from, or {_CHOICES}"
        )
    module.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)
    _load_pretrained_head(network, state)


def _load_pretrained_head(network: Network, state: Mapping[str, torch.Tensor]) -> None:
    """Load the classifier that was trained together with the features, or drop it if the weights have none that fits."""
    assert network.pretrained_head is not None
    expected = network.pretrained_head.state_dict()
    if isinstance(network.features, TimmFeatures):  # timm's models call it `fc`, `classifier`, `head.fc`, …
        rest = state.keys() - _published_module(network).state_dict().keys()
        state = {key.split(".")[-1]: state[key] for key in rest} if len(rest) == len(expected) else {}
    if _misfits(expected, state):
        network.pretrained_head = None
    else:
        network.pretrained_head.load_state_dict({key: state[key] for key in expected})


def _digest(name: str, network: Network) -> str:
    content = hashlib.sha256(name.encode())
    for key, tensor in _published_module(network).state_dict().items():
        content.update(key.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def _preprocess(name: str, network: Network, image_size: int | None) -> Preprocess:
    """Read the inference preset of torchvision or timm, which needs no download; scale it if another size is wanted."""
    if isinstance(network.features, TimmFeatures):
        return _timm_preprocess(network.features.model, image_size or timm_size(name))
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    if image_size:
        size, resize = image_size, round(image_size * resize / size)
    red, green, blue = preset.mean
    red_std, green_std, blue_std = preset.std
    mean, std = (red, green, blue), (red_std, green_std, blue_std)
    return Preprocess(size, max(size, resize), mean, std, str(preset.interpolation.value))


def _timm_preprocess(model: nn.Module, size: int) -> Preprocess:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    resize = math.floor(size / config["crop_pct"])
    return Preprocess(size, resize, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
