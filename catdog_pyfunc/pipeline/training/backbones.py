"""Pretrained backbones: the networks and weights that `backbone=` and `weights=` select."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import models

from catdog_pyfunc.errors import InvalidWeights, first_line
from catdog_pyfunc.network import Network, build_network
from catdog_pyfunc.pipeline.training.config import IMAGENET, NONE
from catdog_pyfunc.preprocessing import Preprocess

_CHOICES = "give weights=imagenet (downloaded once), a path to a state_dict of this backbone, or weights=none"


@dataclass(frozen=True)
class Backbone:
    """A network that is ready to be trained.

    Attributes:
        name: Model name in `torchvision.models`.
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
        name: A classification model of `torchvision.models` that ends in globally pooled features.
        weights: "imagenet" (torchvision's, downloaded and cached), a path to a state_dict, or "none".
        n_classes: Number of outputs of the head.
        seed: Seed of the random weights: of the head, and of the whole network if `weights` is "none".
        image_size: Side of the square input in pixels; None for the size of torchvision's preset.

    Returns:
        The backbone.

    Raises:
        InvalidSetting: The backbone is unknown or has no globally pooled features.
        InvalidWeights: The weights cannot be downloaded or read, or belong to another network.
    """
    torch.manual_seed(seed)
    network = build_network(name, n_classes, pretrained_head=weights != NONE)
    label = weights
    if weights == IMAGENET:
        _load_pretrained(network, _download(name), f"torchvision's {name}")
    elif weights != NONE:
        _load_pretrained(network, _read(Path(weights)), weights)
        label = Path(weights).name
    return Backbone(name, network, label, _digest(name, network), _preprocess(name, image_size))


def _download(name: str) -> Mapping[str, torch.Tensor]:
    try:
        weights = models.get_model_weights(name)["DEFAULT"]
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, KeyError, RuntimeError) as error:
        raise InvalidWeights(f"cannot download torchvision's weights for {name} ({first_line(error)}): {_CHOICES}") from None


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


def _load_pretrained(network: Network, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load the feature weights, all of which must be there in their shapes, and the pretrained head if it is there."""
    expected = network.features.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    reshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or reshaped:
        examples = ", ".join(
            [*(f"{key} is missing" for key in missing), *(f"{key} has another shape" for key in reshaped)][:3]
        )
        raise InvalidWeights(
            f"weights {source} belong to another network: {len(missing) + len(reshaped)} of {len(expected)} tensors do not "
            f"fit ({examples}, …); name the backbone they come from, or {_CHOICES}"
        )
    network.features.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)
    assert network.pretrained_head is not None
    head = network.pretrained_head.state_dict()
    if all(key in state and state[key].shape == value.shape for key, value in head.items()):
        network.pretrained_head.load_state_dict({key: state[key] for key in head})
    else:
        network.pretrained_head = None


def _digest(name: str, network: Network) -> str:
    content = hashlib.sha256(name.encode())
    for key, tensor in network.features.state_dict().items():
        content.update(key.encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def _preprocess(name: str, image_size: int | None) -> Preprocess:
    """Read torchvision's inference preset, which needs no download; scale it if another size is wanted."""
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    if image_size:
        size, resize = image_size, round(image_size * resize / size)
    red, green, blue = preset.mean
    red_std, green_std, blue_std = preset.std
    mean, std = (red, green, blue), (red_std, green_std, blue_std)
    return Preprocess(size, max(size, resize), mean, std, str(preset.interpolation.value))
